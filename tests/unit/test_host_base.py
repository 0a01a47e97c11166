"""Where a base comes from: the order of choices, mirrors of the pinned one, and one made here."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from given import ROOT, TableEngine, program

from torchdock import base, debian, variants
from torchdock.base import BaseChoice
from torchdock.console import Reporter
from torchdock.engine import OUTPUT
from torchdock.errors import InputError, TorchdockError
from torchdock.process import Completed
from torchdock.sources import Mirror, Reach, Sources

PINNED = "docker.io/library/debian:trixie-20261005-slim@sha256:" + "a2" * 32
DIGEST = "sha256:" + "a2" * 32
BASE = variants.Base(PINNED, "trixie", 1791158400)
NOTHING = Sources(None, ())


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What decides a base."""
    locked = [debian.file(architecture, layer) for architecture in debian.ARCHITECTURES for layer in debian.REQUESTED]
    for name in (Path("docker/base.Dockerfile"), *locked):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("mirror", "source", "reference"),
    [
        ("", "registry", PINNED),
        ("lab/debian", "registry", f"lab/debian@{DIGEST}"),
        ("lab:5000/debian:trixie-slim", "registry", f"lab:5000/debian@{DIGEST}"),
        ("lab:5000/library/debian", "registry", f"lab:5000/library/debian@{DIGEST}"),
        ("debian:trixie-slim", "registry", f"debian@{DIGEST}"),
        (f"lab/debian:13@{DIGEST}", "registry", f"lab/debian@{DIGEST}"),
        ("lab/debian@sha256:" + "b" * 64, "custom", "lab/debian@sha256:" + "b" * 64),
    ],
)
def test_a_mirror_gives_the_pinned_digest(mirror: str, source: str, reference: str) -> None:
    chosen = base.mirrored(PINNED, mirror)
    assert (chosen.source, chosen.reference, chosen.debian) == (source, reference, "locked")
    assert (chosen.name == PINNED) is (source == "registry")
    assert bool(chosen.fallbacks()) is (source == "custom")


def test_locked_comes_before_drift_and_pinned_before_made(clone: Path) -> None:
    found = base.choices(clone, BASE, "x86_64", NOTHING)
    assert [(one.source, one.debian) for one in found] == [
        ("registry", "locked"),
        ("bootstrapped", "locked"),
        ("registry", "drift"),
        ("bootstrapped", "drift"),
        ("bootstrapped", "drift"),
    ]
    assert found[1].reference == found[3].reference != found[4].reference
    assert [len(one.fallbacks()) for one in found] == [0, 1, 1, 2, 2]


def test_a_made_base_is_one_for_each_suite_day_recipe_and_lock(clone: Path) -> None:
    lock = debian.read(clone, "x86_64")
    assert lock is not None
    names = [base.bootstrapped(clone, BASE, lock).reference]
    assert re.fullmatch(r"torchdock/base:trixie-[0-9a-f]{12}", names[0])
    names.append(base.bootstrapped(clone, replace(BASE, suite="forky"), lock).reference)
    names.append(base.bootstrapped(clone, replace(BASE, epoch=1), lock).reference)
    names.append(base.bootstrapped(clone, BASE, debian.read(clone, "aarch64")).reference)
    other = tuple(replace(one, sha256="0" * 64) if one.name == "bash" else one for one in lock.packages)
    names.append(base.bootstrapped(clone, BASE, replace(lock, packages=other)).reference)
    (clone / "docker/base.Dockerfile").write_text("FROM scratch\n")
    names.append(base.bootstrapped(clone, BASE, lock).reference)
    assert len(set(names)) == 6


def test_packages_on_top_of_the_base_do_not_change_the_base(clone: Path) -> None:
    lock = debian.read(clone, "x86_64")
    assert lock is not None
    other = tuple(replace(one, sha256="0" * 64) if one.name == "git" else one for one in lock.packages)
    assert base.bootstrapped(clone, BASE, lock) == base.bootstrapped(clone, BASE, replace(lock, packages=other))


# --- obtaining one, with a docker CLI made for the test ---


def obtain(clone: Path, engine: TableEngine, given: Sources = NOTHING, **options: bool) -> BaseChoice:
    candidates = base.choices(clone, BASE, "x86_64", given)
    return base.obtain(engine, clone, BASE, candidates, given, Reporter(), **options)


def no_docker(folder: Path) -> str:
    return program(folder / "docker-cli", f'echo "$*" >>{folder}/argv; echo "no such host" >&2; exit 1')


def test_a_mirror_is_pulled_from(clone: Path) -> None:
    engine = TableEngine(cli=program(clone / "docker-cli", f'echo "$*" >>{clone}/argv'))
    chosen = obtain(clone, engine, Sources(None, (), base_image="lab/debian"))
    assert (chosen.name, chosen.reference) == (PINNED, f"lab/debian@{DIGEST}")
    assert (clone / "argv").read_text() == f"pull --quiet lab/debian@{DIGEST}\n"


def test_offline_pulls_nothing_and_says_what_is_missing(clone: Path) -> None:
    engine = TableEngine(cli=no_docker(clone))
    with pytest.raises(TorchdockError, match=r"offline: the base is not here.*invoke save"):
        obtain(clone, engine, offline=True)
    assert not (clone / "argv").exists()
    made = base.choices(clone, BASE, "x86_64", NOTHING)[1]
    assert obtain(clone, TableEngine(cli=no_docker(clone), images=[made.reference]), offline=True) == made
    with pytest.raises(TorchdockError, match="offline"):
        obtain(clone, TableEngine(cli=no_docker(clone), images=[made.reference]), offline=True, locked=True)


def test_locked_refuses_another_base(clone: Path) -> None:
    other = Sources(None, (), base_image="lab/debian@sha256:" + "b" * 64)
    with pytest.raises(InputError, match="TORCHDOCK_BASE_IMAGE names a base with another digest"):
        obtain(clone, TableEngine(cli=no_docker(clone)), other, locked=True)


# --- making one, with an mmdebstrap made for the test ---

MMDEBSTRAP = r"""
mkdir -p root/etc/apt/preferences.d root/etc/apt/apt.conf.d
printf '%s\n' 'deb [signed-by="/k.gpg"] http://usual/debian trixie main' \
    'deb http://usual/debian-security trixie-security main' >root/etc/apt/sources.list
for word in "$@"; do
    case $word in
        *-hook=upload*) set -- ${word#*=}; cp "$2" "root$3";;
        *-hook=download*) set -- ${word#*=}; cp "root$2" "$3";;
        --setup-hook=*) sh -c "${word#*=}" sh root
            cp root/etc/apt/sources.list seen; cp root/etc/apt/preferences.d/torchdock pins;;
        *dpkg-query*) cp versions root/manifest;;
        --customize-hook=*) sh -c "${word#*=}" sh root;;
    esac
    last=$word
    printf '%s\n' "$word" >>argv
done
: >"$last"
"""


@pytest.fixture
def bootstrap(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BaseChoice]:
    """Make a base with the stand-in; `versions` in the clone says which packages it installs."""
    lock = debian.read(clone, "x86_64")
    assert lock is not None
    there = [f"{one.name} {one.version}\n" for one in lock.packages if one.section == "base"]
    (clone / "versions").write_text("".join(there))
    tool = program(clone / "mmdebstrap", f"cd {clone}; {MMDEBSTRAP}")
    monkeypatch.setattr(base, "_mmdebstrap", lambda *_: [tool])
    monkeypatch.setattr(base, "_privilege", list)
    monkeypatch.setattr(base, "probe", lambda *_, **__: Reach(False))
    engine = TableEngine(cli=program(clone / "docker-cli", f'echo "$*" >>{clone}/built'))

    def run(given: Sources = NOTHING) -> BaseChoice:
        return base.bootstrap(engine, clone, BASE, base.choices(clone, BASE, "x86_64", given), given, Reporter())

    return run


def test_a_base_is_made_of_the_locked_packages(clone: Path, bootstrap: Callable[..., BaseChoice]) -> None:
    chosen = bootstrap()
    assert chosen == base.choices(clone, BASE, "x86_64", NOTHING)[1]
    built = (clone / "built").read_text()
    assert f"--output {OUTPUT} " in built and f"--tag {chosen.reference}" in built
    version = dict(line.split() for line in (clone / "versions").read_text().splitlines())["bash"]
    assert f"Package: bash\nPin: version {version}\nPin-Priority: 1001\n" in (clone / "pins").read_text()
    left = [str(path.relative_to(clone / "root")) for path in (clone / "root").rglob("*") if path.is_file()]
    assert left == ["etc/apt/sources.list"]


def test_a_mirror_is_used_and_leaves_no_trace(clone: Path, bootstrap: Callable[..., BaseChoice]) -> None:
    mirror = Mirror("TORCHDOCK_APT_MIRROR", "https://anna:p&|\\w@lab/debian/")
    bootstrap(Sources(None, (), apt_mirror=mirror))
    assert (clone / "seen").read_text().splitlines() == [
        'deb [signed-by="/k.gpg"] https://anna:p&|\\w@lab/debian trixie main',
        "deb https://anna:p&|\\w@lab/debian-security trixie-security main",
    ]
    assert (clone / "root/etc/apt/sources.list").read_text().splitlines() == [
        'deb [signed-by="/k.gpg"] http://usual/debian trixie main',
        "deb http://usual/debian-security trixie-security main",
    ]
    assert "lab/debian" not in (clone / "argv").read_text()


def test_drift_of_the_base_is_said_and_has_a_name_of_its_own(
    clone: Path, bootstrap: Callable[..., BaseChoice], capsys: pytest.CaptureFixture[str]
) -> None:
    text = (clone / "versions").read_text()
    (clone / "versions").write_text(text.replace("\nbash ", "\nbash 0") + "extra 1\n")
    chosen = bootstrap()
    assert (chosen.source, chosen.debian) == ("bootstrapped", "drift")
    built = (clone / "built").read_text()
    assert f"--output {OUTPUT} " in built and f"--tag {chosen.reference}" in built
    assert "fallback: neither the Debian mirror nor the snapshot carries the locked" in (
        said := capsys.readouterr().out
    )
    assert "(bash, extra)" in said and "invoke lock --upgrade debian" in said


def test_what_the_mirror_has_dropped_comes_from_the_snapshot(
    clone: Path, bootstrap: Callable[..., BaseChoice], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(base, "probe", lambda _, url: asked.append(url) or Reach(True))
    (clone / "versions").write_text("bash 1\n")
    bootstrap()
    lock = debian.read(clone, "x86_64")
    assert lock is not None
    kept = f"http://snapshot.debian.org/archive/debian/{lock.snapshot}"
    assert asked == [f"{kept}/dists/trixie/InRelease"]
    assert (clone / "seen").read_text().startswith(f'deb [signed-by="/k.gpg"] {kept} trixie main\n')
    assert '--aptopt=Acquire::Check-Valid-Until "false"' in (clone / "argv").read_text()


@pytest.mark.parametrize(
    ("uid", "namespaces", "sudo", "first"),
    [
        pytest.param(0, False, False, [], id="root"),
        pytest.param(1000, True, False, [], id="user namespaces"),
        pytest.param(1000, False, True, ["sudo", "-n"], id="sudo"),
    ],
)
def test_who_may_make_a_base(
    uid: int, namespaces: bool, sudo: bool, first: "list[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    works = {"unshare": namespaces, "sudo": sudo}
    monkeypatch.setattr(base, "capture", lambda argv, **_: Completed(0 if works[argv[0]] else 1, "", ""))
    assert base._privilege()[:2] == first


def test_without_any_right_making_a_base_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(base, "capture", lambda argv, **_: Completed(1, "", ""))
    with pytest.raises(TorchdockError, match="sudo apt-get install uidmap"):
        base._privilege()


# --- what the scripts of the layers share ---


@pytest.fixture
def common(tmp_path: Path) -> Callable[..., str]:
    """Run a line of sh after common.sh, with these secrets; both streams."""

    def run(line: str, stdin: str = "", **secrets: str) -> str:
        folder = tmp_path / "secrets"
        folder.mkdir(exist_ok=True)
        for name, value in secrets.items():
            (folder / name.replace("_", "-")).write_text(value)
        script = (ROOT / "docker/layers/common.sh").read_text().replace("/run/secrets", str(folder))
        done = subprocess.run(["sh", "-c", f"{script}\n{line}"], input=stdin, capture_output=True, text=True)
        return done.stdout + done.stderr

    return run


def test_a_build_prints_no_secret(common: Callable[..., str]) -> None:
    said = "E: https://anna:hunter2@lab/t0ken/simple/torch/ and lab/t0ken/simple and hunter2\nplain [x]* & \\ line\n"
    hidden = common("hide", said, index="https://anna:hunter2@lab/t0ken/simple/", apt_mirror="http://deb/debian")
    assert hidden == "E: https://****@(mirror)/torch/ and (mirror) and ****\nplain [x]* & \\ line\n"
    assert common("hide", "retries: /t0ken/simple/uv/\n") == "retries: /(mirror)/uv/\n"
    assert common("hide", "http://deb/debian/x a/b\n") == "http://(mirror)/x a/b\n"


def test_without_secrets_nothing_is_hidden(common: Callable[..., str]) -> None:
    assert common("hide", "a https://b/c\n") == "a https://b/c\n"


def test_a_quiet_command_speaks_when_it_fails(common: Callable[..., str]) -> None:
    assert common("quietly echo well; echo next") == "next\n"
    assert sorted(common("quietly sh -c 'echo oh; exit 3' || echo $?").split()) == ["3", "oh"]


def test_the_header_of_a_lock_is_read(common: Callable[..., str], tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("# torchdock: variant=cpu layer=torch python=3.13 index=https://a/b=c\ntorch==1 python=4\n")
    assert common(f"header python {lock}; header index {lock}; header none {lock}") == "3.13\nhttps://a/b=c\n"
