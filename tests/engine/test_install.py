"""pip and uv in a container: as the caller, on top of what is there, and never another torch.

Small wheels that stand in for others lie in the workspace, another torch among them: what a resolver would take if it
could.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import ROOT, Invoke
from tests.indexes import stand_in_wheel
from torchdock import container, sources
from torchdock.engine import Engine
from torchdock.state import CloneState

Inside = Callable[[int, str], "subprocess.CompletedProcess[str]"]

WHEELS: list[tuple[str, str, tuple[str, ...]]] = [
    ("torch", "2.0", ()),
    ("torch", "99.0", ()),
    ("nvidia-nccl-cu13", "99.0", ()),
    ("six", "1.0", ()),
    ("with-torch", "1.0", ("torch>=2", "numpy")),
    ("with-old-torch", "1.0", ("torch==2.0",)),
    ("with-new-nccl", "1.0", ("nvidia-nccl-cu13>=99",)),
]
FROM_WORKSPACE = (
    "export PIP_NO_INDEX=1 PIP_FIND_LINKS=/workspace/wheels UV_NO_INDEX=1 UV_FIND_LINKS=/workspace/wheels\n"
)
TELL_TORCH = """
python -c '
from importlib import metadata
import torch
print("torch", metadata.version("torch"), torch.__version__, "nccl", metadata.version("nvidia-nccl-cu13"))'
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder that every user can read, with the wheels."""
    folder = tmp_path / "work"
    (folder / "wheels").mkdir(parents=True)
    for name, version, requires in WHEELS:
        file, content = stand_in_wheel(name, version, requires)
        (folder / "wheels" / file).write_bytes(content)
    for path in (folder, *folder.rglob("*"), *folder.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    return folder


@pytest.fixture
def inside(engine: Engine, image: dict[str, Any], workspace: Path) -> Iterator[Inside]:
    """Run a script in a new container as a user; afterwards neither container nor cache volume is left."""
    launched: list[tuple[str, int]] = []

    def run(uid: int, script: str) -> subprocess.CompletedProcess[str]:
        plan = container.plan(
            engine, image["image"], container.Identity(uid, uid, (), f"user{uid}"), sources.gather(), role="run",
            clone="t", workspace=workspace, command=["sh", "-c", script],
        )  # fmt: skip
        launched.append((plan.name, uid))
        return subprocess.run(plan.argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)

    yield run
    for name, uid in launched:
        engine.remove_container(name)
        engine.client.volumes.get(f"torchdock-cache-{uid}").remove()


@pytest.mark.parametrize(("tool", "uid"), [("pip", 200000), ("uv pip", 1234)])
def test_any_user_adds_replaces_and_removes_packages(inside: Inside, tool: str, uid: int) -> None:
    yes = "--yes" if tool == "pip" else ""
    done = inside(
        uid,
        f"{FROM_WORKSPACE} {tool} install six==1.0 with-torch && {tool} uninstall {yes} idna\n"
        f"id -u; python -c 'import six, with_torch; print(six.__version__)'; {tool} list",
    )
    assert done.returncode == 0, done.stderr
    assert f"\n{uid}\n1.0\n" in f"\n{done.stdout}"
    assert "with-torch" in done.stdout and "\nidna " not in done.stdout
    assert "warning" not in done.stderr.lower(), done.stderr


@pytest.mark.parametrize("tool", ["uv pip", pytest.param("pip", marks=pytest.mark.slow)])
def test_no_package_brings_another_torch(inside: Inside, tool: str) -> None:
    """One that is content with this torch gets it; one that needs another, or another CUDA, is refused."""
    fits, refused = ["with-torch", "--upgrade torch"], ["with-old-torch", "torch==2.0", "with-new-nccl"]
    tries = [f"{tool} install {asked} >/tmp/said 2>&1; echo $?; cat /tmp/said >&2" for asked in [*fits, *refused]]
    done = inside(1234, "\n".join([FROM_WORKSPACE, TELL_TORCH, *tries, TELL_TORCH]))
    before, *codes, after = done.stdout.splitlines()
    assert codes == ["0", "0", "1", "1", "1"], done.stderr
    assert before == after and before.startswith("torch 2.14.1 2.14.1+cu130 nccl ")
    for named in ("with-old-torch", "torch==2.0", "torch==2.14.1", "nvidia-nccl-cu13"):  # both sides, and who asked
        assert named in done.stderr


PROJECT = """
[build-system]
requires = ["setuptools>=61", "torch"]
build-backend = "setuptools.build_meta"

[project]
name = "sample-project"
version = "0.3"
dependencies = ["with-torch>=1", "torch>=2", "pywin32; sys_platform == 'win32'"]

[tool.setuptools]
py-modules = ["sample_project"]
"""
# What is built here must be built with the torch that it will run with.
SETUP = """
import importlib.util, setuptools
assert importlib.util.find_spec("torch").origin.startswith("/opt/venv/")
setuptools.setup()
"""


@pytest.fixture
def project(engine: Engine, image: dict[str, Any], workspace: Path, invoke: Invoke) -> Iterator[tuple[Path, str]]:
    """A project and its workspace container (without the quick checks of `up`)."""
    (workspace / "pyproject.toml").write_text(PROJECT)
    (workspace / "setup.py").write_text(SETUP)
    (workspace / "sample_project.py").write_text("NUMBER = 7\n")
    who, clone = container.identity(engine), CloneState(ROOT).clone
    name = container.workspace_name(who, clone, workspace)
    plan = container.plan(
        engine, image["image"], who, sources.gather(), role="up", name=name, clone=clone, workspace=workspace,
        command=container.STAY,
    )  # fmt: skip
    container.up(engine, plan)
    yield workspace, name
    engine.remove_container(name)


def added(invoke: Invoke, name: str) -> list[str]:
    """What `invoke ps` shows as added to a container."""
    listed = json.loads(invoke("ps", "--json").stdout)["containers"]
    return next(one["added"] for one in listed if one["container"] == name)


def test_a_project_is_installed_in_the_workspace_container(
    engine: Engine, invoke: Invoke, project: tuple[Path, str]
) -> None:
    folder, name = project
    lacking = "Not in this environment: with-torch>=1, which pyproject.toml declares."
    # setuptools for the build comes from this host's index; everything else is here.
    done = invoke("shell", "-w", str(folder), stdin="pip install -q --find-links wheels -e . && echo installed\n")
    assert done.stdout.splitlines()[-1:] == ["installed"], done.stderr
    assert lacking in done.stderr
    later = invoke("shell", "-w", str(folder), stdin="cd /; python -c 'import sample_project as s; print(s.NUMBER)'\n")
    assert later.stdout == "7\n", later.stderr
    assert "Not in this environment" not in later.stderr
    assert added(invoke, name) == ["sample-project 0.3", "with-torch 1.0"]
    assert folder.joinpath("sample_project.egg-info").stat().st_uid == os.getuid()
    # A container of its own has none of it, and says so.
    alone = invoke("run", "-w", str(folder), "--", "python", "-c", "import with_torch")
    assert alone.returncode == 1 and lacking in alone.stderr
    assert sum("Not in this environment" in line for line in alone.stderr.splitlines()) == 1
    assert invoke("down", "-w", str(folder)).returncode == 0
    assert container.find_up(engine, name) is None


def test_a_workspace_that_has_what_it_declares_hears_nothing(invoke: Invoke, workspace: Path) -> None:
    (workspace / "requirements.txt").write_text("torch>=2\nnumpy\nTorchVision ; python_version >= '3.13'\n")
    done = invoke("run", "-w", str(workspace), "--", "true")
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if not line.startswith("In torchdock-")] == []


def test_the_index_of_this_host_is_pips_and_uvs_by_name(invoke: Invoke, engine: Engine, image: dict[str, Any]) -> None:
    """The URL arrives inside and in further commands, renewed, and stands in no command."""
    token = uuid.uuid4().hex
    env = {"UV_DEFAULT_INDEX": f"https://me:{token}@index.example/simple"}
    tell = ["--", "sh", "-c", 'echo "$PIP_INDEX_URL $UV_DEFAULT_INDEX"']
    done = invoke("run", *tell, env=env)
    assert done.stdout == f"{env['UV_DEFAULT_INDEX']} {env['UV_DEFAULT_INDEX']}\n", done.stderr
    dry = invoke("run", "--dry-run", *tell, env=env)
    assert "--env PIP_INDEX_URL --env UV_DEFAULT_INDEX" in dry.stdout
    assert token not in dry.stdout + dry.stderr + done.stderr
