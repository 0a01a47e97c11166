"""GPUs, as torch and as the driver's library NVML see them. A GPU is demanded here, never wished for."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# How long the driver may take to answer: it is asked about no more than a few dozen things.
ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class NvmlDevice:
    """One GPU, or one MIG instance of it, as NVML names it.

    uuid: a plain one, see ``plain``. memory: bytes in all, the part that the driver reserves included; None for a part
    that shares the host's memory. bus: the PCI address of the GPU ("0000:17:00.0"), None where it has none.
    """

    uuid: str
    name: str
    memory: int | None
    mig: bool
    bus: str | None = None


@dataclass(frozen=True)
class Nvml:
    """What NVML says: the driver's version ("580.65.06"), the newest CUDA it can run (13000 is 13.0), its devices."""

    driver: str
    cuda: int
    devices: tuple[NvmlDevice, ...]

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"driver": self.driver, "cuda": self.cuda, "devices": [vars(device) for device in self.devices]}


def plain(uuid: Any) -> str:
    """Return a UUID without its prefix ``GPU-`` or ``MIG-``, in lower case: NVML, torch and labels differ in that."""
    return re.sub(r"^(GPU|MIG)-", "", _text(uuid).strip(), flags=re.IGNORECASE).lower()


def address(text: str) -> str | None:
    """Return a PCI address as Linux spells it: "0000:17:00.0" of NVML's "00000000:17:00.0"; None for what is none."""
    match = re.fullmatch(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", text.strip().lower())
    return match and f"{int(match[1], 16):04x}:{match[2]}:{match[3]}.{match[4]}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def nvml(seconds: float = ANSWER_SECONDS) -> Nvml:
    """Ask NVML. Raises RuntimeError, in words, where the driver or its library is not there or does not answer in time.

    A driver that hangs holds whoever asked it, and nothing can end that: it is asked by a thread that is left behind.
    """
    answers: list[Nvml | Exception] = []

    def ask() -> None:
        try:
            answers.append(_ask())
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        raise RuntimeError(f"NVML gave no answer within {seconds:g} s: the driver hangs")
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def _ask() -> Nvml:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise RuntimeError(f"NVML does not answer: {error}") from error
    try:
        devices = []
        for handle, own, instances in units(pynvml):
            bus = _or_none(pynvml, pynvml.nvmlDeviceGetPciInfo, handle)
            for uuid, unit in instances.items() or [(own, handle)]:
                memory = _or_none(pynvml, pynvml.nvmlDeviceGetMemoryInfo, unit)
                devices.append(
                    NvmlDevice(
                        uuid=uuid,
                        name=_text(pynvml.nvmlDeviceGetName(handle)),
                        memory=memory and int(memory.total),
                        mig=bool(instances),
                        bus=bus and address(_text(bus.busId)),
                    )
                )
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return Nvml(driver, int(pynvml.nvmlSystemGetCudaDriverVersion()), tuple(devices))
    except pynvml.NVMLError as error:
        raise RuntimeError(f"NVML answers with an error: {error}") from error
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _or_none(pynvml: Any, call: Callable[[Any], Any], unit: Any) -> Any:
    """What a part does not tell is None: parts with unified memory have no memory of their own."""
    try:
        return call(unit)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None


def units(pynvml: Any) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """Yield each GPU of an open NVML: its handle, its plain UUID, its MIG instances as {plain UUID: handle}."""
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        instances = {plain(pynvml.nvmlDeviceGetUUID(unit)): unit for unit in _mig_instances(pynvml, handle)}
        yield handle, plain(pynvml.nvmlDeviceGetUUID(handle)), instances


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


def assigned(variable: str | None) -> list[str] | None:
    """Return the plain UUIDs that the launch gave this container, None where nobody said. variable: TORCHDOCK_GPUS."""
    return None if variable is None else [plain(uuid) for uuid in variable.split(",") if uuid.strip()]


def visible(setting: str | None, uuids: Sequence[str]) -> list[str]:
    """Return the plain UUIDs that CUDA shows, in its order, with this CUDA_VISIBLE_DEVICES. Pure.

    uuids: plain ones of all GPUs in the order of the PCI bus. What is no number or UUID of theirs ends the list.
    """
    if setting is None:
        return list(uuids)
    shown: list[str] = []
    for word in setting.split(","):
        if re.fullmatch(r"\s*\d+\s*", word):
            match = list(uuids[int(word) : int(word) + 1])
        else:
            match = [uuid for uuid in uuids if plain(word) and uuid.startswith(plain(word))]
        if len(match) != 1:
            break
        shown += match
    return shown


def several() -> bool:
    """Whether CUDA shows a process two GPUs or more; of MIG instances it shows one. Asks NVML, needs no torch."""
    try:
        found = nvml().devices
    except (RuntimeError, ImportError):
        return False
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(visible(setting, [device.uuid for device in found if not device.mig])) > 1


def settings(uuids: Sequence[str], mig: bool = False) -> list[str | None]:
    """Return the values of CUDA_VISIBLE_DEVICES that are tried. mig: the UUIDs are of instances: they have no index."""
    found: list[str | None] = [None, "", ",".join(f"{'MIG' if mig else 'GPU'}-{uuid}" for uuid in uuids[:1])]
    if not mig:
        indices = [str(index) for index in range(len(uuids))]
        found += [*indices, ",".join(reversed(indices))]
    return list(dict.fromkeys(found))


def cuda() -> list[dict[str, Any]]:
    """Return what torch sees, in its order: {"uuid": plain, "name", "memory": bytes, "bus": PCI address}."""
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        one = torch.cuda.get_device_properties(index)
        bus = f"{one.pci_domain_id:04x}:{one.pci_bus_id:02x}:{one.pci_device_id:02x}.0"
        found.append({"uuid": plain(one.uuid), "name": one.name, "memory": int(one.total_memory), "bus": bus})
    return found


def seen_with(values: Sequence[str | None]) -> list[dict[str, Any]]:
    """Return what torch and NVML see in a new process for each value of CUDA_VISIBLE_DEVICES, indices by the PCI bus.

    As {"cuda": see ``cuda``, "nvml": plain UUIDs}. Raises RuntimeError, with its last words, where a process fails.
    """
    command = [sys.executable, "-m", "torchdock.inside.devices", json.dumps(list(values))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    if done.returncode != 0:
        raise RuntimeError(f"a process that only lists GPUs failed: {' '.join(done.stderr.split())[-500:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def main(values: Sequence[str | None]) -> None:
    """Print what ``seen_with`` returns. CUDA reads the variable once in a process: each value has its own child."""
    import torch  # noqa: F401  (before the fork: it takes seconds; CUDA starts after it)

    found = []
    for value in values:
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            os.environ.update(
                {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} | ({} if value is None else {"CUDA_VISIBLE_DEVICES": value})
            )
            seen = {"cuda": cuda(), "nvml": [device.uuid for device in nvml().devices]}
            os.write(write, json.dumps(seen).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as answer:
            found.append(json.loads(answer.read() or "null"))
        os.waitpid(pid, 0)
    if None in found:
        sys.exit(f"CUDA_VISIBLE_DEVICES={values[found.index(None)]!r}")
    print(json.dumps(found))


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


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
