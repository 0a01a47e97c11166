"""The workspace container: launched once, checked, found again, stopped; `test` beside it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.engine.conftest import Invoke, argv
from torchdock.engine import Engine
from torchdock.process import capture
from torchdock.state import CloneState

pytestmark = pytest.mark.usefixtures("image")


@pytest.fixture
def workspace(invoke: Invoke, tmp_path: Path) -> Iterator[Path]:
    """A project of a user's own; its workspace container is gone afterwards."""
    folder = tmp_path / "my project"
    folder.mkdir()
    yield folder
    invoke("down", "-w", str(folder))


def test_up_again_shell_and_down(invoke: Invoke, workspace: Path, client: docker.DockerClient) -> None:
    first = invoke("up", "--json", "-w", str(workspace))
    assert first.returncode == 0, first.stderr
    one = json.loads(first.stdout)
    assert one["launched"] is True
    assert one["checks"]["failed"] == 0
    assert one["checks"]["passed"] > 20
    assert one["checks"]["seconds"] <= 45

    second = invoke("up", "--json", "-w", str(workspace))
    two = json.loads(second.stdout)
    assert (two["container"], two["launched"], two["built"]) == (one["container"], False, False)

    inside = invoke("shell", "-w", str(workspace), stdin="touch /workspace/made; hostname; exit 5\n")
    assert inside.returncode == 5
    assert inside.stdout == "torchdock\n"
    assert one["container"] in inside.stderr
    assert (workspace / "made").stat().st_uid == workspace.stat().st_uid

    found = client.containers.get(one["container"]).attrs["HostConfig"]
    assert found["CapDrop"] == ["ALL"]
    assert not found["Privileged"]
    assert found["NetworkMode"] not in ("host",)
    assert found["IpcMode"] != "host"

    down = invoke("down", "--json", "-w", str(workspace))
    assert json.loads(down.stdout) == {"container": one["container"], "stopped": True}
    with pytest.raises(docker.errors.NotFound):
        client.containers.get(one["container"])
    assert json.loads(invoke("down", "--json", "-w", str(workspace)).stdout)["stopped"] is False


@pytest.mark.slow
def test_two_at_once_make_one(workspace: Path, engine: Engine) -> None:
    words = argv("up", "--json", "-w", str(workspace))
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [child.communicate(timeout=200) for child in both]
    assert [child.returncode for child in both] == [0, 0], outputs
    documents = [json.loads(out) for out, _ in outputs]
    assert sorted(document["launched"] for document in documents) == [False, True]
    assert documents[0]["container"] == documents[1]["container"]
    assert sum("waiting for it to finish" in err for _, err in outputs) == 1
    assert len(engine.containers([f"dev.torchdock.workspace={workspace}"])) == 1


def test_up_of_a_missing_workspace_is_wrong_input(invoke: Invoke, tmp_path: Path) -> None:
    done = invoke("up", "-w", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "does not exist" in done.stderr


def test_a_taken_port_is_told_before_a_build(invoke: Invoke, clone: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    with (clone / "docker/entrypoint.sh").open("a") as file:
        file.write("# an image that is not there\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "project/torchdock.toml").write_text(f'ports = ["{port}:80"]\n')
        for words in (["up"], ["jupyter"]):
            done = invoke(*words, "-w", str(tmp_path / "project"), cwd=clone)
            assert done.returncode == 2
            assert f"The port {port} of 127.0.0.1 cannot be used" in done.stderr
    assert CloneState(clone).records() == []


def test_a_gpu_is_demanded_and_never_skipped(invoke: Invoke) -> None:
    from torchdock import gpus

    if gpus.gather().gpus:
        assert invoke("test", "--gpu", "--quick").returncode == 0
        return
    done = invoke("test", "--gpu")
    assert done.returncode == 1
    assert "--gpu demands a GPU" in done.stderr
    assert "invoke doctor" in done.stderr


@pytest.mark.slow
def test_the_suite_fails_when_a_check_fails(invoke: Invoke, clone: Path) -> None:
    (clone / "tests/container/test_broken.py").write_text(
        '"""Broken on purpose."""\n\nimport pytest\n\n\n@pytest.mark.quick\ndef test_broken():\n'
        '    """Two is three."""\n    assert 2 == 3\n'
    )
    done = invoke("test", "--quick", "--json", cwd=clone)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["failed"] == 1
    assert "test_broken" in done.stderr
    report = ElementTree.parse(document["report"]).getroot()
    assert sum(int(suite.get("failures") or 0) for suite in report.iter("testsuite")) == 1


@pytest.mark.parametrize("task", [pytest.param("up", marks=pytest.mark.slow), "test"])
def test_ctrl_c_in_the_checks_stops_them_and_the_next_run_works(
    invoke: Invoke, workspace: Path, engine: Engine, task: str
) -> None:
    words = argv("up", "-w", str(workspace)) if task == "up" else argv("test", "--quick")
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    while "torchdock check" not in child.stderr.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    assert engine.containers(["dev.torchdock.role=test"]) == []
    if task == "up":
        (found,) = engine.containers([f"dev.torchdock.workspace={workspace}"])
        deadline = time.monotonic() + 20
        while (running := capture(["docker", "exec", found["Id"], "pgrep", "-f", "inside.check"])).code == 0:
            assert time.monotonic() < deadline, running.out
            time.sleep(0.1)
        assert invoke("up", "-w", str(workspace)).returncode == 0
