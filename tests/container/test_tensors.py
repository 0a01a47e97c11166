"""arithmetic, in-place, views, broadcasting, to exact or float64 values"""

import operator

import pytest
import torch

pytestmark = pytest.mark.quick
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv"])
def test_arithmetic_is_correctly_rounded(name, dtype):
    """float64 is wide enough that rounding its result once gives the only right answer: equal to the bit."""
    op = getattr(operator, name)
    a, b = (torch.rand(4099, dtype=torch.float64).add(0.5).to(dtype) for _ in range(2))
    assert torch.equal(op(a, b), op(a.double(), b.double()).to(dtype))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integer_arithmetic_is_pythons(dtype):
    """Signs of quotient and remainder follow Python's rules."""
    pairs = [(a, b) for a in range(-11, 12) for b in range(-11, 12) if b]
    a, b = (torch.tensor(side, dtype=dtype) for side in zip(*pairs, strict=True))
    for op in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod):
        assert op(a, b).tolist() == [op(x, y) for x, y in pairs], op


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_matrix_product_within_its_error_bound(dtype):
    """|error| <= k u32 |A||B| + u |AB|: k sums in float32, one rounding to the dtype; more is a wrong product."""
    a, b = torch.randn(65, 257, dtype=dtype), torch.randn(257, 33, dtype=dtype)
    a64, b64 = a.double(), b.double()
    sums = 257 * 2.0**-24 * (a64.abs() @ b64.abs())
    bound = sums + torch.finfo(dtype).eps / 2 * ((a64 @ b64).abs() + sums)
    assert ((a @ b).double() - a64 @ b64).abs().le(bound).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64], ids=str)
def test_reductions_are_exact(dtype):
    """Integers below 2^53 have one right sum, in whatever order and by however many threads."""
    x = torch.arange(100_003, dtype=dtype)
    assert x.sum().item() == 100_003 * 100_002 // 2
    assert (x.max().item(), x.argmax().item(), x.min().item()) == (100_002, 100_002, 0)
    assert x[:12].reshape(3, 4).sum(dim=0).tolist() == [12, 15, 18, 21]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_in_place(dtype):
    """The result lands in the same memory, and the version counter counts each write."""
    x = torch.arange(6).to(dtype)
    address, version = x.data_ptr(), x._version
    assert x.add_(2).mul_(3) is x
    assert (x.data_ptr(), x._version) == (address, version + 2)
    assert x.tolist() == [6, 9, 12, 15, 18, 21]


def test_in_place_on_a_leaf_that_needs_a_gradient_is_refused():
    """Else the gradient would belong to a value that is gone."""
    leaf = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        leaf.add_(1)
    assert leaf.tolist() == [1, 1, 1]


def test_in_place_on_what_backward_needs_is_noticed():
    """The version counter tells backward that a saved value was overwritten: an error, not a wrong gradient."""
    x = torch.ones(3, requires_grad=True)
    y = x.exp()
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_views_share_memory():
    """Slices and transposes are the same memory, seen with other strides; a copy is not."""
    base = torch.arange(12).reshape(3, 4)
    views = {"transpose": base.T, "column": base[:, 1], "every other": base[::2, ::2], "flat": base.view(-1)}
    strides = {"transpose": (1, 4), "column": (4,), "every other": (8, 2), "flat": (1,)}
    assert {name: view.stride() for name, view in views.items()} == strides
    assert all(view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr() for view in views.values())
    base[0, 1] = 100
    assert [views["transpose"][1, 0], views["column"][0], views["flat"][1]] == [100, 100, 100]
    copy = base.T.contiguous()
    copy[0, 0] = -1
    assert base[0, 0] == 0
    assert copy.stride() == (3, 1)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        base.T.view(-1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_broadcasting(dtype):
    """Axes of length 1 repeat without memory; lengths that do not fit are an error."""
    column, row = torch.arange(3).to(dtype)[:, None], torch.arange(4).to(dtype)
    assert (column * 10 + row).tolist() == [[10 * i + j for j in range(4)] for i in range(3)]
    assert column.expand(3, 4).stride() == (1, 0)
    assert (torch.zeros(2, 1, 0) + torch.zeros(5, 1)).shape == (2, 5, 0)
    with pytest.raises(RuntimeError, match="must match the size"):
        torch.zeros(3) + torch.zeros(4)
