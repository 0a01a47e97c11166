"""Time limits: a hang becomes a failure that names the test."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

SECONDS = 120.0
GRACE = 30.0

# The stderr of the process itself: pytest points descriptor 2 at a file that dies with the process.
_STDERR = os.dup(2)


@contextmanager
def bounded(name: str, seconds: float = SECONDS, grace: float = GRACE) -> Iterator[None]:
    """Fail what runs inside after so many seconds.

    Python code is interrupted by an alarm and the next test runs. Code that never returns to the interpreter (a
    deadlock in a library) ends the process after the grace, with every thread's traceback on stderr.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        pytest.fail(
            f"{name} did not end within its time limit of {seconds:g} s. Remedy: look at the traceback in report.xml "
            "for where it waited; a machine this slow is overloaded or short of memory."
        )

    before = signal.signal(signal.SIGALRM, ring)
    faulthandler.dump_traceback_later(seconds + grace, exit=True, file=_STDERR)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def of(item: pytest.Item) -> tuple[float, float]:
    """Return (seconds, grace) of a test: those of its marker ``limit(seconds, grace=30)``, or the defaults."""
    marker = item.get_closest_marker("limit")
    if marker is None:
        return SECONDS, GRACE
    return float(marker.args[0]), float(marker.kwargs.get("grace", GRACE))
