"""Engines that are not there, may not be used, are elsewhere, or go away in the middle: code 69 and the remedy."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import indexes
from tests.engine.conftest import ROOT, Invoke, Relay, argv
from torchdock import engine as engines


def test_a_silent_engine(invoke: Invoke) -> None:
    done = invoke("run", "--", "true", env={"DOCKER_HOST": "unix:///nowhere/docker.sock"})
    assert done.returncode == 69
    assert "unix:///nowhere/docker.sock" in done.stderr
    assert "docker context use default" in done.stderr


def test_an_unknown_context(invoke: Invoke) -> None:
    done = invoke("run", "--", "true", env={"DOCKER_CONTEXT": "nowhere"})
    assert done.returncode == 69
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_remote_engine_is_refused_for_launching(invoke: Invoke) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    relay = Relay(listener, "/var/run/docker.sock")
    try:
        done = invoke("run", "--", "true", env={"DOCKER_HOST": f"tcp://127.0.0.1:{listener.getsockname()[1]}"})
    finally:
        relay.cut()
    assert done.returncode == 69
    assert "on another machine" in done.stderr


def test_an_engine_that_this_user_may_not_use() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # a user without the docker group
        try:
            os.setgroups([])
            os.setgid(4321)
            os.setuid(4321)
            state = engines.classify(engines.gather({**os.environ, "HOME": "/tmp"}))
            os.write(writer, state.value.encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        assert answer.read() == "forbidden"


def test_an_engine_that_stops_in_a_build(clone: Path, relay: tuple[Relay, str]) -> None:
    link, endpoint = relay
    script = clone / "docker/layers/suite.sh"
    script.write_text(script.read_text().replace("set -eu\n", "set -eu\necho waiting here\nsleep 60\n", 1))
    child = subprocess.Popen(
        argv("build", "--variant", "cu130"), cwd=clone, env={**os.environ, "DOCKER_HOST": endpoint},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    log = clone / ".torchdock/logs/build-cu130.log"
    while child.poll() is None:
        if log.is_file() and "waiting here" in log.read_text().partition("environment 1/")[2]:
            break
        time.sleep(0.1)
    link.cut()
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 69, output
    assert "went away" in output or "stopped answering" in output
    assert "Traceback" not in output


@pytest.mark.usefixtures("image")
def test_an_engine_that_stops_in_a_run(relay: tuple[Relay, str], leftovers: Callable[[str], Sequence[str]]) -> None:
    link, endpoint = relay
    words = argv("run", "--", "sh", "-c", "echo ready; exec sleep 600")
    child = subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, "DOCKER_HOST": endpoint},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    link.cut()
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 69, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("torchdock: The container engine stopped answering in the middle.")
    deadline = time.monotonic() + 30  # the real engine lives on: the lifeline ends what nobody waits for any more
    while leftovers("run") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert leftovers("run") == []


def test_the_doctor_proves_this_host(invoke: Invoke, image: dict[str, Any]) -> None:
    done = invoke("doctor", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    subjects = {found["subject"]: found for found in document["findings"]}
    assert {"engine", "permission", "buildx", "free space", "CA bundle", "Python packages", "registry"} <= set(subjects)
    for name in ("engine", "permission", "buildx", "Python packages"):
        assert subjects[name]["severity"] == "good", subjects[name]


def test_the_doctor_finds_what_is_broken(invoke: Invoke, tmp_path: Path) -> None:
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate\n")
    env = {"SSL_CERT_FILE": str(wrong), "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    done = invoke("doctor", "--json", env=env)
    document = json.loads(done.stdout)
    assert done.returncode == 1
    errors = {found["subject"]: found["remedy"] for found in document["findings"] if found["severity"] == "error"}
    assert "SSL_CERT_FILE" in errors["settings"]
    assert "docker context use default" in errors["engine"]


def test_a_wrong_ca_stops_a_build_before_it_starts(invoke: Invoke, tmp_path: Path) -> None:
    done = invoke("build", env={"SSL_CERT_FILE": str(tmp_path / "missing.pem")})
    assert done.returncode == 2
    assert "SSL_CERT_FILE" in done.stderr


@pytest.mark.parametrize(
    ("expired", "token", "why", "remedy"),
    [
        (True, None, "TLS certificate has expired", "clock"),
        (False, "anna:swordfish", "refuses the credentials (HTTP 401)", "Renew the token"),
        (False, "anna:hunter2", "", ""),
    ],
    ids=["an expired certificate", "a token that is refused", "all is well"],
)
def test_the_doctor_tries_each_source_for_real(
    invoke: Invoke, tmp_path: Path, expired: bool, token: str | None, why: str, remedy: str
) -> None:
    """An index with TLS of a private CA and a token, on the loopback, under all the names that sources have."""
    authority, certificate = indexes.certificates(tmp_path, expired=expired)
    with indexes.serve(token=token, certificate=certificate) as index:
        index.wheel("simple", "iniconfig", "2.0.0")
        index.wheel("whl/cpu", "torch", "2.14.1+cpu")
        env = {
            "SSL_CERT_FILE": str(authority),
            "UV_DEFAULT_INDEX": index.url("simple", credentials="anna:hunter2"),
            "TORCHDOCK_TORCH_INDEX": index.url("whl", credentials="anna:hunter2"),
            "TORCHDOCK_APT_MIRROR": index.url("debian", credentials="anna:hunter2"),
            "NO_PROXY": "localhost,127.0.0.1",
        }
        done = invoke("doctor", "--variant", "cpu", "--json", env=env)
    found = {one["subject"]: one for one in json.loads(done.stdout)["findings"]}
    for subject in ("Python packages", "torch wheels"):
        assert found[subject]["severity"] == ("error" if why else "good"), found[subject]
        assert why in found[subject]["seen"] and remedy in found[subject]["remedy"]
    # This index is no Debian archive, and says so with 404 where nothing is wrong with TLS and the token.
    assert (why or "answers HTTP 404") in found["Debian packages"]["seen"]
    assert "UV_DEFAULT_INDEX at localhost" in found["Python packages"]["seen"]
    assert not [word for word in ("hunter2", "swordfish") if word in done.stdout + done.stderr]
