"""784-128-10 on real digits: above 90% held out, twice the same to the bit"""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from torchdock.inside import check
from torchdock.inside.workloads import classifier, digits, loop


def train(epochs: int = 10, seed: int = 0) -> loop.Training:
    return loop.train(classifier.WORKLOAD, loop.settings(classifier.WORKLOAD, epochs=epochs, seed=seed))


@pytest.fixture(scope="module")
def training() -> loop.Training:
    return train()


@pytest.mark.quick
def test_data():
    """All 1,797 images, in the stated shapes and range, none both trained on and held out."""
    training, held_out = digits.load()
    assert training.images.shape == (1437, 1, 28, 28)
    assert held_out.images.shape == (360, 1, 28, 28)
    for part in (training, held_out):
        assert (part.images.dtype, part.labels.dtype) == (torch.float32, torch.int64)
        assert (part.images.min(), part.images.max()) == (0, 1)
    counts = torch.bincount(torch.cat([training.labels, held_out.labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.quick
def test_learns(training):
    """Guessing gives 10% and ln 10 = 2.303; ten epochs must do far better on images never seen."""
    assert len(training.losses) == 10
    assert training.losses[0] < math.log(10)
    assert training.losses[-1] < 0.2
    assert training.score > 0.9


@pytest.mark.quick
def test_same_losses_to_the_bit(training):
    """Two seeded runs on this CPU: every epoch's loss equal, bit for bit; another seed gives others."""
    torch.manual_seed(12345)  # what drew random numbers before must not matter
    again = train()
    assert [loss.hex() for loss in again.losses] == [loss.hex() for loss in training.losses]
    assert (again.scores, again.weights) == (training.scores, training.weights)
    assert train(epochs=1, seed=1).losses[0] != training.losses[0]


def test_same_losses_from_the_command_line(training, tmp_path):
    """`python -m torchdock.inside.train` in a new process: the same bits again."""
    command = [sys.executable, "-m", "torchdock.inside.train", "--epochs", "3", "--device", "cpu", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(check.ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert tuple(document["losses"]) == training.losses[:3]
    assert document["epochs"] == 3
    assert tuple(document["scores"]) == training.scores[:3]


@pytest.mark.quick
def test_damaged_data_is_refused(tmp_path):
    """A truncated file must not become a smaller training set."""
    damaged = tmp_path / "digits.csv.gz"
    damaged.write_bytes(digits.FILE.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"damaged.*Remedy"):
        digits.load(damaged)
