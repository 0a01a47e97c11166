"""``make test``: each stage in order, its output as it comes, the first failure ends it; then coverage and one total.

``--all`` adds the tests marked slow; ``--only lint|unit|image|engine|container`` runs one stage.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv" / "bin"
STATE = ROOT / ".torchdock"


def stages(everything: bool) -> dict[str, list[list[str]]]:
    """The commands of each stage, in order."""
    measured = [str(BIN / "coverage"), "run", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    speed = [] if everything else ["-m", "not slow"]
    return {
        "lint": [
            [str(BIN / "ruff"), "check", "."],
            [str(BIN / "ruff"), "format", "--check", "."],
            [str(BIN / "mypy")],
        ],
        "unit": [[*measured, "tests/unit", f"--junit-xml={STATE}/unit.xml"]],
        # One build serves the engine tests and the container; it also gets the engine going on a bare machine.
        "image": [[str(BIN / "invoke"), "build"]],
        "engine": [[*measured, "tests/engine", "--durations=8", *speed, f"--junit-xml={STATE}/engine.xml"]],
        "container": [[str(BIN / "invoke"), "test"]],
    }


def total() -> str:
    """``N passed, N failed, N skipped`` over the reports of this run."""
    reports = [STATE / "unit.xml", STATE / "engine.xml", *sorted(STATE.glob("reports/*/report.xml"))[-1:]]
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
    (STATE / "coverage").mkdir(parents=True, exist_ok=True)
    for old in (*STATE.glob("coverage/data*"), STATE / "unit.xml", STATE / "engine.xml"):
        old.unlink(missing_ok=True)
    started = time.monotonic()
    for name, commands in stages(chosen.all).items():
        if chosen.only not in (None, name):
            continue
        for command in commands:
            begun = time.monotonic()
            print(
                f"\n=== {name}: {' '.join(Path(word).name if word.startswith('/') else word for word in command)}",
                flush=True,
            )
            code = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}).returncode
            print(
                f"=== {name}: {'good' if code == 0 else f'exit code {code}'}, {time.monotonic() - begun:.0f} s",
                flush=True,
            )
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
