"""Child processes: captured, streamed line by line, or in the foreground; and what Ctrl-C does to each."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TextIO

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


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
) -> int:
    """Run a command, both streams merged; every line goes to the log and to ``on_line``. Returns the exit code.

    ``clean`` takes out of each line what nobody may read, before it goes anywhere.

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
        for raw in child.stdout:
            line = clean(raw)
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
        interrupted: a signal came through here.
        seconds: how long it ran.
    """

    code: int
    interrupted: bool
    seconds: float


def foreground(argv: Sequence[str], *, stdout: int | None = None) -> Foreground:
    """Run a command on this process's own terminal and streams, signals included.

    On a terminal the child shares our process group, so the terminal itself sends it Ctrl-C; everywhere else it gets a
    group of its own and each signal that reaches us is handed on, once. ``stdout`` is a file descriptor to use instead.
    """
    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    received: list[int] = []
    started = time.monotonic()
    child: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if child is not None and not (on_terminal and number in (signal.SIGINT, signal.SIGQUIT)):
            child.send_signal(number)

    with _handlers(hand_on):
        child = subprocess.Popen(argv, stdout=stdout, preexec_fn=None if on_terminal else os.setpgrp)
        if received and not on_terminal:  # it came before there was anybody to hand it to
            child.send_signal(received[-1])
        code = child.wait()
    return Foreground(code if code >= 0 else 128 - code, bool(received), time.monotonic() - started)


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # One that is ignored stays ignored: nohup is meant for the command too.
    heard = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def csv_fields(*fields: str) -> str:
    """One line of CSV, as docker reads the values of --mount and --secret."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue()
