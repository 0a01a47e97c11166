"""Was a GPU ever held twice? Reads what containers themselves wrote (hold.c), and nothing else of torchdock's.

    python -m tests.engine.intervals FOLDER ...

Each file is one life of a container: its first and its last moment in nanoseconds, and the GPUs that it had. Prints a
JSON document; exit code 1 where two lives overlap on one GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True, order=True)
class Life:
    """One container on one GPU, from ``first`` to ``last``."""

    first: int
    last: int
    gpu: str
    origin: str


def read(files: Iterable[tuple[str, str]]) -> list[Life]:
    """The lives in these files: (name, text)."""
    found = []
    for name, text in files:
        first, last, *gpus = text.split()
        found += [Life(int(first), int(last), gpu, name) for gpu in gpus]
    return found


def overlaps(lives: Iterable[Life]) -> list[tuple[Life, Life]]:
    """Each life that began before an earlier one on the same GPU had ended, with that one."""
    by_gpu: dict[str, list[Life]] = {}
    for life in sorted(lives):
        by_gpu.setdefault(life.gpu, []).append(life)
    found = []
    for lives_of_one in by_gpu.values():
        latest = lives_of_one[0]
        for _, life in pairwise(lives_of_one):
            if life.first <= latest.last:
                found.append((latest, life))
            latest = max(latest, life, key=lambda one: one.last)
    return found


def judge(lives: Iterable[Life]) -> dict[str, Any]:
    """How many lives each GPU has seen, and which overlap."""
    lives = list(lives)
    gpus = sorted({life.gpu for life in lives})
    return {
        "lives": {gpu: sum(life.gpu == gpu for life in lives) for gpu in gpus},
        "seconds": {gpu: sum(life.last - life.first for life in lives if life.gpu == gpu) / 1e9 for gpu in gpus},
        "twice": [[vars(one) for one in pair] for pair in overlaps(lives)],
    }


def main() -> int:
    """Read, print, judge."""
    paths = [path for folder in sys.argv[1:] for path in sorted(Path(folder).iterdir())]
    found = judge(read((str(path), path.read_text()) for path in paths))
    print(json.dumps(found))
    return 1 if found["twice"] else 0


if __name__ == "__main__":
    sys.exit(main())
