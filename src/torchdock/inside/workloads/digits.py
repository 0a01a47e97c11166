"""Handwritten digits that need no download: 1,797 images of the UCI set, shipped beside this file."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import TensorDataset

FILE = Path(__file__).with_name("data") / "digits.csv.gz"
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


class Digits(NamedTuple):
    """Images and labels.

    images: float32, shape (N, 1, 28, 28), 0 (paper) to 1 (ink).
    labels: int64, shape (N,), the digit 0..9.
    """

    images: torch.Tensor
    labels: torch.Tensor


class Damaged(ValueError):
    """The file is not the one that was shipped; the message says what it is, and the remedy."""


def load(file: Path = FILE) -> tuple[Digits, Digits]:
    """Return (training, held-out): 1,437 and 360 images, on the CPU.

    Every fifth image, from the first on, is held out: the same split everywhere, no random numbers involved.
    The 8x8 originals are scaled to 28x28 by bilinear interpolation.

    Raises Damaged where the file is not the one that was shipped, OSError where it cannot be read.
    """
    packed = file.read_bytes()
    if (found := hashlib.sha256(packed).hexdigest()) != SHA256:
        raise Damaged(
            f"{file} is damaged: {len(packed)} bytes with sha256 {found[:12]}…, expected {SHA256[:12]}…. "
            "Remedy: restore the file (git checkout) or build the image again."
        )
    rows = np.loadtxt(gzip.decompress(packed).decode("ascii").splitlines(), delimiter=",", dtype=np.int64)
    small = torch.from_numpy(rows[:, :64]).to(torch.float32).reshape(-1, 1, 8, 8) / 16
    images = interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(rows[:, 64].copy())
    held_out = torch.arange(len(labels)) % 5 == 0
    return Digits(images[~held_out], labels[~held_out]), Digits(images[held_out], labels[held_out])


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """Return ``load()`` as datasets of (image, label)."""
    training, held_out = load()
    return TensorDataset(*training), TensorDataset(*held_out)
