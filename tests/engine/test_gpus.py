"""GPUs that are not there, of a real engine: who has which, and which one a launch gets and sees in its container."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.engine.conftest import PYTHON, ROOT, Invoke, argv
from tests.engine.test_terminal import spawn
from tests.engine.waiting import until
from tests.fakes import GIB, FakeDriver, FakeGpu, FakeInstance, new_uuid
from torchdock.engine import Engine

pytestmark = pytest.mark.usefixtures("image")

SEEN = """\
import pynvml as n
n.nvmlInit()
for index in range(n.nvmlDeviceGetCount()):
    gpu = n.nvmlDeviceGetHandleByIndex(index)
    units = []
    for slot in range(n.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try: units.append(n.nvmlDeviceGetMigDeviceHandleByIndex(gpu, slot))
        except n.NVMLError: pass
    print(*[n.nvmlDeviceGetUUID(unit) for unit in units or [gpu]], sep='\\n')
"""


@pytest.fixture
def driver(engine: Engine, tmp_path: Path) -> Iterator[FakeDriver]:
    """A host with two H200, which NVLink joins with nobody, two L4 joined with each other, and one cut into two."""
    if not engine.cdi:
        pytest.skip('this engine has CDI switched off ({"features": {"cdi": true}} in /etc/docker/daemon.json)')
    folder = tmp_path / "driver"
    folder.mkdir()
    small = {"name": "FAKE L4 (torchdock)", "capability": "8.9", "memory_total": 24 * GIB}
    parts = (FakeInstance(new_uuid("MIG")), FakeInstance(new_uuid("MIG"), memory_total=32 * GIB))
    gpus = [
        FakeGpu(new_uuid(), memory_used=GIB),
        FakeGpu(new_uuid()),
        FakeGpu(new_uuid(), **small, memory_used=2 * GIB, nvlinks=("0000:13:00.0",)),
        FakeGpu(new_uuid(), **small, memory_used=2 * GIB, nvlinks=("0000:12:00.0",)),
        FakeGpu(new_uuid(), mig=True, instances=parts),
    ]
    with FakeDriver(folder, gpus).handed_over() as fake:
        yield fake


def document(invoke: Invoke, driver: FakeDriver, *words: str) -> dict[str, Any]:
    """What `invoke gpus --json` tells."""
    done = invoke("gpus", "--json", *words, env=dict(driver.environment))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows(invoke: Invoke, driver: FakeDriver) -> dict[str, dict[str, Any]]:
    return {row["uuid"]: row for row in document(invoke, driver)["gpus"]}


def test_a_container_sees_the_one_that_was_asked_for(invoke: Invoke, driver: FakeDriver) -> None:
    whole = [gpu.uuid for gpu in driver.gpus]
    part = driver.gpus[4].instances[1].uuid
    for words, expected in (
        ([], {whole[1]}),
        (["--gpus", "2", "--gpu-name", "l4"], {whole[2], whole[3]}),
        (["--gpu-name", "MIG"], {part}),
    ):
        done = invoke("run", *words, "--", "python", "-c", SEEN, env=dict(driver.environment))
        assert done.returncode == 0, done.stderr
        assert set(done.stdout.split()) == expected


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--gpus", "GPU-nothing"], 2, "'GPU-nothing' is none of them here"),
        (["--gpus", "5"], 2, "CUDA shows a process one MIG instance and nothing besides"),
        (["--gpus", "7"], 2, "this host has 6"),
        (["--min-memory", "200GiB"], 2, "no GPU of this host is that; it has 2 × FAKE H200 (torchdock) (140GiB)"),
        (["--min-memory", "much"], 2, "--min-memory much: a size is a number"),
        (["--gpu-name", "B200"], 2, "--gpu-name B200: no GPU of this host is that"),
        (["--gpus", "0", "--gpu-name", "H200"], 2, "no GPU is asked for, and what it has to be"),
        (["--gpus", "3"], 75, "is computed on without a lease (PID 1)"),
        (["--min-memory", "139.5GiB"], 75, "GPU 0 (GPU-"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_paragraph(
    words: list[str], code: int, told: str, invoke: Invoke, driver: FakeDriver
) -> None:
    driver.change(driver.gpus[1].uuid, processes=((1, GIB),))
    driver.change(driver.gpus[2].uuid, processes=((1, GIB),))
    done = invoke("run", *words, "--dry-run", "--", "true", env=dict(driver.environment))
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.splitlines()[-1].startswith("torchdock: ")
    assert told in done.stderr.splitlines()[-1]


def test_who_has_which_is_told_by_lease_container_and_process(
    invoke: Invoke, driver: FakeDriver, engine: Engine, image: dict[str, Any], tmp_path: Path
) -> None:
    """One is a job's, one a container's that torchdock knows nothing of, one a process's of the host."""
    name = f"g{os.getpid()}"
    leased, foreign, hosts = (driver.gpus[index].uuid for index in (1, 2, 3))
    stranger = engine.client.containers.run(image["image"], ["sleep", "infinity"], detach=True)
    process = subprocess.Popen(["sleep", "infinity"])
    try:
        done = invoke("run", "--detach", "--name", name, "--time", "1h", "--", "sleep", "infinity",
                      env=dict(driver.environment))  # fmt: skip
        assert done.returncode == 0, done.stderr
        job = engine.client.containers.get(f"torchdock-root-{name}")

        def sleeper(container: Any) -> int:
            listed = until(
                lambda: [row for row in container.top()["Processes"] if row[-1] == "sleep infinity"], "it runs"
            )
            return int(listed[0][1])

        inner = sleeper(job)
        now = int(time.time() * 1e6)
        driver.change(leased, processes=((inner, 3 * GIB),), utilisation=0, samples=((now - 20_000_000, 0),))
        driver.change(foreign, processes=((sleeper(stranger), GIB),), utilisation=97)
        driver.change(hosts, processes=((process.pid, GIB), (2**22 - 1, GIB)))
        found = rows(invoke, driver)
        (one,) = found[leased]["holders"]
        assert (one["user"], one["container"], one["role"], one["leased"]) == ("root", job.name, "job", True)
        assert [(each["pid"], each["name"], each["memory"]) for each in one["programs"]] == [(inner, "sleep", 3 * GIB)]
        assert 0 <= time.time() - one["since"] < 300
        assert one["until"] == pytest.approx(one["since"] + 3600, abs=2)
        assert found[leased]["state"] == "leased"
        # The driver remembers less than the job has lasted, or as long as it has.
        assert found[leased]["idle"]["since"] == pytest.approx(max(one["since"], now / 1e6 - 20), abs=0.01)
        (one,) = found[foreign]["holders"]
        assert (one["container"], one["leased"], one["programs"][0]["name"]) == (stranger.name, False, "sleep")
        assert (found[foreign]["state"], found[foreign]["idle"]) == ("in use", None)
        one, gone = found[hosts]["holders"] if found[hosts]["holders"][0]["user"] else found[hosts]["holders"][::-1]
        assert (one["user"], one["container"], one["programs"][0]["pid"]) == ("root", "", process.pid)
        assert (gone["user"], gone["programs"][0]["pid"]) == ("", 2**22 - 1)
        assert found[driver.gpus[0].uuid]["state"] == "free"
        told = invoke("gpus", env=dict(driver.environment)).stdout
        assert f"{job.name} (job)" in told and leased in told and "4:1" in told and "in MIG mode" in told
        assert invoke("stop", "--remove", name).returncode == 0
        assert rows(invoke, driver)[leased]["state"] == "in use"  # by a process that the driver still tells of
    finally:
        process.kill()
        process.wait()
        stranger.remove(force=True)
        invoke("stop", "--remove", name)


def test_a_watch_follows_and_ends_in_good_order(driver: FakeDriver) -> None:
    env = {"COLUMNS": "150", "TERM": "xterm", **driver.environment}
    terminal = spawn(*argv("gpus", "--watch"), **env)
    terminal.setwinsize(40, 150)
    terminal.expect("0 %")
    driver.change(driver.gpus[0].uuid, utilisation=77)
    terminal.expect("77 %")
    terminal.sendintr()
    terminal.expect("\x1b\\[\\?25h")  # the cursor is shown again
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert (terminal.exitstatus, terminal.signalstatus) == (0, None)


def test_a_watch_without_a_terminal_writes_one_after_the_other(driver: FakeDriver) -> None:
    env = {**os.environ, **driver.environment}
    with subprocess.Popen(argv("gpus", "--watch"), cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        heads = [next(line for line in lines if "driver 580.0-fake" in line) for _ in range(2)]
        assert len(set(heads)) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_watch_is_no_document(invoke: Invoke) -> None:
    done = invoke("gpus", "--watch", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--json is one document" in done.stderr


def test_a_driver_that_does_not_work_is_told(invoke: Invoke, driver: FakeDriver) -> None:
    driver.behave(fail=["nvmlInit* 999"])
    done = invoke("gpus", "--json", env=dict(driver.environment))
    assert done.returncode == 1
    assert "does not answer (NVML: Unknown Error)" in json.loads(done.stdout)["reason"]
    assert done.stderr.splitlines()[-1].startswith("torchdock: The NVIDIA driver does not work: ")
    # A launch says that it computes on the CPU in its place.
    done = invoke("run", "--", "true", env=dict(driver.environment))
    assert done.returncode == 0
    assert "fallback: the CPU computes, as the NVIDIA driver does not answer (NVML: Unknown Error)" in done.stderr
    assert invoke("run", "--gpus", "1", "--", "true", env=dict(driver.environment)).returncode == 2


def test_a_host_without_a_driver_is_no_failure(invoke: Invoke) -> None:
    from torchdock import gpus

    if gpus.gather().gpus:
        pytest.skip("this host has a GPU")
    done = invoke("gpus")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("No GPU can be used: there is no NVIDIA driver")


def test_a_gpu_that_is_lost_hides_no_other(invoke: Invoke, driver: FakeDriver) -> None:
    driver.change(driver.gpus[0].uuid, lost=15)
    found = document(invoke, driver)
    assert found["warnings"] == ["GPU 0 does not answer (NVML: GPU is lost)"]
    assert driver.gpus[0].uuid not in {row["uuid"] for row in found["gpus"]}
    assert len(found["gpus"]) == 5


@pytest.mark.slow  # as long as it takes until the driver is given up, twice
def test_a_driver_that_hangs_is_given_up(invoke: Invoke, driver: FakeDriver) -> None:
    driver.behave(hang=["nvmlDeviceGetName"])
    started = time.monotonic()
    done = invoke("gpus", env=dict(driver.environment))
    assert time.monotonic() - started < 50
    assert done.returncode == 1
    assert "the NVIDIA driver does not answer (asking it gave nothing within 30 s)" in done.stderr
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if str(driver.folder).encode() in _bytes(path)]
    assert left == []


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow  # of a machine that does nothing else
def test_eight_gpus_are_told_of_within_their_time() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    bench = [str(PYTHON), "bench/gpus.py"]
    for _ in range(3):  # what else the machine does may spoil one
        done = subprocess.run(bench, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
        if done.returncode == 0:
            return
    pytest.fail(done.stdout + done.stderr)
