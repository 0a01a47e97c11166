"""Locks in requirements format: what a lock is for, its pins, whether it can be used, and writing it whole or not.

A lock is a folder ``docker/locks/<variant>/`` with one file a layer. Each begins with a header that says what it was
resolved for; :func:`check` refuses one that is for something else before a build finds out in the middle.

The tools are in two layers: what was there when ``tools`` was laid, and, in the last and small one, what was added or
moved since (:func:`lay`). So a changed tool rebuilds that tool.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from torchdock.errors import InputError, read_text
from torchdock.variants import Variant

# One lock file a layer, from the rarest change to the most frequent. Other files beside them (devel.txt) are other
# targets' and no part of the environment.
LAYERS = ("cuda", "torch", "tools", "recent")
# Above this many packages, installing them again costs about what laying the tools anew costs once.
MOST_RECENT = 30
REQUIREMENTS = Path("docker/requirements.in")
NOTE = "# Written by `invoke lock` from docker/requirements.in and docker/variants.toml; change those, not this.\n"


@dataclass(frozen=True)
class Pin:
    """One line of a lock: the package's name as PEP 503 normalises it, its version, and the whole entry."""

    name: str
    version: str
    text: str


@dataclass(frozen=True)
class Header:
    """The first line of a lock file: what it was resolved for.

    Attributes:
        index: the upstream address of the index that torch comes from; empty where the Python package index has it, and
            in the other layers. A host's mirror replaces it, and is never written here.
        requirements: in ``recent.txt``, 12 hex digits of docker/requirements.in, so that an older lock is noticed. In
            this file alone: the others are inputs of larger layers, which a new tool must not rebuild.
        environment: in the lock of a workspace, 12 hex digits of the versions of the variant's own lock.
        download: bytes of the wheels that a build of the layer downloads, by architecture; without those that no index
            told when the layer was written.
    """

    variant: str
    layer: str
    python: str
    architectures: tuple[str, ...]
    index: str = ""
    requirements: str = ""
    environment: str = ""
    download: Mapping[str, int] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The header as it is written."""
        words = {**vars(self), "architectures": ",".join(self.architectures)}
        words["download"] = ",".join(f"{architecture}:{size}" for architecture, size in self.download.items())
        return "# torchdock: " + " ".join(f"{key}={value}" for key, value in words.items() if value) + "\n"


def header(text: str) -> Header | None:
    """The header of a lock file; None where it has none."""
    first = text.partition("\n")[0]
    words = dict(re.findall(r"(\w+)=(\S+)", first)) if first.startswith("# torchdock: ") else {}
    if not {"variant", "layer", "python", "architectures"} <= set(words):
        return None
    return Header(
        variant=words["variant"],
        layer=words["layer"],
        python=words["python"],
        architectures=tuple(words["architectures"].split(",")),
        index=words.get("index", ""),
        requirements=words.get("requirements", ""),
        environment=words.get("environment", ""),
        download={name: int(size) for name, size in re.findall(r"([\w.]+):(\d+)", words.get("download", ""))},
    )


def parse(text: str, origin: str) -> dict[str, Pin]:
    """The pins of a lock by name.

    Raises:
        InputError: an entry is not ``name==version`` with at least one SHA-256; names the file and the entry.
    """
    pins: dict[str, Pin] = {}
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
        name = canonicalize_name(match[1])
        hashes = re.findall(r"--hash=sha256:[0-9a-f]+", entry)
        marker = re.search(r";\s*(.*?)\s*--hash", entry)
        head = f"{match[1]}=={match[2]}" + (f" ; {marker[1]}" if marker else "")
        pins[name] = Pin(name, match[2], " \\\n    ".join([head, *hashes]) + "\n")
    return pins


def folder(root: Path, variant: str) -> Path:
    """Where the lock of a variant is."""
    return root / "docker" / "locks" / variant


def layers(variant: Variant) -> tuple[str, ...]:
    """The layers of wheels that a variant has: no CUDA layer without CUDA."""
    return LAYERS if variant.cuda else LAYERS[1:]


def layer_of(name: str, *, own_index: bool = False) -> str:
    """Which layer a package belongs to, by its normalised name.

    ``own_index``: the variant's torch comes from an index of its own. Its torch layer is installed from there first,
    and that index has a triton of the same version with other hashes than the Python package index, where it is locked.
    """
    if name in ("torch", "torchvision") or (name == "triton" and not own_index):
        return "torch"
    if name == "triton" or (name.startswith(("nvidia-", "cuda-")) and name != "nvidia-ml-py"):
        return "cuda"
    return "tools"


def texts(root: Path, variant: Variant) -> dict[str, str]:
    """The files of a variant's lock that there are, by layer.

    Raises:
        InputError: one cannot be read.
    """
    paths = {layer: folder(root, variant.name) / f"{layer}.txt" for layer in LAYERS}
    return {layer: read_text(path, str(path.relative_to(root))) for layer, path in paths.items() if path.is_file()}


def read(root: Path, variant: str, layers: Iterable[str] = LAYERS) -> dict[str, Pin]:
    """All pins of a variant, over its layers; empty where it has no lock.

    A package may be in two of them: ``tools`` has the version that ``recent`` replaces.

    Raises:
        InputError: see :func:`parse`.
    """
    pins: dict[str, Pin] = {}
    for path in (folder(root, variant) / f"{layer}.txt" for layer in layers):
        if path.is_file():
            pins |= parse(read_text(path, str(path.relative_to(root))), str(path.relative_to(root)))
    return pins


def difference(old: Mapping[str, Pin], new: Mapping[str, Pin]) -> list[tuple[str, str, str]]:
    """(name, old version, new version) of each package that differs; an empty version where it is absent."""
    rows = []
    for name in sorted({*old, *new}):
        before = old[name].version if name in old else ""
        after = new[name].version if name in new else ""
        if before != after:
            rows.append((name, before, after))
    return rows


def requirements(root: Path) -> dict[int, Requirement]:
    """What docker/requirements.in asks for, by line number.

    Raises:
        InputError: a line is no requirement by name; names the line and why.
    """
    path = root / REQUIREMENTS
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{REQUIREMENTS} cannot be read ({error}). `git checkout {REQUIREMENTS}` restores it."
        ) from None
    found = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        if not line:
            continue
        problem = ""
        if line.startswith("-"):
            problem = "is an option; indexes are named in the environment (UV_DEFAULT_INDEX), files are not included"
        else:
            try:
                found[number] = Requirement(line)
            except InvalidRequirement as error:
                problem = f"is no requirement ({str(error).splitlines()[0]})"
            else:
                problem = "names a URL, which no lock by hash of an index can hold" if found[number].url else ""
        if problem:
            name = re.match(r"-*[\w.-]*", line)  # only this: a URL in such a line may carry a token
            word = name[0] if name else ""
            raise InputError(
                f"{REQUIREMENTS}:{number}: {word!r} {problem}. Write one package a line: a name, and versions if it "
                "matters, such as `einops>=0.8`. The locks are unchanged."
            )
    return found


def digest(asked: Iterable[Requirement]) -> str:
    """12 hex digits of requirements; spelling, comments and order do not matter."""
    lines = set()
    for requirement in asked:
        same = Requirement(str(requirement))
        same.name = canonicalize_name(same.name)
        lines.add(str(same))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]


def check(root: Path, variant: Variant, architecture: str) -> list[str]:
    """Whether the lock of a variant can be built for this architecture (as ``uname -m`` names it); reads files only.

    Returns what is worth a warning: a lock that is older than its requirements.

    Raises:
        InputError: there is no lock, or it is for something else, or damaged; says which file and the remedy.
    """
    if architecture not in variant.architectures:
        raise InputError(
            f"The variant {variant.name} is for {', '.join(variant.architectures)}, not for {architecture}: there are "
            "no wheels of it. Choose another variant (`--variant`)."
        )
    names = [f"{layer}.txt" for layer in layers(variant)]
    there = [name for name in names if (folder(root, variant.name) / name).is_file()]
    if not there:
        where = f" where {variant.index_url.partition('://')[2]} can be reached" if variant.index else ""
        raise InputError(
            f"The variant {variant.name} has no lock in this clone yet: `invoke lock --variant {variant.name}`{where} "
            "writes it."
        )
    pins: dict[str, Pin] = {}
    found: Header | None = None
    for layer, name in zip(layers(variant), names, strict=True):
        path = folder(root, variant.name) / name
        text = read_text(path, str(path.relative_to(root))) if name in there else ""
        found = header(text)
        problem = "is missing" if name not in there else _mismatch(found, variant, layer, architecture)
        if problem:
            raise _unfit(f"{path.relative_to(root)} {problem}", variant)
        pins |= parse(text, str(path.relative_to(root)))
    for name, wanted in (("torch", variant.torch), ("torchvision", variant.torchvision)):
        locked = pins[name].version if name in pins else "none"
        if locked != wanted:
            raise _unfit(f"The lock of {variant.name} has {name} {locked}, docker/variants.toml says {wanted}", variant)
    _refuse_incomplete(root, variant, pins)
    assert found is not None  # recent.txt is the last layer
    return _age(root, variant.name, found)


def _refuse_incomplete(root: Path, variant: Variant, pins: Mapping[str, Pin]) -> None:
    """A lock that was resolved from these requirements and lacks one of them was cut."""
    try:
        asked = requirements(root)
    except InputError:
        return
    if is_older(root, variant.name, digest(asked.values())):  # then it is said that it is
        return
    lacking = [one.name for one in asked.values() if canonicalize_name(one.name) not in pins and one.marker is None]
    if lacking:
        raise _unfit(f"The lock of {variant.name} lacks {', '.join(lacking)}, which {REQUIREMENTS} asks for", variant)


def _mismatch(found: Header | None, variant: Variant, layer: str, architecture: str) -> str:
    """What a lock file's header says it is for instead; empty where it fits."""
    if found is None:
        return "does not begin with the line that says what it is for (`# torchdock: …`)"
    if found.variant != variant.name:
        return f"is for the variant {found.variant}, not for {variant.name}"
    if found.layer != layer:
        return f"is the layer {found.layer}, not {layer}"
    if found.python != variant.python:
        return f"is for Python {found.python}, and the variant {variant.name} has {variant.python}"
    if architecture not in found.architectures:
        return f"is for {', '.join(found.architectures)}, not for {architecture}"
    wanted = variant.index_url if layer == "torch" else ""
    if found.index != wanted:
        here, there = (index or "the Python package index" for index in (found.index, wanted))
        return f"takes its packages from {here}, and docker/variants.toml says {there}"
    return ""


def _unfit(problem: str, variant: Variant) -> InputError:
    return InputError(
        f"{problem}. `git checkout docker/locks` restores it, `invoke lock --variant {variant.name}` writes it anew."
    )


def _age(root: Path, variant: str, recent: Header) -> list[str]:
    try:
        asked = digest(requirements(root).values())
    except InputError as error:  # it decides nothing in a build, the lock does
        return [str(error)]
    if recent.requirements == asked:
        return []
    return [f"The lock of {variant} is older than {REQUIREMENTS}: `invoke lock` brings it up to date"]


def is_older(root: Path, variant: str, asked: str) -> bool:
    """Whether the lock of a variant was resolved from other requirements than those with this digest."""
    path = folder(root, variant) / "recent.txt"
    found = header(path.read_text()) if path.is_file() else None
    return path.parent.is_dir() and (found is None or found.requirements != asked)


@dataclass(frozen=True)
class Laid:
    """Which package is in which layer of a variant's lock.

    Attributes:
        layers: the pins of every layer that the variant has. A package of ``recent`` may be in ``tools`` too, with the
            version or the hashes that it replaces.
        anew: why ``tools`` is laid anew; empty where it stays as it is.
        changed: the layers whose pins, or what they are for, differ from what is there.
    """

    layers: Mapping[str, Mapping[str, Pin]]
    anew: str
    changed: frozenset[str]

    def __str__(self) -> str:
        """What the next build does with the tools, for people."""
        layer = self.layers["tools" if self.anew else "recent"]
        count = f"{len(layer)} package{'s' * (len(layer) != 1)}"
        if self.anew:
            return f"the next build lays the tools anew ({count}): {self.anew}"
        if layer and "recent" in self.changed:
            return f"the next build installs {count} in the layer of recent ones ({', '.join(layer)}), the tools stay"
        return "the tools stay as they are"

    def document(self) -> dict[str, Any]:
        """The same for programs: ``anew``, and the packages of ``recent``."""
        return {"anew": self.anew, "recent": list(self.layers["recent"])}


def lay(variant: Variant, pins: Mapping[str, Pin], there: Mapping[str, str], *, upgraded: bool = False) -> Laid:
    """Decide which layer each of these pins goes into. Pure.

    ``tools`` stays while it fits and all that it holds is wanted; what is new or differs goes to ``recent``. Else all
    goes to ``tools`` and ``recent`` is empty: the layer is laid anew once. ``there``: :func:`texts`; ``upgraded``:
    everything was, so that an old version of many a package would stay in the image below its new one.

    Raises:
        InputError: a file that is there is damaged; see :func:`parse`.
    """
    own = bool(variant.index)
    found: dict[str, dict[str, Pin]] = {layer: {} for layer in layers(variant)}
    for name, pin in sorted(pins.items()):
        found[layer_of(name, own_index=own)][name] = pin
    old = {layer: parse(text, f"docker/locks/{variant.name}/{layer}.txt") for layer, text in there.items()}
    misfits = {layer: _misfit(variant, layer, there.get(layer)) for layer in found}
    wanted, base = found["tools"], old.get("tools", {})
    recent = {name: pin for name, pin in wanted.items() if base.get(name) != pin}
    anew = misfits["tools"]
    if not anew and (gone := sorted({*base} - {*wanted})):
        anew = f"{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} no longer wanted"
    if not anew and recent and upgraded:
        anew = "everything was upgraded"
    if not anew and len(recent) > MOST_RECENT:
        anew = f"{len(recent)} packages were added or moved since it was laid, and {MOST_RECENT} are the most"
    if not anew:
        found["tools"], found["recent"] = dict(base), recent
    changed = {layer for layer, held in found.items() if misfits[layer] or held != old.get(layer)}
    return Laid(found, anew, frozenset(changed))


def _misfit(variant: Variant, layer: str, text: str | None) -> str:
    """Why a file of a lock cannot stay as it is, whatever is in it; empty where it can."""
    if text is None:
        return "nothing was locked yet"
    found = header(text)
    problem = next(filter(None, (_mismatch(found, variant, layer, one) for one in variant.architectures)), "")
    if not problem and found is not None and found.architectures != variant.architectures:
        problem = f"is for {', '.join(found.architectures)}, not for {', '.join(variant.architectures)}"
    return f"{layer}.txt {problem}" if problem else ""


def files(
    root: Path,
    variant: Variant,
    laid: Laid,
    asked: str,
    there: Mapping[str, str],
    download: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[Path, str | None]:
    """The files of a lock and what is in them; None for one that must not be there. Pure.

    ``asked`` is the digest of the requirements that the pins were resolved from, ``there`` :func:`texts`, ``download``
    what a build of the changed layers downloads (:attr:`Header.download`, by layer). A layer that did not change keeps
    the sizes that it has, or has not: its file is an input of an image, and must stay as it is.
    """
    written: dict[Path, str | None] = {
        folder(root, variant.name) / f"{layer}.txt": None for layer in there if layer not in laid.layers
    }
    for layer, pins in laid.layers.items():
        path = folder(root, variant.name) / f"{layer}.txt"
        if layer == "tools" and not laid.anew:
            written[path] = there[layer]
            continue
        said = Header(
            variant=variant.name,
            layer=layer,
            python=variant.python,
            architectures=variant.architectures,
            index=variant.index_url if layer == "torch" else "",
            requirements=asked if layer == "recent" else "",
        )
        if layer in laid.changed:
            said = dataclasses.replace(said, download=(download or {}).get(layer, {}))
        elif (old := header(there[layer])) is not None:
            said = dataclasses.replace(said, download=old.download)
        written[path] = said.line + NOTE + "".join(pin.text for _, pin in sorted(pins.items()))
    return written


def download_bytes(lock: Path, architecture: str) -> int | None:
    """What a lock file of wheels or Debian packages says that a build downloads for it, in bytes.

    ``architecture``: as ``uname -m`` names it. None where the file does not say it, or is not there; 0 where it has no
    packages.
    """
    try:
        text = lock.read_text(encoding="utf-8")
    except OSError:
        return None
    first = text.partition("\n")[0]
    said = re.search(r"\sdownload=(\S+)", first) if first.startswith("# torchdock:") else None
    sizes = {name: int(size) for name, size in re.findall(r"(?:([\w.-]+):)?(\d+)(?:,|$)", said[1] if said else "")}
    empty = not any(line.strip() and not line.startswith("#") for line in text.splitlines())
    # A file for one architecture names none.
    return sizes.get(architecture, sizes.get("", 0 if empty else None))


def replace(files: Mapping[Path, str | None]) -> None:
    """Write all of these files (None: remove it), or none of them.

    Every new file is complete before the first one takes the place of an old one, and an error or an interrupt puts
    the old ones back; they are kept by a second name, which needs no room on the disk.
    """
    waiting = {path: path.with_name(f".{path.name}.new") for path in files}
    old = {path: path.with_name(f".{path.name}.old") for path in files if path.exists()}
    made = [path.parent for path in files if not path.parent.exists()]
    done: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            waiting[path].write_text(text or "", encoding="utf-8")
        for path, kept in old.items():
            kept.unlink(missing_ok=True)  # of a run that was killed
            try:
                os.link(path, kept)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, kept)
        for path, text in files.items():
            done.append(path)
            if text is None:
                path.unlink(missing_ok=True)
            else:
                os.replace(waiting[path], path)
    except BaseException:
        for path in done:
            if path in old:
                os.replace(old[path], path)
            else:
                path.unlink(missing_ok=True)
        raise
    finally:  # whatever lies in a lock's folder would be an input of the image
        for path in (*waiting.values(), *old.values()):
            if path.is_file():
                path.unlink()
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
