"""What the kernel grants this process: CPUs and privileges. Readers are passed in, so tests need no such machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

Reader = Callable[[str], "str | None"]


def read(path: str) -> str | None:
    """Return the text of a file of the kernel's, None where it is not there or not readable."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def quota(reader: Reader = read) -> float | None:
    """Return the CPUs that this process's control groups grant (1.5 is one and a half), None where unlimited.

    Knows cgroup v2 and v1. The narrowest limit on the way to the root counts. Inside a container the group may be
    mounted as the root while /proc/self/cgroup still names the host's path: both are tried.
    """
    granted = []
    for line in (reader("/proc/self/cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            for folder in _upwards("/sys/fs/cgroup", group):
                words = (reader(f"{folder}/cpu.max") or "").split()
                if len(words) == 2 and words[0] != "max":
                    granted.append(int(words[0]) / int(words[1]))
        elif "cpu" in controllers.split(","):
            for mount in ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"):
                for folder in _upwards(mount, group):
                    limit = int(reader(f"{folder}/cpu.cfs_quota_us") or -1)
                    if limit > 0:
                        granted.append(limit / int(reader(f"{folder}/cpu.cfs_period_us") or 100_000))
    return min(granted, default=None)


def _upwards(mount: str, group: str) -> Iterator[str]:
    """Yield the folder of a control group and of each of its parents, the mount itself last."""
    inner = PurePosixPath(group.lstrip("/"))
    for part in (inner, *inner.parents):
        yield mount if str(part) == "." else f"{mount}/{part}"


def threads_allowed(reader: Reader = read) -> int:
    """Return how many compute threads run at once here: whole CPUs of affinity and quota, at least 1."""
    cpus = float(len(os.sched_getaffinity(0)))
    limit = quota(reader)
    return max(1, int(cpus if limit is None else min(cpus, limit)))


def status(reader: Reader = read) -> dict[str, str]:
    """Return the fields of /proc/self/status, such as {"CapEff": "0000000000000000", "NoNewPrivs": "1"}."""
    lines = (line.partition(":") for line in (reader("/proc/self/status") or "").splitlines())
    return {name: value.strip() for name, _, value in lines}
