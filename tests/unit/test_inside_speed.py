"""Shares of a peak: which device is which, what is a peak's part, what is told, what a gate refuses. Needs no torch."""

import json

import pytest

from torchdock.inside import check, speed
from torchdock.inside.speed import Device, Measurement, Peak

H200 = Device("NVIDIA H200", 132, link=63.0)
SLICE = Device("NVIDIA H200 MIG 1g.18gb", 16)
CLOCK = (1.1, 2.9)  # GHz: within this every such GPU boosts
LANES = {40: 64, 80: 64, 108: 64, 56: 64}  # float32 units of a multiprocessor: Volta, Turing, GA100; 128 since


@pytest.mark.parametrize(
    ("name", "multiprocessors", "bf16"),
    [
        ("NVIDIA H200", 132, 989.4),
        ("NVIDIA H200 NVL", 132, 835.5),
        ("NVIDIA H100 80GB HBM3", 132, 989.4),
        ("NVIDIA H100 PCIe", 114, 756),
        ("NVIDIA A100-SXM4-80GB", 108, 312),
        ("NVIDIA L4", 58, 121),
        ("NVIDIA L40S", 142, 362.05),
        ("NVIDIA GeForce RTX 4090", 128, 165.2),
        ("Tesla T4", 40, None),
        ("Tesla V100-SXM2-16GB", 80, None),
    ],
)
def test_known(name: str, multiprocessors: int, bf16: "float | None") -> None:
    peak = speed.known(Device(name, multiprocessors))
    assert peak is not None
    assert peak.bf16 == bf16


@pytest.mark.parametrize(
    ("name", "multiprocessors"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 76),
        ("NVIDIA GeForce RTX 4090 D", 114),
        ("NVIDIA GeForce RTX 3090 Ti", 84),
        ("NVIDIA GeForce RTX 4090", 114),
        ("NVIDIA A100-SXM4-40GB", 124),
        ("NVIDIA A10G", 80),
        ("NVIDIA H300", 132),
        ("NVIDIA H200 MIG 9g.999gb", 133),
        ("", 0),
    ],
)
def test_what_is_not_in_the_table_gets_no_share(name: str, multiprocessors: int) -> None:
    """A figure of a sister product would be worse than none."""
    device = Device(name, multiprocessors)
    assert speed.known(device) is None
    assert speed.related(Measurement("matmul bf16", 500.0, "TFLOP/s"), device).share is None


@pytest.mark.parametrize("peak", speed.PEAKS, ids=lambda peak: peak.name)
def test_figures_of_the_table_fit_each_other(peak: Peak) -> None:
    """Typing errors and figures with sparsity: float32 gives the clock; tensor cores are twice as fast in half."""
    clock = peak.fp32 * 1e3 / (peak.multiprocessors * LANES.get(peak.multiprocessors, 128) * 2)
    assert CLOCK[0] < clock < CLOCK[1]
    assert (peak.tf32 is None) == (peak.bf16 is None)
    if peak.tf32 is not None:
        assert peak.bf16 == peak.fp16
        assert peak.fp16 / peak.tf32 == pytest.approx(2, rel=0.03)
        assert 1 <= peak.tf32 / peak.fp32 < 17
    assert peak.fp16 / peak.fp32 < 32
    assert peak.source


def test_every_device_is_one_product() -> None:
    names = ["NVIDIA L4", "NVIDIA L40", "NVIDIA L40S", "NVIDIA H100 NVL", "NVIDIA A100-PCIE-40GB", "NVIDIA GB200"]
    found = [[peak for peak in speed.PEAKS if speed.re.fullmatch(peak.name, name)] for name in names]
    assert [len(peaks) for peaks in found] == [1] * len(names)


@pytest.mark.parametrize(
    ("measured", "peak"),
    [
        ("matmul fp32", 66.9),
        ("matmul tf32", 494.7),
        ("matmul fp16", 989.4),
        ("block bf16", 989.4),
        ("memory", 4800),
        ("copy to", 63.0),
        ("launch", None),
        ("round trip", None),
        ("loader", None),
    ],
)
def test_peak_of(measured: str, peak: "float | None") -> None:
    assert speed.peak_of(measured, H200) == peak


def test_a_mig_instance_computes_with_its_part_and_its_memory_is_unknown() -> None:
    assert speed.peak_of("matmul bf16", SLICE) == pytest.approx(989.4 * 16 / 132)
    assert speed.peak_of("memory", SLICE) is None
    assert speed.peak_of("copy to", SLICE) is None


def test_what_the_hardware_has_not_has_no_peak() -> None:
    turing = Device("Tesla T4", 40)
    assert speed.peak_of("matmul bf16", turing) is None
    assert speed.peak_of("matmul fp16", turing) == 65


@pytest.mark.parametrize(
    ("generation", "lanes", "link"), [(5, 16, 63.008), (3, 8, 7.88), (9, 16, None), (None, 16, None), (4, None, None)]
)
def test_link_of(generation: "int | None", lanes: "int | None", link: "float | None") -> None:
    found = speed.link_of(generation, lanes)
    assert found == (link and pytest.approx(link))


def test_related() -> None:
    one = speed.related(Measurement("memory", 4080.0, "GB/s", 0.01, note="a copy"), H200)
    assert (one.peak, one.share, one.note) == (4800, 0.85, "a copy")
    assert speed.related(Measurement("memory", 25.0, "GB/s"), None).share is None


def test_more_than_the_peak_is_no_share() -> None:
    one = speed.related(Measurement("copy to", 380.0, "GB/s", note="pinned"), H200)
    assert (one.share, one.note) == (None, "pinned; above the peak of 63 that is known")
    assert speed.related(Measurement("memory", 4900.0, "GB/s"), H200).share == pytest.approx(1.02, abs=0.01)


HEALTHY = [
    Measurement("matmul fp32", 50.0, "TFLOP/s", peak=66.9),
    Measurement("matmul bf16", 700.0, "TFLOP/s", peak=989.4),
    Measurement("memory", 4200.0, "GB/s", peak=4800),
    Measurement("block bf16", 300.0, "TFLOP/s", peak=989.4),
    Measurement("launch", 4.0, "µs"),
]


def test_the_gate_judges_what_has_a_share_and_not_the_block() -> None:
    assert speed.below(HEALTHY, 0.6) == []
    assert speed.below(HEALTHY, 0.72) == ["matmul bf16 reaches 71% of its peak (700 of 989 TFLOP/s)"]
    assert [phrase.partition(" reaches")[0] for phrase in speed.below(HEALTHY, 1)] == [
        "matmul fp32",
        "matmul bf16",
        "memory",
    ]


def test_far_below_its_kind_is_a_finding() -> None:
    assert speed.findings(HEALTHY) == []
    throttled = [
        Measurement("matmul bf16", 200.0, "TFLOP/s", peak=989.4),
        Measurement("copy to", 12.0, "GB/s", peak=63),
    ]
    assert speed.findings([*HEALTHY, *throttled]) == [
        "matmul bf16 reaches 20% of its peak (200 of 989 TFLOP/s)",
        "copy to reaches 19% of its peak (12.0 of 63.0 GB/s)",
    ]


def test_document() -> None:
    found = json.loads(json.dumps(speed.document("NVIDIA H200", HEALTHY, 0.72)))
    assert (found["good"], found["min_share"], len(found["below"]), found["findings"]) == (False, 0.72, 1, [])
    assert found["measurements"][2] == {
        "name": "memory",
        "value": 4200.0,
        "unit": "GB/s",
        "spread": 0.0,
        "peak": 4800,
        "note": "",
        "share": 0.875,
    }
    assert speed.document("cpu", HEALTHY, None)["good"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.002344, "0.00234"), (0.0916, "0.0916"), (2.149, "2.15"), (25.0, "25.0"), (1273.4, "1273"), (0.0, "0")],
)
def test_rounded(value: float, text: str) -> None:
    assert speed.rounded(value) == text


def test_line() -> None:
    assert speed.line(Measurement("memory", 4200.0, "GB/s", peak=4800, note="a copy")).split() == [
        *("memory", "4200", "GB/s", "88%", "of", "4800", "a", "copy")
    ]
    assert speed.line(Measurement("launch", 4.0, "µs")).split() == ["launch", "4.00", "µs"]


def test_block_flops_by_hand() -> None:
    """One token of width 1: q, k, v, out are 4 products of 1, the feed-forward part 8, attention 2; twice, thrice."""
    assert speed.block_flops(1, 1, 1) == 3 * 2 * (4 + 8 + 2)
    assert speed.block_flops(2, 8, 4) == 2 * 3 * 8 * (24 * 16 + 4 * 8 * 4)


@pytest.mark.parametrize(("once", "times"), [(1e-3, 10), (2.0, 1), (0.0, 10_000_000), (3e-3, 4)])
def test_repeats(once: float, times: int) -> None:
    assert speed.repeats(once, 10e-3) == times


def test_the_median_and_the_spread_leave_out_what_a_neighbour_did() -> None:
    middle, spread = speed.summary([1.0, 1.0, 1.1, 0.9, 50.0])
    assert middle == 1.0
    assert spread == pytest.approx(0.1)


@pytest.mark.parametrize(
    "argv", [["--min-share", "0"], ["--min-share", "60"], ["--min-share", "x"], ["--device", "tpu"]]
)
def test_wrong_options_exit_2(argv: "list[str]", capsys: pytest.CaptureFixture[str]) -> None:
    for parse in (speed.arguments, check.arguments):
        with pytest.raises(SystemExit) as caught:
            parse(argv)
        assert caught.value.code == 2
        assert "usage:" in capsys.readouterr().err


def test_a_gate_needs_a_peak(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.ungateable(H200) is None
    assert "NVIDIA H300" in (speed.ungateable(Device("NVIDIA H300", 99)) or "")
    assert speed.main(["--min-share", "0.6"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "Remedy" in told.err
    assert check.main(["--min-share", "0.6"]) == 2
    assert "Remedy" in capsys.readouterr().err
