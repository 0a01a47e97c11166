"""The passport: what this environment is, beside what it proved. ``report.json``, by the schema report.schema.json.

What any Python with torch can tell is read here; ``invoke test`` adds what the host alone knows: image, engine, host.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchdock.inside import devices, machine, suite, versions

SCHEMA = "torchdock-report/1"
# Variables that change numbers or speed. Their values are kept, so none that may carry a secret belongs here.
VARIABLES = (
    *("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "TORCHDOCK_GPUS"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "MKL_CBWR", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE"),
    *("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "PYTHON_CPU_COUNT", "PYTHONHASHSEED"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "TORCH_COMPILE_DISABLE"),
    *("NCCL_ALGO", "NCCL_PROTO", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE", "TORCHDOCK_PROFILE"),
)


def gather(root: Path) -> dict[str, Any]:
    """Return the passport's part ``environment``. root: the tree with ``docker/locks``.

    Never fails: what a broken install or driver cannot tell is None, and the checks say why.
    """
    have = versions.installed()
    torch = _or_none(_torch)
    named = os.environ.get("TORCHDOCK_VARIANT", "")
    return {
        "image": versions.in_image(),
        "variant": named or None,
        "lock": _or_none(lambda: lock(root, have, torch and torch["cuda"], named)),
        "packages": dict(sorted(have.items())),
        "python": {"version": platform.python_version(), "prefix": sys.prefix},
        "platform": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "cpu": cpu(machine.read("/proc/cpuinfo") or ""),
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "cpu_quota": _or_none(machine.quota),
            "memory": _or_none(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        },
        "settings": {"torch": torch, "variables": variables(os.environ)},
        "nvml": _or_none(lambda: devices.nvml().document()),
    }


def _or_none(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:
        return None


def lock(root: Path, have: Mapping[str, str], cuda: str | None, named: str) -> dict[str, Any] | None:
    """Return which lock this environment stands beside, and what differs; None where the tree has none.

    have: what is installed. cuda and named: see ``versions.nearest``. ``added`` is drift: what no lock named.
    """
    names = sorted(path.name for path in (root / "docker" / "locks").iterdir() if versions.files(root, path.name))
    locks = {name: versions.read(root, name) for name in names if name == "cpu" or name.startswith("cu")}
    if not locks:
        return None
    variant = versions.nearest(locks, have, cuda, named)
    return {
        "variant": variant,
        "sha256": suite.digest(
            *(part for file in versions.files(root, variant) for part in (file.name, file.read_bytes()))
        ),
        "differences": versions.differences(locks[variant], have),
        "added": [f"{name} {version}" for name, version in sorted(have.items()) if name not in locks[variant]],
    }


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return those of VARIABLES that are set. Pure."""
    return {name: environment[name] for name in VARIABLES if name in environment}


def cpu(cpuinfo: str) -> str | None:
    """Return the CPU's name from the text of /proc/cpuinfo; None where it has none (aarch64). Pure."""
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else None


def _torch() -> dict[str, Any]:
    """Read what changes torch's numbers, as a program finds it at its start. Imports torch."""
    import torch

    def setting(path: str) -> Any:
        value: Any = torch
        for name in path.split("."):
            value = getattr(value, name, None)
        return value() if callable(value) else value

    cudnn = torch.backends.cudnn
    return {
        "version": str(torch.__version__),
        "git": torch.version.git_version,
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
        "nccl": _or_none(lambda: ".".join(map(str, torch.cuda.nccl.version()))) if torch.version.cuda else None,
        "cpu_capability": setting("backends.cpu.get_cpu_capability"),
        "mkl": setting("backends.mkl.is_available"),
        "mkldnn": setting("backends.mkldnn.is_available"),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "default_dtype": str(torch.get_default_dtype()),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "matmul_tf32": _or_none(lambda: torch.backends.cuda.matmul.allow_tf32),
        "matmul_reduced_fp16": _or_none(lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction),
        "matmul_reduced_bf16": _or_none(lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction),
        "cudnn_tf32": _or_none(lambda: cudnn.allow_tf32),
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def fake(environment: Mapping[str, Any], device: str | None) -> bool:
    """True where a driver or GPU of the tests had a part in it: nothing here was proved of a GPU. Pure."""
    nvml = environment.get("nvml") or {}
    names = [device or "", nvml.get("driver") or "", *(one["name"] for one in nvml.get("devices", ()))]
    return any("fake" in name.lower() for name in names)


def document(result: suite.Result, made: str) -> dict[str, Any]:
    """Return report.json, its part ``host`` empty. made: when, as ISO 8601 in UTC. Pure."""
    return {
        "schema": SCHEMA,
        "made": made,
        "fake": fake(result.environment, result.device),
        **result.document(),
        "environment": dict(result.environment) or None,  # None: pytest did not come so far
        "host": None,
    }
