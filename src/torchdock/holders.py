"""Who has which GPU, since when, and whether anything computes on it: by leases, processes, containers, the driver.

A lease tells whose a GPU is (torchdock.lease). Whoever does without one is found by NVML's process, that process's
cgroup on the host, and the container of that cgroup as its engine lists it. None of it needs an administrator: what
cannot be seen is left away.

How long a GPU has been idle nobody notes down. The driver remembers some seconds of its utilisation, and in accounting
mode (root switches it on: ``nvidia-smi -am 1``) when each process ended; who looks on (``--watch``) knows what was seen
meanwhile. So an :class:`Idle` says since when nothing has computed for certain, and whether that is all of the time.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unicodedata import category

from torchdock.gpus import Gpu, Inventory
from torchdock.lease import Lease

PROC = Path("/proc")
LABEL = "dev.torchdock"
ENGINE_SECONDS = 1.0  # what an engine gets to list its containers
MOMENT = 5.0  # seconds for which a GPU that has computed counts as at work
LONG = 2 * 3600.0  # seconds after which an idle lease is warned about


@dataclass(frozen=True)
class Program:
    """A process of this host that computes on a GPU.

    Attributes:
        name: program and script, without its other words, which may be secrets; empty where it is gone or hidden.
        user: whose it is; empty where that cannot be seen.
        since: its start, in seconds since 1970.
        box: ID of its container, as its cgroup names it; empty for none.
        memory: bytes on the GPU, None where the driver does not tell.
    """

    pid: int
    name: str = ""
    user: str = ""
    since: float | None = None
    box: str = ""
    memory: int | None = None


@dataclass(frozen=True)
class Box:
    """A container as its engine lists it: its name, and what torchdock's labels say of it."""

    name: str
    user: str = ""
    role: str = ""


@dataclass(frozen=True)
class Facts:
    """What was seen on this host, at one time (seconds since 1970)."""

    now: float
    leases: Mapping[str, Lease]
    programs: Mapping[int, Program] = field(default_factory=dict)
    boxes: Mapping[str, Box] = field(default_factory=dict)


@dataclass(frozen=True)
class Holder:
    """One who has a GPU.

    Attributes:
        container: its name, or as much of its ID as is known; empty for a process in none.
        role: of a container of torchdock's: ``up``, ``job``, …
        leased: by a lease; ``pending``: the container does not have it yet.
        since, until: in seconds since 1970; ``until`` is the end of the lease's time limit.
    """

    user: str
    container: str = ""
    role: str = ""
    leased: bool = False
    pending: bool = False
    since: float | None = None
    until: float | None = None
    programs: tuple[Program, ...] = ()


@dataclass(frozen=True)
class Idle:
    """Nothing has computed since then (seconds since 1970); ``exact``: it is not known to have been so before."""

    since: float
    exact: bool


@dataclass(frozen=True)
class Row:
    """A GPU, who has it, and since when nothing computes on it; None where something does, or that is not told."""

    gpu: Gpu
    holders: tuple[Holder, ...] = ()
    idle: Idle | None = None

    @property
    def state(self) -> str:
        """In a word: what a launch that looks for a GPU finds."""
        if any(holder.leased for holder in self.holders):
            return "launching" if all(holder.pending for holder in self.holders if holder.leased) else "leased"
        return "in use" if self.gpu.in_use else "free"

    def document(self) -> dict[str, Any]:
        """As ``gpus --json`` has it."""
        gpu = self.gpu
        names = ("index", "uuid", "name", "parent", "slot", "memory_total", "memory_used", "utilisation", "temperature")
        return {
            **{name: getattr(gpu, name) for name in names},
            "compute_capability": gpu.compute_capability,
            "nvlink": sorted(gpu.joined),
            "state": self.state,
            "idle": None if self.idle is None else vars(self.idle),
            "holders": [{**vars(one), "programs": [vars(program) for program in one.programs]} for one in self.holders],
        }


# --- facts ------------------------------------------------------------------------------------------------------------


def gather(inventory: Inventory, leases: Mapping[str, Lease]) -> Facts:
    """Look for the processes on these GPUs and their containers; takes no longer than the engines are given."""
    found = {one.pid: look(one.pid) for gpu in inventory.gpus for one in gpu.processes}
    boxes = listed({one.box for one in found.values()} - {""})
    return Facts(time.time(), leases, found, boxes)


def look(pid: int, proc: Path = PROC) -> Program:
    """A process, as far as it can be seen; one that is gone, or another's that is hidden, is its PID alone."""
    folder = proc / str(pid)
    words, box, user, since = [""], "", "", None
    with suppress(OSError):
        user = name_of(folder.stat().st_uid)
    with suppress(OSError):
        box = container_id((folder / "cgroup").read_text())
    with suppress(OSError, ValueError, IndexError):
        ticks = int((folder / "stat").read_text().rpartition(")")[2].split()[19])
        since = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    with suppress(OSError):
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    with suppress(OSError):
        words = words if words[0] else [(folder / "comm").read_text().strip()]
    return Program(pid, program(words), user, since, box)


def program(words: Sequence[str]) -> str:
    """``python train.py`` of ``/opt/venv/bin/python -u train.py --token …``: nothing that might be a secret. Pure."""
    name = words[0].rpartition("/")[2]
    if not re.fullmatch(r"(python|pypy|bash|sh|ruby|perl|julia)[\d.]*", name):
        return name
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            return f"{name} -m {next(rest, '')}".strip()
        if word == "-c" or not word:
            break
        if word in ("-W", "-X"):
            next(rest, "")
        elif not word.startswith("-"):
            return f"{name} {word.rpartition('/')[2]}"
    return name


def name_of(uid: int) -> str:
    """A user's name, or the UID where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def container_id(cgroups: str) -> str:
    """The ID of the container whose process has this ``/proc/PID/cgroup``; empty for a process in none. Pure.

    ``…/docker/ID`` (cgroupfs), ``…/docker-ID.scope`` (systemd), ``…/libpod-ID.scope/container`` (Podman),
    ``…/cri-containerd-ID.scope`` and ``…/kubepods/…/ID`` (Kubernetes); of a container in a container the outer one,
    which is the one that this host's engine knows.
    """
    for line in cgroups.splitlines():
        found = re.search(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", line.rpartition(":")[2])
        if found:
            return found[0]
    return ""


def sockets(env: Mapping[str, str]) -> list[str]:
    """Where engines of this host might answer, the named one first. Pure."""
    named = env.get("DOCKER_HOST", "")
    own = env.get("XDG_RUNTIME_DIR", "")
    places = [named[7:] if named.startswith("unix://") else "", "/var/run/docker.sock"]
    places += [f"{own}/docker.sock", f"{own}/podman/podman.sock"] if own else []
    return [place for place in dict.fromkeys([*places, "/run/podman/podman.sock"]) if place]


def listed(ids: Collection[str], env: Mapping[str, str] | None = None) -> dict[str, Box]:
    """The containers with these IDs that an engine of this host knows and tells this user of."""
    found: dict[str, Box] = {}
    for place in sockets(os.environ if env is None else env):
        if set(ids) <= set(found):
            break
        for one in _containers(place):
            if one.get("Id") in ids:
                found[one["Id"]] = box(one)
    return found


def box(one: Mapping[str, Any]) -> Box:
    """A container from its engine's list. Pure."""
    labels = one.get("Labels") or {}
    uid = str(labels.get(f"{LABEL}.user", ""))
    names = one.get("Names") or [str(one.get("Id"))[:12]]
    user = name_of(int(uid)) if uid.isascii() and uid.isdigit() and len(uid) < 11 else ""
    return Box(str(names[0]).lstrip("/"), user, str(labels.get(f"{LABEL}.role", "")))


def _containers(place: str) -> list[dict[str, Any]]:
    """The running containers of the engine at this socket; none where it is silent, or closed to this user.

    Without docker's SDK, whose import alone takes as long as all the rest.
    """
    parts = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(ENGINE_SECONDS)
            line.connect(place)
            line.sendall(b"GET /containers/json HTTP/1.0\r\nHost: engine\r\n\r\n")
            deadline = time.monotonic() + ENGINE_SECONDS
            while (part := line.recv(1 << 16)) and time.monotonic() < deadline:
                parts.append(part)
        found = json.loads(b"".join(parts).partition(b"\r\n\r\n")[2])
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


# --- who has what -----------------------------------------------------------------------------------------------------


def rows(inventory: Inventory, facts: Facts) -> list[Row]:
    """Each GPU with who has it. Pure."""
    found = []
    for gpu in inventory.gpus:
        holders = _holders(gpu, facts)
        found.append(Row(gpu, holders, idle(gpu, holders, facts.now)))
    return found


def _holders(gpu: Gpu, facts: Facts) -> tuple[Holder, ...]:
    """The one who has leased it, then the others, the longest first."""
    groups: dict[tuple[str, str], Holder] = {}
    for one in gpu.processes:
        seen = replace(facts.programs.get(one.pid, Program(one.pid)), memory=one.memory)
        known = facts.boxes.get(seen.box, Box(seen.box[:12]))
        who = Holder(known.user or seen.user, known.name, known.role)
        held = groups.get((who.user, who.container), who)
        starts = [start for start in (held.since, seen.since) if start is not None]
        groups[who.user, who.container] = replace(
            held, since=min(starts, default=None), programs=(*held.programs, seen)
        )
    others = list(groups.values())
    lease = facts.leases.get(gpu.uuid, Lease())
    if lease.free:
        return _by_time(others)
    mine = [one for one in others if one.container and one.container == lease.container]
    first = Holder(
        lease.user, lease.container, lease.role, True, not lease.held, lease.since, lease.until,
        tuple(program for one in mine for program in one.programs),
    )  # fmt: skip
    return (first, *_by_time(one for one in others if one not in mine))


def _by_time(holders: Iterable[Holder]) -> tuple[Holder, ...]:
    return tuple(sorted(holders, key=lambda one: (one.since or 0.0, one.user, one.container)))


def idle(gpu: Gpu, holders: Sequence[Holder], now: float) -> Idle | None:
    """Since when nothing has computed on it; None where something does, or the driver tells nothing of it. Pure.

    What was before the first of those who have it now is not theirs.
    """
    since, exact = now, False
    if gpu.utilisation:
        return None
    if gpu.load is not None:
        if gpu.load.at_work is not None:
            since, exact = gpu.load.at_work, True
            if now - since < MOMENT:
                return None
        elif gpu.load.ended is not None and not gpu.processes:
            since, exact = gpu.load.ended, True
        else:
            since = gpu.load.since
    elif gpu.utilisation is None and gpu.processes:
        return None
    since = min(since, now)
    begun = min((one.since for one in holders if one.since is not None), default=None)
    if begun is not None and since <= begun <= now:
        return Idle(begun, True)
    return Idle(since, exact)


def looked_on(before: Sequence[Row], after: Sequence[Row]) -> list[Row]:
    """The later of two looks, where what was idle at both has been so in between. Pure.

    They are seconds apart, and the driver remembers more than that; where it remembers nothing, it is taken on trust.
    """
    known = {row.gpu.uuid: row for row in before}
    found = []
    for row in after:
        earlier = known.get(row.gpu.uuid)
        if row.idle and not row.idle.exact and earlier and earlier.idle and earlier.idle.since < row.idle.since:
            row = replace(row, idle=replace(earlier.idle))
        found.append(row)
    return found


def warnings(found: Sequence[Row], now: float, me: str) -> list[str]:
    """One sentence with the remedy for each lease that has been held for long with nothing computing now. Pure."""
    told = []
    for row in found:
        for one in row.holders:
            long_held = one.leased and one.since is not None and now - one.since >= LONG
            if not long_held or row.idle is None or (row.idle.exact and now - row.idle.since < LONG):
                continue
            assert one.since is not None
            certain = "" if row.idle.exact else "at least "
            whose = "" if one.user == me else f"ask {plain(one.user) or 'them'} whether it is still needed; "
            end = "`invoke down`" if one.role == "up" else f"`invoke stop {plain(one.container)}`"
            bound = "" if one.until else "; `--time 8h` at its launch bounds a lease"
            told.append(
                f"GPU {row.gpu.label} has been leased by {who(one)} for {span(now - one.since)}, and nothing has "
                f"computed on it for {certain}{span(now - row.idle.since)}: {whose}{end} gives it back{bound}."
            )
    return told


# --- words ------------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """What somebody else wrote, without what a terminal would obey."""
    return "".join(ascii(one)[1:-1] if category(one) in ("Cc", "Cf", "Cs") else one for one in text)


def who(one: Holder) -> str:
    """``anna (torchdock-anna-night)``."""
    name = plain(one.user) or "somebody"
    return f"{name} ({plain(one.container)})" if one.container else name


def span(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 5 min``, ``2 d 14 h``."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 2 * 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(then: float | None, now: float) -> str:
    """``14:05``, with the day where that is not today's. Empty for None."""
    if then is None:
        return ""
    try:
        at, today = time.localtime(then), time.localtime(now)
    except (OverflowError, OSError, ValueError):  # in a file that anybody may write
        return "?"
    return time.strftime("%H:%M" if at[:3] == today[:3] else "%a %d %b %H:%M", at)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"


def table(found: Sequence[Row], cut: Sequence[Gpu] = ()) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns and lines of the GPUs. Pure."""
    columns = ("GPU", "name", "memory, GiB", "load", "temp.", "state", "UUID")
    lines = []
    for gpu, state in [*((row.gpu, row.state) for row in found), *((gpu, "in MIG mode") for gpu in cut)]:
        memory = f"{_gib(gpu.memory_used)} of {_gib(gpu.memory_total)}" if gpu.memory_total else "-"
        load = "-" if gpu.utilisation is None else f"{gpu.utilisation} %"
        warmth = "-" if gpu.temperature is None else f"{gpu.temperature} °C"
        lines.append(
            (
                (gpu.index, -1 if gpu.slot is None else gpu.slot),
                (gpu.label, gpu.name, memory, load, warmth, state, gpu.uuid),
            )
        )
    return columns, [line for _, line in sorted(lines, key=lambda one: one[0])]


def held(found: Sequence[Row], now: float) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns and lines of those who have them. Pure."""
    columns = ("GPU", "user", "container", "since", "idle", "processes")
    lines: list[tuple[str, ...]] = []
    for row in found:
        for one in row.holders:
            name = plain(one.container) or "-"
            kind = ", ".join(word for word in (plain(one.role), "no lease" if not one.leased else "") if word)
            since = "launching" if one.pending else clock(one.since, now) or "-"
            since += f", until {clock(one.until, now)}" if one.until else ""
            rest = "-" if row.idle is None else ("" if row.idle.exact else "≥ ") + span(now - row.idle.since)
            programs = ", ".join(
                f"{program.pid} {plain(program.name)}".strip()
                + (f" ({_gib(program.memory)} GiB)" if program.memory is not None else "")
                for program in one.programs
            )
            container = f"{name} ({kind})" if kind else name
            lines.append((row.gpu.label, plain(one.user) or "?", container, since, rest, programs or "none"))
    return columns, lines
