"""What choosing and leasing a GPU adds to a launch: pairs of `invoke run` with one GPU of eight and with none, medians.

    .venv/bin/python bench/lease_overhead.py [PAIRS]

The GPUs are not there (tests/fakes), and the engine hands them over by CDI, as root may have it do. Which
of a pair goes first alternates. Exits with 1 where a GPU adds 0.2 s or more.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.fakes import FakeDriver, FakeGpu, new_uuid  # noqa: E402

from torchdock import lease  # noqa: E402

LIMIT = 0.2  # seconds


def seconds(env: dict[str, str], *words: str) -> float:
    """How long a launch takes; it must succeed."""
    argv = [str(ROOT / ".venv" / "bin" / "python"), "-m", "invoke", "run", *words, "--", "true"]
    started = time.perf_counter()
    subprocess.run(argv, cwd=ROOT, env=env, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.perf_counter() - started


def main() -> int:
    """Measure, print a table, judge."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    found = []
    with tempfile.TemporaryDirectory() as folder:
        with FakeDriver(Path(folder), [FakeGpu(new_uuid()) for _ in range(8)]).handed_over() as driver:
            env = {**os.environ, **driver.environment}
            for number in range(pairs + 1):
                pair = {}
                for gpus in ("1", "0") if number % 2 else ("0", "1"):
                    pair[gpus] = seconds(env, "--gpus", gpus)
                found.append((pair["1"], pair["0"]))
        for gpu in driver.gpus:
            for suffix in ("", lease.PENDING):
                lease.file(lease.folder(), gpu.uuid, suffix).unlink(missing_ok=True)
    rows = {
        "one GPU of 8": [one for one, _ in found[1:]],  # the first pair is not counted
        "none": [other for _, other in found[1:]],
        "the GPU adds": [one - other for one, other in found[1:]],
    }
    print(f"{pairs} pairs, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; seconds\n")
    print(f"{'':<14}{'median':>8}{'least':>8}{'most':>8}")
    for name, values in rows.items():
        print(f"{name:<14}{statistics.median(values):>8.3f}{min(values):>8.3f}{max(values):>8.3f}")
    added = statistics.median(rows["the GPU adds"])
    print(f"\n{added:.3f} s more, {'below' if added < LIMIT else 'NOT below'} {LIMIT} s")
    return 0 if added < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
