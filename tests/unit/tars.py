"""Layers and images as `docker save` gives them, made in memory."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any

from torchdock.saved import Layer, SavedImage, read_image, read_layer

EPOCH = 1791158400  # 2026-10-05T00:00:00Z


def member(name: str, content: bytes = b"", **different: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a tar; ``different`` sets fields of its header."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), EPOCH, 0o644
    for key, value in different.items():
        setattr(info, key, value)
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these members."""
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for info, content in members:
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


def usual(**different: Any) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of a layer as BuildKit writes them: a file, a folder, a link, a device."""
    members = {
        "etc": member("etc", type=tarfile.DIRTYPE, mode=0o755),
        "etc/hosts": member("etc/hosts", b"127.0.0.1 localhost\n"),
        "etc/issue": member("etc/issue", b"Debian\n"),
        "etc/link": member("etc/link", type=tarfile.SYMTYPE, linkname="hosts"),
        "etc/same": member("etc/same", type=tarfile.LNKTYPE, linkname="etc/hosts"),
        "etc/null": member("etc/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    }
    return list((members | different).values())


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> Layer:
    """A layer of these members, read."""
    return read_layer(io.BytesIO(tar(*members)))


# Of our Dockerfile for CUDA.
HISTORY = [
    {"created": "2026-10-05T00:00:00Z", "created_by": "ADD rootfs.tar / # buildkit"},
    {"created_by": 'CMD ["bash"]', "empty_layer": True},
    {"created_by": "ARG SOURCE_DATE_EPOCH=1791158400", "empty_layer": True},
    {"created_by": 'RUN |2 DEBIAN=locked SOURCE_DATE_EPOCH=1 /bin/sh -c sh /run/debian.sh python "$DEBIAN" # buildkit'},
    {"created_by": "ARG VARIANT=cu130", "empty_layer": True},
    {"created_by": "RUN |2 VARIANT=cu130 /bin/sh -c sh /run/wheels.sh cuda /run/lock.txt # buildkit"},
    {"created_by": "RUN |2 VARIANT=cu130 SOURCE_DATE_EPOCH=1 /bin/sh -c sh /run/wheels.sh torch # buildkit"},
    {"created_by": "RUN |2 VARIANT=cu130 SOURCE_DATE_EPOCH=1 /bin/sh -c sh /run/merge.sh tools"},
    {"created_by": "LABEL dev.torchdock.variant=cu130", "empty_layer": True},
    {"created_by": "ENV PATH=/opt/venv/bin LANG=C.UTF-8", "empty_layer": True},
    {"created_by": "WORKDIR /workspace"},
    {"created_by": "RUN |2 VARIANT=cu130 /bin/sh -c sh /run/clone/docker/layers/suite.sh /run/clone cu130 # buildkit"},
    {"created_by": 'ENTRYPOINT ["/usr/bin/tini"]', "empty_layer": True},
]


def config(*diff_ids: str, **different: Any) -> dict[str, Any]:
    """The configuration of an image with these layers."""
    usual = {
        "architecture": "amd64",
        "config": {
            "Env": ["PATH=/opt/venv/bin:/bin", "LANG=C.UTF-8"],
            "Cmd": ["bash"],
            "Labels": {"dev.torchdock.variant": "cu130"},
        },
        "created": "2026-10-05T00:00:00Z",
        "history": HISTORY,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return {**usual, **different}


LAYERS = [tar(member(f"file{number}", bytes([number]) * 600)) for number in range(3)]


def digest(data: bytes) -> str:
    """As images name their parts."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


DIFF_IDS = [digest(data) for data in LAYERS]
STORED = json.dumps(config(*DIFF_IDS)).encode()


def blob(data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    """A member that is named for its content."""
    return member(f"blobs/sha256/{hashlib.sha256(data).hexdigest()}", data)


def oci(layers: Sequence[bytes] = LAYERS, stored: bytes = STORED, more: Sequence[bytes] = ()) -> bytes:
    """Docker 25 and newer: blobs sorted by digest, the manifests last."""
    blobs = sorted((blob(data) for data in (*layers, stored, *more)), key=lambda one: one[0].name)
    manifest = [{"Config": blob(stored)[0].name, "RepoTags": None, "Layers": [blob(data)[0].name for data in layers]}]
    folders = [member(name, type=tarfile.DIRTYPE) for name in ("blobs", "blobs/sha256")]
    return tar(*folders, *blobs, member("index.json", b"{}"), member("manifest.json", json.dumps(manifest).encode()))


def saved(*layers: bytes, **different: Any) -> SavedImage:
    """An image of these layers, read; ``different`` changes values of its configuration."""
    diff_ids = [digest(data) for data in layers]
    history = [{"created_by": "ADD rootfs.tar /"}, {"created_by": "RUN sh /run/debian.sh python locked"}, *HISTORY[5:8]]
    stored = json.dumps(config(*diff_ids, **{"history": history[: len(layers)], **different})).encode()
    return read_image(io.BytesIO(oci(layers, stored)), digest(stored), diff_ids, set(diff_ids))
