"""A call that may never return, in a child process that is left behind then: a driver's, a file server's.

A thread would not do: what hangs in the kernel keeps its whole process from ending. A fork takes 2 ms, where a new
Python takes forty.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from torchdock.process import end_with

T = TypeVar("T")


class Silent(Exception):
    """The call has not returned: says why, to be read after what it was."""


def call(work: Callable[[], T], seconds: float) -> T:
    """What ``work`` returns, or raises, if it does so within so many seconds; both have to be picklable.

    The child's standard streams lead nowhere, so that nobody waits for their end.

    Raises:
        Silent: it has not. The child is killed, and not waited for: inside the kernel it may not hear of it.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            _work(work, reading, writing, parent)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        answer = _read(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _reap(child)
    if answer is None:
        raise Silent(f"gave nothing within {seconds:g} s")
    if not answer:
        raise Silent("killed the process that did")
    good, value = pickle.loads(answer)
    if not good:
        raise value
    result: T = value
    return result


def _work(work: Callable[[], T], reading: int, writing: int, parent: int) -> None:
    """The child: whatever happens in it, it says so and ends without our own clean-up."""
    os.close(reading)
    os.setsid()  # Ctrl-C is the parent's
    end_with(parent)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    try:
        said = pickle.dumps((True, work()))
    except Exception as error:
        said = pickle.dumps((False, error))
    with open(writing, "wb") as pipe:
        pipe.write(said)


def _read(pipe: int, deadline: float) -> bytes | None:
    """All that is written until its end; None where that is not reached in time."""
    parts: list[bytes] = []
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(pipe, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def _reap(child: int) -> None:
    """It has been killed: gone within moments, or hanging in the kernel, where nobody can wait for it."""
    deadline = time.monotonic() + 0.5
    while os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.002)
