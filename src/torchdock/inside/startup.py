"""At the start of every Python of the environment (``torchdock.pth``): the CPU quota, where libraries count CPUs.

``os.cpu_count()`` follows PYTHON_CPU_COUNT, which the entrypoint sets from the quota. torch and others ask
``os.sched_getaffinity(0)``, which knows nothing of a quota: a DataLoader would call 64 workers for 2 CPUs reasonable.
Pinning for real would keep all containers of a shared server on the same cores.
"""

import os

TYPE_CHECKING = False  # typing itself would cost every start of Python
if TYPE_CHECKING:
    from collections.abc import Iterable


def first(cpus: "set[int]", count: int) -> "set[int]":
    """The ``count`` lowest of these CPUs."""
    return set(sorted(cpus)[:count])


def follow(quota: str) -> None:
    """Let this process's own affinity be told as so many CPUs; what is no number, or not fewer, changes nothing."""
    count = int(quota) if quota.isdecimal() else 0
    get, put = os.sched_getaffinity, os.sched_setaffinity
    everything = get(0)
    if not 0 < count < len(everything):
        return
    told = first(everything, count)

    def sched_getaffinity(pid: int, /) -> "set[int]":
        return first(get(pid), count) if pid in (0, os.getpid()) else get(pid)

    def sched_setaffinity(pid: int, mask: "Iterable[int]", /) -> None:
        mask = set(mask)  # who puts back what was told here means all of them
        put(pid, everything if mask == told else mask)

    os.sched_getaffinity, os.sched_setaffinity = sched_getaffinity, sched_setaffinity


if hasattr(os, "sched_getaffinity"):
    follow(os.environ.get("PYTHON_CPU_COUNT", ""))
