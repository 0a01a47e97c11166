"""Two images that were read, compared: each difference is named, and nothing else."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import replace
from typing import Any

import pytest
from tars import DIFF_IDS, EPOCH, HISTORY, LAYERS, config, layer, member, saved, tar, usual

from torchdock import difference
from torchdock.difference import ConfigDifference, FileDifference
from torchdock.saved import Entry


def compared(different: tuple[tarfile.TarInfo, bytes]) -> list[FileDifference]:
    other = usual(**{different[0].name: different})
    return difference.compare_layers(layer(*usual()).entries, layer(*other).entries)


# --- layers ---


def test_equal_layers_have_no_differences() -> None:
    assert difference.compare_layers(layer(*usual()).entries, layer(*usual()).entries) == []


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
    kinds = {"order", "only in first", "only in second", *difference._values(Entry("a", "file"))}
    assert kinds == set(difference.MEANINGS)


def test_a_file_of_one_side_only_is_named() -> None:
    more = [*usual(), member("tmp/log", b"x")]
    one, two = layer(*usual()).entries, layer(*more).entries
    whole = f"file, 1 bytes, sha256 {hashlib.sha256(b'x').hexdigest()[:12]}"
    assert difference.compare_layers(one, two) == [FileDifference("tmp/log", ("only in second",), "", whole)]
    assert difference.compare_layers(two, one) == [FileDifference("tmp/log", ("only in first",), whole, "")]


def test_a_path_that_stands_twice_is_compared_twice() -> None:
    one = layer(member("a", b"1"), member("a", b"2"))
    two = layer(member("a", b"1"), member("a", b"3"))
    assert [found.what for found in difference.compare_layers(one.entries, two.entries)] == [("content",)]
    assert [found.what for found in difference.compare_layers(one.entries, one.entries[:1])] == [("only in first",)]


def test_order_is_a_difference_if_it_is_the_only_one() -> None:
    one, two = layer(*usual()).entries, layer(*reversed(usual())).entries
    assert difference.compare_layers(one, two) == [FileDifference("etc", ("order",), "etc", "etc/null")]
    changed = tuple(replace(entry, mode=0o600) if entry.path == "etc/issue" else entry for entry in two)
    assert [found.what for found in difference.compare_layers(one, changed)] == [("mode",)]


def test_a_time_that_no_calendar_has_is_a_number() -> None:
    assert difference._time(10**30) == f"@{10**21}.000000000"
    assert difference._time(-1) == "1969-12-31T23:59:59.999999999Z"


# --- configurations ---


def test_equal_configurations_have_no_differences() -> None:
    assert difference.compare_config(config("sha256:1"), config("sha256:2")) == []  # layers are compared themselves


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
    found = difference.compare_config(config(), config(**different))
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
    found = difference.compare_config(config(), config(config=settings))
    assert found == [ConfigDifference(*one) for one in expected]


def test_history_is_sorted_by_number() -> None:
    empty = [{"created_by": "a"}] * 11
    other = [{"created_by": "b"}] * 11
    found = difference.compare_config({"history": empty}, {"history": other})
    assert [one.key for one in found] == [f"history[{number}].created_by" for number in range(11)]


def test_an_odd_environment_is_compared_as_it_is() -> None:
    for value in (["A=1", "A=2"], [1], "A=1"):
        found = difference.compare_config({"config": {"Env": []}}, {"config": {"Env": value}})
        assert [(one.key, one.second) for one in found if one.key == "config.Env"] == [
            ("config.Env", json.dumps(value))
        ]


# --- two images ---


def test_a_difference_is_told_by_layer() -> None:
    changed = tar(member("file1", b"other"))
    found = difference.compare("one", saved(*LAYERS), "two", saved(LAYERS[0], changed, LAYERS[2]))
    assert not found.equal
    assert [(one.name, one.equal) for one in found.layers] == [("base", True), ("python", False), ("cuda", True)]
    assert [one.path for one in found.layers[1].differences] == ["file1"]
    assert found.config == ()
    document = json.loads(json.dumps(found.document()))
    assert document["equal"] is False
    assert document["layers"][1]["differences"][0]["what"] == ["content"]
    assert document["layers"][1]["equal"] is False


def test_a_layer_of_one_side_only_shows_its_files() -> None:
    found = difference.compare("one", saved(*LAYERS[:2]), "two", saved(*LAYERS))
    assert (found.layers[2].first, found.layers[2].second) == (None, DIFF_IDS[2])
    assert [(one.path, one.what) for one in found.layers[2].differences] == [("file2", ("only in second",))]
    assert [one.key for one in found.config] == ["history[2].created_by"]


def test_equal_files_in_other_bytes_are_told_as_such() -> None:
    members = [member("long/" * 30 + "name", b"x")]
    one, two = tar(*members), tar(*members, form=tarfile.GNU_FORMAT)
    found = difference.compare("one", saved(one), "two", saved(two))
    assert (found.layers[0].equal, found.layers[0].differences, found.layers[0].note) == (False, (), difference.RAW)


def test_data_behind_the_end_of_a_layer_is_told() -> None:
    hidden = tar(member("a")) + tar(member("hidden", b"x")) + bytes(2 << 20)
    found = difference.compare("one", saved(tar(member("a"))), "two", saved(hidden)).layers[0]
    assert "the tar of the second goes on after what can be read" in found.note
    broken = bytearray(tar(member("a"), member("b"), member("c", b"x")))
    broken[512 + 148 : 512 + 156] = b"garbage!"  # the checksum of the second header: tarfile ends there in silence
    found = difference.compare("one", saved(bytes(broken)), "two", saved(tar(member("a")))).layers[0]
    assert "the tar of the first goes on" in found.note


def test_the_same_values_in_other_bytes_are_told_as_such() -> None:
    one = saved(*LAYERS)
    two = replace(one, config=json.dumps(one.document, indent=1).encode())
    found = difference.compare("one", one, "two", two)
    assert not found.equal
    assert (found.config, [layer.equal for layer in found.layers]) == ((), [True] * 3)
    assert "the same values in other bytes" in found.notes[0]


def test_a_layer_that_was_not_read_is_told() -> None:
    one, two = saved(*LAYERS), saved(LAYERS[0], LAYERS[2], LAYERS[1])
    found = difference.compare("one", replace(one, layers={}), "two", replace(two, layers={}))
    assert [layer.note for layer in found.layers] == ["", *["its files were not looked into"] * 2]


# --- what a container sees ---


def seen(*layers: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[str, str]]:
    files = difference.tree(layer(*members) for members in layers)
    return sorted((path, f"{entry.type} {entry.size}") for path, entry in files.items())


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=0o755)


BELOW = [folder("a"), member("a/x", b"x"), folder("a/b"), member("a/b/y", b"y"), member("ab", b"z")]


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ([], {"a": "folder 0", "a/x": "file 1", "a/b": "folder 0", "a/b/y": "file 1", "ab": "file 1"}),
        ([member("a/x", b"xx")], {"a/x": "file 2"}),
        ([folder("a")], {"a/b/y": "file 1"}),
        ([member("a/.wh.b")], {"a": "folder 0", "a/x": "file 1", "ab": "file 1"}),
        ([member(".wh.ab"), member("a/.wh.none")], {"a/b/y": "file 1", "ab": None}),
        (
            [folder("a"), member("a/new", b"n"), member("a/.wh..wh..opq")],
            {"a/new": "file 1", "a/x": None, "a/b/y": None},
        ),
        ([folder("new"), member("new/.wh..wh..opq"), member("new/n")], {"new/n": "file 0", "a/b/y": "file 1"}),
        ([member("a", b"f")], {"a": "file 1", "a/x": None, "a/b": None, "a/b/y": None, "ab": "file 1"}),
    ],
    ids=["nothing", "changed", "a folder again", "whiteout", "of a file", "opaque", "a new one", "a file instead"],
)
def test_a_container_sees_what_the_layers_say(
    above: list[tuple[tarfile.TarInfo, bytes]], expected: dict[str, str | None]
) -> None:
    found = dict(seen(BELOW, above))
    assert {path: found.get(path) for path in expected} == expected
    assert not [path for path in found if ".wh." in path]


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([folder("etc"), member("x", b"x")], [member("x", b"x")], True),
        ([member("x", b"x")], [folder("etc"), member("x", b"x")], True),
        ([folder("a"), member("a/.wh..wh..opq")], [folder("a")], True),
        ([folder("etc"), member("lock")], [], True),
        ([member("lock")], [], False),  # one more file is no sign of it
        ([folder("etc"), member("x", b"x")], [member("x", b"y")], False),
        ([folder("etc")], [folder("etc")], False),
    ],
)
def test_what_another_image_store_may_have_left_out_is_looked_into(
    one: list[tuple[tarfile.TarInfo, bytes]], two: list[tuple[tarfile.TarInfo, bytes]], expected: bool
) -> None:
    assert difference.compare("one", saved(tar(*one)), "two", saved(tar(*two))).by_store is expected
    assert not difference.compare("one", saved(tar(*one), os="a"), "two", saved(tar(*two))).by_store
