"""Profiles: what a launch is granted beyond least privilege, by name, and what this host's kernel has against it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torchdock.errors import InputError, did_you_mean

VARIABLE = "TORCHDOCK_PROFILE"


@dataclass(frozen=True)
class Profile:
    """One profile.

    Attributes:
        capabilities: what the engine adds to the bounding set, which opens its filter of system calls. No process
            holds one: a user's own UID gets none by them, and as UID 0 the entrypoint lays them down
            (torchdock.inside.tracing).
    """

    capabilities: tuple[str, ...]


# PERFMON: perf_event_open. SYS_PTRACE: process_vm_readv, which py-spy reads with, in engines before Docker 23.
PROFILES = {"debug": Profile(("PERFMON", "SYS_PTRACE"))}
_SINCE = {"PERFMON": (5, 8)}  # kernels that know the capability; an engine refuses one that its kernel does not know


@dataclass(frozen=True)
class Kernel:
    """What decides about debuggers: the version, and two settings; None where they are not there or not known.

    Attributes:
        ptrace_scope: kernel.yama.ptrace_scope. 0: own processes; 1: own children, and who consents; 2: nobody
            without a capability; 3: nobody.
        perf_paranoid: kernel.perf_event_paranoid. Up to 2: own processes; 3 and 4 (Debian, Ubuntu): nobody.
    """

    version: str
    ptrace_scope: int | None = None
    perf_paranoid: int | None = None


def check(name: str) -> str:
    """The name of a profile, as it is.

    Raises:
        InputError: there is no such profile.
    """
    if name not in PROFILES:
        known = list(PROFILES)
        raise InputError(
            f"--profile {name}: there is no such profile.{did_you_mean(name, known)} There is: {', '.join(known)}."
        )
    return name


def gather(version: str, *, virtual: bool = False) -> Kernel:
    """The kernel that containers run on; its settings are not seen where it is that of a virtual machine."""
    if virtual:
        return Kernel(version)
    return Kernel(version, _setting("yama/ptrace_scope"), _setting("perf_event_paranoid"))


def arguments(name: str, version: str) -> list[str]:
    """What a profile adds to docker's command line on a kernel of this version. Pure."""
    argv = []
    for capability in PROFILES[name].capabilities:
        if _at_least(version, _SINCE.get(capability, (0, 0))):
            argv += ["--cap-add", capability]
    return [*argv, "--env", f"{VARIABLE}={name}"]


def hindrances(kernel: Kernel) -> list[str]:
    """What the host's settings keep from working in spite of ``--profile debug``, and whom to ask for it. Pure."""
    ask = "ask who runs this host for `sudo sysctl"
    found = []
    if kernel.ptrace_scope == 1:
        found.append(
            "kernel.yama.ptrace_scope is 1: py-spy and gdb attach to Python processes of this container; start "
            "anything else under gdb"
        )
    elif kernel.ptrace_scope == 2:
        found.append(
            f"py-spy and gdb cannot attach here, as kernel.yama.ptrace_scope is 2: {ask} kernel.yama.ptrace_scope=1`"
        )
    elif kernel.ptrace_scope == 3:
        found.append(
            "py-spy and gdb cannot work here, as kernel.yama.ptrace_scope is 3, which only a restart of this host "
            "changes: ask who runs it"
        )
    if not _at_least(kernel.version, _SINCE["PERFMON"]):
        found.append(f"perf cannot work here: it needs Linux 5.8, and this is {kernel.version}")
    elif kernel.perf_paranoid is not None and kernel.perf_paranoid > 2:
        found.append(
            f"perf cannot work here, as kernel.perf_event_paranoid is {kernel.perf_paranoid}: {ask} "
            "kernel.perf_event_paranoid=2`"
        )
    return found


def _at_least(version: str, wanted: tuple[int, int]) -> bool:
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is None or (int(found[1]), int(found[2])) >= wanted


def _setting(name: str) -> int | None:
    try:
        return int(Path("/proc/sys/kernel", name).read_text())
    except (OSError, ValueError):
        return None
