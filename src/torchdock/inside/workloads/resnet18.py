"""ResNet-18 of torchvision on images of CIFAR's shape: stripes in ten directions, in any colour, under noise.

For real images of 32x32 replace the stem, which halves them twice before the first block:
``net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False); net.maxpool = nn.Identity()``.
With several processes each normalises its own share of a batch (``nn.SyncBatchNorm.convert_sync_batchnorm`` the whole).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

from torchdock.inside.workloads.loop import Batch, Workload

SIZE = 32


def model() -> nn.Module:
    """Return the untrained model: images (N, 3, 32, 32) to scores (N, 10)."""
    return resnet18(weights=None, num_classes=10)


def images(count: int, seed: int) -> TensorDataset:
    """Return so many images, float32 (3, 32, 32) about 0, and their directions: int64 0..9, in steps of 18 degrees."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    angles = (labels.double() * math.pi / 10).view(-1, 1, 1)
    y, x = torch.meshgrid(torch.arange(SIZE).double(), torch.arange(SIZE).double(), indexing="ij")
    phases = 2 * math.pi * torch.rand(count, 1, 1, generator=generator, dtype=torch.float64)
    waves = torch.cos((x * torch.cos(angles) + y * torch.sin(angles)) * 2 * math.pi / 8 + phases)
    colours = torch.rand(count, 3, 1, 1, generator=generator) + 0.5
    noise = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return TensorDataset(waves.float().unsqueeze(1) * colours + 0.25 * noise, labels)


def data() -> tuple[TensorDataset, TensorDataset]:
    """Return (training, held-out): 256 and 100 images, the same on every machine."""
    return images(256, seed=1), images(100, seed=2)


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy (nats an image)."""
    shown, labels = batch
    return nn.functional.cross_entropy(model(shown), labels)


def score(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return bool (N,): whether the direction with the highest score is the right one."""
    shown, labels = batch
    return model(shown).argmax(dim=1) == labels


WORKLOAD = Workload(
    name="resnet18",
    words="ResNet-18 on synthesised images, 3x32x32",
    model=model,
    data=data,
    loss=loss,
    score=score,
    scored="directions named rightly",
    optimizer=lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate),
    rate=1e-3,
    batch=16,
    epochs=3,
    at_most=0.5,
    at_least=0.9,
    decay=0.5,
)
