"""Locks in requirements format: reading, splitting into layers, comparing; and resolving them anew with uv."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchdock.errors import InputError, TorchdockError
from torchdock.process import capture
from torchdock.sources import Sources
from torchdock.variants import Variant

# One lock file a layer, from the rarest change to the most frequent.
LAYERS = ("cuda", "torch", "tools")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")


@dataclass(frozen=True)
class Pin:
    """One line of a lock: the package's name as PEP 503 normalises it, its version, and the whole entry."""

    name: str
    version: str
    text: str


def parse(text: str, origin: str) -> dict[str, Pin]:
    """The pins of a lock by name.

    Raises:
        InputError: an entry is not ``name==version`` with at least one SHA-256; names the file and the entry.
    """
    pins = {}
    logical = re.sub(r"\\\n\s*", " ", text)
    for line in logical.splitlines():
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        match = re.match(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", entry)
        if match is None or not re.search(r"--hash=sha256:[0-9a-f]{64}(\s|$)", entry):
            raise InputError(
                f"{origin}: {entry[:80]!r} is not a pinned package with its hash. Locks are written by `invoke lock`; "
                "`git checkout docker/locks` restores them."
            )
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        hashes = re.findall(r"--hash=sha256:[0-9a-f]+", entry)
        marker = re.search(r";\s*(.*?)\s*--hash", entry)
        head = f"{match[1]}=={match[2]}" + (f" ; {marker[1]}" if marker else "")
        pins[name] = Pin(name, match[2], " \\\n    ".join([head, *hashes]) + "\n")
    return pins


def read(root: Path, variant: str) -> dict[str, Pin]:
    """All pins of a variant, over its layers.

    Raises:
        InputError: see :func:`parse`.
    """
    pins: dict[str, Pin] = {}
    for path in sorted((root / "docker" / "locks" / variant).glob("*.txt")):
        pins |= parse(path.read_text(), str(path.relative_to(root)))
    return pins


def layer_of(name: str) -> str:
    """Which layer a package belongs to, by its normalised name."""
    if name in ("torch", "torchvision", "triton"):
        return "torch"
    if name.startswith(("nvidia-", "cuda-")) and name != "nvidia-ml-py":
        return "cuda"
    return "tools"


def difference(old: Mapping[str, Pin], new: Mapping[str, Pin]) -> list[tuple[str, str, str]]:
    """(name, old version, new version) of each package that differs; an empty version where it is absent."""
    rows = []
    for name in sorted({*old, *new}):
        before = old[name].version if name in old else ""
        after = new[name].version if name in new else ""
        if before != after:
            rows.append((name, before, after))
    return rows


def resolve(root: Path, variant: Variant, sources: Sources, upgrade: str | None) -> dict[str, Pin]:
    """Resolve ``docker/requirements.in`` for every platform of the variant, keeping versions that are locked.

    ``upgrade``: a package to move, ``all``, or None to move nothing that need not move.

    Raises:
        InputError: the requirements cannot be satisfied, or differ between platforms; the text says which.
        TorchdockError: the index cannot be reached.
    """
    env = dict(os.environ)
    if sources.ca is not None:
        env["SSL_CERT_FILE"] = str(sources.ca)
    current = "".join(pin.text for pin in read(root, variant.name).values())
    moved = [] if upgrade is None else ["--upgrade"] if upgrade == "all" else ["--upgrade-package", upgrade]
    results = []
    with tempfile.TemporaryDirectory(prefix="torchdock-lock-") as folder:
        for platform in PLATFORMS:
            output = Path(folder, f"{platform}.txt")
            output.write_text(current)  # uv keeps the versions it finds in its output file
            argv = [str(Path(sys.executable).with_name("uv")), "pip", "compile", str(root / "docker/requirements.in")]
            argv += [
                "--python-version",
                variant.python,
                "--python-platform",
                platform,
                "--generate-hashes",
                "--no-config",
            ]
            argv += ["--no-header", "--no-annotate", "--quiet", "--output-file", str(output), *moved]
            done = capture(argv, timeout=600, env=env)
            if done.code != 0:
                text = " ".join(re.sub(r"[^\x20-\x7e]", " ", done.err).split())
                kind = InputError if "No solution" in text or "unsatisfiable" in text else TorchdockError
                raise kind(f"docker/requirements.in could not be resolved: {text[:800]} The locks are unchanged.")
            results.append(parse(output.read_text(), platform))
    if difference(results[0], results[1]):
        rows = ", ".join(name for name, *_ in difference(results[0], results[1]))
        raise InputError(
            f"These packages resolve differently on x86_64 and aarch64: {rows}. One lock serves both; constrain them "
            "in docker/requirements.in. The locks are unchanged."
        )
    return results[0]


def write(root: Path, variant: Variant, pins: Mapping[str, Pin]) -> None:
    """Write the lock of each layer; every file is complete before the first one takes the place of an old one."""
    folder = root / "docker" / "locks" / variant.name
    ready = []
    try:
        for layer in LAYERS:
            entries = [pin.text for name, pin in sorted(pins.items()) if layer_of(name) == layer]
            ready.append((folder / f".{layer}.txt.new", folder / f"{layer}.txt"))
            ready[-1][0].write_text("".join(entries))
    except BaseException:  # a file left behind here would be an input of the image
        for waiting, _ in ready:
            if waiting.is_file():
                waiting.unlink()
        raise
    for waiting, final in ready:
        waiting.replace(final)
