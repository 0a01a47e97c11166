"""Which variants exist: the rows of ``docker/variants.toml``, and for which architectures each one is locked."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchdock.errors import InputError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT = "cu130"
GB = 10**9


@dataclass(frozen=True)
class Base:
    """The base image: its pinned reference, the Debian suite it is made of, and its day (seconds since 1970)."""

    image: str
    suite: str
    epoch: int


@dataclass(frozen=True)
class Variant:
    """One pinned environment. Sizes in bytes.

    Attributes:
        torch: the exact version of the wheel, its local part included (``2.14.1+cu126``).
        torchvision: the same of torchvision.
        index: the name of the PyTorch wheel index that has these two; empty where the Python package index has them.
        index_url: the upstream address of that index, which may be printed; empty where ``index`` is.
        cuda: the CUDA version of the wheels; empty for the CPU variant.
        architectures: what the wheels exist for, as ``uname`` names machines.
        locked: the architectures that this clone has a lock for; only for these it can be built.
        driver: the oldest NVIDIA driver that it runs on, as far as it matters (``525.60.13``, ``580``); empty for the
            CPU variant.
        compute_capability: for each architecture, the compute capabilities that the wheels have code for.
        image_bytes: the finished image.
        build_bytes: the disk that a cold build takes at its peak, the image included.
    """

    name: str
    summary: str
    dockerfile: str
    torch: str
    torchvision: str
    index: str
    index_url: str
    cuda: str
    python: str
    architectures: tuple[str, ...]
    locked: frozenset[str]
    driver: str
    compute_capability: Mapping[str, tuple[str, ...]] = field(hash=False)
    image_bytes: int
    build_bytes: int
    base: Base

    @property
    def torch_release(self) -> str:
        """The torch version without its local part: what two variants can have in common."""
        return self.torch.partition("+")[0]


def numbers(version: str) -> tuple[int, ...]:
    """A dotted version for comparing: ``"525.60.13"`` -> ``(525, 60, 13)``; ends at the first part that is no number.

    Empty for a text that begins with none. A shorter version is older: ``525 < 525.60.13``, ``580 <= 580.65.06``.
    """
    leading = re.match(r"\d+(?:\.\d+)*", version, re.ASCII)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


@contextmanager
def _document(root: Path) -> Iterator[dict[str, Any]]:
    """``docker/variants.toml``; whatever is wrong with it or with what is taken from it is an :class:`InputError`."""
    path = root / "docker" / "variants.toml"
    try:
        yield tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:  # TOMLDecodeError is a ValueError
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path} cannot be read ({why}). `git checkout {path.relative_to(root)}` restores it."
        ) from None


def read(root: Path) -> dict[str, Variant]:
    """All variants by name.

    Raises:
        InputError: ``docker/variants.toml`` is missing or damaged; names the file and the mistake.
    """
    with _document(root) as document:
        base = Base(**{key: document["base"][key] for key in ("image", "suite", "epoch")})
        index_root = str(document["torch_index"]["url"]).rstrip("/")
        return {name: _variant(root, name, row, base, index_root) for name, row in document["variant"].items()}


def torch_index(root: Path) -> str:
    """The upstream address of the PyTorch wheel indexes, to which the name of one is appended.

    Raises:
        InputError: see :func:`read`.
    """
    with _document(root) as document:
        return str(document["torch_index"]["url"]).rstrip("/")


def shared_repository(root: Path) -> str:
    """The repository in which this clone's team keeps its images; empty where none is named.

    Raises:
        InputError: see :func:`read`.
    """
    with _document(root) as document:
        return str(document.get("share", {}).get("repository", ""))


def _variant(root: Path, name: str, row: Mapping[str, Any], base: Base, index_root: str) -> Variant:
    for key in ("summary", "dockerfile", "torch", "torchvision", "python"):
        if not isinstance(row[key], str):
            raise TypeError(f"variant.{name}: {key} is no text")
    if not isinstance(row["architectures"], list):
        raise TypeError(f"variant.{name}: architectures is no list")
    architectures = tuple(row["architectures"])
    cuda, index = row.get("cuda", ""), row.get("index", "")
    capabilities = {key: tuple(found) for key, found in row.get("compute_capability", {}).items()}
    if cuda and set(capabilities) != set(architectures):
        raise ValueError(f"variant.{name}: compute_capability names other architectures than the row has")
    for capability in (found for listed in capabilities.values() for found in listed):
        if not re.fullmatch(r"\d+\.\d", capability):
            raise ValueError(f"variant.{name}: {capability!r} is no compute capability")
    driver = row["driver"] if cuda else ""
    if cuda and not re.fullmatch(r"\d+(\.\d+)*", driver):
        raise ValueError(f"variant.{name}: {driver!r} is no driver version")
    return Variant(
        name=name,
        summary=row["summary"],
        dockerfile=row["dockerfile"],
        torch=row["torch"],
        torchvision=row["torchvision"],
        index=index,
        index_url=f"{index_root}/{index}" if index else "",
        cuda=cuda,
        python=row["python"],
        architectures=architectures,
        locked=_locked(root, name, architectures),
        driver=driver,
        compute_capability=capabilities,
        image_bytes=int(float(row["image_gb"]) * GB),
        build_bytes=int(float(row["build_gb"]) * GB),
        base=base,
    )


def _locked(root: Path, name: str, architectures: tuple[str, ...]) -> frozenset[str]:
    """The architectures in the header of the lock of torch; all of the variant's where it has no header."""
    try:
        with (root / "docker" / "locks" / name / "torch.txt").open(encoding="utf-8") as lock:
            header = lock.readline()
    except OSError:
        return frozenset()
    said = re.search(r"^# torchdock:.*\barchitectures=(\S*)", header)
    return frozenset(said[1].split(",")) & frozenset(architectures) if said else frozenset(architectures)


def unknown(name: str, known: Mapping[str, Variant]) -> str:
    """What is wrong with a name that no variant has, with a suggestion and the list of those there are."""
    return f"There is no variant {name!r}.{did_you_mean(name, list(known))} Variants: {', '.join(sorted(known))}."


def get(root: Path, name: str | None) -> Variant:
    """The variant of this name; the default one for None.

    Raises:
        InputError: there is no such variant; the text lists those there are.
    """
    known = read(root)
    name = DEFAULT if name is None else name
    if name not in known:
        raise InputError(unknown(name, known))
    return known[name]
