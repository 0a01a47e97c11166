"""Which processes are there, by /proc: what a check started must end with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# What stays on purpose, by words of its command line: Python's own helpers, which live as long as their process does.
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
# And with what they start: torch's pool of compilers, and the one that runs beside the checks.
COMPILERS = ("_inductor.compile_worker", "_inductor/compile_worker", "torchdock.inside.one_kernel")


@dataclass(frozen=True)
class Process:
    """One process. start: of its clock ticks since boot, which tells it from a later one with its number."""

    pid: int
    parent: int
    group: int
    state: str
    start: int
    command: str

    @property
    def ended(self) -> bool:
        """Whether it only waits for its parent to take note."""
        return self.state in "ZX"


def parse(stat: str, command: bytes) -> Process:
    """Return the process of the text of its ``stat`` and the bytes of its ``cmdline``. Raises ValueError."""
    pid, _, rest = stat.partition(" (")
    name, _, numbers = rest.rpartition(") ")  # a name may contain anything, brackets too
    fields = numbers.split()
    words = " ".join(command.decode(errors="replace").split("\0")).strip()
    return Process(int(pid), int(fields[1]), int(fields[2]), fields[0], int(fields[19]), words or f"[{name}]")


def gather(proc: Path = Path("/proc")) -> Iterator[Process]:
    """Yield every process that can be seen."""
    for folder in proc.iterdir():
        if folder.name.isdigit():
            try:
                yield parse((folder / "stat").read_text(errors="replace"), (folder / "cmdline").read_bytes())
            except OSError:
                continue  # it ended meanwhile


def alive(pid: int) -> bool:
    """Return whether there is such a process and it has not ended."""
    try:
        return not parse(Path(f"/proc/{pid}/stat").read_text(errors="replace"), b"").ended
    except OSError:
        return False


def ours(everything: Iterable[Process], own: int, group: int) -> dict[tuple[int, int], Process]:
    """Return, by number and start, the descendants of the process ``own`` and the members of its process group.

    The group finds those whose parent is gone. Without what has ended, and without HELPERS and COMPILERS.
    """
    found = {process.pid: process for process in everything}

    def line(process: Process) -> list[Process]:
        """The process and its ancestors, up to and without ``own``, or to the first that is not known."""
        way = [process]
        while way[-1].parent != own and way[-1].parent in found and len(way) < len(found):
            way.append(found[way[-1].parent])
        return way

    def belongs(process: Process) -> bool:
        way = line(process)
        if process.ended or process.pid == own or any(word in process.command for word in HELPERS):
            return False
        if any(word in ancestor.command for ancestor in way for word in COMPILERS):
            return False
        return process.group == group or way[-1].parent == own

    return {(one.pid, one.start): one for one in found.values() if belongs(one)}


def here() -> dict[tuple[int, int], Process]:
    """Return the processes of this one, as ``ours`` does, without its own group where it does not lead that."""
    own = os.getpid()
    group = os.getpgrp() if os.getpgrp() == own else -1  # a shell's group has others' processes
    return ours(gather(), own, group)


def left(before: Mapping[tuple[int, int], Process], after: Mapping[tuple[int, int], Process]) -> list[Process]:
    """Return what is there after and was not before."""
    return [process for key, process in after.items() if key not in before]
