"""NVML and torch agree; kernels, nms, training, torch.compile on the GPU"""

import os
import re
from pathlib import Path

import pytest
import torch
from torchvision.ops import nms

from torchdock.inside import devices
from torchdock.inside.workloads import classifier

pytestmark = pytest.mark.gpu
REMEDY = "ask invoke doctor on the host about driver and GPU; a GPU that computes wrongly belongs out of service."


@pytest.fixture(scope="module")
def nvml() -> devices.Nvml:
    return devices.nvml()


def seen() -> dict[str, tuple[str, int]]:
    """What torch sees: {UUID: (name, bytes)}."""
    found = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[re.sub(r"^(GPU|MIG)-", "", str(properties.uuid)).lower()] = (properties.name, properties.total_memory)
    return found


@pytest.mark.quick
def test_driver(nvml):
    """One driver: NVML's library, the kernel module and the CUDA library agree, and it is new enough for this torch."""
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", nvml.driver)
    module = Path("/proc/driver/nvidia/version")
    if module.exists():  # WSL has none
        assert f" {nvml.driver} " in module.read_text(), "Remedy: the driver was updated; reboot the host."
    assert torch._C._cuda_getDriverVersion() == nvml.cuda
    assert nvml.cuda // 1000 >= int(torch.version.cuda.partition(".")[0])


@pytest.mark.quick
def test_uuids(nvml):
    """torch sees the devices that NVML sees, joined by UUID: indices mean different GPUs in different programs."""
    known = {device.uuid for device in nvml.devices}
    assert seen()
    assert set(seen()) <= known
    # CUDA shows a process one MIG instance at most, and a list of visible devices may hide some on purpose.
    if "CUDA_VISIBLE_DEVICES" not in os.environ and not any(device.mig for device in nvml.devices):
        assert set(seen()) == known


@pytest.mark.quick
def test_names_and_memory(nvml):
    """Same name; torch's memory is NVML's less what the driver reserves: at most 5% or 512 MiB."""
    known = {device.uuid: device for device in nvml.devices}
    for uuid, (name, memory) in seen().items():
        assert name.startswith(known[uuid].name), "a MIG instance's name is its GPU's and its profile"
        total = known[uuid].memory
        assert total - max(total // 20, 512 * 2**20) <= memory <= total


@pytest.mark.quick
def test_kernels_are_built_for_this_device():
    """Else: no kernel image is available. Code of the same major and no newer minor runs, and PTX of any older."""
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", arch) for arch in torch.cuda.get_arch_list()]
        fits = [
            (int(arch[2]) == major and int(arch[3]) <= minor)
            if arch[1] == "sm"
            else (int(arch[2]), int(arch[3])) <= (major, minor)
            for arch in built
            if arch
        ]
        assert any(fits), f"{major}.{minor} is not in {torch.cuda.get_arch_list()}. Remedy: take another variant."


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matrix_product(dtype):
    """On every device against float64 on the CPU: |error| <= (2 k a + 4 u) |A||B|, and TF32 is off by default.

    a: rounding of the accumulator, twice since tensor cores truncate; u: of the dtype, four for split sums.
    """
    a, b = torch.randn(129, 257).to(dtype), torch.randn(257, 65).to(dtype)
    a64, b64 = a.double(), b.double()
    accumulator = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    bound = (2 * 257 * accumulator + 2 * torch.finfo(dtype).eps) * (a64.abs() @ b64.abs())
    for index in range(torch.cuda.device_count()):
        product = (a.to(f"cuda:{index}") @ b.to(f"cuda:{index}")).cpu().double()
        assert (product - a64 @ b64).abs().le(bound).all()


@pytest.mark.quick
def test_convolution():
    """cuDNN loads and computes: float32 without TF32 against float64 on the CPU."""
    x, w = torch.randn(2, 8, 16, 16), torch.randn(4, 8, 3, 3)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        result = torch.conv2d(x.cuda(), w.cuda()).cpu().double()
    torch.testing.assert_close(result, torch.conv2d(x.double(), w.double()), rtol=1e-4, atol=1e-4)


def test_nms_equals_the_cpus():
    """torchvision's CUDA operator, from the same build as torch's."""
    corners = torch.rand(2000, 2) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(2000, 2) * 20], dim=1)
    scores = torch.randperm(2000) / 2000.0
    assert nms(boxes.cuda(), scores.cuda(), 0.5).tolist() == nms(boxes, scores, 0.5).tolist()


def test_classifier_learns():
    """The tutorial's training on the GPU: above 90% on held-out images, the first losses the CPU's."""
    on_gpu, on_cpu = classifier.train(device="cuda"), classifier.train(device="cpu")
    assert on_gpu.accuracy > 0.9
    # The same weights, images and order: rounding alone tells the two apart, and it grows from epoch to epoch.
    assert on_gpu.losses[:3] == pytest.approx(on_cpu.losses[:3], rel=0.01)


def test_compile():
    """triton compiles its launcher and a kernel; results and gradients as in eager mode."""

    def toy(x):
        return (torch.sin(x) * x).sum()

    x, y = (torch.linspace(-3, 3, 1000, device="cuda", requires_grad=True) for _ in range(2))
    result, expected = torch.compile(toy, fullgraph=True)(x), toy(y)
    result.backward()
    expected.backward()
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(x.grad, y.grad)
