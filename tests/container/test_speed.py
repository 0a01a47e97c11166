"""measured: matrix products, memory, copies, launches, a Transformer block, data loading"""

import os

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchdock.inside import speed, suite

REMEDY = f"see what else runs on the device, then its health. {speed.SLOW}"
ON_CPU = [pytest.param(group, id=group) for group in speed.GROUPS if group != "copies"]
ON_GPU = [pytest.param(group, id=group) for group in speed.GROUPS if group != "loader"]


@pytest.fixture
def report(measured, finding):
    """Hand measurements to the report; what is far below its kind is a finding, below the user's gate a failure."""

    def tell(device, measurements):
        assert measurements, "nothing was measured"
        for one in measurements:
            details = {"device": device, "share": one.share, "peak": one.peak, "spread": one.spread, "note": one.note}
            measured(one.name, one.value, one.unit, **details)
            assert one.value > 0, f"{one.name} is {one.value} {one.unit}: a clock that stands still"
        for phrase in speed.findings(measurements):
            finding(
                "note",
                f"speed of {device}",
                seen=f"{phrase}.",
                meaning="It is far below what a healthy device of its kind does.",
                remedy=speed.SLOW,
            )

    return tell


@pytest.mark.parametrize("group", ON_CPU)
def test_cpu(group, report):
    """What this machine's CPUs do beside what else runs on them; no peak is known of a CPU, so nothing is judged."""
    report("cpu", speed.measure(group, "cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("group", ON_GPU)
def test_gpu(group, report):
    """On every GPU, as a share of what its maker promises; judged only where --min-share asks for it."""
    least = os.environ.get(suite.MIN_SHARE)
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            device, measurements = speed.gpu(), speed.measure(group, "cuda")
            report(f"cuda:{index} {device.name}", measurements)
            if least:
                assert not (problem := speed.ungateable(device)), problem
                assert not (missed := speed.below(measurements, float(least))), f"cuda:{index}: {'; '.join(missed)}."


def test_the_blocks_operations_are_counted_right():
    """What the block's TFLOP/s are made of: torch's own counter comes to the same number."""
    batch, length, width = 3, 64, 128
    layer = nn.TransformerEncoderLayer(width, 2, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        layer(torch.randn(batch, length, width, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == speed.block_flops(batch, length, width)
