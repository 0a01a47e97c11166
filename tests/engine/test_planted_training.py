"""Faults of a training, planted from outside: each is caught by the check, or the command line, that names it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import ROOT
from tests.engine.planting import checked
from tests.engine.waiting import until

DIGITS = "src/torchdock/inside/workloads/data/digits.csv.gz"
# Rank 1 of any run of several processes is killed when it says whom it wants to meet.
KILLED = """
import os, signal, sys
if os.environ.get("RANK") == "1":
    sys.addaudithook(lambda event, given: event == "import" and given[0] == "torch.distributed.distributed_c10d"
                     and os.kill(os.getpid(), signal.SIGKILL))
"""
# Rank 0 sums wrongly.
WRONG = """
import os
if os.environ.get("RANK") == "0":
    from torch import distributed
    honest = distributed.all_reduce
    def all_reduce(tensor, *given, **more):
        honest(tensor, *given, **more)
        tensor += 0.01
    distributed.all_reduce = all_reduce
"""


def planted(folder: Path, program: str) -> tuple[str, ...]:
    """Options by which every Python of the container runs a program first."""
    (folder / "sitecustomize.py").write_text(program)
    folder.chmod(0o755)
    return "-v", f"{folder}:/planted:ro", "-e", "PYTHONPATH=/planted"


@pytest.fixture
def truncated(tmp_path: Path) -> tuple[str, ...]:
    """Options by which the shipped digits end in the middle."""
    damaged = tmp_path / "digits.csv.gz"
    damaged.write_bytes((ROOT / DIGITS).read_bytes()[:-1000])
    damaged.chmod(0o644)
    tmp_path.chmod(0o755)
    return "-v", f"{damaged}:/opt/torchdock/{DIGITS}:ro"


@pytest.mark.slow
def test_a_killed_rank(image: dict[str, Any], tmp_path: Path) -> None:
    found = checked(image, "test_two_processes_by_gloo", *planted(tmp_path, KILLED))
    assert (found.code, len(found.failed)) == (1, 1)
    found.tells("test_two_processes_by_gloo", "Of 2 processes (gloo) rank 1 ended by signal SIGKILL")


@pytest.mark.slow
def test_a_wrong_sum(image: dict[str, Any], tmp_path: Path) -> None:
    found = checked(image, "test_two_processes_by_gloo", *planted(tmp_path, WRONG))
    found.tells("test_two_processes_by_gloo", "rank 0 failed with exit code 1")
    found.tells("test_two_processes_by_gloo", "all_reduce gave [0.01, 3.01")


@pytest.mark.slow
def test_a_truncated_data_file(image: dict[str, Any], truncated: tuple[str, ...]) -> None:
    found = checked(image, "classifier and test_data", *truncated)
    found.tells("test_data", "digits.csv.gz is damaged: ")


def test_training_with_a_truncated_data_file(image: dict[str, Any], truncated: tuple[str, ...]) -> None:
    """One line with the remedy, exit code 2, and no checkpoint."""
    words = "python -m torchdock.inside.train --model cnn --device cpu --output run/cnn; echo code $?; ls -d run"
    docker = ["docker", "run", "--rm", "--user", "1234:1234", "--workdir", "/tmp", *truncated, image["image"]]
    done = subprocess.run([*docker, "sh", "-c", words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "code 2", done.stdout
    told, nothing = done.stderr.splitlines()
    assert "digits.csv.gz is damaged" in told and "Remedy: restore the file" in told
    assert "cannot access 'run'" in nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "code"),
    [(["python"], 143), (["torchrun", "--standalone", "--nproc-per-node", "2"], 1)],
    ids=["alone", "two"],
)
def test_docker_stop_saves(image: dict[str, Any], tmp_path: Path, start: list[str], code: int) -> None:
    """What `invoke stop` does to a job: its training saves where it is, and the next one goes on from there."""
    tmp_path.chmod(0o777)
    file = tmp_path / "runs/classifier/checkpoint.pt"
    train = ["-m", "torchdock.inside.train", "--model", "classifier", "--resume", "--json", "--epochs"]
    docker = ["docker", "run", "--user", "1234:1234", "--workdir", "/out", "-v", f"{tmp_path}:/out"]
    name = f"torchdock-test-stop-{tmp_path.name}"
    process = subprocess.Popen(
        [*docker, "--name", name, image["image"], *start, *train, "100000"], stderr=subprocess.PIPE, text=True
    )
    try:
        until(file.exists, "the first checkpoint")
        subprocess.run(["docker", "stop", "--time", "60", name], check=True, capture_output=True)
        _, told = process.communicate(timeout=60)
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True)
        process.wait(60)
    assert process.returncode == code, told
    assert told.count("SIGTERM: saving after this step") == (2 if start[0] == "torchrun" else 1), told
    done = subprocess.run(
        [*docker, "--rm", image["image"], "python", *train, "1"], capture_output=True, text=True, check=True
    )
    going_on = re.search(r"goes on after epoch (\d+), step (\d+)", done.stderr)
    assert going_on and int(going_on[1]) >= 1, done.stderr
    assert len(json.loads(done.stdout)["losses"]) == int(going_on[1])
