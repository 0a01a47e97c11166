"""what people start from learns to its bound, is stopped by SIGTERM, and resumes to the bit"""

import functools
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from torchdock.inside import check, workloads
from torchdock.inside.workloads import checkpoint, hub, loop

REMEDY = "build the image again; where the CPU or the libraries differ from others', compare both reports' losses."
# Each stands for the same loop with another kind of model: dense, convolutional, recurrent, attention, CTC, BatchNorm.
NAMES = workloads.NAMES


@functools.cache
def trained(name: str) -> tuple[loop.Training, dict[int, str]]:
    """Train a workload to its end, once for all checks; return what it showed, and each epoch's loss and score."""
    workload, epochs = workloads.get(name), {}
    training = loop.train(
        workload, loop.settings(workload), progress=lambda epoch: epochs.update({epoch.number: epoch})
    )
    return training, epochs


def test_all_are_tried():
    """A workload that is no name of the list would be one that nothing proves."""
    helpers = {"__init__", "checkpoint", "digits", "loop", "processes"}
    folder = check.ROOT / "src" / "torchdock" / "inside" / "workloads"
    assert {file.stem for file in folder.glob("*.py")} - helpers == set(NAMES)
    assert [workloads.get(name).name for name in NAMES] == list(NAMES)


class Stopped(threading.Thread):
    """A training as a user starts it, in a process of its own, which gets SIGTERM once its first epoch has ended."""

    def __init__(self, name, output):
        super().__init__()
        command = [sys.executable, "-m", "torchdock.inside.train", "--model", name, "--epochs", "500"]
        self.process = subprocess.Popen(
            [*command, "--device", "cpu", "--output", output],
            cwd=output.parent,
            env={**os.environ, "PYTHONPATH": str(check.ROOT / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.line = self.errors = ""
        self.start()

    def run(self):
        self.line = next((line for line in self.process.stdout if line.startswith("epoch ")), "")
        self.process.send_signal(signal.SIGTERM)
        _, self.errors = self.process.communicate()


@pytest.mark.limit(300)
@pytest.mark.parametrize("name", NAMES)
def test_sigterm_and_resume(name, tmp_path):
    """SIGTERM saves after the step and exits 143; what goes on from there ends as if never stopped, to the bit."""
    stopped = Stopped(name, tmp_path / "run")
    try:
        whole, _ = trained(name)  # meanwhile, as the other one mostly waits for its imports
        stopped.join(200)
    finally:
        stopped.process.kill()
    assert stopped.line.startswith("epoch   1/500"), stopped.errors
    assert stopped.process.returncode == 128 + signal.SIGTERM, stopped.errors
    assert "SIGTERM: saving after this step" in stopped.errors
    left = [file.name for file in (tmp_path / "run").iterdir() if not file.name.startswith("events.")]
    assert left == ["checkpoint.pt"]

    content = checkpoint.read(tmp_path / "run" / "checkpoint.pt")
    assert content["epoch"] >= 1
    workload = workloads.get(name)
    epochs = max(workload.epochs, content["epoch"] + 1)
    resumed = loop.train(workload, loop.settings(workload, epochs=epochs), resumed=content)
    assert [loss.hex() for loss in resumed.losses[: workload.epochs]] == [loss.hex() for loss in whole.losses]
    assert resumed.scores[: workload.epochs] == whole.scores
    if epochs == workload.epochs:
        assert resumed.weights == whole.weights


@pytest.mark.limit(180)
@pytest.mark.parametrize("name", NAMES)
def test_learns(name, measured, fingerprint):
    """The loss falls to the stated bound, and held-out examples are done as well as stated."""
    workload = workloads.get(name)
    training, epochs = trained(name)
    measured(f"{name}, training loss", training.losses[-1], "mean over an epoch")
    measured(f"{name}, {workload.scored}", training.score, "share")
    measured(f"{name}, examples a second", max(one.examples / one.seconds for one in epochs.values()), "1/s")
    fingerprint(f"{name}, losses", training.losses)
    assert training.finished and len(training.losses) == workload.epochs
    assert training.losses[-1] <= workload.at_most < training.losses[0]
    assert training.score >= workload.at_least


def test_hub_repository():
    """torch.hub loads what a local repository offers, with the arguments given; what it does not offer is an error."""
    folder = str(hub.REPOSITORY)
    model = torch.hub.load(folder, "separable", source="local", width=8, classes=3)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    with pytest.raises(RuntimeError, match="Cannot find callable nothing"):
        torch.hub.load(folder, "nothing", source="local")


@pytest.mark.gpu
@pytest.mark.limit(180)
@pytest.mark.parametrize("name", NAMES)
def test_learns_on_the_gpu(name, measured):
    """The same bounds on the GPU."""
    workload = workloads.get(name)
    epochs = []
    training = loop.train(workload, loop.settings(workload), device="cuda", progress=epochs.append)
    measured(f"{name} on the GPU, {workload.scored}", training.score, "share")
    measured(f"{name} on the GPU, examples a second", max(one.examples / one.seconds for one in epochs), "1/s")
    assert training.losses[-1] <= workload.at_most
    assert training.score >= workload.at_least


@pytest.mark.gpu
@pytest.mark.limit(180)
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_on_the_gpu(amp):
    """Autocast, and for fp16 a loss scaler: the same bounds."""
    workload = workloads.get("cnn")
    training = loop.train(workload, loop.settings(workload, amp=amp), device="cuda")
    assert training.losses[-1] <= workload.at_most
    assert training.score >= workload.at_least - 0.01
