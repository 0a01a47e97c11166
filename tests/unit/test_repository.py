"""The tree itself: line ends, no host names of package registries, and documents that agree with the code."""

import re
import subprocess

import pytest
import tasks
from given import ROOT

LISTED = subprocess.run(
    ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split("\0")
FILES = sorted({ROOT / name for name in LISTED if name and (ROOT / name).is_file()})
# Which index or mirror is used is the host's matter, and an address in here would be a second one.
REGISTRIES = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "deb." + "debian.org",
    "archive." + "ubuntu.com",
]


def texts() -> "dict[str, bytes]":
    """The content of every file that is text."""
    contents = {str(path.relative_to(ROOT)): path.read_bytes() for path in FILES}
    return {name: content for name, content in contents.items() if b"\0" not in content}


def test_the_tree_is_seen() -> None:
    assert {"tasks.py", "Makefile", "docker/cuda.Dockerfile", "src/torchdock/engine.py"} <= set(texts())
    assert "src/torchdock/inside/workloads/data/digits.csv.gz" not in texts()


def test_no_file_has_windows_line_ends() -> None:
    assert [name for name, content in texts().items() if b"\r\n" in content] == []


@pytest.mark.parametrize("host", REGISTRIES)
def test_no_package_registry_is_named(host: str) -> None:
    assert [name for name, content in texts().items() if host.encode() in content] == []


def test_shell_scripts_say_which_shell() -> None:
    scripts = [path for path in FILES if path.suffix == ".sh" or path == ROOT / ".ci/run"]
    assert len(scripts) >= 5
    assert [path for path in scripts if not path.read_bytes().startswith(b"#!")] == []


def rows(text: str) -> "list[str]":
    """The names in the first column of markdown tables: | `name` | ... |"""
    return re.findall(r"^\| *`([\w-]+)[^`|]*` *\|", text, re.M)


def test_the_readme_has_a_row_for_each_task() -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Tasks\n")[2].partition("\n## ")[0]
    assert sorted(rows(section)) == sorted(tasks.namespace.tasks)


def test_the_readme_names_no_other_task() -> None:
    named = set(re.findall(r"\binvoke ([a-z]+)\b", (ROOT / "README.md").read_text()))
    assert named and named - set(tasks.namespace.tasks) == set()


def test_make_has_the_short_names() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.M))
    assert targets >= {"help", "up", "down", "build", "test", "test-gpu", "shell", "doctor", "clean"}
    called = set(re.findall(r"invoke ([a-z]+)", text))
    assert called and called - set(tasks.namespace.tasks) - {"tasks"} == set()


@pytest.mark.parametrize(("text", "found"), [("| `run` | x |", ["run"]), ("|`a`| x |", ["a"]), ("| run | x |", [])])
def test_rows_are_read(text: str, found: "list[str]") -> None:
    assert rows(text) == found


@pytest.mark.parametrize("made", [".venv/bin/python", ".torchdock/lock", "src/torchdock/__pycache__/x.pyc"])
def test_what_is_made_while_working_is_ignored(made: str) -> None:
    if not (ROOT / ".git").exists():
        assert made.split("/")[0] in (ROOT / ".gitignore").read_text() or "__pycache__" in made
        return
    assert subprocess.run(["git", "check-ignore", "-q", made], cwd=ROOT).returncode == 0


def test_each_planted_fault_is_caught_by_a_check_that_is_there() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n### Planted faults\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| ([^|]+) \| `(\w+)::(\w+)` \| `(\w+)` \|$", section, re.M)
    assert len(found) >= 15 and len(found) == len(set(found)) == section.count("\n| ") - 1
    for fault, topic, check, planted in found:
        assert f"\ndef {check}(" in (ROOT / f"tests/container/test_{topic}.py").read_text(), fault
        assert check in (ROOT / f"tests/engine/test_planted_{planted}.py").read_text(), fault
