"""Getting an engine: what is planned on which system, what is refused with which command, and what apt says."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from given import facts

from torchdock import provision
from torchdock.engine import State
from torchdock.errors import EngineError
from torchdock.provision import System

BORROWED = ("ca-certificates", "iptables", "xz-utils")
TRIXIE = ("docker.io", "docker-cli", "docker-buildx", "docker-compose", *BORROWED)
UBUNTU = ("docker.io", "docker-buildx", "docker-compose-v2", *BORROWED)


def system(id: str = "debian", *version: int, **different: Any) -> System:
    usual: dict[str, Any] = {"like": (), "root": True, "sudo": False, "systemd": True}
    return System(id, version=version, **{**usual, **different})


def planned(state: State, where: System) -> provision.EnginePlan:
    return provision.plan(state, facts(info={}, error="Cannot connect"), where)


@pytest.mark.parametrize(
    ("where", "packages", "borrow", "privilege"),
    [
        pytest.param(system("debian", 12), BORROWED, "trixie", (), id="Debian 12, root"),
        pytest.param(
            system("debian", 12, root=False, sudo=True), BORROWED, "trixie", ("sudo", "-n"), id="Debian 12, sudo"
        ),
        pytest.param(system("debian", 13), TRIXIE, "", (), id="Debian 13"),
        pytest.param(system("debian", 14), TRIXIE, "", (), id="Debian 14"),
        pytest.param(system("debian"), TRIXIE, "", (), id="Debian testing, which has no version"),
        pytest.param(system("debian", 13, apparmor=True), (*TRIXIE, "apparmor"), "", (), id="Debian 13, AppArmor"),
        pytest.param(system("debian", 12, apparmor=True), (*BORROWED, "apparmor"), "trixie", (), id="12, AppArmor"),
        pytest.param(system("ubuntu", 22, 4, like=("debian",)), UBUNTU, "", (), id="Ubuntu 22.04"),
        pytest.param(
            system("ubuntu", 24, 4, root=False, sudo=True), UBUNTU, "", ("sudo", "-n"), id="Ubuntu 24.04, sudo"
        ),
        pytest.param(system("ubuntu", 24, 10), UBUNTU, "", (), id="Ubuntu 24.10"),
    ],
)
def test_docker_engine_is_installed_from_the_distribution(
    where: System, packages: "tuple[str, ...]", borrow: str, privilege: "tuple[str, ...]"
) -> None:
    wanted = planned(State.NOT_INSTALLED, where)
    assert (wanted.packages, wanted.borrow_from, wanted.privilege) == (packages, borrow, privilege)
    assert wanted.sentence.startswith("install Docker Engine with buildx and Compose from ")
    assert ("trixie packages, as files (no package source is added)" in wanted.sentence) is bool(borrow)


@pytest.mark.parametrize(
    ("where", "command"),
    [
        pytest.param(system("debian", 11), "sudo sh get-docker.sh", id="Debian 11"),
        pytest.param(system("ubuntu", 20, 4, like=("debian",)), "sudo sh get-docker.sh", id="Ubuntu 20.04"),
        pytest.param(system("linuxmint", 22, like=("ubuntu", "debian")), "sudo apt-get install docker.io", id="Mint"),
        pytest.param(system("fedora", 42), "sudo dnf install moby-engine", id="Fedora"),
        pytest.param(system("nobara", 42, like=("fedora",)), "sudo sh get-docker.sh", id="like Fedora"),
        pytest.param(system("arch"), "sudo pacman -S docker", id="Arch"),
        pytest.param(system("endeavouros", like=("arch",)), "sudo pacman -S docker", id="like Arch"),
        pytest.param(
            system("opensuse-leap", 15, 6, like=("suse", "opensuse")), "sudo zypper install docker", id="Leap"
        ),
        pytest.param(system("alpine", 3, 22), "doas apk add docker", id="Alpine"),
        pytest.param(system("darwin"), "brew install --cask docker", id="macOS"),
        pytest.param(system("nixos"), "sudo sh get-docker.sh", id="unknown"),
    ],
)
def test_elsewhere_the_command_of_that_system_is_named(where: System, command: str) -> None:
    with pytest.raises(EngineError) as refused:
        planned(State.NOT_INSTALLED, where)
    assert command in str(refused.value)
    assert refused.value.exit_code == 69


@pytest.mark.parametrize("where", [system("debian", 12, root=False), system("ubuntu", 24, 4, root=False)])
def test_without_root_and_sudo_nothing_is_installed(where: System) -> None:
    with pytest.raises(EngineError, match="`sudo -v`"):
        planned(State.NOT_INSTALLED, where)


@pytest.mark.parametrize("where", [system("debian", 12), system("fedora", 42), system("arch"), system("nixos")])
def test_a_stopped_engine_is_started_on_any_linux_and_nothing_installed(where: System) -> None:
    assert planned(State.STOPPED, where) == provision.EnginePlan(
        (), "", True, (), "start the installed container engine through systemd"
    )


def test_a_stopped_engine_is_started_with_sudo() -> None:
    assert planned(State.STOPPED, system(root=False, sudo=True)).privilege == ("sudo", "-n")


def test_a_stopped_engine_needs_root_or_sudo() -> None:
    with pytest.raises(EngineError, match=r"systemctl start docker.*`sudo -v` first"):
        planned(State.STOPPED, system("debian", 12, root=False))


@pytest.mark.parametrize("state", [State.STOPPED, State.NOT_INSTALLED])
@pytest.mark.parametrize(("systemd", "words"), [(True, "through systemd"), (False, "there is no systemd")])
def test_an_engine_is_started_by_systemd_where_that_runs(state: State, systemd: bool, words: str) -> None:
    wanted = planned(state, system("debian", 12, systemd=systemd))
    assert wanted.systemd is systemd
    assert words in wanted.sentence


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        (State.FORBIDDEN, "sudo usermod -aG docker"),
        (State.REMOTE, "docker context use default"),
        (State.UNREACHABLE, "docker context use default"),
    ],
)
def test_an_engine_that_is_there_but_not_usable_is_not_replaced(state: State, remedy: str) -> None:
    with pytest.raises(EngineError) as refused:
        planned(state, system("debian", 12))
    assert remedy in str(refused.value)


def test_a_stopped_engine_on_macos_is_docker_desktop() -> None:
    with pytest.raises(EngineError, match="open -a Docker"):
        planned(State.STOPPED, system("darwin"))


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        pytest.param("", 'level=info msg="Starting up"\n', "", id="it starts"),
        pytest.param("failed to start daemon: an old story\n", "level=info\n", "", id="it failed another time"),
        pytest.param(
            "old\n",
            "level=info\nfailed to start daemon: Error initializing\n  network controller\n",
            "failed to start daemon: Error initializing network controller",
            id="it failed now",
        ),
    ],
)
def test_a_daemon_that_gave_up_says_why(
    before: str, after: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "DAEMON_LOG", tmp_path / "dockerd.log")
    assert provision._daemon_failure(0) == ""
    (tmp_path / "dockerd.log").write_text(before + after)
    assert provision._daemon_failure(len(before)) == reason


def test_os_release_is_read_without_quotes_and_comments() -> None:
    text = (
        '# written by hand\nID=ubuntu\nID_LIKE=\'debian other\'\nVERSION_ID="24.04"\n\nURL="https://x/?a=b"\nnonsense\n'
    )
    assert provision.parse_os_release(text) == {
        "ID": "ubuntu",
        "ID_LIKE": "debian other",
        "VERSION_ID": "24.04",
        "URL": "https://x/?a=b",
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("", [], id="nothing"),
        pytest.param("http://a/debian/|Debian\nhttp://b/repo/|Other\n", ["http://a/debian/"], id="one origin"),
        pytest.param(
            "http://b/debian/|Debian\nhttp://a/debian/|Debian\nhttp://b/debian/|Debian\n",
            ["http://b/debian/", "http://a/debian/"],
            id="each once, in order",
        ),
        pytest.param("W: some warning\nhttp://a/|Debian|x\n", [], id="other lines"),
    ],
)
def test_mirrors_are_the_repositories_of_the_origin(text: str, found: "list[str]") -> None:
    assert provision.mirrors(text) == found


def test_pid_files_that_name_another_process_are_forgotten(tmp_path: Path) -> None:
    engine = tmp_path / "dockerd"
    shutil.copy("/bin/sleep", engine)
    running = subprocess.Popen([str(engine), "60"])
    try:
        files = {"own": running.pid, "other": 1, "nobody's": 2**22 + 1}
        for name, pid in files.items():
            (tmp_path / name).write_text(f"{pid}\n")
        paths = [str(tmp_path / name) for name in (*files, "missing")]
        done = subprocess.run(["sh", "-ec", provision.FORGET_STALE, "sh", *paths], capture_output=True, text=True)
    finally:
        running.kill()
        running.wait()
    assert (done.returncode, done.stderr) == (0, "")
    assert [name for name in files if (tmp_path / name).exists()] == ["own"]
