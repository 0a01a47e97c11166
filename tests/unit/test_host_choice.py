"""The choice of a variant: hosts and their expected answers as literals, each with the source that says so.

Sources, by the letters in the rows:
    D  NVIDIA's CUDA release notes, table of driver versions: CUDA 12 from 525.60.13, CUDA 13 from 580 (Linux)
    P  PyTorch's RELEASE.md, pytorch/pytorch#182849, #194367, #197555: the capabilities built into each build
    B  PyTorch's .ci/manywheel/build_cuda.sh of the 2.10 line and pytorch/pytorch#157517: Volta in CUDA 12.8
    G  NVIDIA's list of CUDA GPUs and their compute capabilities
    C  NVIDIA's CUDA programming guide: code runs on the same major and a higher minor number
    I  this project's issue: same-version variants first, a fallback is said, an unknown newer part is no refusal
    A  the Python package index: torch 2.10.0 for aarch64 is a CPU build
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from given import ROOT

from torchdock import choice, host, variants
from torchdock.choice import Choice
from torchdock.errors import InputError
from torchdock.host import HostFacts, HostGpu
from torchdock.variants import Variant

ROWS = variants.read(ROOT)
BOTH = frozenset({"x86_64", "aarch64"})
PIN = Path("/home/anna/project/torchdock.toml")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CU126_INDEX = "https://download.pytorch.org/whl/cu126"
NO_DRIVER = "there is no NVIDIA driver"


def table(**locked: "frozenset[str]") -> "dict[str, Variant]":
    """The real rows; locked for all of their architectures, except for what is named."""
    return {name: replace(row, locked=locked.get(name, frozenset(row.architectures))) for name, row in ROWS.items()}


LOCKED = table()
UNLOCKED = table(cu126=frozenset())  # a clone until `invoke lock` reached that index
CARDS = {
    "3.7": "Tesla K80", "5.0": "GeForce GTX 750 Ti", "5.2": "Tesla M40", "6.0": "Tesla P100", "6.1": "Tesla P40",
    "7.0": "Tesla V100", "7.2": "Jetson AGX Xavier", "7.5": "Tesla T4", "8.0": "NVIDIA A100", "8.6": "NVIDIA A10",
    "8.7": "Jetson AGX Orin", "8.9": "NVIDIA L4", "9.0": "NVIDIA H100", "10.0": "NVIDIA B200", "10.3": "NVIDIA B300",
    "11.0": "Jetson T5000", "12.0": "GeForce RTX 5090", "12.1": "NVIDIA GB10", "13.0": "a GPU of tomorrow",
    "15.0": "a GPU of the day after", "": "a GPU that does not tell",
}  # fmt: skip


def cards(*capabilities: str) -> "tuple[HostGpu, ...]":
    return tuple(HostGpu(f"GPU-{i}", CARDS[found], found) for i, found in enumerate(capabilities))


class Host(NamedTuple):
    """One host and what it gets: the GPUs are named GPU-0, GPU-1, …; ``told`` has words of each warning, in order."""

    what: str
    source: str
    gpus: "tuple[HostGpu, ...]"
    driver: str
    variant: str
    reason: str
    told: "tuple[str, ...]" = ()
    unserved: "tuple[str, ...]" = ()
    rows: "dict[str, Variant]" = LOCKED
    architecture: str = "x86_64"
    reachable: "frozenset[str] | None" = None
    wanted: "str | None" = None
    pinned: "str | None" = None
    cuda: bool = False

    @property
    def facts(self) -> HostFacts:
        """As :mod:`torchdock.host` would gather them."""
        reason = "" if self.gpus else NO_DRIVER
        by = PIN if self.pinned else None
        return HostFacts(
            self.architecture, self.driver, self.gpus, reason, self.reachable, pinned=self.pinned, pinned_by=by
        )

    def choose(self) -> Choice:
        return choice.choose(self.facts, self.rows, self.wanted, cuda=self.cuda)


def arm(*given: Any, **more: Any) -> Host:
    return Host(*given, architecture="aarch64", **more)


NONE: "frozenset[str]" = frozenset()
MOVED = "cu128 has torch 2.10.0 instead of 2.14.1, and numbers move with the version"
LOCK_126 = f"`invoke lock --variant cu126` where {CU126_INDEX} can be reached writes it"
WOULD_FIT = f"cu126 would fit, with torch 2.14.1, but it has no lock in this clone yet: {LOCK_126}"
NO_LOCK = "cu126 has no lock in this clone yet"

HOSTS = [
    # --- driver boundaries (an H100 has code in every build: what differs is the driver) ---
    Host("driver 524", "D", cards("9.0"), "524.99", "cpu", "serves NVIDIA H100 (9.0) with driver 524.99",
         ("cu130 with driver 580 or newer; or cu126 with driver 525.60.13 or newer; or cu128 with driver 525.60.13",),
         ("GPU-0",)),
    Host("driver 470", "D", cards("8.0"), "470.256.02", "cpu", "with driver 470.256.02", ("cu130 with driver 580",),
         ("GPU-0",)),
    Host("driver 525.60.12", "D", cards("9.0"), "525.60.12", "cpu", "no variant that can be built here serves",
         ("cu126 with driver 525.60.13 or newer",), ("GPU-0",)),
    Host("driver 525.60.13", "D P", cards("9.0"), "525.60.13", "cu126",
         "the same torch 2.14.1 as cu130, and it serves NVIDIA H100 (9.0) with driver 525.60.13, where cu130 needs "
         "driver 580 or newer"),
    Host("driver 525.60.13, no lock", "D B I", cards("9.0"), "525.60.13", "cu128",
         "torch 2.10.0 instead of 2.14.1, because it serves NVIDIA H100 (9.0) with driver 525.60.13, where cu130 "
         f"needs driver 580 or newer and {NO_LOCK}", (WOULD_FIT, MOVED), rows=UNLOCKED),
    Host("driver 525.125.06", "D", cards("8.0"), "525.125.06", "cu126", "driver 525.125.06"),
    Host("driver 535", "D", cards("8.0"), "535.183.01", "cu126", "cu130 needs driver 580 or newer"),
    Host("driver 550, no lock", "D I", cards("8.9"), "550.90.07", "cu128", "torch 2.10.0 instead of 2.14.1",
         (WOULD_FIT, MOVED), rows=UNLOCKED),
    Host("driver 579", "D", cards("9.0"), "579.99.99", "cu126", "cu130 needs driver 580 or newer"),
    Host("driver 580", "D P", cards("9.0"), "580", "cu130", "the newest variant, and it serves NVIDIA H100 (9.0) with "
         "driver 580"),
    Host("driver 580.65.06", "D", cards("9.0"), "580.65.06", "cu130", "the newest variant"),
    Host("driver 580, no lock of cu126", "D", cards("9.0"), "580.65.06", "cu130", "the newest", rows=UNLOCKED),
    Host("driver 595, the newest known", "D", cards("9.0"), "595.45.04", "cu130", "the newest variant"),
    Host("a driver of the future", "I", cards("9.0"), "999.1", "cu130", "the newest variant",
         ("driver 999.1 is newer than any that this version of torchdock knows (595)",)),
    Host("a driver without a number", "I", cards("9.0"), "unknown", "cu130", "the newest variant"),
    # --- generations of GPUs on x86_64 ---
    Host("Kepler", "P G", cards("3.7"), "470.256.02", "cpu", "Tesla K80 (3.7)", ("No variant for x86_64 does.",),
         ("GPU-0",)),
    Host("Maxwell 5.0", "P G", cards("5.0"), "580.95.05", "cu126", "cu130 has no code for compute capability 5.0"),
    Host("Maxwell 5.2", "P G C", cards("5.2"), "535.183.01", "cu126", "serves Tesla M40 (5.2)"),
    Host("Maxwell, no lock", "P I", cards("5.2"), "580.95.05", "cpu", "serves Tesla M40 (5.2)",
         (f"What would: cu126 with its lock ({LOCK_126}).",), ("GPU-0",), rows=UNLOCKED),
    Host("Pascal 6.0", "P G", cards("6.0"), "580.95.05", "cu126", "cu130 has no code for compute capability 6.0"),
    Host("Pascal 6.1", "P G C", cards("6.1"), "580.95.05", "cu126", "serves Tesla P40 (6.1)"),
    Host("Pascal, no lock", "P B I", cards("6.1"), "580.95.05", "cpu", "no variant that can be built here serves",
         ("cpu does not compute on Tesla P40 (6.1; GPU-0)",), ("GPU-0",), rows=UNLOCKED),
    Host("Volta", "P G", cards("7.0"), "580.95.05", "cu126", "cu130 has no code for compute capability 7.0"),
    Host("Volta, no lock", "B G I", cards("7.0"), "580.95.05", "cu128",
         f"where cu130 has no code for compute capability 7.0 and {NO_LOCK}", (WOULD_FIT, MOVED), rows=UNLOCKED),
    Host("Turing", "P G", cards("7.5"), "580.95.05", "cu130", "serves Tesla T4 (7.5)"),
    Host("Ampere 8.0", "P G", cards("8.0"), "580.95.05", "cu130", "serves NVIDIA A100 (8.0)"),
    Host("Ampere 8.6", "P G", cards("8.6"), "580.95.05", "cu130", "serves NVIDIA A10 (8.6)"),
    Host("Ada", "P G C", cards("8.9"), "580.95.05", "cu130", "serves NVIDIA L4 (8.9)"),
    Host("Hopper, eight", "P G", cards(*["9.0"] * 8), "580.95.05", "cu130", "serves 8 × NVIDIA H100 (9.0)"),
    Host("Blackwell 10.0", "P G", cards("10.0"), "580.95.05", "cu130", "serves NVIDIA B200 (10.0)"),
    Host("Blackwell 10.3", "P G C", cards("10.3"), "580.95.05", "cu130", "serves NVIDIA B300 (10.3)"),
    Host("Blackwell 12.0", "P G", cards("12.0"), "580.95.05", "cu130", "serves GeForce RTX 5090 (12.0)"),
    Host("Blackwell 12.1", "P G C", cards("12.1"), "580.95.05", "cu130", "serves NVIDIA GB10 (12.1)"),
    Host("Blackwell on a 570 driver", "B D", cards("12.0"), "570.133.07", "cu128",
         "where cu130 needs driver 580 or newer and cu126 has no code for compute capability 12.0", (MOVED,)),
    Host("11.0 has no code on x86_64", "P", cards("11.0"), "580.95.05", "cpu", "no variant that can be built here",
         ("No variant for x86_64 does.",), ("GPU-0",)),
    Host("a GPU of the future", "I C", cards("13.0"), "610.10", "cu130", "serves a GPU of tomorrow (13.0)",
         ("is newer than any GPU that this version of torchdock knows; cu130 is tried", "driver 610.10 is newer")),
    Host("a GPU of the day after", "I C", cards("15.0"), "595.45.04", "cu130", "(15.0)", ("cu130 is tried",)),
    Host("a GPU that does not tell", "I", cards(""), "580.95.05", "cu130", "(compute capability unknown)",
         ("it is taken on trust",)),
    # --- several kinds of GPUs ---
    Host("Pascal and Hopper", "P", cards("6.0", "9.0"), "580.95.05", "cu126",
         "serves Tesla P100 (6.0) and NVIDIA H100 (9.0)"),
    Host("Pascal and Hopper, no lock", "P I", cards("6.0", "9.0"), "580.95.05", "cu130",
         "serves 1 of 2 GPUs, NVIDIA H100 (9.0) with driver",
         ("cu130 does not compute on Tesla P100 (6.0; GPU-0), because it has no code for compute capability 6.0. What "
          f"would: cu126 with its lock ({LOCK_126}).",), ("GPU-0",), rows=UNLOCKED),
    Host("Volta and Blackwell", "P B", cards("7.0", "10.0"), "580.95.05", "cu128",
         "where cu130 has no code for compute capability 7.0 and cu126 has no code for compute capability 10.0",
         (MOVED,)),
    Host("Pascal and Blackwell: the newest on a tie", "P B", cards("6.1", "12.0"), "580.95.05", "cu130",
         "serves 1 of 2 GPUs, GeForce RTX 5090 (12.0)", ("Tesla P40 (6.1; GPU-0)",), ("GPU-0",)),
    Host("two Pascals and a Blackwell: the most", "P", cards("6.1", "12.0", "6.1"), "580.95.05", "cu126",
         "serves 2 of 3 GPUs, 2 × Tesla P40 (6.1)", ("GeForce RTX 5090 (12.0; GPU-1)",), ("GPU-1",)),
    Host("Kepler and Ada", "P", cards("3.7", "8.9"), "580.95.05", "cu130", "1 of 2 GPUs, NVIDIA L4",
         ("Tesla K80 (3.7; GPU-0), because it has no code for compute capability 3.7. No variant for x86_64 does.",),
         ("GPU-0",)),
    Host("Turing and Ampere on a 535 driver", "D P", cards("7.5", "8.6"), "535.183.01", "cu126", "Tesla T4 (7.5) and"),
    # --- aarch64 ---
    arm("GH200", "P G", cards("9.0"), "580.95.05", "cu130", "the newest variant"),
    arm("GH200 on a 535 driver", "P D", cards("9.0"), "535.183.01", "cu126", "cu130 needs driver 580 or newer"),
    arm("GH200 on a 535 driver, no lock", "P D A", cards("9.0"), "535.183.01", "cpu", "no variant that can be built",
        ("cu130 with driver 580 or newer; or cu126 with its lock",), ("GPU-0",), rows=UNLOCKED),
    arm("Orin", "P G C", cards("8.7"), "580.95.05", "cu130", "Jetson AGX Orin (8.7)"),
    arm("Orin on a 540 driver", "P G C", cards("8.7"), "540.4.0", "cu126", "cu130 needs driver 580 or newer"),
    arm("Xavier", "P G", cards("7.2"), "580.95.05", "cpu", "(7.2)", ("No variant for aarch64 does.",), ("GPU-0",)),
    arm("T4G", "P G", cards("7.5"), "580.95.05", "cpu", "(7.5)", ("No variant for aarch64 does.",), ("GPU-0",)),
    arm("Thor", "P G", cards("11.0"), "580.95.05", "cu130", "Jetson T5000 (11.0)"),
    arm("GB200", "P G", cards("10.0"), "580.95.05", "cu130", "(10.0)"),
    arm("GB10", "P G C", cards("12.1"), "580.95.05", "cu130", "NVIDIA GB10 (12.1)"),
    arm("a GPU of the future beside Arm", "P I C", cards("13.0"), "595.45.04", "cu130", "(13.0)", ("cu130 is tried",)),
    # --- no GPU, and indexes out of reach ---
    Host("no GPU", "I", (), "", "cpu", f"there is no GPU, as {NO_DRIVER}, and it is for CPUs alone"),
    Host("no GPU, the index answers", "I", (), "", "cpu", "there is no GPU", reachable=frozenset({"cpu"})),
    Host("no GPU, no CPU index", "I", (), "", "cu130", "there is no GPU",
         (f"fallback: cpu needs the wheel index {CPU_INDEX}, which cannot be reached; cu130 is taken, whose wheels "
          "compute on CPUs too",), reachable=frozenset({"cu126"})),
    Host("no GPU, no CPU lock", "I", (), "", "cu130", "there is no GPU",
         ("fallback: cpu has no lock in this clone yet: `invoke lock --variant cpu`",), rows=table(cpu=NONE)),
    Host("no registry: the choice does not depend on it", "I", (), "", "cpu", "there is no GPU",
         reachable=frozenset({"cpu", "cu126"})),
    Host("no registry, a GPU", "I", cards("9.0"), "580.95.05", "cu130", "the newest variant", reachable=NONE),
    arm("no GPU on Arm", "I", (), "", "cpu", "there is no GPU"),
    arm("no GPU on Arm, no CPU index", "I", (), "", "cu130", "there is no GPU", ("fallback: cpu needs",),
        reachable=NONE),
    arm("no GPU on Arm, cpu locked for x86_64 alone", "I", (), "", "cu130", "there is no GPU",
        ("fallback: cpu has no lock for aarch64 in this clone yet",), rows=table(cpu=frozenset({"x86_64"}))),
    Host("Volta, the index of cu126 out of reach", "I", cards("7.0"), "580.95.05", "cu128",
         f"and cu126 needs the wheel index {CU126_INDEX}, which cannot be reached",
         (f"fallback: cu126 needs the wheel index {CU126_INDEX}, which cannot be reached; cu128 is taken", MOVED),
         reachable=NONE),
    Host("Pascal, the index of cu126 out of reach", "I P", cards("6.1"), "580.95.05", "cpu", "serves Tesla P40 (6.1)",
         ("fallback: cu126 needs", "or a mirror of it in TORCHDOCK_TORCH_INDEX"), ("GPU-0",),
         reachable=frozenset({"cpu"})),
    Host("Pascal, no index at all", "I P", cards("6.1"), "580.95.05", "cu130", "its wheels compute on CPUs too",
         ("fallback: cpu needs", "fallback: cu126 needs", "cu130 does not compute on Tesla P40 (6.1; GPU-0)"),
         ("GPU-0",), reachable=NONE),
    Host("Hopper, no index at all", "I", cards("9.0"), "580.95.05", "cu130", "the newest variant", reachable=NONE),
    # --- asked for, pinned, demanded ---
    Host("cu128 asked for", "I", cards("9.0"), "580.95.05", "cu128",
         "it was asked for, with torch 2.10.0 instead of 2.14.1", wanted="cu128"),
    Host("cpu asked for beside a GPU", "I", cards("9.0"), "580.95.05", "cpu", "it was asked for",
         ("because it is for CPUs alone. What would: cu130; or cu126; or cu128.",), ("GPU-0",), wanted="cpu"),
    Host("cu130 asked for on a 535 driver", "D", cards("9.0", "6.1"), "535.183.01", "cu130", "it was asked for",
         ("NVIDIA H100 (9.0; GPU-0), because it needs driver 580 or newer. What would: cu130 with driver 580 or newer; "
          "or cu126; or cu128.", "Tesla P40 (6.1; GPU-1), because it has no code"), ("GPU-0", "GPU-1"),
         wanted="cu130"),
    Host("pinned", "I", cards("9.0"), "580.95.05", "cu126", f"{PIN} pins it", pinned="cu126"),
    Host("pinned and asked for", "I", cards("9.0"), "580.95.05", "cu126", "pins it", pinned="cu126", wanted="cu126"),
    Host("pinned to cpu beside a GPU", "I", cards("9.0"), "580.95.05", "cpu", "pins it", ("is for CPUs alone",),
         ("GPU-0",), pinned="cpu"),
    Host("pinned, no GPU, no index", "I", (), "", "cpu", "pins it", pinned="cpu", reachable=NONE),
    Host("CUDA demanded, no GPU", "I", (), "", "cu130", "the newest CUDA variant, as one is demanded", cuda=True),
    Host("CUDA demanded, Pascal, no lock", "I P", cards("6.1"), "580.95.05", "cu130", "as one is demanded",
         ("cu130 does not compute on Tesla P40",), ("GPU-0",), cuda=True, rows=UNLOCKED),
    Host("CUDA demanded, Volta", "I P", cards("7.0"), "580.95.05", "cu126", "the same torch 2.14.1", cuda=True),
    Host("CUDA demanded and pinned", "I", (), "", "cu128", "pins it", cuda=True, pinned="cu128"),
    arm("CUDA demanded on Arm, no GPU", "I", (), "", "cu130", "as one is demanded", cuda=True, reachable=NONE),
]  # fmt: skip


@pytest.mark.parametrize("given", HOSTS, ids=lambda given: given.what)
def test_a_host_gets(given: Host) -> None:
    found = given.choose()
    assert (found.variant.name, found.unserved) == (given.variant, given.unserved)
    assert given.reason in found.reason
    assert len(found.warnings) == len(given.told), found.warnings
    for words, warning in zip(given.told, found.warnings, strict=True):
        assert words in warning
    assert bool(found.refusal) is bool(given.unserved)


def test_there_are_enough_hosts_and_each_has_its_own_name_and_source() -> None:
    assert len(HOSTS) >= 45
    assert len({given.what for given in HOSTS}) == len(HOSTS)
    assert all(given.source and set(given.source.split()) <= set("DPBGCIA") for given in HOSTS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(Host("", "", (), "", "", "", wanted="cu13"), "There is no variant 'cu13'. Did you mean 'cu130'?",
                     id="unknown"),
        pytest.param(Host("", "", (), "", "", "", pinned="cu13"), f"{PIN}: There is no variant 'cu13'. Did you mean",
                     id="unknown and pinned"),
        pytest.param(Host("", "", (), "", "", "", pinned="cu126", wanted="cu130"),
                     f"{PIN} pins the variant cu126, and cu130 is asked for", id="against the pin"),
        pytest.param(arm("", "", (), "", "", "", wanted="cu128"),
                     "cu128 is made for x86_64 alone, and this machine is aarch64. Variants for it: cpu, cu126, cu130.",
                     id="another architecture"),
        pytest.param(Host("", "", cards("9.0"), "535.1", "", "", wanted="cu126", rows=UNLOCKED),
                     f"cu126 cannot be built: it has no lock in this clone yet: {LOCK_126}. Until then choose cu128 "
                     "(torch 2.10.0, CUDA 12.8).", id="no lock: cu128 is offered"),
        pytest.param(Host("", "", (), "", "", "", wanted="cu126", rows=UNLOCKED),
                     "Until then choose cu130 (torch 2.14.1, CUDA 13.0) or cu128 (torch 2.10.0, CUDA 12.8).",
                     id="no lock, no GPU"),
        pytest.param(Host("", "", cards("6.1"), "535.1", "", "", wanted="cu126", rows=UNLOCKED),
                     "No other variant that is locked would do.", id="no lock, and nothing else would do"),
        pytest.param(Host("", "", cards("9.0"), "535.1", "", "", pinned="cu126", rows=UNLOCKED),
                     f"{PIN} pins cu126. cu126 cannot be built", id="pinned without a lock"),
        pytest.param(Host("", "", (), "", "", "", wanted="cpu", cuda=True), "--variant cpu has none: leave one of them",
                     id="CUDA from the CPU variant"),
        pytest.param(Host("", "", (), "", "", "", pinned="cpu", cuda=True), f"the pin in {PIN} has none",
                     id="CUDA from a pin to the CPU variant"),
        pytest.param(Host("", "", (), "", "", "", architecture="riscv64"),
                     "this machine's architecture, riscv64; there are some for aarch64, x86_64", id="riscv64"),
        pytest.param(Host("", "", (), "", "", "", rows={name: replace(row, locked=NONE) for name, row in ROWS.items()}),
                     "No variant can be built on this host: cpu has no lock", id="nothing is locked"),
        pytest.param(Host("", "", (), "", "", "", rows=table(cu130=NONE, cu128=NONE, cu126=NONE), reachable=NONE),
                     f"cpu needs the wheel index {CPU_INDEX}, which cannot be reached", id="nothing is at hand"),
        pytest.param(Host("", "", (), "", "", "", rows={"cpu": LOCKED["cpu"]}, cuda=True), "No variant can be built",
                     id="CUDA where there is none"),
    ],
)  # fmt: skip
def test_a_host_is_refused(given: Host, words: str) -> None:
    with pytest.raises(InputError) as refused:
        given.choose()
    assert words in str(refused.value)
    assert refused.value.exit_code == 2


KINDS = [(), ("6.1",), ("7.0",), ("9.0",), ("12.0",), ("15.0",), ("",), ("5.0", "9.0"), ("7.0", "12.1"), ("3.7", "8.6")]
DRIVERS = ["470.1", "525.60.13", "579.1", "580.65.06", "999.1"]
TABLES = [LOCKED, UNLOCKED, table(cpu=NONE), table(cu130=frozenset({"aarch64"}))]


@pytest.mark.parametrize("architecture", sorted(BOTH))
@pytest.mark.parametrize("reachable", [None, NONE, frozenset({"cpu"}), frozenset({"cu126"})], ids=str)
def test_whatever_the_host_is(architecture: str, reachable: "frozenset[str] | None") -> None:
    for kinds, driver, rows, cuda in product(KINDS, DRIVERS, TABLES, (False, True)):
        facts = HostFacts(architecture, driver, cards(*kinds), "" if kinds else NO_DRIVER, reachable)
        try:
            found = choice.choose(facts, rows, cuda=cuda)
        except InputError:  # the last table without its indexes: nothing of this architecture can be built
            assert architecture == "x86_64" or rows is not LOCKED
            continue
        variant = found.variant
        assert architecture in variant.architectures and architecture in variant.locked
        assert not variant.index or reachable is None or variant.index in reachable
        assert variant.cuda or not cuda
        assert set(found.unserved) <= {gpu.uuid for gpu in facts.gpus}
        for gpu in facts.gpus:
            served = not choice.obstacle(variant, gpu, driver=driver, architecture=architecture)
            assert served is (gpu.uuid not in found.unserved)
            assert served or any(gpu.uuid in warning for warning in found.warnings)
        assert "\n" not in found.reason and not found.reason.endswith(".")
        if facts.gpus and len(found.unserved) == len(facts.gpus) and not cuda and not found.fallbacks:
            assert not variant.cuda
        # No other variant at hand would have served more.
        count = len(facts.gpus) - len(found.unserved)
        for other in rows.values():
            at_hand = architecture in other.locked and (
                not other.index or reachable is None or other.index in reachable
            )
            if at_hand:
                assert count >= sum(
                    not choice.obstacle(other, gpu, driver=driver, architecture=architecture) for gpu in facts.gpus
                )


def test_a_fallback_is_told_apart_from_a_note() -> None:
    found = choice.choose(HostFacts("x86_64", "580.1", cards("7.0"), reachable=NONE), LOCKED)
    assert found.fallbacks == (f"cu126 needs the wheel index {CU126_INDEX}, which cannot be reached; cu128 is taken",)
    assert found.notes == (MOVED,)


def test_why_an_index_gave_no_answer_is_told() -> None:
    silence = (("cpu", "its name cannot be resolved"),)
    found = choice.choose(HostFacts("x86_64", reachable=NONE, silence=silence), LOCKED)
    assert f"{CPU_INDEX}, which cannot be reached (its name cannot be resolved); cu130" in found.fallbacks[0]


# --- asking for the reach of an index, where the choice depends on it ---


class World:
    """Indexes that answer or do not, images that are there or not; remembers what was asked."""

    def __init__(self, answers: str = "", images: str = "") -> None:
        self.answers, self.images = answers.split(), images.split()
        self.asked: list[str] = []

    def reaches(self, variant: Variant) -> str:
        self.asked.append(variant.index)
        return "" if variant.index in self.answers else "it is silent"

    def built(self, variant: Variant) -> bool:
        return variant.name in self.images


VOLTA = HostFacts("x86_64", "580.95.05", cards("7.0"))
PASCAL = HostFacts("x86_64", "580.95.05", cards("6.1"))
HOPPER = HostFacts("x86_64", "580.95.05", cards("9.0"))
BARE = HostFacts("x86_64", no_gpu_reason=NO_DRIVER)


@pytest.mark.parametrize(
    ("facts", "world", "more", "variant", "asked", "fallbacks"),
    [
        pytest.param(HOPPER, World(), {}, "cu130", [], 0, id="nothing depends on an index"),
        pytest.param(BARE, World("cpu"), {}, "cpu", ["cpu"], 0, id="no GPU, the index answers"),
        pytest.param(BARE, World(), {}, "cu130", ["cpu"], 1, id="no GPU, the index is silent"),
        pytest.param(BARE, World("", "cpu"), {}, "cpu", [], 0, id="the image is there: no index is needed"),
        pytest.param(BARE, World("cpu", "cu130"), {}, "cpu", ["cpu"], 0, id="the second best is there, and not enough"),
        pytest.param(BARE, World("cpu", "cu130"), {"thrifty": True}, "cu130", [], 0, id="the second best will do"),
        pytest.param(BARE, World("", ""), {"thrifty": True}, "cu130", ["cpu"], 1, id="thrifty, and nothing is there"),
        pytest.param(BARE, World(), {"cuda": True}, "cu130", [], 0, id="CUDA demanded"),
        pytest.param(BARE, World(), {"wanted": "cpu"}, "cpu", [], 0, id="asked for by name"),
        pytest.param(replace(BARE, pinned="cpu", pinned_by=PIN), World(), {}, "cpu", [], 0, id="pinned"),
        pytest.param(VOLTA, World("cu126"), {}, "cu126", ["cu126"], 0, id="Volta, the index answers"),
        pytest.param(VOLTA, World("cpu"), {}, "cu128", ["cu126"], 1, id="Volta, the index is silent"),
        pytest.param(PASCAL, World("cpu"), {}, "cpu", ["cu126", "cpu"], 1, id="Pascal, one index of two"),
        pytest.param(PASCAL, World(), {}, "cu130", ["cu126", "cpu"], 2, id="Pascal, no index"),
        pytest.param(VOLTA, World("", "cu128"), {"thrifty": True}, "cu128", [], 0, id="Volta, cu128 is built"),
    ],
)
def test_indexes_are_asked(
    facts: HostFacts, world: World, more: "dict[str, Any]", variant: str, asked: "list[str]", fallbacks: int
) -> None:
    found = choice.decide(facts, LOCKED, reaches=world.reaches, built=world.built, **more)
    assert (found.variant.name, world.asked, len(found.fallbacks)) == (variant, asked, fallbacks)
    assert all("(it is silent)" in text for text in found.fallbacks)


def test_an_image_that_is_there_speaks_no_more_of_its_lock() -> None:
    rows, world = table(cpu=NONE), World("", "cu130")
    decide: Callable[..., Choice] = choice.decide
    assert len(decide(BARE, rows, reaches=world.reaches, built=world.built).fallbacks) == 1
    assert decide(BARE, rows, reaches=world.reaches, built=world.built, thrifty=True).warnings == ()


def test_where_only_an_index_could_help_it_is_asked_before_it_is_refused() -> None:
    rows = {"cpu": LOCKED["cpu"]}
    world = World("cpu")
    assert choice.decide(BARE, rows, reaches=world.reaches, built=world.built).variant.name == "cpu"
    with pytest.raises(InputError, match=r"cannot be reached \(it is silent\)"):
        choice.decide(BARE, rows, reaches=World().reaches, built=world.built)


# --- the facts ---


@pytest.mark.parametrize(
    ("machine", "name"),
    [("x86_64", "x86_64"), ("AMD64", "x86_64"), ("aarch64", "aarch64"), ("arm64", "aarch64"), ("riscv64", "riscv64")],
)
def test_architectures_have_one_name(machine: str, name: str) -> None:
    assert host.architecture(machine) == name


def test_where_the_newest_has_lost_its_lock_another_torch_is_said_aloud() -> None:
    found = choice.choose(HostFacts("x86_64", "", (), NO_DRIVER, NONE), table(cu130=frozenset()))
    assert found.variant.name == "cu128"
    assert any(text.startswith("cu130 has no lock in this clone yet: `invoke lock") for text in found.warnings)
    assert "cu128 has torch 2.10.0 instead of 2.14.1, and numbers move with the version" in found.warnings
