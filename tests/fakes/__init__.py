"""A driver that is not there: a loadable NVML library, and each way by which an engine hands its GPUs to a container.

By CDI (:meth:`FakeDriver.specification`), by the hook that ``docker run --gpus`` calls (:func:`write_hook`), and by the
runtime of ``--runtime=nvidia`` (:func:`write_runtime`). What the driver says and how it fails is in files, see nvml.c.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

GIB = 1 << 30
INSIDE = "/run/fake-nvml"
LIBRARY = "libnvidia-ml.so.1"
LIBRARY_INSIDE = f"/usr/lib/x86_64-linux-gnu/{LIBRARY}"
CDI_FOLDER = Path("/var/run/cdi")
VERSIONS = {"driver": "580.0-fake", "nvml": "13.580.0-fake", "cuda": "13000"}
PAGE = 4096


def new_uuid(kind: str = "GPU") -> str:
    """One that nobody else has: locks on GPUs are a host's, not a test's."""
    return f"{kind}-{uuid.uuid4()}"


@dataclass(frozen=True)
class FakeInstance:
    """One MIG instance; memory in bytes, ``processes`` as (PID, bytes)."""

    uuid: str
    name: str = "FAKE H200 MIG 1g.18gb (torchdock)"
    memory_total: int = 16 * GIB
    memory_used: int = 0
    gpu_instance: int = 7
    compute_instance: int = 0
    processes: tuple[tuple[int, int], ...] = ()

    def text(self) -> str:
        """As nvml.c reads it."""
        return _text(self)


@dataclass(frozen=True)
class FakeGpu:
    """One GPU; what is None it does not tell (NVML: Not Supported).

    Attributes:
        memory_total: bytes, as ``memory_used``; 0 for a part that shares the host's memory.
        utilisation: percent, of the last second; ``samples``: (microseconds since 1970, percent), the oldest first.
        processes: (PID, bytes) of compute; ``graphics_processes`` of graphics.
        accounting: 1 where the driver keeps accounts; ``accounted``: (PID, start in microseconds, milliseconds, runs).
        bus: PCI address; empty for the one of its index.
        nvlinks: for each link the PCI address of the GPU at its other end, ``switch`` or ``down``.
        pcie_switch, node: GPUs with equal numbers hang on one.
        throttle: NVML's bits.
        retired_single, retired_double: pages, by cause.
        mig: it is cut into ``instances``; None for a GPU that cannot be.
        lost: this code from now on for whatever is asked about it; ``lost_at``: GPU_IS_LOST from a process's nth call
            about it on.
    """

    uuid: str
    name: str = "FAKE H200 (torchdock)"
    capability: str = "9.0"
    memory_total: int = 140 * GIB
    memory_used: int = 0
    serial: str | None = None
    bus: str = ""
    minor: int | None = None
    utilisation: int | None = 0
    memory_utilisation: int = 0
    samples: tuple[tuple[int, int], ...] = ()
    temperature: int | None = 31
    temperature_limit: int = 87
    power: int = 78000
    power_limit: int = 700000
    persistence: int = 1
    compute_mode: int = 0
    performance_state: int = 0
    clock_sm: int = 1980
    clock_sm_max: int = 1980
    clock_memory: int = 3201
    clock_memory_max: int = 3201
    processes: tuple[tuple[int, int], ...] = ()
    graphics_processes: tuple[tuple[int, int], ...] = ()
    accounting: int | None = 0
    accounted: tuple[tuple[int, int, int, int], ...] = ()
    ecc: int | None = 1
    ecc_pending: int = 1
    ecc_corrected: int = 0
    ecc_uncorrected: int = 0
    ecc_corrected_aggregate: int = 0
    ecc_uncorrected_aggregate: int = 0
    retired_single: int = 0
    retired_double: int = 0
    retired_pending: int = 0
    remapped_corrected: int = 0
    remapped_uncorrected: int = 0
    remapped_pending: int = 0
    remapped_failed: int = 0
    throttle: int = 0
    link_generation: int | None = 5
    link_generation_max: int = 5
    link_width: int = 16
    link_width_max: int = 16
    nvlinks: tuple[str, ...] = ()
    pcie_switch: int | None = None
    node: int = 0
    fabric_state: int | None = None
    fabric_status: int = 0
    mig: bool | None = False
    mig_pending: bool | None = None
    instances: tuple[FakeInstance, ...] = ()
    lost: int | None = None
    lost_at: int | None = None

    def text(self) -> str:
        """As nvml.c reads it."""
        return _text(self)


# One line for each element, under the name of one.
LISTS = {
    "processes": "process",
    "graphics_processes": "graphics_process",
    "samples": "sample",
    "accounted": "accounted",
    "nvlinks": "nvlink",
}


def _text(one: FakeGpu | FakeInstance) -> str:
    lines = []
    for field in fields(one):
        value = getattr(one, field.name)
        if field.name in LISTS:
            words = [" ".join(map(str, part)) if isinstance(part, tuple) else part for part in value]
            lines += [f"{LISTS[field.name]}={word}" for word in words]
        elif field.name != "instances" and value not in (None, ""):
            lines.append(f"{field.name}={int(value) if isinstance(value, bool) else value}")
    return "".join(f"{line}\n" for line in lines)


def _write(path: Path, text: str) -> None:
    """In place, for it may be mounted in a container, and in one go, for somebody may be reading: whole pages."""
    data = text.encode()
    data += b"\n" * (-len(data) % PAGE or (PAGE if not data else 0))
    with path.open("r+b" if path.exists() else "w+b", buffering=0) as file:
        file.write(data)
        file.truncate()


class FakeDriver:
    """Compiles the library and writes the GPUs into ``folder``, which containers mount from.

    Attributes:
        gpus: as they are now.
    """

    def __init__(self, folder: Path, gpus: Sequence[FakeGpu]) -> None:
        self.folder = folder
        self.library = folder / LIBRARY
        # Two may have to hand over their GPUs at once.
        self.file = CDI_FOLDER / f"nvidia.com-torchdock-fake-{secrets.token_hex(4)}.json"
        source = Path(__file__).with_name("nvml.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(self.library), str(source)], check=True)
        self.gpus = [
            replace(
                gpu,
                bus=gpu.bus or f"0000:{16 + index:02x}:00.0",
                minor=index if gpu.minor is None else gpu.minor,
                pcie_switch=index if gpu.pcie_switch is None else gpu.pcie_switch,
            )
            for index, gpu in enumerate(gpus)
        ]
        for index in range(len(self.gpus)):
            self._show(index)
        self.inside = folder / "inside"
        self.inside.mkdir(exist_ok=True)
        self.behave()

    def _show(self, index: int) -> None:
        gpu = self.gpus[index]
        _write(self.folder / f"{index}.gpu", gpu.text())
        for slot, instance in enumerate(gpu.instances):
            _write(self.folder / f"{index}.{slot}.mig", instance.text())
        for path in self.folder.glob(f"{index}.*.mig"):
            if int(path.name.split(".")[1]) >= len(gpu.instances):
                path.unlink()
        if (self.folder / "nvidia-smi").exists():
            self.write_smi()

    @property
    def environment(self) -> Mapping[str, str]:
        """By which a process of the host loads it and sees all of the GPUs."""
        return {"LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML": str(self.folder)}

    def write_smi(self, driver: str = "580.95.05", *, knows_capability: bool = True) -> None:
        """``nvidia-smi`` beside the library: the way of those who have the driver and no Python."""
        write_smi(self.folder, self.gpus, driver, knows_capability=knows_capability)

    def use(self, gpu: FakeGpu, memory: int) -> None:
        """From now on so many bytes of this GPU are in use."""
        self.change(gpu.uuid, memory_used=memory)

    def change(self, uuid: str, **changes: Any) -> None:
        """From now on this GPU, or MIG instance, is otherwise; processes that have it open see it too."""
        for index, gpu in enumerate(self.gpus):
            parts = tuple(replace(one, **changes) if one.uuid == uuid else one for one in gpu.instances)
            if gpu.uuid == uuid or parts != gpu.instances:
                self.gpus[index] = replace(gpu, **changes) if gpu.uuid == uuid else replace(gpu, instances=parts)
                self._show(index)
                return
        raise KeyError(uuid)

    def behave(
        self, *, fail: Sequence[str] = (), hang: Sequence[str] = (), where: str = "everywhere", **versions: str
    ) -> None:
        """From now on calls fail or hang: ``PATTERN CODE [N]`` and ``PATTERN [N]``, see nvml.c; without any, none does.

        ``where``: ``host``, ``inside`` (in containers), or ``everywhere``. ``versions``: of driver, nvml, cuda.
        """
        lines = [f"{key}={value}" for key, value in {**VERSIONS, **versions}.items()]
        lines += [f"fail={rule}" for rule in fail] + [f"hang={rule}" for rule in hang]
        text = "".join(f"{line}\n" for line in lines)
        for place, path in (("host", self.folder / "driver"), ("inside", self.inside / "driver")):
            if where in (place, "everywhere"):
                _write(path, text)

    def mounts(self, uuid: str) -> list[tuple[Path, str]]:
        """What a container needs for one GPU or MIG instance: files of the host and where it finds them."""
        for index, gpu in enumerate(self.gpus):
            whole = [(self.folder / f"{index}.gpu", f"{INSIDE}/{index}.gpu")]
            if gpu.uuid == uuid:
                return whole
            for slot, instance in enumerate(gpu.instances):
                if instance.uuid == uuid:
                    name = f"{index}.{slot}.mig"
                    return [*whole, (self.folder / name, f"{INSIDE}/{name}")]
        raise KeyError(uuid)

    @property
    def common(self) -> list[tuple[Path, str]]:
        """The same for any of them."""
        return [(self.library, LIBRARY_INSIDE), (self.inside / "driver", f"{INSIDE}/driver")]

    @property
    def names(self) -> dict[str, str]:
        """What each device is called where it is not called by its UUID: ``0``, or ``0:1`` for an instance."""
        found = {}
        for index, gpu in enumerate(self.gpus):
            found[gpu.uuid] = str(index)
            found.update({one.uuid: f"{index}:{slot}" for slot, one in enumerate(gpu.instances)})
        return found

    def specification(self, *, by: str = "uuid") -> str:
        """The CDI specification: the library for each device, and the device's own files.

        ``by``: ``uuid`` or ``index``, as the versions of nvidia-ctk name devices; ``both`` where it is asked for both.
        A GPU that is cut into instances has no device of its own, as there.
        """
        devices = []
        for uuid_, index in self.names.items():
            if any(gpu.uuid == uuid_ and gpu.mig for gpu in self.gpus):
                continue
            edits = {"mounts": [_mount(*one) for one in self.mounts(uuid_)]}
            named = {"uuid": [uuid_], "index": [index], "both": [uuid_, index]}[by]
            devices += [{"name": name, "containerEdits": edits} for name in named]
        document = {
            "cdiVersion": "0.5.0",
            "kind": "nvidia.com/gpu",
            "devices": devices,
            "containerEdits": {"mounts": [_mount(*one) for one in self.common]},
        }
        return json.dumps(document, indent=2)

    @contextmanager
    def handed_over(self, *, by: str = "uuid") -> Iterator[FakeDriver]:
        """While this lasts the engine of this host hands its GPUs to containers by CDI."""
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(self.specification(by=by))
        try:
            yield self
        finally:
            self.file.unlink(missing_ok=True)

    def write_hook(self, path: Path) -> None:
        """``nvidia-container-runtime-hook``: with it on its PATH at its start, dockerd has ``--gpus``."""
        known = {**{index: uuid for uuid, index in self.names.items()}, **{uuid: uuid for uuid in self.names}}
        files = {uuid: [[str(source), target] for source, target in self.mounts(uuid)] for uuid in self.names}
        common = [[str(source), target] for source, target in self.common]
        whole = [gpu.uuid for gpu in self.gpus if not gpu.mig]
        values = {"KNOWN": known, "FILES": files, "COMMON": common, "ALL": whole}
        text = Path(__file__).with_name("hook.py").read_text()
        given = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        path.write_text(f"#!{sys.executable} -I\n" + text.replace("# VALUES", given))
        path.chmod(0o755)


def _mount(source: Path, target: str) -> dict[str, Any]:
    return {"hostPath": str(source), "containerPath": target, "options": ["ro", "nosuid", "nodev", "bind"]}


def write_runtime(path: Path, hook: Path, runc: str = "runc") -> None:
    """``nvidia-container-runtime``, for ``--runtime=nvidia``: runc, with the hook in each new container."""
    text = Path(__file__).with_name("runtime.py").read_text()
    given = f"HOOK = {str(hook)!r}\nRUNC = {runc!r}"
    path.write_text(f"#!{sys.executable} -I\n" + text.replace("# VALUES", given))
    path.chmod(0o755)


def write_program(path: Path, text: str) -> None:
    """A program in sh."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def write_smi(folder: Path, gpus: Sequence[FakeGpu], driver: str, *, knows_capability: bool = True) -> None:
    """``nvidia-smi --query-gpu=FIELDS --format=csv,noheader,nounits``; an old one knows no ``compute_cap``."""
    refused = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    lines = ["for word; do case $word in --query-gpu=*) fields=${word#*=} ;; esac; done"]
    lines += [] if knows_capability else [f"case $fields in *compute_cap*) {refused} ;; esac"]
    for gpu in gpus:
        lines += [
            "row=",
            "for field in $(echo $fields | tr , ' '); do case $field in",
            f'memory.used) row="$row, {gpu.memory_used >> 20}" ;;',
            f'uuid) row="$row, {gpu.uuid}" ;;',
            f'driver_version) row="$row, {driver}" ;;',
            f'compute_cap) row="$row, {gpu.capability}" ;;',
            "esac; done",
            'echo "${row#, }"',
        ]
    write_program(folder / "nvidia-smi", "\n".join(lines))
