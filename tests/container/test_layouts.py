"""memory formats, strided, empty and 0-d tensors, beyond 2^31 elements, float32 precision as it was set"""

import pytest
import torch
from torch.nn import functional

BEYOND = 2**31 + 16


@pytest.fixture
def precision():
    """Whatever a check sets, the next one finds the default."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_channels_last_is_kept_and_changes_no_value(device):
    """Layers of images keep the format that they are given; what they compute is the same to float32's rounding."""
    images = torch.randn(2, 4, 8, 8, device=device)
    last = images.to(memory_format=torch.channels_last)
    assert last.stride() == (256, 1, 32, 4)
    assert torch.equal(last, images)
    weight = torch.randn(6, 4, 3, 3, device=device)
    layers = {
        "conv2d": lambda x: functional.conv2d(x, weight, padding=1),
        "max_pool2d": lambda x: functional.max_pool2d(x, 2),
        "batch_norm": lambda x: functional.batch_norm(x, None, None, training=True),
        "relu": torch.relu,
        "interpolate": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
        "add": lambda x: x + x,
    }
    for name, layer in layers.items():
        result = layer(last)
        assert result.is_contiguous(memory_format=torch.channels_last), name
        torch.testing.assert_close(result, layer(images), rtol=1e-5, atol=1e-5, msg=name)
    assert last.contiguous().stride() == images.stride()
    assert torch.empty_like(last).stride() == last.stride()
    volumes = torch.randn(1, 2, 3, 4, 5, device=device).to(memory_format=torch.channels_last_3d)
    assert volumes.stride() == (120, 1, 40, 10, 2)


def test_writing_through_a_strided_view(device):
    """In place, on every other column of a transposed half: what the view names changes, and nothing beside it."""
    base = torch.arange(48, dtype=torch.float32, device=device).reshape(6, 8)
    view = base.T[1::2, :3]
    assert not view.is_contiguous()
    view.mul_(-1).add_(100)
    expected = [[100 - v if v % 8 % 2 and v < 24 else v for v in range(8 * r, 8 * r + 8)] for r in range(6)]
    assert base.tolist() == expected
    base[:, ::2][base[:, ::2] > 30] = 0
    assert base[:, 0].tolist() == [0, 8, 16, 24, 0, 0]
    base[1:].copy_(base[:-1].clone())
    assert base[5].tolist() == [0, 33, 0, 35, 0, 37, 0, 39]


def test_overlapping_memory_is_refused():
    """An expanded tensor is one value many times: to write into it in place would be to write it many times."""
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor refers to a single memory"):
        torch.zeros(1).expand(3).add_(1)


def test_empty_tensors(device):
    """Sums of nothing are 0, products 1, means no number; an extreme of nothing is an error; shapes stay exact."""
    empty = torch.empty(0, 3, device=device)
    assert empty.sum().item() == 0
    assert empty.prod(dim=0).tolist() == [1, 1, 1]
    assert empty.mean(dim=0).isnan().all()
    assert empty.all().item() is True and empty.any().item() is False
    assert (empty.T @ empty).tolist() == [[0] * 3] * 3
    assert (torch.ones(2, 0, device=device) @ torch.ones(0, 4, device=device)).tolist() == [[0] * 4] * 2
    assert torch.cat([empty, torch.ones(1, 3, device=device)]).shape == (1, 3)
    assert functional.linear(empty, torch.ones(5, 3, device=device)).shape == (0, 5)
    assert functional.conv2d(torch.ones(0, 2, 4, 4, device=device), torch.ones(3, 2, 3, 3, device=device)).shape == (
        0,
        3,
        2,
        2,
    )
    with pytest.raises((RuntimeError, IndexError), match="max"):
        empty.max()
    leaf = torch.empty(0, 3, device=device, requires_grad=True)
    leaf.exp().sum().backward()
    assert leaf.grad.shape == (0, 3)


def test_tensors_of_no_dimension(device):
    """A scalar broadcasts, reduces to itself and promotes no tensor to its dtype; it has no length."""
    scalar = torch.tensor(2.5, device=device)
    assert (scalar.shape, scalar.stride(), scalar.numel(), scalar.item()) == ((), (), 1, 2.5)
    assert (scalar + torch.ones(2, 2, device=device)).tolist() == [[3.5] * 2] * 2
    assert scalar.sum(dim=0).shape == scalar.sort().values.shape == ()
    assert (torch.ones(2, dtype=torch.float16, device=device) * scalar).dtype == torch.float16
    assert (torch.ones(2, dtype=torch.int64, device=device) * scalar).dtype == torch.float32
    assert scalar.reshape(1, 1, 1).squeeze().shape == ()
    with pytest.raises(TypeError, match="0-d tensor"):
        len(scalar)


def test_beyond_two_to_the_31(device):
    """Positions need 64 bits: 2 GiB are written and read at their end; on a CPU only touched pages count."""
    data = torch.empty(BEYOND, dtype=torch.uint8, device=device)
    last = torch.arange(16, dtype=torch.uint8, device=device)
    data[-16:] = last
    data[2**31 - 4 : 2**31].fill_(77)
    places = torch.tensor([2**31 - 1, 2**31, 2**31 + 15], device=device)
    assert data[places].tolist() == data.index_select(0, places).tolist() == [77, 0, 15]
    assert torch.take(data, places).tolist() == data.gather(0, places).tolist() == [77, 0, 15]
    data[places] = 5
    assert data[-16:].tolist() == [5, *range(1, 15), 5]
    data.index_add_(0, places, torch.ones(3, dtype=torch.uint8, device=device))
    assert data[2**31 - 2 :].tolist() == [77, 6, 6, *range(1, 15), 6]
    tall = data.view(2**31 // 8 + 2, 8)
    assert tall[-1].tolist() == [*range(8, 15), 6]
    assert tall.T[3, -1].item() == 11


@pytest.mark.gpu  # a CPU takes 20 s for it
def test_a_sum_of_more_than_two_to_the_31():
    """Sizes and sums of more than 2^31 elements are exact; a single byte stands for all of them."""
    many = torch.ones(1, dtype=torch.int8, device="cuda").expand(BEYOND)
    assert many.numel() == BEYOND
    assert many.sum().item() == BEYOND


def rounded(device):
    """1 + 2^-12 as a product with the unit matrix returns it: TF32 and bfloat16 have no bit for the 2^-12."""
    unit = torch.eye(64, device=device)
    return (torch.full((64, 64), 1 + 2**-12, device=device) @ unit).unique().tolist()


def test_highest_is_float32(precision):
    """`highest`, the default, multiplies float32 matrices in float32, as it says."""
    assert torch.get_float32_matmul_precision() == "highest"
    assert rounded("cpu") == [1 + 2**-12]


@pytest.mark.parametrize("name", ["high", "medium"])
def test_lower_precision_where_the_cpu_has_it(precision, name):
    """`medium` multiplies in bfloat16 where oneDNN has that for this CPU; elsewhere, and with `high`, float32 it is."""
    torch.set_float32_matmul_precision(name)
    exact, coarse = [1 + 2**-12], [1.0]
    allowed = [exact, coarse] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else [exact]
    assert rounded("cpu") in allowed
    torch.set_float32_matmul_precision("highest")
    assert rounded("cpu") == exact


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "tf32"), [("highest", False), ("high", True), ("medium", True)])
def test_tf32_where_it_is_allowed(precision, name, tf32):
    """`highest` multiplies in float32, `high` and `medium` in TF32 on a GPU that has it (since Ampere)."""
    torch.set_float32_matmul_precision(name)
    has = torch.cuda.get_device_capability() >= (8, 0)
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert rounded("cuda") == ([1.0] if tf32 and has else [1 + 2**-12])
