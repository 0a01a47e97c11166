"""What clean finds to remove: this user's and this clone's, used by nobody else; what stays is told with the reason."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from torchdock import clean, saved, uses
from torchdock.buildcache import Record
from torchdock.clean import Container, Entry, Facts, Image, Volume, Wishes
from torchdock.console import Reporter
from torchdock.errors import InputError
from torchdock.state import CloneState
from torchdock.uses import Use

ME, HER, HERE, ELSEWHERE = 1000, 1001, "c1", "c2"
IMAGES = Wishes(images=True, keep=0)
BASE = "torchdock/base:trixie-1"


def container(name: str = "torchdock-anna-night", state: str = "exited", **different: Any) -> Container:
    """An ended job of mine, except for what is named; ``user``, ``clone`` and ``role`` are labels."""
    labels = {
        f"dev.torchdock.{key}": different.pop(key, usual)
        for key, usual in (("user", str(ME)), ("clone", HERE), ("role", "job"))
    }
    usual: dict[str, Any] = {"id": f"id-{name}", "image": "sha256:1", "status": "Exited (0)", "age": 3600.0, "bytes": 7}
    return Container(**{**usual, "name": name, "state": state, "labels": labels, **different})


def image(tag: str, *layers: tuple[str, int], id: str = "") -> Image:
    return Image(id or f"sha256:{tag}", (tag,) if tag else (), layers or (("base", 70), (tag, 30)))


def use(tag: str, uid: int = ME, clone: str = HERE, since: float = 1.0, base: str = BASE) -> Use:
    return Use(tag, base, uid, clone, Path(f"/home/{uid}/{clone}"), since, uses.volume_name(tag, uid, clone))


def facts(**different: Any) -> Facts:
    return Facts(**{"uid": ME, "clone": HERE, "records": {}, **different})


def names(items: "tuple[clean.Item, ...]") -> "list[str]":
    return [item.name for item in items]


# --- containers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "foreign",
    [
        container("theirs", user=str(HER)),
        container("torchdock-elsewhere", clone=ELSEWHERE),
        container("torchdock-no-role", role=""),
        container("made-of-an-image-that-has-our-labels"),
        Container("5", "nginx", "sha256:9", "exited", "Exited", {}, 9.0),
    ],
    ids=lambda one: one.name,
)
def test_a_container_that_is_not_ours_is_not_even_spoken_of(foreign: Container) -> None:
    everything = Wishes(running=True, images=True, keep=0, cache=True)
    assert clean.plan(facts(containers=(foreign,)), everything) == clean.Plan(())


def test_an_ended_job_goes_and_is_dear_for_its_output() -> None:
    (item,) = clean.plan(facts(containers=(container(),)), Wishes()).items
    assert (item.what, item.name, item.bytes, item.dear) == ("container", "torchdock-anna-night", 7, True)
    assert item.why == "job: Exited (0); its output goes too"
    (item,) = clean.plan(facts(containers=(container(role="up"),)), Wishes()).items
    assert not item.dear


def test_an_ended_dev_container_is_dear_for_what_was_installed_in_it() -> None:
    (item,) = clean.plan(facts(containers=(container(role="devcontainer"),)), Wishes()).items
    assert item.dear
    assert item.why.endswith("; what was installed in it goes too")


@pytest.mark.parametrize("state", ["running", "paused", "restarting"])
def test_what_runs_stays_unless_it_is_asked_for(state: str) -> None:
    given = facts(containers=(container(state=state, status="Up 3 hours"),))
    planned = clean.plan(given, Wishes())
    assert planned.items == ()
    assert planned.kept[0].why == "job: Up 3 hours; --running ends and removes it"
    (item,) = clean.plan(given, Wishes(running=True)).items
    assert item.running and item.dear


def test_one_that_is_being_started_stays() -> None:
    new, old = container(state="created", age=2.0), container("torchdock-anna-dead", state="created", age=90.0)
    planned = clean.plan(facts(containers=(new, old)), Wishes(running=True))
    assert (names(planned.items), names(planned.kept)) == (["torchdock-anna-dead"], ["torchdock-anna-night"])


# --- images ---------------------------------------------------------------------------------------------------------

ONE, TWO, DEVEL = "torchdock/cu130:1", "torchdock/cu130:2", "torchdock/cu130:2-devel"


def test_an_image_goes_with_its_base_when_nobody_else_uses_it() -> None:
    given = facts(images=(image(ONE), image(BASE, ("base", 70))), uses=(use(ONE),))
    planned = clean.plan(given, IMAGES)
    assert names(planned.items) == [BASE, ONE]
    assert [item.bytes for item in planned.items] == [70, 30]  # what they share is counted once
    assert planned.uses == (use(ONE),)
    assert clean.plan(given, Wishes()).items == ()


@pytest.mark.parametrize(
    ("other", "who"),
    [(use(ONE, HER, ELSEWHERE), f"UID {HER}"), (use(ONE, clone=ELSEWHERE), "your clone /home/1000/c2")],
)
def test_an_image_that_is_shared_stays_and_its_base(other: Use, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "user_name", lambda uid: f"UID {uid}")
    given = facts(images=(image(ONE), image(BASE, ("base", 70))), uses=(use(ONE), other))
    planned = clean.plan(given, IMAGES)
    assert planned.items == ()
    assert {item.name: item.why for item in planned.kept} == {ONE: f"used by {who}", BASE: f"{ONE} stands on it"}
    assert planned.uses == (use(ONE),)  # who leaves last removes it


def test_the_base_of_somebody_elses_image_stays_when_mine_goes() -> None:
    given = facts(images=(image(ONE), image(BASE, ("base", 70))), uses=(use(ONE), use(TWO, HER, ELSEWHERE)))
    planned = clean.plan(given, IMAGES)
    assert (names(planned.items), names(planned.kept)) == ([ONE], [BASE])
    assert planned.bytes == 30


def test_an_image_of_nobody_known_stays() -> None:
    planned = clean.plan(facts(images=(image(ONE), image("vsc-project:latest"), image("")), uses=()), IMAGES)
    assert planned.items == ()
    assert names(planned.kept) == [ONE]
    assert planned.kept[0].why == clean.ORPHAN


@pytest.mark.parametrize("tag", [ONE, "torchdock/verify:1-c1", "torchdock/verify:base-1-c1"])
def test_what_this_clone_recorded_is_its_own(tag: str) -> None:
    planned = clean.plan(facts(images=(image(tag),), records={tag: ""}), Wishes(images=True, keep=0))
    assert names(planned.items) == [tag]


def test_the_image_that_a_dev_container_built_without_python_is_its_own() -> None:
    own, other = f"torchdock/cu130:devcontainer-{ME}-{HERE}", f"torchdock/cu130:devcontainer-{ME + 1}-{HERE}"
    planned = clean.plan(facts(images=(image(own, id="1"), image(other, id="2"))), Wishes(images=True, keep=0))
    assert (names(planned.items), names(planned.kept)) == ([own], [other])


def test_what_verify_kept_is_no_image_to_work_with() -> None:
    kept = "torchdock/verify:1-c1"
    planned = clean.plan(facts(images=(image(kept), image(ONE)), records={kept: "", ONE: ""}), Wishes(images=True))
    assert (names(planned.items), names(planned.kept)) == ([kept], [ONE])


@pytest.mark.parametrize("state", ["running", "exited"])
def test_an_image_stays_while_anybodys_container_stands_on_it(state: str) -> None:
    foreign = Container("5", "db", f"sha256:{ONE}", state, "", {}, 9.0)
    given = facts(images=(image(ONE),), uses=(use(ONE),), containers=(foreign,))
    planned = clean.plan(given, IMAGES)
    assert [item.why for item in planned.kept] == ["the container db uses it"]
    assert planned.uses == ()  # it is still ours to remove, later
    mine = container(image=f"sha256:{ONE}")
    assert names(clean.plan(replace(given, containers=(mine,)), IMAGES).items) == [mine.name, ONE]


def test_the_newest_of_each_variant_stay_this_trees_first() -> None:
    tags = {f"torchdock/cu130:{n}": float(n) for n in range(1, 6)} | {DEVEL: 1.0, "torchdock/cpu:1": 1.0}
    given = facts(
        images=tuple(image(tag) for tag in tags),
        uses=tuple(use(tag, since=since) for tag, since in tags.items()),
        current=frozenset({"torchdock/cu130:2"}),
    )

    def left(keep: int) -> "list[str]":
        return names(clean.plan(given, Wishes(images=True, keep=keep)).kept)

    others = ["torchdock/cpu:1", DEVEL]
    assert sorted(left(1)) == sorted(["torchdock/cu130:2", *others])
    assert sorted(left(3)) == sorted(["torchdock/cu130:2", "torchdock/cu130:4", "torchdock/cu130:5", *others])
    assert left(0) == []
    kept = {item.name: item.why for item in clean.plan(given, Wishes(images=True)).kept}
    assert kept["torchdock/cu130:2"] == "the image of this tree; --keep 0 removes it too"
    assert kept["torchdock/cpu:1"] == "the newest of cpu; --keep 0 removes it too"
    marks = {mark.image for mark in clean.plan(given, Wishes(images=True)).uses}
    assert marks == set(tags) - set(kept)  # what stays for us stays marked


def test_the_image_that_stays_keeps_its_base() -> None:
    given = facts(images=(image(ONE), image(TWO), image(BASE)), uses=(use(ONE), use(TWO, since=2.0)))
    planned = clean.plan(given, Wishes(images=True))
    assert (names(planned.items), names(planned.kept)) == ([ONE], [BASE, TWO])


def test_a_clone_that_was_removed_uses_nothing() -> None:
    lost = use(ONE, clone="lost")
    given = facts(images=(image(ONE),), uses=(use(ONE), lost))
    assert clean.plan(given, IMAGES).items == ()
    planned = clean.plan(replace(given, gone=frozenset({"lost"})), IMAGES)
    assert names(planned.items) == [ONE]
    assert planned.uses == (use(ONE), lost)
    hers = replace(lost, uid=HER)
    assert clean.plan(replace(given, uses=(hers,), gone=frozenset({"lost"})), IMAGES).items == ()


def test_a_clone_is_gone_only_where_its_parent_is_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert [clean._is_gone(tmp_path / name) for name in ("there", "removed", "unmounted/clone")] == [False, True, False]


def test_marks_of_images_that_are_gone_go_and_forged_ones_stay() -> None:
    stale, forged = use(ONE), replace(use(TWO), volume="precious-data")
    assert clean.plan(facts(uses=(stale, forged)), IMAGES).uses == (stale,)


def test_a_second_name_for_an_image_means_that_nothing_is_given_back() -> None:
    named_twice = Image("sha256:1", (ONE, "mine:keep"), (("a", 5),))
    planned = clean.plan(facts(images=(named_twice,), uses=(use(ONE),)), IMAGES)
    assert (names(planned.items), planned.bytes) == ([ONE], 0)


def test_layers_that_others_stand_on_are_not_counted() -> None:
    child = Image("sha256:2", ("my/project:1",), ((ONE, 0), ("more", 0)))
    planned = clean.plan(facts(images=(image(ONE, (ONE, 50), ("top", 3)), child), uses=(use(ONE),)), IMAGES)
    assert planned.bytes == 3


# --- the cache, reports, logs ---------------------------------------------------------------------------------------

MINE = Volume("torchdock-cache-1000", {"dev.torchdock.user": str(ME)}, 9)


def test_the_cache_goes_when_no_clone_uses_it_and_is_dear() -> None:
    (item,) = clean.plan(facts(cache=MINE), Wishes(cache=True)).items
    assert (item.what, item.bytes, item.dear) == ("cache", 9, True)
    other = container("torchdock-anna-x", clone=ELSEWHERE, volumes=(MINE.name,))
    planned = clean.plan(facts(cache=MINE, containers=(other,)), Wishes(cache=True))
    assert (planned.items, planned.kept[0].why) == ((), "the container torchdock-anna-x uses it")


@pytest.mark.parametrize("labels", [{}, {"dev.torchdock.user": str(HER)}])
def test_a_volume_without_our_label_stays(labels: "dict[str, str]") -> None:
    planned = clean.plan(facts(cache=replace(MINE, labels=labels)), Wishes(cache=True))
    assert planned.items == () and names(planned.kept) == [MINE.name]


def test_reports_of_others_and_of_what_runs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "user_name", lambda uid: f"UID {uid}")
    entries = tuple(
        Entry(Path("/c/.torchdock", name), uid, 5)
        for name, uid in (("reports/1", ME), ("reports/2", HER), ("reports/3", ME), ("logs/a.log", ME))
    )
    busy = container("torchdock-anna-t", "running", role="test", folders=("/c/.torchdock/reports/3",))
    planned = clean.plan(facts(entries=entries, containers=(busy,)), Wishes())
    assert [(item.what, item.paths) for item in planned.items] == [
        ("reports", (entries[0].path,)),
        ("logs", (entries[3].path,)),
    ]
    assert {item.name: item.why for item in planned.kept[1:]} == {
        "/c/.torchdock/reports/2": f"belongs to UID {HER}",
        "/c/.torchdock/reports/3": "a container writes there",
    }


def test_files_are_counted_and_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    state = CloneState(tmp_path)
    state.path("reports", "1", "report.xml").write_text("x" * 10)
    state.path("logs", "build.log").write_text("x" * 4)
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("x" * 100)
    (state.folder / "reports" / "2").symlink_to(outside)
    entries = tuple(clean._entries(state))
    assert [(entry.path.name, entry.uid) for entry in entries] == [
        (name, os.getuid()) for name in ("1", "2", "build.log")
    ]
    assert [entry.bytes for entry in entries] == [10, len(str(outside)), 4]
    for item in clean.plan(facts(uid=os.getuid(), entries=entries), Wishes()).items:
        assert clean._remove_files(item, os.getuid()) == ""
    assert [*state.folder.glob("*/*")] == []
    assert (outside / "file").is_file()


def test_a_file_that_became_another_users_stays(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    item = clean.Item("logs", "logs", 1, "", paths=(tmp_path / "a", tmp_path / "gone-already"))
    assert "belongs to" in clean._remove_files(item, os.getuid() + 1)
    assert (tmp_path / "a").exists()


# --- BuildKit's cache -----------------------------------------------------------------------------------------------

UV = Record("uv", "mount / from exec /bin/sh -c sh /run/uv.sh", 40, ("system",))
SYSTEM = Record("system", "mount / from exec /bin/sh -c sh /run/system.sh", 400, shared=True)
STRANGER = Record("theirs", "mount / from exec /bin/sh -c make", 5000)


def test_the_build_cache_goes_but_for_what_images_stand_on() -> None:
    planned = clean.plan(facts(steps=(SYSTEM, UV, STRANGER)), Wishes(build_cache=True))
    (item,) = planned.items
    assert (item.what, item.bytes, item.steps, item.dear, planned.kept) == ("build-cache", 40, (UV,), False, ())
    assert item.why == "1 step that no image stands on, whoever built them"


def test_what_the_build_cache_shares_with_images_that_go_is_counted_once_and_goes_after_them() -> None:
    given = facts(images=(image(ONE, (ONE, 400)),), uses=(use(ONE),), steps=(SYSTEM, UV, STRANGER))
    planned = clean.plan(given, replace(IMAGES, build_cache=True))
    assert [(item.what, item.bytes, item.steps) for item in planned.items] == [
        ("image", 400, ()),
        ("build-cache", 40, (UV, SYSTEM)),
    ]
    assert planned.bytes == 440


def test_the_build_cache_that_is_in_use_stays() -> None:
    planned = clean.plan(facts(steps=(SYSTEM, replace(UV, in_use=True))), Wishes(build_cache=True))
    (kept,) = planned.kept
    assert (planned.items, kept.what, kept.bytes) == ((), "build-cache", 40)
    assert kept.why == f"1 step that {clean.STEPS_USED}"
    assert clean.plan(facts(steps=(STRANGER,)), Wishes(build_cache=True)) == clean.Plan(())


# --- asking, telling, records ---------------------------------------------------------------------------------------


def test_what_cannot_be_had_again_is_not_removed_without_a_yes() -> None:
    planned = clean.plan(facts(containers=(container(),)), Wishes())
    with pytest.raises(InputError, match=r"container torchdock-anna-night would go\. Add --yes"):
        clean.confirm(planned, Reporter(), yes=False)
    clean.confirm(planned, Reporter(), yes=True)
    clean.confirm(clean.plan(facts(containers=(container(role="run"),)), Wishes()), Reporter(), yes=False)


def test_after_a_build_the_older_images_of_its_variant_are_told() -> None:
    tags = [ONE, TWO, DEVEL, "torchdock/cu130:1-devel", "torchdock/cpu:1", "torchdock/cpu:2"]
    given = facts(
        images=tuple(image(tag, ("base", 1), (tag, 3_000_000)) for tag in tags),
        uses=tuple(use(tag, since=float(n)) for n, tag in enumerate(tags)),
        current=frozenset({TWO, DEVEL}),
    )
    told = clean.outdated(clean.plan(given, Wishes(images=True)), "cu130")
    assert told == (
        "2 older images of cu130 on this machine, 6.0 MB that no other shares: `invoke clean --images` removes them"
    )
    assert clean.outdated(clean.plan(facts(), Wishes(images=True)), "cu130") == ""


def test_the_record_of_an_image_goes_with_it(tmp_path: Path) -> None:
    state = CloneState(tmp_path)
    for name, content in (("1", f'{{"image": "{ONE}"}}'), ("2", f'{{"image": "{TWO}"}}'), ("3", "[]"), ("4", "{")):
        state.path("builds", f"{name}.json").write_text(content)
    state.forget(ONE)
    assert [record["image"] for record in state.records()] == [TWO]
    assert len([*state.folder.glob("builds/*")]) == 3


def test_layers_are_sized_by_the_engines_listing() -> None:
    listing = [
        {"CreatedBy": "RUN c", "Size": 3},
        {"CreatedBy": "ENV a=b", "Size": 0},
        {"CreatedBy": "WORKDIR /w", "Size": 0},
        {"CreatedBy": "ADD a", "Size": 1},
    ]
    assert saved.size_by_listing(listing, 3) == [1, 0, 3]
    assert saved.size_by_listing(listing, 2) == [1, 3]
    assert saved.size_by_listing(listing, 5) == [0, 0, 0, 0, 4]
    assert saved.size_by_listing([], 0) == []


def test_a_use_is_what_its_volume_says() -> None:
    labels = {"use": DEVEL, "base": BASE, "user": "1000", "clone": HERE, "root": "/home/1000/c1", "since": "1.0"}
    volume = {
        "Name": "torchdock-use-cu130-2-devel-1000-c1",
        "Labels": {f"dev.torchdock.{k}": labels[k] for k in labels},
    }
    assert uses.read(volume) == use(DEVEL)
    assert use(DEVEL).genuine
    for broken in ({}, {"dev.torchdock.use": ONE}, {**volume["Labels"], "dev.torchdock.user": "anna"}):
        assert uses.read({"Name": "x", "Labels": broken}) is None
