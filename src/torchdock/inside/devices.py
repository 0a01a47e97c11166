"""GPUs, as torch and as the driver's library NVML see them. A GPU is demanded here, never wished for."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NvmlDevice:
    """One GPU, or one MIG instance of it, as NVML names it.

    uuid: without the prefix ``GPU-`` or ``MIG-``, lower case, as torch spells it.
    memory: bytes in all, the part that the driver reserves included.
    """

    uuid: str
    name: str
    memory: int
    mig: bool


@dataclass(frozen=True)
class Nvml:
    """What NVML says: the driver's version ("580.65.06"), the newest CUDA it can run (13000 is 13.0), its devices."""

    driver: str
    cuda: int
    devices: tuple[NvmlDevice, ...]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def nvml() -> Nvml:
    """Ask NVML. Raises RuntimeError, in words, where the driver or its library is not there."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise RuntimeError(f"NVML does not answer: {error}") from error
    try:
        devices = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            instances = _mig_instances(pynvml, handle)
            for unit in instances or [handle]:
                uuid = re.sub(r"^(GPU|MIG)-", "", _text(pynvml.nvmlDeviceGetUUID(unit))).lower()
                memory = int(pynvml.nvmlDeviceGetMemoryInfo(unit).total)
                devices.append(NvmlDevice(uuid, _text(pynvml.nvmlDeviceGetName(handle)), memory, bool(instances)))
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return Nvml(driver, int(pynvml.nvmlSystemGetCudaDriverVersion()), tuple(devices))
    except pynvml.NVMLError as error:
        raise RuntimeError(f"NVML answers with an error: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def _mig_instances(pynvml: Any, handle: Any) -> list[Any]:
    """Return the handles of a GPU's MIG instances, none where MIG is off or unknown to this GPU."""
    try:
        if pynvml.nvmlDeviceGetMigMode(handle)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return []
    except pynvml.NVMLError:
        return []
    found = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except pynvml.NVMLError:
            continue  # Instances need not be numbered without gaps.
    return found


def judge_gpu(count: int, names: Sequence[str], driver: str, build: str | None, silence: str) -> str | None:
    """Return why there is no GPU to test, in one paragraph with the remedy; None where there is one.

    count and names: the devices that torch sees. driver: NVML's driver version, "" where NVML is silent, and then
    why it is in silence. build: the CUDA release of this torch, None for a CPU build.
    """
    real = any(name and "fake" not in name.lower() for name in names)
    if "fake" in driver.lower() or (names and not real):
        seen = f"driver {driver or 'unknown'}, device {', '.join(names) or 'none'}"
        return (
            f"A GPU is demanded, and the one here is the fake driver of the tests ({seen}). Nothing computes on it, so "
            "nothing can be proved. Remedy: launch with a real GPU and without the fake CDI device."
        )
    if count > 0:
        return None
    if build is None:
        return (
            "A GPU is demanded, and this torch is a CPU build, so it cannot use one. "
            "Remedy: use a CUDA variant (invoke build --cuda, then invoke test --gpu)."
        )
    if not driver:
        return (
            f"A GPU is demanded, and none is in this container ({silence}). Remedy: launch with a GPU (invoke run, or "
            "docker run --device nvidia.com/gpu=all, or --gpus all); where that fails, invoke doctor on the host says "
            "why. GPU checks never skip; without --gpu the suite runs on the CPU."
        )
    return (
        f"A GPU is demanded; the driver {driver} answers, but torch (built for CUDA {build}) sees no device. Either "
        "the driver is too old for this CUDA, or CUDA_VISIBLE_DEVICES hides every GPU, or the device nodes were not "
        "injected. Remedy: unset CUDA_VISIBLE_DEVICES; update the driver or take an older variant; ask invoke doctor."
    )


def gpu_problem() -> str | None:
    """Return why GPU checks cannot run here, None where they can; see judge_gpu. Imports torch."""
    import torch

    driver, silence = "", ""
    names: list[str] = []
    try:
        answer = nvml()
        driver, names = answer.driver, [device.name for device in answer.devices]
    except (RuntimeError, ImportError) as error:
        silence = str(error)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        names = [torch.cuda.get_device_name(index) for index in range(count)]
    return judge_gpu(count, names, driver, torch.version.cuda, silence)


def describe(gpu: bool) -> str:
    """Return the device that checks run on, for people: "cuda: NVIDIA H200" or "cpu: x86_64, 2 threads"."""
    import torch

    if gpu:
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"cuda: {', '.join(names)}"
    return f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str | None]:
    """Return the versions that results depend on; None for what is not there."""
    from importlib import metadata

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "triton", "pytest"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    try:
        import torch
    except Exception:  # A broken install raises anything; the checks themselves will say what.
        return {**found, "torch": None, "cuda": None, "cudnn": None}
    cudnn = torch.backends.cudnn.version()
    return {**found, "torch": str(torch.__version__), "cuda": torch.version.cuda, "cudnn": cudnn and str(cudnn)}
