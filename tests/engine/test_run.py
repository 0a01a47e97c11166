"""`invoke run` and the container it makes: the command as typed, streams apart, the caller's identity, nothing left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.engine.conftest import ROOT, Invoke, argv
from torchdock import container, launch, limits, sources
from torchdock.engine import Engine

Leftovers = Callable[[str], Sequence[str]]
# What torchdock itself says before the command: which container it is in.
WHERE = re.compile(r"In torchdock-\S+-run-[0-9a-f]{8} \(torchdock/\S+\), removed at its end\n")


def without_where(errors: str) -> str:
    """What the command wrote to stderr."""
    found = WHERE.match(errors)
    assert found, errors
    return errors[found.end() :]


pytestmark = pytest.mark.usefixtures("image")


def test_the_command_arrives_as_typed(invoke: Invoke) -> None:
    done = invoke("run", "--", "python", "-c", 'print("a  b")\nprint("$HOME \'q\' *")', "--gpus", "-w")
    assert (done.returncode, done.stdout) == (0, "a  b\n$HOME 'q' *\n")
    assert without_where(done.stderr) == ""


def test_stdin_reaches_the_command(invoke: Invoke) -> None:
    assert invoke("run", "--", "cat", stdin="hi\n").stdout == "hi\n"


def test_streams_stay_apart_and_the_code_is_the_commands(invoke: Invoke) -> None:
    done = invoke("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, without_where(done.stderr)) == (7, "out\n", "err\n")


def test_125_is_the_commands_own_code_too(invoke: Invoke) -> None:
    """`git bisect run` skips a commit by it; docker uses it for a launch that it refused."""
    done = invoke("run", "--", "sh", "-c", "exit 125")
    assert (done.returncode, without_where(done.stderr)) == (125, "")


def test_an_unknown_command_is_said_in_one_line(invoke: Invoke) -> None:
    done = invoke("run", "--", "no-such-program")
    assert done.returncode == 127
    assert without_where(done.stderr) == "torchdock: no-such-program is no command in this container\n"


def test_json_is_one_document_and_the_output_goes_to_stderr(invoke: Invoke, image: dict[str, Any]) -> None:
    done = invoke("run", "--json", "--", "sh", "-c", "echo hello; exit 3")
    document = json.loads(done.stdout)
    assert done.returncode == 3
    assert document["exit_code"] == 3
    assert document["image"] == image["image"]
    assert document["gpus"] == []
    assert document["container"].startswith("torchdock-")
    assert without_where(done.stderr) == "hello\n"


def test_the_dry_run_can_be_pasted(invoke: Invoke) -> None:
    done = invoke("run", "--dry-run", "--", "python", "-c", 'print("a  b")')
    pasted = subprocess.run(["sh", "-c", done.stdout], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (pasted.returncode, pasted.stdout) == (0, "a  b\n"), pasted.stderr
    # What nobody could paste is said beside it: a lifeline is held by torchdock's own process.
    assert re.search(r"^A launch by torchdock also has: --mount .*lifeline.* --env TORCHDOCK_LIFELINE=ID:", done.stderr)


PROBE = """
import getpass, json, os, pathlib, resource
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
pathlib.Path("/workspace/made").write_text("x")
pathlib.Path(os.environ["HOME"], "made").write_text("x")
pathlib.Path(os.environ["TORCH_HOME"]).mkdir(parents=True, exist_ok=True)
shm = os.statvfs("/dev/shm")
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "groups": sorted(os.getgroups()), "name": getpass.getuser(),
    "home": os.environ["HOME"], "caps": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privs": status["NoNewPrivs"].strip(), "pid1": open("/proc/1/comm").read().strip(),
    "shm": shm.f_blocks * shm.f_frsize, "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "threads": os.environ["OMP_NUM_THREADS"], "cwd": os.getcwd(),
}))
"""


@pytest.mark.parametrize(
    ("uid", "gid", "name"), [(1000, 1000, "ann"), (1234, 100, "bob"), (200000, 200000, "user200000"), (0, 0, "root")]
)
def test_the_container_is_the_callers_and_has_no_power(
    engine: Engine, image: dict[str, Any], tmp_path: Path, uid: int, gid: int, name: str
) -> None:
    workspace = tmp_path / "a folder, with commas"
    workspace.mkdir()
    os.chown(workspace, uid, gid)
    who = container.Identity(uid, gid, (5678,), name)
    plan = container.plan(
        engine, image["image"], who, sources.gather(), role="run", clone="t", workspace=workspace,
        command=["python", "-c", PROBE],
    )  # fmt: skip
    try:
        done = subprocess.run(plan.argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
    finally:
        engine.remove_container(plan.name)
        if uid:
            engine.client.volumes.get(f"torchdock-cache-{uid}").remove()
    assert (seen["uid"], seen["gid"], seen["name"]) == (uid, gid, name)
    assert 5678 in seen["groups"]
    assert seen["home"] == ("/root" if uid == 0 else f"/home/{name}")
    assert (seen["caps"], seen["no_new_privs"]) == (0, "1")
    assert seen["pid1"] == "tini"
    planned = limits.plan(engine, launch.NOTHING)
    assert (seen["shm"], seen["files"]) == (planned.shm, planned.open_files)
    assert seen["threads"] == str(len(os.sched_getaffinity(0)))
    assert seen["cwd"] == "/workspace"
    owner = (workspace / "made").stat()
    assert (owner.st_uid, owner.st_gid) == (uid, gid)


def test_packages_can_be_installed_by_the_caller_without_torch_again(engine: Engine, image: dict[str, Any]) -> None:
    who = container.Identity(1000, 1000, (), "ann")
    script = "pip install -q --no-input iniconfig==2.0.0 && uv pip install -q iniconfig==2.1.0 && pip list 2>/dev/null"
    plan = container.plan(
        engine, image["image"], who, sources.gather(), role="run", clone="t", workspace=None,
        command=["sh", "-c", script],
    )  # fmt: skip
    done = subprocess.run(plan.argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    engine.client.volumes.get("torchdock-cache-1000").remove()
    assert done.returncode == 0, done.stderr
    assert re.search(r"^iniconfig +2\.1\.0$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("said", [False, True], ids=["from the start", "from when it says its container"])
@pytest.mark.parametrize("delay", [0.0, 0.2, 0.4, 0.8])
def test_ctrl_c_leaves_no_container(leftovers: Leftovers, delay: float, said: bool) -> None:
    """Wherever it strikes: before docker is asked, while the container is made, while the command runs."""
    # Without coverage's start-up file: while Python runs such a file it reports an interrupt and goes on.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    words = argv("run", "--", "sleep", "600")
    child = subprocess.Popen(words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    if said:
        assert child.stderr.readline().startswith("In torchdock-")
    time.sleep(delay)  # the point of the test: a moment chosen blindly
    errors = ""
    while child.returncode is None:
        child.send_signal(signal.SIGINT)
        # Where Python ran a start-up file and went on, a person does it again.
        with suppress(subprocess.TimeoutExpired):
            errors = child.communicate(timeout=30)[1]
        assert child.returncode is not None or not said
    assert leftovers("run") == []
    if said:  # before that it can strike while Python itself starts
        assert child.returncode == 130, errors
        assert "Traceback" not in errors


def test_sigterm_reaches_the_command(leftovers: Leftovers) -> None:
    command = "trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.1; done"
    child = subprocess.Popen(
        argv("run", "--", "sh", "-c", command), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    output, _ = child.communicate(timeout=60)
    assert (child.returncode, output) == (143, "saved\n")
    assert leftovers("run") == []


def test_a_hangup_that_is_ignored_stays_ignored(leftovers: Leftovers) -> None:
    """nohup: the training goes on when the terminal goes."""
    command = "trap '' HUP; echo ready; read line; echo $line"
    words = ["nohup", *argv("run", "--", "sh", "-c", command)]
    child = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGHUP)
    output, _ = child.communicate("trained\n", timeout=60)
    assert (child.returncode, output) == (0, "trained\n")
    assert leftovers("run") == []


def test_a_killed_client_leaves_no_container(leftovers: Leftovers) -> None:
    child = subprocess.Popen(
        argv("run", "--", "sh", "-c", "echo ready; exec sleep 600"), cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    subprocess.run(["pkill", "-KILL", "-P", str(child.pid), "docker"], check=True)
    child.communicate(timeout=60)
    assert child.returncode == 137
    assert leftovers("run") == []


def test_a_terminal_is_a_terminal_and_ctrl_c_ends_the_command(leftovers: Leftovers) -> None:
    program = "import os; print('size', *os.get_terminal_size()); input('name? ')"
    words = argv("run", "--", "python", "-c", program)
    terminal = pexpect.spawn(words[0], words[1:], cwd=str(ROOT), dimensions=(33, 77), encoding="utf-8", timeout=60)
    terminal.expect(r"size 77 33")
    terminal.expect("name\\? ")
    terminal.sendintr()
    terminal.expect("KeyboardInterrupt")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus in (1, 130)
    assert leftovers("run") == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "-w", "/no/such/folder", "--", "true"], "does not exist"),
        (["run", "-w", "/etc/passwd", "--", "true"], "is no folder"),
        (["run", "--variant", "cu131", "--", "true"], "Did you mean 'cu130'?"),
        (["run", "-w", "", "--", "true"], "-w was given an empty name"),
        (["run", "--variant", "", "--", "true"], "There is no variant ''"),
        (["up", "--gpus", "99"], "--gpus 99"),
        (["run", "--gpus", "99", "--", "true"], "--gpus 99"),
        (["run", "--gpus", "GPU-nope", "--", "true"], "GPU-nope"),
        (["run"], "needs a command"),
        (["run", "--"], "needs a command"),
        (["runn", "--", "true"], "Did you mean 'run'?"),
        (["run", "--gpsu", "1", "--", "true"], "Did you mean '--gpus'?"),
    ],
)
def test_wrong_input_is_one_paragraph_and_exit_code_2(
    invoke: Invoke, leftovers: Leftovers, words: list[str], told: str
) -> None:
    done = invoke(*words)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert leftovers("run") == []
