"""Which GPUs this host has, which ones a launch gets, and how the engine hands them over.

Inventory is by NVML (nvidia-ml-py); GPUs are named by UUID everywhere, because indices move (pytorch/pytorch#86539).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchdock.errors import BusyError, InputError

# Where the container engines look for CDI specifications, the more specific folder last.
CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML shows it.

    Attributes:
        memory_total: bytes; 0 for a part that shares the host's memory, as is ``memory_used``.
        processes: compute processes of anybody's.
        compute_capability: ``major.minor``; empty where the driver does not tell.
        mig: it is cut into MIG instances.
    """

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_used: int
    processes: int
    compute_capability: str = ""
    mig: bool = False


@dataclass(frozen=True)
class Inventory:
    """The GPUs of this host and its driver; ``reason`` says why there are none, else it is empty."""

    gpus: tuple[Gpu, ...]
    driver: str
    reason: str


def gather() -> Inventory:
    """Ask NVML; a host without a driver has no GPUs and a reason."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return Inventory((), "", "there is no NVIDIA driver (libnvidia-ml.so.1 was not found)")
    except pynvml.NVMLError as error:
        return Inventory((), "", f"the NVIDIA driver does not answer (NVML: {error})")
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        found = [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return Inventory((), "", f"the NVIDIA driver failed while its GPUs were listed (NVML: {error})")
    finally:
        pynvml.nvmlShutdown()
    return Inventory(tuple(found), driver, "" if found else "the NVIDIA driver sees no GPU")


def _gpu(pynvml: Any, index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        total, used = int(memory.total), int(memory.used)
    except pynvml.NVMLError_NotSupported:  # unified-memory parts
        total = used = 0
    try:
        processes = len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except pynvml.NVMLError:
        processes = 0
    try:
        capability = "{}.{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        capability = ""
    try:
        mig = bool(pynvml.nvmlDeviceGetMigMode(handle)[0])  # the current mode, not the one after the next reset
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):  # no MIG before Ampere
        mig = False
    name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
    return Gpu(index, str(uuid), str(name), total, used, processes, capability, mig)


def choose(
    inventory: Inventory, wanted: str | None, *, unserved: Collection[str] = (), why: str = ""
) -> tuple[Gpu, ...]:
    """The GPUs for one launch. Pure.

    ``wanted``: a number, ``all``, UUIDs separated by commas, or None for the default: one where there is one. By
    number, GPUs without anybody's process come first, those with the least memory in use before others. ``unserved``:
    UUIDs of GPUs that the variant cannot compute on, and ``why``; they are handed to nobody.

    Raises:
        InputError: not a number or UUID of this host, more GPUs than there are, or one that is not served.
        BusyError: as many exist, but others' processes use them.
    """
    served = [gpu for gpu in inventory.gpus if gpu.uuid not in unserved]
    if wanted is None:
        free = [gpu for gpu in served if gpu.processes == 0] or served
        return tuple(sorted(free, key=lambda gpu: (gpu.memory_used, gpu.index))[:1])
    if wanted == "all":
        if not inventory.gpus:
            raise InputError(f"--gpus all: {inventory.reason}. Leave --gpus away to compute on the CPU.")
        return _all_served(wanted, inventory.gpus, unserved, why)
    if not (wanted.isascii() and wanted.isdigit()):
        by_uuid = {gpu.uuid: gpu for gpu in inventory.gpus}
        unknown = [word for word in wanted.split(",") if word not in by_uuid]
        if unknown:
            known = ", ".join(by_uuid) or f"none; {inventory.reason}"
            raise InputError(
                f"--gpus takes a number, `all` or UUIDs; {unknown[0]!r} is none of them here. GPUs: {known}."
            )
        return _all_served(wanted, [by_uuid[word] for word in dict.fromkeys(wanted.split(","))], unserved, why)
    number = int(wanted[:6])  # nobody has a million
    if number > len(inventory.gpus):
        reason = inventory.reason or f"this host has {len(inventory.gpus)}"
        raise InputError(f"--gpus {number}: {reason}. Leave --gpus away to compute with what there is.")
    if number > len(served):
        _all_served(wanted, inventory.gpus, unserved, why)
    free = [gpu for gpu in served if gpu.processes == 0]
    if number > len(free):
        raise BusyError(
            f"--gpus {number}: {len(free)} of {len(served)} GPUs are free of other processes. Try later, ask "
            "for fewer, or name GPUs by UUID to share them."
        )
    return tuple(sorted(free, key=lambda gpu: (gpu.memory_used, gpu.index))[:number])


def _all_served(wanted: str, asked: Sequence[Gpu], unserved: Collection[str], why: str) -> tuple[Gpu, ...]:
    """These GPUs, if the variant computes on every one."""
    if any(gpu.uuid in unserved for gpu in asked):
        raise InputError(f"--gpus {wanted}: {why} `--gpus 0` computes on the CPU.")
    return tuple(asked)


def cdi_devices(folders: Sequence[str] = CDI_FOLDERS) -> str:
    """The text of every NVIDIA CDI specification that can be read; empty where there is none."""
    texts = []
    for folder in folders:
        for path in sorted(Path(folder).glob("*")):
            try:
                text = path.read_text() if path.suffix in (".json", ".yaml", ".yml") else ""
            except (OSError, UnicodeDecodeError):
                continue
            if "nvidia.com/gpu" in text:
                texts.append(text)
    return "\n".join(texts)


def arguments(gpus: Sequence[Gpu], specification: str) -> list[str]:
    """The part of docker's argv that hands these GPUs over. Pure.

    By CDI where a specification names each of them (the legacy hook's device rules are lost on a systemd reload:
    NVIDIA/nvidia-container-toolkit#48), else by ``--gpus``.
    """
    if not gpus:
        return []
    uuids = [gpu.uuid for gpu in gpus]
    if all(re.search(rf"(?<![\w-]){re.escape(uuid)}(?![\w-])", specification) for uuid in uuids):
        return [word for uuid in uuids for word in ("--device", f"nvidia.com/gpu={uuid}")]
    return ["--gpus", '"device=' + ",".join(uuids) + '"']  # docker reads the value as CSV: quotes keep it one field
