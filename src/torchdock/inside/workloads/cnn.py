"""A small convolutional network with dropout on the shipped digits: 98% of those it has never seen."""

from __future__ import annotations

import torch
from torch import nn

from torchdock.inside.workloads import digits
from torchdock.inside.workloads.loop import Batch, Workload


def model() -> nn.Module:
    """Return the untrained model: images (N, 1, 28, 28) to scores (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=5, stride=2, padding=2, bias=False),  # 14x14
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),  # 7x7
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32 * 7 * 7, 10),
    )


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy (nats an image)."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def score(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return bool (N,): whether the digit with the highest score is the right one."""
    images, labels = batch
    return model(images).argmax(dim=1) == labels


WORKLOAD = Workload(
    name="cnn",
    words="a convolutional network on 1,437 handwritten digits",
    model=model,
    data=digits.datasets,
    loss=loss,
    score=score,
    scored="digits named rightly",
    optimizer=lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    rate=2e-3,
    batch=32,
    epochs=8,
    at_most=0.1,
    at_least=0.98,
    decay=0.6,
)
