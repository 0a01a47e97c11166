"""``make test``: each stage in order, its output as it comes, the first failure ends it; then coverage and one total.

``--all`` adds the tests marked slow; ``--only lint|unit|image|engine|container`` runs one stage. The engine tests that
build run in a second clone, beside the others, which wait for containers most of their time. With ``--all``, which also
measures, they come one after the other.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv" / "bin"
STATE = ROOT / ".torchdock"
JUNIT = ("unit.xml", "engine.xml", "building.xml")
# Files of tests/engine that build, lock and compare, and neither look at all containers of their user nor measure.
BUILDING = (
    *("bits", "cpu", "debian", "devcontainer", "image", "lock", "share", "verify"),
    *("planted_environment", "planted_machine", "planted_operators", "planted_training"),  # launched by docker alone
)


def stages(everything: bool) -> dict[str, list[list[str]]]:
    """The commands of each stage, in order."""
    measured = [str(BIN / "coverage"), "run", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    speed = [] if everything else ["-m", "not slow"]
    engine = [*measured, "--durations=8", *speed]
    building = [f"tests/engine/test_{name}.py" for name in BUILDING]
    others = ["tests/engine", *(f"--ignore={path}" for path in building)]
    return {
        "lint": [
            [str(BIN / "ruff"), "check", "."],
            [str(BIN / "ruff"), "format", "--check", "."],
            [str(BIN / "mypy")],
            [str(BIN / "zizmor"), "--offline", "--strict-collection", "--persona=auditor", "--quiet", ".github"],
        ],
        "unit": [[*measured, "tests/unit", f"--junit-xml={STATE}/unit.xml"]],
        # One build serves the engine tests and the container; it also gets the engine going on a bare machine.
        "image": [[str(BIN / "invoke"), "build"]],
        "engine": [
            [*engine, *others, f"--junit-xml={STATE}/engine.xml"],
            [*engine, *building, f"--junit-xml={STATE}/building.xml"],
        ],
        "container": [[str(BIN / "invoke"), "test"]],
    }


def make_coverage_folder(state: Path) -> None:
    """Where what was measured goes; as in /tmp, of every user: some tests run `invoke` as another one."""
    folder = state / "coverage"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o1777)


@contextmanager
def second_clone() -> Iterator[Path]:
    """This tree once more, with the tools and the build records of this one; removed afterwards."""
    unwanted = shutil.ignore_patterns(".git", ".venv", ".torchdock", "__pycache__", ".env", "host.yml*")
    with tempfile.TemporaryDirectory(prefix="torchdock-second-") as folder:
        Path(folder).chmod(0o755)
        clone = Path(folder) / "clone"
        shutil.copytree(ROOT, clone, symlinks=True, ignore=unwanted)
        (clone / ".venv").symlink_to(ROOT / ".venv")
        make_coverage_folder(clone / ".torchdock")
        if (STATE / "builds").is_dir():
            shutil.copytree(STATE / "builds", clone / ".torchdock" / "builds")
        yield clone
        for data in clone.glob(".torchdock/coverage/data*"):
            shutil.copy(data, STATE / "coverage")


def begin(name: str, command: list[str], root: Path = ROOT, log: IO[bytes] | None = None, **variables: str) -> Stage:
    """Start a command of a stage; what it prints goes to ``log`` where there is one. ``variables``: more of them."""
    words = " ".join(Path(word).name if word.startswith("/") else word for word in command)
    heading = f"\n=== {name}: {words}\n"
    if log is None:
        print(heading, end="", flush=True)
    else:
        log.write(heading.encode())
        log.flush()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
    return Stage(name, process, time.monotonic())


@dataclass(frozen=True)
class Stage:
    """A command that runs."""

    name: str
    process: subprocess.Popen[bytes]
    begun: float

    def end(self) -> int:
        """Wait for it, and end it with us; its exit code."""
        try:
            code = self.process.wait()
        except BaseException:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()
            raise
        took = time.monotonic() - self.begun
        print(f"=== {self.name}: {'good' if code == 0 else f'exit code {code}'}, {took:.0f} s", flush=True)
        return code


def one_after_the_other(name: str, commands: list[list[str]]) -> int:
    """The exit code of the first command that fails, else 0."""
    return next((code for command in commands if (code := begin(name, command).end())), 0)


def side_by_side(name: str, first: list[str], second: list[str]) -> int:
    """Two commands at the same time, the second in a clone of its own, its output after that of the first."""
    with second_clone() as clone, tempfile.TemporaryFile() as log:
        # A folder of its own for temporary files, which goes with all that is left in there; by it the tests know that
        # this clone goes too, and with it the note that it uses the image.
        beside = begin(name, second, clone, log, TMPDIR=str(clone.parent))
        try:
            code = begin(name, first).end()
        except BaseException:
            beside.process.send_signal(signal.SIGINT)
            raise
        finally:
            beside.process.wait()
            log.seek(0)
            sys.stdout.flush()
            shutil.copyfileobj(log, sys.stdout.buffer)
            sys.stdout.flush()
        return code or beside.end()


def total() -> str:
    """``N passed, N failed, N skipped`` over the reports of this run."""
    reports = [*(STATE / name for name in JUNIT), *sorted(STATE.glob("reports/*/report.xml"))[-1:]]
    count = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for report in reports:
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            for key in count:
                count[key] += int(suite.get(key) or 0)
    failed = count["failures"] + count["errors"]
    return f"{count['tests'] - failed - count['skipped']} passed, {failed} failed, {count['skipped']} skipped"


def main() -> int:
    """Run; returns the exit code of the first stage that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--only", choices=list(stages(False)))
    chosen = parser.parse_args()
    # Started with `&` by a script, it would be ignored, and so in every program whose Ctrl-C is tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    make_coverage_folder(STATE)
    for old in (*STATE.glob("coverage/data*"), *(STATE / name for name in JUNIT)):
        old.unlink(missing_ok=True)
    started = time.monotonic()
    for name, commands in stages(chosen.all).items():
        if chosen.only not in (None, name):
            continue
        beside = name == "engine" and not chosen.all
        code = side_by_side(name, *commands) if beside else one_after_the_other(name, commands)
        if code != 0:
            return code
    if chosen.only is None:
        coverage = str(BIN / "coverage")
        subprocess.run([coverage, "combine", "-q"], cwd=ROOT, check=True)
        subprocess.run([coverage, "report"], cwd=ROOT, check=True)
        print(f"\nmake test: {time.monotonic() - started:.0f} s")
        print(total())
    return 0


if __name__ == "__main__":
    sys.exit(main())
