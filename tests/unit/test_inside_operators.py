"""The operators' data file and the judgement on them: known failures, coverage, kernels of others. Plain values."""

from __future__ import annotations

import json

import pytest

from torchdock.inside import operators
from torchdock.inside.operators import Coverage, Facts, Fault, Known, Proof

KNOWN = Known("histc", ("float16",), ("value", "strides"), "cpu", "2.14.1", "its edges are rounded")
FACTS = Facts((KNOWN, Known("pow", ("float16",), ("value",), "cpu", "2.14.1", "why", full=True)), {}, {}, frozenset())


def document(**changes: object) -> str:
    entry = {"operator": "histc", "dtypes": ["float16"], "parts": ["value"], "device": "cpu", "torch": "2.14.1"}
    entry |= {"reason": "why"} | changes
    nondeterministic = {"source": "torch", "operators": ["put"]}
    return json.dumps({"known": [entry], "tolerances": [], "apart": [], "nondeterministic": nondeterministic})


def test_the_file_that_travels_is_sound() -> None:
    """Every known failure has its reason and version; nothing has two tolerances; nothing is told twice."""
    facts = operators.facts()
    names = [
        (one.operator, dtype, part, one.device) for one in facts.known for dtype in one.dtypes for part in one.parts
    ]
    assert len(names) == len(set(names)) > 0
    assert all(one.reason and one.torch for one in facts.known)
    assert not {one.operator for one in facts.known} & set(facts.apart)
    assert all(reason and devices for devices, reason in facts.apart.values())


@pytest.mark.parametrize(
    "changes", [{"parts": ["speed"]}, {"device": "tpu"}, {"dtypes": []}, {"reason": " "}, {"torch": ""}, {"parts": []}]
)
def test_an_entry_that_says_too_little_is_refused(changes: dict[str, object]) -> None:
    assert operators.facts(document()).known[0].reason == "why"
    with pytest.raises(ValueError, match="histc"):
        operators.facts(document(**changes))


def test_one_operator_has_one_tolerance() -> None:
    entry = {"operators": ["add"], "dtypes": ["float16"], "rtol": 1e-2, "atol": 0, "reason": "why"}
    text = json.loads(document()) | {"tolerances": [entry, entry]}
    with pytest.raises(ValueError, match="add in float16: it has two"):
        operators.facts(json.dumps(text))


def proof_of(*parts: str, dtype: str = "float16") -> Proof:
    faults = [Fault("histc", dtype, part, "off by 1") for part in parts]
    return Proof("histc", {"float32": "numpy", "float16": "wide", "int64": ""}, 3, 2, faults)


def test_a_known_failure_is_expected_and_proves_nothing() -> None:
    proof = proof_of("value", "strides")
    proof.settle(FACTS, "cpu", "2.14.1+cu130", full=False)
    assert proof.problems() == []
    assert len(proof.expected) == 2
    assert proof.proved == ("float32",)


def test_a_known_failure_that_passes_is_told() -> None:
    proof = proof_of("value")
    proof.settle(FACTS, "cpu", "2.14.1+cu130", full=False)
    (said,) = proof.problems()
    assert "histc in float16, strides: it passes" in said and "known.json" in said


@pytest.mark.parametrize(("device", "torch"), [("cuda", "2.14.1"), ("cpu", "2.15.0")])
def test_elsewhere_nothing_is_expected(device: str, torch: str) -> None:
    passes = proof_of()
    passes.settle(FACTS, device, torch, full=True)
    assert passes.problems() == []
    fails = proof_of("value")
    fails.settle(FACTS, device, torch, full=True)
    assert fails.problems() == ["histc in float16, value: off by 1"]


@pytest.mark.parametrize("full", [False, True])
def test_what_only_all_samples_show_is_missed_only_there(full: bool) -> None:
    proof = Proof("pow", {"float16": "numpy"})
    proof.settle(FACTS, "cpu", "2.14.1", full=full)
    assert bool(proof.problems()) is full


def test_another_dtype_or_part_is_new() -> None:
    proof = proof_of("value", dtype="float32")
    proof.faults += proof_of("gradient", "value", "strides").faults
    proof.settle(FACTS, "cpu", "2.14.1", full=False)
    assert [(one.dtype, one.part) for one in proof.faults] == [("float32", "value"), ("float16", "gradient")]
    assert proof.proved == ()


def test_coverage() -> None:
    covered = operators.coverage([proof_of(), proof_of("value"), Proof("jiterator", {"int64": ""})])
    assert (covered.operators, covered.independent, covered.uncovered) == (3, 3, ("jiterator",))
    assert dict(covered.pairs) == {"numpy": 2, "wide": 1}
    assert covered.share == pytest.approx(2 / 3)
    assert "2 of 3 operators (66.7%), 3 pairs of operator and dtype: 2 against NumPy" in str(covered)


def test_judge() -> None:
    apart = {"a": (("cpu",), "why")}
    enough = Coverage(100, {"numpy": operators.COMMITTED_PAIRS}, ("a",), 1, 1, 0)
    assert operators.judge(enough, apart, "cpu") == []
    assert "without an explanation in known.json: a" in operators.judge(enough, apart, "cuda")[0]
    few = Coverage(100, {"numpy": operators.COMMITTED_PAIRS - 1}, tuple("abcd"), 1, 1, 0)
    said = operators.judge(few, apart, "cpu")
    assert len(said) == 3
    assert "1499 pairs" in said[0] and "96.0% of the operators" in said[1] and "b, c, d" in said[2]
    assert "they have one: a" in operators.judge(Coverage(9, {"numpy": 9999}, (), 1, 1, 0), apart, "cpu")[0]


DUMP = """\
name: aten::tanh
debug: registered at /__w/pytorch/pytorch/build/aten/src/ATen/RegisterSchema.cpp:6
CPU: registered at {cpu}:5 :: (none) [ boxed ]
CPU (inactive): registered at /__w/pytorch/pytorch/build/aten/src/ATen/RegisterCPU_3.cpp:48 :: (Tensor _0) -> Tensor _0
Meta: registered at /venv/torch/_meta_registrations.py:53 :: (none) [ boxed ]
Autograd[alias]: registered at /__w/pytorch/pytorch/torch/csrc/autograd/generated/VariableType_1.cpp:96 :: (Tensor _0)
PrivateUse1: registered at /src/extension/kernels.cpp:7 :: (Tensor _0) -> Tensor _0
"""


@pytest.mark.parametrize("file", ["/x/mine.py", "/venv/torchvision/ops.py", "/src/extension/kernels.cpp"])
def test_a_kernel_of_others_is_found(file: str) -> None:
    assert operators.replacements(DUMP.format(cpu=file), "/venv/torch") == [("CPU", file)]


@pytest.mark.parametrize("file", ["/venv/torch/_native/ops.py", "/opt/pytorch/aten/src/ATen/native/mkldnn/Matmul.cpp"])
def test_torchs_own_kernels_are_none_of_others(file: str) -> None:
    assert operators.replacements(DUMP.format(cpu=file), "/venv/torch") == []


def test_shortened() -> None:
    assert operators.shortened(["a", "b", "c"]) == "a; b; c"
    assert operators.shortened(list("abcde")) == "a; b; c; and 2 more"
