"""What the host adds to a report of the suite, and what must never be in one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from given import ROOT, TableEngine

from torchdock import passport
from torchdock.engine import ImageFacts
from torchdock.gpus import Gpu, Inventory
from torchdock.inside import passport as inside
from torchdock.inside import suite
from torchdock.state import CloneState

SCHEMA = json.loads((ROOT / "src/torchdock/inside/report.schema.json").read_text())
GPU = Gpu(0, "GPU-1", "NVIDIA H200", 140 << 30, 0, (), "9.0")


class WithDigests(TableEngine):
    def image(self, reference: str) -> ImageFacts | None:
        known = super().image(reference)
        return known and ImageFacts(known.id, known.layers, known.size, (f"mirror/{reference}@sha256:ab",))


def part(tmp_path: Path, *, handed: Sequence[Gpu] = (), images: Sequence[str] = ("torchdock/cpu:1",)) -> dict[str, Any]:
    state = CloneState(tmp_path)
    for name, id in (("a-newer", "sha256:other"), ("cpu-1", "sha256:torchdock/cpu:1")):
        state.write(state.path("builds", f"{name}.json"), {"image": "torchdock/cpu:1", "id": id, "source": "registry"})
    inventory = Inventory(tuple(handed), "580.65.06" if handed else "", "" if handed else "no driver")
    engine = WithDigests(images=images)
    return passport.gather(engine, state, "torchdock/cpu:1", inventory, handed)


def test_the_part_is_what_the_schema_says(tmp_path: Path) -> None:
    found = part(tmp_path, handed=[GPU])
    wanted = SCHEMA["$defs"]["host"]["properties"]
    assert set(found) == set(wanted)
    for name in ("image", "engine", "host"):
        assert set(found[name]) == set(wanted[name]["properties"])
    assert [set(gpu) for gpu in found["gpus"]] == [set(wanted["gpus"]["items"]["properties"])]
    json.dumps(found)


def test_image_build_record_and_gpus(tmp_path: Path) -> None:
    found = part(tmp_path, handed=[GPU])
    assert found["image"]["digests"] == ["mirror/torchdock/cpu:1@sha256:ab"]
    assert found["build"] == {"image": "torchdock/cpu:1", "id": "sha256:torchdock/cpu:1", "source": "registry"}
    assert (found["driver"], found["gpus"][0]["uuid"], found["profile"]) == ("580.65.06", "GPU-1", None)
    assert part(tmp_path)["gpus"] == [] and part(tmp_path)["driver"] is None


def test_an_image_that_was_built_elsewhere_has_no_build_record(tmp_path: Path) -> None:
    found = part(tmp_path, images=())
    assert (found["image"]["id"], found["build"]) == (None, None)


def test_the_commit_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    assert passport.commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    clean = passport.commit(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["changed"] is False
    (tmp_path / "file").write_text("2")
    assert passport.commit(tmp_path) == {**clean, "changed": True}


def written(folder: Path, **different: Any) -> None:
    """A report as the suite writes it."""
    result = suite.Result(
        suite.Selection("quick", "", gpu=False, committed={}), (), ("HTTPS_PROXY=http://anna:hunter2@proxy failed",),
        1.0, "cpu", {}, "cpu", environment={"image": True},
    )  # fmt: skip
    document = {**inside.document(result, "2026-11-30T00:00:00+00:00"), **different}
    (folder / "report.json").write_text(json.dumps(document))
    (folder / "report.xml").write_text("<x>hunter2</x>")
    (folder / "pytest.log").write_text("hunter2")


def test_complete_fills_in_the_host_and_takes_secrets_out(tmp_path: Path) -> None:
    written(tmp_path)
    state = CloneState(tmp_path)
    given = {**part(tmp_path), "build": {"image": "x", "sources": ["from http://hunter2"]}}
    document = passport.complete(tmp_path, given, state, lambda text: text.replace("hunter2", "****"))
    assert document is not None and document == json.loads((tmp_path / "report.json").read_text())
    assert document["host"]["image"]["name"] == "torchdock/cpu:1"
    assert document["problems"] == ["HTTPS_PROXY=http://anna:****@proxy failed"]
    assert not [path for path in tmp_path.iterdir() if path.is_file() and "hunter2" in path.read_text()]
    assert set(document) == set(SCHEMA["properties"])


@pytest.mark.parametrize("content", [None, "", "{"])
def test_without_a_report_there_is_nothing_to_fill_in(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert passport.complete(tmp_path, part(tmp_path), CloneState(tmp_path), str) is None


@pytest.mark.parametrize(
    ("gpu", "written_as", "fake"),
    [("NVIDIA H200", False, False), ("FAKE H200 (torchdock)", False, True), ("NVIDIA H200", True, True)],
)
def test_a_report_made_on_the_fake_driver_says_so(tmp_path: Path, gpu: str, written_as: bool, fake: bool) -> None:
    written(tmp_path, fake=written_as)
    handed = [Gpu(0, "GPU-1", gpu, 1, 0, ())]
    document = passport.complete(tmp_path, part(tmp_path, handed=handed), CloneState(tmp_path), str)
    assert document is not None and document["fake"] is fake
