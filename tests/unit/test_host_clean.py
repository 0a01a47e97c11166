"""What clean finds and removes: this user's and this clone's, and nothing else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
from given import ANNA, ROOT, TableEngine

from torchdock import clean, variants, verify
from torchdock.state import CloneState


class Shelf:
    """Images or volumes of an engine by name; ``used`` are in use by a container."""

    def __init__(self, there: "list[str]", used: "list[str]") -> None:
        self.there, self.used = there, used

    def get(self, name: str) -> Any:
        if name not in self.there:
            raise docker.errors.NotFound(name)
        return SimpleNamespace(name=name, remove=lambda: self.remove(name))

    def remove(self, name: str) -> None:
        if name in self.used:
            raise docker.errors.APIError("409 Conflict")
        self.there.remove(name)


@pytest.fixture
def state(tmp_path: Path) -> CloneState:
    """A clone that built two images, one of them on a base that was made."""
    found = CloneState(tmp_path)
    found.write(found.path("builds", "1.json"), {"image": "torchdock/cu130:1", "base": "docker.io/library/debian"})
    found.write(found.path("builds", "2.json"), {"image": "torchdock/cu130:2", "base": "torchdock/base:1"})
    found.path("reports", "1", "report.xml").touch()
    return found


def host(state: CloneState, *used: str, there: "tuple[str, ...]" = ()) -> TableEngine:
    labels = {"dev.torchdock.user": "1000", "dev.torchdock.clone": state.clone}
    images = ["torchdock/cu130:1", "torchdock/base:1", "torchdock/cu130:somebody-elses", "docker.io/library/debian"]
    images += there
    engine = TableEngine(
        cli="/bin/true",
        images=images,
        containers=[
            {"Names": ["/mine"], "Labels": labels},
            {"Names": ["/theirs"], "Labels": {**labels, "dev.torchdock.user": "1001"}},
            {"Names": ["/elsewhere"], "Labels": {**labels, "dev.torchdock.clone": "other"}},
        ],
    )
    shelves = SimpleNamespace(images=Shelf([*images], [*used]), volumes=Shelf(["torchdock-cache-1000"], [*used]))
    engine.__dict__["client"] = shelves
    return engine


def test_without_images_only_containers_and_folders_are_found(state: CloneState) -> None:
    found = clean.gather(host(state), state, ANNA, images=False)
    assert found == clean.Found(("mine",), (), (), (str(state.folder / "reports"),))
    assert found.items == ("container mine", f"folder {state.folder / 'reports'}")


def test_images_are_those_that_this_clone_built_and_that_are_there(state: CloneState) -> None:
    found = clean.gather(host(state), state, ANNA, images=True)
    assert found.images == ("torchdock/cu130:1", "torchdock/base:1")
    assert found.volumes == ("torchdock-cache-1000",)


@pytest.mark.parametrize("tag", ["torchdock/verify:1", "torchdock/verify:base-1"])
def test_an_image_that_verify_kept_is_this_clones(state: CloneState, tag: str) -> None:
    verify._record(state, variants.get(ROOT, "cu130"), tag)
    engine = host(state, there=(tag, "torchdock/verify:somebody-elses"))
    found = clean.gather(engine, state, ANNA, images=True)
    assert found.images == ("torchdock/cu130:1", "torchdock/base:1", tag)
    clean.remove(engine, state, found)
    assert tag not in engine.client.images.there and "torchdock/verify:somebody-elses" in engine.client.images.there
    assert tag not in clean.gather(host(state), state, ANNA, images=True).images  # the record stays, the image is gone


def test_a_host_without_the_cache_volume_is_fine(state: CloneState) -> None:
    engine = host(state)
    engine.client.volumes.there.clear()
    assert clean.gather(engine, state, ANNA, images=True).volumes == ()


def test_what_was_found_is_removed_and_what_is_in_use_is_told_apart(state: CloneState) -> None:
    engine = host(state, "torchdock/base:1")
    done, kept = clean.remove(engine, state, clean.gather(engine, state, ANNA, images=True))
    assert kept == ["image torchdock/base:1"]
    assert done == [
        "container mine",
        "image torchdock/cu130:1",
        "volume torchdock-cache-1000",
        f"folder {state.folder / 'reports'}",
    ]
    assert engine.removed == ["mine"]
    assert engine.client.images.there == [
        "torchdock/base:1",
        "torchdock/cu130:somebody-elses",
        "docker.io/library/debian",
    ]
    assert not (state.folder / "reports").exists()
