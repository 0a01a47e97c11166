"""What this machine is, as far as the choice of a variant depends on it: facts, gathered once, frozen."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from torchdock import gpus, selection, workspace
from torchdock.selection import Wish

# What other systems call these machines.
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class HostGpu:
    """One GPU, or one MIG instance; its compute capability is empty where the driver does not tell."""

    uuid: str
    name: str
    compute_capability: str


@dataclass(frozen=True)
class HostFacts:
    """What a choice is made from.

    Attributes:
        architecture: as ``uname`` on Linux names it: ``x86_64``, ``aarch64``.
        driver: the NVIDIA driver's version; empty where there is none.
        gpus: every GPU that a launch could be given.
        no_gpu_reason: why there are none, else empty.
        reachable: names of the wheel indexes that can be reached; None where nobody has asked yet, which counts as all.
        silence: (index, why it gave no answer) of those that were asked in vain, as far as it is known.
        pinned: the variant that the workspace pins, or None.
        pinned_by: the file that does.
    """

    architecture: str
    driver: str = ""
    gpus: tuple[HostGpu, ...] = ()
    no_gpu_reason: str = ""
    reachable: frozenset[str] | None = None
    silence: tuple[tuple[str, str], ...] = ()
    pinned: str | None = None
    pinned_by: Path | None = None


def architecture(machine: str | None = None) -> str:
    """The name of this machine's architecture, or of the one given, as ``uname`` on Linux has it."""
    machine = platform.machine() if machine is None else machine
    return ARCHITECTURES.get(machine.lower(), machine.lower())


def gather(wanted: Wish, folder: Path) -> HostFacts:
    """Ask NVML and read the workspace; reaches out to nobody.

    ``wanted``: the GPUs asked for. UUIDs, a name and memory narrow the choice to the GPUs that are that; with anything
    else each GPU of the host may be the one.

    Raises:
        InputError: what is asked for is not there, which is told before anything is installed or built; see
            :func:`selection.possible` and :func:`workspace.read`.
    """
    inventory = gpus.gather()
    leased = selection.possible(inventory, wanted) or inventory.gpus  # one environment, GPU or not
    pin = workspace.read(folder)
    return HostFacts(
        architecture=architecture(),
        driver=inventory.driver,
        gpus=tuple(HostGpu(gpu.uuid, gpu.name, gpu.compute_capability) for gpu in leased),
        no_gpu_reason=inventory.reason,
        pinned=pin.variant,
        pinned_by=pin.path if pin.variant is not None else None,
    )
