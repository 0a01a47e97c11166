"""An image as `docker save` gives it: what is read of it, and what its layers are called."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tars import DIFF_IDS, EPOCH, HISTORY, LAYERS, STORED, blob, config, digest, layer, member, oci, tar, usual

from torchdock import saved
from torchdock.errors import TorchdockError
from torchdock.saved import Entry, Layer

zstd = saved._zstd()

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
        found = saved.read_layer(io.BytesIO(data))
        assert found.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert [(entry.path[:6], entry.size) for entry in found.entries] == [
            ("before", size),
            ("a/long", size),
            ("after", 1),
        ]
        assert found.entries[1].sha256 == hashlib.sha256(b"y" * size).hexdigest()
        assert not found.trailing


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_a_compressed_layer_is_known_by_what_is_in_it(compress: Callable[[bytes], bytes]) -> None:
    data = tar(*usual(), member("big", bytes(range(256)) * 20_000))
    assert saved.read_layer(io.BytesIO(compress(data))) == saved.read_layer(io.BytesIO(data))
    halves = compress(data[:5000]) + compress(data[5000:])  # as pigz and pzstd write it
    assert saved.read_layer(io.BytesIO(halves)) == saved.read_layer(io.BytesIO(data))


def test_an_empty_layer_has_no_entries() -> None:
    assert saved.read_layer(io.BytesIO(bytes(1024))).entries == ()


def test_a_source_that_gives_little_at_a_time_is_read_as_well() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 1, 7))

    data = tar(*usual(), member("big", b"b" * 5000))
    assert saved.read_layer(Slow(data)) == saved.read_layer(io.BytesIO(data))


def test_sparse_files_and_old_formats_are_read() -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        assert saved.read_layer(io.BytesIO(tar(*usual(), form=form))).entries == layer(*usual()).entries


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "A layer cannot be read as a tar"),
        (b"no tar at all" * 100, "A layer cannot be read as a tar"),
        (gzip.compress(tar(member("a", b"a" * 5000)))[:60], "A layer cannot be read as a tar"),
        (zstd.compress(tar(member("a", b"a" * 5000)))[:-3], "A layer cannot be read as a tar.*end-of-stream"),
        (zstd.compress(tar(member("a", b"a" * 5000)))[:4] + b"\xff" * 60, "A layer cannot be read as a tar.*Zstandard"),
        (zstd.compress(b"no tar at all" * 100), "A layer cannot be read as a tar"),
    ],
    ids=["empty", "text", "cut off", "zstd, cut off", "zstd, damaged", "zstd, text"],
)
def test_what_is_no_layer_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(TorchdockError, match=said):
        saved.read_layer(io.BytesIO(data))


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
    assert saved._nanoseconds(record, 5.9) == expected


# --- what a layer is called ---

NAMES = ["base", "python", "cuda", "torch", "tools", "layer 6", "suite"]

Steps = Sequence["dict[str, Any]"]


def names(history: Steps, count: int) -> list[str]:
    return [found.name for found in saved.name_layers(history, count)]


def test_layers_are_named_for_their_steps() -> None:
    assert names(HISTORY, 7) == NAMES
    named = saved.name_layers(HISTORY, 7)
    assert (named[0].step, named[5].step) == ("ADD rootfs.tar /", "WORKDIR /workspace")


def test_the_base_may_have_several_layers_and_run_steps() -> None:
    base = [{"created_by": "# debian.sh --arch 'amd64'"}, {"created_by": "RUN /bin/sh -c apt-get update"}]
    assert names([*base, *HISTORY[2:]], 8) == [
        "base 1",
        "base 2",
        "python",
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
    assert [found.name for found in saved.name_by_listing(listing, 7)] == NAMES
    # A WORKDIR that was there already makes no layer.
    assert [found.name for found in saved.name_by_listing(listing, 6)] == [*NAMES[:5], "suite"]
    old = [{"CreatedBy": '/bin/sh -c #(nop)  CMD ["bash"]'}, {"CreatedBy": "/bin/sh -c #(nop) ADD file:1 in / "}]
    assert [found.step for found in saved.name_by_listing(old, 1)] == ["/bin/sh -c #(nop) ADD file:1 in /"]
    assert [found.name for found in saved.name_by_listing(listing, 3)] == ["layer 1", "layer 2", "layer 3"]


# --- what `docker save` gives ---


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


def containerd(compress: Callable[[bytes], bytes]) -> tuple[bytes, str]:
    """The containerd store: layers compressed, the ID is that of the manifest; an attestation lies beside it."""
    manifest = b'{"schemaVersion": 2}'
    other = json.dumps(config("sha256:0")).encode()
    stream = oci([compress(data) for data in LAYERS], more=[manifest, other])
    return stream, digest(manifest)


@pytest.mark.parametrize(
    "stream",
    [(oci(), digest(STORED)), (legacy(), digest(STORED)), containerd(zstd.compress), containerd(gzip.compress)],
)
@pytest.mark.parametrize("wanted", [[], [0], [2], [0, 1, 2]])
def test_each_layout_gives_the_configuration_and_the_layers_that_were_asked_for(
    stream: tuple[bytes, str], wanted: list[int]
) -> None:
    asked = {DIFF_IDS[number] for number in wanted}
    read = saved.read_image(io.BytesIO(stream[0]), stream[1], DIFF_IDS, asked)
    assert read.config == STORED
    assert read.digest == digest(STORED)
    assert {name: found.entries[0].path for name, found in read.layers.items()} == {
        DIFF_IDS[number]: f"file{number}" for number in wanted
    }


def test_layers_that_nobody_asked_for_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 GB that are equal on both sides must not be hashed."""
    read: list[str] = []
    original = saved.read_layer

    def count(source: saved.Readable) -> Layer:
        found = original(source)
        read.append(found.digest)
        return found

    monkeypatch.setattr(saved, "read_layer", count)
    saved.read_image(io.BytesIO(oci()), digest(STORED), DIFF_IDS, {DIFF_IDS[1]})
    assert read == [DIFF_IDS[1]]


def test_it_stops_when_it_has_what_it_needs() -> None:
    first = min((*LAYERS, STORED), key=lambda data: blob(data)[0].name)
    stored = STORED
    while blob(stored)[0].name > blob(first)[0].name:  # a configuration that sorts before all layers
        stored += b" "
    stream = io.BytesIO(oci(stored=stored))
    saved.read_image(stream, digest(stored), DIFF_IDS, set())
    assert stream.tell() < len(stream.getvalue()) / 2


def test_a_layer_whose_name_lies_is_missing() -> None:
    lie = (blob(LAYERS[0])[0], tar(member("other", bytes(600))))
    stream = tar(lie, blob(STORED), member("manifest.json", b"[]"))
    with pytest.raises(TorchdockError, match=rf"has not the layers {DIFF_IDS[0]}"):
        saved.read_image(io.BytesIO(stream), digest(STORED), DIFF_IDS, {DIFF_IDS[0]})


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
        saved.read_image(io.BytesIO(stream), digest(STORED), DIFF_IDS, set())


def test_documents_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "DOCUMENT_BYTES", len(STORED))
    large = member("blobs/sha256/" + "0" * 64, b"{" + b" " * len(STORED) * 9)  # passed over, whatever it is
    stream = tar(large, blob(STORED), member("manifest.json", b"[]"))
    assert saved.read_image(io.BytesIO(stream), digest(STORED), DIFF_IDS, set()).config == STORED
    many = tar(*[member(f"{number}.json", b" " * len(STORED)) for number in range(9)])
    with pytest.raises(TorchdockError, match="too large"):
        saved.read_image(io.BytesIO(many), digest(STORED), DIFF_IDS, set())
