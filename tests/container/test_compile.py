"""torch.compile: one graph, C++ kernels, any batch size, results and gradients as eager's"""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

# Compilers, and on a machine that is busy.
pytestmark = pytest.mark.limit(300)
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

    Path(cache_dir()).mkdir(parents=True, exist_ok=True)
    torch._dynamo.reset()
    metrics.reset()
    # A few kernels: starting a pool of compilers or compiling all headers ahead takes longer than it saves.
    settings = {"compile_threads": 1, "cpp_cache_precompile_headers": False}
    with config.patch(settings), fresh_cache(dir=cache_dir()):
        yield torch.compile
    torch._dynamo.reset()


def kernels() -> int:
    """How many kernels the compiler has made in this check."""
    from torch._inductor import metrics

    return metrics.generated_kernel_count


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
    result, expected = compiled(toy, fullgraph=True)(x), toy(y)
    result.backward()
    expected.backward()
    assert kernels() >= 2, f"torch.compile generated {kernels()} kernels, expected forward and backward"
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


class Gate(nn.Module):
    """A norm, a gate and a residual, which become one kernel. Shape (N, 16), any N."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        return x + functional.silu(self.norm(x)) * x.sigmoid()


class Attention(nn.Module):
    """Projections, attention, a norm, a residual. Shape (N, length, 16), any N and length."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.mix(self.norm(x)).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + functional.gelu(self.out(mixed.transpose(1, 2).flatten(-2)))


def in_any_shape(compiled, module, shapes, device):
    """Compile a module, compare with eager mode in each shape; return how many graphs were compiled."""
    from torch._dynamo.utils import counters

    counters.clear()
    module = module.to(device).eval()
    quick = compiled(module, fullgraph=True)
    with torch.no_grad():
        for shape in shapes:
            x = torch.randn(*shape, 16, device=device)
            torch.testing.assert_close(quick(x), module(x), rtol=1e-4, atol=1e-5)
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert kernels() >= 1, "torch.compile generated no kernel"
    return counters["stats"]["unique_graphs"]


def test_any_batch_size(compiled):
    """No graph break; compiled for the first batch size, once more for all others; values as eager mode's."""
    graphs = in_any_shape(compiled, Gate(), [(4,), (6,), (5,), (9,), (200,)], "cpu")
    assert graphs == 2, f"compiled {graphs} times: once for a size and once for any are enough"


@pytest.mark.gpu
def test_any_batch_and_length(compiled):
    """Attention by triton's kernels: compiled for a shape, for any batch size, for any length, and never again."""
    graphs = in_any_shape(compiled, Attention(), [(4, 8), (6, 8), (5, 12), (9, 31), (2, 64)], "cuda")
    assert graphs <= 3, f"compiled {graphs} times"


@pytest.mark.gpu
def test_training_a_compiled_model(compiled):
    """Five steps of SGD: the losses and the weights of eager mode, and a state_dict that an eager model loads."""

    def train(compile):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).cuda()
        x, y = torch.randn(64, 16, device="cuda"), torch.randint(0, 4, (64,), device="cuda")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        loss_of, losses = compile(lambda x, y: functional.cross_entropy(model(x), y)), []
        for _ in range(5):
            optimizer.zero_grad()
            loss = loss_of(x, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return model, losses

    model, losses = train(lambda function: compiled(function, fullgraph=True))
    eager, expected = train(lambda function: function)
    assert kernels() >= 2
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_where_a_graph_breaks_is_told():
    """Without fullgraph, Python runs what cannot be captured, with the same result; the compiler counts and says it."""
    from torch._dynamo.utils import counters

    def broken(x):
        y = x.sin()
        torch._dynamo.graph_break(msg="here")
        return y.cos()

    torch._dynamo.reset()
    counters.clear()
    x = torch.randn(8)
    assert torch.equal(torch.compile(broken, backend="eager")(x), broken(x))
    assert len(counters["graph_break"]) == 1
    assert counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()


@pytest.mark.gpu
def test_reduce_overhead(compiled):
    """mode="reduce-overhead": kernels in a CUDA graph, which is replayed with eager mode's values."""
    from torch._dynamo.utils import counters

    counters.clear()
    module = Attention().cuda().eval()
    quick = compiled(module, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(4):  # the first ones warm up and record
            x = torch.randn(4, 8, 16, device="cuda")
            torch.compiler.cudagraph_mark_step_begin()
            torch.testing.assert_close(quick(x).clone(), module(x), rtol=1e-4, atol=1e-5)
    assert not counters["inductor"]["cudagraph_skips"]
