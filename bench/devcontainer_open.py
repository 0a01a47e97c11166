"""From `devcontainer up` to a usable `devcontainer exec`, with the image present and without the checks on creation.

    .venv/bin/python bench/devcontainer_open.py [TIMES]

Opens this clone as a new container so many times, with .venv as it is, by the dev containers CLI of the engine tests,
and removes it each time, with its HOME volume. Exits with 1 where the median is 8 s or more. Needs npm.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINNED = ROOT / "tests" / "engine" / "devcontainers-cli"
CONFIG = ROOT / ".devcontainer" / "cuda"
LIMIT = 8.0  # seconds; on 2 cores


def install(folder: Path) -> Path:
    """The dev containers CLI, by the hash in package-lock.json."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PINNED / name, folder)
    subprocess.run(["npm", "ci", "--silent"], cwd=folder, check=True)
    return folder / "node_modules" / ".bin" / "devcontainer"


def measure(cli: Path) -> float:
    """Seconds for one new container; it is gone afterwards."""
    where = ["--workspace-folder", str(ROOT), "--config", str(CONFIG / "devcontainer.json")]
    started = time.perf_counter()
    try:
        for words in (["up", *where, "--skip-post-create"], ["exec", *where, "true"]):
            subprocess.run([str(cli), *words], check=True, stdin=subprocess.DEVNULL, capture_output=True)
        return time.perf_counter() - started
    finally:
        files = ["-f", str(CONFIG / "compose.yml"), "-f", str(ROOT / ".devcontainer" / "environment.yml")]
        subprocess.run(["docker", "compose", *files, "down", "--timeout", "1"], check=True, capture_output=True)
        names = dict(line.split("=", 1) for line in (CONFIG / ".env").read_text().splitlines())
        subprocess.run(["docker", "volume", "rm", names["TORCHDOCK_HOME"]], check=True, capture_output=True)


def main() -> int:
    """Measure, print, judge."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    if (CONFIG / ".env").exists():
        names = dict(line.split("=", 1) for line in (CONFIG / ".env").read_text().splitlines())
        label = f"label=com.docker.compose.project={names['TORCHDOCK_PROJECT']}"
        there = subprocess.run(["docker", "ps", "-aq", "--filter", label], capture_output=True, text=True, check=True)
        if there.stdout.strip():
            sys.exit("This clone is open as a dev container, which this would remove: measure in another clone.")
    with tempfile.TemporaryDirectory() as name:
        cli = install(Path(name))
        measure(cli)  # not counted: files are read for the first time
        found = [measure(cli) for _ in range(times)]
    median = statistics.median(found)
    print(f"{times} times, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; up and exec, seconds")
    print(f"median {median:.1f}, least {min(found):.1f}, most {max(found):.1f}")
    print(f"{'below' if median < LIMIT else 'NOT below'} {LIMIT} s")
    return 0 if median < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
