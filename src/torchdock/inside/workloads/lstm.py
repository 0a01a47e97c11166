"""A recurrent network on sequences: the adding problem (Hochreiter and Schmidhuber, 1997).

Each step shows a number and a mark. Two steps are marked, and the sum of their numbers is asked for at the end: what
was read early has to be kept while everything else passes by. Who guesses the mean errs by 0.167 (squared).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from torchdock.inside.workloads.loop import Batch, Workload

STEPS = 16


class Recurrent(nn.Module):
    """Sequences (N, T, 2) to one number each (N,), read off the last state."""

    def __init__(self, kind: type[nn.Module], width: int = 32) -> None:
        super().__init__()
        self.reader = kind(2, width, batch_first=True)
        self.sum = nn.Linear(width, 1)

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return (N,)."""
        return self.sum(self.reader(sequences)[0][:, -1]).squeeze(1)


def model() -> nn.Module:
    """Return the untrained model."""
    return Recurrent(nn.LSTM)


def sequences(count: int, seed: int) -> TensorDataset:
    """Return so many sequences (T, 2) of numbers 0..1 and marks, one in each half, with the sums of the marked."""
    generator = torch.Generator().manual_seed(seed)
    numbers, marks = torch.rand(count, STEPS, generator=generator), torch.zeros(count, STEPS)
    half = STEPS // 2
    for first in (0, half):
        marks[torch.arange(count), first + torch.randint(half, (count,), generator=generator)] = 1
    return TensorDataset(torch.stack([numbers, marks], dim=2), (numbers * marks).sum(dim=1))


def data() -> tuple[TensorDataset, TensorDataset]:
    """Return (training, held-out): 4,096 and 512 sequences, the same on every machine."""
    return sequences(4096, seed=1), sequences(512, seed=2)


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean squared error."""
    shown, sums = batch
    return nn.functional.mse_loss(model(shown).float(), sums)


def score(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return bool (N,): whether the answer is off by less than 0.1; a guess of 1 is so for one in five."""
    shown, sums = batch
    return (model(shown).float() - sums).abs() < 0.1


WORKLOAD = Workload(
    name="lstm",
    words="an LSTM on the adding problem, 16 steps",
    model=model,
    data=data,
    loss=loss,
    score=score,
    scored="sums within 0.1",
    optimizer=lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    rate=1e-2,
    batch=64,
    epochs=8,
    at_most=0.01,
    at_least=0.9,
    clip=1.0,
)
