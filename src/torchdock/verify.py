"""The same to the bit: two images compared by layer and file, and what differs named so that a person can act.

Equal means equal configuration digests; the configuration holds the digests of the layers (OCI image spec, config.md:
``rootfs.diff_ids``). Where they differ, ``docker save`` is read once per image as a stream, and only the layers that
differ are looked into. Nothing of an image is unpacked or run, so one that a stranger built may be compared.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Protocol, cast

from torchdock import base as bases
from torchdock import image, variants
from torchdock.console import Reporter, Step
from torchdock.engine import Engine
from torchdock.errors import InputError, TorchdockError
from torchdock.sources import Sources
from torchdock.state import CloneState
from torchdock.variants import GB, Variant

CHUNK = 1 << 20  # bytes that are read and hashed at a time
DOCUMENT_BYTES = 8 << 20  # no configuration or manifest is larger; all of one image together: eight times that
SHOWN = 40  # differing files, and as many values of the configuration, that are printed; the report has all of them

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


# --- what is in a layer ---------------------------------------------------------------------------------------------


class Readable(Protocol):
    """Something that gives at most ``size`` bytes, and none at its end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Entry:
    """One entry of a layer's tar (OCI image spec, layer.md), whole but for its content, of which this is the digest.

    Attributes:
        mode: the mode field as it stands in the header, permissions in the lowest 12 bits.
        size: bytes.
        mtime: nanoseconds since 1970.
        link: the target of a symbolic or hard link.
        device: major and minor number.
        xattrs: extended attributes, sorted.
        extended: PAX records that say something else than the fields above, sorted.
        sha256: of the content as hex; empty for what has none.
    """

    path: str
    type: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    uname: str = ""
    gname: str = ""
    size: int = 0
    mtime: int = 0
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, str], ...] = ()
    extended: tuple[tuple[str, str], ...] = ()
    sha256: str = ""


_TYPES = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "named pipe",
}
_XATTRS = ("SCHILY.xattr.", "LIBARCHIVE.xattr.")
# PAX records that an Entry has as a field.
_FIELDS = {"path", "linkpath", "size", "uid", "gid", "uname", "gname", "mtime"}
_UNREADABLE = (tarfile.TarError, zlib.error, OSError, EOFError, ValueError, OverflowError, RecursionError)


class _Stream:
    """A file that goes forward only: all that tarfile needs to read from the beginning to the end.

    tarfile's own stream mode ("r|") reads blocks ahead, which hides where an archive ends; here each byte is read once
    and, if wished, goes into a digest.
    """

    def __init__(self, source: Readable, size: int | None = None, *, hashed: bool = False) -> None:
        self._source = source
        self._left = size
        self._ahead = b""
        self._position = 0
        self._digest = hashlib.sha256() if hashed else None

    def _take(self, size: int) -> bytes:
        if self._left is not None:
            size = min(size, self._left)
        block = self._source.read(size) if size else b""
        if self._left is not None:
            self._left -= len(block)
        if self._digest is not None:
            self._digest.update(block)
        return block

    def peek(self, size: int) -> bytes:
        """The next bytes, fewer at the end; they are read again afterwards."""
        while len(self._ahead) < size and (block := self._take(size - len(self._ahead))):
            self._ahead += block
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """Exactly so many bytes, fewer at the end only."""
        parts = [self._ahead[:size]]
        self._ahead = self._ahead[size:]
        missing = size - len(parts[0])
        while block := self._take(missing):
            parts.append(block)
            missing -= len(block)
        self._position += size - missing
        return b"".join(parts)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.StreamError("it goes forward only")
        while self._position < position and self.read(min(CHUNK, position - self._position)):
            pass

    def finish(self) -> tuple[str, bool]:
        """Read to the end: the digest of everything as ``sha256:…``, and whether the rest had other bytes than 0."""
        rest = False
        while block := self.read(CHUNK):
            rest = rest or bool(block.strip(b"\0"))
        assert self._digest is not None
        return f"sha256:{self._digest.hexdigest()}", rest


def _members(stream: _Stream) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    archive = tarfile.TarFile(fileobj=cast(IO[bytes], stream), errorlevel=2)
    while (member := archive.next()) is not None:
        # It would keep every one of them: a layer has tens of thousands.
        cast(Any, archive).members = []
        yield archive, member


def _entries(stream: _Stream) -> Iterator[Entry]:
    for archive, member in _members(stream):
        stored = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
        content = ""
        if stored:
            plain = cast(Readable, archive.extractfile(member)) if member.issparse() else _Stream(stream, member.size)
            digest = hashlib.sha256()
            while block := plain.read(CHUNK):
                digest.update(block)
            content = digest.hexdigest()
        pax = member.pax_headers
        device = (member.devmajor, member.devminor) if member.ischr() or member.isblk() else (0, 0)
        yield Entry(
            path=member.name,
            type=_TYPES.get(member.type, f"type {member.type!r}"),
            mode=member.mode,
            uid=member.uid,
            gid=member.gid,
            uname=member.uname,
            gname=member.gname,
            size=member.size if stored else 0,
            mtime=_nanoseconds(pax.get("mtime", ""), member.mtime),
            link=member.linkname if member.islnk() or member.issym() else "",
            device=device,
            xattrs=tuple(sorted((name, value) for name, value in pax.items() if name.startswith(_XATTRS))),
            extended=tuple(
                sorted(
                    (name, value)
                    for name, value in pax.items()
                    if name not in _FIELDS and not name.startswith((*_XATTRS, "GNU.sparse."))
                )
            ),
            sha256=content,
        )


def _nanoseconds(record: str, seconds: float) -> int:
    """The time of a PAX record to the nanosecond (tarfile makes a float of it); of the header where there is none."""
    match = re.fullmatch(r"(-?)(\d{1,18})(?:\.(\d{1,9})\d*)?", record)
    if match is None:
        return int(seconds) * 10**9
    sign, whole, part = match.groups()
    value = int(whole) * 10**9 + int((part or "").ljust(9, "0"))
    return -value if sign else value


@dataclass(frozen=True)
class Layer:
    """A layer that was read: its diff ID (of the uncompressed tar, ``sha256:…``) and its entries in their order.

    ``trailing``: bytes other than 0 follow the end of the archive, or a header in the middle of it cannot be read.
    """

    digest: str
    entries: tuple[Entry, ...]
    trailing: bool = False


_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


def read_layer(source: Readable) -> Layer:
    """Read a layer, a tar or one compressed with gzip, from its beginning to its end; contents pass by in pieces.

    Raises:
        TorchdockError: it is no tar, or is compressed with zstd.
    """
    stream = _Stream(source)
    head = stream.peek(4)
    if head.startswith(_ZSTD):
        raise TorchdockError(
            "The layers of this image are compressed with zstd, which cannot be read here, so only its digests are "
            "known to differ. Build it without `compression=zstd`, or compare it on an engine with the overlay2 store."
        )
    try:
        plain = cast(Readable, gzip.GzipFile(fileobj=cast(IO[bytes], stream))) if head.startswith(_GZIP) else stream
        tar = _Stream(plain, hashed=True)
        entries = tuple(_entries(tar))
        digest, trailing = tar.finish()
    except _UNREADABLE as error:
        raise TorchdockError(
            f"A layer cannot be read as a tar ({printable(str(error))}). Build or pull the image anew."
        ) from None
    return Layer(digest, entries, trailing)


# --- how two layers differ ------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Text of an image that may stand on a terminal: control characters, bidirectional marks and such are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


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
        pairs = entry.xattrs if kind == "xattrs" else entry.extended
        shown = [f"{printable(name)}={hashlib.sha256(_bytes(value)).hexdigest()[:12]}" for name, value in pairs]
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


# --- what a layer is called -----------------------------------------------------------------------------------------

# The steps of the Dockerfiles: `sh /run/system.sh …`, `sh /run/wheels.sh LAYER …`, `sh /run/devel.sh`, `… suite.sh …`.
_STEP = re.compile(r"\bsh /run/(?:[\w/]+/)?(system|wheels|devel|suite)\.sh\b(?: ([a-z][a-z0-9-]{0,19})(?!\S))?")
# Instructions that make no layer; as a builder without BuildKit writes them, `/bin/sh -c #(nop)` stands before.
_NO_LAYER = re.compile(
    r"(/bin/sh -c #\(nop\) +)?"
    r"(ARG|CMD|ENTRYPOINT|ENV|EXPOSE|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|SHELL|STOPSIGNAL|USER|VOLUME)\b"
)


@dataclass(frozen=True)
class LayerName:
    """What a layer is called (base, system, cuda, torch, tools, devel, suite, else ``layer N``), and its step."""

    name: str
    step: str = ""


def name_layers(history: Sequence[Mapping[str, Any]], count: int) -> list[LayerName]:
    """Names for so many layers from the ``history`` of a configuration, the oldest first. Pure.

    What comes before the first step of our Dockerfiles is the base. A history that does not fit the number of layers
    names nothing. No name is given twice.
    """
    steps = [str(entry.get("created_by") or "") for entry in history if not entry.get("empty_layer")]
    if len(steps) != count:
        return [LayerName(f"layer {number}") for number in range(1, count + 1)]
    matches = [_STEP.search(step) for step in steps]
    start = next((index for index, match in enumerate(matches) if match), 0)
    given: Counter[str] = Counter()
    named = []
    for index, (step, match) in enumerate(zip(steps, matches, strict=True)):
        name = f"layer {index + 1}"
        if index < start:
            name = "base" if start == 1 else f"base {index + 1}"
        elif match and match[1] != "wheels":
            name = match[1]
        elif match and match[2]:
            name = match[2]
        given[name] += 1
        if given[name] > 1:
            name = f"{name} {given[name]}"
        named.append(LayerName(name, step.removesuffix("# buildkit").strip()))
    return named


def _name_by_listing(listing: Sequence[Mapping[str, Any]], count: int) -> list[LayerName]:
    """The same from ``docker history``, which does not say which steps made no layer (WORKDIR may be either)."""
    steps = [str(row.get("CreatedBy") or "") for row in reversed(listing)]
    for workdir in (False, True):
        history = [
            {
                "created_by": step,
                "empty_layer": bool(_NO_LAYER.match(step)) or (workdir and step.startswith("WORKDIR ")),
            }
            for step in steps
        ]
        if sum(not entry["empty_layer"] for entry in history) == count:
            return name_layers(history, count)
    return name_layers([], count)


# --- reading an image -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedImage:
    """What was read of an image: its configuration as it is stored, and the layers that were asked for."""

    config: bytes
    layers: Mapping[str, Layer]

    @property
    def digest(self) -> str:
        """The digest of the configuration."""
        return f"sha256:{hashlib.sha256(self.config).hexdigest()}"

    @property
    def document(self) -> dict[str, Any]:
        """The configuration."""
        return cast("dict[str, Any]", json.loads(self.config))

    @property
    def diff_ids(self) -> list[str]:
        """The digests of all layers."""
        return list(self.document["rootfs"].get("diff_ids") or [])

    @property
    def names(self) -> list[LayerName]:
        """The names of all layers."""
        history = self.document.get("history")
        entries = history if isinstance(history, list) and all(isinstance(one, dict) for one in history) else []
        return name_layers(entries, len(self.diff_ids))


def read_image(source: Readable, id: str, diff_ids: Sequence[str], wanted: set[str]) -> SavedImage:
    """Read the output of ``docker save`` of one image, once, from its beginning; stops when it has what it needs.

    The layouts: OCI (Docker 25 and newer; blobs by digest, compressed where the engine uses the containerd store) and
    the older one (``<id>/layer.tar``). Where a name does not tell which layer it is, its content does.

    Args:
        id: the image's ID as the engine gives it.
        diff_ids: the digests of all its layers.
        wanted: those whose entries are needed.

    Raises:
        TorchdockError: it cannot be read, a layer is missing, or its configuration.
    """
    stream = _Stream(source)
    documents: dict[str, bytes] = {}
    layers: dict[str, Layer] = {}
    known = {_blob(diff_id): diff_id for diff_id in diff_ids}
    try:
        for _, member in _members(stream):
            if not member.isreg() or known.get(member.name, "") in set(diff_ids) - wanted:
                continue
            part = _Stream(stream, member.size)
            if member.name in known or _is_layer(member.name, part.peek(4)):
                layer = read_layer(part)
                if layer.digest in wanted:
                    layers[layer.digest] = layer
            elif member.size <= DOCUMENT_BYTES:
                documents[member.name] = part.read(member.size)
                if sum(map(len, documents.values())) > 8 * DOCUMENT_BYTES:
                    raise ValueError("its manifests are too large")
            config = documents.get(_blob(id))
            if wanted <= layers.keys() and config is not None and _is_config(config, diff_ids):
                return SavedImage(config, layers)
        config = _config(documents, diff_ids)
    except _UNREADABLE as error:
        raise TorchdockError(
            f"What `docker save` gave cannot be read ({printable(str(error))}). Run it again; if it stays, pull or "
            "load the image anew."
        ) from None
    missing = wanted - layers.keys()
    if config is None or missing:
        what = f"the layers {', '.join(sorted(missing))}" if missing else "a configuration that fits its layers"
        raise TorchdockError(f"`docker save` of {id} has not {what}. Pull or load the image anew.")
    return SavedImage(config, layers)


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _is_layer(name: str, head: bytes) -> bool:
    return name.endswith("/layer.tar") or head.startswith((_GZIP, _ZSTD))


def _is_config(document: bytes, diff_ids: Sequence[str]) -> bool:
    value = json.loads(document)
    rootfs = value.get("rootfs") if isinstance(value, dict) else None
    # An image without layers has no list at all.
    return isinstance(rootfs, dict) and (rootfs.get("diff_ids") or []) == list(diff_ids)


def _config(documents: Mapping[str, bytes], diff_ids: Sequence[str]) -> bytes | None:
    """The configuration that the manifest names; of several platforms the one with these layers."""
    manifest = json.loads(documents.get("manifest.json", b"[]"))
    for entry in manifest if isinstance(manifest, list) else []:
        name = entry.get("Config") if isinstance(entry, dict) else None
        if isinstance(name, str) and name in documents and _is_config(documents[name], diff_ids):
            return documents[name]
    return None


# --- two images of the engine ---------------------------------------------------------------------------------------


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
    pairs = _pairs(one.names, one.diff_ids, two.names, two.diff_ids)
    layers = [_compare_layer(pair, one, two) for pair in pairs]
    config: list[ConfigDifference] = []
    notes: tuple[str, ...] = ()
    if one.digest != two.digest:
        config = compare_config(one.document, two.document)
        if not config and all(layer.equal for layer in layers):
            notes = ("The configurations hold the same values in other bytes: another BuildKit version wrote them.",)
    return Comparison(first, second, one.digest, two.digest, tuple(layers), tuple(config), notes)


def _pairs(
    names: Sequence[LayerName], diff_ids: Sequence[str], other_names: Sequence[LayerName], other_diff_ids: Sequence[str]
) -> list[LayerComparison]:
    """The layers of two images side by side, by their names; nothing compared yet but the digests."""
    one = {name.name: (name.step, digest) for name, digest in zip(names, diff_ids, strict=True)}
    two = {name.name: (name.step, digest) for name, digest in zip(other_names, other_diff_ids, strict=True)}
    pairs = []
    for name in dict.fromkeys((*one, *two)):
        step, here = one.get(name, ("", None))
        other_step, there = two.get(name, ("", None))
        pairs.append(LayerComparison(name, step or other_step, here, there))
    return pairs


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


@dataclass(frozen=True)
class _Inspected:
    """What the engine says of an image: see ``docker image inspect`` and ``docker history``."""

    name: str
    id: str
    layers: tuple[str, ...]
    size: int
    labels: Mapping[str, str]
    listing: Sequence[Mapping[str, Any]]

    @property
    def names(self) -> list[LayerName]:
        """The names of its layers."""
        return _name_by_listing(self.listing, len(self.layers))

    @property
    def has_compiler(self) -> bool:
        """It is of the target `devel`."""
        return any(layer.name == image.DEVEL for layer in self.names)


def _inspect(engine: Engine, reference: str) -> _Inspected:
    """Raises: InputError: the engine has no such image."""
    import docker.errors

    try:
        found = engine.client.images.get(reference)
    except (docker.errors.ImageNotFound, docker.errors.NullResource):
        raise InputError(
            f"This engine has no image {reference!r}. Bring it with `docker pull {reference}`, or from a file with "
            "`docker load --input FILE`; `docker image ls` lists those there are."
        ) from None
    layers = tuple((found.attrs.get("RootFS") or {}).get("Layers") or ())
    size = int(found.attrs.get("Size") or 0)
    return _Inspected(reference, str(found.id), layers, size, found.labels or {}, found.history())


def verify(engine: Engine, first: str, second: str, reporter: Reporter) -> Comparison:
    """Compare two images that the engine has; changes nothing.

    Where their IDs are equal, nothing else is read. Else each is read once (`docker save`, about 9 s per GB, whose
    copy below the engine's folder is gone afterwards).

    Raises:
        InputError: there is no such image.
        TorchdockError: it cannot be read, or the disk is too small for it.
    """
    one, two = _inspect(engine, first), _inspect(engine, second)
    if one.id == two.id:
        layers = [
            LayerComparison(name.name, name.step, digest, digest)
            for name, digest in zip(one.names, one.layers, strict=True)
        ]
        return Comparison(first, second, one.id, two.id, tuple(layers))
    differing = [pair for pair in _pairs(one.names, one.layers, two.names, two.layers) if not pair.equal]
    wanted = ({pair.first for pair in differing if pair.first}, {pair.second for pair in differing if pair.second})
    read = []
    for side, digests in zip((one, two), wanted, strict=True):
        _check_disk(engine, side)
        with reporter.step(f"Reading {side.name}") as step:
            read.append(_read(engine, side, digests, step))
    return compare(first, read[0], second, read[1])


def _check_disk(engine: Engine, image: _Inspected) -> None:
    # The engine writes the whole image into its folder before `docker save` gives the first byte.
    where = engine.data_root
    if where is None:
        return
    free = shutil.disk_usage(where).free
    need = image.size + GB // 10
    if free < need:
        raise TorchdockError(
            f"Looking into {image.name} needs {need / GB:.1f} GB free below {where} for a moment, and {free / GB:.1f} "
            "GB are: the images differ, where cannot be told. `docker builder prune` gives back build caches."
        )


def _read(engine: Engine, image: _Inspected, wanted: set[str], step: Step) -> SavedImage:
    step.now(f"{len(wanted)} of {len(image.layers)} layers differ")
    with tempfile.TemporaryFile("w+", errors="replace") as errors, _saving(engine, image.id, errors) as child:
        assert child.stdout is not None
        try:
            return read_image(child.stdout, image.id, image.layers, wanted)
        except TorchdockError:
            # If docker itself failed, its own words say more. It still runs where a layer was at fault.
            with suppress(subprocess.TimeoutExpired):
                if child.wait(timeout=2) != 0:
                    errors.seek(0)
                    said = printable(" ".join(errors.read().split()))
                    raise TorchdockError(
                        f"`docker save` of {image.name} failed: {said}. The images differ; where cannot be told. "
                        "Mend that (often the disk of the engine is full), then run it again."
                    ) from None
            raise


@contextmanager
def _saving(engine: Engine, id: str, errors: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """`docker save`, ended with us in any case; in a session of its own, so that Ctrl-C reaches it from here only."""
    child = subprocess.Popen(
        [engine.cli, "save", id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        assert child.stdout is not None
        child.stdout.close()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


# --- what people read -----------------------------------------------------------------------------------------------


def show(comparison: Comparison, reporter: Reporter) -> None:
    """One line a layer, then the differing files and values (at most SHOWN of each) and what their kinds mean."""
    width = max((len(layer.name) for layer in comparison.layers), default=0)
    for layer in comparison.layers:
        reporter.say(f"  {layer.name:{width}}  {_line(layer)}")
    rows = [
        (layer.name, printable(found.path), ", ".join(found.what), found.first, found.second)
        for layer in comparison.layers
        for found in layer.differences
    ]
    sides = (f"first: {comparison.first}", f"second: {comparison.second}")
    if rows:
        title = f"{SHOWN} of the {len(rows)} differing files" if len(rows) > SHOWN else ""
        reporter.table(title, ("layer", "file", "differs in", *sides), rows[:SHOWN])
    values = [(printable(one.key), _short(one.first), _short(one.second)) for one in comparison.config]
    if values:
        title = f"{SHOWN} of the {len(values)} differing values" if len(values) > SHOWN else ""
        reporter.table(title, ("configuration", *sides), values[:SHOWN])
    kinds = {kind for layer in comparison.layers for found in layer.differences for kind in found.what}
    for kind, meaning in MEANINGS.items():
        if kind in kinds:
            reporter.say(f"{meaning}.")
    for note in comparison.notes:
        reporter.say(note)


def _line(layer: LayerComparison) -> str:
    if layer.equal:
        return f"equal    {_brief(layer.first)}"
    kinds = Counter(kind for found in layer.differences for kind in found.what)
    counted = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    files = f"{len(layer.differences)} file{'s' if len(layer.differences) != 1 else ''} ({counted})" if kinds else ""
    said = "; ".join(part for part in (files, layer.note) if part)
    step = f" [{_short(layer.step)}]" if layer.name.startswith("layer ") and layer.step else ""
    return f"differs  {_brief(layer.first)} and {_brief(layer.second)}{step}: {said or 'empty'}"


def _brief(digest: str | None) -> str:
    return printable(digest.removeprefix("sha256:")[:12]) if digest else "none"


def _short(text: str | None, width: int = 100) -> str:
    if text is None:
        return "none"
    text = printable(text)
    return text if len(text) <= width else f"{text[: width - 1]}…"


# --- a build, and the same build again ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What will be compared with what.

    Attributes:
        wishes: how this lock's image is wanted.
        ours: the build of this lock's image.
        there: that image is there already.
        other: what it is compared with: somebody else's image, or the name that the second build gets.
        again: the second build; None where ``other`` is somebody else's.
        pinned: ``ours`` stands on the base of ``other``, and has to.
        base: it is about the bootstrapped base, not about the image.
        note: a sentence to say first, or an empty string.
    """

    wishes: image.Wishes
    ours: image.BuildPlan
    there: bool
    other: str
    again: image.BuildPlan | None = None
    pinned: bool = False
    base: bool = False
    note: str = ""

    @property
    def argv(self) -> tuple[str, ...]:
        """The docker command that comes next, for ``--dry-run``: a build, else the reading of the other image.

        Empty for a base, which mmdebstrap makes.
        """
        if self.base:
            return ()
        if not self.there:
            return self.ours.argv
        return self.again.argv if self.again is not None else ("docker", "save", self.other)

    @property
    def words(self) -> str:
        """What would be done, for people."""
        first = "" if self.there else f"build {self.ours.tag} and "
        if self.base:
            return f"Would make {self.ours.base.reference} again with mmdebstrap as {self.other}, and compare the two"
        if self.again is not None:
            return f"Would {first}build {self.ours.tag} again with no cache as {self.other}, and compare the two"
        return f"Would {first}compare {self.other} with {self.ours.tag}" + (f". {self.note}" if self.note else "")

    @property
    def mine(self) -> bool:
        """``other`` is made for this comparison."""
        return self.base or self.again is not None


def variant_of(engine: Engine, root: Path, reference: str, asked: str | None) -> Variant:
    """The variant that an image says it is.

    Raises:
        InputError: there is no such image, it is none of torchdock's, its variant is not in this clone, or another one
            was asked for.
    """
    name = _inspect(engine, reference).labels.get("dev.torchdock.variant")
    if name is None:
        raise InputError(
            f"{reference} has no label dev.torchdock.variant, so torchdock did not build it and no lock of this clone "
            "says what belongs in it. Name an image that `invoke build` made."
        )
    if asked is not None and asked != name:
        raise InputError(f"{reference} is {name!r}, and --variant asks for {asked!r}: leave --variant.")
    return variants.get(root, name)


def plan(
    engine: Engine,
    state: CloneState,
    variant: Variant,
    sources: Sources,
    wishes: image.Wishes | None = None,
    *,
    other: str = "",
) -> Plan:
    """What to compare this clone's image with: ``other``, or a second build of it. Changes nothing.

    Args:
        wishes: the target of the image, and whether fallbacks are refused; for ``other`` the target is what it has.
    """
    wishes = wishes or image.Wishes()
    theirs = _inspect(engine, other) if other else None
    if theirs is not None:
        wishes = replace(wishes, target=image.DEVEL if theirs.has_compiler else image.ENVIRONMENT)
    candidates = image.plans(state.root, variant, engine, sources, wishes)
    usual = next((candidate for candidate in candidates if engine.image(candidate.tag)), candidates[0])
    if theirs is None:
        twice = replace(wishes, no_cache=True, tag=_second_name(usual))
        anew = image.plans(state.root, variant, engine, sources, twice)
        again = next(candidate for candidate in anew if candidate.base == usual.base)
        return Plan(wishes, usual, engine.image(usual.tag) is not None, again.tag, again)
    same = _on_the_base_of(engine, candidates, theirs)
    note = (
        f"{theirs.name} stands on a base that is none of this engine's for {variant.name}. Images are equal on one "
        "base only, and what a base holds may differ above it too; `base` in the build record beside it names it."
    )
    ours = same or usual
    there = engine.image(ours.tag) is not None
    return Plan(wishes, ours, there, theirs.name, pinned=same is not None, note="" if same else note)


def _second_name(ours: image.BuildPlan) -> str:
    return f"torchdock/verify:{ours.tag.rpartition(':')[2]}"


def _on_the_base_of(engine: Engine, candidates: Sequence[image.BuildPlan], other: _Inspected) -> image.BuildPlan | None:
    """The plan whose base the other image stands on; where two do, the one whose image is there."""
    same = []
    for candidate in candidates:
        base, built = engine.image(candidate.base.reference), engine.image(candidate.tag)
        # The base may be gone, or be known to the builder alone; the first layer of what was built is still of it.
        layers = base.layers if base is not None else built.layers[:1] if built is not None else ()
        if layers and other.layers[: len(layers)] == layers:
            same.append((built is None, candidate))
    return min(same, key=lambda found: found[0])[1] if same else None


def plan_base(engine: Engine, state: CloneState, variant: Variant, sources: Sources) -> Plan:
    """The bootstrapped base and a second one. Changes nothing.

    Raises:
        InputError: this engine has none, because the base comes from a registry.
    """
    candidates = image.plans(state.root, variant, engine, sources)
    for candidate in candidates:
        reference = candidate.base.reference
        if candidate.base.source == "bootstrapped" and engine.image(reference) is not None:
            other = f"torchdock/verify:base-{reference.rpartition(':')[2]}"
            return Plan(image.Wishes(), candidate, True, other, base=True)
    raise InputError(
        "This engine has no base made from Debian packages, so there is nothing to compare: a base from a registry is "
        "pinned by its digest. Leave --base."
    )


def run(engine: Engine, state: CloneState, plan: Plan, sources: Sources, reporter: Reporter) -> Comparison:
    """Build what is missing, compare, print and write the report. A second build is removed where it is equal.

    Raises:
        TorchdockError: a build failed, or an image cannot be read.
        KeyboardInterrupt: after the builder has stopped; a second build is removed.
    """
    with state.exclusive(reporter):
        if plan.note:
            reporter.say(plan.note)
        ours = _obtain(engine, state, plan, sources, reporter)
        if plan.again is not None:  # the base that could be had is a part of the name
            plan = replace(plan, other=_second_name(ours))
        first = ours.base.reference if plan.base else ours.tag
        try:
            if plan.mine:
                _remove(engine, plan.other)  # what an earlier difference has left
                _build_again(engine, state, plan, ours, sources, reporter)
            comparison = verify(engine, first, plan.other, reporter)
        except BaseException:
            if plan.mine:
                _remove(engine, plan.other)
            raise
        if plan.mine and comparison.equal:
            _remove(engine, plan.other)
    kept = f"The second build is kept as {plan.other}, to look into; `docker image rm {plan.other}` removes it."
    notes = (plan.note, *comparison.notes, kept if plan.mine and not comparison.equal else "")
    comparison = replace(comparison, notes=tuple(note for note in notes if note))
    show(comparison, reporter)
    report = state.path("reports", f"verify-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json")
    state.write(report, comparison.document())
    reporter.say(f"Report: {report}")
    if not comparison.equal:
        reporter.say(f"{first} and {plan.other} differ: {_summary(comparison)}")
    elif plan.mine:
        reporter.good(f"{first}, built again from nothing, is the same to the bit")
    else:
        reporter.good(f"{plan.other} is what this lock builds")
    return comparison


def _summary(comparison: Comparison) -> str:
    layers = [layer.name for layer in comparison.layers if not layer.equal]
    parts = [f"layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}"] if layers else []
    if comparison.config:
        parts.append(f"{len(comparison.config)} of the configuration's values")
    return " and ".join(parts) or "the bytes of the configuration alone"


def _obtain(engine: Engine, state: CloneState, plan: Plan, sources: Sources, reporter: Reporter) -> image.BuildPlan:
    """This lock's image, found or built; the plan that it was built by."""
    if plan.there:
        return plan.ours
    variant = plan.ours.variant
    # Which base can be had shows only when it is tried, unless the other image settles it.
    wishes = replace(plan.wishes, base=plan.ours.base) if plan.pinned else plan.wishes
    built = image.ensure(engine, state, variant, sources, reporter, wishes)
    candidates = image.plans(state.root, variant, engine, sources, plan.wishes)
    return next(candidate for candidate in candidates if candidate.tag == built.image)


def _build_again(
    engine: Engine, state: CloneState, plan: Plan, ours: image.BuildPlan, sources: Sources, reporter: Reporter
) -> None:
    variant = ours.variant
    if plan.base:
        choices = [candidate.base for candidate in image.plans(state.root, variant, engine, sources)]
        bases.bootstrap(engine, state.root, variant.base, choices, sources, reporter, plan.other)
    else:
        wishes = replace(plan.wishes, no_cache=True, tag=plan.other, base=ours.base)
        image.ensure(engine, state, variant, sources, reporter, wishes)


def _remove(engine: Engine, tag: str) -> None:
    import docker.errors

    # A container of the user's own may hold it; then it is theirs to remove.
    with suppress(docker.errors.APIError):
        engine.client.images.remove(tag)
