"""Child processes: captured, streamed, in the foreground; a signal reaches the child exactly once."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from given import ROOT

from torchdock import process

# Counts the signals it gets; ends when it is told to. Says first whether it shares the process group of its parent.
CHILD = """
import os, signal, sys
count = 0
def on(number, frame):
    global count
    count += 1
    print("got", number, flush=True)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, on)
signal.alarm(20)  # a signal that never comes is a failure, not a hang
print("ready", os.getpgrp() == os.getpgid(os.getppid()), flush=True)
sys.stdin.readline()
sys.exit(40 + count)
"""
# Says who it is, waits to be interrupted, cleans up, ends.
TIDY = """
import os, pathlib, signal, sys
def tidy(number, frame):
    pathlib.Path(sys.argv[1]).write_text("cleaned")
    sys.exit(0)
signal.signal(signal.SIGINT, tidy)
signal.alarm(20)
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""
PARENT = f"""
import sys
sys.path.insert(0, {str(ROOT / "src")!r})
from torchdock.process import foreground
ended = foreground([sys.executable, "-c", {CHILD!r}])
print("ended", ended.code, ended.interrupted, flush=True)
"""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo out; echo err >&2; exit 3", process.Completed(3, "out\n", "err\n")),
        ("cat", process.Completed(0, "", "")),
        ("printf '\\377'", process.Completed(0, "\ufffd", "")),
    ],
    ids=["code and both streams", "no stdin", "no text"],
)
def test_a_captured_command_leaves_its_code_and_its_streams(script: str, expected: process.Completed) -> None:
    assert process.capture(["sh", "-c", script]) == expected


def test_a_captured_command_gets_its_stdin_and_its_environment() -> None:
    done = process.capture(["sh", "-c", 'cat; echo "$WORD"'], stdin="in\n", env={**os.environ, "WORD": "given"})
    assert done.out == "in\ngiven\n"


def test_a_program_that_is_not_there_gives_127(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("no program")
    for name in ("missing", "plain"):
        done = process.capture([str(tmp_path / name)])
        assert (done.code, done.out) == (127, "") and name in done.err


def test_a_command_that_does_not_answer_gives_124() -> None:
    done = process.capture(["sleep", "60"], timeout=0.1)
    assert done == process.Completed(124, "", "sleep gave no answer within 0 s")


def test_a_streamed_command_is_logged_line_by_line() -> None:
    lines: list[str] = []
    log = io.StringIO()
    code = process.stream(["sh", "-c", "echo a; echo b >&2; printf c; exit 5"], lines.append, log=log)
    assert (code, lines, log.getvalue()) == (5, ["a", "b", "c"], "a\nb\nc")


def test_a_streamed_command_ends_in_good_order_when_interrupted(tmp_path: Path) -> None:
    """Ctrl-C: the child gets SIGINT, may clean up, and is gone when the interrupt is passed on."""
    child: list[int] = []

    def interrupt(line: str) -> None:
        child.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.stream([sys.executable, "-c", TIDY, str(tmp_path / "trace")], interrupt, log=io.StringIO())
    assert (tmp_path / "trace").read_text() == "cleaned"
    with pytest.raises(ProcessLookupError):
        os.kill(child[0], 0)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 75", 75), ("kill -KILL $$", 137)])
def test_a_foreground_command_gives_its_own_code(script: str, code: int) -> None:
    before = [signal.getsignal(number) for number in process.FORWARDED]
    ended = process.foreground(["sh", "-c", script])
    assert (ended.code, ended.interrupted) == (code, False)
    assert [signal.getsignal(number) for number in process.FORWARDED] == before


def test_a_foreground_command_can_write_elsewhere(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        process.foreground(["echo", "hi"], stdout=out.fileno())
    assert (tmp_path / "out").read_text() == "hi\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_reaches_the_child_once(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        assert parent.stdout.readline() == "ready False\n"  # out of reach of what is sent to our group
        os.killpg(parent.pid, number)
        assert parent.stdout.readline() == f"got {number.value}\n"
        parent.stdin.write("end\n")
        parent.stdin.close()
        assert parent.stdout.read() == "ended 41 True\n"


def test_ctrl_c_on_a_terminal_reaches_the_child_once() -> None:
    terminal = pexpect.spawn(sys.executable, ["-c", PARENT], encoding="utf-8", timeout=20, echo=False)
    terminal.expect_exact("ready True")  # the terminal itself sends Ctrl-C to both
    terminal.sendintr()
    terminal.expect_exact("got 2")
    terminal.sendline("end")
    terminal.expect_exact("ended 41 True")
    terminal.expect(pexpect.EOF)
