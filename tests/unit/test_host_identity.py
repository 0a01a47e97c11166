"""The caller in a container by each kind of engine: the words of the command, what may be written, what is lost."""

import os
from pathlib import Path
from typing import Any

import pytest
from given import ANNA, INFO, NOBODY, TableEngine, open_folder, without_rights

from torchdock import identity
from torchdock.errors import EngineError, InputError
from torchdock.identity import Identity, Way

ROOTLESS = {**INFO, "SecurityOptions": ["name=seccomp", "name=rootless"]}


def podman(rootless: bool = True, runtime: str = "crun", selinux: bool = False) -> "dict[str, Any]":
    security = {"rootless": rootless, "selinuxEnabled": selinux}
    return {"host": {"security": security, "ociRuntime": {"name": runtime}}, "store": {"graphRoot": "/x"}}


@pytest.mark.parametrize(
    ("engine", "way", "reach"),
    [
        (TableEngine(), Way.SAME, True),
        (TableEngine(info=ROOTLESS), Way.ROOT, False),
        (TableEngine(info={**INFO, "SecurityOptions": ["name=seccomp", "name=userns"]}), Way.HOST, True),
        (TableEngine(podman=podman()), Way.KEEP, True),
        (TableEngine(podman=podman(runtime="runc")), Way.KEEP, False),
        (TableEngine(podman=podman(rootless=False, runtime="runc")), Way.SAME, True),
    ],
    ids=[
        "Docker",
        "rootless Docker",
        "Docker with userns-remap",
        "Podman with crun",
        "Podman with runc",
        "Podman as root",
    ],
)
def test_each_engine_has_its_way(engine: TableEngine, way: Way, reach: bool) -> None:
    assert identity.planned(engine) == (way, reach)
    who = identity.identity(engine)
    assert (who.uid, who.gid, who.way, who.groups_reach) == (os.getuid(), os.getgid(), way, reach)
    assert who.root_inside is (way is Way.ROOT)


@pytest.mark.parametrize(
    ("way", "reach", "groups", "words"),
    [
        (Way.SAME, True, (44, 998), ["--user", "1000:1000", "--group-add", "44", "--group-add", "998"]),
        (Way.SAME, True, (), ["--user", "1000:1000"]),
        (Way.HOST, True, (44,), ["--userns=host", "--user", "1000:1000", "--group-add", "44"]),
        (Way.ROOT, False, (44,), []),
        (Way.KEEP, True, (44,), ["--userns=keep-id", "--group-add", "keep-groups"]),
        (Way.KEEP, True, (), ["--userns=keep-id"]),
        (Way.KEEP, False, (44,), ["--userns=keep-id"]),
    ],
)
def test_the_words_of_each_way(way: Way, reach: bool, groups: "tuple[int, ...]", words: "list[str]") -> None:
    assert identity.arguments(Identity(1000, 1000, groups, "anna", way, reach)) == words


@pytest.mark.parametrize("uid", [0, 1000, 1234, 200000])
def test_a_uid_needs_no_entry_and_no_range(uid: int) -> None:
    assert identity.arguments(Identity(uid, uid, (), "x")) == ["--user", f"{uid}:{uid}"]


def test_the_rootless_engine_of_another_user_is_refused() -> None:
    with pytest.raises(EngineError, match=r"is that of UID 4711, who would own .* `docker context use default`"):
        identity.identity(TableEngine(info=ROOTLESS, owner=4711))
    assert identity.identity(TableEngine(info=ROOTLESS, owner=os.getuid())).root_inside
    assert identity.identity(TableEngine(owner=0)).way is Way.SAME  # a rootful engine is root's, whoever calls


# --- what may be written and read from within ---


def folder_of(folder: Path, owner: int, group: int, mode: int) -> Path:
    if os.geteuid() != 0:
        pytest.skip("giving folders away takes root")
    os.chown(folder, owner, group)
    folder.chmod(mode)
    return folder


@pytest.mark.parametrize("reach", [True, False], ids=["reaches", "is lost"])
def test_a_folder_by_a_group_is_a_workspace_where_the_group_reaches(
    reach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os.access` says what the caller may here; who may by a lost group alone may not in there."""
    who = Identity(NOBODY, NOBODY, (44,), "nobody", Way.KEEP, reach)
    monkeypatch.setattr(identity.os, "access", lambda path, mode: True)
    with open_folder() as folder:
        folder_of(folder, 1000, 44, 0o2770)
        if reach:
            assert identity.check_workspace(folder, who) == folder
            assert identity.lost_groups([folder], who) == ""
            return
        with pytest.raises(InputError, match=r"by the group 44 alone, and this engine cannot .* runtime crun"):
            identity.check_workspace(folder, who)
        said = identity.lost_groups([folder, Path("/"), Path("/nonexistent")], who)
        assert said.startswith("Closed in the container") and f": {folder} (group 44). " in said and "\n" not in said
        folder.chmod(0o2775)  # everybody may read: nothing is closed, and nothing is said
        assert identity.lost_groups([folder], who) == ""


def test_who_may_not_write_may_not_by_any_engine() -> None:
    with open_folder() as folder:
        folder.chmod(0o555)
        for way in Way:
            who = Identity(NOBODY, NOBODY, (44,), "nobody", way, way in (Way.SAME, Way.HOST))
            with without_rights(), pytest.raises(InputError, match="is not writable for nobody"):
                identity.check_workspace(folder, who)


def test_only_lost_groups_are_worth_a_word(tmp_path: Path) -> None:
    assert identity.lost_groups([tmp_path], ANNA) == ""
    assert identity.lost_groups([tmp_path], Identity(os.getuid(), os.getgid(), (44,), "me", Way.ROOT, False)) == ""
