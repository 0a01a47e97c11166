"""One function through torch.compile in a process of its own: ``python -m torchdock.inside.one_kernel``.

Prints ``{"kernels": N, "difference": D}``: how many C++ kernels were generated, and the largest absolute difference to
eager mode's float64 result. It compiles into a folder that lives as long as the container: the first check in there
proves the compilers, further ones find the kernel. :func:`start` lets it run beside other checks, because importing the
compiler and compiling take longer than all other quick checks together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def start() -> subprocess.Popen[str]:
    """Start it; its streams are pipes. It shares this process's group, so it ends with it."""
    # Not in the user's cache, which outlives the container: a kernel from another one would hide a missing compiler.
    folder = Path(tempfile.gettempdir(), f"torchdock-one-kernel-{os.getuid()}")
    # One thread: the other cores are busy with other checks.
    return subprocess.Popen(
        [sys.executable, "-m", "torchdock.inside.one_kernel"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main() -> int:
    """Compile, compare, print; an exception of the compiler's goes to stderr."""
    import torch
    from torch._inductor import config, metrics

    def toy(x: torch.Tensor) -> torch.Tensor:
        return (torch.sin(x) * x).sum()

    torch.manual_seed(0)
    x = torch.randn(1000, dtype=torch.float64)
    # One kernel: starting a pool of compilers, compiling all headers ahead and trying which vector instructions the
    # compiler knows take longer than they save.
    quicker = {"compile_threads": 1, "cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": True}
    with config.patch(quicker):
        result = torch.compile(toy, fullgraph=True)(x)
    json.dump({"kernels": metrics.generated_kernel_count, "difference": (result - toy(x)).abs().item()}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
