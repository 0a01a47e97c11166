"""Models, data and the training loop: what the checks run, and what a user starts from. Copy a file and change it."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchdock.inside.workloads.loop import Workload

NAMES = ("classifier", "cnn", "lstm", "gru", "transformer", "speech", "resnet18", "hub")


class Unknown(ValueError):
    """There is no such workload; the message says which there are."""


def get(name: str) -> Workload:
    """Return the workload of one of NAMES, or the ``WORKLOAD`` in a user's own file (``mine.py``).

    Raises Unknown, in words with the remedy, where there is none; whatever a user's file raises is the user's.
    """
    if name in NAMES:
        module = importlib.import_module(f"{__name__}.{name}")
    elif name.endswith(".py"):
        file = Path(name)
        if not file.is_file():
            raise Unknown(f"{name} is no file. Name a file that defines WORKLOAD, or one of {', '.join(NAMES)}.")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        raise Unknown(f"{name!r} is no model. There are {', '.join(NAMES)}; a file of your own ends in .py.")
    from torchdock.inside.workloads.loop import Workload

    workload = getattr(module, "WORKLOAD", None)
    if not isinstance(workload, Workload):
        raise Unknown(f"{name} defines no WORKLOAD. Start from a copy of {Path(__file__).with_name('cnn.py')}.")
    return workload
