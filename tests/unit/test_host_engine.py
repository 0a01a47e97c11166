"""Which engine answers: the state that facts mean, the remedy of each, and the facts as a docker CLI gives them."""

import json
import os
import re
import resource
import shlex
import socket
import types
from pathlib import Path
from typing import Any

import docker.errors
import pytest
import requests
from given import INFO, SOCKET, facts, program

from torchdock import engine
from torchdock.engine import State
from torchdock.errors import EngineError, TorchdockError

SILENT = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
DENIED = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"


def silent(**different: Any) -> engine.EngineFacts:
    return facts(**{"info": {}, "error": SILENT, **different})


@pytest.mark.parametrize(
    ("found", "state"),
    [
        pytest.param(facts(), State.READY, id="answers"),
        pytest.param(facts(endpoint="npipe:////./pipe/docker"), State.READY, id="answers on a pipe"),
        pytest.param(facts(binary=None, unit=False), State.READY, id="answers, engine elsewhere than the binary"),
        pytest.param(facts(endpoint="unix:///run/user/1000/docker.sock"), State.READY, id="rootless"),
        pytest.param(facts(endpoint="tcp://10.0.0.5:2376"), State.REMOTE, id="tcp"),
        pytest.param(facts(endpoint="ssh://anna@server"), State.REMOTE, id="ssh"),
        pytest.param(silent(error=DENIED), State.FORBIDDEN, id="denied"),
        pytest.param(
            silent(error=f"Got P{DENIED[1:]}", binary=None, unit=False), State.FORBIDDEN, id="denied, no binary"
        ),
        pytest.param(silent(), State.STOPPED, id="silent"),
        pytest.param(silent(endpoint="unix:///run/docker.sock"), State.STOPPED, id="silent, other default"),
        pytest.param(silent(binary=None), State.STOPPED, id="silent, only a unit"),
        pytest.param(silent(unit=False), State.STOPPED, id="silent, only a binary"),
        pytest.param(silent(binary=None, unit=False), State.NOT_INSTALLED, id="only a client"),
        pytest.param(silent(cli=None), State.NOT_INSTALLED, id="an engine without its client"),
        pytest.param(silent(cli=None, binary=None, unit=False), State.NOT_INSTALLED, id="nothing"),
        pytest.param(silent(endpoint="unix:///run/user/1000/docker.sock"), State.UNREACHABLE, id="rootless silent"),
        pytest.param(silent(endpoint="tcp://10.0.0.5:2376"), State.UNREACHABLE, id="tcp silent"),
        pytest.param(silent(endpoint="context", context="nope"), State.UNREACHABLE, id="no such context"),
        pytest.param(
            silent(endpoint="ssh://anna@server", error="stderr=anna@server: Permission denied (publickey)."),
            State.UNREACHABLE,
            id="ssh refuses the key",
        ),
    ],
)
def test_the_state_follows_from_the_facts(found: engine.EngineFacts, state: State) -> None:
    assert engine.classify(found) is state


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        (State.REMOTE, "docker context use default"),
        (State.FORBIDDEN, "sudo usermod -aG docker $USER"),
        (State.STOPPED, "sudo systemctl start docker"),
        (State.NOT_INSTALLED, "make up"),
        (State.UNREACHABLE, "docker context use default"),
    ],
)
def test_every_state_but_ready_is_explained_with_a_command(state: State, remedy: str) -> None:
    text = engine.explain(silent(context="lab", endpoint="tcp://lab:2376"), state)
    assert remedy in re.findall("`(.*?)`", text)
    assert "\n" not in text


def test_ready_needs_no_explanation() -> None:
    assert engine.explain(facts(), State.READY) == ""


def test_an_unreachable_engine_is_named_with_what_the_client_said() -> None:
    text = engine.explain(
        silent(context="lab", endpoint="tcp://lab:2376", error="dial tcp:\n  no route"), State.UNREACHABLE
    )
    assert "'lab' (tcp://lab:2376)" in text
    assert "dial tcp: no route" in text


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        (SOCKET, True),
        ("npipe:////./pipe/docker_engine", True),
        ("tcp://127.0.0.1:2375", False),
        ("ssh://server", False),
        ("", False),
    ],
)
def test_only_sockets_of_this_host_are_local(endpoint: str, local: bool) -> None:
    assert engine.is_local(endpoint) is local


# --- gather, against a docker CLI made for the test ---


@pytest.fixture
def bare_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine binary and no unit, whatever is installed where the tests run."""
    monkeypatch.setattr(engine, "ENGINE_FOLDERS", ())
    monkeypatch.setattr(engine, "UNIT_FILES", ())


def cli(
    folder: Path, *, context: str = f"default {SOCKET}", info: str = "", err: str = "", code: int = 0
) -> dict[str, str]:
    """A `docker` that answers with these words; returns the environment that finds it and nothing else."""
    said = f"printf '%s\\n' {shlex.quote(info)}; printf '%s' {shlex.quote(err)} >&2; exit {code}"
    where = f"printf '%s\\n' {shlex.quote(context)}" if context else f"printf '%s' {shlex.quote(err)} >&2; exit 1"
    program(folder / "docker", f'case "$1" in\ncontext) {where};;\ninfo) {said};;\n*) exit 64;;\nesac')
    return {"PATH": str(folder)}


@pytest.mark.usefixtures("bare_host")
def test_an_engine_that_answers_is_found_with_its_buildx(tmp_path: Path) -> None:
    document = {**INFO, "ClientInfo": {"Plugins": [{"Name": "compose"}, {"Name": "buildx", "Version": "v0.13.1"}]}}
    found = engine.gather(cli(tmp_path, context="lab unix:///run/lab.sock", info=json.dumps(document)))
    assert found == engine.EngineFacts(
        str(tmp_path / "docker"), None, False, "lab", "unix:///run/lab.sock", document, "", "v0.13.1"
    )


PODMAN = {
    "host": {
        "security": {"rootless": True, "selinuxEnabled": False},
        "ociRuntime": {"name": "crun"},
        "remoteSocket": {"path": "/run/user/1000/podman/podman.sock", "exists": True},
        "serviceIsRemote": False,
    },
    "store": {"graphRoot": "/home/anna/.local/share/containers/storage"},
}


def podman(
    folder: Path, monkeypatch: pytest.MonkeyPatch, document: "dict[str, Any]" = PODMAN, **answers: Any
) -> "dict[str, str]":
    """A `podman`, and a socket that answers, or raises what it is given."""

    class Api:
        def __init__(self, base_url: str, timeout: int) -> None:
            answers.setdefault("asked", []).append(base_url)

        def info(self) -> "dict[str, Any]":
            if "silence" in answers:
                raise answers["silence"]
            return {
                "DockerRootDir": document["store"]["graphRoot"],
                "ServerVersion": "4.3.1",
                **answers.get("info", {}),
            }

        def close(self) -> None:
            pass

    monkeypatch.setattr(docker, "APIClient", Api)
    program(folder / "podman", f"[ \"$1\" = info ] && printf '%s\\n' {shlex.quote(json.dumps(document, indent=1))}")
    return {"PATH": str(folder)}


@pytest.mark.usefixtures("bare_host")
def test_podman_at_a_socket_is_recognised_and_its_own_client_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Docker's client says of Podman 4.3: no init, no `rootless`; its version names the engine."""
    env = podman(tmp_path, monkeypatch)
    info = json.dumps({"ID": "x", "InitBinary": "", "SecurityOptions": ["name=seccomp"]})
    version = json.dumps([{"Name": "Podman Engine", "Version": "4.3.1"}])
    said = f"context) echo default unix:///x.sock;; info) echo {shlex.quote(info)};;"
    program(tmp_path / "docker", f'case "$1" in {said} version) echo {shlex.quote(version)};; esac')
    live = engine.Engine(engine.gather(env))
    assert engine.classify(live.facts) is State.READY
    assert (live.cli, live.program, live.facts.endpoint) == (str(tmp_path / "podman"), "podman", "unix:///x.sock")
    assert (live.podman, live.rootless, live.keeps_groups, live.selinux) == (True, True, True, False)
    assert live.kind == "Podman 4.3.1, rootless"


@pytest.mark.usefixtures("bare_host")
@pytest.mark.parametrize("contexts", [True, False], ids=["knows contexts", "knows none"])
def test_the_docker_of_podman_docker_is_recognised(
    contexts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = podman(tmp_path, monkeypatch)
    context = "echo" if contexts else "exit 125"
    said = f'context) {context};; --version) echo podman version 4.3.1;; info) exec "{tmp_path}/podman" info;;'
    program(tmp_path / "docker", f'case "$1" in {said} esac')
    live = engine.Engine(engine.gather(env))
    assert live.podman and engine.classify(live.facts) is State.READY
    assert live.facts.endpoint == "unix:///run/user/1000/podman/podman.sock"


REMOTE = {**PODMAN, "host": {**PODMAN["host"], "serviceIsRemote": True}}


@pytest.mark.usefixtures("bare_host")
@pytest.mark.parametrize(
    ("document", "answers", "remedy"),
    [
        (PODMAN, {"silence": docker.errors.DockerException("no")}, "systemctl --user enable --now podman.socket"),
        (PODMAN, {"silence": requests.exceptions.ConnectionError("no")}, "podman system service --time=0 &"),
        (PODMAN, {"info": {"DockerRootDir": "/var/lib/containers"}}, "unset DOCKER_HOST"),
        (REMOTE, {}, "unset CONTAINER_HOST CONTAINER_CONNECTION"),
    ],
    ids=["no socket", "a dead socket", "another user's", "a remote one"],
)
def test_a_podman_that_cannot_be_used_is_explained(
    document: "dict[str, Any]", answers: "dict[str, Any]", remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = podman(tmp_path, monkeypatch, document, **answers)
    program(tmp_path / "docker", f'case "$1" in info) exec "{tmp_path}/podman" info;; esac')
    found = engine.gather(env)
    state = engine.classify(found)
    assert state is State.UNREACHABLE
    assert remedy in re.findall("`(.*?)`", engine.explain(found, state))


@pytest.mark.usefixtures("bare_host")
def test_a_podman_without_its_client_is_explained(tmp_path: Path) -> None:
    program(tmp_path / "docker", '[ "$1" = --version ] && echo podman version 5; exit 125')
    found = engine.gather({"PATH": str(tmp_path)})
    assert "`podman` is not on the PATH" in engine.explain(found, engine.classify(found))


@pytest.mark.usefixtures("bare_host")
@pytest.mark.parametrize(
    ("document", "err", "code", "error"),
    [
        pytest.param({"ServerErrors": [SILENT]}, "", 0, SILENT, id="in the document"),
        pytest.param({"ServerErrors": [SILENT]}, "errors pretty printing info", 1, SILENT, id="in both"),
        pytest.param(None, SILENT, 1, SILENT, id="on stderr"),
        pytest.param({"ID": ""}, "", 0, "it gave no answer", id="nowhere"),
    ],
)
def test_a_silent_engine_has_no_info_and_an_error(
    tmp_path: Path, document: "dict[str, Any] | None", err: str, code: int, error: str
) -> None:
    info = "" if document is None else json.dumps({"ClientInfo": {}, **document})
    found = engine.gather(cli(tmp_path, info=info, err=err, code=code))
    assert (found.info, found.error, found.buildx) == ({}, error, "")


@pytest.mark.usefixtures("bare_host")
@pytest.mark.parametrize(
    ("more", "context", "endpoint"),
    [
        ({"DOCKER_CONTEXT": "nope"}, "nope", "context"),
        ({"DOCKER_HOST": "tcp://lab:2376"}, "default", "tcp://lab:2376"),
    ],
)
def test_a_context_that_is_not_there_is_unreachable(
    tmp_path: Path, more: "dict[str, str]", context: str, endpoint: str
) -> None:
    found = engine.gather({**cli(tmp_path, context="", err='context "nope" does not exist'), **more})
    assert (found.context, found.endpoint, found.error) == (context, endpoint, 'context "nope" does not exist')
    assert engine.classify(found) is State.UNREACHABLE


@pytest.mark.usefixtures("bare_host")
def test_a_client_without_an_engine_is_not_installed(tmp_path: Path) -> None:
    found = engine.gather(cli(tmp_path, err=SILENT, code=1))
    assert found.cli and engine.classify(found) is State.NOT_INSTALLED


@pytest.mark.usefixtures("bare_host")
def test_a_host_without_docker_is_not_installed(tmp_path: Path) -> None:
    found = engine.gather({"PATH": str(tmp_path)})
    assert found.cli is None and engine.classify(found) is State.NOT_INSTALLED


def test_an_engine_binary_or_a_unit_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/dockerd").touch(mode=0o755)
    (tmp_path / "docker.service").touch()
    monkeypatch.setattr(engine, "ENGINE_FOLDERS", (str(tmp_path / "sbin"),))
    monkeypatch.setattr(engine, "UNIT_FILES", (str(tmp_path / "docker.service"),))
    found = engine.gather(cli(tmp_path, err=SILENT, code=1))
    assert (found.binary, found.unit) == (str(tmp_path / "sbin/dockerd"), True)
    assert engine.classify(found) is State.STOPPED


@pytest.mark.usefixtures("bare_host")
def test_a_remote_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", cli(tmp_path, context="lab ssh://lab", info=json.dumps(INFO))["PATH"])
    with pytest.raises(EngineError, match="another machine") as refused:
        engine.require()
    assert refused.value.exit_code == 69


# --- the engine's own answers ---


@pytest.mark.parametrize(("said", "architecture"), [("amd64", "x86_64"), ("x86_64", "x86_64"), ("arm64", "aarch64")])
def test_the_architecture_is_unames(said: str, architecture: str) -> None:
    """Podman has Go's names."""
    assert engine.Engine(facts(info={"Architecture": said})).architecture == architecture


@pytest.mark.parametrize(
    ("info", "rootless", "memory"),
    [
        ({"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"], "MemTotal": 1024}, True, 1024),
        ({"SecurityOptions": None}, False, 0),
        ({"SecurityOptions": ["name=seccomp"], "MemTotal": None}, False, 0),
    ],
)
def test_rootless_and_memory_are_the_engines(info: "dict[str, Any]", rootless: bool, memory: int) -> None:
    live = engine.Engine(facts(info=info))
    assert (live.rootless, live.memory_bytes) == (rootless, memory)


def test_the_engines_disk_is_known_only_where_it_is_this_hosts(tmp_path: Path) -> None:
    assert engine.Engine(facts(info={"DockerRootDir": str(tmp_path)})).data_root == tmp_path
    assert engine.Engine(facts(info={"DockerRootDir": str(tmp_path / "gone")})).data_root is None
    assert engine.Engine(facts(info={})).data_root is None


# --- errors of the SDK ---


@pytest.mark.usefixtures("bare_host")
@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.ConnectionError("gone"),
        requests.exceptions.ReadTimeout("60 s"),
        docker.errors.DockerException("Error while fetching server API version: ('Connection aborted.', …)"),
    ],
)
def test_an_engine_that_went_away_is_an_engine_error(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told = engine.translate(error)
    assert isinstance(told, EngineError)
    assert "in the middle" in str(told) and "make up" in str(told)


def test_a_refusal_of_the_engine_is_one_paragraph() -> None:
    told = engine.translate(docker.errors.APIError("500 Server Error", explanation="no\n such thing"))
    assert isinstance(told, TorchdockError) and told.exit_code == 1
    assert str(told).startswith("The container engine refused: 500 Server Error")


def test_a_programming_error_is_nobody_elses() -> None:
    assert engine.translate(ValueError("bug")) is None


def test_sessions_come_in_one_order_whatever_the_engines() -> None:
    """It keeps them in a hash map: each listing has another order."""

    class Api:
        words = ("jupyter", "bash", "tensorboard")

        def inspect_container(self, name: str) -> dict[str, Any]:
            return {"ExecIDs": list(self.words)}

        def exec_inspect(self, one: str) -> dict[str, Any]:
            process = {"entrypoint": "/opt/torchdock/docker/entrypoint.sh", "arguments": [one]}
            return {"Running": one != "bash", "ProcessConfig": process}

    found = engine.Engine(facts(cli="docker"))
    found.client = types.SimpleNamespace(api=Api())  # type: ignore[assignment]
    assert found.sessions("up") == ["jupyter", "tensorboard"]
    Api.words = tuple(reversed(Api.words))
    assert found.sessions("up") == ["jupyter", "tensorboard"]


def test_the_process_that_serves_is_known_by_its_socket(tmp_path: Path) -> None:
    """And so which limits it gives on, and whether it is the same one as before."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        ours = engine.Engine(facts(endpoint=f"unix://{path}"))
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        assert (ours.pid, ours.started) == (os.getpid(), f"{os.getpid()}:{ticks}")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert ours.open_files == (1 << 30 if hard == resource.RLIM_INFINITY else hard)


# --- images ---

# As a configuration is stored, and as `docker image inspect` of Docker 26 shows it.
STORED = {
    "architecture": "amd64",
    "config": {"Env": ["A=b"], "Cmd": ["x"], "ArgsEscaped": True, "Labels": {"a": "b"}, "WorkingDir": "/w"},
    "created": "2026-10-05T00:00:00Z",
    "history": [{"created_by": "CMD"}],
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": ["sha256:0"]},
}
SHOWN = {
    "Id": "sha256:1",
    "Created": "2026-10-05T00:00:00Z",
    "Author": "",
    "Architecture": "amd64",
    "Os": "linux",
    "Size": 5,
    "RootFS": {"Type": "layers", "Layers": ["sha256:0"]},
    "Config": {"Hostname": "", "Tty": False, "Volumes": None, "Entrypoint": None, "OnBuild": None, "User": "",
               **STORED["config"]},  # type: ignore[dict-item]
}  # fmt: skip


def test_a_configuration_says_the_same_where_it_is_stored_and_where_it_is_shown() -> None:
    assert engine.settings(STORED) == engine.settings(SHOWN)
    assert engine.settings({**STORED, "config": None}) == engine.settings({**SHOWN, "Config": {"User": ""}})


@pytest.mark.parametrize(
    "different",
    [{"created": "2026-10-06T00:00:00Z"}, {"architecture": "arm64"}, {"config": {"Cmd": ["x"]}}, {"variant": "v8"}],
)
def test_a_configuration_that_says_something_else_is_another(different: dict[str, Any]) -> None:
    assert engine.settings({**STORED, **different}) != engine.settings(STORED)


def test_which_images_are_the_same_depends_on_what_an_id_is_of() -> None:
    store = {**INFO, "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    one = engine.ImageFacts("sha256:1", ("sha256:0",), 1, settings="{}")
    another = engine.ImageFacts("sha256:2", ("sha256:0",), 2, settings="{}")
    classic, containerd = engine.Engine(facts()), engine.Engine(facts(info=store))
    assert (classic.by_manifest, containerd.by_manifest) == (False, True)
    assert classic.same(one, one) and not classic.same(one, another)
    assert containerd.same(one, another)
    assert not containerd.same(one, engine.ImageFacts("sha256:2", ("sha256:9",), 1, settings="{}"))
    assert not containerd.same(one, engine.ImageFacts("sha256:2", ("sha256:0",), 1, settings='{"User": "1"}'))
