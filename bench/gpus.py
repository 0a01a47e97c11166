"""How long `invoke gpus` takes for eight GPUs, from the start of Python to its end; none of them is there.

    .venv/bin/python bench/gpus.py [TIMES]

Two are at work, by processes of this host and in a container, if an engine of this host runs one. The driver is that of
tests/fakes: a real one takes its own time besides, above all where nothing keeps it initialised (persistence mode off).
Exits with 1 where the median is above 0.3 s.
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

from tests.fakes import GIB, FakeDriver, FakeGpu, new_uuid  # noqa: E402

from torchdock import holders  # noqa: E402

INVOKE = [str(ROOT / ".venv" / "bin" / "python"), "-m", "invoke", "gpus"]
LIMIT = 0.3  # seconds


def boxed() -> list[int]:
    """PIDs of this host's processes in containers."""
    pids = sorted(int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if holders.look(pid).box]


def main() -> int:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    now = int(time.time() * 1e6)
    samples = tuple((now - (100 - index) * 167_000, index % 2) for index in range(100))
    gpus = [FakeGpu(new_uuid(), nvlinks=("switch",) * 18, samples=samples, accounting=1) for _ in range(8)]
    users = [os.getpid(), *boxed()[:1]]
    with tempfile.TemporaryDirectory() as folder:
        driver = FakeDriver(Path(folder), gpus)
        for gpu, pid in zip(gpus, users, strict=False):
            driver.change(gpu.uuid, processes=((pid, 3 * GIB),), memory_used=3 * GIB, utilisation=99)
        env = {**os.environ, **driver.environment}
        found = []
        for _ in range(times + 1):  # the first is not counted
            started = time.perf_counter()
            subprocess.run(INVOKE, cwd=ROOT, env=env, check=True, stdin=subprocess.DEVNULL, capture_output=True)
            found.append(time.perf_counter() - started)
    median = statistics.median(found[1:])
    print(f"invoke gpus, 8 GPUs, {len(users)} at work: {median:.3f} s ({min(found[1:]):.3f} to {max(found[1:]):.3f})")
    return 0 if median <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
