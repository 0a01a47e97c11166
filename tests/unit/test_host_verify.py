"""Two images of an engine compared to the bit: what docker is asked for, what a person reads, and what is kept."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given import ROOT, TableEngine, program
from tars import DIFF_IDS, HISTORY, LAYERS, STORED, blob, config, digest, member, oci, saved, tar

from torchdock import base, difference, image, uses, variants, verify
from torchdock import saved as reading
from torchdock.console import Reporter
from torchdock.difference import Comparison
from torchdock.engine import ImageFacts
from torchdock.errors import InputError, TorchdockError
from torchdock.progress import recorded
from torchdock.state import CloneState

# --- what people read ---


def shown(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> str:
    verify.show(comparison, Reporter())
    return capsys.readouterr().out


def test_people_read_a_line_a_layer_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    first = saved(LAYERS[0], tar(member("a", mode=0o600), member("b")), created="then")
    second = saved(LAYERS[0], tar(member("a"), member("b", mtime=0)), created="now")
    text = shown(difference.compare("one", first, "two", second), capsys)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["base", "equal", DIFF_IDS[0][7:19]]
    assert lines[1][:2] == ["python", "differs"]
    assert text.splitlines()[1].endswith(": 2 files (1 mode, 1 time)")
    assert ["python", "a", "mode", "0600", "0644"] in lines
    assert ["python", "b", "time", "2026-10-05T00:00:00Z", "1970-01-01T00:00:00Z"] in lines
    assert ["created", '"then"', '"now"'] in lines
    assert f"{difference.MEANINGS['mode']}." in text and f"{difference.MEANINGS['time']}." in text
    assert difference.MEANINGS["content"] not in text


def test_only_so_many_files_are_printed_and_all_are_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    many = tar(*[member(f"file-{number:03}") for number in range(100)])
    comparison = difference.compare("one", saved(many), "two", saved(tar()))
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
    text = shown(difference.compare("one", saved(tar(*files), **labels), "two", saved(tar(*plain))), capsys)
    assert not {"\x1b", "\x07", "\u202e", "\x9b", "\udc80"} & set(text)
    assert "\\x1b[2J\\x07\\u202e\\x9b\\n\\udc80[red]" in "".join(text.split())
    # The document goes through JSON, which escapes them.
    assert "\x1b" not in json.dumps(difference.compare("one", saved(tar(*files), **labels), "two", saved()).document())


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


def test_equal_images_that_are_compressed_otherwise_are_equal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The containerd store: another ID, since that is of the manifest."""
    for name, compress in (("gzip", gzip.compress), ("zstd", reading._zstd().compress)):
        (tmp_path / name).write_bytes(oci([compress(data) for data in LAYERS]))
    know(monkeypatch, inspected("one", id="gzip"), inspected("two", id="zstd"))
    found = verify.verify(SavingEngine(tmp_path, f'cat "{tmp_path}/$2"'), "one", "two", Reporter())
    assert found.equal and found.first_id == found.second_id == ID
    assert all(layer.equal for layer in found.layers) and (found.config, found.notes) == ((), ())


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


@pytest.mark.parametrize("lost", [b"", b"lost"])
def test_an_image_of_another_store_has_the_same_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: bytes
) -> None:
    """Folders that a step touched, marks of new ones, files that are as they were: overlay2 keeps them in a layer."""
    etc, new = (member(name, type=tarfile.DIRTYPE, mode=0o755) for name in ("etc", "new"))
    below = tar(etc, member("etc/lock"))
    classic = tar(etc, member("etc/lock", lost), new, member("new/.wh..wh..opq"), member("new/x", b"x"))
    known = []
    for name, layers in (("one", [below, classic]), ("two", [below, tar(new, member("new/x", b"x"))])):
        diff_ids = tuple(digest(data) for data in layers)
        stored = json.dumps(config(*diff_ids)).encode()
        (tmp_path / digest(stored)).write_bytes(oci(layers, stored))
        known.append(inspected(name, id=digest(stored), layers=diff_ids))
    know(monkeypatch, *known)
    found = verify.verify(SavingEngine(tmp_path, f'cat "{tmp_path}/$2"'), "one", "two", Reporter())
    assert not found.equal
    assert found.notes == (() if lost else (difference.STORES,))


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
    with pytest.raises(TorchdockError, match="A layer cannot be read"):
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


@pytest.fixture(autouse=True)
def _one_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second build carries the clone in its name."""
    monkeypatch.setattr(CloneState, "clone", "c10ne")


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
        if wishes.base is None:
            engine.known.setdefault("torchdock/base:2", HAVE)
        return namedtuple("Built", "image")(tag)

    def bootstrap(eng: Any, root: Any, base: Any, choices: Any, sources: Any, reporter: Any, tag: str = "") -> Any:
        record["calls"].append(("base", choices, tag))
        engine.known[tag or "torchdock/base:2"] = ImageFacts(record["again"], ("sha256:0",), 1)
        return record.get("base", MADE)

    def inspect(eng: Any, name: str) -> verify._Inspected:
        return inspected(name, id=engine.known[name].id, layers=engine.known[name].layers)

    def differ(one: str, two: str) -> Comparison:
        layer = difference.LayerComparison("torch", "", "sha256:1", "sha256:2")
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
    monkeypatch.setattr(uses, "brought", lambda eng, name: record.get("brought", {}).get(name, ""))
    return record


def run(builds: dict[str, Any], plan: verify.Plan) -> Comparison:
    return verify.run(builds["engine"], builds["state"], plan, SOURCES, Reporter())


SOURCES: Any = None

HAVE = ImageFacts("sha256:same", ("sha256:0",), 1)


def test_the_image_that_is_there_is_built_again_on_its_base(builds: dict[str, Any]) -> None:
    builds["engine"].known |= {"torchdock/cu130:bbb": HAVE, "torchdock/base:2": HAVE}
    plan = verify.plan(builds["engine"], builds["state"], VARIANT, SOURCES)
    assert plan.argv == ("docker", "buildx", "build", "--tag", "torchdock/verify:bbb-c10ne")
    assert plan.words.startswith("Would build torchdock/cu130:bbb again with no cache as torchdock/verify:bbb-c10ne")
    assert run(builds, plan).equal
    assert builds["calls"] == [("torchdock/verify:bbb-c10ne", True, MADE)]
    assert builds["compared"] == ("torchdock/cu130:bbb", "torchdock/verify:bbb-c10ne")
    assert set(builds["engine"].known) == {"torchdock/cu130:bbb", "torchdock/base:2"}  # the second one is gone


def test_an_image_that_is_not_there_is_built_first(builds: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    plan = verify.plan(builds["engine"], builds["state"], VARIANT, SOURCES)
    assert plan.argv[-1] == "torchdock/cu130:aaa"
    assert plan.words.startswith("Would build torchdock/cu130:aaa and build torchdock/cu130:aaa again with no cache")
    comparison = run(builds, plan)
    # The registry could not be reached: the second build takes the base that the first one got.
    assert builds["calls"][0] == (None, False, None)
    assert builds["calls"][1] == ("torchdock/verify:bbb-c10ne", True, MADE)
    assert builds["compared"] == ("torchdock/cu130:bbb", "torchdock/verify:bbb-c10ne")
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
    assert builds["engine"].known["torchdock/verify:aaa-c10ne"].id == "sha256:other"
    text = capsys.readouterr().out
    assert "`docker image rm torchdock/verify:aaa-c10ne` removes it" in text
    assert "torchdock/cu130:aaa and torchdock/verify:aaa-c10ne differ: layer torch" in text
    builds["again"] = "sha256:same"  # the next one removes what this one kept
    assert run(builds, verify.plan(builds["engine"], builds["state"], VARIANT, SOURCES)).equal
    assert builds["removed"] == ["torchdock/verify:aaa-c10ne"] * 2  # before the build and after it
    assert set(builds["engine"].known) == {"torchdock/cu130:aaa"}


@pytest.mark.parametrize("base", [False, True])
def test_a_second_build_that_is_kept_is_recorded_for_clean(builds: dict[str, Any], base: bool) -> None:
    engine, state = builds["engine"], builds["state"]
    engine.known |= {"torchdock/base:2": HAVE, "torchdock/cu130:bbb": HAVE}
    plan = (verify.plan_base if base else verify.plan)(engine, state, VARIANT, SOURCES)
    assert run(builds, plan).equal
    assert state.records() == []
    builds["again"] = "sha256:other"
    for _ in range(2):  # the same image again is the same record
        assert not run(builds, plan).equal
        (record,) = state.records()
        assert record.keys() == {"image", "variant", "when"}
        kept = "torchdock/verify:base-2-c10ne" if base else "torchdock/verify:bbb-c10ne"
        assert (record["image"], record["variant"]) == (kept, "cu130")
        assert kept in engine.known


def test_somebody_elses_image_that_differs_is_not_recorded(builds: dict[str, Any]) -> None:
    builds["engine"].known |= {"torchdock/cu130:bbb": HAVE, "theirs:1": ImageFacts("sha256:other", ("sha256:0",), 1)}
    plan = verify.plan(builds["engine"], builds["state"], VARIANT, SOURCES, other="theirs:1")
    assert not run(builds, plan).equal
    assert builds["state"].records() == []


def test_a_kept_second_build_saves_no_build_its_disk(builds: dict[str, Any]) -> None:
    """Nor is it taken for this lock's image."""
    engine, state = builds["engine"], builds["state"]
    builds["again"] = "sha256:other"
    engine.known |= {"torchdock/cu130:bbb": HAVE, "torchdock/base:2": HAVE}
    run(builds, verify.plan(engine, state, VARIANT, SOURCES))
    assert engine.known.pop("torchdock/cu130:bbb") and "torchdock/verify:bbb-c10ne" in engine.known
    assert image.find(engine, image.plans(ROOT, VARIANT, engine, SOURCES)) is None
    kept = next(record for record in state.records() if record["image"] == "torchdock/verify:bbb-c10ne")
    assert recorded(kept) == {}  # no build counts its layers as cached


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


@pytest.mark.parametrize("typed", ["torchdock/cu130:bbb", "theirs:1"])
def test_an_image_that_was_brought_is_compared_with_a_build_of_its_own(
    builds: dict[str, Any], typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its own name, or by another one of the same image, it would be compared with itself."""
    engine = builds["engine"]
    engine.known |= {"torchdock/cu130:bbb": HAVE, "theirs:1": HAVE, "torchdock/base:2": HAVE}
    builds["brought"] = {"torchdock/cu130:bbb": "registry.example.org/team@sha256:1"}
    plan = verify.plan(engine, builds["state"], VARIANT, SOURCES, other=typed)
    assert plan.argv == ("docker", "buildx", "build", "--tag", "torchdock/verify:bbb-c10ne")
    assert "came from registry.example.org/team@sha256:1" in plan.words
    assert run(builds, plan).equal
    assert builds["calls"] == [("torchdock/verify:bbb-c10ne", True, MADE)]
    assert builds["compared"] == ("torchdock/cu130:bbb", "torchdock/verify:bbb-c10ne")
    assert "came from registry.example.org/team@sha256:1" in capsys.readouterr().out


@pytest.mark.parametrize("store", ["overlay2", "containerd"])
def test_a_brought_image_that_is_compressed_otherwise_is_compared_with_no_brought_one(
    builds: dict[str, Any], store: str
) -> None:
    engine = builds["engine"]
    if store == "containerd":
        info = {**engine.facts.info, "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
        engine.facts = replace(engine.facts, info=info)
    other = replace(HAVE, id="sha256:another")  # of the manifest, or of a configuration that differs in its history
    engine.known |= {"torchdock/cu130:bbb": HAVE, "theirs:1": other, "torchdock/base:2": HAVE}
    builds["brought"] = {"torchdock/cu130:bbb": "registry.example.org/team@sha256:1"}
    plan = verify.plan(engine, builds["state"], VARIANT, SOURCES, other="theirs:1")
    assert plan.other == ("theirs:1" if store == "overlay2" else "torchdock/verify:bbb-c10ne")


def test_the_base_of_an_image_that_was_brought_is_made_first(builds: dict[str, Any]) -> None:
    engine = builds["engine"]
    engine.known["torchdock/cu130:bbb"] = HAVE
    builds["brought"] = {"torchdock/cu130:bbb": "a file"}
    plan = verify.plan(engine, builds["state"], VARIANT, SOURCES, other="torchdock/cu130:bbb")
    assert run(builds, plan).equal
    assert builds["calls"] == [("base", [REGISTRY, MADE], ""), ("torchdock/verify:bbb-c10ne", True, MADE)]
    del engine.known["torchdock/base:2"]
    builds["base"] = image.BaseChoice("bootstrapped", "torchdock/base:3", "torchdock/base:3", image.DRIFT)
    with pytest.raises(TorchdockError, match="stands on torchdock/base:2, of which the mirrors no longer have every"):
        run(builds, plan)


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
    assert "torchdock/base:2 again with mmdebstrap as torchdock/verify:base-2-c10ne" in plan.words
    assert run(builds, plan).equal
    assert builds["calls"] == [("base", [REGISTRY, MADE], "torchdock/verify:base-2-c10ne")]
    assert builds["compared"] == ("torchdock/base:2", "torchdock/verify:base-2-c10ne")
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
