"""Which GPUs this host has, and what they do.

Inventory is by NVML (nvidia-ml-py), which is asked in a process of its own: a driver may hang, and takes along whoever
waits for it. GPUs are named by UUID everywhere, because indices move (pytorch/pytorch#86539). A GPU that is cut into
MIG instances is none that a launch could be given; each of its instances is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Any

from torchdock import apart

# A driver that no process holds open starts each GPU anew, one after the other: seconds each.
PATIENCE_SECONDS = 30.0
MOMENT_SECONDS = 2.0
INSTANCES = 7  # MIG slots of one GPU; NVML says how many where it can

_silent = Event()


@dataclass(frozen=True)
class Process:
    """One process that computes on a GPU: its PID on the host, and its bytes there, None where they are not told."""

    pid: int
    memory: int | None = None


@dataclass(frozen=True)
class Load:
    """What the driver remembers of a GPU's work. Times in seconds since 1970.

    Attributes:
        since: how far back it remembers.
        at_work: when it last computed; None where it did not since then.
        ended: when the last process on it ended; None without the driver's accounting mode.
    """

    since: float
    at_work: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG instance, as NVML shows it.

    Attributes:
        index: of the GPU, in the order of PCI addresses, as nvidia-smi counts.
        memory_total: bytes; 0 for a part that shares the host's memory, as is ``memory_used``.
        processes: those that compute on it, whoever started them.
        compute_capability: ``major.minor``; empty where the driver does not tell.
        parent: UUID of the GPU that it is an instance of; empty for a whole GPU.
        slot: of an instance; None for a whole GPU.
        utilisation: percent of the last moment; ``temperature``: degrees Celsius. None where the driver does not tell.
        load: what the driver remembers; None where it does not tell.
        joined: UUIDs of the GPUs that NVLink joins it with.
    """

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_used: int
    processes: tuple[Process, ...] = ()
    compute_capability: str = ""
    parent: str = ""
    slot: int | None = None
    utilisation: int | None = None
    temperature: int | None = None
    load: Load | None = None
    joined: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """Its index, ``0``, or that of an instance, ``0:1``: for people alone."""
        return str(self.index) if self.slot is None else f"{self.index}:{self.slot}"

    @property
    def in_use(self) -> bool:
        """Somebody computes on it, or has most of its memory: not every driver shows the processes of others."""
        return bool(self.processes) or self.memory_used * 2 > self.memory_total

    @property
    def memory_free(self) -> int:
        """Bytes that are left."""
        return self.memory_total - self.memory_used


@dataclass(frozen=True)
class Inventory:
    """The GPUs of this host and its driver.

    Attributes:
        gpus: those that a launch could be given: whole GPUs, and the instances of those that are cut.
        reason: why there are none, else empty.
        cut: GPUs in MIG mode.
        faults: what is wrong with a GPU that is there and not among them.
        broken: there is a driver, and it does not work.
    """

    gpus: tuple[Gpu, ...]
    driver: str
    reason: str
    cut: tuple[Gpu, ...] = ()
    faults: tuple[str, ...] = ()
    broken: bool = False


def gather(patience: float = PATIENCE_SECONDS) -> Inventory:
    """Ask NVML, for so many seconds at most; a host without a driver has no GPUs and a reason.

    Once it has been silent it gets but a moment more in the life of this process.
    """
    try:
        found = apart.call(_ask, MOMENT_SECONDS if _silent.is_set() else patience)
        _silent.clear()
        return found
    except apart.Silent as silent:
        _silent.set()
        return Inventory((), "", f"the NVIDIA driver does not answer (asking it {silent})", broken=True)


def _ask() -> Inventory:
    import pynvml

    return ask(pynvml)


def ask(pynvml: Any) -> Inventory:
    """The inventory by this module (nvidia-ml-py). One GPU that fails hides no other."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return Inventory((), "", "there is no NVIDIA driver (libnvidia-ml.so.1 was not found)")
    except pynvml.NVMLError as error:
        return Inventory((), "", f"the NVIDIA driver does not answer (NVML: {error})", broken=True)
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        return _devices(pynvml, driver, pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        why = f"the NVIDIA driver failed while its GPUs were listed (NVML: {error})"
        return Inventory((), "", why, broken=True)
    finally:
        pynvml.nvmlShutdown()


def _devices(pynvml: Any, driver: str, count: int) -> Inventory:
    whole: list[tuple[Gpu, Any]] = []
    cut: list[Gpu] = []
    instances: list[Gpu] = []
    faults: list[str] = []
    for index in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpu = _gpu(pynvml, index, handle)
            if not _told(pynvml, partial(pynvml.nvmlDeviceGetMigMode, handle), (0, 0))[0]:
                whole.append((gpu, handle))
                continue
            cut.append(gpu)
            instances += _instances(pynvml, gpu, handle)
        except pynvml.NVMLError as error:
            faults.append(f"GPU {index} does not answer (NVML: {error})")
    joined = _joined(pynvml, whole)
    found = [replace(gpu, joined=joined.get(gpu.uuid, frozenset())) for gpu, _ in whole] + instances
    found.sort(key=lambda gpu: (gpu.index, gpu.slot or 0))
    reason = ""
    if not found and faults:
        reason = f"the NVIDIA driver failed while its GPUs were listed: {'; '.join(faults)}"
    elif not found and cut:
        reason = (
            "its GPUs are in MIG mode and have no instance (root makes one: `nvidia-smi mig -cgi 0 -C`, or switches it "
            "off: `nvidia-smi -mig 0`)"
        )
    elif not found:
        reason = "the NVIDIA driver sees no GPU"
    return Inventory(tuple(found), driver, reason, tuple(cut), tuple(faults), broken=bool(not found and faults))


def _told(pynvml: Any, ask: Callable[[], Any], otherwise: Any) -> Any:
    """What a call gives; something else where this GPU or this driver does not know of it."""
    try:
        return ask()
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotFound):
        return otherwise


def _gpu(pynvml: Any, index: int, handle: Any, parent: Gpu | None = None, slot: int | None = None) -> Gpu:
    """One device. An instance has no load or temperature of its own: the latter is its GPU's."""
    memory = _told(pynvml, partial(pynvml.nvmlDeviceGetMemoryInfo, handle), None)  # unified-memory parts have none
    try:
        processes = tuple(
            Process(int(one.pid), None if one.usedGpuMemory is None else int(one.usedGpuMemory))
            for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        )
    except pynvml.NVMLError:  # no permission; the memory in use tells something then
        processes = ()
    capability, temperature = ("", None) if parent is None else (parent.compute_capability, parent.temperature)
    if parent is None:
        numbers = _told(pynvml, partial(pynvml.nvmlDeviceGetCudaComputeCapability, handle), ())
        capability = ".".join(map(str, numbers))
        temperature = _told(pynvml, partial(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU), None)
    rates = None if parent else _told(pynvml, partial(pynvml.nvmlDeviceGetUtilizationRates, handle), None)
    return Gpu(
        index,
        str(pynvml.nvmlDeviceGetUUID(handle)),
        str(pynvml.nvmlDeviceGetName(handle)),
        int(memory.total) if memory else 0,
        int(memory.used) if memory else 0,
        processes,
        capability,
        parent.uuid if parent else "",
        slot,
        int(rates.gpu) if rates else None,
        temperature,
        None if parent else _load(pynvml, handle),
    )


def _instances(pynvml: Any, gpu: Gpu, handle: Any) -> list[Gpu]:
    """The MIG instances of a GPU; slots need not be taken without gaps."""
    found = []
    for slot in range(_told(pynvml, partial(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle), INSTANCES)):
        unit = _told(pynvml, partial(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot), None)
        if unit is not None:
            found.append(_gpu(pynvml, gpu.index, unit, gpu, slot))
    return found


def _load(pynvml: Any, handle: Any) -> Load | None:
    """What the driver remembers: some seconds of samples of the utilisation, and its accounts if it keeps any."""
    try:
        _, samples = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES, 0)
    except pynvml.NVMLError:
        return None
    times = [one.timeStamp / 1e6 for one in samples if one.timeStamp]
    at_work = [one.timeStamp / 1e6 for one in samples if one.sampleValue.uiVal]
    if not times:
        return None
    return Load(min(times), max(at_work, default=None), _ended(pynvml, handle))


def _ended(pynvml: Any, handle: Any) -> float | None:
    """When the last of the processes in the driver's accounts ended."""
    try:
        if pynvml.nvmlDeviceGetAccountingMode(handle) != pynvml.NVML_FEATURE_ENABLED:
            return None
        stats = [pynvml.nvmlDeviceGetAccountingStats(handle, pid) for pid in pynvml.nvmlDeviceGetAccountingPids(handle)]
    except pynvml.NVMLError:
        return None
    return max((one.startTime / 1e6 + one.time / 1e3 for one in stats if not one.isRunning), default=None)


def _joined(pynvml: Any, whole: Sequence[tuple[Gpu, Any]]) -> dict[str, frozenset[str]]:
    """Which GPUs NVLink joins, by UUID, through a switch or directly."""
    found: dict[str, set[str]] = {gpu.uuid: set() for gpu, _ in whole}
    for place, (gpu, handle) in enumerate(whole):
        for other, its in whole[place + 1 :]:
            try:
                status = pynvml.nvmlDeviceGetP2PStatus(handle, its, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            except pynvml.NVMLError:
                continue
            if status == pynvml.NVML_P2P_STATUS_OK:
                found[gpu.uuid].add(other.uuid)
                found[other.uuid].add(gpu.uuid)
    return {uuid: frozenset(others) for uuid, others in found.items()}
