"""Train a workload: ``python -m torchdock.inside.train [--epochs 10] [--seed 0] [--device cpu|cuda] [--json]``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence


def positive(text: str) -> int:
    """Return text as an integer of at least 1; argparse turns the ValueError into exit code 2."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and one line on stderr where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m torchdock.inside.train",
        description="Train the 784-128-10 classifier on the shipped handwritten digits.",
    )
    parser.add_argument("--epochs", type=positive, default=10, help="passes over the 1,437 training images")
    parser.add_argument("--seed", type=int, default=0, help="fixes weights and order")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, progress on stderr")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print losses and accuracy; return 0, or 1 where the device is not there or the data is damaged."""
    args = arguments(argv)
    people = sys.stderr if args.json else sys.stdout
    if args.device == "cuda":
        from torchdock.inside import devices

        if problem := devices.gpu_problem():
            print(problem, file=sys.stderr)
            return 1
    from torchdock.inside.workloads import classifier

    def progress(epoch: int, loss: float) -> None:
        print(f"epoch {epoch:3d}  loss {loss:.4f}", file=people, flush=True)

    start = time.monotonic()
    try:
        training = classifier.train(args.epochs, args.seed, args.device, progress)
    except (ValueError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    seconds = round(time.monotonic() - start, 3)
    print(f"held-out accuracy {training.accuracy:.1%} in {seconds:.1f} s on {args.device}", file=people)
    if args.json:
        document = {
            "model": "classifier",
            "epochs": args.epochs,
            "seed": args.seed,
            "device": args.device,
            "losses": training.losses,
            "accuracy": training.accuracy,
            "seconds": seconds,
        }
        print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
