"""A model that comes from a repository by ``torch.hub``: a local folder with a ``hubconf.py``, on the shipped digits.

For one on GitHub, which needs the network: ``torch.hub.load("pytorch/vision", "resnet18", weights=None)``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from torchdock.inside.workloads import cnn

REPOSITORY = Path(__file__).with_name("hub_repository")


def model() -> nn.Module:
    """Return the untrained model: images (N, 1, 28, 28) to scores (N, 10)."""
    return torch.hub.load(str(REPOSITORY), "separable", source="local", width=32)


WORKLOAD = replace(
    cnn.WORKLOAD,
    name="hub",
    words="a model of a torch.hub repository on 1,437 handwritten digits",
    model=model,
    rate=5e-3,
    at_most=0.2,
    at_least=0.94,
)
