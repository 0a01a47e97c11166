"""The processes of one training, as torchrun starts them: who this one is, and what all agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

# How long one waits for the others before it is an error: far longer than a step, far shorter than a night.
PATIENCE = timedelta(minutes=5)


class Unknown(ValueError):
    """The environment does not say which of the processes this is; the message says what is missing."""


@dataclass(frozen=True)
class Processes:
    """This process among all: its rank, its rank on this machine, how many there are, and on this machine."""

    rank: int = 0
    local: int = 0
    world: int = 1
    here: int = 1

    def sum(self, *values: float) -> list[float]:
        """Return the sums of these values over all processes; each has to call it at the same point."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor)
        return [float(value) for value in tensor]

    def share(self, value: Any) -> Any:
        """Return the first process's value, in each of them; each has to call it at the same point."""
        if self.world == 1:
            return value
        given = [value]
        distributed.broadcast_object_list(given, device=torch.device("cpu"))
        return given[0]


ALONE = Processes()


def of(environment: Mapping[str, str]) -> Processes:
    """Return who this process is by torchrun's variables; ALONE without them.

    Raises Unknown where some of them are missing or no numbers.
    """
    if "WORLD_SIZE" not in environment:
        return ALONE
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    numbers = [environment.get(name, "") for name in names]
    missing = [name for name, number in zip(names, numbers, strict=True) if not number.isdecimal()]
    if missing:
        raise Unknown(
            f"WORLD_SIZE is set, and {', '.join(missing)} is no number: this is one of several processes, but which? "
            "Start with torchrun, or unset WORLD_SIZE."
        )
    return Processes(*map(int, numbers))


@contextmanager
def joined(processes: Processes, cuda: bool) -> Iterator[None]:
    """Meet the others at the address that torchrun gave; part from them at the end.

    CPU tensors go through gloo, those on GPUs through NCCL. Raises what torch raises where the others do not come.
    """
    if processes.world == 1:
        yield
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    yield
    # Not after an error: one that is gone would be waited for.
    distributed.destroy_process_group()


def lost(error: BaseException) -> bool:
    """Whether this is an error of the connection between the processes, and not of the training itself."""
    words = str(error).lower()
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in words for word in ("gloo", "nccl", "connection closed by peer"))
    )
