"""Streams, exit codes, signals, and how what is attached ends with its client while what is detached lives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from tests.engine.conftest import ROOT, argv
from tests.engine.waiting import SECONDS, hang_up, until
from torchdock import container, lifeline, sources
from torchdock.engine import Engine
from torchdock.process import FORWARDED
from torchdock.state import CloneState

Left = Callable[[Path], Sequence[str]]

pytestmark = pytest.mark.usefixtures("image")


@pytest.fixture
def left(engine: Engine) -> Left:
    """Names of the containers with this workspace."""
    return lambda folder: [
        found["Names"][0].lstrip("/") for found in engine.containers([f"dev.torchdock.workspace={folder}"])
    ]


def start(*words: str) -> subprocess.Popen[bytes]:
    """`invoke` with these words and pipes, in a session of its own; it ignores no signal, even if these tests do."""
    return subprocess.Popen(
        argv(*words), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in FORWARDED],
    )  # fmt: skip


def line(client: subprocess.Popen[bytes]) -> bytes:
    assert client.stdout is not None
    return client.stdout.readline()


# --- streams and codes ---


def test_bytes_pass_as_they_are_and_the_streams_stay_apart() -> None:
    sent = bytes(range(256)) * 8192
    client = start("run", "--", "sh", "-c", "tee /dev/stderr")
    out, errors = client.communicate(sent, timeout=SECONDS)
    assert client.returncode == 0
    assert out == sent
    first, _, rest = errors.partition(b"\n")
    assert first.startswith(b"In torchdock-")
    assert rest == sent


def test_a_pipe_that_closes_early_ends_the_command(tmp_path: Path, left: Left) -> None:
    """`invoke run -- CMD | head -n 1`"""
    client = start("run", "-w", str(tmp_path), "--", "yes")
    assert line(client) == b"y\n"
    assert client.stdout is not None and client.stderr is not None
    client.stdout.close()
    assert client.wait(timeout=SECONDS) != 0
    assert b"Traceback" not in client.stderr.read()
    until(lambda: not left(tmp_path), "the container is gone")


def test_every_exit_code_is_the_commands_own() -> None:
    codes = (1, 2, 64, 126, 128, 255)
    clients = {code: start("run", "--", "sh", "-c", f"exit {code}") for code in codes}
    for client in clients.values():
        client.communicate(timeout=SECONDS)
    assert {code: client.returncode for code, client in clients.items()} == {code: code for code in codes}


# --- signals ---

# Says each signal that it gets; ends by a word on stdin.
LISTENER = """
import os, signal, sys
def told(number, frame):
    os.write(1, b"got %d\\n" % number)
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, told)
os.write(1, b"ready\\n")
while sys.stdin.readline() != "end\\n":
    pass
"""


@pytest.fixture(scope="module")
def listener() -> Iterator[subprocess.Popen[bytes]]:
    """One container for all signals."""
    client = start("run", "--", "python", "-c", LISTENER)
    assert line(client) == b"ready\n"
    yield client
    client.communicate(b"end\n", timeout=SECONDS)
    assert client.returncode == 0


@pytest.mark.parametrize("number", FORWARDED, ids=lambda number: getattr(number, "name", str(number)))
def test_a_signal_reaches_the_command_once(listener: subprocess.Popen[bytes], number: int) -> None:
    listener.send_signal(number)
    assert line(listener) == b"got %d\n" % number
    listener.send_signal(signal.SIGUSR1)  # the next one that comes is this one
    assert line(listener) == b"got %d\n" % signal.SIGUSR1


# --- how it ends: a training that saves when it is asked to end ---

TRAINING = "trap 'echo saved >saved; exit 143' TERM; echo re''ady $HOSTNAME; while :; do sleep 0.1; done"


@dataclass
class Training:
    """A training in the container of a client."""

    words: list[str]
    workspace: Path

    def wait_saved(self) -> None:
        until((self.workspace / "saved").exists, "the training has saved")


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(["run", "-w", str(tmp_path), "--", "sh", "-c", TRAINING], tmp_path)


def test_docker_stop_lets_a_training_save_and_gives_it_120_s(training: Training, engine: Engine, left: Left) -> None:
    client = start(*training.words)
    assert line(client).startswith(b"ready")
    (name,) = left(training.workspace)
    assert engine.client.api.inspect_container(name)["Config"]["StopTimeout"] == 120
    subprocess.run(["docker", "stop", name], check=True, capture_output=True)
    client.communicate(timeout=SECONDS)
    assert client.returncode == 143
    assert (training.workspace / "saved").exists()
    assert left(training.workspace) == []


def test_a_client_that_is_killed_takes_its_container_along_and_the_training_saves(
    training: Training, left: Left
) -> None:
    client = start(*training.words)
    assert line(client).startswith(b"ready")
    client.kill()
    training.wait_saved()
    until(lambda: not left(training.workspace), "the container is gone")


@pytest.mark.parametrize("trace", ["swept up", "unlocked"])
def test_a_client_that_was_killed_before_the_command_began_takes_it_along(
    image: dict[str, object], trace: str, tmp_path: Path
) -> None:
    """It is killed between the start of the container and the entrypoint's look at its lifeline."""
    script = "echo began; exec sleep 600"
    same = lifeline.word(tmp_path, "beef")
    if trace == "unlocked":
        (tmp_path / "beef").touch()
    run = ["docker", "run", "--rm", *container.mount(str(tmp_path), lifeline.INSIDE, read_only=True)]
    ended = subprocess.run(
        [*run, "--env", f"{lifeline.VARIABLE}={same}", str(image["image"]), "sh", "-c", script],
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (143, "")
    assert ended.stderr == "torchdock: the client ended before the command began\n"
    # Through the engine of a virtual machine no lock is seen, nor in a folder that was removed: that says nothing.
    for other in ("beef:another-machine:1:1", lifeline.word(tmp_path.parent, "beef"), "beef:"):
        seen = subprocess.run(
            [*run, "--env", f"{lifeline.VARIABLE}={other}", str(image["image"]), "echo", "began"],
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        assert (seen.returncode, seen.stdout) == (0, "began\n")


@pytest.mark.parametrize(
    "deaf", [pytest.param(False, id="by the hangup"), pytest.param(True, id="which it ignores", marks=pytest.mark.slow)]
)
def test_a_lost_connection_ends_the_command(training: Training, deaf: bool, left: Left) -> None:
    """The laptop's ssh is closed: the terminal is gone."""
    words = argv(*training.words)
    if deaf:
        words[-1] = f"trap '' HUP; {TRAINING}"
    terminal = pexpect.spawn(words[0], words[1:], cwd=str(ROOT), encoding="utf-8", timeout=SECONDS)
    terminal.expect("ready")
    if deaf:
        (name,) = left(training.workspace)
        until(lambda: _watches(name), "the container watches its lifeline for long enough")
    hang_up(terminal)
    if deaf:
        training.wait_saved()
    until(lambda: not left(training.workspace), "the container is gone")
    until(lambda: not _alive(terminal.pid), "the client has ended")


def _watches(name: str) -> bool:
    """Whether a container is so old that its client leaves it to its lifeline."""
    words = ["docker", "exec", name, "ps", "-o", "etimes=", "-p", "1"]
    age = subprocess.run(words, capture_output=True, text=True).stdout.strip()
    return age.isdigit() and int(age) > container.SETTLED_SECONDS


def test_a_lost_connection_ends_a_shell(tmp_path: Path, left: Left) -> None:
    words = argv("shell", "-w", str(tmp_path))
    terminal = pexpect.spawn(words[0], words[1:], cwd=str(ROOT), encoding="utf-8", timeout=SECONDS)
    terminal.expect("torchdock:/workspace")
    terminal.sendline("echo re''ady")
    terminal.expect("ready")
    hang_up(terminal)
    until(lambda: not left(tmp_path), "the container is gone")
    until(lambda: not _alive(terminal.pid), "the client has ended")


def test_a_killed_client_ends_a_shell(tmp_path: Path, left: Left) -> None:
    words = argv("shell", "-w", str(tmp_path))
    terminal = pexpect.spawn(words[0], words[1:], cwd=str(ROOT), encoding="utf-8", timeout=SECONDS)
    terminal.expect("torchdock:/workspace")
    terminal.kill(signal.SIGKILL)
    until(lambda: not left(tmp_path), "the container is gone")
    terminal.close()


def _alive(pid: int) -> bool:
    found, _ = os.waitpid(pid, os.WNOHANG)
    return found == 0


# --- the workspace container, which stays ---


@pytest.fixture(scope="module")
def project(engine: Engine, image: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace whose container is up (without the quick checks of `invoke up`)."""
    folder = tmp_path_factory.mktemp("project")
    who, clone = container.identity(engine), CloneState(ROOT).clone
    plan = container.plan(
        engine, str(image["image"]), who, sources.gather(), role="up", clone=clone, workspace=folder,
        command=container.STAY, name=container.workspace_name(who, clone, folder),
    )  # fmt: skip
    container.up(engine, plan)
    yield folder
    engine.remove_container(plan.name)


@pytest.mark.parametrize("end", ["kill", "hangup", "exit"])
def test_a_shell_in_it_ends_with_its_client_and_the_container_lives(project: Path, end: str, engine: Engine) -> None:
    name = container.workspace_name(container.identity(engine), CloneState(ROOT).clone, project)
    words = argv("shell", "-w", str(project))
    terminal = pexpect.spawn(words[0], words[1:], cwd=str(ROOT), encoding="utf-8", timeout=SECONDS)
    terminal.expect(f"In {name}, which runs on after this shell")
    terminal.expect("torchdock:/workspace")
    terminal.sendline("echo $$ >pid; sleep 1000 & echo re''ady")
    terminal.expect("ready")
    assert engine.sessions(name) == ["bash"]
    if end == "kill":
        terminal.kill(signal.SIGKILL)
    elif end == "hangup":
        hang_up(terminal)
    else:
        terminal.sendline("exit 7")
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == 7
    until(lambda: engine.sessions(name) == [], "the shell has ended")
    assert engine.client.api.inspect_container(name)["State"]["Running"]


def test_a_command_that_is_piped_into_a_shell_in_it_ends_with_its_client(project: Path, engine: Engine) -> None:
    name = container.workspace_name(container.identity(engine), CloneState(ROOT).clone, project)
    client = start("shell", "-w", str(project))
    assert client.stdin is not None
    client.stdin.write(b"echo ready\n exec sleep 1000\n")
    client.stdin.flush()
    assert line(client) == b"ready\n"
    assert engine.sessions(name) == ["bash"]
    client.kill()
    until(lambda: engine.sessions(name) == [], "the command has ended")


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for lifelines that the test may remove."""
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    return tmp_path / f"torchdock-{os.getuid()}"


def staying(engine: Engine, image: dict[str, object], workspace: Path) -> container.LaunchPlan:
    """A workspace container, by a name of its own."""
    return container.plan(
        engine, str(image["image"]), container.identity(engine), sources.gather(), role="up", clone="t",
        workspace=workspace, command=container.STAY,
    )  # fmt: skip


def test_a_folder_of_lifelines_that_was_removed_costs_no_further_command(
    own_folder: Path, image: dict[str, object], engine: Engine, tmp_path: Path
) -> None:
    """`rm -rf /tmp/*` while the container is up: it has the old folder, the client makes a new one."""
    plan = staying(engine, image, tmp_path)
    container.up(engine, plan)
    try:
        assert container.execute(engine, plan.name, ["sh", "-c", "exit 3"]).code == 3
        shutil.rmtree(own_folder)
        assert container.execute(engine, plan.name, ["sh", "-c", "exit 3"]).code == 3
    finally:
        engine.remove_container(plan.name)


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace of one's own takes root")
def test_a_client_with_a_tmp_of_its_own_launches(tmp_path: Path, engine: Engine) -> None:
    """PrivateTmp of a systemd unit: the engine has no folder of that name, and refuses to mount it."""
    script = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from torchdock import engine, lifeline
live = engine.require()
lifeline.FOLDERS = Path(sys.argv[2])
folder = lifeline.folder(os.getuid())
print(live.sees(folder), live.sees(Path("/proc")))
"""
    words = [sys.executable, "-c", script, str(ROOT / "src"), str(tmp_path)]
    private = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$1" && shift && exec "$@"', "sh", str(tmp_path)]
    done = subprocess.run([*private, *words], capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout == "False True\n", done.stderr
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout == "True True\n", done.stderr


@pytest.mark.parametrize("where", ["shell", "background", "server"])
def test_down_lets_what_runs_save(where: str, image: dict[str, object], engine: Engine, tmp_path: Path) -> None:
    who, clone = container.identity(engine), CloneState(ROOT).clone
    plan = container.plan(
        engine, str(image["image"]), who, sources.gather(), role="up", clone=clone, workspace=tmp_path,
        command=container.STAY, name=container.workspace_name(who, clone, tmp_path),
    )  # fmt: skip
    (tmp_path / "train.sh").write_text(SLOW)
    container.up(engine, plan)
    try:
        if where == "server":
            argv_of = container.exec_argv(engine, plan.name, ["sh", "train.sh"], detach=True)
            subprocess.run(argv_of, check=True, capture_output=True)
        else:
            words = argv("shell", "-w", str(tmp_path))
            terminal = pexpect.spawn(words[0], words[1:], cwd=str(ROOT), encoding="utf-8", timeout=SECONDS)
            terminal.expect("torchdock:/workspace")
            terminal.sendline("sh train.sh" + " &" * (where == "background"))
        until((tmp_path / "ready").exists, "the training runs")
        ending = ["stop", plan.name, "--json"] if where == "server" else ["down", "-w", str(tmp_path)]
        down = subprocess.run(argv(*ending), cwd=ROOT, capture_output=True, text=True)
        assert down.returncode == 0, down.stderr
        assert (tmp_path / "saved").read_text() == "saved\n"
        told = "sh train.sh" if where == "server" else "bash"
        assert f"Commands that end now, with up to 120 s to save: {told}\nStopped " in down.stdout + down.stderr
        if where == "server":
            assert json.loads(down.stdout)["removed"] is True and "), removed\n" in down.stderr
        else:
            terminal.expect(pexpect.EOF)
            terminal.close()
    finally:
        engine.remove_container(plan.name)


# Saves slower than a shell hands its hangup on, and dies of that one.
SLOW = "trap 'sleep 1; echo saved >saved; exit 143' TERM; touch ready; while :; do sleep 0.1; done"


WORKERS = """
import os, pathlib, signal, subprocess, time
worker = subprocess.Popen(["sleep", "600"])
def save(*_):
    time.sleep(0.5)
    pathlib.Path("saved").write_text("by all" if worker.poll() is None else "by a part")
    worker.kill()
    raise SystemExit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
while True: time.sleep(0.1)
"""


def test_down_leaves_the_workers_of_a_training_to_it(image: dict[str, object], engine: Engine, tmp_path: Path) -> None:
    """A DataLoader's workers: a batch more may be needed before it saves. Started by a script that dies of SIGTERM."""
    plan = staying(engine, image, tmp_path)
    (tmp_path / "train.py").write_text(WORKERS)
    container.up(engine, plan)
    try:
        argv_of = container.exec_argv(engine, plan.name, ["sh", "-c", "python train.py; true"], detach=True)
        subprocess.run(argv_of, check=True, capture_output=True)
        until((tmp_path / "ready").exists, "the training runs")
        container.end(engine, plan.name)
        assert (tmp_path / "saved").read_text() == "by all"
    finally:
        engine.remove_container(plan.name)


def test_an_idle_workspace_container_ends_at_once(image: dict[str, object], engine: Engine, tmp_path: Path) -> None:
    plan = staying(engine, image, tmp_path)
    container.up(engine, plan)
    try:
        until(lambda: "sleep infinity" in engine.processes(plan.name), "it waits")
        since = time.monotonic()
        container.end(engine, plan.name)
        assert time.monotonic() - since < 3  # 0.4 s, and a busy machine
        assert engine.exit_code(plan.name) == 143
    finally:
        engine.remove_container(plan.name)
