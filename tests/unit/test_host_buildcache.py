"""Which records of BuildKit's cache are torchdock's, which of them can go, and in which order."""

import re
from pathlib import Path

import pytest

from torchdock import buildcache
from torchdock.buildcache import Record

ROOT = Path(__file__).resolve().parents[2]
BASE, SYSTEM, UV, CUDA, WORKDIR, SUITE = "base", "system", "uv", "cuda", "workdir", "suite"


def run(command: str) -> str:
    return f"mount / from exec /bin/sh -c {command}"


def step(
    id: str, description: str, *parents: str, size: int = 10, in_use: bool = False, shared: bool = False
) -> Record:
    return Record(id, description, size, parents, in_use, shared)


# As an engine lists them: in no order.
BUILD = (
    step(SUITE, run('sh /run/suite.sh /run/clone "$VARIANT"'), WORKDIR),
    step(BASE, "pulled from docker.io/library/debian:trixie-20261005-slim@sha256:a292"),
    step(UV, run("sh /run/uv.sh"), SYSTEM),
    step(WORKDIR, "[configured 1/1] WORKDIR /workspace", CUDA),
    step(SYSTEM, run('sh /run/system.sh "$DEBIAN"'), BASE),
    step(CUDA, run("sh /run/wheels.sh cuda"), SYSTEM),
)


def ids(records: "list[Record]") -> "set[str]":
    return {one.id for one in records}


def instructions(path: Path) -> "list[str]":
    """The instructions of a Dockerfile, each on one line."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).split("\n")


@pytest.mark.parametrize("path", sorted(ROOT.glob("docker/*.Dockerfile")), ids=lambda path: path.name)
def test_each_step_of_the_dockerfiles_is_known(path: Path) -> None:
    """In BuildKit's words: a command without its mounts; else the stage, where there are several."""
    records, stage, below = [], "", ()
    several = sum(line.startswith("FROM ") for line in instructions(path)) > 1
    for line in instructions(path):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.rpartition(" AS ")[2]
        elif word == "RUN":
            records.append(step(str(len(records)), run(re.sub(r"--(mount|network)=\S+\s+", "", rest)), *below))
        elif word in ("ADD", "COPY", "WORKDIR"):
            records.append(step(str(len(records)), f"[{stage} 1/1] {line}" if several else f"[1/1] {line}", *below))
        below = (records[-1].id,) if records else ()
    assert records
    assert ids(buildcache.ours(records)) == ids(records)


def test_a_build_is_found_whole_each_record_before_what_it_stands_on() -> None:
    found = [one.id for one in buildcache.ours(BUILD)]
    assert sorted(found) == sorted(one.id for one in BUILD)
    assert all(found.index(one.id) < found.index(parent) for one in BUILD for parent in one.parents)
    assert buildcache.removable(BUILD) == buildcache.ours(BUILD)
    assert buildcache.spare(BUILD) == 60


@pytest.mark.parametrize(
    "foreign",
    [
        run("sh /run/build.sh"),
        run("sh /run/wheels.shell"),
        run("sh ./run/wheels.sh"),
        run("echo sh /run/wheels.sh"),
        run("make && sh /run/wheels.sh"),
        "[1/1] ADD rootfs.tar /",
        "[build 1/2] WORKDIR /workspace",
        "pulled from docker.io/library/debian:trixie-20261005-slim@sha256:a292",
        "local source for context",
        "from local ",
        "",
    ],
)
def test_what_anybodys_build_may_leave_is_not_ours(foreign: str) -> None:
    assert buildcache.ours([step("x", foreign), step("y", foreign, "x")]) == []


def test_a_strangers_steps_on_ours_stay_and_all_below_them() -> None:
    stranger = step("stranger", run("pip install x"), CUDA)
    assert ids(buildcache.ours([*BUILD, stranger])) == {SUITE, UV, WORKDIR, CUDA, SYSTEM, BASE}
    assert ids(buildcache.removable([*BUILD, stranger])) == {SUITE, UV, WORKDIR}
    assert buildcache.spare([*BUILD, stranger]) == 30


def test_a_base_that_a_stranger_builds_on_is_not_ours() -> None:
    stranger = step("stranger", run("apt-get update"), BASE)
    assert ids(buildcache.ours([*BUILD, stranger])) == ids([*BUILD]) - {BASE}


def test_the_layers_below_a_workspace_are_ours_and_below_a_strangers_step_not() -> None:
    layers = [step("l1", "from local "), step("l2", "from local ", "l1")]
    assert ids(buildcache.ours([*layers, step("w", run("sh /run/workspace.sh"), "l2")])) == {"l1", "l2", "w"}
    assert buildcache.ours([*layers, step("s", run("make"), "l2")]) == []


def test_what_a_build_uses_stays_and_all_below_it() -> None:
    busy = step(WORKDIR, "[configured 1/1] WORKDIR /workspace", CUDA, in_use=True)
    records = [busy if one.id == WORKDIR else one for one in BUILD]
    assert ids(buildcache.removable(records)) == {SUITE, UV}


def test_what_an_image_stands_on_is_nothing_spare() -> None:
    records = [step(one.id, one.description, *one.parents, shared=one.id != UV) for one in BUILD]
    assert buildcache.spare(records) == 10
    assert ids(buildcache.removable(records)) == ids([*BUILD])  # when the image has gone


def test_records_are_removed_one_by_one_and_by_nothing_but_their_id() -> None:
    asked: list[dict[str, str]] = []

    class Client:
        """Removes what it is asked to, but for the last."""

        @property
        def api(self) -> "Client":
            return self

        def prune_builds(self, filters: "dict[str, str]") -> "dict[str, object]":
            asked.append(filters)
            one = filters["id"].strip("^$")
            return {"CachesDeleted": None if one == BASE else [one], "SpaceReclaimed": 1}

    class Fake:
        client = Client()

    assert buildcache.prune(Fake(), buildcache.ours(BUILD)) == (ids([*BUILD]) - {BASE}, "")  # type: ignore[arg-type]
    assert [set(one) for one in asked] == [{"id"}] * len(BUILD)
    assert all(re.fullmatch(r"\^\w+\$", one["id"]) for one in asked)
