"""The training loop that all workloads share: seeds, checkpoints, mixed precision, several processes.

A run's numbers follow from its settings alone. The order of an epoch depends on seed and epoch, the random numbers of
a step (dropout) on seed, step and rank; so a checkpoint in the middle of an epoch goes on to the same end as the run
that was never stopped, on the CPU to the bit. A batch is shared among the processes, so their number changes rounding
and no setting.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from torchdock.inside.workloads import checkpoint
from torchdock.inside.workloads.processes import ALONE, Processes

Batch = tuple[torch.Tensor, ...]
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Workload:
    """One task: all that the loop needs to know of it.

    words: what is trained on what, for people.
    model: makes the untrained model; its weights come from torch's global generator.
    data: makes (training, held-out), datasets whose items are tuples of tensors. Raises ValueError or OSError.
    loss: (model, batch) -> the batch's mean loss, a scalar.
    score: (model, batch) -> float or bool (N,): how well each of the N examples was done, 0..1.
    scored: what a score of 1 means, for people.
    optimizer: (parameters, learning rate) -> the optimizer.
    rate, batch, epochs: learning rate, examples a step, passes over the training data.
    at_most, at_least: with these, whatever the seed: the last epoch's mean loss, the score on held-out data.
    decay: by what the learning rate is multiplied after each epoch.
    clip: the norm that gradients are cut to; None leaves them.
    """

    name: str
    words: str
    model: Callable[[], nn.Module]
    data: Callable[[], tuple[Dataset[Batch], Dataset[Batch]]]
    loss: Callable[[nn.Module, Batch], torch.Tensor]
    score: Callable[[nn.Module, Batch], torch.Tensor]
    scored: str
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    rate: float
    batch: int
    epochs: int
    at_most: float
    at_least: float
    decay: float = 1.0
    clip: float | None = None


@dataclass(frozen=True)
class Settings:
    """What a run's numbers depend on. seed: of weights, order and dropout. amp: a key of AMP, or None."""

    epochs: int
    seed: int
    batch: int
    rate: float
    amp: str | None = None


def settings(workload: Workload, **given: Any) -> Settings:
    """Return the workload's own settings and seed 0, but for those that are given; None stands for not given."""
    own = {"epochs": workload.epochs, "seed": 0, "batch": workload.batch, "rate": workload.rate}
    return Settings(**{**own, **{name: value for name, value in given.items() if value is not None}})


@dataclass(frozen=True)
class Epoch:
    """What one epoch showed. number: counted from 1. loss, score: see Training. seconds: of training, without scoring.

    examples: trained on in those seconds, by all processes.
    """

    number: int
    loss: float
    score: float
    seconds: float
    examples: int


@dataclass(frozen=True)
class Training:
    """What a run showed, including what it was resumed from.

    losses: mean over the training examples, one an epoch. scores: mean over the held-out ones (0..1), one an epoch.
    weights: SHA-256 of the trained weights. finished: False where it was stopped before its last epoch.
    """

    losses: tuple[float, ...]
    scores: tuple[float, ...]
    weights: str
    finished: bool

    @property
    def score(self) -> float:
        """The last epoch's score; nan before the first has ended."""
        return self.scores[-1] if self.scores else math.nan


class Unfit(ValueError):
    """Settings, data and processes do not go together; the message says which to change."""


class Diverged(RuntimeError):
    """The loss is no number any more."""


def number(*parts: object) -> int:
    """Return a seed (64 bits) that depends on these parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def order(length: int, seed: int, batch: int, epoch: int, processes: Processes = ALONE) -> list[list[int]]:
    """Return the indices of one epoch's batches, this process's share of each.

    Examples that do not fill a batch at the end are left out, in each epoch others. Raises Unfit where no batch can
    be made.
    """
    if batch > length:
        raise Unfit(f"A batch of {batch} is more than the {length} training examples: take a smaller --batch.")
    if batch % processes.world:
        raise Unfit(
            f"A batch of {batch} cannot be shared evenly by {processes.world} processes: "
            f"take a --batch that {processes.world} divides."
        )
    generator = torch.Generator().manual_seed(number(seed, "order", epoch))
    mixed = torch.randperm(length, generator=generator).tolist()
    return [
        mixed[first + processes.rank : first + batch : processes.world] for first in range(0, length - batch + 1, batch)
    ]


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 (hex) of a model's weights and buffers: equal to the bit, equal here."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Run:
    """The state of a run: model, optimizer, how far it is."""

    def __init__(self, workload: Workload, given: Settings, device: torch.device, processes: Processes) -> None:
        self.workload, self.settings, self.device, self.processes = workload, given, device, processes
        torch.manual_seed(number(given.seed, "weights"))
        self.model = workload.model().to(device)
        self.optimizer = workload.optimizer(self.model.parameters(), given.rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=given.amp == "fp16")
        self.epoch, self.step, self.total = 0, 0, 0.0  # epochs that have ended; steps of the next, their losses' sum
        self.losses: list[float] = []
        self.scores: list[float] = []

    def content(self) -> dict[str, Any]:
        """Return what a checkpoint consists of."""
        return {
            "workload": self.workload.name,
            "settings": asdict(self.settings),
            "torch": str(torch.__version__),
            "epoch": self.epoch,
            "step": self.step,
            "total": self.total,
            "losses": self.losses,
            "scores": self.scores,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def resume(self, content: Mapping[str, Any]) -> None:
        """Take over a checkpoint. Raises checkpoint.Unusable where it is another run's."""
        if content["workload"] != self.workload.name:
            raise checkpoint.Unusable(f"The checkpoint is of --model {content['workload']}.")
        for name, value in asdict(self.settings).items():
            if name != "epochs" and content["settings"].get(name) != value:
                raise checkpoint.Unusable(
                    f"The checkpoint was made with {name} {content['settings'].get(name)}, and this run has {value}: "
                    "going on would be neither the one run nor the other."
                )
        try:
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            why = " ".join(str(error).split())[:200].rstrip(". ")
            raise checkpoint.Unusable(
                f"The checkpoint is of another model than this {self.workload.name}: {why}."
            ) from error
        if self.settings.amp == "fp16":
            self.scaler.load_state_dict(content["scaler"])
        self.epoch, self.step, self.total = content["epoch"], content["step"], content["total"]
        self.losses, self.scores = list(content["losses"]), list(content["scores"])

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which the model computes."""
        amp = self.settings.amp
        context: AbstractContextManager[Any] = torch.autocast(
            self.device.type, dtype=AMP[amp] if amp else torch.bfloat16, enabled=amp is not None
        )
        return context

    def batches(self, data: Dataset[Batch], indices: list[list[int]], workers: int) -> Iterable[Batch]:
        """Yield the batches of these indices, on the device."""
        gpu = self.device.type == "cuda"
        loader = DataLoader(data, batch_sampler=indices, num_workers=workers, pin_memory=gpu)
        for batch in loader:
            yield tuple(tensor.to(self.device, non_blocking=gpu) for tensor in batch)

    def learn(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Take one step; return the batch's mean loss, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = self.workload.loss(model, batch)
        self.scaler.scale(loss).backward()
        if self.workload.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.workload.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def evaluate(self, data: Dataset[Batch], workers: int) -> float:
        """Return the mean score of the held-out examples; each process takes its share of them."""
        mine = list(range(self.processes.rank, len(data), self.processes.world))
        shares = [mine[first : first + self.settings.batch] for first in range(0, len(mine), self.settings.batch)]
        good = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.eval()
        with torch.no_grad(), self.precision():
            for batch in self.batches(data, shares, workers):
                good += self.workload.score(self.model, batch).double().sum()
        self.model.train()
        return self.processes.sum(good.item())[0] / len(data)


def train(
    workload: Workload,
    given: Settings,
    *,
    device: str = "cpu",
    processes: Processes = ALONE,
    workers: int = 0,
    resumed: Mapping[str, Any] | None = None,
    save: Path | None = None,
    progress: Callable[[Epoch], None] = lambda epoch: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Training:
    """Train, from nothing or from a checkpoint's content, to the end of the last epoch or until ``stopping()``.

    save: the checkpoint's file, written after each epoch and when it stops. workers: processes that load data.
    With several processes each calls this, inside ``processes.joined``; the first one writes.
    torch's global generator is left as it was.

    Raises Unfit or checkpoint.Unusable where settings, data or checkpoint do not go together, OSError where the
    checkpoint cannot be written, Diverged where the loss is no number any more, and whatever the workload raises.
    """
    place = torch.device(device, processes.local) if device == "cuda" else torch.device(device)
    training, held_out = workload.data()
    with torch.random.fork_rng(devices=[place] if device == "cuda" else []):
        run = _Run(workload, given, place, processes)
        if resumed is not None:
            run.resume(resumed)
        model = run.model
        if processes.world > 1:
            model = DistributedDataParallel(run.model, device_ids=[place.index] if device == "cuda" else None)

        def keep() -> None:
            if save is not None and processes.rank == 0:
                checkpoint.write(save, run.content())

        while run.epoch < given.epochs:
            indices = order(len(training), given.seed, given.batch, run.epoch, processes)
            for group in run.optimizer.param_groups:
                group["lr"] = given.rate * workload.decay**run.epoch
            first, start, stop = run.step, time.monotonic(), False
            # Summed on the device: .item() in every step would make a GPU wait for the CPU.
            total = torch.tensor(run.total, dtype=torch.float64, device=place)
            for batch in run.batches(training, indices[first:], workers):
                torch.manual_seed(number(given.seed, "step", run.epoch, run.step, processes.rank))
                total += run.learn(model, batch).double()
                run.step += 1
                # All stop after the same step, or one would wait for ever for the others.
                stop = processes.sum(float(stopping()))[0] > 0
                if stop and run.step < len(indices):
                    run.total = processes.sum(total.item())[0] / processes.world
                    keep()
                    return Training(tuple(run.losses), tuple(run.scores), fingerprint(run.model), finished=False)
            loss = processes.sum(total.item())[0] / processes.world / len(indices)
            seconds = time.monotonic() - start
            if not math.isfinite(loss):
                raise Diverged(
                    f"The loss is {loss} in epoch {run.epoch + 1}: the training has diverged. "
                    f"Take a smaller --rate (it is {given.rate:g}), or another --amp."
                )
            run.losses.append(loss)
            run.scores.append(run.evaluate(held_out, workers))
            run.epoch, run.step, run.total = run.epoch + 1, 0, 0.0
            keep()
            examples = (len(indices) - first) * given.batch
            progress(Epoch(run.epoch, loss, run.scores[-1], seconds, examples))
            if stop and run.epoch < given.epochs:
                return Training(tuple(run.losses), tuple(run.scores), fingerprint(run.model), finished=False)
        return Training(tuple(run.losses), tuple(run.scores), fingerprint(run.model), finished=True)
