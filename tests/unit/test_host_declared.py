"""What a workspace declares, and the one line about what of it is not there."""

import os
from pathlib import Path

import pytest

from torchdock import declared
from torchdock.declared import Declared

PINS = {"torch": "2.14.1", "numpy": "2.5.5", "typing-extensions": "4.16.0"}


def unmet(folder: Path, there: "dict[str, str] | None" = None) -> "dict[str, list[str]]":
    found = declared.gather(folder)
    return declared.unmet(found, PINS if there is None else there, python="3.13", machine="x86_64")


def project(folder: Path, *dependencies: str) -> None:
    listed = ", ".join(f'"{one}"' for one in dependencies)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "My.Project"\ndependencies = [{listed}]\n')


def test_nothing_is_declared_where_there_is_no_file(tmp_path: Path) -> None:
    assert declared.gather(tmp_path) == Declared()
    assert declared.gather(tmp_path / "none") == Declared()
    assert declared.warning(Declared(), {}) == ""


@pytest.mark.parametrize(
    ("requirement", "phrase"),
    [
        ("einops", "einops"),
        ("einops >= 0.8", "einops>=0.8"),
        ("numpy<2", "numpy<2 (2.5.5 is there)"),
        ("torch==2.0", "torch==2.0 (2.14.1 is there)"),
        ("numpy", ""),
        ("NumPy>=2,<3", ""),
        ("typing.extensions>=4", ""),
        ("torch==2.14.1+cpu", "torch==2.14.1+cpu (2.14.1 is there)"),
        ("einops; python_version < '3.13'", ""),
        ("einops; python_version >= '3.13'", "einops"),
        ("einops; python_full_version >= '3.13'", "einops"),
        ("pywin32; sys_platform == 'win32'", ""),
        ("einops; platform_machine == 'x86_64' and platform_system == 'Linux'", "einops"),
        ("einops; platform_machine == 'aarch64'", ""),
        ("einops; extra == 'more'", ""),
        ("einops[torch]>=1", "einops>=1"),
        ("numpy @ https://token@example.org/numpy.whl", ""),
        ("einops @ https://token@example.org/einops.whl", "einops"),
        ("my-project[more]", ""),
        ("no requirement at all", ""),
    ],
)
def test_a_dependency_is_met_or_named(requirement: str, phrase: str, tmp_path: Path) -> None:
    project(tmp_path, requirement)
    assert unmet(tmp_path) == ({"pyproject.toml": [phrase]} if phrase else {})


def test_what_is_installed_counts_before_its_release(tmp_path: Path) -> None:
    """A build of a release to come satisfies what pip let in."""
    project(tmp_path, "torch>=2.14")
    assert unmet(tmp_path, {"torch": "2.15.0.dev20261101"}) == {}
    assert unmet(tmp_path, {"torch": "2.14.1+cpu"}) == {}


@pytest.mark.parametrize(
    "text",
    ["", "[tool.x]\ny = 1\n", '[project]\nname = "a"\ndynamic = ["dependencies"]\n', "project = 3\n",
     '[project]\ndependencies = "einops"\n', "[project]\ndependencies = [3]\n"],
)  # fmt: skip
def test_a_project_without_a_list_of_dependencies_declares_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert declared.gather(tmp_path) == Declared()


def test_lists_are_read_as_pip_reads_them(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "requirements.txt").write_text(
        "--index-url https://token@mirror/simple\n-e .\n-c pins.txt\n./wheels/x.whl\ngit+https://github.com/a/b\n"
        "# a comment\neinops==0.8.2 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\ntimm>=1 # why\n"
        "-r sub/more.txt\n--requirement=requirements.txt\n"
    )
    (tmp_path / "sub" / "more.txt").write_text("--requirement other.in\nnumpy\n")
    (tmp_path / "sub" / "other.in").write_text("tabulate\n")
    (tmp_path / "requirements.in").write_text("timm>=1\nrich\n")
    assert unmet(tmp_path) == {
        "requirements.txt": ["einops==0.8.2", "timm>=1", "tabulate"],
        "requirements.in": ["rich"],  # what was named once is not named again
    }


def test_the_line_names_a_few_their_files_and_the_remedy(tmp_path: Path) -> None:
    project(tmp_path, "a", "b", "numpy<2")
    line = declared.warning(declared.gather(tmp_path), unmet(tmp_path))
    assert line == (
        "Not in this environment: a, b, numpy<2 (2.5.5 is there), which pyproject.toml declares. "
        "`pip install -e .` in the container of `invoke up` lasts as long as that"
    )
    (tmp_path / "requirements.txt").write_text("c\nd\ne\n")
    line = declared.warning(declared.gather(tmp_path), unmet(tmp_path))
    assert "(2.5.5 is there), c and 2 more, which pyproject.toml and requirements.txt declare." in line
    (tmp_path / "pyproject.toml").unlink()
    assert "`pip install -r requirements.txt`" in declared.warning(declared.gather(tmp_path), unmet(tmp_path))


def test_a_damaged_file_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project\n")
    (tmp_path / "requirements.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "requirements.in").write_text("rich\n")
    found = declared.gather(tmp_path)
    line = declared.warning(found, unmet(tmp_path))
    assert unmet(tmp_path) == {"requirements.in": ["rich"]}
    assert "; pyproject.toml cannot be read (" in line and "at line 1" in line
    assert line.endswith("; requirements.txt cannot be read (it is not UTF-8), so what it declares is not compared")
    assert "\n" not in line


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "requirements.txt")
    (tmp_path / "requirements.in").mkdir()
    assert declared.gather(tmp_path) == Declared()


def test_a_link_to_itself_declares_nothing(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").symlink_to("requirements.txt")
    (tmp_path / "requirements.in").write_text("-r requirements.txt\nrich\n")
    assert unmet(tmp_path) == {"requirements.in": ["rich"]}


def test_what_is_nested_without_end_is_said(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f"x = {'[' * 5000}{']' * 5000}\n")
    (tmp_path / "requirements.txt").write_text(f"a; {'(' * 5000}python_version > '3'{')' * 5000}\n")
    (tmp_path / "requirements.in").write_text("rich\n")
    line = declared.warning(declared.gather(tmp_path), unmet(tmp_path))
    assert unmet(tmp_path) == {"requirements.in": ["rich"]}
    assert "pyproject.toml cannot be read (it is nested too deeply)" in line


def test_a_file_without_end_is_said_and_not_read_to_its_middle(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("einops\n" * 200_000)
    found = declared.gather(tmp_path)
    assert not found.requirements
    assert found.damaged == ("requirements.txt cannot be read (it is larger than 1024 KiB)",)
