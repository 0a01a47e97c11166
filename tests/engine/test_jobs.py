"""Jobs: what lives on without its client; its output, while it runs and afterwards; how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.engine.conftest import ROOT, Invoke, argv
from tests.engine.waiting import SECONDS, hang_up, until
from torchdock import container
from torchdock.engine import Engine

pytestmark = pytest.mark.usefixtures("image")

NAME = f"t{os.getpid()}"
# A training: says what it reads, counts, saves when it is asked to end.
TRAINING = """
trap 'echo saved; exit 143' TERM
echo first; echo on-stderr >&2
while ! read -t 0.1 word || [ "$word" != end ]; do [ -z "$word" ] || echo "read $word"; word=; done
echo last
exit 5
"""


@pytest.fixture(autouse=True)
def _nothing_is_left(engine: Engine) -> Iterator[None]:
    yield
    for found in engine.containers(["dev.torchdock.role=job"]):
        if f"-{NAME}" in found["Names"][0]:
            engine.remove_container(found["Id"])


def ps(invoke: Invoke, name: str, *more: str) -> dict[str, Any] | None:
    listed = json.loads(invoke("ps", "--json", *more).stdout)["containers"]
    return next((one for one in listed if one["name"] == name), None)


def test_a_job_from_its_start_to_its_removal(invoke: Invoke, tmp_path: Path, engine: Engine) -> None:
    name = f"{NAME}-a"
    # From a terminal that is lost: it lives on.
    words = argv("run", "--detach", "--name", name, "-w", str(tmp_path), "--", "bash", "-c", TRAINING)
    terminal = pexpect.spawn(
        "sh", ["-c", '"$@"; exec cat', "sh", *words], cwd=str(ROOT), encoding="utf-8", timeout=SECONDS
    )
    terminal.expect(rf"In (torchdock-\S+-{name}) .*`invoke logs -f {name}`, `invoke stop {name}`")
    terminal.expect(rf"\n{name}\r\n")
    hang_up(terminal)
    until(lambda: os.waitpid(terminal.pid, os.WNOHANG)[0], "the terminal's shell has ended")
    running = ps(invoke, name, "--running")
    assert running is not None
    assert (running["role"], running["state"], running["exit_code"]) == ("job", "running", None)
    assert (running["workspace"], running["command"].split()[0]) == (str(tmp_path), "bash")
    full = running["container"]
    assert engine.client.api.inspect_container(full)["Config"]["StopTimeout"] == 120
    assert _log(engine, full) == {"Type": "json-file", "Config": {"max-size": "500m", "max-file": "2"}}

    # Its name is taken.
    again = invoke("run", "--detach", "--name", name, "--", "true")
    assert (again.returncode, again.stdout) == (2, "")
    assert f"name is in use: {full} (Up" in again.stderr and "`invoke stop --remove NAME`" in again.stderr

    # logs -f goes on until it is left; it ends by Ctrl-C with 0, and the job goes on.
    words = argv("logs", "-f", name)
    follower = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert follower.stdout is not None
    assert follower.stdout.readline() == "first\n"
    follower.send_signal(signal.SIGINT)
    assert follower.wait(timeout=SECONDS) == 0

    # attach: what is typed reaches it, leaving does not end it.
    joined = pexpect.spawn(
        *_spawned(argv("attach", name)), cwd=str(ROOT), encoding="utf-8", timeout=SECONDS, echo=False
    )
    joined.expect(f"Joining {full}; Ctrl-C leaves it running, `invoke stop {name}` ends it")
    until(lambda: _answered(joined), "the job answers what is typed")
    joined.sendintr()
    joined.expect(pexpect.EOF)
    joined.close()
    assert joined.exitstatus == 0
    assert engine.client.api.inspect_container(full)["State"]["Running"]

    # stop: SIGTERM; its output is kept, streams apart.
    stopped = invoke("stop", name, "--json")
    assert json.loads(stopped.stdout) == {"container": full, "stopped": True, "removed": False, "exit_code": 143}
    ended = ps(invoke, name)
    assert ended is not None
    assert (ended["state"], ended["exit_code"]) == ("exited", 143)
    kept = invoke("logs", name)
    assert kept.stdout.startswith("first\nread ") and kept.stdout.endswith("saved\n")
    assert kept.stderr == "on-stderr\n"
    assert invoke("logs", "-n", "1", name).stdout == "saved\n"
    gone = invoke("attach", name)
    assert gone.returncode == 2 and f"{name} has ended (Exited (143)" in gone.stderr

    # stop --remove: the name is free, and what it printed is gone.
    assert json.loads(invoke("stop", "--remove", "--json", name).stdout)["stopped"] is False
    missing = invoke("logs", name)
    assert missing.returncode == 2 and f"You have no container '{name}'" in missing.stderr


def _log(engine: Engine, container: str) -> dict[str, Any]:
    found: dict[str, Any] = engine.client.api.inspect_container(container)["HostConfig"]["LogConfig"]
    return found


def _spawned(words: list[str]) -> tuple[str, list[str]]:
    return words[0], words[1:]


def _answered(joined: pexpect.spawn[str], typed: str = "hello", answer: str = "read hello") -> bool:
    joined.sendline(typed)  # until it is joined, nobody reads it
    return joined.expect([answer, pexpect.TIMEOUT], timeout=2) == 0


def test_logs_follow_a_job_to_its_end(invoke: Invoke, engine: Engine) -> None:
    name = f"{NAME}-b"
    started = invoke("run", "--detach", "--name", name, "--json", "--", "sh", "-c", "sleep 2; echo last; exit 5")
    assert json.loads(started.stdout)["name"] == name
    followed = invoke("logs", "-f", name)
    assert (followed.returncode, followed.stdout) == (0, "last\n")
    full = json.loads(started.stdout)["container"]
    assert until(lambda: engine.exit_code(full), "the job has ended") == 5


@pytest.mark.parametrize("detached", [True, False], ids=["job", "attached"])
def test_a_time_limit_ends_a_training_in_good_order(invoke: Invoke, detached: bool, engine: Engine) -> None:
    script = "trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.1; done"
    if not detached:
        done = invoke("run", "--time", "2s", "--", "sh", "-c", script)
        assert (done.returncode, done.stdout) == (143, "ready\nsaved\n")
        assert "timeout: sending signal TERM" in done.stderr
        return
    name = f"{NAME}-c"
    words = ("run", "--detach", "--name", name, "--time", "2s", "--", "sh", "-c", script)
    full = f"torchdock-{container.identity(engine).name}-{name}"
    assert invoke(*words).returncode == 0
    assert until(lambda: engine.exit_code(full), "the job has ended") == 143
    listed = ps(invoke, name)
    assert listed is not None and (listed["seconds"], listed["exit_code"]) == (2, 143)
    assert listed["command"].startswith("sh -c")
    assert invoke("logs", name).stdout == "ready\nsaved\n"


def test_a_training_that_ignores_its_time_limit_is_killed_after_the_grace(invoke: Invoke) -> None:
    """The grace is 120 s; that it is given is in the command, how it ends is tried with less of it."""
    planned = invoke("run", "--dry-run", "--time", "8h", "--", "sleep", "1").stdout
    assert "--kill-after=120 28800 sleep 1" in planned
    shorter = planned.replace("--kill-after=120 28800 sleep 1", """--kill-after=1 1 sh -c 'trap "" TERM; sleep 60'""")
    assert shorter != planned
    assert subprocess.run(["sh", "-c", shorter], capture_output=True, stdin=subprocess.DEVNULL).returncode == 137


def test_a_shell_can_be_joined_from_a_second_terminal_and_left(tmp_path: Path, engine: Engine) -> None:
    first = _terminal("shell", "-w", str(tmp_path))
    first.expect(r"In torchdock-\S+-(shell-[0-9a-f]{8}) ")
    assert first.match
    name = first.match.group(1)
    first.expect("torchdock:/workspace")
    (full,) = [one["Id"] for one in engine.containers(["dev.torchdock.role=shell"]) if name in one["Names"][0]]
    assert _log(engine, full) == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}
    second = _terminal("attach", name)
    second.expect(f"Joining torchdock-.*{name}; Ctrl-P Ctrl-Q leaves it running")
    until(lambda: _answered(second, "echo he''llo", "hello"), "the shell answers the second terminal")
    second.send("\x10\x11")
    second.expect(pexpect.EOF)
    second.close()
    assert second.exitstatus == 0
    first.sendline("echo still''here; exit 3")
    first.expect("stillhere")
    first.expect(pexpect.EOF)
    first.close()
    assert first.exitstatus == 3


def _terminal(*words: str) -> pexpect.spawn[str]:
    program, *rest = argv(*words)
    return pexpect.spawn(program, rest, cwd=str(ROOT), encoding="utf-8", timeout=SECONDS)


def test_run_and_shell_say_which_container_they_use(invoke: Invoke, image: dict[str, Any], tmp_path: Path) -> None:
    def said(role: str) -> str:
        return rf"In torchdock-\S+-{role}-[0-9a-f]{{8}} \({re.escape(str(image['image']))}\), removed at its end\n"

    assert re.fullmatch(said("run"), invoke("run", "--", "true").stderr)
    shell = invoke("shell", "-w", str(tmp_path), stdin="echo hi\n")
    assert shell.stdout == "hi\n"
    assert re.fullmatch(said("shell"), shell.stderr)
