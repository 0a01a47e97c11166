"""torch.compile: one graph, C++ kernels, results and gradients as eager's"""

import json
import os
from pathlib import Path

import pytest
import torch

REMEDY = (
    "torch.compile needs a C++ compiler (g++), Python's headers (python3-dev) and a cache that is writable and not "
    "mounted noexec (TORCHINDUCTOR_CACHE_DIR); TORCH_COMPILE_DISABLE must not be set. The image provides for all of it."
)


@pytest.fixture
def compiled():
    """Compile with an empty cache inside the user's: a warm one would hide a missing compiler."""
    from torch._inductor import config, metrics
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch._inductor.utils import fresh_cache

    def compile_and_call(function, *inputs):
        Path(cache_dir()).mkdir(parents=True, exist_ok=True)
        torch._dynamo.reset()
        metrics.reset()
        # Two kernels: starting a pool of compilers or compiling all headers ahead takes longer than it saves.
        settings = {"compile_threads": 1, "cpp_cache_precompile_headers": False}
        with config.patch(settings), fresh_cache(dir=cache_dir()):
            result = torch.compile(function, fullgraph=True)(*inputs)
            if result.requires_grad:
                result.backward()
        return result, metrics.generated_kernel_count

    return compile_and_call


def toy(x):
    return (torch.sin(x) * x).sum()


@pytest.mark.quick
def test_one_kernel(compiling):
    """A function becomes a C++ kernel that was compiled here and now and gives eager mode's result."""
    output, errors = compiling.communicate()
    assert compiling.returncode == 0, errors[-1000:]
    seen = json.loads(output)
    assert seen["kernels"] >= 1, "torch.compile generated no kernel"
    assert seen["difference"] < 1e-10


def test_gradients(compiled):
    """Forward and backward kernels, with the settings that a user gets."""
    x, y = (torch.linspace(-3, 3, 1000, dtype=torch.float64, requires_grad=True) for _ in range(2))
    result, kernels = compiled(toy, x)
    expected = toy(y)
    expected.backward()
    assert kernels >= 2, f"torch.compile generated {kernels} kernels, expected forward and backward"
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-12)


def test_a_graph_break_is_an_error():
    """fullgraph=True means what it says: the checks above ran as one graph."""

    def broken(x):
        os.getpid()
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(broken, fullgraph=True, backend="eager")(torch.ones(2))
