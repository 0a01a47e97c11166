"""Train a workload, or a model of your own: ``python -m torchdock.inside.train --model cnn --epochs 10``.

On several GPUs or CPUs: ``torchrun --standalone --nproc-per-node 2 -m torchdock.inside.train --model cnn``.

Exit codes: 0 trained, 1 the training failed, 2 wrong input, 143 and 130 stopped by SIGTERM and Ctrl-C after a step;
its checkpoint is there then, and ``--resume`` goes on from it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from torchdock.inside import workloads

if TYPE_CHECKING:
    from torchdock.inside.workloads.loop import Epoch, Settings, Training, Workload
    from torchdock.inside.workloads.processes import Processes

CHECKPOINT = "checkpoint.pt"


class WrongInput(Exception):
    """What was asked for cannot be; the message is for the user."""


class Failed(Exception):
    """The training cannot begin or go on; the message is for the user."""


def positive(text: str) -> int:
    """Return text as an integer of at least 1; argparse turns the ValueError into exit code 2."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def count(text: str) -> int:
    """Return text as an integer of at least 0."""
    if (number := int(text)) < 0:
        raise ValueError(text)
    return number


def above_zero(text: str) -> float:
    """Return text as a finite number above 0."""
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and one line on stderr where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m torchdock.inside.train",
        description="Train a model that needs no download, or one of your own.",
        epilog="Exit codes: 0 trained, 1 the training failed, 2 wrong input, 143 or 130 stopped with a checkpoint.",
    )
    names = f"{', '.join(workloads.NAMES)}; or a file of your own, a changed copy of one of theirs"
    parser.add_argument("--model", default="classifier", metavar="NAME", help=names)
    parser.add_argument("--epochs", type=positive, help="passes over the training data (the model's own number)")
    parser.add_argument("--batch", type=positive, help="examples a step, over all processes (the model's own number)")
    parser.add_argument("--rate", type=above_zero, help="learning rate (the model's own)")
    parser.add_argument("--seed", type=int, default=0, help="fixes weights, order and dropout")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one"
    )
    parser.add_argument("--amp", choices=("bf16", "fp16"), help="mixed precision")
    parser.add_argument("--deterministic", action="store_true", help="on a GPU too the same to the bit, or an error")
    parser.add_argument("--workers", type=count, default=0, help="processes that load data, for each that trains")
    parser.add_argument("--output", type=Path, metavar="DIR", help="checkpoint, TensorBoard's log (runs/NAME)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output, if there is one")
    how.add_argument("--overwrite", action="store_true", help="begin anew where there is one")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, progress on stderr")
    return parser.parse_args(argv)


class Ending:
    """SIGTERM and Ctrl-C: the first lets the step end and a checkpoint be written, the second ends at once.

    number: the signal that came, 0 before. While no step has been made there is nothing to save.
    """

    def __init__(self) -> None:
        self.number, self._learning = 0, False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: object) -> None:
        if self.number or not self._learning:
            raise SystemExit(128 + number)
        self.number = number
        name = signal.Signals(number).name
        os.write(2, f"train: {name}: saving after this step; once more ends it at once\n".encode())

    def stopping(self) -> bool:
        """Whether to stop; the loop asks after each step."""
        self._learning = True
        return self.number != 0


class Board:
    """TensorBoard's log; nothing where TensorBoard is not installed, which is said."""

    def __init__(self, folder: Path, begin: int, out: TextIO) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("TensorBoard is not installed here: its log is not written", file=out)
            return
        self._writer = SummaryWriter(str(folder), purge_step=begin)  # a resumed run's curve goes on

    def take(self, epoch: Epoch) -> None:
        """Add what an epoch showed."""
        if self._writer is not None:
            self._writer.add_scalar("loss/training", epoch.loss, epoch.number)
            self._writer.add_scalar("score/held-out", epoch.score, epoch.number)
            self._writer.add_scalar("examples a second", epoch.examples / epoch.seconds, epoch.number)
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def prepare(args: argparse.Namespace, output: Path, first: bool) -> dict[str, Any] | None:
    """Make the folder and return the content of the checkpoint to go on from, None for a run from nothing.

    first: whether this is the process that writes; the others look for nothing. Raises WrongInput, checkpoint.Unusable.
    """
    if not first:
        return None
    from torchdock.inside.workloads import checkpoint

    file = output / CHECKPOINT
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
        if not file.exists() or args.overwrite:
            return None
        if not args.resume:
            raise WrongInput(
                f"{file} is an earlier run's checkpoint. --resume goes on from it, --overwrite begins anew in its "
                "place, --output DIR leaves it alone."
            )
        return checkpoint.read(file)
    except OSError as error:
        raise WrongInput(f"--output {output}: {error.strerror}. Name a folder that you may write to.") from error


def device_for(asked: str, processes: Processes) -> str:
    """Return "cpu" or "cuda", and set this process up for it.

    Raises Failed where a GPU is asked for and none is there, WrongInput where there are fewer GPUs than processes.
    """
    import torch

    if asked == "cuda":
        from torchdock.inside import devices

        if problem := devices.gpu_problem():
            raise Failed(problem)
    if asked == "cpu" or not torch.cuda.is_available():
        # torchrun's processes would each take every CPU that this container has.
        torch.set_num_threads(max(1, torch.get_num_threads() // processes.here))
        return "cpu"
    if (there := torch.cuda.device_count()) < processes.here:
        raise WrongInput(
            f"{processes.here} processes on this machine want a GPU each, and there are {there}. "
            f"Start {there} (torchrun --nproc-per-node {there}), or take --device cpu."
        )
    torch.cuda.set_device(processes.local)
    return "cuda"


def _line(epoch: Epoch, epochs: int, scored: str) -> str:
    done = f"epoch {epoch.number:>{len(str(epochs))}}/{epochs}"
    return f"{done}  loss {epoch.loss:.4f}  {epoch.score:6.1%} {scored}  {epoch.examples / epoch.seconds:,.0f}/s"


def _train(args: argparse.Namespace, processes: Processes, ending: Ending, people: TextIO) -> dict[str, Any]:
    """Do what ``main`` says; return the JSON document."""
    import torch

    from torchdock.inside.workloads import digits, loop
    from torchdock.inside.workloads.processes import joined

    try:
        workload: Workload = workloads.get(args.model)
    except workloads.Unknown as error:
        raise WrongInput(f"--model {error}") from error
    device, first = device_for(args.device, processes), processes.rank == 0
    if args.deterministic:
        torch.use_deterministic_algorithms(True)
    asked = {name: getattr(args, name) for name in ("epochs", "seed", "batch", "rate", "amp")}
    settings: Settings = loop.settings(workload, **asked)
    output = args.output or Path("runs") / workload.name
    made = [folder for folder in (output, *output.parents) if not folder.exists()] if first else []
    content = prepare(args, output, first)
    if first:
        where = torch.cuda.get_device_name() if device == "cuda" else f"the CPU, {torch.get_num_threads()} threads"
        where += f" in each of {processes.world} processes" if processes.world > 1 else ""
        print(f"{workload.name}: {workload.words}, on {where}, seed {settings.seed}", file=people)
        if content is not None:
            other = f", made by torch {content['torch']}" if content["torch"] != str(torch.__version__) else ""
            print(f"goes on after epoch {content['epoch']}, step {content['step']}{other}", file=people)
        elif args.resume:
            print(f"{output} holds no checkpoint: from nothing", file=people)
    boards: list[Board] = []
    begin = content["epoch"] + 1 if content else 1

    def progress(epoch: Epoch) -> None:
        if first:
            if not boards:  # not before there is something to tell
                boards.append(Board(output, begin, people))
            boards[0].take(epoch)
            print(_line(epoch, settings.epochs, workload.scored), file=people, flush=True)

    start = time.monotonic()
    with joined(processes, device == "cuda"):
        content = processes.share(content)
        try:
            training: Training = loop.train(
                workload,
                settings,
                device=device,
                processes=processes,
                workers=args.workers,
                resumed=content,
                save=output / CHECKPOINT,
                progress=progress,
                stopping=ending.stopping,
            )
        except (loop.Unfit, digits.Damaged):
            with contextlib.suppress(OSError):  # somebody else's file in it
                for folder in made:
                    folder.rmdir()
            raise
        finally:
            for board in boards:
                board.close()
    seconds = round(time.monotonic() - start, 3)
    if first:
        state = f"{training.score:.1%} {workload.scored}" if training.finished else "stopped"
        print(f"{state}; {seconds:.1f} s; {output / CHECKPOINT}", file=people, flush=True)
    return {
        "model": workload.name,
        **{name: getattr(settings, name) for name in asked},
        "device": device,
        "processes": processes.world,
        "losses": training.losses,
        "scores": training.scores,
        "weights": training.weights,
        "finished": training.finished,
        "seconds": seconds,
        "checkpoint": str(output / CHECKPOINT),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train; print progress, scores and where the checkpoint is; return the exit code."""
    args = arguments(argv)
    ending = Ending()
    people = sys.stderr if args.json else sys.stdout
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA's libraries are loaded
    import torch

    from torchdock.inside.workloads import checkpoint, digits, loop
    from torchdock.inside.workloads import processes as several

    who = "train"
    try:
        processes = several.of(os.environ)
        if processes.world > 1:
            who = f"train: rank {processes.rank}"
        document = _train(args, processes, ending, people)
    except checkpoint.Unusable as error:
        print(f"{who}: {error} --overwrite begins anew in its place, --output DIR elsewhere.", file=sys.stderr)
        return 2
    except (WrongInput, several.Unknown, loop.Unfit, digits.Damaged) as error:
        print(f"{who}: {error}", file=sys.stderr)
        return 2
    except (Failed, loop.Diverged, OSError) as error:
        print(f"{who}: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(f"{who}: {error} Remedy: a smaller --batch, or --amp bf16.", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not several.lost(error):
            raise
        why = str(error).strip().partition("\n")[0]
        print(
            f"{who}: the other processes do not answer ({why}). One of them has ended: torchrun's report says which "
            "and how. --resume goes on from the last epoch.",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(1)  # the connection's own threads would wait for the others
    if args.json and processes.rank == 0:
        print(json.dumps(document))
    return 0 if document["finished"] else 128 + (ending.number or signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
