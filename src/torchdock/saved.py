"""An image as ``docker save`` gives it, read once as a stream: its configuration, and the layers that are asked for.

Nothing of it is unpacked or run, so one that a stranger built may be read.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

from torchdock.errors import TorchdockError

CHUNK = 1 << 20  # bytes that are read and hashed at a time
DOCUMENT_BYTES = 8 << 20  # no configuration or manifest is larger; all of one image together: eight times that


def printable(text: str) -> str:
    """Text of an image that may stand on a terminal: control characters, bidirectional marks and such are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


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
    """Read a layer, a tar or one compressed with gzip or zstd, from its beginning to its end, in pieces.

    Raises:
        TorchdockError: it is no tar, or damaged.
    """
    stream = _Stream(source)
    unreadable: tuple[type[Exception], ...] = _UNREADABLE
    try:
        head = stream.peek(4)
        plain: Readable = stream
        if head.startswith(_GZIP):
            plain = cast(Readable, gzip.GzipFile(fileobj=cast(IO[bytes], stream)))
        elif head.startswith(_ZSTD):
            zstd = _zstd()
            unreadable = (*_UNREADABLE, zstd.ZstdError)
            plain = cast(Readable, zstd.ZstdFile(cast(IO[bytes], stream)))
        tar = _Stream(plain, hashed=True)
        entries = tuple(_entries(tar))
        digest, trailing = tar.finish()
    except unreadable as error:
        raise TorchdockError(
            f"A layer cannot be read as a tar ({printable(str(error))}). Build or pull the image anew."
        ) from None
    return Layer(digest, entries, trailing)


def _zstd() -> Any:
    """The module that reads zstd: Python's own, or its backport."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


# --- what a layer is called -----------------------------------------------------------------------------------------

# The steps of the Dockerfiles: `sh /run/wheels.sh LAYER`, likewise debian.sh and merge.sh; devel.sh and suite.sh alone.
_STEP = re.compile(r"\bsh /run/(?:[\w/]+/)?(debian|wheels|merge|devel|suite)\.sh\b(?: ([a-z][a-z0-9-]{0,19})(?!\S))?")
# Instructions that make no layer; as a builder without BuildKit writes them, `/bin/sh -c #(nop)` stands before.
_NO_LAYER = re.compile(
    r"(/bin/sh -c #\(nop\) +)?"
    r"(ARG|CMD|ENTRYPOINT|ENV|EXPOSE|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|SHELL|STOPSIGNAL|USER|VOLUME)\b"
)


@dataclass(frozen=True)
class LayerName:
    """What a layer is called (base, python, cuda, torch, tools, suite and so on, else ``layer N``), and its step."""

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
        elif match and match[1] in ("devel", "suite"):
            name = match[1]
        elif match and match[2]:
            name = match[2]
        given[name] += 1
        if given[name] > 1:
            name = f"{name} {given[name]}"
        named.append(LayerName(name, step.removesuffix("# buildkit").strip()))
    return named


def name_by_listing(listing: Sequence[Mapping[str, Any]], count: int) -> list[LayerName]:
    """The same from ``docker history``, which does not say which steps made no layer (WORKDIR may be either)."""
    return name_layers([{"created_by": row.get("CreatedBy")} for row in _layer_rows(listing, count)], count)


def size_by_listing(listing: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """How many bytes each layer holds, the oldest first; all in the last one where the listing does not fit. Pure."""
    rows = _layer_rows(listing, count)
    if rows:
        return [int(row.get("Size") or 0) for row in rows]
    return [0] * (count - 1) + [sum(int(row.get("Size") or 0) for row in listing)] * bool(count)


def _layer_rows(listing: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The rows that made a layer, the oldest first; none where they do not fit their number."""
    for workdir in (False, True):
        rows = []
        for row in reversed(listing):
            step = str(row.get("CreatedBy") or "")
            if not _NO_LAYER.match(step) and not (workdir and step.startswith("WORKDIR ")):
                rows.append(row)
        if len(rows) == count:
            return rows
    return []


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
