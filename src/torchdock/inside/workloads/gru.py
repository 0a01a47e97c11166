"""The same sequences as ``lstm``, read by a GRU."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from torchdock.inside.workloads import lstm


def model() -> nn.Module:
    """Return the untrained model: sequences (N, T, 2) to one number each (N,)."""
    return lstm.Recurrent(nn.GRU)


WORKLOAD = replace(lstm.WORKLOAD, name="gru", words="a GRU on the adding problem, 16 steps", model=model, epochs=5)
