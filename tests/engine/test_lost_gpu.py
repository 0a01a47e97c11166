"""A GPU that is lost in mid-run: noticed and explained; the command saves and ends, with an exit code of its own."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import ROOT, Invoke, argv
from tests.engine.waiting import until
from tests.fakes import FakeDriver, FakeGpu, new_uuid
from torchdock.engine import Engine

LOST = ["nvmlInit* 999"]
SAVES = "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.1; done"


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[FakeDriver]:
    """One GPU that is not there, which the engine of this host hands over."""
    folder = tmp_path / "driver"
    folder.mkdir()
    with FakeDriver(folder, [FakeGpu(new_uuid())]).handed_over() as fake:
        yield fake


def launched(driver: FakeDriver, script: str, watch: str = "1") -> subprocess.Popen[str]:
    """``invoke run`` of a shell script on the GPU, when it has said that it is ready."""
    child = subprocess.Popen(
        argv("run", "--gpus", driver.gpus[0].uuid, "--", "sh", "-c", script),
        cwd=ROOT, env={**os.environ, **driver.environment, "TORCHDOCK_WATCH": watch},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.usefixtures("image")
def test_a_run_that_loses_its_gpu_saves_and_ends_with_74(
    driver: FakeDriver, leftovers: Callable[[str], Sequence[str]]
) -> None:
    child = launched(driver, SAVES)
    driver.behave(fail=LOST, where="inside")
    output, errors = child.communicate(timeout=60)
    assert (child.returncode, output) == (74, "saved\n"), errors
    live, last = errors.splitlines()[-2:]
    assert live.startswith("torchdock: this container has lost its GPU: NVML's nvmlInit_v2 gives 999")
    assert "SIGTERM now, and 120 s to save" in live
    assert last.startswith("torchdock: The container lost its GPU, and its command was ended (it gave 0): NVML's")
    assert leftovers("run") == []


@pytest.mark.slow
@pytest.mark.usefixtures("image")
def test_it_is_noticed_within_30_seconds(driver: FakeDriver) -> None:
    child = launched(driver, SAVES, watch="")  # as it comes
    driver.behave(fail=LOST, where="inside")
    since = time.monotonic()
    child.communicate(timeout=60)
    assert (child.returncode, time.monotonic() - since < 30) == (74, True)


@pytest.mark.slow
@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param({"fail": ["nvmlDeviceGetUUID 15"]}, "nvmlDeviceGetUUID gives 15", id="fell off the bus"),
        pytest.param({"fail": ["nvmlSystemGetDriverVersion 9"]}, "gives 9", id="no driver"),
    ],
)
def test_other_ways_of_losing_it(fault: dict[str, Any], words: str, driver: FakeDriver) -> None:
    child = launched(driver, SAVES)
    driver.behave(**fault, where="inside")
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, words in errors) == (74, True), errors


def holds(engine: Engine, container: str, path: str) -> bool:
    """Whether a process of a container has this file open."""
    table = engine.client.api.top(container)
    column = table["Titles"].index("PID")
    links = [one for row in table["Processes"] for one in Path("/proc", row[column], "fd").glob("*")]
    with suppress(FileNotFoundError):
        return any(os.readlink(one) == path for one in links)
    return False


DEVICES = Path("/sys/fs/cgroup/devices/docker")  # of cgroup v1, where rules can be taken away by hand
TUN = os.makedev(10, 200)  # a device that a container may not open unless it is given


@pytest.mark.slow
@pytest.mark.usefixtures("image")
@pytest.mark.skipif(not DEVICES.is_dir() or os.geteuid() != 0, reason="device rules are changed as root, by cgroup v1")
def test_device_rules_that_are_dropped(tmp_path: Path, engine: Engine) -> None:
    """As a systemd reload drops those of the legacy hook, the kernel's own doing: the driver is fine."""
    folder, node = tmp_path / "driver", tmp_path / "node"
    folder.mkdir()
    os.mknod(node, 0o666 | stat.S_IFCHR, TUN)
    node.chmod(0o666)
    driver = FakeDriver(folder, [FakeGpu(new_uuid())])
    document = json.loads(driver.specification())
    document["containerEdits"]["deviceNodes"] = [{"path": "/dev/nvidiactl", "hostPath": str(node)}]
    driver.specification = lambda **_: json.dumps(document)  # type: ignore[method-assign]
    with driver.handed_over():
        child = launched(driver, SAVES)
        label = f"dev.torchdock.gpus={driver.gpus[0].uuid}"
        (container,) = engine.containers([label, "dev.torchdock.role=run"])
        until(
            lambda: holds(engine, container["Id"], "/dev/nvidiactl"), "the watch has looked and keeps the device awake"
        )
        (DEVICES / container["Id"] / "devices.deny").write_text("c 10:200 rwm\n")
        _, errors = child.communicate(timeout=60)
    assert (child.returncode, "/dev/nvidiactl cannot be opened any more" in errors) == (74, True), errors


@pytest.mark.slow
@pytest.mark.usefixtures("image")
def test_a_driver_that_hangs_for_a_while_ends_nothing(driver: FakeDriver) -> None:
    child = launched(driver, 'echo ready; read line; echo "$line"')
    assert child.stderr is not None
    driver.behave(hang=["nvmlDeviceGetCount*"], where="inside")
    said = "begin"
    while said and "no answer for 20 s" not in said:
        said = child.stderr.readline()
    assert said
    driver.behave()
    output, errors = child.communicate("on\n", timeout=60)
    assert (child.returncode, output) == (0, "on\n"), errors


@pytest.mark.slow
@pytest.mark.usefixtures("image")
def test_a_watch_that_is_not_wanted_is_not_kept(driver: FakeDriver) -> None:
    child = launched(driver, "echo ready; read line; ps -e -o args=", watch="0")
    output, errors = child.communicate("on\n", timeout=60)
    assert child.returncode == 0, errors
    assert "inside.watch" not in output
    assert "ps -e" in output


@pytest.mark.slow
@pytest.mark.usefixtures("image")
def test_a_job_says_it_in_its_output_and_a_workspace_container_to_whoever_enters(
    driver: FakeDriver, invoke: Invoke, clone: Path
) -> None:
    env = {**driver.environment, "TORCHDOCK_WATCH": "1"}
    words = ("--gpus", driver.gpus[0].uuid)
    job = invoke("run", "--detach", *words, "--", "sh", "-c", SAVES, cwd=clone, env=env)
    assert job.returncode == 0, job.stderr
    name = job.stdout.strip()
    driver.behave(fail=LOST, where="inside")
    until(lambda: "saved" in invoke("logs", name, cwd=clone).stdout, "the job saves and ends")
    told = invoke("logs", name, cwd=clone)
    assert "this container has lost its GPU: NVML's nvmlInit_v2 gives 999" in told.stdout + told.stderr

    driver.behave()
    up = invoke("up", *words, "--json", cwd=clone, env=env)
    assert up.stdout, up.stderr
    container = json.loads(up.stdout)["container"]
    driver.behave(fail=LOST, where="inside")
    until(lambda: "lost its GPU" in invoke("logs", container, cwd=clone).stderr, "the workspace container is told")
    entrypoint = "/opt/torchdock/docker/entrypoint.sh"
    inside = subprocess.run(["docker", "exec", container, entrypoint, "echo", "here"], capture_output=True, text=True)
    assert inside.stdout == "here\n"
    assert "this container has lost its GPU: NVML's" in inside.stderr
