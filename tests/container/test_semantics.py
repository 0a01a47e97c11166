"""checkpointing, mixed precision, optimizers, deterministic algorithms: what training relies on"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

REMEDY = (
    "build the image again (invoke build --no-cache); on a GPU, see its health: a GPU that computes wrongly must go."
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
pytestmark = pytest.mark.limit(60)


class Residual(nn.Module):
    """A block with dropout, so that what is computed anew must draw the same random numbers. Shape (N, width)."""

    def __init__(self, width=32):
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.5), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        return x + self.inner(x)


@pytest.fixture
def deterministic():
    """Deterministic algorithms, as a user switches them on; as before afterwards."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def saved_bytes(function):
    """Call it; return (its result, the bytes that it keeps for the way back)."""
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return function(), sum(held.values())


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("reentrant", [False, True], ids=["new", "reentrant"])
@pytest.mark.parametrize("device", DEVICES)
def test_checkpointing_gives_the_same_gradients_from_less_memory(device, reentrant):
    """Activations that are computed anew: the same to the bit, dropout included, with a fraction of what is kept."""
    model = nn.Sequential(*(Residual() for _ in range(6))).to(device)
    x = torch.randn(64, 32, device=device, requires_grad=True)

    def plainly():
        return model(x).square().mean()

    def anew():
        value = x
        for part in model:
            value = checkpoint(part, value, use_reentrant=reentrant)
        return value.square().mean()

    torch.manual_seed(1)
    loss, whole = saved_bytes(plainly)
    expected = gradients(model, loss)
    torch.manual_seed(1)
    again, kept = saved_bytes(anew)
    assert again.item() == loss.item()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, again), expected, strict=True))
    assert any(gradient.abs().max() > 1e-3 for gradient in expected)
    assert kept < whole / 4, f"{kept} bytes are kept with checkpointing, {whole} without"


@pytest.mark.gpu
def test_checkpointing_lowers_the_peak_of_a_gpus_memory():
    """What the allocator really held: the highest mark of a step with checkpointing is below half of it without."""
    model = nn.Sequential(*(Residual(256) for _ in range(16))).cuda()
    x = torch.randn(8192, 256, device="cuda", requires_grad=True)

    def peak(step):
        model.zero_grad()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step().square().mean().backward()
        return torch.cuda.max_memory_allocated() - before

    def anew():
        value = x
        for part in model:
            value = checkpoint(part, value, use_reentrant=False)
        return value

    peak(anew)  # the first step makes the gradients
    assert peak(anew) < peak(lambda: model(x)) / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_chooses_precision_by_operation(device, dtype):
    """Products in the low precision, what loses there (softmax, norms, losses) in float32, parameters untouched."""
    model, x = nn.Linear(16, 16).to(device), torch.randn(4, 16, device=device)
    with torch.autocast(device, dtype):
        product = model(x)
        assert product.dtype == dtype
        assert (product @ product.T).dtype == dtype
        for lossy in (product.float().softmax(-1), functional.mse_loss(product, torch.zeros_like(product))):
            assert lossy.dtype == torch.float32
        with torch.autocast(device, enabled=False):
            assert model(x).dtype == torch.float32
        product.float().square().mean().backward()
    assert model(x).dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_gradients_are_those_of_float32_rounded(device, dtype):
    """Against float64: the error is a few roundings of the low precision, and more than float32's: it was used."""
    model, x = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).to(device), torch.randn(16, 32)
    wide = copy.deepcopy(model).cpu().double()
    wide(x.double()).square().mean().backward()
    with torch.autocast(device, dtype):
        loss = model(x.to(device)).float().square().mean()
    loss.backward()
    for low, exact in zip(model.parameters(), wide.parameters(), strict=True):
        error = (low.grad.cpu().double() - exact.grad).abs().max() / exact.grad.abs().max()
        assert 2**-22 < error < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("device", DEVICES)
def test_scaler_saves_gradients_that_float16_would_lose(device):
    """2^-26 is 0 in float16, whose smallest number is 2^-24; scaled by 2^16 on the way, it arrives exactly."""
    weight = torch.zeros(1, device=device, requires_grad=True)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**16)

    def gradient(scale):
        weight.grad = None
        loss = (weight.half() * 2.0**-13).float() * 2.0**-13
        scale(loss.sum()).backward()
        return weight.grad.item()

    assert gradient(lambda loss: loss) == 0
    assert gradient(scaler.scale) / scaler.get_scale() == 2.0**-26


@pytest.mark.parametrize("device", DEVICES)
def test_scaler_leaves_out_a_step_with_infinity(device):
    """An overflow changes no parameter and halves the scale; good steps are plain ones, and let it grow again."""
    weight = nn.Parameter(torch.ones(3, device=device))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scaler = torch.amp.GradScaler(device, init_scale=8.0, growth_interval=2)

    def step(factor):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return weight.tolist(), scaler.get_scale()

    assert step(math.inf) == ([1.0] * 3, 4.0)
    assert step(math.nan) == ([1.0] * 3, 2.0)
    assert step(0.5) == ([0.75] * 3, 2.0)
    assert step(0.5) == ([0.5] * 3, 4.0)


@pytest.mark.parametrize("device", DEVICES)
def test_clipping_sees_unscaled_gradients(device):
    """unscale_ before clip_grad_norm_: a norm of 3, 4 is 5, and is cut to 1 in the direction that it had."""
    weight = nn.Parameter(torch.zeros(2, device=device))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    scaler.scale((weight * torch.tensor([3.0, 4.0], device=device)).sum()).backward()
    scaler.unscale_(optimizer)
    assert nn.utils.clip_grad_norm_([weight], 1.0).item() == pytest.approx(5.0)
    scaler.step(optimizer)
    assert weight.tolist() == pytest.approx([-0.6, -0.8], rel=1e-5)


def sgd_by_hand(w, gradients, lr=0.1, momentum=0.9, decay=0.01):
    velocity = 0.0
    for g in gradients:
        g = g + decay * w
        velocity = momentum * velocity + g
        w = w - lr * velocity
    return w


def adamw_by_hand(w, gradients, lr=0.1, betas=(0.9, 0.999), eps=1e-8, decay=0.01):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        w = w * (1 - lr * decay)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        w = w - lr * (m / (1 - betas[0] ** t)) / (math.sqrt(v / (1 - betas[1] ** t)) + eps)
    return w


@pytest.mark.parametrize("way", ["plain", "foreach", "fused"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("device", DEVICES)
def test_optimizers_by_hand(device, name, way):
    """Ten steps of the published rules in Python's own numbers; all implementations of torch's agree with them."""
    flags = {"foreach": way == "foreach", "fused": way == "fused"}
    weight = nn.Parameter(torch.tensor([1.5, -0.5], dtype=torch.float64, device=device))
    if name == "sgd":
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.01, **flags)
    else:
        optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.01, **flags)
    pushes = torch.randn(10, 2, dtype=torch.float64)
    for push in pushes:
        weight.grad = push.to(device)
        optimizer.step()
    rule = {"sgd": sgd_by_hand, "adamw": adamw_by_hand}[name]
    expected = [rule(start, pushes[:, column].tolist()) for column, start in enumerate((1.5, -0.5))]
    assert weight.tolist() == pytest.approx(expected, rel=1e-12)


def curve(device, seed=0, steps=50):
    """Train a small network with convolution, batch norm, dropout, pooling and Adam; return the loss of each step."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10),
    ).to(device)  # fmt: skip
    images, labels = torch.randn(64, 3, 16, 16).to(device), torch.randint(0, 10, (64,)).to(device)
    table = nn.Embedding(10, 10).to(device)  # its gradient is a sum in whatever order the threads come
    optimizer = torch.optim.Adam([*model.parameters(), *table.parameters()], lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images) + table(labels), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("device", DEVICES)
def test_two_seeded_runs_are_equal_to_the_bit(device, deterministic, fingerprint):
    """Every step's loss; another seed gives others. The curve's fingerprint tells whether another machine agrees."""
    losses = curve(device)
    torch.randn(1000, device=device)  # what drew random numbers before must not matter
    assert curve(device) == losses
    assert curve(device, seed=1) != losses
    assert losses[-1] < losses[0] / 2
    seen = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    details = {"device": seen, "threads": torch.get_num_threads(), "deterministic": True}
    assert fingerprint(f"loss curve on {device}", losses, **details)


@pytest.mark.parametrize("device", DEVICES)
def test_what_has_no_deterministic_algorithm_is_refused(device, deterministic):
    """Better an error than a run that cannot be repeated; memory that nobody wrote reads as NaN, not as old numbers."""
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(4, device=device).put_(torch.tensor([0, 0], device=device), torch.ones(2, device=device))
    assert torch.empty(1000, device=device).isnan().all()


@pytest.mark.gpu
def test_sums_by_index_are_repeatable_where_that_is_asked_for(deterministic):
    """Atomic additions come in any order: with deterministic algorithms, a million of them are equal to the bit."""
    index = torch.randint(0, 100, (1_000_000,), device="cuda")
    values = torch.randn(1_000_000, device="cuda")
    sums = {torch.zeros(100, device="cuda").index_add_(0, index, values).cpu().numpy().tobytes() for _ in range(5)}
    assert len(sums) == 1


@pytest.mark.gpu
def test_a_cuda_graph_replays_what_was_captured():
    """A training step captured once and replayed with new data: the losses and weights of eager mode."""

    def parts():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).cuda()
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    data = torch.randn(8, 16, 32).cuda()

    def step(model, optimizer, x):
        optimizer.zero_grad(set_to_none=False)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    model, optimizer = parts()
    eager = [step(model, optimizer, x).item() for x in data]
    expected = [parameter.detach().clone() for parameter in model.parameters()]

    model, optimizer = parts()
    start = copy.deepcopy(model.state_dict())
    place = data[0].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up, as capturing demands
        for _ in range(3):
            step(model, optimizer, place)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(model, optimizer, place)
    model.load_state_dict(start)
    losses = []
    for x in data:
        place.copy_(x)
        graph.replay()
        losses.append(loss.item())
    assert losses == pytest.approx(eager, rel=1e-5)
    for parameter, want in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), want)


@pytest.mark.gpu
def test_graphed_callables():
    """make_graphed_callables: a module whose forward and backward are graphs has eager mode's gradients."""
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).cuda()
    plain = copy.deepcopy(model)
    graphed = torch.cuda.make_graphed_callables(model, (torch.randn(16, 32, device="cuda"),))
    x = torch.randn(16, 32, device="cuda")
    for module in (graphed, plain):
        module(x).square().mean().backward()
    for parameter, want in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, want.grad)
