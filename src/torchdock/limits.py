"""How much of the machine one container may take: what was asked for, else what leaves the host alive."""

from __future__ import annotations

from dataclasses import dataclass

from torchdock.engine import Engine
from torchdock.errors import InputError
from torchdock.launch import Wishes

OPEN_FILES = 65536
PROCESSES = 32768  # more than any training has, fewer than a fork bomb needs to take the host
# Half of the usual weight: where CPUs are scarce the host's own services come first, and containers share evenly.
CPU_SHARES = 512
# When the host as a whole runs out of memory, containers end before sshd and the engine do.
OOM_SCORE = 500
LEAST_MEMORY = 512 << 20  # importing torch and training the smallest network: 384 MiB do, 256 MiB do not
GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What one container may take. None where this engine cannot limit it.

    Attributes:
        memory: bytes, without swap.
        shm: bytes of /dev/shm, which count as memory.
        cpus: CPUs' time; None for all of them.
    """

    memory: int | None
    swap: bool
    shm: int
    cpus: float | None
    shares: int | None
    processes: int | None
    open_files: int | None


def plan(engine: Engine, asked: Wishes) -> Limits:
    """The limits of a launch. Without a wish: three quarters of the memory, half of that for /dev/shm, all CPUs.

    A quarter stays for the host and others; CPUs need no limit, because the kernel shares them out by weight.

    Raises:
        InputError: more is asked for than the machine has, less than torch needs, or what the engine cannot limit.
    """
    info, total = engine.facts.info, engine.memory_bytes
    can = {name: bool(info.get(name)) for name in ("MemoryLimit", "SwapLimit", "CpuCfsQuota", "CPUShares", "PidsLimit")}
    for option, value, name in (("--memory", asked.memory, "MemoryLimit"), ("--cpus", asked.cpus, "CpuCfsQuota")):
        if value is not None and not can[name]:
            raise InputError(
                f"{option}: this container engine cannot limit that (no such cgroup controller is given to it; "
                f"rootless engines need cgroup v2 and delegation). Leave {option} away."
            )
    if asked.memory is not None and asked.memory < LEAST_MEMORY:
        raise InputError(
            f"--memory {told(asked.memory)} is less than torch needs to start: ask for {told(LEAST_MEMORY)} or more "
            "(a number alone is bytes: 16g, 512m)."
        )
    if asked.memory is not None and total and asked.memory > total:
        raise InputError(f"--memory {told(asked.memory)}: this machine has {told(total)}. Ask for less.")
    number = int(info.get("NCPU") or 0)
    if asked.cpus is not None and number and asked.cpus > number:
        raise InputError(f"--cpus {asked.cpus:g}: this machine has {number}. Ask for fewer, or leave --cpus away.")
    memory = asked.memory or (_whole(total * 3 // 4) if total else None)
    bound = memory or total
    if asked.shm is not None and bound and asked.shm > bound:
        raise InputError(
            f"--shm-size {told(asked.shm)}: /dev/shm counts as memory, and the container gets {told(bound)} of it. "
            "Ask for less, or for more with --memory."
        )
    return Limits(
        memory=memory if can["MemoryLimit"] else None,
        swap=can["SwapLimit"],
        # Half, as Linux itself sizes a tmpfs. At least 1 GiB: 64 MB are what DataLoader workers die of (PT#5040).
        shm=asked.shm or min(max(_whole(bound // 2), GIB), bound or GIB),
        cpus=asked.cpus,
        shares=CPU_SHARES if can["CPUShares"] else None,
        processes=PROCESSES if can["PidsLimit"] else None,
        open_files=None if engine.open_files is None else min(OPEN_FILES, engine.open_files),
    )


def arguments(limits: Limits) -> list[str]:
    """These limits as words of ``docker run``."""
    words: list[str] = []
    if limits.memory is not None:
        words += ["--memory", str(limits.memory)]
        # As much with swap as without: a container that outgrows its memory ends, and the host does not thrash.
        words += ["--memory-swap", str(limits.memory)] if limits.swap else []
    if limits.cpus is not None:
        words += ["--cpus", f"{limits.cpus:g}"]
    if limits.shares is not None:
        words += ["--cpu-shares", str(limits.shares)]
    if limits.processes is not None:
        words += ["--pids-limit", str(limits.processes)]
    words += ["--oom-score-adj", str(OOM_SCORE), "--shm-size", str(limits.shm)]
    if limits.open_files is not None:
        words += ["--ulimit", f"nofile={limits.open_files}"]
    return words


def _whole(size: int) -> int:
    return size >> 20 << 20  # whole MiB: the kernel rounds to pages


def told(size: int | None) -> str:
    """A size in words."""
    if size is None:
        return "no limit"
    if size < 1 << 20:
        return f"{size} bytes"
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size >> 20} MiB"
