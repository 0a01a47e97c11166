"""NVML and torch agree; kernels, nms, roi_align, training, torch.compile on the GPU"""

import os
import re
from pathlib import Path

import pytest
import torch
from torchvision.ops import nms, roi_align

from torchdock.inside import devices
from torchdock.inside.workloads import classifier, loop

pytestmark = pytest.mark.gpu
REMEDY = "ask invoke doctor on the host about driver and GPU; a GPU that computes wrongly belongs out of service."


@pytest.fixture(scope="module")
def nvml() -> devices.Nvml:
    return devices.nvml()


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
    known, seen = {device.uuid for device in nvml.devices}, {device["uuid"] for device in devices.cuda()}
    assert seen and seen <= known
    # A list of visible devices may hide some on purpose, and CUDA shows a process one MIG instance at most.
    if any(device.mig for device in nvml.devices):
        assert len(seen) == torch.cuda.device_count() == 1
    elif "CUDA_VISIBLE_DEVICES" not in os.environ:
        assert seen == known


@pytest.mark.quick
def test_names_addresses_and_memory(nvml):
    """Same name and PCI address; torch's memory is NVML's less what the driver reserves: at most 5% or 512 MiB."""
    known = {device.uuid: device for device in nvml.devices}
    for index, seen in enumerate(devices.cuda()):
        device = known[seen["uuid"]]
        assert seen["name"].startswith(device.name), "a MIG instance's name is its GPU's and its profile"
        assert device.bus in (seen["bus"], None)
        # Where GPU and host share their memory NVML tells none, and CUDA itself has to do.
        total = torch.cuda.mem_get_info(index)[1] if device.memory is None else device.memory
        assert total - max(total // 20, 512 * 2**20) <= seen["memory"] <= total


@pytest.mark.quick
@pytest.mark.launched
def test_exactly_the_assigned_gpus(nvml):
    """A container that sees another GPU computes on somebody else's; one that misses its own was given less."""
    given = devices.assigned(os.environ.get("TORCHDOCK_GPUS"))
    assert given, "TORCHDOCK_GPUS is not set. Remedy: launch with torchdock (invoke test), which names what it gives."
    seen = [device.uuid for device in nvml.devices]
    assert sorted(seen) == sorted(given), f"given: {', '.join(given)}; seen: {', '.join(seen)}"
    mig = any(device.mig for device in nvml.devices)
    assert not mig or len(given) == 1, "CUDA gives a process one MIG instance. Remedy: launch with one."


def test_any_choice_of_visible_devices(nvml):
    """By index, by UUID, in any order, or none: CUDA shows what CUDA_VISIBLE_DEVICES says, and NVML always all."""
    known = {device.uuid: device for device in nvml.devices}
    uuids = sorted(known, key=lambda uuid: known[uuid].bus or "")
    values = devices.settings(uuids, mig=any(device.mig for device in nvml.devices))
    for value, seen in zip(values, devices.seen_with(values), strict=True):
        names = [(one["uuid"], one["bus"]) for one in seen["cuda"]]
        expected = [(uuid, known[uuid].bus) for uuid in devices.visible(value, uuids)]
        if value is None and any(device.mig for device in nvml.devices):
            expected = expected[:1]
        assert [name for name, _ in names] == [name for name, _ in expected], f"CUDA_VISIBLE_DEVICES={value!r}"
        assert all(bus in (told, None) for (_, told), (_, bus) in zip(names, expected, strict=True))
        assert sorted(seen["nvml"]) == sorted(known), f"CUDA_VISIBLE_DEVICES={value!r} hides GPUs from NVML"


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_roi_align_equals_the_cpus(dtype):
    """Values and gradients of a hundred boxes over two pictures, some beyond their edges."""
    planes = torch.rand(2, 8, 32, 48, dtype=dtype)
    corners = torch.rand(100, 2, dtype=dtype) * 40 - 4
    boxes = torch.cat([torch.arange(100)[:, None] % 2, corners, corners + 1 + torch.rand(100, 2) * 15], dim=1).to(dtype)
    found = []
    for device in ("cpu", "cuda"):
        here = planes.to(device).requires_grad_()
        out = roi_align(here, boxes.to(device), 7, 1.0, 2, aligned=True)
        out.square().sum().backward()
        found.append((out.detach().cpu(), here.grad.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_classifier_learns():
    """The tutorial's training on the GPU: above 90% on held-out images, the first losses the CPU's."""
    workload = classifier.WORKLOAD
    on_gpu, on_cpu = (loop.train(workload, loop.settings(workload), device=device) for device in ("cuda", "cpu"))
    assert on_gpu.score > 0.9
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
