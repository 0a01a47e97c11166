"""What a container of this environment is like from within, for `invoke doctor`, which launches one as any other.

    python -P -m torchdock.inside.examine FILE      one JSON document; FILE is written, so that its owner can be seen

Each part is bounded and fails for itself: torch is asked in a process of its own, for a broken one may take it along.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from torchdock.inside import watch

TORCH_SECONDS = 90.0
VARIABLES = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "TORCHDOCK_GPUS")


def basics(file: Path) -> dict[str, Any]:
    """Limits, identity, and why the workspace and HOME cannot be written (empty where they can)."""

    def write(path: Path) -> str:
        try:
            path.write_text("invoke doctor\n")
        except OSError as error:
            return f"{path}: {error.strerror}"
        return ""

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = ""
    home = Path(os.environ.get("HOME") or "/nonexistent") / ".torchdock-doctor"
    shm = os.statvfs("/dev/shm")
    return {
        "shm": shm.f_blocks * shm.f_frsize,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "uid": os.getuid(),
        "user": user,
        "home": write(home),
        "workspace": write(file),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def cuda_code() -> int:
    """What ``cuInit`` gives; -1 where there is no CUDA library of a driver."""
    try:
        return int(ctypes.CDLL("libcuda.so.1").cuInit(0))
    except (OSError, AttributeError):
        return -1


def torch_facts() -> dict[str, Any]:
    """What torch is, and whether it, torchvision and a kernel of the first GPU work. Imports torch."""
    import torch

    found: dict[str, Any] = {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda or "",
        "archs": torch.cuda.get_arch_list(),
        "devices": [],
        "kernel": "",
        "nms": "",
    }
    try:
        from torchvision.ops import nms

        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
        kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
        found["nms"] = "" if kept == [0, 2] else f"it keeps the boxes {kept}, where [0, 2] are right"
    except Exception as error:  # whatever a wrong build raises
        found["nms"] = _line(error)
    if not torch.cuda.is_available():
        return found
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found["devices"].append({"uuid": str(properties.uuid), "capability": f"{properties.major}.{properties.minor}"})
    try:
        total = float((torch.ones(1000, device="cuda") + 1).sum().item())
        found["kernel"] = "" if total == 2000.0 else f"a sum gives {total}, where 2000 is right"
    except Exception as error:
        found["kernel"] = _line(error)
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def ask_torch() -> dict[str, Any]:
    """:func:`torch_facts` of a process of its own; ``error`` where it did not come to that."""
    command = [sys.executable, "-P", "-m", "torchdock.inside.examine", "--torch"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_SECONDS, errors="replace")
    except subprocess.TimeoutExpired:
        return {"error": f"importing torch and computing on it did not end within {TORCH_SECONDS:.0f} s"}
    if done.returncode or not done.stdout.strip().startswith("{"):
        last = done.stderr.strip().rpartition("\n")[2][:300]
        return {"error": last or f"importing torch ended with exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(argv: list[str]) -> None:
    """See the module."""
    if argv == ["--torch"]:
        document = torch_facts()
    else:
        document = basics(Path(argv[0])) | {"sight": watch.look(), "cuda_code": cuda_code(), "torch": ask_torch()}
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
