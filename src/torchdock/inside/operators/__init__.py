"""torch's operator database, proved operator by operator: what is known, what was proved, and the judgement. Pure.

``references`` has what operators give by NumPy, ``laws`` what random ones obey, ``proof`` runs them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16", "int64", "bool", "complex64")

# How check tells the suite which of the database's samples: one of each operator and dtype, or every one. Reading the
# database alone takes seconds: `none` is for who waits, as when a container opens.
OPS = "TORCHDOCK_CHECK_OPS"
SAMPLES = ("one", "full", "none")

# Pairs of operator and dtype that must have been compared with an independent reference, and the share of the
# database's operators that must: fewer is a failure.
COMMITTED_PAIRS = 1_500
COMMITTED_SHARE = 0.97

# What a result is compared with, and whether that is independent of the kernel that is checked.
REFERENCES = {
    "numpy": "NumPy",
    "wide": "the CPU in float64 or complex128",
    "cpu": "the CPU",
    "law": "the law that its random numbers obey, or the shape of what is not initialised",
}

PARTS = ("value", "repeat", "strides", "gradient", "gradcheck")


@dataclass(frozen=True)
class Fault:
    """What is wrong with one operator. part: one of PARTS. text: sample, value, reference, error, tolerance."""

    operator: str
    dtype: str
    part: str
    text: str

    def __str__(self) -> str:
        return f"{self.operator} in {self.dtype}, {self.part}: {self.text}"


@dataclass(frozen=True)
class Known:
    """A failure of torch itself that was seen before. dtypes and parts: those that fail. device: cpu or cuda.

    torch: the version it was seen in; in another one nothing is expected of it, neither to fail nor to pass.
    full: it is one of the samples that only ``--ops full`` takes.
    """

    operator: str
    dtypes: tuple[str, ...]
    parts: tuple[str, ...]
    device: str
    torch: str
    reason: str
    full: bool = False


@dataclass(frozen=True)
class Facts:
    """known.json: the failures of torch, what cannot be compared, and where another tolerance than torch's holds.

    apart: operator -> (devices, why it has no reference there). tolerances: (operator, dtype) -> (rtol, atol, reason).
    nondeterministic: operators whose results on CUDA differ from run to run, as torch documents.
    """

    known: tuple[Known, ...]
    apart: Mapping[str, tuple[tuple[str, ...], str]]
    tolerances: Mapping[tuple[str, str], tuple[float, float, str]]
    nondeterministic: frozenset[str]

    def of(self, operator: str, device: str, torch: str) -> dict[tuple[str, str], Known]:
        """Return {(dtype, part): the known failure} of an operator. torch: as "2.14.1+cu130"."""
        return {
            (dtype, part): one
            for one in self.known
            if (one.operator, one.device, one.torch) == (operator, device, torch.partition("+")[0])
            for dtype in one.dtypes
            for part in one.parts
        }


def facts(text: str | None = None) -> Facts:
    """Read known.json. Raises ValueError, in words, for an entry that says too little or names what there is not."""
    if text is None:
        text = (Path(__file__).parent / "known.json").read_text(encoding="utf-8")
    document = json.loads(text)
    known = []
    for entry in document["known"]:
        one = Known(
            entry["operator"],
            tuple(entry["dtypes"]),
            tuple(entry["parts"]),
            entry["device"],
            entry["torch"],
            entry["reason"],
            entry.get("full", False),
        )
        if set(one.parts) - set(PARTS) or one.device not in ("cpu", "cuda"):
            raise ValueError(f"known.json: {one.operator}: its parts are of {', '.join(PARTS)}, its device cpu or cuda")
        if not (one.dtypes and one.parts and one.torch and one.reason.strip()):
            raise ValueError(f"known.json: {one.operator}: it needs dtypes, parts, a version of torch and a reason")
        known.append(one)
    tolerances = {}
    for entry in document["tolerances"]:
        for dtype in entry["dtypes"]:
            for operator in entry["operators"]:
                if (operator, dtype) in tolerances or not entry["reason"]:
                    raise ValueError(f"known.json: {operator} in {dtype}: it has two tolerances, or no reason")
                tolerances[operator, dtype] = (float(entry["rtol"]), float(entry["atol"]), entry["reason"])
    apart = {}
    for entry in document["apart"]:
        for operator in entry["operators"]:
            apart[operator] = (tuple(entry["devices"]), entry["reason"])
    return Facts(tuple(known), apart, tolerances, frozenset(document["nondeterministic"]["operators"]))


@dataclass
class Proof:
    """What was done with one operator.

    references: dtype -> a key of REFERENCES, "" where there is none. expected: known failures that failed.
    healed: known failures that passed.
    """

    operator: str
    references: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    gradients: int = 0
    faults: list[Fault] = field(default_factory=list)
    expected: list[Fault] = field(default_factory=list)
    healed: list[Fault] = field(default_factory=list)

    def settle(self, known: Facts, device: str, torch: str, full: bool) -> None:
        """Move the faults that are known to ``expected``; the known ones that did not show are ``healed``."""
        listed, seen = known.of(self.operator, device, torch), {(one.dtype, one.part) for one in self.faults}
        self.expected = [Fault(self.operator, *pair, one.reason) for pair, one in listed.items() if pair in seen]
        self.healed = [
            Fault(self.operator, *pair, one.reason)
            for pair, one in listed.items()
            if pair not in seen and (full or not one.full)
        ]
        self.faults = [one for one in self.faults if (one.dtype, one.part) not in listed]

    @property
    def proved(self) -> tuple[str, ...]:
        """The dtypes whose results were compared with an independent reference, and agreed."""
        failed = {fault.dtype for fault in (*self.faults, *self.expected) if fault.part == "value"}
        return tuple(dtype for dtype, reference in self.references.items() if reference and dtype not in failed)

    def problems(self) -> list[str]:
        """Return what must be told: each fault, and each known failure that is none any more."""
        told = [str(fault) for fault in self.faults]
        for one in self.healed:
            told.append(
                f"{one.operator} in {one.dtype}, {one.part}: it passes, and is listed as a failure of this torch "
                f"({one.text}). Remedy: take it out of torchdock/inside/operators/known.json."
            )
        return told


@dataclass(frozen=True)
class Coverage:
    """All operators together. pairs: (operator, dtype) that were proved, by reference. uncovered: without any."""

    operators: int
    pairs: Mapping[str, int]
    uncovered: tuple[str, ...]
    samples: int
    gradients: int
    expected: int

    @property
    def independent(self) -> int:
        """How many pairs were compared with an independent reference."""
        return sum(self.pairs.values())

    @property
    def share(self) -> float:
        """The share of operators that have at least one such pair."""
        return 1 - len(self.uncovered) / self.operators if self.operators else 0.0

    def __str__(self) -> str:
        by = ", ".join(f"{count} against {REFERENCES[name]}" for name, count in self.pairs.items())
        return (
            f"{self.operators - len(self.uncovered)} of {self.operators} operators ({self.share:.1%}), "
            f"{self.independent} pairs of operator and dtype: {by}; {self.samples} samples, {self.gradients} "
            f"gradients, {self.expected} expected failures of torch"
        )


def coverage(proofs: Iterable[Proof]) -> Coverage:
    """Return what these proofs cover."""
    proofs = list(proofs)
    pairs = Counter(proof.references[dtype] for proof in proofs for dtype in proof.proved)
    return Coverage(
        len(proofs),
        dict(sorted(pairs.items(), key=lambda pair: -pair[1])),
        tuple(proof.operator for proof in proofs if not proof.proved),
        sum(proof.samples for proof in proofs),
        sum(proof.gradients for proof in proofs),
        sum(len(proof.expected) for proof in proofs),
    )


def judge(covered: Coverage, apart: Mapping[str, tuple[tuple[str, ...], str]], device: str) -> list[str]:
    """Return what is wrong with a coverage: too few pairs or operators, or one that nobody explained."""
    problems = []
    if covered.independent < COMMITTED_PAIRS:
        problems.append(
            f"{covered.independent} pairs of operator and dtype have an independent reference, and {COMMITTED_PAIRS} "
            "are committed"
        )
    if covered.share < COMMITTED_SHARE:
        problems.append(f"{covered.share:.1%} of the operators are covered, and {COMMITTED_SHARE:.0%} are committed")
    explained = {operator for operator, (devices, _) in apart.items() if device in devices}
    if missing := sorted(set(covered.uncovered) - explained):
        problems.append(f"without a reference and without an explanation in known.json: {', '.join(missing)}")
    if needless := sorted(explained - set(covered.uncovered)):
        problems.append(f"explained in known.json as without a reference, and they have one: {', '.join(needless)}")
    return problems


def replacements(dump: str, home: str) -> list[tuple[str, str]]:
    """Return (dispatch key, where it was registered) of each kernel of an operator that is not torch's own.

    dump: what the dispatcher says of the operator. home: the folder of the package torch, whose Python files register
    kernels too. Compiled code counts as torch's unless it took the place of another kernel and is of no file of torch.
    """
    rows = re.findall(r"^([^:\n]+): registered at (.+?):\d+ ::", dump, re.MULTILINE)
    former = {key.removesuffix(" (inactive)") for key, _ in rows if key.endswith(" (inactive)")}
    foreign = []
    for key, file in rows:
        if key.endswith(" (inactive)"):
            continue
        own = file.startswith(home + "/") if file.endswith(".py") else re.search(r"/(aten|torch|c10)/", file)
        if not own and (file.endswith(".py") or key in former):
            foreign.append((key, file))
    return foreign


def shortened(problems: Sequence[str], most: int = 3) -> str:
    """Return the first problems and how many more there are, for a failure that people read."""
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
