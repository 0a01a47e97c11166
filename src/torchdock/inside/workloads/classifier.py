"""The tutorial's classifier, 784-128-10, trained on the shipped digits. A training loop to start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torchdock.inside.workloads import digits

BATCH = 32
LEARNING_RATE = 0.2


@dataclass(frozen=True)
class Training:
    """What a training run showed.

    losses: mean cross-entropy (nats per image) over the training images, one number an epoch.
    accuracy: share (0..1) of the held-out images that the trained model names rightly.
    """

    losses: tuple[float, ...]
    accuracy: float


def model() -> nn.Module:
    """Return the untrained model: images (N, 1, 28, 28) to scores (N, 10), weights from torch's global generator."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def train(
    epochs: int = 10,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Training:
    """Train from nothing; call ``progress(epoch, loss)`` after each epoch, counted from 1.

    The seed fixes weights and order: on one CPU, two runs of equal seed give the same losses to the bit. torch's
    global generator is left as it was. Raises RuntimeError where the device is not there.
    """
    training, held_out = digits.load()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = model().to(device)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(*training), batch_size=BATCH, shuffle=True, generator=order)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=LEARNING_RATE)
    losses = []
    for epoch in range(1, epochs + 1):
        total = torch.zeros((), dtype=torch.float64, device=device)
        for images, labels in loader:
            loss = nn.functional.cross_entropy(classifier(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # Summed on the device: .item() in every step would make a GPU wait for the CPU.
            total += loss.detach().double() * len(labels)
        losses.append(total.item() / len(training.labels))
        progress(epoch, losses[-1])
    with torch.no_grad():
        guesses = classifier(held_out.images.to(device)).argmax(dim=1).cpu()
    return Training(tuple(losses), (guesses == held_out.labels).double().mean().item())
