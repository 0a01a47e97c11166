"""Fixtures against a real Docker Engine: the built image, `invoke` as a person types it, and clones."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from torchdock import engine as engines

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
# Everything a clone consists of, as a person who downloads the sources has it.
TREE = ("docker", "src", "tests", "tasks.py", "Makefile", "pyproject.toml", ".dockerignore", "README.md")

Invoke = Callable[..., "subprocess.CompletedProcess[str]"]


def argv(*words: str) -> list[str]:
    """`invoke` with these words, as a person types it."""
    return [str(PYTHON), "-m", "invoke", *words]


@pytest.fixture(scope="session")
def engine() -> engines.Engine:
    """The engine that answers."""
    return engines.require()


@pytest.fixture(scope="session")
def client(engine: engines.Engine) -> docker.DockerClient:
    """The SDK on it."""
    return engine.client


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """Run a task of this clone to its end; text streams, never an exception for a code."""

    def run(
        *words: str,
        stdin: str | None = None,
        env: dict[str, str] | None = None,
        cwd: Path = ROOT,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        environment = {**os.environ, **(env or {})}
        return subprocess.run(
            argv(*words), cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, **given
        )

    return run


@pytest.fixture(scope="session", autouse=True)
def notes_of_test_clones(engine: engines.Engine) -> Iterator[None]:
    """The notes that clones of the tests use an image go with these clones."""
    yield
    for volume in engine.client.volumes.list(filters={"label": "dev.torchdock.use"}):
        root = volume.attrs["Labels"].get("dev.torchdock.root", "")
        if root.startswith(tempfile.gettempdir()):
            with suppress(docker.errors.NotFound):  # gone with its clone in a run beside this one
                volume.remove()


def base_of(engine: engines.Engine, image: dict[str, Any]) -> str:
    """The base that an image of this tree stands on, as the engine knows it."""
    from torchdock import image as images
    from torchdock import sources, variants

    plans = images.plans(ROOT, variants.get(ROOT, image["variant"]), engine, sources.gather())
    return next(plan.base.reference for plan in plans if plan.tag == image["image"])


@pytest.fixture(scope="session")
def image(invoke: Invoke) -> dict[str, Any]:
    """The cu130 image of this tree, built once in a test run: the document of its `invoke build --json`."""
    done = invoke("build", "--variant", "cu130", "--json", timeout=3000)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def copy_tree(target: Path) -> Path:
    """A second clone of this tree in a new folder, sharing the tools in .venv."""
    target.mkdir()
    target.chmod(0o755)
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, target / name)
    (target / ".venv").symlink_to(ROOT / ".venv")
    return target


def open_clone(target: Path, tools: Path) -> Path:
    """A clone that every user can reach; where this tree is behind a private folder, with tools made in ``tools``."""
    clone = copy_tree(target)
    python = (ROOT / ".venv" / "bin" / "python").resolve()
    if any(not parent.stat().st_mode & 0o001 for path in (ROOT, python) for parent in path.parents):
        if not tools.exists():
            copy_tree(tools)
            (tools / ".venv").unlink()
            make = ["make", "--silent", "PYTHON=/usr/bin/python3", "venv"]  # as `make up` does
            subprocess.run(make, cwd=tools, check=True, capture_output=True)
        (clone / ".venv").unlink()
        (clone / ".venv").symlink_to(tools / ".venv")
    return clone


@pytest.fixture
def clone(tmp_path: Path, engine: engines.Engine) -> Iterator[Path]:
    """A second clone; what was launched or built from it is removed."""
    target = copy_tree(tmp_path / "clone")
    yield target
    from torchdock.state import CloneState

    state = CloneState(target)
    for found in engine.containers([f"dev.torchdock.clone={state.clone}"]):
        engine.remove_container(found["Id"])
    kept = {record["image"] for record in CloneState(ROOT).records()}
    for record in state.records():
        if record["image"] not in kept:
            with suppress(docker.errors.ImageNotFound):  # a test has removed it
                engine.client.images.remove(record["image"], force=True)
    forget_uses(engine, state.clone)


def forget_uses(engine: engines.Engine, clone: str) -> None:
    """Remove what a clone told the engine about the images that it uses."""
    from torchdock import uses

    for use in uses.gather(engine):
        if use.clone == clone:
            engine.client.api.remove_volume(use.volume)


@pytest.fixture
def leftovers(engine: engines.Engine) -> Callable[[str], Sequence[str]]:
    """Names of the containers of this clone with a role that are still there, in whatever state."""
    from torchdock.state import CloneState

    labels = [f"dev.torchdock.clone={CloneState(ROOT).clone}"]

    def names(role: str) -> Sequence[str]:
        return [found["Names"][0] for found in engine.containers([*labels, f"dev.torchdock.role={role}"])]

    return names


class Relay:
    """Hands connections on to the engine's socket until it is cut: an engine that stops while the real one goes on."""

    def __init__(self, listener: socket.socket, target: str) -> None:
        self.listener, self.target = listener, target
        self.pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self.target)
            self.pairs += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def cut(self) -> None:
        """The engine is gone: nothing is accepted, every connection is closed."""
        for end in (self.listener, *self.pairs):  # closing alone would not wake a thread that waits in accept()
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self.listener.close()


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[tuple[Relay, str]]:
    """A local engine of the test's own, by a socket in a folder."""
    path = tmp_path / "docker.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    found = Relay(listener, "/var/run/docker.sock")
    yield found, f"unix://{path}"
    found.cut()


if sys.platform != "linux":
    pytest.exit("the engine tests start and stop containers with Linux means; run them on Linux", returncode=2)
