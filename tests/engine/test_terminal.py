"""A real pseudo-terminal: size, colours, line editing and job control inside; as it was, afterwards."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pexpect
import pytest

from tests.engine.conftest import ROOT, Invoke, argv
from tests.engine.waiting import SECONDS, until

Leftovers = Callable[[str], Sequence[str]]

pytestmark = pytest.mark.usefixtures("image")

LEFT, UP, CTRL_P, CTRL_A, CTRL_E, CTRL_W, CTRL_Z = "\x1b[D", "\x1b[A", "\x10", "\x01", "\x05", "\x17", "\x1a"
PROMPT = "torchdock:/workspace[#$] "
# Prints its terminal's settings before and after, so that what is left of them can be compared.
BETWEEN = 'stty -g; "$@"; echo "code $?"; stty -g'


def spawn(*words: str, **env: str) -> pexpect.spawn[str]:
    """A command on a terminal of 33 lines and 77 columns."""
    given = {name: value for name, value in os.environ.items() if name not in ("TERM", "COLORTERM")}
    return pexpect.spawn(
        words[0], [*words[1:]], cwd=str(ROOT), env={**given, **env}, dimensions=(33, 77), encoding="utf-8",
        timeout=SECONDS,
    )  # fmt: skip


def between(*words: str, **env: str) -> tuple[pexpect.spawn[str], str]:
    """The same between two looks at the terminal's settings; the first of them."""
    terminal = spawn("sh", "-c", BETWEEN, "sh", *words, **env)
    terminal.expect(r"([0-9a-f:]{40,})\r\n")
    assert terminal.match
    return terminal, terminal.match.group(1)


def settings_afterwards(terminal: pexpect.spawn[str]) -> tuple[int, str]:
    terminal.expect(r"code (\d+)\r+\n")
    assert terminal.match
    code = int(terminal.match.group(1))
    terminal.expect(r"([0-9a-f:]{40,})\r+\n")
    settings = terminal.match.group(1)
    terminal.expect(pexpect.EOF)
    terminal.close()
    return code, settings


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "a-long-name-that-nobody-types.txt").write_text("completed\n")
    return tmp_path


def test_a_shell_is_one_that_people_can_work_in(workspace: Path, leftovers: Leftovers) -> None:
    words = argv("shell", "-w", str(workspace))
    shell, before = between(*words, TERM="xterm-256color", COLORTERM="truecolor")
    shell.expect(r"In (torchdock-\S+) .*removed at its end")
    shell.expect(PROMPT)

    shell.sendline("for n in 0 1 2; do test -t $n && echo tty-$n; done; stty size; echo $(tput colors) $COLORTERM.")
    shell.expect(r"tty-0\r\ntty-1\r\ntty-2\r\n33 77\r\n256 truecolor\.")
    shell.setwinsize(44, 111)
    shell.expect(PROMPT)
    until_size = "until [ \"$(stty size)\" = '44 111' ]; do sleep 0.1; done; echo re''sized $LINES $COLUMNS"
    shell.sendline(until_size)
    shell.expect("resized")

    # Line editing: the arrows, the beginning and the end of the line, words, history and completion.
    shell.sendline(f"cho on{LEFT}e{CTRL_A}e{CTRL_E}{LEFT}{LEFT}-")
    shell.expect(r"[\r\n]o-en\r\n")
    shell.sendline(f"echo a''b c{CTRL_W}d")
    shell.expect(r"[\r\n]ab d\r\n")
    shell.sendline(UP)
    shell.expect(r"[\r\n]ab d\r\n")
    shell.expect(PROMPT)
    shell.send(CTRL_P)  # which docker would hold back, as the first of the keys with which one leaves
    shell.expect(r"echo a''b d")
    shell.sendline("")
    shell.expect(r"[\r\n]ab d\r\n")
    shell.sendline("cat a-long\t")
    shell.expect(r"[\r\n]completed\r\n")

    # Job control: in the background, to the foreground, stopped, ended; Ctrl-C ends the command and not the shell.
    shell.expect(PROMPT)
    shell.sendline("sleep 1000 &")
    shell.expect(r"\[1\] \d+\r\n")
    shell.sendline("jobs")
    shell.expect(r"\[1\]\+  Running +sleep 1000 &")
    shell.sendline("fg")
    shell.expect(r"[\r\n]sleep 1000\r\n")
    _foreground(shell, CTRL_Z, r"\[1\]\+  Stopped +sleep 1000")
    shell.expect(PROMPT)
    shell.sendline("fg")
    shell.expect(r"sleep 1000\r\n")
    _foreground(shell, "\x03", PROMPT)
    shell.sendline("jobs; echo none''left; exit 5")
    shell.expect(r"[\r\n]noneleft")
    assert settings_afterwards(shell) == (5, before)
    assert leftovers("shell") == []


def _foreground(shell: pexpect.spawn[str], key: str, expected: str) -> None:
    """Press a key until it does what it should: a job that is only just in the foreground may miss it."""

    def pressed() -> bool:
        shell.send(key)
        return shell.expect([expected, pexpect.TIMEOUT], timeout=2) == 0

    until(pressed, expected)


@pytest.mark.parametrize("term", ["xterm-nobody-knows", ""])
def test_a_terminal_that_is_not_known_inside_falls_back(term: str) -> None:
    env = {"TERM": term} if term else {}
    told = spawn(*argv("run", "--", "sh", "-c", "echo [$TERM $(tput colors) ${COLORTERM-none}]"), **env)
    told.expect_exact("[xterm-256color 256 none]")
    told.expect(pexpect.EOF)


RESIZED = """
import os, signal, sys
def told(*_):
    os.write(1, b"size %d %d\\n" % os.get_terminal_size())
signal.signal(signal.SIGWINCH, told)
signal.alarm(90)
told()
while sys.stdin.readline() != "end\\n":
    pass
"""


def test_a_command_is_told_that_its_terminal_was_resized_and_ends_as_it_began(leftovers: Leftovers) -> None:
    terminal, before = between(*argv("run", "--", "python", "-c", RESIZED), TERM="xterm")
    terminal.expect("size 77 33")
    terminal.setwinsize(50, 120)
    terminal.expect("size 120 50")
    terminal.sendline("end")
    assert settings_afterwards(terminal) == (0, before)
    assert leftovers("run") == []


def test_a_killed_docker_client_leaves_the_terminal_as_it_was_and_no_container(leftovers: Leftovers) -> None:
    """The client sets the terminal to raw; nobody types `reset`."""
    terminal, before = between(*argv("run", "--", "sh", "-c", "echo re''ady; exec sleep 600"), TERM="xterm")
    terminal.expect("ready")
    client = _child(_child(terminal.pid, "invoke"), "docker")
    assert "-icanon" in _settings(terminal)
    os.kill(client, 9)
    assert settings_afterwards(terminal) == (137, before)
    assert leftovers("run") == []


def _settings(terminal: pexpect.spawn[str]) -> str:
    with open(f"/proc/{terminal.pid}/fd/0") as tty:
        return subprocess.run(["stty", "-a"], stdin=tty, capture_output=True, text=True, check=True).stdout


def _child(parent: int, word: str) -> int:
    """The child of a process whose command line has this word."""

    def found() -> int:
        listed = subprocess.run(["pgrep", "--parent", str(parent)], capture_output=True, text=True).stdout.split()
        lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in listed}
        return next((pid for pid, line in lines.items() if word in line), 0)

    return until(found, f"a child of {parent} with {word}")


STREAMS = "for n in 0 1 2; do test -t $n && echo tty-$n; done; echo none"


def test_without_a_terminal_there_is_none(invoke: Invoke) -> None:
    assert invoke("run", "--", "sh", "-c", STREAMS).stdout == "none\n"


def test_a_terminal_whose_output_is_piped_is_none_and_the_pipe_has_no_line_ends_of_one(tmp_path: Path) -> None:
    """`invoke run -- cmd | tee log` at a terminal: \\r\\n in the log would be a terminal's."""
    words = argv("run", "--", "sh", "-c", STREAMS)
    terminal = spawn("sh", "-c", '"$@" >"$0"', str(tmp_path / "log"), *words, TERM="xterm")
    terminal.expect("removed at its end")
    terminal.expect(pexpect.EOF)
    assert (tmp_path / "log").read_bytes() == b"none\n"
