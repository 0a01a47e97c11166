"""`clean --build-cache` on a real engine: what builds like torchdock's left in BuildKit's cache, and a stranger's.

The cache is that of everybody who builds with this engine, so `clean` is shown no records but those of this test.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from tests.engine.conftest import Invoke, base_of, forget_uses
from torchdock import buildcache, clean, container, uses
from torchdock.buildcache import Record
from torchdock.clean import Item, Plan, Wishes
from torchdock.engine import Engine
from torchdock.state import CloneState

MB = 1_000_000
SCRIPT = "head -c $2 /dev/urandom >/$1-$2\n"
OURS = """FROM {base} AS system
RUN --mount=type=bind,source=script,target=/run/system.sh sh /run/system.sh {unique} 3000000
FROM system AS uv
RUN --mount=type=bind,source=script,target=/run/uv.sh sh /run/uv.sh {unique} 2000000
FROM system AS tools
RUN --mount=type=bind,source=script,target=/run/wheels.sh --mount=type=bind,from=uv,target=/uv \\
    sh /run/wheels.sh {unique} 1000000
WORKDIR /workspace
"""
STRANGERS = """FROM {base}
RUN --mount=type=bind,source=script,target=/srv/wheels.sh sh /srv/wheels.sh {unique} 1500000
"""


@dataclass
class Builds:
    """Builds of one test, known in the cache by a word that no other has."""

    engine: Engine
    folder: Path
    state: CloneState
    unique: str
    before: frozenset[str]

    def build(self, dockerfile: str, base: str, tag: str) -> str:
        """Build a Dockerfile of this test; the image's name."""
        (self.folder / "script").write_text(SCRIPT)
        (self.folder / "Dockerfile").write_text(dockerfile.format(base=base, unique=self.unique))
        words = [self.engine.cli, "buildx", "build", "--quiet", "--provenance=false", "--tag", tag, str(self.folder)]
        subprocess.run(words, check=True, capture_output=True, timeout=120)
        return tag

    def records(self) -> dict[str, Record]:
        """What these builds left: their steps, the folder they were in, and the layers they stand on."""
        there = {one.id: one for one in buildcache.gather(self.engine)}
        found = {one.id for one in there.values() if self.unique in one.description}
        found |= {one.id for one in there.values() if "WORKDIR" in one.description and found & {*one.parents}}
        new = {*found}
        while new := {parent for one in new for parent in there[one].parents} - self.before - found:
            found |= new
        return {one: there[one] for one in found}

    def sizes(self) -> dict[str, int]:
        """Bytes by the number that a step was given, of those that hold room of their own, as the engine counts."""
        return {
            row["Description"].rpartition(" ")[2]: row["Size"]
            for row in self.engine.client.api.df()["BuildCache"]
            if self.unique in row["Description"] and not row["Shared"]
        }

    def clean(self, wishes: Wishes) -> tuple[Plan, list[Item], list[Item]]:
        """As `invoke clean` does it; the plan, what went and what stayed."""
        found = clean.gather(self.engine, self.state, container.identity(self.engine), wishes)
        found = replace(found, gone=frozenset(), steps=tuple(self.records().values()))
        planned = clean.plan(found, wishes)
        return planned, *clean.remove(self.engine, self.state, found, planned)


@pytest.fixture
def builds(engine: Engine, tmp_path: Path) -> Iterator[Builds]:
    """Nothing of them is left afterwards."""
    folder = tmp_path / "context"
    folder.mkdir()
    before = frozenset(one.id for one in buildcache.gather(engine))
    made = Builds(engine, folder, CloneState(tmp_path / "clone"), f"test-{uuid.uuid4().hex[:12]}", before)
    made.state.root.mkdir()
    yield made
    for tag in (f"torchdock/cu130:{made.unique}", f"strangers:{made.unique}"):
        with suppress(docker.errors.ImageNotFound):
            engine.client.images.remove(tag)
    forget_uses(engine, made.state.clone)
    while buildcache.prune(engine, made.records().values())[0]:  # each time those that nothing stands on
        pass


def test_the_build_cache_gives_back_what_ours_took_and_nothing_of_a_strangers(
    builds: Builds, engine: Engine, image: dict[str, Any], invoke: Invoke
) -> None:
    tag = builds.build(OURS, base_of(engine, image), f"torchdock/cu130:{builds.unique}")
    builds.build(STRANGERS, base_of(engine, image), f"strangers:{builds.unique}")
    engine.client.images.remove(f"strangers:{builds.unique}")
    assert uses.mark(engine, builds.state, tag, "") == ""
    assert builds.sizes() == {"2000000": 2 * MB, "1500000": 1.5 * MB}

    done = invoke("clean", "--all", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    (shown,) = (item for item in json.loads(done.stdout)["found"] if item["what"] == "build-cache")
    assert shown["bytes"] >= 2 * MB and "torchdock's builds" in done.stderr
    assert builds.sizes() == {"2000000": 2 * MB, "1500000": 1.5 * MB}

    planned, went, stayed = builds.clean(Wishes(build_cache=True))
    assert [(item.what, item.bytes) for item in planned.items] == [("build-cache", 2 * MB)]
    assert [(item.what, item.bytes, stayed) for item in went] == [("build-cache", 2 * MB, [])]
    assert builds.sizes() == {"1500000": 1.5 * MB}
    assert engine.image(tag) is not None

    planned, went, stayed = builds.clean(Wishes(images=True, keep=0, build_cache=True))
    assert [(item.what, item.bytes, stayed) for item in went] == [("image", 4 * MB, []), ("build-cache", 0, [])]
    assert planned.bytes == 4 * MB
    assert builds.sizes() == {"1500000": 1.5 * MB}
    left = [one.description for one in builds.records().values() if builds.unique in one.description]
    assert left == [f"mount / from exec /bin/sh -c sh /srv/wheels.sh {builds.unique} 1500000"]


def test_what_a_strangers_image_stands_on_stays(builds: Builds, engine: Engine, image: dict[str, Any]) -> None:
    tag = builds.build(OURS, base_of(engine, image), f"torchdock/cu130:{builds.unique}")
    builds.build(STRANGERS, tag, f"strangers:{builds.unique}")
    assert uses.mark(engine, builds.state, tag, "") == ""
    wishes = Wishes(images=True, keep=0, build_cache=True)
    _, went, stayed = builds.clean(wishes)
    assert [(item.what, item.bytes, stayed) for item in went] == [("image", 0, []), ("build-cache", 2 * MB, [])]
    ours = {one.description.rpartition(" ")[2] for one in buildcache.ours([*builds.records().values()])}
    assert ours == {"3000000", "1000000", "/workspace"}
    assert engine.client.containers.run(f"strangers:{builds.unique}", ["ls", "/workspace"], remove=True) == b""

    engine.client.images.remove(f"strangers:{builds.unique}")
    _, went, stayed = builds.clean(wishes)
    assert [(item.what, item.bytes, stayed) for item in went] == [("build-cache", 4 * MB, [])]
    assert builds.sizes() == {"1500000": 1.5 * MB}


def test_what_is_built_on_after_the_plan_stays(builds: Builds, engine: Engine, image: dict[str, Any]) -> None:
    tag = builds.build(OURS, base_of(engine, image), f"torchdock/cu130:{builds.unique}")
    engine.client.images.remove(tag)
    wishes = Wishes(build_cache=True)
    found = clean.gather(engine, builds.state, container.identity(engine), wishes)
    found = replace(found, steps=tuple(builds.records().values()))
    planned = clean.plan(found, wishes)
    assert planned.bytes == 6 * MB
    builds.build(OURS + f"RUN echo {builds.unique} >/more 5\n", base_of(engine, image), f"strangers:{builds.unique}")
    went, stayed = clean.remove(engine, builds.state, found, planned)
    assert ([item.bytes for item in went], [item.bytes for item in stayed]) == ([2 * MB], [4 * MB])
    assert stayed[0].why == f"3 steps that {clean.STEPS_USED}, by now"
    assert engine.client.containers.run(f"strangers:{builds.unique}", ["ls", "/workspace"], remove=True) == b""
