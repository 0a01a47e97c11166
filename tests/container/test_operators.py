"""every operator of torch against NumPy and float64: values, strides, gradients, twice the same"""

import functools
import os
from pathlib import Path

import pytest
import torch

from torchdock.inside import operators
from torchdock.inside.operators import proof

pytestmark = pytest.mark.quick
REMEDY = (
    "build the image again (invoke build --no-cache); if an operator still fails, this torch is wrong on this device: "
    "report it, and list it in torchdock/inside/operators/known.json with its reason."
)
FULL = os.environ.get(operators.OPS) == "full"


@functools.cache
def proved(name, device):
    return proof.prove(name, device, FULL)


def test_no_kernel_was_replaced():
    """What computes is torch's own code: a kernel that torch.library or an extension put in its place is another's."""
    home = str(Path(torch.__file__).parent)
    replaced = [
        f"{operator} on {key} by {where}"
        for operator in torch._C._dispatch_get_all_op_names()
        if operator.startswith("aten::")
        for key, where in operators.replacements(torch._C._dispatch_dump(operator), home)
    ]
    assert not replaced, (
        f"Operators were replaced: {operators.shortened(replaced)}. Remedy: find what imports that file (a .pth file "
        "in site-packages, a sitecustomize.py, PYTHONSTARTUP) and take it out."
    )


@pytest.mark.limit(900 if FULL else 60)
@pytest.mark.parametrize("name", proof.database())
def test_operator(name, device):
    """In every dtype that it supports: its values, run twice, on strided values too, and its gradients."""
    problems = proved(name, device).problems()
    assert not problems, operators.shortened(problems)


@pytest.mark.limit(3600 if FULL else 600)
def test_coverage(device, measured):
    """What was compared with an independent reference is as much as is committed; the rest is named and explained."""
    covered = operators.coverage(proved(name, device) for name in proof.database())
    details = {"samples": "every one" if FULL else "one of each dtype", "device": device}
    measured("operators", covered.operators, "1", **details)
    measured("operators with an independent reference", covered.operators - len(covered.uncovered), "1", **details)
    measured("pairs of operator and dtype with an independent reference", covered.independent, "1", **covered.pairs)
    measured("samples of operators", covered.samples, "1", **details)
    measured("gradients of operators", covered.gradients, "1", **details)
    measured("expected failures of torch", covered.expected, "1", **details)
    problems = operators.judge(covered, proof.known().apart, torch.device(device).type)
    assert not problems, f"{'; '.join(problems)}. Covered: {covered}"
