"""How fast this device is, as numbers and as shares of what its maker promises.

``python -m torchdock.inside.speed [--device cpu|cuda] [--min-share 0.6] [--json]``

Matrix products, device memory, copies between host and device, launches, a Transformer block, a DataLoader: warmed up,
on random data (zeros take less power, and clocks stay higher), medians, on a GPU by its own clock (CUDA events). The
same measurements are checks of the suite, where they judge nothing unless ``check --min-share`` makes them a gate.

Exit codes: 0 good, 1 below the gate, or no such device, 2 wrong input.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from torchdock.inside import suite

SAMPLES = 25  # of each measurement, and fewer where they take longer than SECONDS
FEWEST = 5
SECONDS = {"cuda": 1.0, "cpu": 0.5}  # of sampling each measurement; a third of it for warming up
SAMPLE = {"cuda": 10e-3, "cpu": 2e-3}  # seconds that one sample takes at least: short work is repeated within it


@dataclass(frozen=True)
class Peak:
    """What the maker promises of one product, dense: figures "with sparsity" are twice that.

    name: a pattern for the whole name that CUDA gives the device. multiprocessors: of the whole device; one of the
    same name with another number is another product. fp32, tf32, bf16, fp16: TFLOP/s of matrix products with float32
    accumulators, None where the hardware has none. memory: GB/s. source: where the figures stand.
    """

    name: str
    multiprocessors: int
    fp32: float
    tf32: float | None
    bf16: float | None
    fp16: float
    memory: float
    source: str


PEAKS = (
    Peak(r"Tesla V100-SXM[23]-.*", 80, 15.7, None, None, 125, 900, "NVIDIA V100 datasheet, January 2020"),
    Peak(r"Tesla V100-PCIE-.*", 80, 14, None, None, 112, 900, "NVIDIA V100 datasheet, January 2020"),
    Peak(r"Tesla V100S-PCIE-.*", 80, 16.4, None, None, 130, 1134, "NVIDIA V100 datasheet, January 2020"),
    Peak(r"Tesla T4", 40, 8.1, None, None, 65, 320, "NVIDIA T4 product brief PB-09256-001, Turing whitepaper"),
    Peak(r"NVIDIA A100-(SXM4|PCIE)-40GB", 108, 19.5, 156, 312, 312, 1555, "NVIDIA A100 datasheet, June 2021"),
    Peak(r"NVIDIA A100-SXM4-80GB", 108, 19.5, 156, 312, 312, 2039, "NVIDIA A100 datasheet, June 2021"),
    Peak(r"NVIDIA A100 80GB PCIe", 108, 19.5, 156, 312, 312, 1935, "NVIDIA A100 datasheet, June 2021"),
    Peak(r"NVIDIA A10", 72, 31.2, 62.5, 125, 125, 600, "NVIDIA A10 datasheet, March 2021"),
    Peak(r"NVIDIA A30", 56, 10.3, 82, 165, 165, 933, "NVIDIA A30 datasheet, March 2022"),
    Peak(r"NVIDIA A40", 84, 37.4, 74.8, 149.7, 149.7, 696, "NVIDIA A40 datasheet, April 2021"),
    Peak(r"NVIDIA L4", 58, 30.3, 60, 121, 121, 300, "NVIDIA L4 datasheet, March 2023 (halved: given with sparsity)"),
    Peak(r"NVIDIA L40", 142, 90.5, 90.5, 181.05, 181.05, 864, "NVIDIA L40 datasheet, September 2022"),
    Peak(r"NVIDIA L40S", 142, 91.6, 183, 362.05, 362.05, 864, "NVIDIA L40S datasheet, January 2024"),
    Peak(r"NVIDIA GeForce RTX 3090", 82, 35.6, 35.6, 71.2, 71.2, 936, "NVIDIA Ampere GA102 whitepaper, table 9"),
    Peak(r"NVIDIA GeForce RTX 4090", 128, 82.6, 82.6, 165.2, 165.2, 1008, "NVIDIA Ada whitepaper, appendix A"),
    Peak(r"NVIDIA GeForce RTX 5090", 170, 104.8, 104.8, 209.5, 209.5, 1792, "NVIDIA RTX Blackwell whitepaper"),
    Peak(r"NVIDIA H100 80GB HBM3", 132, 66.9, 494.7, 989.4, 989.4, 3352, "NVIDIA H100 whitepaper, table 2 (SXM5)"),
    Peak(r"NVIDIA H100 PCIe", 114, 51.2, 378, 756, 756, 2039, "NVIDIA H100 whitepaper, table 2 (PCIe)"),
    Peak(r"NVIDIA H100 NVL", 132, 60, 417.5, 835.5, 835.5, 3938, "NVIDIA H100 datasheet, 2024 (halved)"),
    Peak(r"NVIDIA H200", 132, 66.9, 494.7, 989.4, 989.4, 4800, "NVIDIA H200 datasheet, November 2024 (halved)"),
    Peak(r"NVIDIA H200 NVL", 132, 60, 417.5, 835.5, 835.5, 4800, "NVIDIA H200 datasheet, November 2024 (halved)"),
    Peak(r"NVIDIA B200", 148, 75, 1100, 2250, 2250, 7700, "NVIDIA Blackwell datasheet, HGX B200 (halved)"),
    Peak(r"NVIDIA GB200", 152, 80, 1250, 2500, 2500, 8000, "NVIDIA Blackwell datasheet, GB200 (halved)"),
)

# GB/s of one PCI Express lane in one direction, by generation: its GT/s times its coding (8b/10b, 128b/130b, FLIT).
# Headers are not taken off: a program gets 80 to 90% of it.
LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}

# Below these shares, far below what a healthy device of any kind reaches, a finding: throttled, shared, badly seated.
# Ours, not the maker's: small cards, whose power limit holds their clocks down, reach 0.4 of a matrix product.
FAR_BELOW = {"matmul": 0.3, "memory": 0.6, "copy": 0.5}
# A Transformer block is bound by more than one thing: no healthy device comes near its peak, so no gate judges it.
UNGATED = ("block",)
# More than this and the figure is not this device's: an overclocked board, another product under the same name.
IMPLAUSIBLE = 1.15


@dataclass(frozen=True)
class Measurement:
    """One number. value: in unit; spread: half of the samples lie within this share of it.

    peak: in unit, None where none is known, and then share is None too. note: what else must be known to read it.
    """

    name: str
    value: float
    unit: str
    spread: float = 0.0
    peak: float | None = None
    note: str = ""

    @property
    def share(self) -> float | None:
        """Value by peak."""
        return None if self.peak is None else self.value / self.peak


@dataclass(frozen=True)
class Device:
    """What shares are counted of.

    name, multiprocessors: as CUDA says. link: GB/s of its PCI Express in one direction, None where unknown.
    """

    name: str
    multiprocessors: int
    link: float | None = None

    @property
    def mig(self) -> bool:
        """Whether it is a part of a GPU, whose peaks are a part of that GPU's."""
        return " MIG " in self.name


def known(device: Device) -> Peak | None:
    """Return the promises for this device, None for a product that is not in the table."""
    name = device.name.partition(" MIG ")[0]
    for peak in PEAKS:
        if re.fullmatch(peak.name, name):
            fits = device.multiprocessors <= peak.multiprocessors if device.mig else True
            return peak if fits and (device.mig or device.multiprocessors == peak.multiprocessors) else None
    return None


def peak_of(measured: str, device: Device) -> float | None:
    """Return the peak for a measurement such as "matmul bf16", in its unit; None where nothing honest can be said.

    A MIG instance computes with its share of the multiprocessors; of memory it gets slices of which CUDA tells nothing.
    """
    kind, _, detail = measured.partition(" ")
    if kind == "copy":
        return device.link
    peak = known(device)
    if peak is None:
        return None
    if kind == "memory":
        return None if device.mig else peak.memory
    figure: float | None = getattr(peak, detail) if kind in ("matmul", "block") else None
    return figure and figure * device.multiprocessors / peak.multiprocessors


def link_of(generation: int | None, lanes: int | None) -> float | None:
    """Return the GB/s of a PCI Express link in one direction, None where it is unknown."""
    return LANE[generation] * lanes if generation in LANE and lanes else None


def related(measurement: Measurement, device: Device | None) -> Measurement:
    """Return the measurement with its peak, where the device has one."""
    peak = peak_of(measurement.name, device) if device else None
    if peak and measurement.value / peak > IMPLAUSIBLE:
        note = f"{measurement.note}; above the peak of {peak:g} that is known".removeprefix("; ")
        return Measurement(**{**asdict(measurement), "note": note})
    return Measurement(**{**asdict(measurement), "peak": peak})


def below(measurements: Sequence[Measurement], least: float) -> list[str]:
    """Return one phrase for each measurement whose share of the peak is less than ``least``."""
    return [
        f"{one.name} reaches {one.share:.0%} of its peak ({rounded(one.value)} of {rounded(one.peak or 0)} {one.unit})"
        for one in measurements
        if one.share is not None and one.share < least and one.name.partition(" ")[0] not in UNGATED
    ]


def findings(measurements: Sequence[Measurement]) -> list[str]:
    """Return one phrase for each measurement that is far below its kind."""
    return [phrase for one in measurements for phrase in below([one], FAR_BELOW.get(one.name.partition(" ")[0], 0.0))]


SLOW = (
    "Something else uses the device, its power or clocks are held down (nvidia-smi -q -d PERFORMANCE), or its slot or "
    "cooling is at fault."
)


def ungateable(device: Device | None) -> str | None:
    """Return why ``--min-share`` cannot judge here, in one paragraph; None where it can. device: None for a CPU."""
    if device is None:
        return (
            "--min-share is a share of a GPU's peak, and no GPU is demanded. Remedy: add --gpu (with speed: --device "
            "cuda), or leave it out."
        )
    if known(device) is None:
        return (
            f"--min-share needs the peak of {device.name} ({device.multiprocessors} multiprocessors), which is not in "
            "the table (torchdock/inside/speed.py). Remedy: add its datasheet's figures there, or leave the gate out."
        )
    return None


def share(text: str) -> float:
    """Return text as a share above 0 and up to 1; argparse turns the ValueError into exit code 2."""
    if not 0 < (number := float(text)) <= 1:
        raise ValueError(text)
    return number


def bad_gate(text: str, gpu: bool) -> str | None:
    """Return why this value of ``--min-share`` is wrong input, in one paragraph; None where it is not.

    gpu: whether a GPU is demanded too.
    """
    try:
        share(text)
    except ValueError:
        return f"--min-share {text}: a share of a GPU's peak is a number above 0 and up to 1, such as 0.6."
    return None if gpu else ungateable(None)


def rounded(value: float) -> str:
    """Return a number with three digits that count: 0.00234, 23.4, 2340."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def line(measurement: Measurement) -> str:
    """Return one row of the table."""
    share = "" if measurement.share is None else f"{measurement.share:4.0%} of {rounded(measurement.peak or 0)}"
    row = f"{measurement.name:<20}{rounded(measurement.value):>10} {measurement.unit:<10}{share:<15}{measurement.note}"
    return row.rstrip()


def table(numbers: Sequence[suite.Number]) -> str:
    """Return the numbers that checks of speed measured, a row each below the name of each device; empty for none."""
    rows: dict[str, list[str]] = {}
    for one in numbers:
        if one.check.partition("::")[0].endswith("test_speed.py"):
            peak, note = one.details["peak"], one.details["note"]
            measurement = Measurement(one.name, one.value, one.unit, peak=peak, note=note)
            rows.setdefault(one.details["device"], []).append(f"  {line(measurement)}")
    return "\n".join(text for device, lines in rows.items() for text in (f"speed of {device}", *lines))


def block_flops(batch: int, length: int, width: int) -> int:
    """Return the floating-point operations of one pass forward and back through a Transformer block.

    Shape (batch, length, width), a feed-forward part of four widths. Forward: 24 width² a token for the products with
    weights, 4 length width for attention; twice that on the way back. Norms and activations are not counted.
    """
    return 3 * batch * length * (24 * width**2 + 4 * length * width)


def repeats(once: float, least: float) -> int:
    """Return how often work of ``once`` seconds must be done for a sample of ``least`` seconds."""
    return max(1, math.ceil(least / max(once, 1e-9)))


def summary(samples: Sequence[float]) -> tuple[float, float]:
    """Return (median, interquartile range as a share of it) of at least two samples."""
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return middle, (high - low) / middle if middle else 0.0


# --- measuring: torch from here on ---


class Clock:
    """Seconds that work takes on one device, by events on a GPU."""

    def __init__(self, device: str) -> None:
        self.device = device

    def once(self, work: Callable[[], object], times: int = 1) -> float:
        """Do the work so often; return the seconds of one time."""
        import torch

        if self.device == "cpu":
            start = time.perf_counter()
            for _ in range(times):
                work()
            return (time.perf_counter() - start) / times
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / times

    def median(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return (seconds of the work, spread of the samples), warmed up."""
        budget = SECONDS[self.device]
        deadline = time.perf_counter() + budget / 3
        single = self.once(work)  # the first is never the usual one: kernels are loaded, buffers made
        while True:
            single = min(single, self.once(work))
            if time.perf_counter() > deadline:
                break
        times = repeats(single, SAMPLE[self.device])
        samples: list[float] = []
        deadline = time.perf_counter() + budget
        while len(samples) < FEWEST or (len(samples) < SAMPLES and time.perf_counter() < deadline):
            samples.append(self.once(work, times))
        return summary(samples)


@contextmanager
def _float32(precision: str) -> Iterator[None]:
    """Products of float32 in "highest" (float32) or "high" (TF32 on a GPU) precision."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def products(device: str) -> Iterator[Measurement]:
    """Measure matrix products in each precision: "matmul fp32", in TFLOP/s."""
    import torch

    kinds = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if device == "cpu" or torch.cuda.get_device_capability()[0] < 8:
        del kinds["tf32"]  # a format of tensor cores since Ampere
    for kind, dtype in kinds.items():
        if device == "cpu":
            size = 256 if kind == "fp16" else 1024  # few CPUs compute in float16; the others take seconds for 1024
        else:
            size = 8192 if torch.cuda.mem_get_info()[0] > 4 * 2**30 else 4096
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        result = torch.empty(size, size, device=device, dtype=dtype)
        with _float32("high" if kind == "tf32" else "highest"):
            seconds, spread = Clock(device).median(partial(torch.mm, a, b, out=result))
        yield Measurement(f"matmul {kind}", 2 * size**3 / seconds / 1e12, "TFLOP/s", spread, note=f"{size} x {size}")


def memory(device: str) -> Iterator[Measurement]:
    """Measure the memory of the device by a copy within it: "memory", in GB/s read and written."""
    import torch

    # Far beyond any cache, and not more than an eighth of what is free.
    size = min(2**30, torch.cuda.mem_get_info()[0] // 8) if device == "cuda" else 2**27
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    seconds, spread = Clock(device).median(partial(target.copy_, source))
    moved = source.nbytes + target.nbytes
    yield Measurement("memory", moved / seconds / 1e9, "GB/s", spread, note=f"a copy of {source.nbytes >> 20} MiB")


def copies(device: str) -> Iterator[Measurement]:
    """Measure copies between pinned host memory and the device: "copy to" and "copy from", in GB/s. None on a CPU."""
    import torch

    if device == "cpu":
        return
    size = 2**28
    host = torch.randint(-128, 128, (size,), dtype=torch.int8).pin_memory()
    there = torch.empty(size, dtype=torch.int8, device=device)
    for name, target, source in (("copy to", there, host), ("copy from", host, there)):
        seconds, spread = Clock(device).median(partial(target.copy_, source, non_blocking=True))
        yield Measurement(name, size / seconds / 1e9, "GB/s", spread, note="pinned, 256 MiB")


def launches(device: str) -> Iterator[Measurement]:
    """Measure what an operation costs before it computes: "launch", one after another, and "round trip", in µs."""
    import torch

    one = torch.zeros(1, device=device)
    seconds, spread = Clock(device).median(partial(one.add_, 1))
    yield Measurement("launch", seconds * 1e6, "µs", spread, note="a small operation after another")
    if device == "cuda":

        def there_and_back() -> None:
            one.add_(1)
            torch.cuda.synchronize()

        samples = [Clock("cpu").once(there_and_back) for _ in range(1000)]
        seconds, spread = summary(samples[100:])
        yield Measurement("round trip", seconds * 1e6, "µs", spread, note="launched, run, waited for")


def block(device: str) -> Iterator[Measurement]:
    """Measure a Transformer block, forward and backward, in mixed precision on a GPU: "block bf16", in TFLOP/s."""
    import torch
    from torch import nn

    kind, dtype = "fp32", torch.float32
    batch, length, width = (2, 128, 256) if device == "cpu" else (8, 1024, 2048)
    if device == "cuda":
        native = torch.cuda.get_device_capability()[0] >= 8
        kind, dtype = ("bf16", torch.bfloat16) if native else ("fp16", torch.float16)
        if torch.cuda.mem_get_info()[0] < 6 * 2**30:
            batch = 1
    layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    layer = layer.to(device)
    x = torch.randn(batch, length, width, device=device)
    weights = torch.randn(batch, length, width, device=device)

    def work() -> None:
        layer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=device == "cuda"):
            output = layer(x)
        (output.float() * weights).sum().backward()

    seconds, spread = Clock(device).median(work)
    note = f"forward and backward, {batch * length / seconds:,.0f} tokens/s of width {width}"
    yield Measurement(f"block {kind}", block_flops(batch, length, width) / seconds / 1e12, "TFLOP/s", spread, note=note)


class Pictures:
    """A data set of 224 x 224 RGB pictures in memory, each cropped, flipped and normalised when it is asked for."""

    def __init__(self, count: int) -> None:
        import torch

        self.count = count
        self.pictures = torch.randint(0, 256, (16, 3, 256, 256), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        import torch

        top, left = torch.randint(0, 32, (2,)).tolist()
        picture = self.pictures[index % len(self.pictures), :, top : top + 224, left : left + 224]
        if index % 2:
            picture = picture.flip(-1)
        return (picture.float() / 255 - 0.45) / 0.225


def loader(device: str) -> Iterator[Measurement]:
    """Measure a DataLoader with a worker for each CPU, eight at most: "loader", in pictures/s, whatever the device."""
    from torch.utils.data import DataLoader

    workers = min(8, len(os.sched_getaffinity(0)))
    batch, count = 16, 16 * 8 * workers
    batches = DataLoader(Pictures(count), batch_size=batch, num_workers=workers, persistent_workers=True)
    rates = []
    for _ in range(4):
        start = time.perf_counter()
        for _ in batches:
            pass
        rates.append(count / (time.perf_counter() - start))
    batches._iterator._shutdown_workers()
    rate, spread = summary(rates[1:])  # in the first, the workers start
    yield Measurement("loader", rate, "pictures/s", spread, note=f"224 x 224, {workers} workers")


GROUPS: dict[str, Callable[[str], Iterator[Measurement]]] = {
    "products": products,
    "memory": memory,
    "copies": copies,
    "launches": launches,
    "block": block,
    "loader": loader,
}


def gpu() -> Device:
    """Return the current GPU, as CUDA and NVML tell of it."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    name, multiprocessors = str(properties.name), int(properties.multi_processor_count)
    return Device(name, multiprocessors, _link(re.sub(r"^(GPU|MIG)-", "", str(properties.uuid))))


def _link(uuid: str) -> float | None:
    """Return the GB/s of a GPU's PCI Express link at its best; None for MIG, WSL, a driver that has no answer."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        lanes = pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle)
        return link_of(pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle), lanes)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def measure(group: str, device: str) -> list[Measurement]:
    """Measure one of GROUPS on "cpu" or "cuda", the current GPU. Raises RuntimeError where torch does."""
    of = gpu() if device == "cuda" else None
    found = [related(one, of) for one in GROUPS[group](device)]
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
    return found


def document(device: str, measurements: Sequence[Measurement], least: float | None) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    missed = below(measurements, least) if least is not None else []
    return {
        "device": device,
        "good": not missed,
        "min_share": least,
        "below": missed,
        "findings": findings(measurements),
        "measurements": [{**asdict(one), "share": one.share} for one in measurements],
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and one line on stderr where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m torchdock.inside.speed",
        description="Measure matrix products, memory, copies, launches, a Transformer block, a DataLoader.",
        epilog="Exit codes: 0 good, 1 below the gate or no such device, 2 wrong input.",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--min-share",
        type=share,
        metavar="SHARE",
        help="a gate: matrix products, memory and copies must reach this share (0.6) of the GPU's peak",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, the table on stderr")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table; return the exit code."""
    args = arguments(argv)
    people = sys.stderr if args.json else sys.stdout
    if args.device == "cuda":
        from torchdock.inside import devices

        if problem := devices.gpu_problem():
            print(problem, file=sys.stderr)
            return 1
    of = gpu() if args.device == "cuda" else None
    if args.min_share is not None and (problem := ungateable(of)):
        print(f"speed: {problem}", file=sys.stderr)
        return 2
    name = of.name if of else "cpu"
    peak = known(of) if of else None
    print(f"{name}{f' · peaks: {peak.source}' if peak else ''}", file=people)
    measurements = []
    for group in GROUPS:
        for one in measure(group, args.device):
            measurements.append(one)
            print(line(one), file=people, flush=True)
    found = document(name, measurements, args.min_share)
    for phrase in found["findings"]:
        print(f"finding: {phrase}. {SLOW}", file=people)
    for phrase in found["below"]:
        print(f"FAILED: {phrase}, and --min-share {args.min_share:g} is asked for. {SLOW}", file=people)
    if args.json:
        print(json.dumps(found))
    return 0 if found["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
