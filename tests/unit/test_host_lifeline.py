"""A lock that lives as long as its client: held by nobody else, freed however the client ends, swept up by the next."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from given import ROOT, open_folder, without_rights

from torchdock import lifeline

CLIENT = f"""
import pathlib, sys
sys.path.insert(0, {str(ROOT / "src")!r})
from torchdock import lifeline
with lifeline.held(pathlib.Path(sys.argv[1])) as name:
    print(name, flush=True)
    sys.stdin.readline()
"""


def is_held(path: Path) -> bool:
    """As the entrypoint asks: by a lock of another process."""
    return subprocess.run(["flock", "--nonblock", str(path), "true"]).returncode == 1


def test_it_is_held_while_its_client_lives_and_gone_afterwards(tmp_path: Path) -> None:
    with lifeline.held(tmp_path) as name:
        assert re.fullmatch("[0-9a-f]{16}", name)
        assert is_held(tmp_path / name)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == []


def test_a_child_of_the_client_does_not_hold_it(tmp_path: Path) -> None:
    """The docker client may outlive us by a moment when we are killed, and must not keep the command alive."""
    child = "__import__('subprocess').run(['sh', '-c', 'echo child; exec sleep 60'])"
    words = [sys.executable, "-c", CLIENT.replace("sys.stdin.readline()", child), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as client:
        assert client.stdout is not None
        path = tmp_path / client.stdout.readline().strip()
        assert client.stdout.readline() == "child\n"
        try:
            assert is_held(path)
            client.kill()
            client.wait()
            assert not is_held(path)
        finally:
            os.killpg(client.pid, signal.SIGKILL)


def test_a_kill_frees_it_and_the_next_client_sweeps_it_up(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        path = tmp_path / client.stdout.readline().strip()
        with lifeline.held(tmp_path) as other:  # of another client that lives
            assert {found.name for found in tmp_path.iterdir()} == {path.name, other}
        client.kill()
    assert path.exists() and not is_held(path)
    with lifeline.held(tmp_path) as name:
        assert [found.name for found in tmp_path.iterdir()] == [name]


def test_without_a_folder_or_room_there_is_none(tmp_path: Path) -> None:
    with lifeline.held(None) as name:
        assert name == ""
    with lifeline.held(tmp_path / "gone") as name:
        assert name == ""


def test_the_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    path = lifeline.folder(os.getuid())
    assert path == tmp_path / f"torchdock-{os.getuid()}"
    assert path.stat().st_mode & 0o777 == 0o700
    assert lifeline.folder(os.getuid()) == path
    path.chmod(0o777)  # anybody could take the lock away
    assert lifeline.folder(os.getuid()) is None


def test_a_folder_that_somebody_else_laid_out_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "torchdock-7").symlink_to("elsewhere")
    (tmp_path / "torchdock-8").touch()
    assert lifeline.folder(7) is None and lifeline.folder(8) is None
    if os.geteuid() == 0:
        with open_folder() as shared:
            monkeypatch.setattr(lifeline, "FOLDERS", shared)
            shared.chmod(0o1777)
            (shared / "torchdock-9").mkdir()
            with without_rights():
                assert lifeline.folder(9) is None


def test_a_full_disk_costs_the_lifeline_and_not_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(lifeline.os, "open", full)
        with lifeline.held(tmp_path) as name:
            assert name == ""


def test_a_container_is_told_whose_lock_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tmp_path.stat()
    assert re.fullmatch(f"abc:[0-9a-f-]{{36}}:{found.st_dev}:{found.st_ino}", lifeline.word(tmp_path, "abc"))
    assert lifeline.word(tmp_path, "abc") != lifeline.word(tmp_path.parent, "abc")
    monkeypatch.setattr(lifeline, "BOOT_ID", tmp_path / "none")
    assert lifeline.word(tmp_path, "abc") == "abc:"
