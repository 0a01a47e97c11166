"""Pins of a lock, compared with what is installed: in the image they are equal, in other environments it is told."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

# The files of a lock that make the environment; others beside them belong to other images.
LAYERS = ("cuda", "torch", "tools", "recent")
WORKSPACE = "workspace"  # what a workspace added to it, in an image of its own
# Where the image has its environment, and what it alone has there.
PREFIX, MARK = "/opt/venv", Path("/opt/torchdock/constraints.txt")
PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*==\s*(?P<version>[^\s;\\]+)\s*(?P<rest>.*)$")


def in_image() -> bool:
    """True for a Python of torchdock's own image, which is what the lock says; elsewhere versions are the user's."""
    return sys.prefix == PREFIX and MARK.is_file()


def installed() -> dict[str, str]:
    """Return {normalised name: version} of this environment. Of two copies the first one on the path is imported."""
    found: dict[str, str] = {}
    for dist in metadata.distributions():
        if dist.name:  # a folder that a broken removal left behind has none
            found.setdefault(normalise(dist.name), dist.version)
    return found


def files(root: Path, variant: str) -> list[Path]:
    """Return the files of a variant's lock below the tree ``root``, what a workspace added among them."""
    folder = root / "docker" / "locks" / variant
    return [file for layer in (*LAYERS, WORKSPACE) if (file := folder / f"{layer}.txt").is_file()]


def read(root: Path, variant: str) -> dict[str, str]:
    """Return the pins of a variant's lock; empty where it has none. Raises ValueError as ``pins`` does.

    A layer is installed over those before it: where ``recent`` moves a package of ``tools``, its version is there.
    """
    found: dict[str, str] = {}
    for file in files(root, variant):
        found |= pins(file.read_text(encoding="utf-8"))
    return found


def nearest(locks: Mapping[str, Mapping[str, str]], have: Mapping[str, str], cuda: str | None, named: str) -> str:
    """Return the variant whose lock an environment is compared with: the one that is named, else its torch's CUDA's.

    locks: {variant: pins}, at least one. have: what is installed. cuda: torch's release of CUDA, None for a CPU build.
    Where no lock is of that CUDA, the one with the fewest differences.
    """
    same = [variant for variant in locks if variant == named] or [name for name in locks if cuda_of(name) == cuda]
    return min(same or locks, key=lambda variant: (len(differences(locks[variant], have)), variant))


def told(locked: Mapping[str, str], have: Mapping[str, str]) -> str:
    """Return in words what differs, for people: other versions by name, torch's first, and how many are missing."""
    other = [
        f"{name} {have[name]} (locked {locked[name]})"
        for name in locked
        if have.get(name, locked[name]) != locked[name]
    ]
    other.sort(key=lambda words: (not words.startswith(("torch ", "torchvision ")), words))
    missing = sum(name not in have for name in locked)
    return "; ".join([*other, *([f"{missing} of {len(locked)} locked packages are not there"] if missing else [])])


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
