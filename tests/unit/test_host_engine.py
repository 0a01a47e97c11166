"""Which engine answers: the state that facts mean, the remedy of each, and the facts as a docker CLI gives them."""

import json
import re
import shlex
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
