"""What the engine can get at: FUSE for one user alone, file servers that take root for nobody, snaps, SELinux."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from given import ANNA, INFO, TableEngine, facts, program

from torchdock import container, engine, lifeline, mounts
from torchdock.errors import InputError, TorchdockError
from torchdock.identity import Identity, Way
from torchdock.launch import Mount, Wishes
from torchdock.mounts import Mounted
from torchdock.sources import Sources

LINE = "36 35 0:42 / {point} rw,relatime shared:1 - {kind} server:/export {options}\n"


def given(monkeypatch: pytest.MonkeyPatch, folder: Path, point: Path, kind: str, options: str = "rw") -> None:
    """The host's mount table for the test: the disk, and this file system at this point."""
    file = folder / "mountinfo"
    text = LINE.format(point="/", kind="ext4", options="rw") + LINE.format(point=point, kind=kind, options=options)
    file.write_text(text)
    monkeypatch.setattr(mounts, "MOUNTINFO", file)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home on a file server: /…/home/anna with mode 0700, and a project and a CA bundle in it."""
    path = tmp_path.resolve() / "home/anna"
    (path / "project").mkdir(parents=True)
    (path / "ca.pem").write_text("the authorities\n")
    (tmp_path / "home").chmod(0o755)
    path.chmod(0o700)
    return path


def launch(source: Path, table: TableEngine, who: Identity = ANNA, ca: "Path | None" = None) -> container.LaunchPlan:
    wishes = Wishes(mounts=(Mount(source, "/data"),))
    return container.plan(
        table, "image", who, Sources(ca, ()), role="run", clone="c", workspace=None, command=["true"], wishes=wishes
    )


def test_a_mount_table_is_read_as_the_kernel_writes_it() -> None:
    text = (
        "22 1 254:1 / / rw,relatime - ext4 /dev/root rw\n"
        "40 22 0:50 / /home/my\\040disk rw,nosuid shared:7 master:2 - fuse.sshfs a@b: rw,user_id=1000,allow_other\n"
        "nonsense\n"
    )
    disk, fuse = mounts.table(text)
    assert (disk.point, disk.kind) == (Path("/"), "ext4")
    assert (fuse.point, fuse.kind) == (Path("/home/my disk"), "fuse.sshfs")
    assert {"nosuid", "allow_other"} <= fuse.options
    assert mounts.holding(Path("/home/my disk/x"), [disk, fuse]) == fuse
    assert mounts.holding(Path("/home/my disk"), [disk, fuse]) == fuse
    assert mounts.holding(Path("/home/my diskette"), [disk, fuse]) == disk


def test_the_later_of_two_file_systems_at_a_place_is_the_one() -> None:
    first, second = (Mounted(Path("/home"), kind, frozenset()) for kind in ("ext4", "nfs4"))
    assert mounts.holding(Path("/home/x"), [first, second]) == second


def test_this_hosts_own_table_is_read() -> None:
    found = mounts.table(Path("/proc/self/mountinfo").read_text()) if Path("/proc/self/mountinfo").exists() else []
    if not found:
        pytest.skip("no Linux")
    assert mounts.holding(Path("/proc/self"), found) is not None


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "lustre"])
def test_a_home_that_root_may_not_walk_through_is_doubted(
    kind: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, tmp_path, home.parent, kind)
    plan = launch(home / "project", TableEngine())
    assert f"on a file server ({kind})" in plan.doubt and f"`chmod o+x {home}`" in plan.doubt
    told = container.launch_failure(f"docker: stat {home}/project: permission denied", plan.doubt)
    assert type(told) is InputError and "root_squash" in str(told) and "\n" not in str(told)
    assert "root_squash" not in str(container.launch_failure("docker: no space left on device", plan.doubt))
    home.chmod(0o711)  # the remedy
    assert launch(home / "project", TableEngine()).doubt == ""


@pytest.mark.parametrize(
    ("table", "who"),
    [
        (TableEngine(info={**INFO, "SecurityOptions": ["name=rootless"]}), Identity(1, 1, (), "x", Way.ROOT)),
        (TableEngine(), Identity(1, 1, (), "x", Way.KEEP)),
        (TableEngine(info={**INFO, "OperatingSystem": "Docker Desktop"}), ANNA),
    ],
    ids=["rootless", "Podman", "Desktop"],
)
def test_an_engine_that_is_not_root_of_this_host_is_not_doubted(
    table: TableEngine, who: Identity, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("nfs4", "fuse.sshfs"):
        given(monkeypatch, tmp_path, home.parent, kind)
        assert launch(home / "project", table, who).doubt == ""


def test_a_disk_of_this_machine_is_not_doubted(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, tmp_path, home.parent, "xfs")
    plan = launch(home / "project", TableEngine(), ca=home / "ca.pem")
    assert plan.doubt == "" and f"source={home}/ca.pem" in " ".join(plan.argv)


def test_fuse_for_one_user_alone_is_refused_before_a_launch(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, tmp_path, home / "project", "fuse.sshfs", "rw,user_id=1000")
    with pytest.raises(InputError, match=r"open to you alone.*allow_other"):
        launch(home / "project", TableEngine())
    given(monkeypatch, tmp_path, home / "project", "fuse.sshfs", "rw,user_id=1000,allow_other")
    assert launch(home / "project", TableEngine()).doubt == ""


def test_the_ca_bundle_of_such_a_home_is_copied_to_this_machine(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, tmp_path, home.parent, "nfs4")
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    plans = [launch(home / "project", TableEngine(), ca=home / "ca.pem") for _ in range(2)]
    assert not (tmp_path / f"torchdock-{os.getuid()}").exists()  # planning, which a dry run does, makes nothing
    for plan in plans:
        plan.prepare()
    copies = list((tmp_path / f"torchdock-{os.getuid()}").iterdir())
    assert len(copies) == 1 and copies[0].read_bytes() == (home / "ca.pem").read_bytes()
    assert all(f"source={copies[0]},target=/run/torchdock/ca.crt" in " ".join(plan.argv) for plan in plans)
    with lifeline.held(copies[0].parent):  # sweeps what killed clients left, and nothing else
        assert copies[0].is_file()


def test_a_copy_is_never_taken_from_somebody_elses_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who knows the bundle's content knows the copy's name, and could put a CA of his own there."""
    given(monkeypatch, tmp_path, home.parent, "nfs4")
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    plan = launch(home / "project", TableEngine(), ca=home / "ca.pem")
    folder = plan.copies[0][1].parent
    folder.mkdir()
    folder.chmod(0o777)
    plan.copies[0][1].write_text("another's")
    with pytest.raises(TorchdockError, match=rf"no folder of yours alone.*rm -r {folder}"):
        plan.prepare()


def test_copies_that_nobody_has_asked_for_since_a_day_are_swept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, tmp_path, home.parent, "nfs4")
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    plan = launch(home / "project", TableEngine(), ca=home / "ca.pem")
    plan.prepare()
    mine = plan.copies[0][1]
    old, unborn, young, other = (mine.parent / name for name in ("local-1", ".local-1", "local-2", "else"))
    for path in (unborn, young, other):
        path.touch()
    (old / "report").mkdir(parents=True)
    for path in (mine, old, unborn, other):
        os.utime(path, (0, 0))
    plan.prepare()
    assert {*mine.parent.iterdir()} == {mine, young, other}
    assert mine.stat().st_mtime > 0  # which is asked for, so another launch does not sweep it


def test_a_report_for_such_a_home_is_brought_there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    given(monkeypatch, tmp_path, home.parent, "ext4")
    with mounts.stand_in(TableEngine(), ANNA, home / "project") as folder:
        assert folder == home / "project"
    assert folder.is_dir()
    given(monkeypatch, tmp_path, home.parent, "nfs4")
    with suppress(KeyboardInterrupt), mounts.stand_in(TableEngine(), ANNA, home / "project") as local:
        assert local.parent == tmp_path / f"torchdock-{os.getuid()}"
        (local / "report.xml").write_text("<x/>")
        raise KeyboardInterrupt
    assert (home / "project/report.xml").read_text() == "<x/>" and not local.exists()


# --- SELinux, snaps, Docker Desktop ---

SELINUX = {**INFO, "SecurityOptions": ["name=seccomp,profile=builtin", "name=selinux"]}


def test_under_selinux_no_folder_is_labelled_anew(tmp_path: Path) -> None:
    words = " ".join(launch(tmp_path, TableEngine(info=SELINUX)).argv)
    assert "--security-opt label=disable" in words and "no-new-privileges" in words
    assert ",z" not in words and "relabel" not in words and ":z" not in words
    assert "security-opt label=" not in " ".join(launch(tmp_path, TableEngine()).argv).replace("--label", "")


SNAP = {**INFO, "DockerRootDir": "/var/snap/docker/common/var-lib-docker"}


@pytest.mark.parametrize(
    ("info", "virtual", "own_tmp", "kind"),
    [
        (INFO, False, False, "26.1.5"),
        (SNAP, False, True, "26.1.5, from a snap"),
        ({**INFO, "OperatingSystem": "Docker Desktop"}, True, False, "26.1.5, Docker Desktop"),
    ],
    ids=["packages", "snap", "Desktop"],
)
def test_where_this_hosts_tmp_and_locks_are_not_seen_there_is_no_lifeline(
    info: "dict[str, Any]", virtual: bool, own_tmp: bool, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    live = engine.Engine(facts(info=info))
    monkeypatch.setattr(live, "sees", lambda folder: True)
    assert (live.virtual, live.own_tmp, live.kind) == (virtual, own_tmp, kind)
    assert (container._lifeline_folder(live) is None) is (virtual or own_tmp)


def test_a_tmp_of_the_callers_own_holds_no_lifeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PrivateTmp of a unit, pam_namespace: the engine has no such folder, and would refuse the launch."""
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    live = TableEngine(cli=program(tmp_path / "docker", f'printf "%s\\n" "$@" >>{tmp_path}/argv'))
    monkeypatch.setattr(live, "sees", lambda folder: folder != tmp_path / f"torchdock-{os.getuid()}")
    assert container.execute(live, "torchdock-anna", ["true"]).code == 0
    assert container.attached(live, launch(Path("/srv/data"), live)) == 0
    assert "lifeline" not in (tmp_path / "argv").read_text().lower()


# --- mount points ---


def test_a_mount_point_on_this_host_is_made_by_the_caller(tmp_path: Path) -> None:
    for name in ("work", "data", "sealed"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "work/out").symlink_to("/out")
    work, data = tmp_path / "work", tmp_path / "data"
    mounted = [
        *(Mount(data, "/workspace/a/b"), Mount(tmp_path / "file", "/workspace/conf/x.toml")),
        *(Mount(data, "/data"), Mount(tmp_path / "sealed", "/data/in", read_only=True)),
        *(Mount(data, "/data/in/deeper"), Mount(data, "/workspace/out/below"), Mount(data, "/elsewhere/x")),
    ]
    plan = container.plan(
        TableEngine(), "image", ANNA, Sources(None, ()), role="run", clone="c", workspace=work, command=["true"],
        wishes=Wishes(mounts=tuple(mounted)),
    )  # fmt: skip
    assert {path.name for path in work.iterdir()} == {"out"}  # planning makes nothing
    plan.prepare()
    plan.prepare()
    assert (work / "a/b").is_dir() and (work / "conf/x.toml").is_file() and (data / "in").is_dir()
    assert list((tmp_path / "sealed").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"work", "data", "sealed", "file"}


def test_a_mount_point_that_cannot_be_made_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/x, where something is to be mounted, cannot be made .*such as /data"):
        mounts.make_point(tmp_path / "file/x", folder=True)


def test_a_snaps_tmp_is_not_this_hosts() -> None:
    with pytest.raises(InputError, match="as a snap has a /tmp of its own"):
        launch(Path("/tmp/data"), TableEngine(info=SNAP))
    launch(Path("/srv/data"), TableEngine(info=SNAP))
