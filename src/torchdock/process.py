"""Child processes: captured, streamed line by line, or in the foreground; and what Ctrl-C does to each."""

from __future__ import annotations

import csv
import ctypes
import io
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TextIO

from torchdock.errors import TorchdockError

# Every signal but those that cannot be caught, that belong to a terminal's job control, or that tell a process of its
# own children, pipes and mistakes. People use SIGUSR1 and the real-time ones to ask a training for a checkpoint.
OWN = {
    *("KILL", "STOP", "CHLD", "CONT", "TSTP", "TTIN", "TTOU", "WINCH", "PIPE", "URG"),
    *("SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP", "SYS", "STKFLT", "XFSZ"),
}
FORWARDED = tuple(
    number
    for number in sorted(signal.valid_signals())
    if getattr(number, "name", f"SIG{int(number)}").removeprefix("SIG") not in OWN
)
# Go's runtime keeps these for itself (SIGPROF, and 34 for musl): the docker client cannot hand them on, 34 ends it.
UNHEARD = {signal.SIGPROF, 34}
HANGUP_SECONDS = 2.0  # for a client that hands a hangup on, and a command that ends by it

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}


@dataclass(frozen=True)
class Completed:
    """What a captured command left: its exit code (127 where there is no such program) and its two streams."""

    code: int
    out: str
    err: str


def capture(
    argv: Sequence[str], *, timeout: float = 60, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> Completed:
    """Run a command to its end and keep its output. A missing program gives 127, a time-out (seconds) gives 124."""
    try:
        given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, env=env, errors="replace", **given)
    except (FileNotFoundError, PermissionError) as error:
        return Completed(127, "", str(error))
    except subprocess.TimeoutExpired:
        return Completed(124, "", f"{argv[0]} gave no answer within {timeout:.0f} s")
    return Completed(done.returncode, done.stdout, done.stderr)


def stream(
    argv: Sequence[str],
    on_line: Callable[[str], None],
    *,
    log: TextIO,
    env: Mapping[str, str] | None = None,
    clean: Callable[[str], str] = str,
    logged: Callable[[str], bool] = bool,
    translate: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> int:
    """Run a command, both streams merged; every line goes to the log and to ``on_line``. Returns the exit code.

    ``translate`` makes of the lines that the command prints, as they come, those that are meant here. ``clean`` takes
    out of each of these what nobody may read, before it goes anywhere. What ``logged`` is false for goes to ``on_line``
    alone.

    The child has a process group of its own, so that Ctrl-C reaches it once, from here, and it may end in good order.

    Raises:
        KeyboardInterrupt: after the child has ended.
    """
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        start_new_session=True,
    )
    assert child.stdout is not None
    try:
        for line in map(clean, translate(child.stdout)):
            if logged(line):
                log.write(line)
                log.flush()
            on_line(line.rstrip("\n"))
        return child.wait()
    except BaseException:
        _end(child)
        raise


def _end(child: subprocess.Popen[str]) -> None:
    for sign, patience in ((signal.SIGINT, 15), (signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        if child.poll() is not None:
            return
        try:
            child.send_signal(sign)
        except PermissionError:  # a child behind sudo
            capture(["sudo", "-n", "kill", f"-{sign.name.removeprefix('SIG')}", str(child.pid)])
        try:
            child.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            continue


@dataclass
class Foreground:
    """How a foreground command ended.

    Attributes:
        code: its exit code, 128 + N after signal N.
        interrupted: a signal that asks for an end came through here.
        seconds: how long it ran.
        left: the terminal was lost, and the command did not end with it (see ``leave_on_hangup``).
    """

    code: int
    interrupted: bool
    seconds: float
    left: bool = False


def foreground(
    argv: Sequence[str],
    *,
    stdout: int | None = None,
    env: Mapping[str, str] | None = None,
    dies_with_us: int = signal.SIGTERM,
    hand_on: bool = True,
    past_child: Callable[[int], object] | None = None,
    leave_on_hangup: bool = False,
    begun: Callable[[], object] | None = None,
) -> Foreground:
    """Run a command on this process's own terminal and streams, signals included.

    On a terminal the child shares our process group, so the terminal itself sends it Ctrl-C; everywhere else it gets a
    group of its own and each signal that reaches us is handed on, once. ``stdout`` is a file descriptor to use instead,
    ``env`` is added to the environment, ``dies_with_us`` is the signal that the child gets when this process is killed.
    Without ``hand_on`` the child is only looking on: the first signal ends it, and what it looks at goes on.
    ``past_child`` takes the signals that a client written in Go cannot hand on. With ``leave_on_hangup`` the child is
    killed soon after the terminal was lost: what is behind it may ignore SIGHUP, and nobody could end it any more.
    ``begun`` is called when the child is there.
    """
    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    received: list[int] = []
    started = time.monotonic()
    child: subprocess.Popen[bytes] | None = None

    def receive(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGHUP and on_terminal and leave_on_hangup and child is not None and _terminal_lost():
            leaving = threading.Timer(HANGUP_SECONDS, child.kill)
            leaving.daemon = True
            leaving.start()
        if child is not None and not (hand_on and on_terminal and number in (signal.SIGINT, signal.SIGQUIT)):
            hand(child, number)

    def hand(child: subprocess.Popen[bytes], number: int) -> None:
        if hand_on and past_child is not None and number in UNHEARD:
            past_child(number)
        else:
            child.send_signal(number if hand_on else signal.SIGKILL)

    with _handlers(receive) as heard, _terminal_kept(on_terminal):
        # Held back while the child is made: neither of us loses a signal that comes then.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
        try:
            early = tuple(received)
            child = subprocess.Popen(
                argv,
                stdout=stdout,
                env={**os.environ, **(env or {})},
                preexec_fn=partial(_begin, dies_with_us, os.getpid(), not on_terminal, heard, mask),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in early:  # they came before there was anybody to hand them to
            hand(child, number)
        if begun is not None:
            begun()
        code = child.wait()
    left = code == -signal.SIGKILL and on_terminal and leave_on_hangup and signal.SIGHUP in received
    seconds = time.monotonic() - started
    return Foreground(code if code >= 0 else 128 - code, not ENDING.isdisjoint(received), seconds, left)


@contextmanager
def bounded(seconds: float | None, told: str, *, grace: float) -> Iterator[None]:
    """End what is done here after so many seconds: SIGTERM to this process, which hands it on to its child.

    Where that ends nothing within ``grace`` seconds more (an engine that hangs), this process ends, with exit code 1.

    Raises:
        TorchdockError: it was ended so; ``told`` says what it means.
    """
    if seconds is None:
        yield
        return
    fired = threading.Event()

    def end() -> None:
        fired.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def give_up() -> None:
        print(f"torchdock: {told}", file=sys.stderr, flush=True)
        os._exit(1)

    timers = [threading.Timer(seconds, end), threading.Timer(seconds + grace, give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    except BaseException:
        if fired.is_set():
            raise TorchdockError(told) from None
        raise
    finally:
        for timer in timers:
            timer.cancel()


def _terminal_lost() -> bool:
    try:
        termios.tcgetattr(sys.stdin)
    except termios.error:
        return True
    return False


@contextmanager
def _terminal_kept(on_terminal: bool) -> Iterator[None]:
    """A client that is killed leaves the terminal as it had set it, without echo and line ends."""
    before = termios.tcgetattr(sys.stdin) if on_terminal else None
    try:
        yield
    finally:
        if before is not None:
            with suppress(termios.error):  # the terminal itself is gone
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


_PR_SET_PDEATHSIG = 1  # prctl(2)


def _begin(number: int, parent: int, own_group: bool, heard: Sequence[int], mask: Iterable[int]) -> None:
    """In the child, before it becomes the command."""
    for one in heard:  # what was held back is for the child itself, not for our handler
        signal.signal(one, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if own_group:
        os.setpgrp()
    end_with(parent, number)


def end_with(parent: int, number: int = signal.SIGKILL) -> None:
    """In a child: this signal comes when its parent ends, however that ends."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # killed in between
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[Sequence[int]]:
    # One that is ignored stays ignored: nohup is meant for the command too.
    heard = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield heard
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def csv_fields(*fields: str) -> str:
    """One line of CSV, as docker reads the values of --mount and --secret."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue()
