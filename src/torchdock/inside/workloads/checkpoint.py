"""Checkpoints: written whole or not at all, read only where they are whole and made by this loop."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

FORMAT = "torchdock.train 1"
KEYS = {"format", "workload", "settings", "torch", "epoch", "step", "total", "losses", "scores"}
KEYS |= {"model", "optimizer", "scaler"}


class Unusable(ValueError):
    """A file that no training can go on from; the message says why, and the remedy."""


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint: whoever reads meanwhile, or after a crash, finds the older one or this one, never a part.

    content: KEYS without ``format``; tensors, numbers, strings, lists and dicts of them. Raises OSError.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with part.open("wb") as stream:
            torch.save({**content, "format": FORMAT}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file server may not know how
        os.fsync(folder)
    os.close(folder)


def read(file: Path) -> dict[str, Any]:
    """Return what ``write`` was given, tensors on the CPU. It runs no code, whoever made the file.

    Raises Unusable where the file is damaged or is none of this loop's, OSError where it cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError) as error:
        raise Unusable(
            f"{file} is no checkpoint, or only a part of one ({file.stat().st_size} bytes): {error}."
        ) from error
    if damaged is not None:
        raise Unusable(f"{file} is damaged: the checksum of {damaged} in it is wrong.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, KeyError, EOFError, AttributeError) as error:
        why = str(error).strip().partition("\n")[0].rstrip(".")
        raise Unusable(f"{file} was not made by this training program: {why}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() >= KEYS:
        raise Unusable(f"{file} holds something else than a checkpoint of this training program ({FORMAT}).")
    return content
