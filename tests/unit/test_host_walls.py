"""The walls of the host side: no module of it needs torch, and tasks.py needs only invoke until a task runs."""

import os
import subprocess
import sys
from pathlib import Path

from given import ROOT

MODULES = sorted(path.stem for path in (ROOT / "src/torchdock").glob("*.py") if path.stem != "__init__")
WALL = """
import importlib, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is on the other side of the wall")
sys.meta_path.insert(0, Wall())
"""


def python(program: str, *more: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT), *more))}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, cwd="/")


def test_every_module_imports_without_torch() -> None:
    assert {"engine", "image", "container", "gpus", "doctor", "bootstrap"} <= set(MODULES)
    imports = f"for name in {MODULES!r}: importlib.import_module('torchdock.' + name)\n"
    loaded = "print([name for name in sys.modules if name.startswith('torchdock.inside')])"
    done = python(WALL.format(blocked={"torch", "torchvision", "numpy"}) + imports + loaded)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_the_wall_is_not_blind(tmp_path: Path) -> None:
    (tmp_path / "leak.py").write_text("import numpy.linalg\n")
    done = python(WALL.format(blocked={"numpy"}) + "import leak", str(tmp_path))
    assert done.returncode == 1 and "numpy is on the other side" in done.stderr


def test_making_the_environment_needs_the_standard_library_alone() -> None:
    env = {"PYTHONPATH": str(ROOT / "src")}
    program = "import sys, torchdock.bootstrap; print(any('site-packages' in path for path in sys.path))"
    done = subprocess.run([sys.executable, "-S", "-c", program], env=env, capture_output=True, text=True, cwd="/")
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_tasks_loads_the_standard_library_and_invoke_until_a_task_runs() -> None:
    program = (
        "import sys; before = set(sys.modules); import tasks\n"
        "names = set(sys.modules) - before\n"
        "names = {name if name.startswith('torchdock') else name.partition('.')[0] for name in names}\n"
        "print(sorted(names - set(sys.stdlib_module_names)))"
    )
    done = python(program)
    assert (done.stdout, done.stderr) == ("['invoke', 'tasks', 'torchdock', 'torchdock.commandline']\n", "")
