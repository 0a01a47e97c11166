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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from torchdock import engine as engines
from torchdock import uses
from torchdock.state import CloneState

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
def no_clone_leaves_anything(engine: engines.Engine) -> Iterator[None]:
    """What clones left that no test tidied up. Of this run alone: others keep clones below the same folder."""
    yield
    for root in tuple(COPIES):
        tidy(engine, root)
    if ROOT.parent == Path(tempfile.gettempdir()).resolve():  # that of tests/run.py, gone after this run
        forget_uses(engine, CloneState(ROOT).clone)


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


COPIES: list[Path] = []  # the clones of this run that were not tidied up yet


def copy_tree(target: Path) -> Path:
    """A second clone of this tree in a new folder, sharing the tools in .venv.

    Whoever makes it calls :func:`tidy` before the folder goes; at the end of the run that is done for the rest.
    """
    COPIES.append(target)
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
    with temporary_clone(engine, tmp_path / "clone") as target:
        yield target


@contextmanager
def temporary_clone(engine: engines.Engine, target: Path) -> Iterator[Path]:
    """A second clone in a new folder; what was launched or built from it is removed."""
    try:
        yield copy_tree(target)
    finally:
        tidy(engine, target)


def tidy(engine: engines.Engine, root: Path) -> None:
    """Remove what a clone of the tests launched and built, and its notes; an image that another clone uses stays.

    To be called while its folder is there: that has the build records, and what a clone that is gone has noted is
    anybody's of the same user to `clean`.
    """
    state = CloneState(root)
    for found in engine.containers([f"dev.torchdock.clone={state.clone}"]):
        engine.remove_container(found["Id"])
    tags = [tag for row in engine.client.api.images() for tag in row.get("RepoTags") or ()]
    built = {record["image"] for record in state.records()}
    built |= {tag for tag in tags if tag.endswith(f"-{state.clone}")}  # without Python, or by `verify`
    kept = {record["image"] for record in CloneState(ROOT).records()}
    kept |= {use.image for use in uses.gather(engine) if use.clone != state.clone}
    for image in built.intersection(tags) - kept:
        with suppress(docker.errors.ImageNotFound):  # a run beside this one made the same, and removed it
            engine.client.images.remove(image, force=True, noprune=True)
    forget_uses(engine, state.clone)
    COPIES.remove(root)


def forget_uses(engine: engines.Engine, clone: str) -> None:
    """Remove what a clone told the engine about the images that it uses."""
    for use in uses.gather(engine):
        if use.clone == clone:
            engine.client.api.remove_volume(use.volume)


@pytest.fixture
def leftovers(engine: engines.Engine) -> Callable[[str], Sequence[str]]:
    """Names of the containers of this clone with a role that are still there, in whatever state."""
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
