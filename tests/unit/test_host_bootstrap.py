"""Making .venv: when it is finished, which way there is, and every failure as one paragraph."""

import ast
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import certifi
import pytest
from given import ROOT, open_folder, without_rights

from torchdock import bootstrap
from torchdock.bootstrap import DEV_LOCK, HOST_LOCK, BootstrapError


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose host locks name nothing to install."""
    (tmp_path / "docker/locks").mkdir(parents=True)
    (tmp_path / HOST_LOCK).write_text("# nothing\n")
    (tmp_path / DEV_LOCK).write_text("# nothing more\n")
    return tmp_path


def stamp(clone: Path, name: str, locks: "list[Path]") -> None:
    (clone / ".venv").mkdir(exist_ok=True)
    (clone / ".venv" / name).write_text(bootstrap.stamp_of(clone, locks))


def test_a_stamp_is_of_the_python_the_folder_and_the_locks(
    clone: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = [bootstrap.stamp_of(clone, [HOST_LOCK])]
    assert bootstrap.stamp_of(clone, [HOST_LOCK]) == stamps[0]
    stamps.append(bootstrap.stamp_of(clone, [HOST_LOCK, DEV_LOCK]))
    moved = clone.rename(tmp_path_factory.mktemp("elsewhere") / "clone")
    stamps.append(bootstrap.stamp_of(moved, [HOST_LOCK]))
    (moved / HOST_LOCK).write_text("# something\n")
    stamps.append(bootstrap.stamp_of(moved, [HOST_LOCK]))
    monkeypatch.setattr(sys, "version", "3.99.0")
    stamps.append(bootstrap.stamp_of(moved, [HOST_LOCK]))
    assert len(set(stamps)) == 5


@pytest.mark.parametrize(
    ("ensurepip", "uv", "apt", "way"),
    [
        (True, True, True, "venv"),
        (True, False, False, "venv"),
        (False, True, True, "uv"),
        (False, True, False, "uv"),
        (False, False, True, "apt"),
    ],
)
def test_the_way_to_pip(ensurepip: bool, uv: bool, apt: bool, way: str) -> None:
    assert bootstrap.how_to_get_pip(ensurepip=ensurepip, uv=uv, apt=apt) == way


def test_where_there_is_no_way_the_package_is_named() -> None:
    with pytest.raises(BootstrapError, match=r"Install the venv package .*\(Debian: python3-venv\)"):
        bootstrap.how_to_get_pip(ensurepip=False, uv=False, apt=False)


def test_what_is_finished_is_left_alone(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stamp(clone, "torchdock.host", [HOST_LOCK])
    assert bootstrap.ensure(clone, dev=False) is False
    stamp(clone, "torchdock.dev", [HOST_LOCK, DEV_LOCK])
    assert bootstrap.ensure(clone, dev=True) is False
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("dev", [False, True])
def test_a_changed_lock_or_the_development_tools_are_something_to_do(
    dev: bool, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp(clone, "torchdock.host", [HOST_LOCK])
    if not dev:
        (clone / HOST_LOCK).write_text("# another\n")
    monkeypatch.setattr(bootstrap, "_has_module", lambda name: False)
    monkeypatch.setenv("PATH", str(clone))
    with pytest.raises(BootstrapError, match="can make no virtual environment"):
        bootstrap.ensure(clone, dev=dev)


def test_an_environment_is_made_and_stamped_last(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "_has_module", lambda name: False)  # uv takes a tenth of venv's time
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (clone / ".venv").mkdir()
    (clone / ".venv/left-over").touch()  # of a run that was interrupted
    assert bootstrap.ensure(clone, dev=True) is True
    assert "making .venv with the host-side tools" in capsys.readouterr().err
    assert not (clone / ".venv/left-over").exists()
    assert (clone / ".venv/bin/python").exists()
    assert bootstrap.ensure(clone, dev=True) is False
    assert bootstrap.ensure(clone, dev=False) is False


def test_a_second_command_says_so_and_waits(clone: Path) -> None:
    stamp(clone, "torchdock.host", [HOST_LOCK])
    (clone / ".torchdock").mkdir()
    program = f"import pathlib, torchdock.bootstrap as b; print(b.ensure(pathlib.Path({str(clone)!r}), dev=False))"
    with (clone / ".torchdock/bootstrap.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        other = subprocess.Popen(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert other.stderr is not None
        assert other.stderr.readline() == "torchdock: another command is making .venv in this clone; waiting for it\n"
        assert other.poll() is None
    assert other.communicate(timeout=20) == ("False\n", "")


def test_an_old_python_is_told_which_one_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST_PYTHON", (99,))
    assert bootstrap.main([]) == 2
    version = sys.version.split()[0]
    assert capsys.readouterr().err == (
        f"torchdock: Python 3.10 or newer is needed, this is {version}. Name another one: make PYTHON=python3.11 up\n"
    )


@pytest.mark.parametrize("name", ["__init__", "bootstrap", "sources"])
def test_an_old_python_can_read_what_tells_it(name: str) -> None:
    ast.parse((ROOT / f"src/torchdock/{name}.py").read_text(), feature_version=(3, 7))


def failing(said: str) -> "list[str]":
    return ["sh", "-c", f"echo '{said}'; exit 1"]


def test_a_failed_installation_says_what_pip_said() -> None:
    argv = failing("noise\nERROR: No matching distribution found for invoke==3.0.3")
    with pytest.raises(BootstrapError) as failed:
        bootstrap._install(argv, {})
    assert "could not be installed into .venv: ERROR: No matching distribution found for invoke==3.0.3" in str(
        failed.value
    )
    assert "noise" not in str(failed.value) and "PIP_CERT" in str(failed.value)


def test_where_tls_fails_the_bundle_of_the_system_is_tried() -> None:
    script = 'test -n "$PIP_CERT" && test "$PIP_CERT" = "$SSL_CERT_FILE" || { echo CERTIFICATE_VERIFY_FAILED; exit 1; }'
    bootstrap._install(["sh", "-c", script], {"REQUESTS_CA_BUNDLE": certifi.where()})


def test_a_bundle_that_is_not_there_is_a_paragraph_too(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "ROOT", clone)
    monkeypatch.setenv("SSL_CERT_FILE", str(clone / "none.pem"))
    assert bootstrap.main(["--dev"]) == 2
    assert f"torchdock: SSL_CERT_FILE names {clone}/none.pem, which is not a readable bundle" in capsys.readouterr().err


def test_a_bundle_that_nobody_needs_is_no_obstacle(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp(clone, "torchdock.host", [HOST_LOCK])
    monkeypatch.setattr(bootstrap, "ROOT", clone)
    monkeypatch.setenv("SSL_CERT_FILE", str(clone / "none.pem"))
    assert bootstrap.main([]) == 0


def test_another_users_clone_is_a_paragraph() -> None:
    with open_folder() as folder:
        folder.chmod(0o555)
        with without_rights(), pytest.raises(BootstrapError):
            bootstrap.ensure(folder, dev=False)
