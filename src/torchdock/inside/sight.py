"""What this process sees of the NVIDIA driver: its answers, its devices, and whether their nodes can be opened.

    python -I -S sight.py            one JSON document: see :func:`look`
    python -I -S sight.py uuids      the UUIDs of what can be computed on, a line each; exit code 1 where NVML fails

The standard library alone, so that any Python will do: the host's, and the one of whatever image is at hand. What was
assigned and what is seen are compared elsewhere (torchdock.passthrough, torchdock.doctor).
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import sys
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia[0-9]*")


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Failed(Exception):
    def __init__(self, call: str, code: int) -> None:
        self.call, self.code = call, code


class Nvml:
    """NVML by ctypes, as far as seeing goes. Calls raise :class:`_Failed` with NVML's own code."""

    def __init__(self) -> None:
        """Raises OSError where the library cannot be loaded."""
        self._library = ctypes.CDLL(LIBRARY)

    def open(self) -> None:
        """Ask for the driver; nothing else answers before."""
        self._call("nvmlInit_v2")

    def close(self) -> None:
        """Let go of the driver."""
        self._call("nvmlShutdown")

    def _call(self, name: str, *given: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise _Failed(name, 13) from None  # NVML_ERROR_FUNCTION_NOT_FOUND
        if code := function(*given):
            raise _Failed(name, code)

    def error(self, code: int) -> str:
        """NVML's words for a code."""
        try:
            function = self._library.nvmlErrorString
        except AttributeError:
            return ""
        function.restype = ctypes.c_char_p
        return (function(code) or b"").decode(errors="replace")

    def text(self, name: str, *given: Any) -> str:
        """A call that fills a string."""
        room = ctypes.create_string_buffer(128)
        self._call(name, *given, room, 128)
        return room.value.decode(errors="replace")

    def number(self, name: str, *given: Any) -> int:
        """A call that fills an integer."""
        found = ctypes.c_uint()
        self._call(name, *given, ctypes.byref(found))
        return found.value

    def handle(self, name: str, *given: Any) -> ctypes.c_void_p:
        """A call that gives a device."""
        found = ctypes.c_void_p()
        self._call(name, *given, ctypes.byref(found))
        return found

    def device(self, index: int) -> dict[str, Any]:
        """One GPU; ``mig`` are the UUIDs of its instances, None where it is not cut into any."""
        unit = self.handle("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index))
        memory, code = _Memory(), 0
        try:
            self._call("nvmlDeviceGetMemoryInfo", unit, ctypes.byref(memory))
        except _Failed as failed:
            if failed.code != 3:  # Not Supported: it shares the host's memory
                raise
            code = failed.code
        return {
            "index": index,
            "uuid": self.text("nvmlDeviceGetUUID", unit),
            "name": self.text("nvmlDeviceGetName", unit),
            "memory": int(memory.total),
            "memory_code": code,
            "mig": self._instances(unit),
        }

    def _instances(self, unit: ctypes.c_void_p) -> list[str] | None:
        now, later = ctypes.c_uint(), ctypes.c_uint()
        try:
            self._call("nvmlDeviceGetMigMode", unit, ctypes.byref(now), ctypes.byref(later))
        except _Failed as failed:
            if failed.code in (3, 13):  # no MIG before Ampere
                return None
            raise
        if not now.value:
            return None
        found = []
        for index in range(self.number("nvmlDeviceGetMaxMigDeviceCount", unit)):
            try:
                part = self.handle("nvmlDeviceGetMigDeviceHandleByIndex", unit, ctypes.c_uint(index))
            except _Failed as failed:
                if failed.code not in (2, 6):  # instances need not be numbered without gaps
                    raise
                continue
            found.append(self.text("nvmlDeviceGetUUID", part))
        return found


def nodes() -> dict[str, int]:
    """{device node of the driver: 0 where it can be opened, else the errno}."""
    found = {}
    for path in sorted(path for pattern in NODES for path in glob.glob(pattern)):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            found[path] = 0
        except OSError as error:
            found[path] = error.errno or -1
    return found


def libraries() -> list[str]:
    """The driver's libraries in the folders where programs find them."""
    names = ("libcuda.so*", "libnvidia-ml.so*")
    folders = ("/usr/lib", "/usr/lib64", "/usr/lib/*-linux-gnu*", "/usr/local/lib", "/usr/local/nvidia/lib64")
    return sorted(path for folder in folders for name in names for path in glob.glob(f"{folder}/{name}"))


def files() -> dict[str, Any]:
    """What of the driver is in the file system."""
    return {"nodes": nodes(), "libraries": libraries()}


def look() -> dict[str, Any]:
    """Ask the driver for everything. Never raises; may hang where the driver does.

    ``code``: NVML's code of the first call that failed, 0 where none did, 12 without the library; ``call`` and
    ``error``: which one, and why. Besides ``driver``, ``cuda`` (13000 is 13.0), ``devices`` (see :meth:`Nvml.device`),
    ``visible`` (the UUIDs of what can be computed on: of a GPU that is cut into MIG instances, theirs), ``nodes`` and
    ``libraries``.
    """
    seen: dict[str, Any] = {"code": 0, "call": "", "error": "", "driver": "", "cuda": 0, "devices": [], "visible": []}
    try:
        nvml = Nvml()
    except OSError as error:
        return {**seen, "code": 12, "call": "dlopen", "error": str(error), **files()}
    try:
        nvml.open()
        seen["driver"] = nvml.text("nvmlSystemGetDriverVersion")
        seen["cuda"] = nvml.number("nvmlSystemGetCudaDriverVersion_v2")
        for index in range(nvml.number("nvmlDeviceGetCount_v2")):
            seen["devices"].append(nvml.device(index))
        nvml.close()
    except _Failed as failed:
        seen.update(code=failed.code, call=failed.call, error=nvml.error(failed.code))
    for device in seen["devices"]:
        seen["visible"] += [device["uuid"]] if device["mig"] is None else device["mig"]
    return {**seen, **files()}


def main(argv: list[str]) -> None:
    """See the module."""
    seen = look()
    if argv != ["uuids"]:
        json.dump(seen, sys.stdout)
    elif seen["code"]:
        sys.exit(f"NVML: {seen['call']} gives {seen['code']} ({seen['error']})")
    else:
        print(*seen["visible"], sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
