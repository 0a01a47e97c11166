"""Who owns what on the host: `invoke run` as people of many UIDs type it, on Docker, rootless Docker and Podman.

These tests become other users, so they run as root; a rootless engine runs in a mount namespace of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import PYTHON, ROOT, base_of, copy_tree
from torchdock import lifeline
from torchdock.engine import Engine
from torchdock.state import CloneState

pytestmark = [
    pytest.mark.usefixtures("image"),
    pytest.mark.skipif(os.geteuid() != 0, reason="to become other users takes root"),
]

SHARED = 7777  # a group that owns a folder of data
TOUCH = "touch /workspace/made; mkdir /workspace/folder; touch /share/made; cat /share/data; id -u; id -G"


@dataclass
class Person:
    """Somebody with a home, a clone, a workspace and groups, below a folder of the test's."""

    uid: int
    folder: Path
    groups: Sequence[int]
    env: dict[str, str]
    before: Sequence[str] = ()
    python: Sequence[str] = field(default_factory=list)

    @property
    def workspace(self) -> Path:
        return self.folder / "work"

    @property
    def share(self) -> Path:
        return self.folder / "share"

    def become(self, *words: str) -> list[str]:
        """The command as this person."""
        groups = ["--groups", ",".join(map(str, self.groups))] if self.groups else ["--clear-groups"]
        return [*self.before, "setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", *groups, *words]

    def run(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        return subprocess.run(
            self.become(*words), cwd=self.folder / "clone", env=self.env, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=seconds,
        )  # fmt: skip

    def invoke(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A task of this person's clone."""
        return self.run(*self.python, "-m", "invoke", *words)

    def touches(self) -> subprocess.CompletedProcess[str]:
        """Write into the workspace and into the shared folder from within a container."""
        mounts = ("-w", str(self.workspace), "-v", f"{self.share}:/share")
        return self.invoke("run", "--variant", "cu130", *mounts, "--", "sh", "-c", TOUCH)

    def owners(self, *paths: Path) -> set[tuple[int, int]]:
        """UID and GID of what is there on the host."""
        return {(path.stat().st_uid, path.stat().st_gid) for path in paths}


Meet = Callable[..., Person]


@pytest.fixture
def meet(engine: Engine) -> Iterator[Meet]:
    """A person by UID; their containers, cache and folders go at the end, unless they were there before."""
    folders: list[Path] = []
    volumes = {volume.name for volume in engine.client.volumes.list()}
    lines = set(lifeline.FOLDERS.glob("torchdock-*"))
    people: list[Person] = []

    def introduce(uid: int, groups: Sequence[int] = (), before: Sequence[str] = (), **env: str) -> Person:
        folder = Path(tempfile.mkdtemp(prefix="torchdock-test-"))
        folders.append(folder)
        folder.chmod(0o755)
        copy_tree(folder / "clone")
        for name in ("home", "work"):
            (folder / name).mkdir(mode=0o700)
        (folder / "share").mkdir()
        (folder / "share/data").write_text("data\n")
        for path in (folder / "clone", folder / "home", folder / "work"):
            subprocess.run(["chown", "-hR", f"{uid}:{uid}", path], check=True)
        for path, mode in ((folder / "share/data", 0o640), (folder / "share", 0o2770)):
            os.chown(path, 65533, SHARED)
            path.chmod(mode)
        usual = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        person = Person(uid, folder, groups, {**usual, "HOME": str(folder / "home"), **env}, before)
        person.python = [str(PYTHON)]
        # By a shell: setpriv itself starts a Python in root's own home, and that one cannot start itself again.
        if person.run("sh", "-c", '"$0" -c ""', *person.python).returncode != 0:
            person.python = [str(venv_of_the_system(folder / "clone/.venv"))]
        found = person.run(*person.python, "-c", "import invoke, docker")
        assert found.returncode == 0, f"no Python here that another user may run: {found.stderr}"
        people.append(person)
        return person

    yield introduce
    for person in people:
        for one in engine.containers([f"dev.torchdock.clone={CloneState(person.folder / 'clone').clone}"]):
            engine.remove_container(one["Id"])
        if person.uid and f"torchdock-cache-{person.uid}" not in volumes:
            for volume in engine.client.volumes.list(filters={"name": f"torchdock-cache-{person.uid}"}):
                volume.remove()
    made = {lifeline.FOLDERS / f"torchdock-{person.uid}" for person in people}
    for folder in (*folders, *(one for one in made - lines if one.is_dir())):
        shutil.rmtree(folder)


@lru_cache
def tools() -> Path:
    """The tools of .venv in a folder that every user may enter, which a clone below /root is not."""
    folder = Path(tempfile.mkdtemp(prefix="torchdock-tools-"))
    atexit.register(shutil.rmtree, folder)
    folder.chmod(0o755)
    library = next((ROOT / ".venv/lib").glob("python3*"))
    for_tests = shutil.ignore_patterns("mypy*", "ruff*", "coverage*", "__pycache__")
    shutil.copytree(library / "site-packages", folder / "lib" / library.name / "site-packages", ignore=for_tests)
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(f"/usr/bin/{library.name}")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    shutil.copy(ROOT / ".venv/torchdock.host", folder)
    return folder


def venv_of_the_system(path: Path) -> Path:
    """This clone's packages with the system's own Python, which every user may run."""
    path.unlink()
    path.symlink_to(tools())
    return path / "bin/python"


def docker_group() -> int:
    return os.stat("/var/run/docker.sock").st_gid


@pytest.mark.parametrize("uid", [0, 1000, 1234, 200000])
def test_what_is_written_is_the_callers_and_shared_folders_stay_shared(meet: Meet, uid: int) -> None:
    """1234 and 200000 have no passwd entry on the host; 200000 is beyond every subordinate range."""
    person = meet(uid, groups=[docker_group(), SHARED])
    done = person.touches()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["data", str(uid)]
    assert set(done.stdout.splitlines()[2].split()) == {str(one) for one in (uid, docker_group(), SHARED)}
    assert person.owners(person.workspace / "made", person.workspace / "folder") == {(uid, uid)}
    assert person.owners(person.share / "made") == {(uid, SHARED)}


def test_a_mount_below_the_workspace_leaves_nothing_of_roots(meet: Meet) -> None:
    person = meet(1234, groups=[docker_group()])
    for name in ("data", "conf"):
        (person.folder / "home" / name).mkdir()
        os.chown(person.folder / "home" / name, 1234, 1234)
    (person.folder / "home/conf/file").write_text("file\n")
    mounts = [f"{person.folder}/home/{source}:/workspace/{target}"
              for source, target in (("data", "deep/data"), ("conf/file", "etc/file"))]  # fmt: skip
    options = [word for one in mounts for word in ("-v", one)]
    words = ("-w", str(person.workspace), *options, "--", "sh", "-c", "touch deep/data/made; cat etc/file")
    done = person.invoke("run", "--variant", "cu130", *words)
    assert (done.returncode, done.stdout) == (0, "file\n"), done.stderr
    below = [person.workspace / name for name in ("deep", "deep/data", "etc", "etc/file")]
    assert person.owners(*below, person.folder / "home/data/made") == {(1234, 1234)}


def test_who_is_not_in_the_group_stays_outside(meet: Meet) -> None:
    """Root too: what root of the host may read, root without capabilities in a container may not."""
    for uid in (0, 1234):
        person = meet(uid, groups=[docker_group()])
        done = person.touches()
        assert "/share/made" in done.stderr and "/share/data" in done.stderr, done
        assert person.owners(person.workspace / "made") == {(uid, uid)}
        assert not (person.share / "made").exists()


def test_a_workspace_of_ones_group_is_a_workspace(meet: Meet) -> None:
    person = meet(1234, groups=[docker_group(), SHARED])
    done = person.invoke("run", "--variant", "cu130", "-w", str(person.share), "--", "touch", "made")
    assert done.returncode == 0, done.stderr
    assert person.owners(person.share / "made") == {(1234, SHARED)}


# --- engines without root ---


NEEDED = {"newuidmap": "uidmap", "rootlesskit": "rootlesskit", "slirp4netns": "slirp4netns", "podman": "podman",
          "crun": "crun"}  # fmt: skip


@pytest.fixture(scope="session")
def engines_without_root() -> None:
    """Installs what is missing of them: a program and Debian's package of it."""
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if missing:
        install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
        done = subprocess.run(install, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()


@pytest.fixture
def ordinary(engines_without_root: None) -> Iterator[pwd.struct_passwd]:
    """A user of the host with subordinate UIDs."""
    name = "torchdock-test"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True, capture_output=True)
    try:
        yield pwd.getpwnam(name)
    finally:
        subprocess.run(["pkill", "-KILL", "-u", name], check=False)  # the processes of a user made for this test
        # --force: an init that is slow to reap leaves dead processes of the user for a while.
        subprocess.run(["userdel", "--force", name], check=False, capture_output=True)
        shutil.rmtree(f"/home/{name}", ignore_errors=True)


@pytest.fixture
def cargo(engine: Engine, image: dict[str, Any]) -> Iterator[Path]:
    """What `docker save` gives of a stand-in by the environment's name: the base and the entrypoint, 80 MB."""
    folder = Path(tempfile.mkdtemp(prefix="torchdock-test-"))
    folder.chmod(0o755)
    shutil.copy(ROOT / "docker/entrypoint.sh", folder)
    (folder / "Dockerfile").write_text(
        f"FROM {base_of(engine, image)}\n"
        "COPY --chmod=755 entrypoint.sh /opt/torchdock/docker/entrypoint.sh\n"
        "RUN mkdir -p /var/lib/extrausers && touch /var/lib/extrausers/passwd /var/lib/extrausers/group && "
        "chmod 666 /var/lib/extrausers/* && chmod 1777 /home\n"
        'WORKDIR /workspace\nENTRYPOINT ["/opt/torchdock/docker/entrypoint.sh"]\n'
    )
    tag = f"torchdock-test/cargo:{os.getpid()}"
    try:
        subprocess.run(["docker", "build", "--quiet", "--tag", tag, folder], check=True, capture_output=True)
        # Saved under the name that `invoke run` looks for: the archive's manifest is all that says it.
        subprocess.run(["docker", "save", "--output", folder / "saved.tar", tag], check=True)
        shutil.rmtree(folder / "tar", ignore_errors=True)
        (folder / "tar").mkdir()
        subprocess.run(["tar", "-xf", folder / "saved.tar", "-C", folder / "tar"], check=True)
        manifest = json.loads((folder / "tar/manifest.json").read_text())
        manifest[0]["RepoTags"] = [image["image"]]
        (folder / "tar/manifest.json").write_text(json.dumps(manifest))
        for other in ("index.json", "repositories", "oci-layout"):
            (folder / "tar" / other).unlink(missing_ok=True)
        subprocess.run(["tar", "-cf", folder / "cargo.tar", "-C", folder / "tar", "."], check=True)
        (folder / "cargo.tar").chmod(0o644)
        yield folder / "cargo.tar"
    finally:
        engine.client.images.remove(tag, force=True)
        shutil.rmtree(folder)


@pytest.fixture
def apart() -> Iterator[Sequence[str]]:
    """Words before a command: a mount namespace with a tun device for users, without the half of cgroup v2 that crun
    refuses.

    The host keeps its own mounts, modes and groups.
    """
    device = Path(tempfile.mkdtemp(prefix="torchdock-test-")) / "tun"
    script = (
        'if [ -c /dev/net/tun ] && [ ! -e "$1" ]; then mknod "$1" c 10 200; fi; chmod 666 "$1"; '
        'mount --bind "$1" /dev/net/tun; '
        '[ ! -e /sys/fs/cgroup/unified/cgroup.procs ] || umount /sys/fs/cgroup/unified; shift; exec "$@"'
    )
    yield ["unshare", "--mount", "sh", "-c", script, "sh", str(device)]
    shutil.rmtree(device.parent)


@pytest.fixture
def runtime(ordinary: pwd.struct_passwd) -> Iterator[Path]:
    """The user's XDG_RUNTIME_DIR: a short path, because a socket's may have 107 letters."""
    folder = Path(tempfile.mkdtemp(prefix="td-"))
    os.chown(folder, ordinary.pw_uid, ordinary.pw_gid)
    yield folder
    subprocess.run(["umount", "-R", folder], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def start(person: Person, words: Sequence[str], answers: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """An engine as this person, once it answers."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            person.become(*words), env=person.env, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 60
    while person.run(*answers).returncode != 0:
        assert child.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.1)
    return child


@pytest.mark.slow
def test_rootless_docker(
    meet: Meet, ordinary: pwd.struct_passwd, runtime: Path, cargo: Path, apart: Sequence[str], tmp_path: Path
) -> None:
    script = "/usr/share/docker.io/contrib/dockerd-rootless.sh"
    person = meet(
        ordinary.pw_uid, [SHARED], XDG_RUNTIME_DIR=str(runtime), DOCKER_HOST=f"unix://{runtime}/docker.sock",
        USER=ordinary.pw_name,
    )  # fmt: skip
    person.env["PATH"] += ":/usr/sbin:/sbin"
    person.before = apart
    words = [script, "--iptables=false", "--bridge=none", "--storage-driver=vfs", "--exec-opt"]
    words += ["native.cgroupdriver=cgroupfs", f"--data-root={person.folder}/home/docker"]
    child = start(person, words, ["docker", "info"], tmp_path / "log")
    try:
        person.before = ()
        assert person.run("docker", "load", "--input", str(cargo)).returncode == 0
        done = person.touches()
        # The group's folder is closed inside, and it is said before the command finds out.
        assert f"Closed in the container, because this engine cannot hand on your groups: {person.share}" in done.stderr
        assert "/share/made" in done.stderr and not (person.share / "made").exists()
        assert done.stdout.splitlines()[0] == "0", done
        own = (ordinary.pw_uid, ordinary.pw_uid)
        assert person.owners(person.workspace / "made", person.workspace / "folder") == {own}
        refused = person.invoke("run", "--variant", "cu130", "-w", str(person.share), "--", "true")
        assert refused.returncode == 2 and f"by the group {SHARED} alone" in refused.stderr
        stranger = meet(1234, [docker_group()], DOCKER_HOST=person.env["DOCKER_HOST"])
        os.chmod(runtime, 0o711)
        os.chmod(runtime / "docker.sock", 0o666)
        refused = stranger.invoke("run", "--variant", "cu130", "-w", str(stranger.workspace), "--", "true")
        assert refused.returncode == 69 and f"that of UID {ordinary.pw_uid}" in refused.stderr, refused
        seen = {one["subject"]: one for one in json.loads(person.invoke("doctor", "--json").stdout)["findings"]}
        assert "rootless" in seen["engine"]["seen"] and "root inside is the caller" in seen["identity"]["seen"]
    finally:
        child.terminate()
        child.wait(60)


@pytest.mark.slow
def test_an_engine_that_remaps_uids(
    meet: Meet, ordinary: pwd.struct_passwd, runtime: Path, cargo: Path, tmp_path: Path
) -> None:
    """A second dockerd with `userns-remap`, in a network namespace of its own, where the first one's bridge is not."""
    endpoint = f"unix://{runtime}/docker.sock"
    person = meet(1234, [SHARED], DOCKER_HOST=endpoint)
    person.env["PATH"] += ":/usr/sbin:/sbin"
    words = ["unshare", "--net", "dockerd", f"--userns-remap={ordinary.pw_name}", f"--host={endpoint}"]
    words += [f"--data-root={runtime}/data", f"--exec-root={runtime}/run", f"--pidfile={runtime}/pid"]
    words += ["--iptables=false", "--ip6tables=false", "--storage-driver=vfs"]
    runtime.chmod(0o711)
    person.uid, uid = 0, person.uid
    child = start(person, words, ["docker", "info"], tmp_path / "log")
    person.uid = uid
    try:
        (runtime / "docker.sock").chmod(0o666)
        loaded = person.run("docker", "load", "--input", str(cargo))
        assert loaded.returncode == 0, loaded.stderr
        done = person.touches()
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[:2] == ["data", "1234"]
        assert person.owners(person.workspace / "made", person.workspace / "folder") == {(1234, 1234)}
        assert person.owners(person.share / "made") == {(1234, SHARED)}
    finally:
        child.terminate()
        child.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("runtime_name", ["crun", "runc"])
def test_podman(
    meet: Meet, ordinary: pwd.struct_passwd, runtime: Path, cargo: Path, apart: Sequence[str], tmp_path: Path,
    runtime_name: str,
) -> None:  # fmt: skip
    """By docker's client at Podman's socket, and by the `docker` of podman-docker: both keep the caller's UID."""
    person = meet(
        ordinary.pw_uid, [SHARED], apart, XDG_RUNTIME_DIR=str(runtime), DOCKER_HOST=f"unix://{runtime}/podman/podman.sock",
        USER=ordinary.pw_name,
    )  # fmt: skip
    config = person.folder / "home/.config/containers"
    config.mkdir(parents=True)
    config.joinpath("containers.conf").write_text(f'[engine]\nruntime = "{runtime_name}"\nevents_logger = "file"\n')
    subprocess.run(["chown", "-R", f"{person.uid}:{person.uid}", person.folder / "home"], check=True)
    child = start(
        person, ["sh", "-c", 'mkdir -p "$XDG_RUNTIME_DIR/podman"; exec podman system service --time=0 "$DOCKER_HOST"'],
        ["docker", "version"], tmp_path / "log",
    )  # fmt: skip
    own = (ordinary.pw_uid, ordinary.pw_uid)
    try:
        loaded = person.run("podman", "load", "--input", str(cargo))
        assert loaded.returncode == 0, loaded.stderr
        wrapper = person.folder / "bin/docker"
        wrapper.parent.mkdir()
        wrapper.write_text('#!/bin/sh\necho "Emulate Docker CLI using podman." >&2\nexec podman "$@"\n')
        wrapper.chmod(0o755)
        for env in ({}, {"PATH": f"{wrapper.parent}:{person.env['PATH']}"}):
            person.env.update(env)
            done = person.touches()
            lines = done.stdout.splitlines()
            assert (person.workspace / "folder").is_dir(), f"{done.stdout}{done.stderr}"
            assert person.owners(person.workspace / "made", person.workspace / "folder") == {own}, done
            if runtime_name == "crun":
                assert (done.returncode, lines[:2]) == (0, ["data", str(person.uid)]), done
                assert person.owners(person.share / "made") == {(person.uid, SHARED)}
            else:
                assert lines[0] == str(person.uid)
                assert "cannot hand on your groups" in done.stderr and not (person.share / "made").exists()
            assert person.run("podman", "ps", "--all", "--quiet").stdout == ""
            started = time.monotonic()
            coded = person.invoke(
                "run", "--variant", "cu130", "-w", str(person.workspace), "--", "sh", "-c", "exit 126"
            )
            print(f"a launch: {time.monotonic() - started:.1f} s")
            assert coded.returncode == 126, coded.stderr
            shutil.rmtree(person.workspace / "folder")
            (person.workspace / "made").unlink()
        job = person.invoke("run", "--variant", "cu130", "-w", str(person.workspace), "--detach", "--name", "j", "--",
                            "sh", "-c", "echo hello; exit 3")  # fmt: skip
        assert job.returncode == 0, job.stderr
        assert person.invoke("logs", "-f", "j").stdout == "hello\n"
        assert '"exit_code": 3' in person.invoke("ps", "--json").stdout
        refused = person.invoke("build", "--variant", "cu130", "--no-cache")
        assert refused.returncode == 69 and "docker save" in refused.stderr, refused
        seen = {one["subject"]: one for one in json.loads(person.invoke("doctor", "--json").stdout)["findings"]}
        assert seen["engine"]["seen"].startswith("Podman ") and "keeps the UID" in seen["identity"]["seen"]
    finally:
        child.terminate()
        child.wait(60)
