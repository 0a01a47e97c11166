"""Child processes: captured, streamed, in the foreground; a signal reaches the child exactly once."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
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


def test_what_is_translated_comes_at_once_and_the_rest_at_the_end(tmp_path: Path) -> None:
    lines: list[str] = []
    log = io.StringIO()

    def twice(raw: "Iterable[str]") -> "Iterator[str]":
        for line in raw:
            yield line
            yield f"again {line}"
        yield "end"

    def read(line: str) -> None:
        lines.append(line)
        (tmp_path / "read").touch()

    script = f"echo a; until [ -e {tmp_path}/read ]; do :; done; echo b"
    code = process.stream(["timeout", "20", "sh", "-c", script], read, log=log, clean=str.upper, translate=twice)
    assert (code, lines) == (0, ["A", "AGAIN A", "B", "AGAIN B", "END"])
    assert log.getvalue() == "A\nAGAIN A\nB\nAGAIN B\nEND"


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


def started(words: "list[str]") -> "subprocess.Popen[str]":
    """A client in a session of its own, as a person's, its streams ours."""
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def parent(child: "list[str]", more: str = "") -> "list[str]":
    """A client that runs a child in the foreground, and says how it ended."""
    script = f"""
import signal, sys
sys.path.insert(0, {str(ROOT / "src")!r})
from torchdock.process import foreground
ended = foreground({child!r}, {more})
print("ended", ended.code, ended.interrupted, flush=True)
"""
    return [sys.executable, "-c", script]


def test_every_signal_but_the_terminals_own_is_handed_on() -> None:
    names = {getattr(number, "name", "real-time") for number in process.FORWARDED}
    assert names >= {"SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "real-time"}
    assert names.isdisjoint({"SIGKILL", "SIGSTOP", "SIGTSTP", "SIGCONT", "SIGCHLD", "SIGWINCH", "SIGPIPE", "SIGSEGV"})


def test_a_signal_that_asks_for_no_end_is_no_interruption() -> None:
    with started(parent(["sh", "-c", "trap 'echo asked' USR1; echo ready; until read line; do :; done"])) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        client.send_signal(signal.SIGUSR1)
        assert client.stdout.readline() == "asked\n"
        out, _ = client.communicate("end\n", timeout=20)
        assert out.endswith(" False\n")


def test_looking_on_ends_with_the_first_signal_and_hands_on_none() -> None:
    script = "trap 'echo handed on' INT TERM; echo ready; while :; do sleep 0.1; done"
    with started(parent(["sh", "-c", script], "hand_on=False")) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        client.send_signal(signal.SIGTERM)
        out, _ = client.communicate(timeout=20)
        assert out == "ended 137 True\n"


@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, "told\n"), (signal.SIGKILL, "")])
def test_the_child_of_a_killed_client_gets_the_signal_that_was_chosen(number: signal.Signals, told: str) -> None:
    script = "trap 'echo told; exit' TERM; echo ready; while :; do sleep 0.1; done"
    with started(parent(["sh", "-c", script], f"dies_with_us={int(number)}")) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        client.kill()
        assert client.stdout.read() == told  # to the end: nobody has the stream open any more


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """nohup is meant for the command too."""
    words = parent(["sh", "-c", "echo ready; read line; echo $line"])
    words[2] = words[2].replace("ended =", "signal.signal(signal.SIGHUP, signal.SIG_IGN); ended =")
    with started(words) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        os.killpg(client.pid, signal.SIGHUP)
        out, _ = client.communicate("on\n", timeout=20)
        assert out == "on\nended 0 False\n"


def test_the_environment_of_a_foreground_command_is_ours_and_more(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        process.foreground(["sh", "-c", 'echo "$HOME $WORD"'], stdout=out.fileno(), env={"WORD": "given"})
    assert (tmp_path / "out").read_text() == f"{os.environ['HOME']} given\n"


def test_a_killed_child_leaves_the_terminal_as_it_was() -> None:
    raw = "stty raw -echo; kill -KILL $$"
    words = ["sh", "-c", 'stty -g; "$@"; stty -g', "sh", *parent(["sh", "-c", raw])]
    terminal = pexpect.spawn(words[0], words[1:], encoding="utf-8", timeout=20)
    before, ended, after = terminal.read().split("\r\n")[:3]
    assert (ended, after) == ("ended 137 False", before)


EARLY = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "src")!r})
from torchdock import process
where, name = sys.argv[1].split(".")
owner = process if where == "process" else process.subprocess
usual = getattr(owner, name)
def then(*given, **more):
    made = usual(*given, **more)
    os.kill(os.getpid(), signal.SIGINT)
    return made
setattr(owner, name, then)
ended = process.foreground(["sleep", "20"], hand_on=sys.argv[2] == "on")
print("ended", ended.code, ended.interrupted, ended.seconds < 10, flush=True)
"""


@pytest.mark.parametrize("moment", ["process._terminal_kept", "subprocess.Popen"], ids=["before", "while it is made"])
@pytest.mark.parametrize(("hand", "code"), [("on", 130), ("off", 137)])
def test_no_signal_is_lost_while_the_child_is_made(moment: str, hand: str, code: int) -> None:
    words = [sys.executable, "-c", EARLY, moment, hand]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"ended {code} True True\n", done.stderr


@pytest.mark.parametrize(("hand", "code"), [("on", 130), ("off", 137)])
def test_on_a_terminal_ctrl_c_before_the_child_is_not_lost(hand: str, code: int) -> None:
    words = ["-c", EARLY, "process._terminal_kept", hand]
    terminal = pexpect.spawn(sys.executable, words, encoding="utf-8", timeout=60)
    terminal.expect_exact(f"ended {code} True True")


@pytest.mark.parametrize("number", sorted(process.UNHEARD))
def test_what_a_client_in_go_cannot_hand_on_goes_past_it(number: int) -> None:
    words = parent(["sh", "-c", "trap 'echo through it' USR1; echo ready; read line"], "past_child=past")
    words[2] = words[2].replace("ended =", "past = lambda number: print('past', number, flush=True); ended =")
    with started(words) as client:
        assert client.stdin is not None and client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        client.send_signal(number)
        assert client.stdout.readline() == f"past {number}\n"
        client.stdin.write("end\n")
        client.stdin.close()
        assert client.stdout.read() == "ended 0 False\n"


# --- what ends in any case ---

SOURCES = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def test_what_takes_too_long_is_ended_and_said() -> None:
    program = """
import signal, sys, time
from torchdock import commandline, process
from torchdock.errors import TorchdockError
signal.signal(signal.SIGTERM, commandline._end)
try:
    with process.bounded(float(sys.argv[1]), "Not finished within 1s.", grace=60):
        time.sleep(float(sys.argv[2]))
        print("finished")
except TorchdockError as error:
    print(f"{error.exit_code} {error}")
"""
    for limit, work, said in (("0.3", "30", "1 Not finished within 1s."), ("30", "0", "finished")):
        argv = [sys.executable, "-c", program, limit, work]
        done = subprocess.run(argv, env=SOURCES, capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr


def test_what_does_not_hear_is_left_behind() -> None:
    program = """
import signal, time
from torchdock import process
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with process.bounded(0.2, "Not finished.", grace=0.3):
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", program], env=SOURCES, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (1, "torchdock: Not finished.\n")


def test_without_a_limit_nothing_is_bounded() -> None:
    before = threading.active_count()
    with process.bounded(None, "", grace=0):
        assert threading.active_count() == before
    with process.bounded(60, "", grace=0):
        assert threading.active_count() == before + 2
