"""What `invoke run` costs above the docker command that it runs: pairs, one after the other, and their medians.

    .venv/bin/python bench/launch_overhead.py [PAIRS]

The docker command is that of `invoke run --dry-run`, with a name of its own each time. Which of a pair goes first
alternates, so that what the machine does besides falls on both. Exits with 1 where the overhead is 1.0 s or more.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INVOKE = [str(ROOT / ".venv" / "bin" / "python"), "-m", "invoke"]
LIMIT = 1.0  # seconds; what DESIGN allows on 2 cores


def seconds(argv: list[str]) -> float:
    """How long a command takes; it must succeed."""
    started = time.perf_counter()
    subprocess.run(argv, cwd=ROOT, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.perf_counter() - started


def measure(pairs: int) -> list[tuple[float, float]]:
    """``(invoke run, docker run)`` in seconds, so many times, after one of each that is not counted."""
    shown = subprocess.run(
        [*INVOKE, "run", "--dry-run", "--", "true"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    docker = shlex.split(shown.stdout)
    where = docker.index("--name") + 1
    found = []
    for number in range(pairs + 1):
        docker[where] = f"torchdock-bench-{os.getpid()}-{number}"
        pair = {}
        for which in (0, 1) if number % 2 else (1, 0):
            pair[which] = seconds(docker if which else [*INVOKE, "run", "--", "true"])
        found.append((pair[0], pair[1]))
    return found[1:]


def main() -> int:
    """Measure, print a table, judge."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    found = measure(pairs)
    with_us, bare = ([pair[which] for pair in found] for which in (0, 1))
    above = [one - other for one, other in found]
    print(f"{pairs} pairs, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; seconds\n")
    print(f"{'':<12}{'median':>8}{'least':>8}{'most':>8}")
    for name, values in (("invoke run", with_us), ("docker run", bare), ("overhead", above)):
        print(f"{name:<12}{statistics.median(values):>8.3f}{min(values):>8.3f}{max(values):>8.3f}")
    overhead = statistics.median(above)
    print(f"\ninvoke run takes {statistics.median(with_us) / statistics.median(bare):.1f} times as long as docker run;")
    print(f"{overhead:.3f} s more, {'below' if overhead < LIMIT else 'NOT below'} {LIMIT} s")
    return 0 if overhead < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
