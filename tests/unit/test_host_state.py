"""The state of a clone: records, whole files, its name, and one command at a time."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from given import open_folder, without_rights

from torchdock.console import Reporter
from torchdock.errors import InputError
from torchdock.state import CloneState


def test_damaged_records_are_passed_over(tmp_path: Path) -> None:
    state = CloneState(tmp_path)
    assert state.records() == []
    for name, text in {
        "b-good.json": '{"image": "b"}',
        "a-good.json": '{"image": "a", "more": 1}',
        "empty.json": "",
        "torn.json": '{"image": "to',
        "list.json": '["image"]',
        "other.json": '{"container": "x"}',
        "half.json.new": '{"image": "x"}',
    }.items():
        state.path("builds", name).write_text(text)
    state.path("builds", "binary.json").write_bytes(b"\xff\xfe")
    state.path("builds", "folder.json").mkdir()
    assert state.records() == [{"image": "a", "more": 1}, {"image": "b"}]


def test_a_document_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = CloneState(tmp_path)
    path = state.path("builds", "x.json")

    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        state.write(path, {"image": "new"})
    assert list(path.parent.iterdir()) == []


def test_a_document_is_written_whole_and_readable(tmp_path: Path) -> None:
    state = CloneState(tmp_path)
    path = state.path("builds", "x.json")
    state.write(path, {"image": "old"})
    state.write(path, {"when": "now", "image": "new"})
    assert path.read_text() == '{\n  "image": "new",\n  "when": "now"\n}\n'
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_what_cannot_be_written_leaves_the_old_document_and_nothing_else(tmp_path: Path) -> None:
    state = CloneState(tmp_path)
    path = state.path("builds", "x.json")
    state.write(path, {"image": "old"})
    with pytest.raises(TypeError):
        state.write(path, {"image": "new", "broken": object()})
    assert json.loads(path.read_text()) == {"image": "old"}
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_a_clone_is_named_for_its_folder() -> None:
    here, there = CloneState(Path("/home/anna/torchdock")), CloneState(Path("/home/bert/torchdock"))
    assert here.clone == "37ae1b488755"
    assert there.clone != here.clone


def test_a_path_has_its_folder_made(tmp_path: Path) -> None:
    path = CloneState(tmp_path).path("reports", "1", "report.xml")
    assert path == tmp_path / ".torchdock/reports/1/report.xml"
    assert path.parent.is_dir() and not path.exists()


def test_a_clone_that_cannot_be_written_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / ".torchdock").touch()
    with pytest.raises(InputError, match=r"which cannot be written .*`sudo chown -R \$USER \.`") as refused:
        CloneState(tmp_path).path("logs", "x.log")
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("there", [False, True], ids=["no state folder yet", "a state folder of another user"])
def test_another_users_clone_is_wrong_input(there: bool) -> None:
    with open_folder() as folder:
        if there:
            (folder / ".torchdock").mkdir()
            (folder / ".torchdock").chmod(0o555)
        folder.chmod(0o555)
        with without_rights(), pytest.raises(InputError, match="cannot be written"):  # noqa: SIM117
            with CloneState(folder).exclusive(Quiet()):
                pass


class Quiet(Reporter):
    """Keeps what it was told, and says so to whoever waits for it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.spoke = threading.Event()

    def say(self, text: str) -> None:
        self.told.append(text)
        self.spoke.set()


def test_a_second_command_says_so_and_waits(tmp_path: Path) -> None:
    order: list[str] = []
    first, second = Quiet(), Quiet()

    def compete() -> None:
        with CloneState(tmp_path).exclusive(second):
            order.append("second")

    state = CloneState(tmp_path)
    other = threading.Thread(target=compete, daemon=True)
    with state.exclusive(first):
        with state.exclusive(first):  # the holder may enter again
            pass
        other.start()
        assert second.spoke.wait(10)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
    assert first.told == []
    assert second.told == ["Another torchdock command is at work in this clone; waiting for it to finish."]


def test_an_error_lets_the_next_command_in(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), CloneState(tmp_path).exclusive(Quiet()):
        raise RuntimeError
    reporter = Quiet()
    with CloneState(tmp_path).exclusive(reporter):
        assert reporter.told == []
