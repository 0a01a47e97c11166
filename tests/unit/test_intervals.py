"""The judge of the storm of launches sees a GPU that was held twice."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.engine.intervals import judge, read

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("texts", "twice"),
    [
        (["1 5 a", "6 9 a"], []),
        (["1 5 a", "5 9 a"], [("0", "1")]),
        (["1 9 a", "2 3 b", "4 6 a"], [("0", "2")]),
        (["1 5 a", "1 5 b"], []),
        (["1 5 a b", "3 4 b"], [("0", "1")]),
        # a long one that outlives a short one within it
        (["1 20 a", "2 3 a", "10 11 a"], [("0", "1"), ("0", "2")]),
        (["1 5 a", "1 5 a"], [("0", "1")]),
        (["7 9", "1 20"], []),
    ],
)
def test_two_lives_on_one_gpu_at_once_are_found(texts: list[str], twice: list[tuple[str, str]]) -> None:
    found = judge(read((str(number), text) for number, text in enumerate(texts)))
    assert [(one["origin"], other["origin"]) for one, other in found["twice"]] == twice


def test_the_program_fails_by_it(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1 5 a\n")
    judged = [sys.executable, "-m", "tests.engine.intervals", str(tmp_path)]
    assert subprocess.run(judged, cwd=ROOT, capture_output=True).returncode == 0
    (tmp_path / "two").write_text("00000000000000000005 00000000000000000006 a\n")
    done = subprocess.run(judged, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert '"twice": [[{"first": 1' in done.stdout
