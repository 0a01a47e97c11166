"""The wall around inside: it runs in the image, where docker, invoke and rich are not."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from torchdock import inside

SOURCE = Path(inside.__file__).parents[2]
INSIDE = sorted((SOURCE / "torchdock" / "inside").rglob("*.py"))
SUITE = sorted((SOURCE.parent / "tests" / "container").glob("*.py"))
ALLOWED = sys.stdlib_module_names | {"torch", "torchvision", "numpy", "pytest", "pynvml", "jupyterlab", "tensorboard"}


def imported(nodes: "list[ast.stmt] | list[ast.AST]") -> "set[str]":
    """The modules that these statements import, dotted."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def foreign(file: Path, allowed: "frozenset[str] | set[str]") -> "set[str]":
    names = imported(list(ast.walk(ast.parse(file.read_text(encoding="utf-8")))))
    return {
        name
        for name in names
        if name.partition(".")[0] not in allowed and not f"{name}.".startswith("torchdock.inside.")
    }


@pytest.mark.parametrize("file", INSIDE, ids=lambda file: str(file.relative_to(SOURCE)))
def test_inside_imports_only_what_the_image_has(file: Path) -> None:
    assert foreign(file, ALLOWED) == set()


@pytest.mark.parametrize("file", SUITE, ids=lambda file: file.name)
def test_the_suite_imports_only_what_the_image_has(file: Path) -> None:
    assert foreign(file, ALLOWED | {"PIL"}) == set()


def test_the_wall_is_not_blind(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f():\n    import docker\n    from torchdock import engine\n")
    assert foreign(tmp_path / "bad.py", ALLOWED) == {"docker", "torchdock.engine"}


def test_only_workloads_and_what_runs_operators_need_torch_to_be_imported() -> None:
    """All else can be imported, read and tested on the host, with docker, invoke, rich and torch blocked."""
    running = {"laws.py", "proof.py", "references.py"}
    files = [
        file
        for file in INSIDE
        if "workloads" not in file.parts and not ("operators" in file.parts and file.name in running)
    ]
    assert any(file.parent.name == "operators" for file in files)
    modules = [".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for file in files]
    assert "torchdock.inside.check" in modules
    blocked = "for name in ('docker', 'invoke', 'rich', 'torch', 'torchvision', 'numpy'): sys.modules[name] = None"
    program = f"import sys, importlib\n{blocked}\nfor name in {modules!r}: importlib.import_module(name)\n"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_travels_with_the_image_is_small() -> None:
    files = [
        *(file for file in (SOURCE / "torchdock" / "inside").rglob("*") if "__pycache__" not in file.parts),
        *SUITE,
    ]
    # With locks and entrypoint the layer that changes with each edit stays below 1 MB.
    assert sum(file.stat().st_size for file in files if file.is_file()) < 700_000
