"""An engine with containerd's image store, which Docker 29 and newer have: a second one, with a data folder of its own.

There layers are kept compressed, and an image's ID is the digest of its manifest.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine import test_share, test_verify
from tests.engine.conftest import Invoke, base_of
from tests.engine.second import Second, load, second_engine
from tests.engine.test_share import Person, Serve
from torchdock import parcel
from torchdock.difference import STORES
from torchdock.engine import Engine

pytestmark = pytest.mark.slow

serve, small, anna, faulty = test_share.serve, test_share.small, test_share.anna, test_verify.small  # fixtures


@pytest.fixture(scope="module")
def store(engine: Engine, image: dict[str, Any]) -> Iterator[Second]:
    """The engine, with the base that was made here, as no registry gives it one."""
    with second_engine(engine, settings={"features": {"containerd-snapshotter": True}}) as found:
        assert found.engine.by_manifest and not engine.by_manifest
        if image["source"] == "bootstrapped":
            load(found, base_of(engine, image))
        yield found


@pytest.fixture(autouse=True)
def small_sizes(clone: Path) -> None:
    """What the tests build is small: the disk check before a build is to ask for no more."""
    path = clone / "docker/variants.toml"
    path.write_text(re.sub(r"^(image_gb|build_gb)( *= *)\S+", r"\g<1>\g<2>0.2", path.read_text(), flags=re.MULTILINE))


@pytest.fixture
def bert(anna: Person, store: Second) -> Person:
    """The one whose engine it is, at anna's clone."""
    return replace(anna, engine=store.engine, env={**anna.env, "DOCKER_HOST": store.endpoint})


def document(path: Path, digest: str) -> dict[str, Any]:
    """A document in what `docker save` wrote."""
    with tarfile.open(path) as archive:
        content = archive.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}")
        assert content is not None
        found: dict[str, Any] = json.load(content)
        return found


def test_an_image_is_built_to_the_bit_and_taken_by_either_store(
    anna: Person, bert: Person, serve: Serve, tmp_path: Path
) -> None:
    path, server = tmp_path / "image.tar", serve()
    first = bert.build()
    # zstd gives the same bytes each time: not the layers alone are equal, their compressed forms are, and the ID.
    again = bert.good("build", "--no-cache")
    assert (again["built"], again["id"], again["layers"]) == (True, first["id"], first["layers"])
    verified = bert.good("verify")
    assert verified["equal"] and verified["first_id"] == verified["second_id"] == first["id"]

    bert.good("save", str(path))
    configuration = parcel.contained(path).id
    manifest = document(path, first["id"])
    assert manifest["config"]["digest"] == configuration != first["id"]
    assert [layer["mediaType"] for layer in manifest["layers"]][-3:] == [
        "application/vnd.oci.image.layer.v1.tar+zstd"
    ] * 3
    assert bert.good("load", str(path))["id"] == first["id"]  # it has that one: its name stays
    bert.forget(first)
    assert bert.good("load", str(path))["id"] == first["id"]
    (row,) = [row for row in bert.engine.client.api.images() if first["image"] in (row["RepoTags"] or ())]
    shown = bert.invoke("clean", "--images", "--dry-run", "--json", cwd=bert.clone, env=bert.env)
    (size,) = [one["bytes"] for one in json.loads(shown.stdout)["kept"] if one["name"] == first["image"]]
    assert row["Size"] - len(first["layers"]) <= size <= row["Size"]  # what is compressed included

    # The other store takes it, and gives it back uncompressed: another manifest, the same image.
    loaded = anna.good("load", str(path))
    assert (loaded["id"], loaded["layers"]) == (configuration, first["layers"])
    anna.good("save", str(path))
    assert bert.good("load", str(path))["layers"] == first["layers"]
    bert.engine.client.images.remove(first["image"])
    plain = bert.good("load", str(path))
    assert plain["layers"] == first["layers"] and plain["id"] != first["id"]
    verified = bert.good("verify", plain["image"])  # compared with a build, which has another ID
    assert verified["equal"] and verified["first_id"] == verified["second_id"] == configuration
    assert "is the same to the bit" in verified["told"]

    # By a registry.
    bert.engine.client.images.remove(first["image"])
    bert.build()
    pushed = bert.good("push", server.repository)
    assert (pushed["digest"], pushed["pushed"]) == (first["id"], len(first["layers"]))
    assert bert.good("push", server.repository)["pushed"] == 0
    bert.forget(first)
    assert bert.good("pull", server.repository)["id"] == first["id"]
    anna.forget(loaded)
    pulled = anna.good("pull", server.repository)
    assert (pulled["id"], pulled["layers"]) == (configuration, first["layers"])


def test_what_the_other_store_builds_has_the_same_files(anna: Person, bert: Person) -> None:
    """A layer of the overlay2 store holds each folder that a step touched, one of containerd's those that changed."""
    here, there = anna.build(), bert.build()
    other = f"torchdock-test/other:{here['image'].rpartition(':')[2]}"
    subprocess.run(["docker", "tag", here["image"], other], check=True)
    try:
        load(Second(bert.env["DOCKER_HOST"], Path(), bert.engine), other)
    finally:
        anna.engine.client.images.remove(other)
    done = bert.run("verify", other, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["first"], found["config"]) == (there["image"], [])
    assert [layer["name"] for layer in found["layers"] if not layer["equal"]]
    assert STORES in found["notes"] and STORES in " ".join(done.stderr.split())


def test_a_fault_of_a_build_is_named(
    invoke: Invoke, faulty: Callable[..., Path], store: Second, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", store.endpoint)
    clone = faulty(then="again && chmod 600 /opt/made/two || :")
    done = invoke("verify", "--variant", "cu130", "--json", cwd=clone)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert [(layer["name"], layer["equal"]) for layer in found["layers"]] == [("base", True), ("system", False)]
    (difference,) = found["layers"][1]["differences"]
    assert (difference["path"], difference["what"]) == ("opt/made/two", ["mode"])
    assert found["config"] == []
    assert store.engine.image(found["second"]) is not None
