"""The tutorial's classifier, 784-128-10, trained on the shipped digits by plain gradient descent."""

from __future__ import annotations

import torch
from torch import nn

from torchdock.inside.workloads import digits
from torchdock.inside.workloads.loop import Batch, Workload


def model() -> nn.Module:
    """Return the untrained model: images (N, 1, 28, 28) to scores (N, 10)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy (nats an image)."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def score(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return bool (N,): whether the digit with the highest score is the right one."""
    images, labels = batch
    return model(images).argmax(dim=1) == labels


WORKLOAD = Workload(
    name="classifier",
    words="784-128-10 on 1,437 handwritten digits",
    model=model,
    data=digits.datasets,
    loss=loss,
    score=score,
    scored="digits named rightly",
    optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    rate=0.2,
    batch=32,
    epochs=10,
    at_most=0.2,
    at_least=0.9,
)
