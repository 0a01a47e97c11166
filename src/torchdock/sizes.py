"""What a layer of wheels downloads, before it is downloaded: the sizes that indexes tell as JSON (PEP 691 and 700).

It is told beside a lock and decides nothing: where an index tells no sizes, there are none, and nothing fails.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from torchdock import sources
from torchdock.locks import Pin
from torchdock.process import capture
from torchdock.sources import Sources
from torchdock.variants import Variant, numbers

JSON = "application/vnd.pypi.simple.v1+json"
GLIBC = 41  # 2.41, of Debian 13: what the image takes of wheels for several
OLDEST = {"x86_64": 5, "aarch64": 17}  # the first manylinux of an architecture
LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
AT_ONCE = 8

# The wheels of one package: SHA-256 -> (file name, bytes).
Wheels = Mapping[str, tuple[str, int]]


def ranks(python: str, architecture: str) -> dict[Tag, int]:
    """What an image takes, by tag, the best first; this host's Python and architecture do not matter. Pure."""
    platforms = []
    for minor in range(GLIBC, OLDEST.get(architecture, 17) - 1, -1):
        names = [f"manylinux_2_{minor}", *([LEGACY[minor]] if minor in LEGACY else [])]
        platforms += [f"{name}_{architecture}" for name in names]
    platforms.append(f"linux_{architecture}")
    version = numbers(python)
    interpreter = "cp" + "".join(str(part) for part in version)
    every = chain(cpython_tags(version, [interpreter], platforms), compatible_tags(version, interpreter, platforms))
    return {tag: rank for rank, tag in reversed([*enumerate(every)])}


def total(pins: Iterable[Pin], wheels: Mapping[str, Wheels], taken: Mapping[Tag, int]) -> int | None:
    """Bytes of the wheels that an image with these tags (:func:`ranks`) takes; None where one's are not known. Pure.

    ``wheels``: what the index has, by the package's name. Only what is locked by hash counts.
    """
    found = 0
    for pin in pins:
        locked = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", pin.text))
        fitting = []
        for digest, (file, size) in wheels.get(pin.name, {}).items():
            if digest in locked:
                try:
                    _, _, build, tags = parse_wheel_filename(file)
                except InvalidWheelFilename:
                    continue
                if mine := [taken[tag] for tag in tags if tag in taken]:
                    fitting.append((-min(mine), build, size))
        if not fitting:
            return None
        found += max(fitting)[2]
    return found


class Sizes:
    """Asks this host's indexes; each page once, and an index that does not tell sizes not again."""

    def __init__(self, given: Sources) -> None:
        self._given = given
        self._known: dict[tuple[str, str], Wheels | None] = {}  # (index, package)
        self._silent: set[str] = set()

    def of(self, variant: Variant, layer: str, pins: Mapping[str, Pin]) -> dict[str, int]:
        """Bytes that this layer of a variant downloads, by architecture; without those that are not known."""
        if not pins:
            return {}
        index = self._index
        if layer == "torch" and variant.index:
            index = self._given.torch_index_url(variant.index_url.removesuffix(f"/{variant.index}"), variant.index)
        wheels = self._ask(index.rstrip("/"), sorted(pins))
        sums = {one: total(pins.values(), wheels, ranks(variant.python, one)) for one in variant.architectures}
        return {architecture: size for architecture, size in sums.items() if size is not None}

    @cached_property
    def _index(self) -> str:
        """The Python package index."""
        return self._given.index.url if self._given.index is not None else public_index()

    def _ask(self, index: str, names: Sequence[str]) -> dict[str, Wheels]:
        """What the index has of these packages, as far as it tells; one page that it does not give is enough."""
        new = [name for name in names if (index, name) not in self._known]
        for name in new[:1]:
            self._page(index, name)  # alone: whether it tells sizes at all is found out with one question
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: self._page(index, name), new[1:]))
        return {name: wheels for name in names if (wheels := self._known.get((index, name))) is not None}

    def _page(self, index: str, name: str) -> None:
        if not index or index in self._silent:
            return
        body = sources.fetch(self._given, f"{index}/{name}/", JSON)
        self._known[index, name] = found = None if body is None else read_page(body)
        if found is None:
            self._silent.add(index)


def public_index() -> str:
    """The Python package index where this host names none: which one that is, uv says. Empty where it does not."""
    argv = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "-", "--emit-index-url", "--offline"]
    argv += ["--python", sys.executable, "--no-config", "--no-header", "--quiet", "--color", "never"]
    done = capture(argv, env={name: value for name, value in os.environ.items() if not name.startswith("UV_")})
    found = re.search(r"^--index-url (\S+)$", done.out, re.MULTILINE)
    return found[1] if found else ""


def read_page(body: bytes) -> Wheels | None:
    """The wheels of a package's page as an index gives it in JSON; None where it is no such page, or has no sizes."""
    try:
        document: Any = json.loads(body)
        files = [file for file in document["files"] if str(file["filename"]).endswith(".whl")]
        return {str(file["hashes"]["sha256"]): (str(file["filename"]), int(file["size"])) for file in files}
    except (ValueError, KeyError, TypeError):  # a UnicodeDecodeError is a ValueError
        return None
