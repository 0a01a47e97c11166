"""The dev container by the real dev containers CLI: what VS Code, Codespaces and JetBrains run, against this engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import ROOT, copy_tree, tidy
from tests.fakes import GIB, FakeDriver, FakeGpu, new_uuid, write_program
from torchdock import lease
from torchdock.engine import Engine
from torchdock.state import CloneState

PINNED = Path(__file__).with_name("devcontainers-cli")
IMPORT = ["python", "-c", "import torch, torchvision; print(torch.__version__)"]
SOMEBODY = 23456  # whom no other test makes


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dev containers CLI, by the hash in package-lock.json."""
    folder = tmp_path_factory.mktemp("devcontainers-cli")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PINNED / name, folder)
    done = subprocess.run(["npm", "ci", "--silent"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder.chmod(0o755)
    folder.parent.chmod(0o755)
    return folder / "node_modules" / ".bin" / "devcontainer"


class Workspace:
    """A clone, opened as a dev container by one user."""

    def __init__(self, cli: Path, folder: Path, kind: str, user: int, env: dict[str, str]) -> None:
        self.cli, self.folder, self.kind, self.user, self.env = cli, folder, kind, user, env

    def run(self, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """The dev containers CLI with this workspace and configuration, as the user."""
        config = self.folder / ".devcontainer" / self.kind / "devcontainer.json"
        argv = [str(self.cli), words[0], "--workspace-folder", str(self.folder), "--config", str(config), *words[1:]]
        if self.user:
            argv = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", f"--groups={docker_group()}", *argv]
        return subprocess.run(argv, env=self.env, cwd="/", capture_output=True, text=True, timeout=timeout)

    def up(self, *more: str) -> dict[str, Any]:
        """Open it; the CLI's own document."""
        done = self.run("up", *more)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        document: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return {**document, "said": done.stderr}

    def execute(self, *words: str) -> str:
        """What a command prints in there."""
        done = self.run("exec", *words)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def service(self) -> dict[str, Any]:
        """The service as Compose reads the two files, after initialize.sh alone has run."""
        script = self.folder / ".devcontainer" / "initialize.sh"
        done = subprocess.run(["sh", str(script), self.kind], env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        files = [script.parent / self.kind / "compose.yml", script.parent / "environment.yml"]
        words = [word for file in files for word in ("-f", str(file))]
        read = subprocess.run(
            ["docker", "compose", *words, "config", "--format", "json"], env=self.env, capture_output=True, text=True
        )
        assert read.returncode == 0, read.stderr
        found: dict[str, Any] = json.loads(read.stdout)["services"]["environment"]
        return found


def docker_group() -> int:
    """Who may use the engine."""
    return os.stat("/var/run/docker.sock").st_gid


@pytest.fixture
def somebody(engine: Engine) -> Iterator[int]:
    """A user of this host whose UID is not 1000; the CLI itself asks for the name. The cache goes with the user."""
    name = "torchdock-test"
    subprocess.run(["useradd", "--uid", str(SOMEBODY), "--user-group", "--no-create-home", name], check=True)
    yield SOMEBODY
    subprocess.run(["userdel", name], check=True)
    subprocess.run(["docker", "volume", "rm", "--force", f"torchdock-cache-{SOMEBODY}"], check=True)


Opener = Callable[..., Workspace]


@pytest.fixture
def opened(cli: Path, tmp_path: Path, engine: Engine, image: dict[str, Any]) -> Iterator[Opener]:
    """Make clones to open; what they launched is removed, with their volumes. The image of this tree is there."""
    made: list[Workspace] = []

    def make(
        kind: str = "cuda", *, name: str = "clone", user: int = 0, python: bool = True, **variables: str
    ) -> Workspace:
        folder = copy_tree(tmp_path / name)
        shutil.copytree(
            ROOT / ".devcontainer", folder / ".devcontainer", ignore=shutil.ignore_patterns(".env", "host.yml*")
        )
        if not python:
            (folder / ".venv").unlink()
        for path in [folder, *folder.rglob("*")]:
            if not path.is_symlink():
                os.chown(path, user, user)
        for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            above.chmod(0o755)
        home = tmp_path / f"home-{name}"
        home.mkdir()
        os.chown(home, user, user)
        env = {**os.environ, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", **variables}
        if user:  # the CLI keeps Compose files of its own below it, in a folder named for whoever came first
            env["TMPDIR"] = str(home)
        made.append(Workspace(cli, folder, kind, user, env))
        return made[-1]

    yield make
    for one in made:
        label = f"dev.torchdock.clone={CloneState(one.folder).clone}"
        networks = {name for found in engine.containers([label]) for name in found["NetworkSettings"]["Networks"]}
        tidy(engine, one.folder)
        for network in networks:
            engine.client.networks.get(network).remove()
        for volume in engine.client.volumes.list(filters={"label": label}):
            volume.remove()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_it_opens_on_a_host_without_a_gpu_and_uses_the_image_of_invoke_build(
    kind: str, opened: Opener, engine: Engine, image: dict[str, Any]
) -> None:
    workspace = opened(kind)
    document = workspace.up(*([] if kind == "cuda" else ["--skip-post-create"]))  # the checks are the same
    assert document["outcome"] == "success"
    assert document["remoteWorkspaceFolder"] == "/workspace"
    found = engine.client.api.inspect_container(document["containerId"])
    assert found["Image"] == image["id"]
    assert workspace.execute(*IMPORT) == "2.14.1+cu130"
    said = document["said"]
    if kind == "cpu":
        assert "the CPU configuration was chosen" in said
        return
    assert "there is no GPU" in said
    # the quick checks' summary; on a machine that is busy with other things, that they took too long
    assert ("good: " in said and " 0 failed" in said) or "the quick checks were not finished after 20 s" in said


def test_it_opens_again_as_the_same_container_and_pytest_finds_the_suite_there(opened: Opener) -> None:
    """How long it takes is measured by bench/devcontainer_open.py."""
    workspace = opened()
    first = workspace.up("--skip-post-create")
    again = workspace.up("--skip-post-create")
    assert again["containerId"] == first["containerId"]
    # What the editor's test explorer does, by the settings that it is given.
    text = (workspace.folder / ".devcontainer" / "cuda" / "devcontainer.json").read_text()
    lines = [line for line in text.splitlines() if not line.strip().startswith("//")]
    settings = json.loads("\n".join(lines))["customizations"]["vscode"]["settings"]
    found = workspace.execute(
        settings["python.defaultInterpreterPath"], "-m", "pytest", "--collect-only", "-q",
        *settings["python.testing.pytestArgs"],
    )  # fmt: skip
    assert "tests/container/test_tensors.py::" in found
    assert "error" not in found.splitlines()[-1]


def test_a_user_with_another_uid_owns_what_is_made_there_and_may_install_packages_of_debian(
    somebody: int, opened: Opener
) -> None:
    workspace = opened(user=somebody)
    workspace.up("--skip-post-create")
    home = "/home/torchdock-test"
    found = workspace.execute("sh", "-c", "id -u; id -un; cd; pwd; echo $HOME").split()
    assert found == [str(somebody), "torchdock-test", home, home]
    workspace.execute("sh", "-c", "echo mine >made && mkdir folder")
    for name in ("made", "folder"):
        owned = (workspace.folder / name).stat()
        assert (owned.st_uid, owned.st_gid) == (somebody, somebody)
    assert workspace.execute("sudo", "-n", "id", "-u") == "0"
    # shell history and the editor's server survive a rebuild
    workspace.execute("sh", "-c", "echo 'ls -l' >~/.bash_history")
    before = workspace.up("--skip-post-create")["containerId"]
    after = workspace.up("--skip-post-create", "--remove-existing-container")["containerId"]
    assert after != before
    assert workspace.execute("cat", f"{home}/.bash_history") == "ls -l"


def without_python(folder: Path) -> str:
    """A PATH with everything of this host's but Python."""
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(":")):
        for program in Path(place).glob("*"):
            if not program.name.startswith(("python", "pypy", "pip", "uv")):
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program.resolve() if program.is_symlink() else program)
    return str(folder)


@pytest.mark.parametrize("kind", [pytest.param("cpu", marks=pytest.mark.slow), "cuda"])
def test_a_folder_with_a_space_in_its_name_and_no_python(
    kind: str, opened: Opener, engine: Engine, image: dict[str, Any], tmp_path: Path
) -> None:
    """Without .venv the script builds by docker alone: the same layers, and no other image."""
    path = without_python(tmp_path / "bin")
    assert shutil.which("python3", path=path) is None
    workspace = opened(kind, name="my clone", python=False, PATH=path)
    document = workspace.up("--skip-post-create")
    assert workspace.execute(*IMPORT) == "2.14.1+cu130"
    said = document["said"]
    assert ("of the CPU variant cannot be reached" in said) is (kind == "cpu")  # where its index is out of reach
    found = engine.image(engine.client.api.inspect_container(document["containerId"])["Image"])
    assert found is not None
    assert found.layers == tuple(image["layers"])


def test_a_clone_that_adds_packages_gets_the_image_with_them(opened: Opener) -> None:
    """A lock that is missing is refused, as for every launch; so the packages count."""
    workspace = opened()
    (workspace.folder / "torchdock.toml").write_text('packages = ["einops"]\n')
    done = workspace.run("up", "--skip-post-create")
    assert done.returncode != 0
    assert "invoke lock" in done.stderr


def test_only_a_wrong_choice_of_gpus_is_laid_to_their_variable(opened: Opener) -> None:
    workspace = opened(TORCHDOCK_GPUS="0")
    (workspace.folder / "torchdock.toml").write_text("variant = 3\n")
    done = workspace.run("up", "--skip-post-create")
    assert "torchdock.toml" in done.stderr
    assert "TORCHDOCK_GPUS: " not in done.stderr


def test_a_failed_check_keeps_nobody_from_working(opened: Opener) -> None:
    workspace = opened()
    (workspace.folder / ".devcontainer" / "check.sh").write_text(
        (ROOT / ".devcontainer" / "check.sh").read_text().replace("torchdock.inside.check", "torchdock.inside.nothing")
    )
    document = workspace.up()
    assert document["outcome"] == "success"
    assert "the environment is open all the same" in document["said"]


GPUS: tuple[FakeGpu, ...] = (
    FakeGpu(new_uuid(), memory_used=GIB),
    FakeGpu(new_uuid()),
)
SEEN = ["python", "-c", "import pynvml as n; n.nvmlInit(); print(*[n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByIndex(i))"
        " for i in range(n.nvmlDeviceGetCount())])"]  # fmt: skip


@pytest.fixture
def driver(engine: Engine, tmp_path: Path) -> Iterator[FakeDriver]:
    """Two GPUs that are not there, which this engine injects by CDI."""
    if not engine.cdi:
        pytest.skip('this engine has CDI switched off ({"features": {"cdi": true}} in /etc/docker/daemon.json)')
    global GPUS  # new ones: what an opening keeps for a container that never comes is kept for two minutes
    GPUS = tuple(replace(gpu, uuid=new_uuid()) for gpu in GPUS)
    folder = tmp_path / "driver"
    folder.mkdir()
    fake = FakeDriver(folder, GPUS)
    fake.write_smi()
    with fake.handed_over():
        yield fake


@pytest.mark.parametrize(
    "python",
    [
        pytest.param(True, id="torchdock chooses"),
        pytest.param(False, id="without Python", marks=pytest.mark.slow),  # tests/unit has its decisions
    ],
)
def test_the_container_sees_one_gpu_the_idlest_and_more_only_when_asked(
    python: bool, opened: Opener, driver: FakeDriver
) -> None:
    path = {"PATH": f"{driver.folder}:{os.environ['PATH']}"}
    workspace = opened(python=python, **driver.environment, **path)
    workspace.up("--skip-post-create")
    assert workspace.execute(*SEEN) == GPUS[1].uuid
    held = lease.gather([gpu.uuid for gpu in GPUS])
    assert (held[GPUS[1].uuid].held, held[GPUS[1].uuid].role, held[GPUS[0].uuid].held) == (True, "devcontainer", False)
    # Another number counts for a new container.
    workspace.env["TORCHDOCK_GPUS"] = "all"
    said = workspace.up("--skip-post-create")["said"]
    assert "Rebuild Container" in said
    assert workspace.execute(*SEEN) == GPUS[1].uuid
    workspace.up("--skip-post-create", "--remove-existing-container")
    assert set(workspace.execute(*SEEN).split()) == {gpu.uuid for gpu in GPUS}


@pytest.mark.slow
@pytest.mark.parametrize("python", [True, False], ids=["torchdock chooses", "without Python"])
def test_a_container_keeps_its_own_gpu_when_reopened(
    python: bool, opened: Opener, driver: FakeDriver, engine: Engine
) -> None:
    workspace = opened(python=python, **driver.environment, PATH=f"{driver.folder}:{os.environ['PATH']}")
    first = workspace.up("--skip-post-create")["containerId"]
    driver.use(GPUS[1], 5 * GIB)  # its own work, say; the other one is idler now
    engine.client.containers.get(first).stop(timeout=1)
    assert workspace.up("--skip-post-create")["containerId"] == first
    assert workspace.execute(*SEEN) == GPUS[1].uuid
    (asked,) = workspace.service()["deploy"]["resources"]["reservations"]["devices"]
    assert asked["device_ids"] == [f"nvidia.com/gpu={GPUS[1].uuid}"]


@pytest.mark.parametrize(
    ("closed", "key"), [("*--device\\ nvidia*", "deploy"), ("*--device\\ nvidia*|*--gpus*", "runtime")]
)
def test_compose_takes_the_other_ways_to_a_gpu(
    closed: str, key: str, opened: Opener, driver: FakeDriver, tmp_path: Path
) -> None:
    """An engine without CDI; by the way that is open a trial container sees both GPUs."""
    folder = tmp_path / "docker"
    folder.mkdir()
    real = shutil.which("docker")
    opens = "run\\ *--gpus*|run\\ *--runtime*"
    sees = f"printf '%s\\n' {' '.join(gpu.uuid for gpu in GPUS)}; exit 0"
    text = f'case "$*" in run\\ {closed}) exit 125 ;; {opens}) {sees} ;; esac\nexec {real} "$@"'
    write_program(folder / "docker", text)
    path = f"{folder}:{driver.folder}:{os.environ['PATH']}"
    service = opened(**driver.environment, PATH=path, TORCHDOCK_GPUS="all").service()
    uuids = {gpu.uuid for gpu in GPUS}
    if key == "runtime":
        assert service["runtime"] == "nvidia"
        assert set(service["environment"]["NVIDIA_VISIBLE_DEVICES"].split(",")) == uuids
    else:
        (asked,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (asked["driver"], asked["capabilities"], set(asked["device_ids"])) == ("nvidia", ["gpu"], uuids)


def test_an_engine_without_the_container_toolkit_starts_on_the_cpu_and_says_so(
    opened: Opener, driver: FakeDriver
) -> None:
    """The driver is there, and no specification names its GPUs: the engine has no way to hand them over."""
    driver.file.write_text('{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": []}')
    workspace = opened(**driver.environment)
    assert "Install the NVIDIA Container Toolkit" in workspace.up("--skip-post-create")["said"]
    assert workspace.execute("printenv", "TORCHDOCK_VARIANT") == "cu130"


def test_compose_reads_names_and_paths_as_they_are(opened: Opener, tmp_path: Path) -> None:
    bundle = tmp_path / "it's $HOME ca.crt"
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", bundle)
    workspace = opened(
        name="a $clone's", SSL_CERT_FILE=str(bundle), PIP_INDEX_URL="https://user:pa$$word@index.example/simple",
        UV_DEFAULT_INDEX="", UV_INDEX_URL="",
    )  # fmt: skip
    service = workspace.service()
    assert str(bundle) in [one["source"].replace("$$", "$") for one in service["volumes"]]
    assert service["labels"]["dev.torchdock.workspace"].replace("$$", "$") == str(workspace.folder)
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        assert service["environment"][name].replace("$$", "$") == workspace.env["PIP_INDEX_URL"]
    assert service["pull_policy"] == "never"


def test_a_gpu_that_is_not_there_is_refused_in_one_paragraph(opened: Opener, driver: FakeDriver) -> None:
    workspace = opened(**driver.environment, TORCHDOCK_GPUS="GPU-nothing")
    done = workspace.run("up", "--skip-post-create")
    assert done.returncode != 0
    assert "torchdock: TORCHDOCK_GPUS: " in done.stderr
    assert "'GPU-nothing' is none of them here" in done.stderr


def test_a_private_ca_of_the_host_is_trusted_in_there_and_in_no_file_of_the_clone(
    opened: Opener, tmp_path: Path
) -> None:
    bundle = tmp_path / "my ca.crt"
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", bundle)
    workspace = opened(SSL_CERT_FILE=str(bundle), HTTPS_PROXY="http://user:hidden@127.0.0.1:9", NO_PROXY="*",
                       PIP_INDEX_URL="http://user:hidden@index.example/simple")  # fmt: skip
    workspace.up("--skip-post-create")
    assert workspace.execute("sh", "-c", "cmp $SSL_CERT_FILE $PIP_CERT && wc -c <$SSL_CERT_FILE") == str(
        bundle.stat().st_size
    )
    assert workspace.execute("printenv", "UV_DEFAULT_INDEX") == "http://user:hidden@index.example/simple"
    assert workspace.execute("printenv", "HTTPS_PROXY") == "http://user:hidden@127.0.0.1:9"
    written = [path.read_text() for path in (workspace.folder / ".devcontainer").rglob("*") if path.is_file()]
    assert not any("hidden" in text for text in written)
