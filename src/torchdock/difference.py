"""Where two images that were read differ: in which files and values, and what each kind of difference means.

Pure: nothing here asks an engine or reads a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from torchdock.saved import Entry, Layer, LayerName, SavedImage, printable

# What each kind of difference means, for the person who has to find the step that made it.
_LEFT = "one build has no such file: another package, or something a step left behind (a cache, a log)"
_OTHER_TOOL = "the engine or BuildKit is another version"
MEANINGS = {
    "content": "content: another wheel or package was installed, or a file is generated with a name, a time or an "
    "order in it that differs from build to build",
    "time": "time: a step wrote it after the last `touch -d @$SOURCE_DATE_EPOCH` of its script, or out of its reach",
    "mode": "mode: a step created it under the caller's umask; the script has to set `umask` or `chmod`",
    "owner": "owner: a step ran as another user or unpacked an archive with its owners; `chown` in the script",
    "type": "type: one build has a file where the other has a folder, link or device",
    "link": "link: it points elsewhere",
    "device": "device: its numbers differ",
    "xattrs": "xattrs: extended attributes (capabilities, ACLs) that one build set, or that one engine's disk drops",
    "header": f"header: records of the tar that no file system shows differ; {_OTHER_TOOL}",
    "order": f"order: the same files stand in the tar in another order; {_OTHER_TOOL}",
    "only in first": f"only in first: {_LEFT}",
    "only in second": f"only in second: {_LEFT}",
}
RAW = (
    "every file is equal in content, time, mode and owner: the bytes of the tar differ in raw headers or padding, so "
    "another engine or BuildKit version wrote it"
)
STORES = (
    "Every file that a container of them sees is equal in content, time, mode and owner. One was built by an engine "
    "with the overlay2 store, the other by one with containerd's, which leaves out of a layer what a step touched and "
    "did not change, and marks of new folders: layers are equal to the bit among engines with the same store alone."
)


# --- how two layers differ ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileDifference:
    """A file that differs: which of MEANINGS, and the values on both sides as text (empty where it is not there)."""

    path: str
    what: tuple[str, ...]
    first: str
    second: str

    def document(self) -> dict[str, Any]:
        return {"path": self.path, "what": list(self.what), "first": self.first, "second": self.second}


def compare_layers(first: Sequence[Entry], second: Sequence[Entry]) -> list[FileDifference]:
    """Every file that differs, in the order of ``first``, then those that only ``second`` has. Pure.

    A path that stands more than once in a tar is compared occurrence by occurrence. Where all entries are equal and
    only their order is not, that is one difference, at the first path that is out of place.
    """
    one, two = _by_path(first), _by_path(second)
    found = []
    for key, entry in one.items():
        if key not in two:
            found.append(FileDifference(entry.path, ("only in first",), _whole(entry), ""))
        elif entry != two[key]:
            found.append(_difference(entry, two[key]))
    found += [
        FileDifference(entry.path, ("only in second",), "", _whole(entry))
        for key, entry in two.items()
        if key not in one
    ]
    if not found:
        for here, there in zip(first, second, strict=True):
            if here.path != there.path:
                return [FileDifference(here.path, ("order",), printable(here.path), printable(there.path))]
    return found


def _by_path(entries: Sequence[Entry]) -> dict[tuple[str, int], Entry]:
    seen: Counter[str] = Counter()
    found = {}
    for entry in entries:
        found[entry.path, seen[entry.path]] = entry
        seen[entry.path] += 1
    return found


def _difference(first: Entry, second: Entry) -> FileDifference:
    one, two = _values(first), _values(second)
    # Another type has another content, link and device: one word is enough.
    kinds = [kind for kind in one if one[kind] != two[kind]]
    if "type" in kinds:
        kinds = [kind for kind in kinds if kind not in ("content", "link", "device")]
    texts = [", ".join(_text(entry, kind) for kind in kinds) for entry in (first, second)]
    return FileDifference(first.path, tuple(kinds), *texts)


def _values(entry: Entry) -> dict[str, object]:
    return {
        "type": entry.type,
        "content": (entry.size, entry.sha256),
        "link": entry.link,
        "device": entry.device,
        "mode": entry.mode,
        "owner": (entry.uid, entry.gid, entry.uname, entry.gname),
        "time": entry.mtime,
        "xattrs": entry.xattrs,
        "header": entry.extended,
    }


def _text(entry: Entry, kind: str) -> str:
    if kind == "content":
        return f"{entry.size} bytes, sha256 {entry.sha256[:12]}"
    if kind == "mode":
        return f"{entry.mode:04o}"
    if kind == "owner":
        names = f" ({printable(entry.uname)}:{printable(entry.gname)})" if entry.uname or entry.gname else ""
        return f"{entry.uid}:{entry.gid}{names}"
    if kind == "time":
        return _time(entry.mtime)
    if kind == "device":
        return "{}:{}".format(*entry.device)
    if kind in ("xattrs", "header"):
        records = entry.xattrs if kind == "xattrs" else entry.extended
        shown = [f"{printable(name)}={hashlib.sha256(_bytes(value)).hexdigest()[:12]}" for name, value in records]
        return " ".join(shown) or "none"
    return printable(entry.link if kind == "link" else entry.type)


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _time(nanoseconds: int) -> str:
    seconds, part = divmod(nanoseconds, 10**9)
    try:
        day = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a time that no calendar has
        return f"@{seconds}.{part:09d}"
    return day + (f".{part:09d}".rstrip("0") if part else "") + "Z"


def _whole(entry: Entry) -> str:
    if entry.type == "file":
        return f"file, {_text(entry, 'content')}"
    return printable(f"{entry.type} to {entry.link}" if entry.link else entry.type)


_OPAQUE, _WHITEOUT = ".wh..wh..opq", ".wh."


def tree(layers: Iterable[Layer]) -> dict[str, Entry]:
    """The files that a container sees of these layers, the lowest first, by path (OCI image spec, layer.md). Pure."""
    found: dict[str, Entry] = {}

    def remove_below(folder: str) -> None:
        for path in [path for path in found if path.startswith(f"{folder}/")]:
            del found[path]

    for layer in layers:
        for entry in layer.entries:  # whiteouts are about the layers below, wherever in their own they stand
            folder, slash, name = entry.path.rpartition("/")
            if name == _OPAQUE and folder in found:
                remove_below(folder)
            elif name.startswith(_WHITEOUT):
                hidden = f"{folder}{slash}{name.removeprefix(_WHITEOUT)}"
                if found.pop(hidden, None) is not None:
                    remove_below(hidden)
        for entry in layer.entries:
            if not entry.path.rpartition("/")[2].startswith(_WHITEOUT):
                before = found.get(entry.path)
                if before is not None and before.type == "folder" != entry.type:
                    remove_below(entry.path)
                found[entry.path] = entry
    return found


# --- how two configurations differ ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConfigDifference:
    """A value of the configuration that differs, as JSON text; None where it is not there."""

    key: str
    first: str | None
    second: str | None


def compare_config(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[ConfigDifference]:
    """The values that differ between two image configurations (OCI image spec, config.md), by dotted key. Pure.

    Environment variables go by name. The digests of the layers are left out: the layers are compared themselves.
    """
    one, two = dict(_flat("", first)), dict(_flat("", second))
    keys = sorted(one.keys() | two.keys(), key=_natural)
    return [ConfigDifference(key, one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)]


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if key == "rootfs.diff_ids":
        return
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}" if key else str(name), inner)
    elif key in ("config.Env", "container_config.Env") and _are_variables(value):
        for pair in value:
            name, _, text = pair.partition("=")
            yield f"{key}[{name}]", json.dumps(text)
        yield f"{key} (order)", json.dumps([pair.partition("=")[0] for pair in value])
    elif isinstance(value, list) and any(isinstance(inner, (Mapping, list)) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(f"{key}[{index}]", inner)
    else:
        yield key, json.dumps(value, sort_keys=True)


def _are_variables(value: Any) -> bool:
    """A list of NAME=VALUE, no name twice."""
    if not isinstance(value, list) or not all(isinstance(pair, str) for pair in value):
        return False
    return len({pair.partition("=")[0] for pair in value}) == len(value)


def _natural(key: str) -> list[tuple[int, str]]:
    """history[9] before history[10]."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,9})", key)]


# --- how two images differ ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerComparison:
    """One layer on both sides: its digests (None where that image has no such layer), and what differs in it.

    ``note``: a sentence where the differing files do not say everything.
    """

    name: str
    step: str
    first: str | None
    second: str | None
    differences: tuple[FileDifference, ...] = ()
    note: str = ""

    @property
    def equal(self) -> bool:
        return self.first == self.second

    def document(self) -> dict[str, Any]:
        differences = [difference.document() for difference in self.differences]
        return {**vars(self), "equal": self.equal, "differences": differences}


@dataclass(frozen=True)
class Comparison:
    """Two images, compared. ``equal`` is equal configuration digests, which hold the layers' digests.

    Attributes:
        first: what the first one is called; ``second`` likewise.
        first_id: the digest of its configuration; ``second_id`` likewise.
        config: the values of the configuration that differ.
        notes: sentences for people (another base, an image that was kept).
    """

    first: str
    second: str
    first_id: str
    second_id: str
    layers: tuple[LayerComparison, ...]
    config: tuple[ConfigDifference, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return self.first_id == self.second_id

    @property
    def by_store(self) -> bool:
        """Engines with different image stores may have built them: folders or their marks are missing on one side."""
        missing = [one for layer in self.layers for one in layer.differences if not (one.first and one.second)]
        all_missing = len(missing) == sum(len(layer.differences) for layer in self.layers)
        marks = [one for one in missing if "folder" in (one.first, one.second) or one.path.endswith(f"/{_OPAQUE}")]
        return bool(marks) and all_missing and not self.config

    def document(self) -> dict[str, Any]:
        """As ``verify --json`` prints it; every differing file is in it."""
        return {
            "equal": self.equal,
            **vars(self),
            "layers": [layer.document() for layer in self.layers],
            "config": [vars(difference) for difference in self.config],
            "notes": list(self.notes),
        }


def compare(first: str, one: SavedImage, second: str, two: SavedImage) -> Comparison:
    """Compare two images that were read; layers with the same name belong together. Pure."""
    both = pairs(one.names, one.diff_ids, two.names, two.diff_ids)
    layers = [_compare_layer(pair, one, two) for pair in both]
    config: list[ConfigDifference] = []
    notes: tuple[str, ...] = ()
    if one.digest != two.digest:
        config = compare_config(one.document, two.document)
        if not config and all(layer.equal for layer in layers):
            notes = ("The configurations hold the same values in other bytes: another BuildKit version wrote them.",)
    return Comparison(first, second, one.digest, two.digest, tuple(layers), tuple(config), notes)


def pairs(
    names: Sequence[LayerName], diff_ids: Sequence[str], other_names: Sequence[LayerName], other_diff_ids: Sequence[str]
) -> list[LayerComparison]:
    """The layers of two images side by side, by their names; nothing compared yet but the digests."""
    one = {name.name: (name.step, digest) for name, digest in zip(names, diff_ids, strict=True)}
    two = {name.name: (name.step, digest) for name, digest in zip(other_names, other_diff_ids, strict=True)}
    found = []
    for name in dict.fromkeys((*one, *two)):
        step, here = one.get(name, ("", None))
        other_step, there = two.get(name, ("", None))
        found.append(LayerComparison(name, step or other_step, here, there))
    return found


def _compare_layer(layer: LayerComparison, one: SavedImage, two: SavedImage) -> LayerComparison:
    if layer.equal:
        return layer
    none = Layer("", ())
    here = one.layers.get(layer.first) if layer.first else none
    there = two.layers.get(layer.second) if layer.second else none
    if here is None or there is None:  # `docker history` named the layers otherwise than the configuration does
        return replace(layer, note="its files were not looked into")
    differences = tuple(compare_layers(here.entries, there.entries))
    note = ""
    if not differences and layer.first and layer.second:
        note = RAW
    if here.trailing or there.trailing:
        which = "both images" if here.trailing and there.trailing else f"the {'first' if here.trailing else 'second'}"
        note = f"{note}; " if note else ""
        note += f"the tar of {which} goes on after what can be read of it, so more may differ: do not trust that image"
    return replace(layer, differences=differences, note=note)
