"""A clock that jumps: the wall clock against one that nobody sets. Both are passed in, so a test needs no bad one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

# Corrections of a clock that is kept in step are far smaller; what make, TLS or a sampler of metrics sees, larger.
TOLERATED = 2.0


def steady() -> float:
    """Seconds that nobody sets, and that go on while the machine sleeps, where the kernel has such a clock."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


@dataclass
class Watch:
    """Looks at both clocks now and then. jumps: (seconds, what ran meanwhile), also of a clock that drifts off."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = steady
    jumps: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._apart = self.wall() - self.steady()

    def look(self, meanwhile: str) -> None:
        """Note a jump since the last one, or since the beginning."""
        apart = self.wall() - self.steady()
        if abs(moved := apart - self._apart) > TOLERATED:
            self.jumps.append((moved, meanwhile))
            self._apart = apart

    def told(self) -> str:
        """Return the jumps in words, none as an empty text."""
        words = [f"{'forward' if by > 0 else 'back'} by {abs(by):.0f} s while {what} ran" for by, what in self.jumps]
        return f"the clock jumped {', then '.join(words[:3])}" if words else ""
