"""memory errors, throttling and PCIe of the GPUs under load: findings, and what is broken"""

import time

import pytest
import torch

from torchdock.inside import devices, health

pytestmark = pytest.mark.gpu
REMEDY = "take this GPU out of service, or reset it (sudo nvidia-smi --gpu-reset) where nothing runs on it."
SECONDS = 1.0


@pytest.fixture(scope="module")
def under_load() -> list[health.Health]:
    """Each GPU's worst while all of them multiply matrices and copy from the host."""
    count = torch.cuda.device_count()
    factors = [torch.randn(4096, 4096, device=f"cuda:{index}") for index in range(count)]
    host = torch.randn(16 * 2**20).pin_memory()
    copies = [torch.empty_like(host, device=f"cuda:{index}") for index in range(count)]
    with health.watched({device["uuid"] for device in devices.cuda()}) as found:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for factor, copy in zip(factors, copies, strict=True):
                copy.copy_(host, non_blocking=True)
                torch.mm(factor, factor)
            for index in range(count):
                torch.cuda.synchronize(index)  # else the queue grows for as long as this runs
    return found


def test_no_gpu_belongs_out_of_service(under_load):
    """Memory that cannot be repaired any more gives wrong numbers or ends what runs on it."""
    assert under_load
    for one in under_load:
        assert (why := health.broken(one)) is None, f"{one.name}, GPU-{one.uuid}: {why}."


def test_what_slows_it_down_or_wears_it_out(under_load, finding, measured):
    """Errors that were corrected, throttling, a slow link: it works, and a person should know."""
    assert under_load
    for one in under_load:
        for found in health.judge(one):
            finding(**found)
        if one.temperature is not None:
            limited = bool((one.throttle or 0) & health.POWER_LIMIT)
            link = {"generation": one.generation, "width": one.width}
            measured("temperature under load", one.temperature, "°C", gpu=one.uuid, power_limited=limited, link=link)
