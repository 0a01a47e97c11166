"""Debian packages by their lock: the same bits from another mirror, and mirrors that lie, lag behind or are gone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import mirrors
from tests.engine.conftest import ROOT, copy_tree
from torchdock import base as bases
from torchdock import debian, image, locks, sources, variants
from torchdock.console import Reporter
from torchdock.engine import Engine
from torchdock.errors import InputError

VARIANT = variants.get(ROOT, "cu130")
TAG = "torchdock/trial:debian"


@pytest.fixture(scope="module")
def today(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose Debian packages are locked to what the mirror has now: mirrors move, and these tests do not."""
    clone = copy_tree(tmp_path_factory.mktemp("debian") / "clone")
    given = sources.gather()
    choices = bases.choices(clone, VARIANT.base, engine.architecture, given)
    chosen = bases.obtain(engine, clone, VARIANT.base, choices, given, Reporter())
    files, _ = debian.refresh(engine, clone, chosen.reference, VARIANT.base.suite, given, upgrade=True)
    locks.replace(files)
    return clone


@pytest.fixture(scope="module")
def made_base(engine: Engine, today: Path) -> Iterator[bases.BaseChoice]:
    """A base made of the packages that are locked now; removed afterwards unless it was there before."""
    candidates = bases.choices(today, VARIANT.base, engine.architecture, sources.gather())
    made = candidates[1]
    there = engine.image(made.reference) is not None
    if not there:
        assert bases.bootstrap(engine, today, VARIANT.base, candidates, sources.gather(), Reporter()) == made
    yield made
    if not there:
        subprocess.run(["docker", "image", "rm", made.reference], capture_output=True)


@pytest.fixture
def mirror(made_base: bases.BaseChoice, monkeypatch: pytest.MonkeyPatch) -> Iterator[mirrors.Mirror]:
    """A mirror on the loopback, named in the environment."""
    with mirrors.serve(mirrors.debian_upstream(made_base.reference, VARIANT.base.suite)) as server:
        monkeypatch.setenv("TORCHDOCK_APT_MIRROR", server.url("debian"))
        yield server


@pytest.fixture
def system(
    engine: Engine, today: Path, made_base: bases.BaseChoice
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Build the system layer anew with the sources of the environment; the image is removed afterwards."""

    def build(mode: str = bases.LOCKED) -> subprocess.CompletedProcess[str]:
        given = sources.gather()
        wishes = image.Wishes(no_cache=True, tag=TAG)
        plans = image.plans(today, VARIANT, engine, given, wishes)
        plan = next(one for one in plans if one.base.name == made_base.name and one.base.debian == mode)
        words = list(plan.argv)
        words[words.index("--target") + 1] = "system"
        return subprocess.run(words, capture_output=True, text=True, timeout=400)

    yield build
    subprocess.run(["docker", "image", "rm", TAG], capture_output=True)


@pytest.mark.slow
def test_another_mirror_gives_the_same_bits(
    system: Callable[..., Any], engine: Engine, request: pytest.FixtureRequest
) -> None:
    """The base and the system layer, from the usual mirror and from one on the loopback."""
    assert system().returncode == 0
    usual = engine.image(TAG)
    mirror = request.getfixturevalue("mirror")
    done = system()
    assert done.returncode == 0, done.stderr
    assert "from the mirror, 0 from the snapshot" in done.stderr
    assert engine.image(TAG) == usual
    assert len([path for path in mirror.asked if path.startswith("pool/")]) > 100
    assert mirror.url("debian") not in done.stderr


@pytest.mark.slow
def test_a_base_from_another_mirror_is_the_same_to_the_bit(
    mirror: mirrors.Mirror, today: Path, made_base: bases.BaseChoice, engine: Engine
) -> None:
    given = sources.gather()
    candidates = bases.choices(today, VARIANT.base, engine.architecture, given)
    try:
        assert bases.bootstrap(engine, today, VARIANT.base, candidates, given, Reporter(), tag=TAG) == made_base
        assert mirror.asked
        assert engine.image(TAG) == engine.image(made_base.reference)
    finally:
        subprocess.run(["docker", "image", "rm", TAG], capture_output=True)


@pytest.mark.slow
def test_a_mirror_that_lies_is_found_out(mirror: mirrors.Mirror, system: Callable[..., Any]) -> None:
    mirror.changed["/tmux_"] = lambda real: b"x" * len(real)
    done = system()
    if "1 from the snapshot" in done.stderr:  # another source told the truth
        return
    assert done.returncode != 0
    assert "other files than the lock names for: tmux. Do not trust that mirror." in done.stderr


@pytest.mark.slow
def test_what_a_mirror_has_dropped_is_named(mirror: mirrors.Mirror, system: Callable[..., Any]) -> None:
    mirror.changed["/tmux_"] = None
    done = system()
    if "1 from the snapshot" in done.stderr:
        assert done.returncode == 0
        return
    assert done.returncode != 0
    assert re.search(r"torchdock: drift: neither the Debian mirror nor the snapshot of \S+ gave: tmux", done.stderr)


def test_credentials_reach_the_mirror_and_no_output(
    mirror: mirrors.Mirror, system: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.token = "anna:hunter2@lab"
    mirror.changed["/tmux_"] = None  # enough to see that all others came
    monkeypatch.setenv("TORCHDOCK_APT_MIRROR", mirror.url("debian").replace("://", "://anna:hunter2%40lab@"))
    done = system()
    assert "gave: tmux" in done.stderr or "1 from the snapshot" in done.stderr, done.stderr
    assert "hunter2" not in done.stderr
    mirror.token = "anna:swordfish"
    refused = system()
    if "from the snapshot" not in refused.stderr:
        assert refused.returncode != 0
        assert "401" in refused.stderr
    assert "hunter2" not in refused.stderr


def test_a_mistyped_mirror_is_no_drift(
    mirror: mirrors.Mirror, system: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDOCK_APT_MIRROR", mirror.url("debian/debain"))
    done = system()
    if "from the snapshot" in done.stderr:
        return
    assert done.returncode != 0
    assert "the Debian mirror has no trixie: is its URL that of the archive" in done.stderr
    assert "drift" not in done.stderr.partition("torchdock: ")[2]


@pytest.mark.slow
def test_drift_takes_what_the_mirror_has(mirror: mirrors.Mirror, system: Callable[..., Any]) -> None:
    done = system(bases.DRIFT)
    assert done.returncode == 0, done.stderr
    assert any("InRelease" in path for path in mirror.asked)
    check = ["docker", "run", "--rm", TAG, "sh", "-c", "gcc --version && git --version && python3 --version"]
    assert subprocess.run(check, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_package_that_is_added_moves_no_other(
    engine: Engine, made_base: bases.BaseChoice, today: Path, tmp_path: Path
) -> None:
    clone = copy_tree(tmp_path / "clone")
    shutil.copytree(today / debian.FOLDER, clone / debian.FOLDER, dirs_exist_ok=True)
    given, suite = sources.gather(), VARIANT.base.suite

    def resolve() -> debian.DebianLock:
        return debian.resolve(engine, clone, made_base.reference, "aarch64", suite, given, upgrade=False)

    before = debian.read(clone, "aarch64")
    assert before is not None
    assert resolve().packages == before.packages
    with (clone / debian.REQUESTED["system"]).open("a") as file:
        file.write("hello  # greets\n")
    after = resolve()
    assert {one.name for one in after.packages} - {one.name for one in before.packages} == {"hello"}
    assert set(before.packages) < set(after.packages)
    (clone / debian.REQUESTED["system"]).write_text("no-such-package\n")
    with pytest.raises(InputError, match=r"no-such-package.*The locks are unchanged"):
        resolve()


def test_a_mirror_that_is_gone_is_told(system: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDOCK_APT_MIRROR", "http://127.0.0.1:9/debian")
    done = system()
    if "from the snapshot" in done.stderr:
        return
    assert done.returncode != 0
    assert re.search(r"Debian packages could not be downloaded: .* and \d+ more", done.stderr)
    assert "Unable to connect to 127.0.0.1:9" in done.stderr
