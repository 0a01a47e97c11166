"""Locks of Debian packages: read, checked, and resolved by a script in a container."""

import shutil
from pathlib import Path

import pytest
from given import ROOT, TableEngine, program

from torchdock import debian
from torchdock.errors import InputError, TorchdockError
from torchdock.sources import Mirror, Sources

SUM = "5" * 64
LOCK = f"""\
# torchdock: suite=trixie architecture=amd64 snapshot=20261122T021046Z requested=0123456789ab download=8890
# Written by `invoke lock`: section, name, version, SHA-256, where it lies in Debian's archives, bytes.
base bash 5.2.37-2+b9 {SUM} debian/pool/main/b/bash/bash_5.2.37-2%2bb9_amd64.deb 1498
python python3 3.13.5-1 {SUM} debian/pool/main/p/python3-defaults/python3_3.13.5-1_amd64.deb 28
system git 1:2.47.3-0 {SUM} debian-security/pool/updates/main/g/git/git_2.47.3-0_amd64.deb 8862
"""
FILES = [str(debian.file(architecture, layer)) for architecture in debian.ARCHITECTURES for layer in debian.REQUESTED]
NAMES = debian.REQUESTED["system"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in (*map(str, debian.REQUESTED.values()), *FILES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_a_lock_is_read_and_written_alike() -> None:
    lock = debian.parse(LOCK, "amd64.txt")
    assert (lock.suite, lock.architecture, lock.snapshot) == ("trixie", "amd64", "20261122T021046Z")
    assert [one.name for one in lock.packages] == ["bash", "python3", "git"]
    assert (lock.packages[2].version, lock.packages[2].size) == ("1:2.47.3-0", 8862)
    assert [[one.name for one in lock.part(layer)] for layer in debian.REQUESTED] == [["bash", "python3"], ["git"]]
    assert lock.text() == LOCK


def test_only_the_base_is_pinned_for_the_base() -> None:
    assert debian.parse(LOCK, "x").preferences() == "Package: bash\nPin: version 5.2.37-2+b9\nPin-Priority: 1001\n"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (SUM, SUM[:-1], "amd64.txt, line 3"),
        ("base bash", "other bash", "amd64.txt, line 3"),
        ("debian-security/pool", "elsewhere/pool", "amd64.txt, line 5"),
        (" 1:2.47.3-0", "", "amd64.txt, line 5"),
        (" 8862", "", "amd64.txt, line 5"),
        ("# torchdock: ", "# ", "the first line"),
        ("suite=trixie ", "", "the first line"),
    ],
)
def test_a_lock_that_was_damaged_names_the_line(old: str, new: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as bad:
        debian.parse(LOCK.replace(old, new), "amd64.txt")
    assert "git checkout docker/locks" in str(bad.value)


@pytest.mark.parametrize("architecture", list(debian.ARCHITECTURES))
def test_the_locks_of_this_tree_are_up_to_date(architecture: str) -> None:
    assert debian.check(ROOT, architecture, "trixie") == []
    lock = debian.read(ROOT, architecture)
    assert lock is not None
    locked = {one.name for one in lock.packages}
    assert {name for layer in debian.REQUESTED for name in debian.requested(ROOT, layer)} <= locked
    assert {"bash", "libc6"} <= {one.name for one in lock.packages if one.section == "base"}
    assert len(locked) == len(lock.packages)


def test_packages_have_a_why_that_is_no_package(clone: Path) -> None:
    (clone / NAMES).write_text("# all\n\ngcc  # compiles\ng++\n")
    assert debian.requested(clone, "system") == ["gcc", "g++"]


@pytest.mark.parametrize("line", ["two words", "; rm -rf /", "-o Dir=/", "cowsay=1.0", "Gcc"])
def test_what_is_no_package_is_told_with_its_line(clone: Path, line: str) -> None:
    (clone / NAMES).write_text(f"gcc\n{line}\n")
    with pytest.raises(InputError, match=r"docker/layers/packages\.txt:2: .* is no name of a Debian package"):
        debian.requested(clone, "system")


@pytest.mark.parametrize("name", ["docker/layers/packages.txt", "docker/locks/debian/system/amd64.txt"])
def test_what_is_no_text_is_told(clone: Path, name: str) -> None:
    (clone / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=f"{name} cannot be read .it is no text"):
        debian.check(clone, "x86_64", "trixie")


def test_a_lock_older_than_its_packages_is_noticed(clone: Path) -> None:
    path = clone / NAMES
    path.write_text(path.read_text().replace("# people fetch things", "# another why"))
    assert debian.check(clone, "x86_64", "trixie") == []
    path.write_text(path.read_text() + "hello\n")
    (warning,) = debian.check(clone, "x86_64", "trixie")
    assert "packages.txt was changed after its lock was written" in warning


def test_a_lock_for_something_else_is_refused(clone: Path) -> None:
    with pytest.raises(InputError, match=r"debian/python/riscv64\.txt.*`invoke lock` writes it"):
        debian.check(clone, "riscv64", "trixie")
    with pytest.raises(InputError, match="a lock for Debian trixie on amd64; here forky on amd64"):
        debian.check(clone, "x86_64", "forky")
    folder = clone / debian.FOLDER / "system"
    shutil.copy(folder / "arm64.txt", folder / "amd64.txt")
    with pytest.raises(InputError, match="a lock for Debian trixie on arm64; here trixie on amd64"):
        debian.check(clone, "x86_64", "trixie")


# --- resolving, with a docker CLI made for the test ---


def resolve(clone: Path, script: str, given: Sources, *, upgrade: bool = False) -> debian.DebianLock:
    """``script`` sees docker's words in $*, and the handed over folder in $secrets."""
    find = 'for word in "$@"; do case $word in *target=/run/secrets*) word=${word#*source=}; secrets=${word%%,*};; '
    find += "*target=/run/old.txt*) word=${word#*source=}; old=${word%%,*};; esac; done; "
    engine = TableEngine(cli=program(clone / "docker-cli", f'echo "$*" >{clone}/argv; {find} {script}'))
    return debian.resolve(engine, clone, "base:1", "x86_64", "trixie", given, upgrade=upgrade)


ANSWER = "cat <<'E'\nsnapshot=20261122T021046Z\n" + LOCK.split("\n", 2)[2] + "E"


def test_a_resolved_lock_says_what_it_was_resolved_for(clone: Path) -> None:
    lock = resolve(clone, ANSWER, Sources(None, ("HTTPS_PROXY",)))
    assert [one.name for one in lock.packages] == ["bash", "python3", "git"]
    (clone / debian.file("x86_64", "system")).write_text(lock.text())
    assert debian.check(clone, "x86_64", "trixie") == []
    argv = (clone / "argv").read_text()
    assert "--env HTTPS_PROXY" in argv
    names = " ".join(name for layer in debian.REQUESTED for name in debian.requested(clone, layer))
    assert argv.rstrip().endswith(f"base:1 sh /run/debian-lock.sh amd64 trixie {names}")


def test_credentials_are_handed_over_in_files_for_this_user_alone(clone: Path) -> None:
    netrc = clone / "netrc"
    netrc.write_text("machine lab login anna password hunter2\n")
    mirror = Mirror("TORCHDOCK_APT_MIRROR", "https://anna:hunter2@lab/debian")
    look = f"stat -c %a $secrets $secrets/apt-mirror >{clone}/modes; cat $secrets/* >{clone}/secrets; {ANSWER}"
    resolve(clone, look, Sources(None, (), apt_mirror=mirror, netrc=netrc))
    assert (clone / "modes").read_text() == "700\n600\n"
    assert (clone / "secrets").read_text() == "https://anna:hunter2@lab/debian" + netrc.read_text()
    assert "hunter2" not in (clone / "argv").read_text()


@pytest.mark.parametrize("upgrade", [False, True])
def test_what_is_locked_is_told_unless_all_may_move(clone: Path, upgrade: bool) -> None:
    resolve(clone, f"cp $old {clone}/old; {ANSWER}", Sources(None, ()), upgrade=upgrade)
    locked = debian.read(ROOT, "x86_64")
    assert locked is not None
    assert (clone / "old").read_text() == ("" if upgrade else locked.text())
    assert {one.section for one in locked.packages} == {"base", "python", "system"}


def test_each_file_changes_with_its_own_packages(clone: Path) -> None:
    """A new package of the system layer leaves the lock below the wheels as it is, whatever day it is."""
    locked = debian.read(clone, "x86_64")
    assert locked is not None
    (clone / NAMES).write_text((clone / NAMES).read_text() + "git-lfs\n")
    later = locked.text().replace(locked.snapshot, "20270101T000000Z").split("\n", 2)[2]
    more = f"system git-lfs 1 {SUM} debian/pool/main/g/git-lfs/git-lfs_1_amd64.deb 7"
    engine = TableEngine(cli=program(clone / "docker-cli", f"cat <<'E'\nsnapshot=20270101T000000Z\n{later}{more}\nE"))
    files, rows = debian.refresh(engine, clone, "base:1", "trixie", Sources(None, ()), upgrade=False)
    amd64 = [path.relative_to(clone) for path in files if path.name == "amd64.txt"]
    assert amd64 == [debian.file("x86_64", "system")]
    assert ("git-lfs", "", "1") in rows


@pytest.mark.parametrize(
    ("said", "code"),
    [("E: Unable to locate package helo", 2), ("E: Failed to fetch https://anna:hunter2@lab/debian/x", 1)],
)
def test_what_cannot_be_resolved_leaves_the_lock(clone: Path, said: str, code: int) -> None:
    before = {name: (clone / name).read_text() for name in FILES}
    mirror = Mirror("TORCHDOCK_APT_MIRROR", "https://anna:hunter2@lab/debian")
    with pytest.raises(TorchdockError, match="The locks are unchanged") as bad:
        resolve(clone, f"echo '{said}' >&2; exit 1", Sources(None, (), apt_mirror=mirror))
    assert bad.value.exit_code == code
    assert "hunter2" not in str(bad.value)
    assert {name: (clone / name).read_text() for name in FILES} == before
