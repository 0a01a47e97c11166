"""Verify on a real engine: tiny images that differ in one thing, and exactly that is named."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import ROOT, Invoke
from torchdock import verify
from torchdock.console import Reporter
from torchdock.difference import MEANINGS
from torchdock.engine import Engine
from torchdock.errors import InputError
from torchdock.state import CloneState

EPOCH = 1791158400
NAME = "torchdock/verify-test"
DOCKERFILE = """FROM scratch
ADD system.tar /
ADD torch.tar /
LABEL dev.torchdock.variant="cu130"
"""
# Name, content, mode, time, and whatever else a tar's header holds.
FILES = ("opt/a.py", "opt/b.py", "opt/setuid", "opt/link")

Built = Callable[..., str]


def rootfs(**different: dict[str, Any]) -> bytes:
    """A layer of four files; ``different`` changes fields of one of them, by its last name without suffix."""
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in ("opt", *FILES):
                fields: dict[str, Any] = {"mode": 0o644, "mtime": EPOCH, "content": f"# {path}\n".encode()}
                if path == "opt":
                    fields = {"mode": 0o755, "mtime": EPOCH, "content": b"", "type": tarfile.DIRTYPE}
                if path == "opt/setuid":
                    fields["mode"] = 0o4755
                if path == "opt/link":
                    fields |= {"type": tarfile.SYMTYPE, "linkname": "a.py", "content": b""}
                fields |= different.get(Path(path).stem, {})
                info = tarfile.TarInfo(path)
                content = fields.pop("content")
                for key, value in {**fields, "size": len(content)}.items():
                    setattr(info, key, value)
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


@pytest.fixture
def build(engine: Engine, tmp_path: Path) -> Iterator[Built]:
    """Build a tiny image from a context of this test; all of them are removed afterwards."""
    names: list[str] = []

    def built(dockerfile: str = DOCKERFILE, **different: dict[str, Any]) -> str:
        context = tmp_path / str(len(names))
        context.mkdir()
        (context / "Dockerfile").write_text(dockerfile)
        (context / "system.tar").write_bytes(rootfs())
        (context / "torch.tar").write_bytes(rootfs(**different))
        names.append(f"{NAME}:{tmp_path.name}-{len(names)}")
        argv = [engine.cli, "buildx", "build", "--quiet", "--provenance=false", "--no-cache", "--tag", names[-1]]
        argv += ["--build-arg", f"SOURCE_DATE_EPOCH={EPOCH}", str(context)]
        subprocess.run(argv, check=True, capture_output=True)
        return names[-1]

    yield built
    for name in names:
        engine.client.images.remove(name, force=True)


def test_equal_images_are_equal(engine: Engine, build: Built) -> None:
    found = verify.verify(engine, build(), build(), Reporter())
    assert found.equal
    assert [(layer.name, layer.equal, layer.differences) for layer in found.layers] == [
        ("layer 1", True, ()),
        ("layer 2", True, ()),
    ]
    assert found.config == ()


@pytest.mark.parametrize(
    ("file", "different", "what", "first", "second"),
    [
        ("opt/a.py", {"content": b"# opt/A.py\n"}, "content", "11 bytes, sha256 ", "11 bytes, sha256 "),
        ("opt/b.py", {"mtime": EPOCH + 1}, "time", "2026-10-05T00:00:00Z", "2026-10-05T00:00:01Z"),
        ("opt/setuid", {"mode": 0o755}, "mode", "4755", "0755"),
        ("opt/b.py", {"uid": 1000, "gid": 100}, "owner", "0:0", "1000:100"),
        ("opt/link", {"linkname": "b.py"}, "link", "a.py", "b.py"),
        ("opt/link", {"type": tarfile.REGTYPE, "mode": 0o777}, "type", "symbolic link", "file"),
    ],
    ids=["content", "time", "mode", "owner", "link", "type"],
)
def test_one_changed_thing_is_named_and_nothing_else(
    engine: Engine, build: Built, file: str, different: dict[str, Any], what: str, first: str, second: str
) -> None:
    found = verify.verify(engine, build(), build(**{Path(file).stem: different}), Reporter())
    assert not found.equal
    assert [layer.equal for layer in found.layers] == [True, False]
    (difference,) = found.layers[1].differences
    assert (difference.path, difference.what) == (file, (what,))
    assert difference.first.startswith(first) and difference.second.startswith(second)
    assert difference.first != difference.second
    assert found.config == ()  # the times in the configuration are the epoch's


def test_a_changed_setting_is_named_and_nothing_else(engine: Engine, build: Built) -> None:
    found = verify.verify(engine, build(), build(DOCKERFILE.replace("cu130", "cpu")), Reporter())
    assert [layer.equal for layer in found.layers] == [True, True]
    assert [(one.key, one.first, one.second) for one in found.config] == [
        ("config.Labels.dev.torchdock.variant", '"cu130"', '"cpu"'),
        ("history[2].created_by", '"LABEL dev.torchdock.variant=cu130"', '"LABEL dev.torchdock.variant=cpu"'),
    ]


def test_another_layer_is_named_with_its_files(engine: Engine, build: Built) -> None:
    found = verify.verify(engine, build(), build(DOCKERFILE + "COPY Dockerfile /left/behind\n"), Reporter())
    assert [(layer.name, layer.first is None) for layer in found.layers] == [
        ("layer 1", False),
        ("layer 2", False),
        ("layer 3", True),
    ]
    assert found.layers[2].step == "COPY Dockerfile /left/behind"
    assert [one.path for one in found.layers[2].differences] == ["left", "left/behind"]


def test_the_configuration_that_was_read_is_the_one_of_the_id(engine: Engine, build: Built) -> None:
    first, second = build(), build(a={"mode": 0o600})
    found = verify.verify(engine, first, second, Reporter())
    for name, seen in ((first, found.first_id), (second, found.second_id)):
        facts = engine.image(name)
        assert facts is not None
        assert facts.id == seen


def test_an_image_that_is_not_there_is_wrong_input(engine: Engine, build: Built) -> None:
    there = build()
    for name in (f"{NAME}:none", "sha256:" + "0" * 64):
        with pytest.raises(InputError, match=f"no image '{name}'.*docker pull"):
            verify.verify(engine, there, name, Reporter())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", f"{NAME}:none"), "This engine has no image"),
        (("verify", "--image", f"{NAME}:none", "--json"), "This engine has no image"),
        (("verify", "--json", f"{NAME}:none", "--dry-run"), "This engine has no image"),
        (("verify", f"{NAME}:none", "--base"), "--base"),
        (("verify", "--variant", "cu13"), "Did you mean 'cu130'?"),
        (("verify", f"{NAME}:none", f"{NAME}:more"), "No idea what"),
    ],
)
def test_wrong_input_ends_with_2(invoke: Invoke, words: tuple[str, ...], said: str) -> None:
    done = invoke(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_without_a_label_is_none_of_ours(invoke: Invoke, build: Built) -> None:
    done = invoke("verify", build(DOCKERFILE.replace("LABEL", "# LABEL")))
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no label dev.torchdock.variant" in done.stderr


def test_the_dry_run_prints_the_second_build(invoke: Invoke, image: dict[str, Any]) -> None:
    done = invoke("verify", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("docker buildx build ")
    assert " --no-cache " in done.stdout
    assert f"--tag torchdock/verify:{image['image'].rpartition(':')[2]}-{CloneState(ROOT).clone} " in done.stdout


def test_this_clones_image_is_what_its_lock_builds(invoke: Invoke, image: dict[str, Any], engine: Engine) -> None:
    """By another name, as somebody else's image comes."""
    other = f"{NAME}:same"
    assert engine.client.images.get(image["image"]).tag(other)
    try:
        done = invoke("verify", other, "--json")
    finally:
        engine.client.images.remove(other)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["equal"], document["first"], document["second"]) == (True, image["image"], other)
    assert [layer["second"] for layer in document["layers"]] == list(image["layers"])
    assert "is what this lock builds" in done.stderr
    assert engine.image(image["image"]) is not None


# A build of one layer above the base. Its cache mount was filled before, and --no-cache empties it: by that the second
# build knows that it is the second.
SMALL = """ARG BASE={base}
FROM ${{BASE}} AS system
ARG SOURCE_DATE_EPOCH={epoch}
RUN --mount=type=bind,source=docker/layers/debian.sh,target=/run/debian.sh \\
    --mount=type=cache,id={id},target=/tmp \\
    sh /run/debian.sh system
FROM system AS environment
LABEL dev.torchdock.variant="cu130"
"""
SCRIPT = """set -eu  # {unique}
again() {{ ! [ -e /tmp/filled ]; }}
umask 022
mkdir /opt/made
echo one >/opt/made/one
echo two >/opt/made/two
{first}
touch -d "@$SOURCE_DATE_EPOCH" /opt/made/one /opt/made/two /opt/made /opt /run /etc /
{then}
"""


@pytest.fixture
def small(invoke: Invoke, clone: Path) -> Callable[..., Path]:
    """A clone that builds a small image, by a script with one fault."""

    def faulty(first: str = "", then: str = "") -> Path:
        path = clone / "docker/cuda.Dockerfile"
        base = next(line for line in path.read_text().splitlines() if line.startswith("ARG BASE=")).partition("=")[2]
        unique = str(uuid.uuid4())  # in the scripts too: a step's cache key does not hold the names of its cache mounts
        path.write_text(SMALL.format(base=base, epoch=EPOCH, id=f"torchdock-test-{unique}"))
        script = clone / "docker/layers/debian.sh"
        script.write_text(f"touch /tmp/filled  # {unique}\n")
        done = invoke("build", "--variant", "cu130", "--json", cwd=clone)
        assert done.returncode == 0, done.stderr
        script.write_text(SCRIPT.format(first=first, then=then, unique=unique))
        return clone

    return faulty


def test_a_build_is_made_twice_and_is_the_same_to_the_bit(
    invoke: Invoke, small: Callable[..., Path], engine: Engine
) -> None:
    done = invoke("verify", "--variant", "cu130", "--json", cwd=small())
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["equal"] is True
    assert done.stderr.count("Building torchdock/") == 2
    assert f"Building {document['second']}" in done.stderr
    assert engine.image(document["first"]) is not None
    assert engine.image(document["second"]) is None


@pytest.mark.parametrize(
    ("fault", "file", "what", "first", "second"),
    [
        ({"first": "again && echo One >/opt/made/one || :"}, "one", "content", "4 bytes, sha256 ", "4 bytes, sha256 "),
        (
            {"then": "again && touch -d @1 /opt/made/two || :"},
            "two",
            "time",
            "2026-10-05T00:00:00Z",
            "1970-01-01T00:00:01Z",
        ),
        ({"then": "again && chmod 600 /opt/made/two || :"}, "two", "mode", "0644", "0600"),
    ],
    ids=["content", "time", "mode"],
)
def test_a_fault_of_a_build_is_named_and_nothing_else(
    invoke: Invoke,
    small: Callable[..., Path],
    engine: Engine,
    clone: Path,
    fault: dict[str, str],
    file: str,
    what: str,
    first: str,
    second: str,
) -> None:
    done = invoke("verify", "--variant", "cu130", "--json", cwd=small(**fault))
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert [(layer["name"], layer["equal"]) for layer in document["layers"]] == [("base", True), ("system", False)]
    (difference,) = document["layers"][1]["differences"]
    assert (difference["path"], difference["what"]) == (f"opt/made/{file}", [what])
    assert difference["first"].startswith(first) and difference["second"].startswith(second)
    assert difference["first"] != difference["second"]
    assert document["config"] == []
    assert engine.image(document["second"]) is not None  # to look into
    assert document["second"] in {record["image"] for record in CloneState(clone).records()}  # `clean` knows it
    assert f"`docker image rm {document['second']}` removes it" in done.stderr
    assert f"{MEANINGS[what]}." in done.stderr


@pytest.mark.slow  # all of the large image is read
def test_a_strangers_image_that_differs_ends_with_1(invoke: Invoke, image: dict[str, Any], build: Built) -> None:
    done = invoke("verify", build())  # it says that it is cu130, and holds four files
    assert done.returncode == 1, done.stderr
    assert "stands on a base that is none of this engine's for cu130" in done.stdout
    assert "differ: layers " in done.stdout
    assert "Traceback" not in done.stderr
