"""Waiting for a condition, with a deadline that a busy machine keeps too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import pexpect

SECONDS = 90.0
Found = TypeVar("Found")


def until(condition: Callable[[], Found], what: str, seconds: float = SECONDS) -> Found:
    """The first true answer.

    Raises:
        AssertionError: there was none within ``seconds``; says ``what`` was waited for.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
    return found


def hang_up(terminal: pexpect.spawn[str]) -> None:
    """Close the far end of a terminal, as a lost connection does, and no more: pexpect's own ``close()`` sends signals.

    The descriptor's number stays taken: pexpect closes it once more, and it must not be somebody else's then.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, terminal.child_fd)
    os.close(nothing)
