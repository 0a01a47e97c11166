"""Which variants exist: the rows of ``docker/variants.toml``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
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
        image_bytes: the finished image.
        build_bytes: the disk that a cold build takes at its peak, the image included.
        driver: the oldest NVIDIA driver (major version) that it runs on.
    """

    name: str
    summary: str
    dockerfile: str
    torch: str
    torchvision: str
    cuda: str
    python: str
    driver: int
    image_bytes: int
    build_bytes: int
    base: Base


def read(root: Path) -> dict[str, Variant]:
    """All variants by name.

    Raises:
        InputError: ``docker/variants.toml`` is missing or damaged; names the file and the mistake.
    """
    path = root / "docker" / "variants.toml"
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text())
        base = Base(**{key: document["base"][key] for key in ("image", "suite", "epoch")})
        return {
            name: Variant(
                name=name,
                summary=row["summary"],
                dockerfile=row["dockerfile"],
                torch=row["torch"],
                torchvision=row["torchvision"],
                cuda=row["cuda"],
                python=row["python"],
                driver=int(row["driver"]),
                image_bytes=int(float(row["image_gb"]) * GB),
                build_bytes=int(float(row["build_gb"]) * GB),
                base=base,
            )
            for name, row in document["variant"].items()
        }
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:  # TOMLDecodeError is a ValueError
        raise InputError(
            f"{path} cannot be read ({error}). `git checkout {path.relative_to(root)}` restores it."
        ) from None


def get(root: Path, name: str | None) -> Variant:
    """The variant of this name; the default one for None.

    Raises:
        InputError: there is no such variant; the text lists those there are.
    """
    known = read(root)
    name = DEFAULT if name is None else name
    if name not in known:
        listed = ", ".join(sorted(known))
        raise InputError(f"There is no variant {name!r}.{did_you_mean(name, list(known))} Variants: {listed}.")
    return known[name]
