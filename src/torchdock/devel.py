"""The devel layer: which wheels of a compiler for CUDA belong to a variant, and its lock ``devel.txt``. Pure.

NVIDIA releases the parts of a CUDA toolkit together, and the ``cuda-toolkit`` package names them: its extras choose
parts, its version is the toolkit's. torch takes its CUDA libraries through the same package, so the compiler and the
headers fit the libraries of the variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torchdock import locks
from torchdock.errors import InputError, read_text
from torchdock.locks import Header, Pin
from torchdock.variants import Variant, numbers

LAYER = "devel"
# NVIDIA's wheels for CUDA 12 have parts of the compiler (ptxas, libnvvm) and neither nvcc itself nor cicc and cudafe++.
FIRST_CUDA = (13,)
# nvcc: nvcc, ptxas, cicc, libdevice, and the headers that nvcc includes by itself. cccl: thrust and cub, which torch's
# headers include. nvml and profiler: headers that extensions include; their libraries come with the driver and torch.
PARTS = ("cccl", "nvcc", "nvml", "profiler")
NOTE = "# Written by `invoke lock` from src/torchdock/devel.py and the variant's other locks; change those, not this.\n"
TOOLS = ("ninja",)  # torch.utils.cpp_extension builds with it


def exists(variant: Variant) -> bool:
    """Whether this variant can have a devel layer: whether there are wheels of nvcc for its CUDA."""
    return numbers(variant.cuda)[:1] >= FIRST_CUDA


def devel_requirements(variant: Variant, pins: Mapping[str, Pin]) -> list[str]:
    """What to resolve for the devel layer, in requirements format; empty where the variant can have none.

    ``pins`` are the variant's own, over its layers. They are asked for as they are, so the result is these and what the
    layer adds, or there is no result; :func:`added` tells the two apart.
    """
    if not exists(variant):
        return []
    wanted = [f"cuda-toolkit[{','.join(PARTS)}]=={variant.cuda}.*", *TOOLS]
    return wanted + [f"{pin.name}=={pin.version}" for _, pin in sorted(pins.items())]


def added(variant: Variant, pins: Mapping[str, Pin], resolved: Mapping[str, Pin]) -> dict[str, Pin]:
    """The packages of the devel layer alone: what was resolved and is not in the variant's other layers.

    Raises:
        InputError: a package of the variant would have another version, or nvcc another CUDA.
    """
    moved = [name for name, old, new in locks.difference(pins, resolved) if old and new]
    if moved:
        raise InputError(
            f"The devel layer of {variant.name} would change {', '.join(moved)}, which belong to its other layers. "
            f"Lock the variant first: `invoke lock --variant {variant.name}`."
        )
    found = {name: pin for name, pin in resolved.items() if name not in pins}
    nvcc = found["nvidia-cuda-nvcc"].version if "nvidia-cuda-nvcc" in found else "none"
    if numbers(nvcc)[:2] != numbers(variant.cuda):
        raise InputError(
            f"The devel layer of {variant.name} would have nvcc {nvcc}, and its wheels are built for CUDA "
            f"{variant.cuda}: correct `cuda` in its row of docker/variants.toml."
        )
    return found


def file(root: Path, variant: Variant) -> Path:
    """Where the lock of a variant's devel layer is; it is there for the variants that have such a layer."""
    return locks.folder(root, variant.name) / f"{LAYER}.txt"


def check(root: Path, variant: Variant, architecture: str) -> None:
    """Whether the devel image of a variant can be built for this architecture (as ``uname -m`` names it).

    In addition to :func:`torchdock.locks.check`; reads files only.

    Raises:
        InputError: there is no compiler for this variant, or its lock is missing or for something else.
    """
    if not exists(variant):
        why = f"NVIDIA's wheels of nvcc begin with CUDA {FIRST_CUDA[0]}" if variant.cuda else "it is for CPUs alone"
        raise InputError(
            f"The variant {variant.name} has no devel image: {why}. Choose a variant that has one (`--variant cu130`), "
            "or leave out --devel."
        )
    path = file(root, variant)
    if not path.is_file():
        raise _unfit(f"{path.relative_to(root)} is missing", variant)
    content = read_text(path, str(path.relative_to(root)))
    found, wanted = locks.header(content), _header(variant)
    if found is None or replace(found, architectures=wanted.architectures) != wanted:
        raise _unfit(f"{path.relative_to(root)} is not the {LAYER} layer of {variant.name}", variant)
    if architecture not in found.architectures:
        raise _unfit(f"{path.relative_to(root)} is for {', '.join(found.architectures)}, not {architecture}", variant)
    own = locks.read(root, variant.name)
    twice = sorted({*locks.parse(content, str(path.relative_to(root)))} & {*own})
    if twice:
        raise _unfit(f"{path.relative_to(root)} is older than the other layers, which have {', '.join(twice)}", variant)


def _unfit(problem: str, variant: Variant) -> InputError:
    return InputError(
        f"{problem}. `git checkout docker/locks` restores it, `invoke lock --variant {variant.name}` writes it anew."
    )


def _header(variant: Variant) -> Header:
    return Header(variant=variant.name, layer=LAYER, python=variant.python, architectures=variant.architectures)


def text(variant: Variant, pins: Mapping[str, Pin]) -> str:
    """The lock file of a devel layer of these packages (see :func:`added`)."""
    return _header(variant).line + NOTE + "".join(pin.text for _, pin in sorted(pins.items()))


def arch_list(variant: Variant, architecture: str) -> str:
    """What TORCH_CUDA_ARCH_LIST is in the image: the compute capabilities of the variant's own torch.

    ``"7.5;8.0;…;12.0"``; ``architecture`` as ``uname`` names machines.
    """
    return ";".join(variant.compute_capability[architecture])
