"""CDI specifications: which devices the files of this host name, and what they say of them.

Reads JSON and the part of YAML that `nvidia-ctk cdi generate` writes; of anything else the names alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KIND = "nvidia.com/gpu"
# Where the container engines look, the folder that goes before the other last.
FOLDERS = ("/etc/cdi", "/var/run/cdi")


@dataclass(frozen=True)
class Node:
    """A device node: its path on the host, and the numbers that the file says it has, None where it says none."""

    path: str
    major: int | None = None
    minor: int | None = None


@dataclass(frozen=True)
class Device:
    """A device that a specification names, with the nodes and files of the host that it brings."""

    name: str
    nodes: tuple[Node, ...] = ()
    mounts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Specification:
    """One file. ``common``: what every device of it brings. ``error``: why it cannot be read, else empty."""

    path: Path
    devices: tuple[Device, ...] = ()
    common: Device = Device("")
    error: str = ""


@dataclass(frozen=True)
class Catalogue:
    """All files for NVIDIA's GPUs, and those that cannot be read, in the order in which engines read them."""

    files: tuple[Specification, ...] = ()

    @property
    def devices(self) -> Mapping[str, Device]:
        """The devices by name as an engine resolves them: of a later folder before an earlier one's; of one that two
        files of a folder name, none.
        """
        by_folder: dict[Path, dict[str, list[Device]]] = {}
        for file in self.files:
            names = by_folder.setdefault(file.path.parent, {})
            for device in file.devices:
                names.setdefault(device.name, []).append(device)
        found: dict[str, Device] = {}
        for names in by_folder.values():
            for name, named in names.items():
                if len(named) == 1:
                    found[name] = named[0]
                else:
                    found.pop(name, None)
        return found

    @property
    def digest(self) -> str:
        """Names what these files say."""
        return hashlib.sha256(repr(self.files).encode()).hexdigest()[:12]


def gather(folders: Sequence[str] = FOLDERS) -> Catalogue:
    """Read the files of these folders; one that cannot be read is in the catalogue, with its error."""
    found = []
    for folder in dict.fromkeys(os.path.realpath(folder) for folder in folders):
        for path in sorted(Path(folder).glob("*")):
            if path.suffix not in (".json", ".yaml", ".yml") or path.is_dir():
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "it is no text"
                found.append(Specification(path, error=str(why)))
                continue
            if KIND in text:
                found.append(read(path, text))
    return Catalogue(tuple(found))


def read(path: Path, text: str) -> Specification:
    """What a file for NVIDIA's GPUs says. Pure.

    Of a file that is written in another way than `nvidia-ctk` does, the names alone.
    """
    try:
        document = json.loads(text) if path.suffix == ".json" else _Yaml(text).document()
        if document["kind"] != KIND:
            return Specification(path)
        devices = tuple(_device(str(one["name"]), one) for one in document.get("devices") or ())
        return Specification(path, devices, _device("", document))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if path.suffix == ".json":
            return Specification(path, error=f"it is no CDI specification ({error})")
        names = re.findall(r"^\s*(?:-\s+)?[\"']?name[\"']?:\s*[\"']?([\w:.-]+)", text, re.MULTILINE)
        return Specification(path, tuple(Device(name) for name in names))


def _device(name: str, document: Mapping[str, Any]) -> Device:
    edits = document.get("containerEdits") or {}

    def number(node: Mapping[str, Any], key: str) -> int | None:
        return None if node.get(key) is None else int(node[key])

    nodes = tuple(
        Node(str(one.get("hostPath") or one["path"]), number(one, "major"), number(one, "minor"))
        for one in edits.get("deviceNodes") or ()
    )
    return Device(name, nodes, tuple(str(one["hostPath"]) for one in edits.get("mounts") or ()))


class _Yaml:
    """Blocks of mappings and sequences, plain and quoted scalars, empty or JSON-like flows; a ValueError else."""

    def __init__(self, text: str) -> None:
        lines = [line.rstrip() for line in text.splitlines()]
        kept = [line for line in lines if line.strip() and not re.match(r"\s*#|---$|\.\.\.$", line)]
        self._lines = [(len(line) - len(line.lstrip(" ")), line.lstrip(" ")) for line in kept]
        self._at = 0

    def document(self) -> Any:
        found = self._block(0)
        if self._at < len(self._lines):
            raise ValueError(f"line {self._lines[self._at][1]!r} is not understood")
        return found

    def _block(self, indent: int) -> Any:
        return self._sequence(indent) if self._lines[self._at][1].startswith("-") else self._mapping(indent)

    def _mapping(self, indent: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self._at < len(self._lines):
            depth, line = self._lines[self._at]
            if depth != indent or line.startswith("- ") or line == "-":
                break
            key, colon, rest = line.partition(":")
            if not colon or (rest and not rest.startswith(" ")):
                raise ValueError(f"line {line!r} is not understood")
            self._at += 1
            found[_scalar(key)] = self._value(rest.strip(), indent)
        return found

    def _sequence(self, indent: int) -> list[Any]:
        found = []
        while self._at < len(self._lines):
            depth, line = self._lines[self._at]
            if depth != indent or not (line.startswith("- ") or line == "-"):
                break
            rest = line[1:].lstrip(" ")
            if re.match(r"[\w\"'./-]+:(\s|$)", rest):  # a mapping that begins on this line
                inner = indent + len(line) - len(rest)
                self._lines[self._at] = (inner, rest)
                found.append(self._mapping(inner))
            else:
                self._at += 1
                found.append(self._value(rest, indent))
        return found

    def _value(self, rest: str, indent: int) -> Any:
        if rest and not rest.startswith("#"):
            return _scalar(rest)
        if self._at == len(self._lines):
            return None
        depth, line = self._lines[self._at]
        if depth > indent or (depth == indent and line.startswith("- ")):  # nvidia-ctk does not indent sequences
            return self._block(depth)
        return None


def _scalar(text: str) -> Any:
    if text[:1] in ('"', "'"):
        end = text.find(text[0], 1)
        if end < 0 or "\\" in text:
            raise ValueError(f"{text} is not understood")
        return text[1:end]
    text = re.sub(r"\s+#.*", "", text)
    if text[:1] in ("[", "{"):
        return json.loads(text)
    if text[:1] in ("|", ">", "&", "*", "!"):
        raise ValueError(f"{text} is not understood")
    return text
