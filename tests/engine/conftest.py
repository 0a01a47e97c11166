"""Fixtures against a real Docker Engine: the built image, `invoke` as a person types it, and clones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docker
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
            engine.client.images.remove(record["image"], force=True)


@pytest.fixture
def leftovers(engine: engines.Engine) -> Callable[[str], Sequence[str]]:
    """Names of the containers of this clone with a role that are still there, in whatever state."""
    from torchdock.state import CloneState

    labels = [f"dev.torchdock.clone={CloneState(ROOT).clone}"]

    def names(role: str) -> Sequence[str]:
        return [found["Names"][0] for found in engine.containers([*labels, f"dev.torchdock.role={role}"])]

    return names


if sys.platform != "linux":
    pytest.exit("the engine tests start and stop containers with Linux means; run them on Linux", returncode=2)
