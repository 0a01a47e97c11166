"""Two images compared to the bit: what is read of them, what is named, and what a person reads."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given import ROOT, TableEngine, program

from torchdock import base, image, variants, verify
from torchdock.console import Reporter
from torchdock.engine import ImageFacts
from torchdock.errors import InputError, TorchdockError
from torchdock.state import CloneState
from torchdock.verify import Comparison, ConfigDifference, Entry, FileDifference, Layer, SavedImage

EPOCH = 1791158400  # 2026-10-05T00:00:00Z


def member(name: str, content: bytes = b"", **different: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), EPOCH, 0o644
    for key, value in different.items():
        setattr(info, key, value)
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for info, content in members:
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


# A layer as BuildKit writes them: a file, a folder, a link, a device.
def usual(**different: Any) -> list[tuple[tarfile.TarInfo, bytes]]:
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
    return verify.read_layer(io.BytesIO(tar(*members)))


def compared(different: tuple[tarfile.TarInfo, bytes]) -> list[FileDifference]:
    other = usual(**{different[0].name: different})
    return verify.compare_layers(layer(*usual()).entries, layer(*other).entries)


# --- layers ---


def test_an_entry_holds_everything_but_the_content() -> None:
    pax = {"SCHILY.xattr.security.capability": "\x01", "mtime": f"{EPOCH}.123456789", "comment": "hello"}
    info = member("opt/x", b"abc", mode=0o4755, uid=7, gid=8, uname="u", gname="g", pax_headers=pax)
    assert layer(info).entries == (
        Entry(
            path="opt/x",
            type="file",
            mode=0o4755,
            uid=7,
            gid=8,
            uname="u",
            gname="g",
            size=3,
            mtime=EPOCH * 10**9 + 123456789,
            xattrs=(("SCHILY.xattr.security.capability", "\x01"),),
            extended=(("comment", "hello"),),
            sha256=hashlib.sha256(b"abc").hexdigest(),
        ),
    )


def test_devices_have_their_numbers() -> None:
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        assert layer(member("dev/x", type=kind, devmajor=7, devminor=8)).entries[0].device == (7, 8)


def test_the_digest_of_a_layer_is_that_of_all_its_bytes() -> None:
    for size in (0, 1, 511, 512, 513, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000):
        data = tar(member("before", b"x" * size), member("a/" + "long" * 60, b"y" * size), member("after", b"z"))
        found = verify.read_layer(io.BytesIO(data))
        assert found.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert [(entry.path[:6], entry.size) for entry in found.entries] == [
            ("before", size),
            ("a/long", size),
            ("after", 1),
        ]
        assert found.entries[1].sha256 == hashlib.sha256(b"y" * size).hexdigest()
        assert not found.trailing


def test_a_compressed_layer_is_known_by_what_is_in_it() -> None:
    data = tar(*usual())
    assert verify.read_layer(io.BytesIO(gzip.compress(data))) == verify.read_layer(io.BytesIO(data))


def test_an_empty_layer_has_no_entries() -> None:
    assert verify.read_layer(io.BytesIO(bytes(1024))).entries == ()


def test_a_source_that_gives_little_at_a_time_is_read_as_well() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 1, 7))

    data = tar(*usual(), member("big", b"b" * 5000))
    assert verify.read_layer(Slow(data)) == verify.read_layer(io.BytesIO(data))


def test_sparse_files_and_old_formats_are_read() -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        assert verify.read_layer(io.BytesIO(tar(*usual(), form=form))).entries == layer(*usual()).entries


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "A layer cannot be read as a tar"),
        (b"no tar at all" * 100, "A layer cannot be read as a tar"),
        (gzip.compress(tar(member("a", b"a" * 5000)))[:60], "A layer cannot be read as a tar"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "compressed with zstd"),
    ],
    ids=["empty", "text", "cut off", "zstd"],
)
def test_what_is_no_layer_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(TorchdockError, match=said):
        verify.read_layer(io.BytesIO(data))


def test_equal_layers_have_no_differences() -> None:
    assert verify.compare_layers(layer(*usual()).entries, layer(*usual()).entries) == []


@pytest.mark.parametrize(
    ("different", "what", "first", "second"),
    [
        (
            member("etc/hosts", b"127.0.0.1 localhorst"),
            ("content",),
            "20 bytes, sha256 9bc9c0e5a2d0",
            "20 bytes, sha256 ",
        ),
        (member("etc/issue", b"Debian\n", mtime=EPOCH + 1), ("time",), "2026-10-05T00:00:00Z", "2026-10-05T00:00:01Z"),
        (
            member("etc/issue", b"Debian\n", pax_headers={"mtime": f"{EPOCH}.5"}),
            ("time",),
            "2026-10-05T00:00:00Z",
            "2026-10-05T00:00:00.5Z",
        ),
        (member("etc/issue", b"Debian\n", mode=0o600), ("mode",), "0644", "0600"),
        (member("etc", type=tarfile.DIRTYPE, mode=0o1755), ("mode",), "0755", "1755"),
        (member("etc/issue", b"Debian\n", uid=1000), ("owner",), "0:0", "1000:0"),
        (member("etc/issue", b"Debian\n", gid=5), ("owner",), "0:0", "0:5"),
        (member("etc/issue", b"Debian\n", uname="root"), ("owner",), "0:0", "0:0 (root:)"),
        (member("etc/link", type=tarfile.SYMTYPE, linkname="issue"), ("link",), "hosts", "issue"),
        (member("etc/same", type=tarfile.LNKTYPE, linkname="etc/issue"), ("link",), "etc/hosts", "etc/issue"),
        (member("etc/null", type=tarfile.CHRTYPE, devmajor=1, devminor=5), ("device",), "1:3", "1:5"),
        (
            member("etc/null", type=tarfile.BLKTYPE, devmajor=1, devminor=3),
            ("type",),
            "character device",
            "block device",
        ),
        (member("etc/issue", type=tarfile.SYMTYPE, linkname="hosts"), ("type",), "file", "symbolic link"),
        (
            member("etc/issue", b"Debian\n", pax_headers={"SCHILY.xattr.user.a": "b"}),
            ("xattrs",),
            "none",
            "SCHILY.xattr.user.a=" + hashlib.sha256(b"b").hexdigest()[:12],
        ),
        (
            member("etc/issue", b"Debian\n", pax_headers={"atime": "1"}),
            ("header",),
            "none",
            "atime=" + hashlib.sha256(b"1").hexdigest()[:12],
        ),
        (
            member("etc/issue", b"debian!\n", mode=0o600, mtime=0),
            ("content", "mode", "time"),
            f"7 bytes, sha256 {hashlib.sha256(b'Debian' + bytes([10])).hexdigest()[:12]}, 0644, 2026-10-05T00:00:00Z",
            f"8 bytes, sha256 {hashlib.sha256(b'debian!' + bytes([10])).hexdigest()[:12]}, 0600, 1970-01-01T00:00:00Z",
        ),
    ],
    ids=lambda given: None,
)
def test_one_changed_thing_is_the_one_difference(
    different: tuple[tarfile.TarInfo, bytes], what: tuple[str, ...], first: str, second: str
) -> None:
    if different[0].name == "etc/hosts":  # the digests of the two contents
        first = f"20 bytes, sha256 {hashlib.sha256(b'127.0.0.1 localhost' + bytes([10])).hexdigest()[:12]}"
        second = f"20 bytes, sha256 {hashlib.sha256(different[1]).hexdigest()[:12]}"
    assert compared(different) == [FileDifference(different[0].name, what, first, second)]


def test_every_kind_of_difference_has_a_meaning() -> None:
    kinds = {"order", "only in first", "only in second", *verify._values(Entry("a", "file"))}
    assert kinds == set(verify.MEANINGS)


def test_a_file_of_one_side_only_is_named() -> None:
    more = [*usual(), member("tmp/log", b"x")]
    one, two = layer(*usual()).entries, layer(*more).entries
    whole = f"file, 1 bytes, sha256 {hashlib.sha256(b'x').hexdigest()[:12]}"
    assert verify.compare_layers(one, two) == [FileDifference("tmp/log", ("only in second",), "", whole)]
    assert verify.compare_layers(two, one) == [FileDifference("tmp/log", ("only in first",), whole, "")]


def test_a_path_that_stands_twice_is_compared_twice() -> None:
    one = layer(member("a", b"1"), member("a", b"2"))
    two = layer(member("a", b"1"), member("a", b"3"))
    assert [found.what for found in verify.compare_layers(one.entries, two.entries)] == [("content",)]
    assert [found.what for found in verify.compare_layers(one.entries, one.entries[:1])] == [("only in first",)]


def test_order_is_a_difference_if_it_is_the_only_one() -> None:
    one, two = layer(*usual()).entries, layer(*reversed(usual())).entries
    assert verify.compare_layers(one, two) == [FileDifference("etc", ("order",), "etc", "etc/null")]
    changed = tuple(replace(entry, mode=0o600) if entry.path == "etc/issue" else entry for entry in two)
    assert [found.what for found in verify.compare_layers(one, changed)] == [("mode",)]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("", 5 * 10**9),
        ("1.5", 1_500_000_000),
        ("1.0000000019", 1_000_000_001),
        ("-1.25", -1_250_000_000),
        ("nan", 5 * 10**9),
        ("1e999999999", 5 * 10**9),
    ],
)
def test_times_are_exact_to_the_nanosecond(record: str, expected: int) -> None:
    assert verify._nanoseconds(record, 5.9) == expected


def test_a_time_that_no_calendar_has_is_a_number() -> None:
    assert verify._time(10**30) == f"@{10**21}.000000000"
    assert verify._time(-1) == "1969-12-31T23:59:59.999999999Z"


# --- configurations ---

HISTORY = [
    {"created": "2026-10-05T00:00:00Z", "created_by": "ADD rootfs.tar / # buildkit"},
    {"created_by": 'CMD ["bash"]', "empty_layer": True},
    {"created_by": "ARG SOURCE_DATE_EPOCH=1791158400", "empty_layer": True},
    {"created_by": 'RUN |2 DEBIAN=locked SOURCE_DATE_EPOCH=1 /bin/sh -c sh /run/system.sh "$DEBIAN" # buildkit'},
    {"created_by": "ARG VARIANT=cu130", "empty_layer": True},
    {"created_by": "RUN |2 VARIANT=cu130 /bin/sh -c sh /run/wheels.sh cuda /run/lock.txt # buildkit"},
    {"created_by": "RUN |2 VARIANT=cu130 SOURCE_DATE_EPOCH=1 /bin/sh -c sh /run/wheels.sh torch # buildkit"},
    {"created_by": "RUN |2 VARIANT=cu130 SOURCE_DATE_EPOCH=1 /bin/sh -c sh /run/wheels.sh tools"},
    {"created_by": "LABEL dev.torchdock.variant=cu130", "empty_layer": True},
    {"created_by": "ENV PATH=/opt/venv/bin LANG=C.UTF-8", "empty_layer": True},
    {"created_by": "WORKDIR /workspace"},
    {"created_by": "RUN |2 VARIANT=cu130 /bin/sh -c sh /run/clone/docker/layers/suite.sh /run/clone cu130 # buildkit"},
    {"created_by": 'ENTRYPOINT ["/usr/bin/tini"]', "empty_layer": True},
]
NAMES = ["base", "system", "cuda", "torch", "tools", "layer 6", "suite"]
Steps = Sequence["dict[str, Any]"]


def names(history: Steps, count: int) -> list[str]:
    return [found.name for found in verify.name_layers(history, count)]


def test_layers_are_named_for_their_steps() -> None:
    assert names(HISTORY, 7) == NAMES
    named = verify.name_layers(HISTORY, 7)
    assert (named[0].step, named[5].step) == ("ADD rootfs.tar /", "WORKDIR /workspace")


def test_the_base_may_have_several_layers_and_run_steps() -> None:
    base = [{"created_by": "# debian.sh --arch 'amd64'"}, {"created_by": "RUN /bin/sh -c apt-get update"}]
    assert names([*base, *HISTORY[2:]], 8) == [
        "base 1",
        "base 2",
        "system",
        "cuda",
        "torch",
        "tools",
        "layer 7",
        "suite",
    ]


def test_no_name_is_given_twice() -> None:
    step = {"created_by": "RUN /bin/sh -c sh /run/devel.sh # buildkit"}
    assert names([*HISTORY, step, step], 9) == [*NAMES, "devel", "devel 2"]


@pytest.mark.parametrize(
    ("history", "count"),
    [([], 2), (HISTORY, 6), (HISTORY, 8), ([{}, {"created_by": None}], 2), ([{"created_by": "COPY / /"}] * 2, 2)],
    ids=["none", "too long", "too short", "nothing said", "not ours"],
)
def test_a_history_that_does_not_fit_names_nothing(history: Steps, count: int) -> None:
    assert names(history, count) == [f"layer {number}" for number in range(1, count + 1)]


def test_the_listing_of_the_engine_gives_the_same_names() -> None:
    listing = [{"CreatedBy": entry["created_by"], "Size": 0} for entry in reversed(HISTORY)]
    assert [found.name for found in verify._name_by_listing(listing, 7)] == NAMES
    # A WORKDIR that was there already makes no layer.
    assert [found.name for found in verify._name_by_listing(listing, 6)] == [*NAMES[:5], "suite"]
    old = [{"CreatedBy": '/bin/sh -c #(nop)  CMD ["bash"]'}, {"CreatedBy": "/bin/sh -c #(nop) ADD file:1 in / "}]
    assert [found.step for found in verify._name_by_listing(old, 1)] == ["/bin/sh -c #(nop) ADD file:1 in /"]
    assert [found.name for found in verify._name_by_listing(listing, 3)] == ["layer 1", "layer 2", "layer 3"]


def config(*diff_ids: str, **different: Any) -> dict[str, Any]:
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


def test_equal_configurations_have_no_differences() -> None:
    assert verify.compare_config(config("sha256:1"), config("sha256:2")) == []  # layers are compared themselves


@pytest.mark.parametrize(
    ("different", "expected"),
    [
        ({"created": "now"}, [("created", '"2026-10-05T00:00:00Z"', '"now"')]),
        ({"os": None}, [("os", '"linux"', "null")]),
        ({"variant": "v2"}, [("variant", None, '"v2"')]),
        (
            {"history": [*HISTORY[:10], {"created_by": "WORKDIR /"}, *HISTORY[11:]]},
            [("history[10].created_by", '"WORKDIR /workspace"', '"WORKDIR /"')],
        ),
        (
            {"history": HISTORY[:-1]},
            [
                ("history[12].created_by", json.dumps(HISTORY[-1]["created_by"]), None),
                ("history[12].empty_layer", "true", None),
            ],
        ),
    ],
    ids=["created", "null", "added", "history", "shorter history"],
)
def test_a_changed_value_is_named(different: dict[str, Any], expected: list[Any]) -> None:
    found = verify.compare_config(config(), config(**different))
    assert found == [ConfigDifference(*one) for one in expected]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("Labels", {}, [("config.Labels", None, "{}"), ("config.Labels.dev.torchdock.variant", '"cu130"', None)]),
        ("Labels", {"dev.torchdock.variant": "cpu"}, [("config.Labels.dev.torchdock.variant", '"cu130"', '"cpu"')]),
        ("Cmd", ["sh"], [("config.Cmd", '["bash"]', '["sh"]')]),
        ("Entrypoint", ["/tini"], [("config.Entrypoint", None, '["/tini"]')]),
        ("Env", ["PATH=/bin", "LANG=C.UTF-8"], [("config.Env[PATH]", '"/opt/venv/bin:/bin"', '"/bin"')]),
        (
            "Env",
            ["LANG=C.UTF-8", "PATH=/opt/venv/bin:/bin"],
            [("config.Env (order)", '["PATH", "LANG"]', '["LANG", "PATH"]')],
        ),
    ],
)
def test_a_changed_setting_is_named(key: str, value: Any, expected: list[Any]) -> None:
    settings = {**config()["config"], key: value}
    found = verify.compare_config(config(), config(config=settings))
    assert found == [ConfigDifference(*one) for one in expected]


def test_history_is_sorted_by_number() -> None:
    empty = [{"created_by": "a"}] * 11
    other = [{"created_by": "b"}] * 11
    found = verify.compare_config({"history": empty}, {"history": other})
    assert [one.key for one in found] == [f"history[{number}].created_by" for number in range(11)]


def test_an_odd_environment_is_compared_as_it_is() -> None:
    for value in (["A=1", "A=2"], [1], "A=1"):
        found = verify.compare_config({"config": {"Env": []}}, {"config": {"Env": value}})
        assert [(one.key, one.second) for one in found if one.key == "config.Env"] == [
            ("config.Env", json.dumps(value))
        ]


# --- what `docker save` gives ---

LAYERS = [tar(member(f"file{number}", bytes([number]) * 600)) for number in range(3)]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


DIFF_IDS = [digest(data) for data in LAYERS]
STORED = json.dumps(config(*DIFF_IDS)).encode()


def blob(data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member(f"blobs/sha256/{hashlib.sha256(data).hexdigest()}", data)


def oci(layers: Sequence[bytes] = LAYERS, stored: bytes = STORED, more: Sequence[bytes] = ()) -> bytes:
    """Docker 25 and newer: blobs sorted by digest, the manifests last."""
    blobs = sorted((blob(data) for data in (*layers, stored, *more)), key=lambda one: one[0].name)
    manifest = [{"Config": blob(stored)[0].name, "RepoTags": None, "Layers": [blob(data)[0].name for data in layers]}]
    folders = [member(name, type=tarfile.DIRTYPE) for name in ("blobs", "blobs/sha256")]
    return tar(*folders, *blobs, member("index.json", b"{}"), member("manifest.json", json.dumps(manifest).encode()))


def legacy() -> bytes:
    """Docker 24 and older: a folder for each layer, a layer that was there already as a link."""
    members = []
    for number, data in enumerate(LAYERS):
        members += [
            member(f"{number:064x}", type=tarfile.DIRTYPE),
            member(f"{number:064x}/VERSION", b"1.0"),
            member(f"{number:064x}/json", b"{}"),
            member(f"{number:064x}/layer.tar", data),
        ]
    members.append(member("f" * 64 + "/layer.tar", type=tarfile.SYMTYPE, linkname=f"../{0:064x}/layer.tar"))
    name = f"{hashlib.sha256(STORED).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": ["a:b"], "Layers": [f"{number:064x}/layer.tar" for number in range(3)]}]
    return tar(member(name, STORED), *members, member("manifest.json", json.dumps(manifest).encode()))


def containerd() -> tuple[bytes, str]:
    """The containerd store: layers compressed, the ID is that of the manifest; an attestation lies beside it."""
    manifest = b'{"schemaVersion": 2}'
    other = json.dumps(config("sha256:0")).encode()
    stream = oci([gzip.compress(data, mtime=0) for data in LAYERS], more=[manifest, other])
    return stream, digest(manifest)


@pytest.mark.parametrize("stream", [(oci(), digest(STORED)), (legacy(), digest(STORED)), containerd()])
@pytest.mark.parametrize("wanted", [[], [0], [2], [0, 1, 2]])
def test_each_layout_gives_the_configuration_and_the_layers_that_were_asked_for(
    stream: tuple[bytes, str], wanted: list[int]
) -> None:
    asked = {DIFF_IDS[number] for number in wanted}
    read = verify.read_image(io.BytesIO(stream[0]), stream[1], DIFF_IDS, asked)
    assert read.config == STORED
    assert read.digest == digest(STORED)
    assert {name: found.entries[0].path for name, found in read.layers.items()} == {
        DIFF_IDS[number]: f"file{number}" for number in wanted
    }


def test_layers_that_nobody_asked_for_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 GB that are equal on both sides must not be hashed."""
    read: list[str] = []
    original = verify.read_layer

    def count(source: verify.Readable) -> Layer:
        found = original(source)
        read.append(found.digest)
        return found

    monkeypatch.setattr(verify, "read_layer", count)
    verify.read_image(io.BytesIO(oci()), digest(STORED), DIFF_IDS, {DIFF_IDS[1]})
    assert read == [DIFF_IDS[1]]


def test_it_stops_when_it_has_what_it_needs() -> None:
    first = min((*LAYERS, STORED), key=lambda data: blob(data)[0].name)
    stored = STORED
    while blob(stored)[0].name > blob(first)[0].name:  # a configuration that sorts before all layers
        stored += b" "
    stream = io.BytesIO(oci(stored=stored))
    verify.read_image(stream, digest(stored), DIFF_IDS, set())
    assert stream.tell() < len(stream.getvalue()) / 2


def test_a_layer_whose_name_lies_is_missing() -> None:
    lie = (blob(LAYERS[0])[0], tar(member("other", bytes(600))))
    stream = tar(lie, blob(STORED), member("manifest.json", b"[]"))
    with pytest.raises(TorchdockError, match=rf"has not the layers {DIFF_IDS[0]}"):
        verify.read_image(io.BytesIO(stream), digest(STORED), DIFF_IDS, {DIFF_IDS[0]})


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"", "cannot be read"),
        (tar(), "has not a configuration"),
        (tar(member("manifest.json", b"[")), "cannot be read"),
        (tar(member("manifest.json", b"[" * 100_000)), "cannot be read"),
        (tar(member("manifest.json", b'[{"Config": 1}, 2]')), "has not a configuration"),
        (oci(stored=json.dumps(config("sha256:0")).encode()), "has not a configuration"),
        (oci()[:3000], "unexpected end of data"),
    ],
    ids=["empty", "no members", "no JSON", "too deep", "odd", "other layers", "cut off"],
)
def test_what_is_no_image_is_refused(stream: bytes, said: str) -> None:
    with pytest.raises(TorchdockError, match=said):
        verify.read_image(io.BytesIO(stream), digest(STORED), DIFF_IDS, set())


def test_documents_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "DOCUMENT_BYTES", len(STORED))
    large = member("blobs/sha256/" + "0" * 64, b"{" + b" " * len(STORED) * 9)  # passed over, whatever it is
    stream = tar(large, blob(STORED), member("manifest.json", b"[]"))
    assert verify.read_image(io.BytesIO(stream), digest(STORED), DIFF_IDS, set()).config == STORED
    many = tar(*[member(f"{number}.json", b" " * len(STORED)) for number in range(9)])
    with pytest.raises(TorchdockError, match="too large"):
        verify.read_image(io.BytesIO(many), digest(STORED), DIFF_IDS, set())


# --- two images ---


def saved(*layers: bytes, **different: Any) -> SavedImage:
    diff_ids = [digest(data) for data in layers]
    history = [{"created_by": "ADD rootfs.tar /"}, {"created_by": "RUN sh /run/system.sh"}, *HISTORY[5:8]]
    stored = json.dumps(config(*diff_ids, **{"history": history[: len(layers)], **different})).encode()
    return verify.read_image(io.BytesIO(oci(layers, stored)), digest(stored), diff_ids, set(diff_ids))


def test_a_difference_is_told_by_layer() -> None:
    changed = tar(member("file1", b"other"))
    found = verify.compare("one", saved(*LAYERS), "two", saved(LAYERS[0], changed, LAYERS[2]))
    assert not found.equal
    assert [(one.name, one.equal) for one in found.layers] == [("base", True), ("system", False), ("cuda", True)]
    assert [one.path for one in found.layers[1].differences] == ["file1"]
    assert found.config == ()
    document = json.loads(json.dumps(found.document()))
    assert document["equal"] is False
    assert document["layers"][1]["differences"][0]["what"] == ["content"]
    assert document["layers"][1]["equal"] is False


def test_a_layer_of_one_side_only_shows_its_files() -> None:
    found = verify.compare("one", saved(*LAYERS[:2]), "two", saved(*LAYERS))
    assert (found.layers[2].first, found.layers[2].second) == (None, DIFF_IDS[2])
    assert [(one.path, one.what) for one in found.layers[2].differences] == [("file2", ("only in second",))]
    assert [one.key for one in found.config] == ["history[2].created_by"]


def test_equal_files_in_other_bytes_are_told_as_such() -> None:
    members = [member("long/" * 30 + "name", b"x")]
    one, two = tar(*members), tar(*members, form=tarfile.GNU_FORMAT)
    found = verify.compare("one", saved(one), "two", saved(two))
    assert (found.layers[0].equal, found.layers[0].differences, found.layers[0].note) == (False, (), verify.RAW)


def test_data_behind_the_end_of_a_layer_is_told() -> None:
    hidden = tar(member("a")) + tar(member("hidden", b"x")) + bytes(2 << 20)
    found = verify.compare("one", saved(tar(member("a"))), "two", saved(hidden)).layers[0]
    assert "the tar of the second goes on after what can be read" in found.note
    broken = bytearray(tar(member("a"), member("b"), member("c", b"x")))
    broken[512 + 148 : 512 + 156] = b"garbage!"  # the checksum of the second header: tarfile ends there in silence
    found = verify.compare("one", saved(bytes(broken)), "two", saved(tar(member("a")))).layers[0]
    assert "the tar of the first goes on" in found.note


def test_the_same_values_in_other_bytes_are_told_as_such() -> None:
    one = saved(*LAYERS)
    two = replace(one, config=json.dumps(one.document, indent=1).encode())
    found = verify.compare("one", one, "two", two)
    assert not found.equal
    assert (found.config, [layer.equal for layer in found.layers]) == ((), [True] * 3)
    assert "the same values in other bytes" in found.notes[0]


def test_a_layer_that_was_not_read_is_told() -> None:
    one, two = saved(*LAYERS), saved(LAYERS[0], LAYERS[2], LAYERS[1])
    found = verify.compare("one", replace(one, layers={}), "two", replace(two, layers={}))
    assert [layer.note for layer in found.layers] == ["", *["its files were not looked into"] * 2]


# --- what people read ---


def shown(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> str:
    verify.show(comparison, Reporter())
    return capsys.readouterr().out


def test_people_read_a_line_a_layer_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    first = saved(LAYERS[0], tar(member("a", mode=0o600), member("b")), created="then")
    second = saved(LAYERS[0], tar(member("a"), member("b", mtime=0)), created="now")
    text = shown(verify.compare("one", first, "two", second), capsys)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["base", "equal", DIFF_IDS[0][7:19]]
    assert lines[1][:2] == ["system", "differs"]
    assert text.splitlines()[1].endswith(": 2 files (1 mode, 1 time)")
    assert ["system", "a", "mode", "0600", "0644"] in lines
    assert ["system", "b", "time", "2026-10-05T00:00:00Z", "1970-01-01T00:00:00Z"] in lines
    assert ["created", '"then"', '"now"'] in lines
    assert f"{verify.MEANINGS['mode']}." in text and f"{verify.MEANINGS['time']}." in text
    assert verify.MEANINGS["content"] not in text


def test_only_so_many_files_are_printed_and_all_are_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    many = tar(*[member(f"file-{number:03}") for number in range(100)])
    comparison = verify.compare("one", saved(many), "two", saved(tar()))
    text = shown(comparison, capsys)
    assert "40 of the 100 differing files" in text
    assert "file-039" in text and "file-040" not in text
    assert len(comparison.document()["layers"][0]["differences"]) == 100


def test_nothing_of_an_image_reaches_the_terminal_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x07\u202e\x9b\n\udc80[red]"
    history = [{"created_by": f"RUN {evil}"}]
    labels = {"config": {"Labels": {evil: evil}}, "history": history}
    files = [
        member(f"a{evil}", uname=evil, uid=1),
        member(f"b{evil}", type=tarfile.SYMTYPE, linkname=evil),
        member("c", pax_headers={f"SCHILY.xattr.{evil[:-6]}": "x"}),
        member("d", type=tarfile.SYMTYPE, linkname=evil),
    ]
    plain = [member(f"a{evil}", uid=1), member("c"), member("d", type=tarfile.SYMTYPE, linkname="e")]
    text = shown(verify.compare("one", saved(tar(*files), **labels), "two", saved(tar(*plain))), capsys)
    assert not {"\x1b", "\x07", "\u202e", "\x9b", "\udc80"} & set(text)
    assert "\\x1b[2J\\x07\\u202e\\x9b\\n\\udc80[red]" in "".join(text.split())
    # The document goes through JSON, which escapes them.
    assert "\x1b" not in json.dumps(verify.compare("one", saved(tar(*files), **labels), "two", saved()).document())


# --- the engine ---

ID = digest(STORED)


class SavingEngine(TableEngine):
    """An engine whose docker is a shell script."""

    def __init__(self, folder: Path, script: str, **more: Any) -> None:
        super().__init__(cli=program(folder / "docker", script), **more)


def inspected(name: str, **different: Any) -> verify._Inspected:
    listing = [{"CreatedBy": entry["created_by"]} for entry in reversed(HISTORY)]
    usual = {"name": name, "id": ID, "layers": tuple(DIFF_IDS), "size": 1, "labels": {}, "listing": listing}
    return verify._Inspected(**{**usual, **different})


def know(monkeypatch: pytest.MonkeyPatch, *known: verify._Inspected) -> None:
    table = {one.name: one for one in known}
    monkeypatch.setattr(verify, "_inspect", lambda engine, name: table[name])


def test_equal_ids_need_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, inspected("one"), inspected("two"))
    found = verify.verify(TableEngine(cli="/bin/false"), "one", "two", Reporter())
    assert found.equal
    assert [(layer.first, layer.second) for layer in found.layers] == [(one, one) for one in DIFF_IDS]


def test_images_are_read_once_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changed = tar(member("file1", b"other"))
    stored = json.dumps(config(DIFF_IDS[0], digest(changed), DIFF_IDS[2])).encode()
    (tmp_path / ID).write_bytes(oci())
    (tmp_path / digest(stored)).write_bytes(oci([LAYERS[0], changed, LAYERS[2]], stored))
    other = inspected("two", id=digest(stored), layers=(DIFF_IDS[0], digest(changed), DIFF_IDS[2]))
    know(monkeypatch, inspected("one"), other)
    engine = SavingEngine(tmp_path, f'echo "$@" >>{tmp_path}/calls; cat "{tmp_path}/$2"')
    found = verify.verify(engine, "one", "two", Reporter())
    assert [layer.name for layer in found.layers if not layer.equal] == ["layer 2"]
    assert [one.path for one in found.layers[1].differences] == ["file1"]
    assert (tmp_path / "calls").read_text().splitlines() == [f"save {ID}", f"save {digest(stored)}"]


def test_layers_that_changed_places_or_stand_twice_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = []
    for name, layers in (("one", [LAYERS[0], LAYERS[1], LAYERS[1]]), ("two", [LAYERS[1], LAYERS[0], LAYERS[1]])):
        diff_ids = tuple(digest(data) for data in layers)
        stored = json.dumps(config(*diff_ids)).encode()
        (tmp_path / digest(stored)).write_bytes(oci(sorted(set(layers)), stored))
        known.append(inspected(name, id=digest(stored), layers=diff_ids))
    know(monkeypatch, *known)
    found = verify.verify(SavingEngine(tmp_path, f'cat "{tmp_path}/$2"'), "one", "two", Reporter())
    assert [[one.path for one in layer.differences] for layer in found.layers] == [
        ["file0", "file1"],
        ["file1", "file0"],
        [],
    ]


def test_what_docker_says_of_a_failure_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    know(monkeypatch, inspected("one"), inspected("two", id="sha256:2"))
    script = f"head -c 3000 {tmp_path}/image; echo 'Error: no space \x1bleft' >&2; exit 1"
    (tmp_path / "image").write_bytes(oci())
    with pytest.raises(TorchdockError, match=r"`docker save` of one failed: Error: no space \\x1bleft"):
        verify.verify(SavingEngine(tmp_path, script), "one", "two", Reporter())


def test_a_layer_that_cannot_be_read_ends_docker_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    know(monkeypatch, inspected("one"), inspected("two", id="sha256:2", layers=()))
    (tmp_path / "image").write_bytes(tar((blob(LAYERS[0])[0], b"\x28\xb5\x2f\xfd" + bytes(len(LAYERS[0]) - 4))))
    script = f"echo $$ >{tmp_path}/pid; cat {tmp_path}/image; exec sleep 600"
    with pytest.raises(TorchdockError, match="zstd"):
        verify.verify(SavingEngine(tmp_path, script), "one", "two", Reporter())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_disk_that_cannot_hold_the_copy_is_told_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    know(monkeypatch, inspected("one", size=10**9), inspected("two", id="sha256:2"))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(free=1_099_999_999))
    engine = TableEngine(data_root=tmp_path, cli="/bin/false")
    with pytest.raises(TorchdockError, match=r"needs 1\.1 GB free below .* and 1\.1 GB are.*docker builder prune"):
        verify.verify(engine, "one", "two", Reporter())
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(free=1_100_000_000))
    with pytest.raises(TorchdockError, match="`docker save` of one failed"):
        verify.verify(engine, "one", "two", Reporter())


def test_an_interrupt_ends_docker(tmp_path: Path) -> None:
    """Ctrl-C in the middle of reading: docker, in a session of its own, does not get it, and is ended in good order."""
    traps = f"trap 'touch {tmp_path}/interrupted' INT; trap 'touch {tmp_path}/ended; exit' TERM; trap '' PIPE"
    docker = program(tmp_path / "docker", f"{traps}; echo $$ >{tmp_path}/pid; while :; do echo; sleep 0.01; done")
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from given import TableEngine\n"
        "from torchdock import verify\n"
        "with open(sys.argv[4], 'w+') as errors:\n"
        "    with verify._saving(TableEngine(cli=sys.argv[3]), 'x', errors) as child:\n"
        "        while child.stdout.read(1): pass\n"
    )
    words = [sys.executable, "-c", script, str(ROOT / "src"), str(ROOT / "tests/unit"), docker, str(tmp_path / "err")]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    _, errors = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert (tmp_path / "ended").exists() and not (tmp_path / "interrupted").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# --- a build, and the same build again ---

USUAL = image.Wishes()
VARIANT = variants.get(ROOT, "cu130")


class BuildingEngine(TableEngine):
    """Images by name; a build adds one."""

    def __init__(self, **images: Any) -> None:
        super().__init__()
        self.known: dict[str, ImageFacts] = {
            name: ImageFacts(id, tuple(layers), 1) for name, (id, layers) in images.items()
        }

    def image(self, reference: str) -> ImageFacts | None:
        return self.known.get(reference)


def plan_of(tag: str, base: image.BaseChoice) -> image.BuildPlan:
    return image.BuildPlan(VARIANT, base, tag, ("docker", "buildx", "build", "--tag", tag), ROOT)


REGISTRY = image.BaseChoice("registry", "debian@sha256:1", "debian@sha256:1")
MADE = image.BaseChoice("bootstrapped", "torchdock/base:2", "torchdock/base:2")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Builds that happen in a table: what was wished for, and what the second build gives."""
    state = CloneState(tmp_path)
    engine = BuildingEngine()
    record: dict[str, Any] = {"engine": engine, "state": state, "calls": [], "removed": [], "again": "sha256:same"}

    def plans(root: Path, variant: Any, engine: Any, sources: Any, wishes: Any = USUAL) -> list[image.BuildPlan]:
        suffix = "" if wishes.target == image.ENVIRONMENT else f"-{wishes.target}"
        names = (wishes.tag or f"torchdock/cu130:{name}{suffix}" for name in ("aaa", "bbb"))
        return [plan_of(name, base) for name, base in zip(names, (REGISTRY, MADE), strict=True)]

    def ensure(eng: Any, state: Any, variant: Any, sources: Any, reporter: Any, wishes: Any) -> Any:
        record["calls"].append((wishes.tag, wishes.no_cache, wishes.base))
        tag = wishes.tag or ("torchdock/cu130:bbb" if wishes.base in (None, MADE) else "torchdock/cu130:aaa")
        id = record["again"] if wishes.tag else "sha256:same"
        engine.known[tag] = ImageFacts(id, ("sha256:0",), 1)
        return namedtuple("Built", "image")(tag)

    def bootstrap(eng: Any, root: Any, base: Any, choices: Any, sources: Any, reporter: Any, tag: str) -> None:
        record["calls"].append(("base", choices, tag))
        engine.known[tag] = ImageFacts(record["again"], ("sha256:0",), 1)

    def inspect(eng: Any, name: str) -> verify._Inspected:
        return inspected(name, id=engine.known[name].id, layers=engine.known[name].layers)

    def differ(one: str, two: str) -> Comparison:
        layer = verify.LayerComparison("torch", "", "sha256:1", "sha256:2")
        return Comparison(one, two, engine.known[one].id, engine.known[two].id, (layer,))

    def compare(eng: Any, one: str, two: str, reporter: Any) -> Comparison:
        record["compared"] = (one, two)
        if record.get("fails"):
            raise record["fails"]
        return differ(one, two)

    def remove(eng: Any, tag: str) -> None:
        if engine.known.pop(tag, None):
            record["removed"].append(tag)

    monkeypatch.setattr(image, "plans", plans)
    monkeypatch.setattr(image, "ensure", ensure)
    monkeypatch.setattr(base, "bootstrap", bootstrap)
    monkeypatch.setattr(verify, "_inspect", inspect)
    monkeypatch.setattr(verify, "_remove", remove)
    monkeypatch.setattr(verify, "verify", compare)
    return record


def run(builds: dict[str, Any], plan: verify.Plan) -> Comparison:
    return verify.run(builds["engine"], builds["state"], plan, SOURCES, Reporter())


SOURCES: Any = None
HAVE = ImageFacts("sha256:same", ("sha256:0",), 1)


def test_the_image_that_is_there_is_built_again_on_its_base(builds: dict[str, Any]) -> None:
    builds["engine"].known["torchdock/cu130:bbb"] = HAVE
    plan = verify.plan(builds["engine"], builds["state"], VARIANT, SOURCES)
    assert plan.argv == ("docker", "buildx", "build", "--tag", "torchdock/verify:bbb")
    assert plan.words.startswith("Would build torchdock/cu130:bbb again with no cache as torchdock/verify:bbb")
    assert run(builds, plan).equal
    assert builds["calls"] == [("torchdock/verify:bbb", True, MADE)]
    assert builds["compared"] == ("torchdock/cu130:bbb", "torchdock/verify:bbb")
    assert set(builds["engine"].known) == {"torchdock/cu130:bbb"}  # the second one is gone


def test_an_image_that_is_not_there_is_built_first(builds: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    plan = verify.plan(builds["engine"], builds["state"], VARIANT, SOURCES)
    assert plan.argv[-1] == "torchdock/cu130:aaa"
    assert plan.words.startswith("Would build torchdock/cu130:aaa and build torchdock/cu130:aaa again with no cache")
    comparison = run(builds, plan)
    # The registry could not be reached: the second build takes the base that the first one got.
    assert builds["calls"][0] == (None, False, None)
    assert builds["calls"][1] == ("torchdock/verify:bbb", True, MADE)
    assert builds["compared"] == ("torchdock/cu130:bbb", "torchdock/verify:bbb")
    report = next(builds["state"].folder.glob("reports/verify-*.json"))
    assert json.loads(report.read_text()) == json.loads(json.dumps(comparison.document()))
    assert str(report) in capsys.readouterr().out


def test_a_second_build_that_differs_is_kept_and_named(
    builds: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    builds["engine"].known["torchdock/cu130:aaa"] = HAVE
    builds["again"] = "sha256:other"
    comparison = run(builds, verify.plan(builds["engine"], builds["state"], VARIANT, SOURCES))
    assert not comparison.equal
    assert builds["engine"].known["torchdock/verify:aaa"].id == "sha256:other"
    text = capsys.readouterr().out
    assert "`docker image rm torchdock/verify:aaa` removes it" in text
    assert "torchdock/cu130:aaa and torchdock/verify:aaa differ: layer torch" in text
    builds["again"] = "sha256:same"  # the next one removes what this one kept
    assert run(builds, verify.plan(builds["engine"], builds["state"], VARIANT, SOURCES)).equal
    assert builds["removed"] == ["torchdock/verify:aaa"] * 2  # before the build and after it
    assert set(builds["engine"].known) == {"torchdock/cu130:aaa"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TorchdockError("no")])
def test_a_comparison_that_fails_leaves_no_second_image(builds: dict[str, Any], error: BaseException) -> None:
    builds["engine"].known["torchdock/cu130:aaa"] = HAVE
    builds["fails"] = error
    with pytest.raises(type(error)):
        run(builds, verify.plan(builds["engine"], builds["state"], VARIANT, SOURCES))
    assert set(builds["engine"].known) == {"torchdock/cu130:aaa"}


@pytest.mark.parametrize(("there", "expected"), [(("aaa", "bbb"), "bbb"), (("aaa",), "bbb"), ((), "bbb")])
def test_somebody_elses_image_is_compared_on_its_own_base(
    builds: dict[str, Any], there: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = builds["engine"]
    engine.known |= {f"torchdock/cu130:{name}": HAVE for name in there}
    engine.known["debian@sha256:1"] = ImageFacts("sha256:d", ("sha256:debian",), 1)
    engine.known["torchdock/base:2"] = ImageFacts("sha256:b", ("sha256:0",), 1)
    engine.known["theirs:1"] = ImageFacts("sha256:same", ("sha256:0", "sha256:9"), 1)
    plan = verify.plan(engine, builds["state"], VARIANT, SOURCES, other="theirs:1")
    assert plan.note == ""
    assert plan.words.endswith("compare theirs:1 with torchdock/cu130:bbb")
    assert plan.argv == (
        ("docker", "save", "theirs:1") if expected in there else plan_of("torchdock/cu130:bbb", MADE).argv
    )
    assert run(builds, plan).equal
    assert builds["compared"] == (f"torchdock/cu130:{expected}", "theirs:1")
    assert builds["calls"] == ([] if expected in there else [(None, False, MADE)])
    assert "theirs:1" in engine.known  # theirs is left alone
    assert "theirs:1 is what this lock builds" in capsys.readouterr().out


def test_the_first_layer_tells_the_base_where_the_base_is_gone(builds: dict[str, Any]) -> None:
    engine = builds["engine"]
    engine.known["torchdock/cu130:aaa"] = ImageFacts("sha256:a", ("sha256:debian", "sha256:1"), 1)
    engine.known["torchdock/cu130:bbb"] = ImageFacts("sha256:b", ("sha256:made", "sha256:1"), 1)
    engine.known["theirs:1"] = ImageFacts("sha256:c", ("sha256:made",), 1)
    plan = verify.plan(engine, builds["state"], VARIANT, SOURCES, other="theirs:1")
    assert (plan.ours.tag, plan.pinned, plan.note) == ("torchdock/cu130:bbb", True, "")


def test_of_two_builds_on_that_base_the_one_that_is_there_is_taken(builds: dict[str, Any]) -> None:
    engine = builds["engine"]
    for name in ("debian@sha256:1", "torchdock/base:2", "torchdock/cu130:bbb", "theirs:1"):
        engine.known[name] = HAVE
    assert verify.plan(engine, builds["state"], VARIANT, SOURCES, other="theirs:1").ours.tag == "torchdock/cu130:bbb"


def test_another_base_is_said_first(builds: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    engine = builds["engine"]
    engine.known["torchdock/cu130:aaa"] = HAVE
    engine.known["theirs:1"] = ImageFacts("sha256:other", ("sha256:strange",), 1)
    plan = verify.plan(engine, builds["state"], VARIANT, SOURCES, other="theirs:1")
    assert plan.note and plan.words.endswith(plan.note)
    comparison = run(builds, plan)
    assert capsys.readouterr().out.startswith("theirs:1 stands on a base that is none of this engine's")
    assert comparison.notes[0].startswith("theirs:1 stands on a base")
    assert len(comparison.notes) == 1  # nothing of theirs is ours to remove


def test_an_image_with_a_compiler_is_compared_with_one(builds: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    listing = [{"CreatedBy": "RUN sh /run/devel.sh # buildkit"}]
    monkeypatch.setattr(verify, "_inspect", lambda engine, name: inspected(name, layers=("sha256:0",), listing=listing))
    plan = verify.plan(builds["engine"], builds["state"], VARIANT, SOURCES, other="theirs:1")
    assert plan.ours.tag == "torchdock/cu130:aaa-devel"


def test_the_bootstrapped_base_is_made_again(builds: dict[str, Any]) -> None:
    builds["engine"].known["torchdock/base:2"] = HAVE
    plan = verify.plan_base(builds["engine"], builds["state"], VARIANT, SOURCES)
    assert plan.argv == ()
    assert "torchdock/base:2 again with mmdebstrap as torchdock/verify:base-2" in plan.words
    assert run(builds, plan).equal
    assert builds["calls"] == [("base", [REGISTRY, MADE], "torchdock/verify:base-2")]
    assert builds["compared"] == ("torchdock/base:2", "torchdock/verify:base-2")
    assert set(builds["engine"].known) == {"torchdock/base:2"}


def test_without_a_bootstrapped_base_there_is_nothing_to_compare(builds: dict[str, Any]) -> None:
    builds["engine"].known["debian@sha256:1"] = HAVE
    with pytest.raises(InputError, match="no base made from Debian packages"):
        verify.plan_base(builds["engine"], builds["state"], VARIANT, SOURCES)


@pytest.mark.parametrize(
    ("labels", "asked", "said"),
    [
        ({}, None, "theirs:1 has no label dev.torchdock.variant"),
        ({"dev.torchdock.variant": "cu130"}, "cpu", "theirs:1 is 'cu130', and --variant asks for 'cpu'"),
        ({"dev.torchdock.variant": "\x1bcu13"}, None, r"There is no variant '\\x1bcu13'. Did you mean 'cu130'\?"),
    ],
)
def test_an_image_that_is_not_of_this_clone_is_wrong_input(
    monkeypatch: pytest.MonkeyPatch, labels: dict[str, str], asked: str | None, said: str
) -> None:
    know(monkeypatch, inspected("theirs:1", labels=labels))
    with pytest.raises(InputError, match=said):
        verify.variant_of(TableEngine(), ROOT, "theirs:1", asked)


@pytest.mark.parametrize("asked", [None, "cu130"])
def test_an_image_says_its_variant(monkeypatch: pytest.MonkeyPatch, asked: str | None) -> None:
    know(monkeypatch, inspected("theirs:1", labels={"dev.torchdock.variant": "cu130"}))
    assert verify.variant_of(TableEngine(), ROOT, "theirs:1", asked) == VARIANT
