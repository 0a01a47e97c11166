"""first and second gradients against finite differences; accumulation equals a large batch"""

import pytest
import torch
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.quick

FUNCTIONS = {
    "matmul": (lambda a, b: a @ b, [(3, 4), (4, 2)]),
    "softmax": (lambda x: x.softmax(dim=-1), [(3, 5)]),
    "layer_norm": (lambda x, w, b: functional.layer_norm(x, (5,), w, b), [(3, 5), (5,), (5,)]),
    "conv2d": (lambda x, w: functional.conv2d(x, w, padding=1, stride=2), [(2, 3, 5, 5), (4, 3, 3, 3)]),
    "cross_entropy": (lambda x: functional.cross_entropy(x, torch.tensor([0, 4, 2])), [(3, 5)]),
    "views": (lambda x: (x.T[1:] * x.T[:-1]).cumsum(dim=0).exp(), [(3, 4)]),
    "indexing": (lambda x: x[torch.tensor([0, 0, 2])].prod(dim=0), [(3, 4)]),
}


@pytest.mark.parametrize("seed", range(3))
def test_central_differences(seed):
    """(f(x+h) - f(x-h)) / 2h, by hand and without torch's own checker, must be the gradient to O(h^2)."""
    torch.manual_seed(seed)
    weights = torch.randn(4, 3, dtype=torch.float64)

    def f(x):
        return ((x @ weights).tanh() ** 2 * x.sum().sin()).sum()

    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(f(x), x)
    step = 1e-5
    for index in range(x.numel()):
        h = torch.zeros(x.numel(), dtype=torch.float64)
        h[index] = step
        with torch.no_grad():
            difference = (f(x + h.view_as(x)) - f(x - h.view_as(x))) / (2 * step)
        assert abs(difference - gradient.flatten()[index]) < 1e-8


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck(name):
    """Every entry of the Jacobian against finite differences in float64, backward and forward (dual numbers)."""
    function, shapes = FUNCTIONS[name]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradgradcheck(name):
    """The gradients' own gradients, which penalties on gradients and second-order methods take."""
    function, shapes = FUNCTIONS[name]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradgradcheck(function, inputs)


class Cube(torch.autograd.Function):
    """x^3, with a backward of its own that is differentiable again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class WrongCube(Cube):
    """As above, with a factor that is wrong by a hundredth."""

    @staticmethod
    def backward(ctx, gradient):
        return 1.01 * Cube.backward(ctx, gradient)


def test_a_function_of_ones_own():
    """Its backward is used, once and twice; gradcheck, which proves so much here, sees one that is 1% wrong."""
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Cube.apply, x) and torch.autograd.gradgradcheck(Cube.apply, x)
    assert not torch.autograd.gradcheck(WrongCube.apply, x, raise_exception=False)


def test_jacobians_and_hessians():
    """torch.func, vectorised over a batch: of x -> A x the Jacobian is A, of x^T B x the Hessian is B + B^T."""
    a, b, x = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 4), (4, 4), (6, 4)))
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: a @ x))(x)
    hessians = torch.func.vmap(torch.func.hessian(lambda x: x @ b @ x))(x)
    torch.testing.assert_close(jacobians, a.expand(6, 3, 4))
    torch.testing.assert_close(hessians, (b + b.T).expand(6, 4, 4))


def test_second_derivative():
    """d2/dx2 of x^3 is 6x, exactly."""
    x = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)
    (first,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.tolist() == [-12.0, 3.0, 18.0]


def test_accumulation_equals_the_large_batch():
    """Four backward passes over quarters, each loss divided by four, are one pass over all."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    images, labels = torch.randn(16, 6, dtype=torch.float64), torch.arange(16) % 3
    functional.cross_entropy(model(images), labels).backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for x, y in zip(images.chunk(4), labels.chunk(4), strict=True):
        (functional.cross_entropy(model(x), y) / 4).backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=1e-14)


def test_no_grad_and_detach_record_nothing():
    """Values that must not take part in backward do not."""
    x = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert not (x * 2).requires_grad
    (x * x.detach()).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]
