"""Pins of a lock, compared with what is installed. Pure: text in, values out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# The files of a lock that make the environment; others beside them belong to other images.
LAYERS = ("cuda", "torch", "tools")
PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*==\s*(?P<version>[^\s;\\]+)\s*(?P<rest>.*)$")


def normalise(name: str) -> str:
    """Return a distribution's name as PEP 503 spells it: ``Typing_Extensions`` is ``typing-extensions``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Return {normalised name: version} of a lock in pip's format.

    Raises ValueError for a line that is neither a pin, a hash, an option nor a comment, for a marker (locks are
    resolved: a line that holds only sometimes is none), and for a name pinned twice to different versions.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition(" #")[0].strip()
        if not line or line.startswith(("#", "-")):
            continue
        match = PIN.match(line)
        if not match or match["rest"].startswith(";"):
            raise ValueError(f"line {number} of the lock is no pin: {line!r}")
        name = normalise(match["name"])
        if found.setdefault(name, match["version"]) != match["version"]:
            raise ValueError(f"line {number} of the lock pins {name} twice: {found[name]} and {match['version']}")
    return found


def differences(locked: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """Return one phrase for each pin that is not installed as locked; what is installed besides is no difference."""
    found = []
    for name, version in sorted(locked.items()):
        if name not in installed:
            found.append(f"{name} {version} is missing")
        elif installed[name] != version:
            found.append(f"{name} is {installed[name]}, locked {version}")
    return found


def cuda_of(variant: str) -> str | None:
    """Return the CUDA release of a variant's wheels: ``cu130`` is "13.0", ``cpu`` is None. ValueError otherwise."""
    if variant == "cpu":
        return None
    if not (match := re.fullmatch(r"cu(\d+)(\d)", variant)):
        raise ValueError(f"{variant!r} is no variant: expected cpu, or cu and a CUDA release such as cu130")
    return f"{match[1]}.{match[2]}"


def cuda_majors(names: Iterable[str]) -> set[str]:
    """Return the CUDA majors that distributions are named for: {"12", "13"} of nvidia-nccl-cu12 and -cu13."""
    matches = (re.search(r"-cu(\d\d)$", normalise(name)) for name in names)
    return {match[1] for match in matches if match}


def cuda_packages(names: Iterable[str]) -> list[str]:
    """Return the distributions that exist for CUDA alone, sorted; nvidia-ml-py asks a driver and is none of them."""
    found = {normalise(name) for name in names}
    return sorted(name for name in found if re.match(r"nvidia-(?!ml-py$)|cuda-|triton$", name))
