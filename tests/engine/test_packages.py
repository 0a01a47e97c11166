"""A workspace's own packages: from a line in torchdock.toml to `import`, with an index on the loopback."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import indexes
from tests.engine.conftest import ROOT, argv
from torchdock import container, locks, packages, sources, variants, workspace
from torchdock import image as images
from torchdock.console import Reporter
from torchdock.container import Identity
from torchdock.engine import Engine
from torchdock.errors import InputError
from torchdock.process import capture
from torchdock.state import CloneState

CU130 = variants.get(ROOT, "cu130")
ENVIRONMENT = locks.read(ROOT, "cu130")
ANNA = Identity(uid=41235, gid=41235, groups=(), name="anna")
PINNED = 'variant = "cu130"\n'

Invoke = Callable[..., "subprocess.CompletedProcess[str]"]


def wheel(index: indexes.Index, name: str, version: str, requires: tuple[str, ...] = (), **more: Any) -> None:
    file, content = indexes.stand_in_wheel(name, version, requires, **more)
    index.publish("simple", file, content=content, metadata=indexes.metadata(name, version, requires))


@pytest.fixture(scope="module")
def index() -> Iterator[indexes.Index]:
    """alpha, which needs beta and parts of the environment; others that cannot be had on it."""
    with indexes.serve() as served:
        token = f"TOKEN = {secrets.token_hex(8)!r}\n"  # another wheel in each run, so that no cached layer stands in
        wheel(served, "alpha", "1.0", ("beta>=1", "numpy", "torch>=2"), modules={"alpha/__init__.py": token})
        wheel(served, "beta", "1.0")
        for version in ("1.26.4", ENVIRONMENT["numpy"].version, "99.0"):
            wheel(served, "numpy", version)
        wheel(served, "old", "1.0", ("numpy<2",))
        wheel(served, "young", "1.0", ("torch>=2.11",))
        wheel(served, "narrow", "1.0", tag="py3-none-manylinux_2_28_x86_64")
        wheel(served, "nvidia-cublas-cu12", "12.8")
        wheel(served, "twelve", "1.0", ("nvidia-cublas-cu12",))
        served.publish("simple", "raw-1.0.tar.gz", content=b"a source package")
        yield served


@pytest.fixture(scope="module")
def env(index: indexes.Index) -> dict[str, str]:
    """The environment of a host with that index alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_INDEX", "PIP_EXTRA"))}
    return {**kept, "UV_DEFAULT_INDEX": index.url("simple"), "NO_PROXY": "127.0.0.1,localhost", "UV_HTTP_RETRIES": "0"}


@pytest.fixture
def given(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> sources.Sources:
    """The same for a call in this process."""
    for name in set(os.environ) - set(env):
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return sources.gather()


@pytest.fixture(scope="module")
def type_there(env: dict[str, str], image: Mapping[str, Any], engine: Engine) -> Iterator[Invoke]:
    """`invoke` on that host, with the environment's image there. The images of workspaces that it makes are removed."""
    state = CloneState(ROOT)
    before = {record["image"] for record in state.records()}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv(*words), cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)

    yield run
    for path in state.folder.glob("builds/*-workspace-*.json"):
        tag = json.loads(path.read_text())["image"]
        if tag not in before:
            engine.client.images.remove(tag, force=True)
            path.unlink()


@pytest.fixture(scope="module")
def project(type_there: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that asks for alpha, locked as a person locks it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "torchdock.toml").write_text(f'{PINNED}packages = ["Alpha>=1"]\n')
    done = type_there("lock", "-w", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def built(project: Path, type_there: Invoke) -> dict[str, Any]:
    """Its image: the document of `invoke build -w DIR --json`."""
    done = type_there("build", "-w", str(project), "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def asking(folder: Path, *wanted: str, pin: str = PINNED) -> Path:
    (folder / "torchdock.toml").write_text(f"{pin}packages = {json.dumps(wanted)}\n")
    return folder


def copy(project: Path, target: Path, change: Callable[[str], str]) -> Path:
    """The same workspace with another lock."""
    (target / packages.FOLDER).mkdir()
    (target / workspace.FILE).write_text((project / workspace.FILE).read_text())
    packages.file(target, CU130).write_text(change(packages.file(project, CU130).read_text()))
    return target


def refusal(folder: Path, given: sources.Sources, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        packages.refresh(ROOT, folder, given, Reporter(), architecture="x86_64", **options)
    assert not (folder / packages.FOLDER).exists()
    return str(refused.value)


def pins(folder: Path) -> dict[str, str]:
    text = packages.file(folder, CU130).read_text()
    return {name: pin.version for name, pin in locks.parse(text, "").items()}


# --- locking ----------------------------------------------------------------------------------------------------------


def test_the_lock_holds_what_the_environment_lacks(project: Path, index: indexes.Index) -> None:
    assert pins(project) == {"alpha": "1.0", "beta": "1.0"}
    assert [path.name for path in (project / "torchdock.locks").iterdir()] == ["cu130.txt"]  # the pinned one alone
    found = locks.header(packages.file(project, CU130).read_text())
    assert found is not None and found.architectures == CU130.architectures
    assert not [path for path in index.asked if re.search(r"/(torch|numpy)-.*\.whl$", path)]


def test_a_lock_moves_nothing_unasked(given: sources.Sources, index: indexes.Index, tmp_path: Path) -> None:
    def lock(**options: Any) -> list[tuple[str, str, str]]:
        options = {"architecture": "x86_64", **options}
        found = packages.refresh(ROOT, tmp_path, given, Reporter(), **options)
        locks.replace(found.files)
        return found.differences["cu130"]

    for name in ("moved", "other"):
        wheel(index, name, "1.0")
    asking(tmp_path, "moved", "other")
    assert lock() == [("moved", "", "1.0"), ("other", "", "1.0")]
    for name in ("moved", "other"):
        wheel(index, name, "2.0")
    asking(tmp_path, "moved", "other", "beta")
    assert lock() == [("beta", "", "1.0")]
    assert lock() == []
    assert lock(upgrade="Moved") == [("moved", "1.0", "2.0")]
    assert lock(upgrade=True) == [("other", "1.0", "2.0")]
    asking(tmp_path)
    assert {name for name, _, new in lock() if not new} == {"beta", "moved", "other"}
    assert not (tmp_path / packages.FOLDER / "cu130.txt").exists()


def test_what_the_environment_cannot_take_is_told(given: sources.Sources, tmp_path: Path) -> None:
    told = refusal(asking(tmp_path, "old"), given)
    assert f"The environment has numpy {ENVIRONMENT['numpy'].version}, and a workspace adds to it" in told
    assert "old" in told and told.endswith("The workspace's locks are unchanged.")
    told = refusal(asking(tmp_path, "twelve"), given)
    assert "brings nvidia-cublas-cu12, and the variant cu130 has CUDA 13.0" in told
    told = refusal(asking(tmp_path, "raw"), given)
    assert "raw" in told and "nothing is built from source" in told
    assert "Correct its name" in refusal(asking(tmp_path, "no-such-package"), given)
    assert "the workspace's locks do not have this package" in refusal(asking(tmp_path, "beta"), given, upgrade="numpy")


def test_every_variant_that_a_host_may_choose_is_locked(
    given: sources.Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one for which it is not to be had is left out: cu128 has an older torch."""
    folder = asking(tmp_path, "young", "beta", pin="")
    found = packages.refresh(ROOT, folder, given, Reporter(), architecture="x86_64")
    assert {path.stem for path in found.files} == {"cpu", "cu130"} and set(found.left) == {"cu128"}
    assert "fallback: cu128 is left out, and launches with it are refused" in capsys.readouterr().out


def test_a_package_for_this_machine_alone_is_locked_for_it_alone(
    given: sources.Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = asking(tmp_path, "narrow")
    locks.replace(packages.refresh(ROOT, folder, given, Reporter(), architecture="x86_64").files)
    assert "cu130: the lock is not for aarch64" in capsys.readouterr().out
    assert packages.find(ROOT, folder, CU130, "x86_64") is not None
    with pytest.raises(InputError, match=r"is for x86_64, not for aarch64: a package has no wheels for it"):
        packages.find(ROOT, folder, CU130, "aarch64")


# --- building and launching -------------------------------------------------------------------------------------------


def test_the_packages_are_one_more_layer(built: dict[str, Any], image: dict[str, Any], engine: Engine) -> None:
    assert re.fullmatch(r"torchdock/cu130-workspace:[0-9a-f]{12}", built["image"])
    assert built["environment"] == image["image"] and built["packages"] == {"alpha": "1.0", "beta": "1.0"}
    assert built["layers"][:-1] == image["layers"]
    there, below = engine.image(built["image"]), engine.image(image["image"])
    assert there is not None and below is not None and there.size - below.size < 100_000
    (record,) = [one for one in CloneState(ROOT).records() if one["image"] == built["image"]]
    assert (record["base"], record["environment"]) == (image["base"], image["image"])


def test_whoever_launches_it_can_import_them(built: dict[str, Any], engine: Engine) -> None:
    """And the suite, which compares what is installed with the lock, misses one that was taken out, nothing else."""
    script = (
        "import os; from importlib.util import find_spec as find; print(os.path.exists(find('alpha').cached));"
        "import alpha, beta; print(beta.__version__);"
    )
    suite = "python -m pytest -q -p no:cacheprovider -k equal_the_lock /opt/torchdock/tests/container/test_versions.py"
    command = ["sh", "-c", f'python -c "{script}" && uv pip uninstall -q beta && {suite}']
    plan = container.plan(
        engine, built["image"], ANNA, sources.gather(), role="test", clone=CloneState(ROOT).clone, workspace=None,
        command=command,
    )  # fmt: skip
    try:
        done = capture(plan.argv, timeout=120)
    finally:
        engine.remove_container(plan.name)
        engine.client.volumes.get(f"torchdock-cache-{ANNA.uid}").remove()
    assert done.code == 1, done.out + done.err
    assert done.out.startswith("True\n1.0\n")  # with its bytecode
    assert "AssertionError: beta 1.0 is missing\n" in done.out


def test_a_launch_takes_that_image(built: dict[str, Any], project: Path, type_there: Invoke) -> None:
    done = type_there("run", "-w", str(project), "--json", "--", "python", "-c", "import alpha; print(alpha.TOKEN)")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image"] == built["image"]
    for task in (("run",), ("up",), ("shell",)):
        dry = type_there(*task, "-w", str(project), "--dry-run", *(("--", "true") if task == ("run",) else ()))
        assert dry.returncode == 0 and f" {built['image']} " in dry.stdout, dry.stderr
    dry = type_there("build", "-w", str(project), "--dry-run")
    first, second = dry.stdout.splitlines()
    assert f"--tag {built['environment']} " in first and f"ENVIRONMENT={built['environment']} " in second


def test_two_builds_are_equal_to_the_bit(
    built: dict[str, Any], project: Path, engine: Engine, given: sources.Sources
) -> None:
    layer = packages.find(ROOT, project, CU130, engine.architecture)
    assert layer is not None
    wishes = images.Wishes(no_cache=True)
    plan = packages.plan(ROOT, layer, built["environment"], given, builder=engine.facts.context, wishes=wishes)
    assert plan.tag == built["image"]
    second = f"{plan.tag}-again"
    try:
        done = capture([word if word != plan.tag else second for word in plan.argv], timeout=300)
        assert done.code == 0, done.err
        found = engine.image(second)
        assert found is not None and found.id == built["id"]
    finally:
        engine.client.images.remove(second, force=True)


def test_offline_finds_it_and_builds_nothing_else(
    built: dict[str, Any], project: Path, type_there: Invoke, tmp_path: Path
) -> None:
    done = type_there("build", "-w", str(project), "--offline", "--json")
    document = json.loads(done.stdout)
    assert (document["image"], document["built"]) == (built["image"], False)
    other = copy(project, tmp_path, lambda lock: lock + "# another text\n")
    done = type_there("build", "-w", str(other), "--offline")
    assert done.returncode == 1
    told = "offline: the layer workspace is not in the build cache; it needs these wheels: alpha==1.0 beta==1.0"
    assert told in done.stderr


def test_other_bytes_than_the_locked_ones_are_refused(project: Path, type_there: Invoke, tmp_path: Path) -> None:
    other = copy(project, tmp_path, lambda lock: re.sub(r"(alpha==1\.0.*\n.*sha256:)[0-9a-f]{4}", r"\1dead", lock))
    done = type_there("run", "-w", str(other), "--", "true")
    assert done.returncode == 1 and done.stdout == ""
    assert type_there("lock", "-w", str(other)).returncode == 0
    assert "dead" in packages.file(other, CU130).read_text()  # what an index swaps is not accepted
    told = done.stderr.splitlines()[-1]
    assert f"What the index gives is not what {packages.file(other, CU130)} names" in told
    assert f"rm -r {other}/torchdock.locks && invoke lock -w {other}" in told and "Traceback" not in done.stderr


def test_a_changed_list_is_refused_until_it_is_locked(project: Path, type_there: Invoke, tmp_path: Path) -> None:
    other = asking(copy(project, tmp_path, str), "alpha>=1", "beta")
    for words in (("run", "--", "true"), ("up",), ("shell",), ("build",)):
        done = type_there(words[0], "-w", str(other), *words[1:])
        assert (done.returncode, done.stdout.partition("torchdock:")[2]) == (2, ""), done.stderr
        assert f"is older than what torchdock.toml asks for. Lock them: invoke lock -w {other}" in done.stderr


def test_a_folder_of_locks_that_cannot_be_is_wrong_input(project: Path, type_there: Invoke, tmp_path: Path) -> None:
    (tmp_path / "torchdock.toml").write_text((project / "torchdock.toml").read_text())
    (tmp_path / packages.FOLDER).write_text("no folder")
    done = type_there("lock", "-w", str(tmp_path))
    assert done.returncode == 2 and f"{tmp_path}/torchdock.locks cannot be written (File exists)" in done.stderr
    dry = type_there("lock", "-w", str(tmp_path), "--dry-run", "--json")
    assert json.loads(dry.stdout)["files"] == ["torchdock.locks/cu130.txt"] and dry.returncode == 0
    done = type_there("lock", "-w", str(tmp_path / "none"))
    assert done.returncode == 2 and "is no folder" in done.stderr
