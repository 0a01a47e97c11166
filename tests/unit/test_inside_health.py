"""GPUs by NVML: the judgement with plain values, the reading with the library of a driver that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from given import ROOT
from tests.fakes import FakeDriver, FakeGpu, FakeInstance, new_uuid

from torchdock.inside import devices, suite
from torchdock.inside.health import Health, broken, judge

WELL = Health(
    "1f2e", "NVIDIA H200", ecc=True, ecc_after_reboot=True, corrected=0, uncorrected=0, lifetime=0, retired=0,
    retirement_pending=False, remapped=0, remap_pending=False, remap_failed=False, throttle=0, temperature=40,
    generation=5, most_generation=5, width=16, most_width=16,
)  # fmt: skip


def changed(**different: Any) -> Health:
    return Health(**{**vars(WELL), **different})


@pytest.mark.parametrize(
    "health", [WELL, Health("1f2e", "NVIDIA GB10"), changed(throttle=0x105), changed(remapped=None)]
)
def test_of_a_gpu_that_is_well_nothing_is_told(health: Health) -> None:
    assert judge(health) == []
    assert broken(health) is None


@pytest.mark.parametrize(
    ("different", "severity", "subject", "words"),
    [
        (
            {"uncorrected": 2, "lifetime": 2},
            "error",
            "ECC errors",
            "2 memory errors that could not be",
        ),
        ({"lifetime": 3}, "note", "ECC errors", "3 memory errors in its life"),
        ({"corrected": 7}, "note", "ECC errors", "7 memory errors were corrected"),
        ({"ecc": False, "ecc_after_reboot": False}, "note", "ECC", "ECC is switched off"),
        ({"ecc_after_reboot": False}, "note", "ECC", "ECC will be off after the next reset"),
        ({"remap_pending": True}, "error", "memory", "replaced by a spare one at the next reset"),
        ({"retirement_pending": True}, "error", "memory", "replaced by a spare one at the next reset"),
        ({"remapped": 1}, "note", "memory", "1 rows of its memory failed"),
        ({"retired": 5}, "note", "memory", "5 pages of its memory failed"),
        ({"throttle": 0x08}, "error", "clocks", "for heat or its power supply"),
        ({"throttle": 0x48}, "error", "clocks", "the hardware slows it down for heat"),
        ({"throttle": 0x88}, "error", "clocks", "the power supply asks"),
        ({"throttle": 0x20}, "note", "clocks", "the driver slows it down for heat"),
        ({"throttle": 0x10}, "note", "clocks", "the pace of the slowest"),
        ({"throttle": 0x02}, "note", "clocks", "an administrator"),
        ({"generation": 1}, "note", "PCIe", "generation 1 under load, generation 5 is possible"),
        ({"width": 8, "generation": 4}, "note", "PCIe", "at generation 4 x8 under load, generation 5 x16 is"),
        ({"width": 8}, "note", "PCIe", "x8 under load, x16 is possible"),
    ],
)
def test_what_is_told(different: dict[str, Any], severity: str, subject: str, words: str) -> None:
    (found,) = judge(changed(**different))
    assert (found["severity"], found["subject"]) == (severity, subject)
    assert words in found["seen"]
    assert "NVIDIA H200, GPU-1f2e" in found["seen"]
    suite.Finding("test_health.py::test", **found)  # a whole one


@pytest.mark.parametrize(
    ("different", "why"), [({"remap_failed": True}, "no spare rows"), ({"retired": 64}, "64 pages")]
)
def test_what_is_broken(different: dict[str, Any], why: str) -> None:
    assert why in str(broken(changed(**different)))


def test_the_worst_of_two_readings() -> None:
    idle, busy = changed(generation=1, throttle=1, temperature=30), changed(throttle=0x40, temperature=90, width=None)
    worst = idle.worst(busy)
    assert (worst.generation, worst.throttle, worst.temperature, worst.width) == (5, 0x41, 90, 16)
    assert Health("a", "b").worst(Health("a", "b")) == Health("a", "b")


@pytest.mark.parametrize("spelled", ["GPU-1F2E-00", "gpu-1f2e-00", "MIG-1f2e-00", " 1f2e-00", b"GPU-1f2e-00"])
def test_plain_uuids(spelled: Any) -> None:
    assert devices.plain(spelled) == "1f2e-00"


@pytest.mark.parametrize(
    ("text", "found"),
    [("00000000:17:00.0", "0000:17:00.0"), ("0001:0A:1f.3", "0001:0a:1f.3"), ("GPU 0", None), ("", None)],
)
def test_pci_addresses(text: str, found: str | None) -> None:
    assert devices.address(text) == found


@pytest.mark.parametrize(
    ("variable", "found"), [(None, None), ("", []), ("GPU-AA", ["aa"]), ("GPU-aa,MIG-bb", ["aa", "bb"])]
)
def test_assigned(variable: str | None, found: list[str] | None) -> None:
    assert devices.assigned(variable) == found


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        (None, ["aa1", "ab2", "c3"]),
        ("", []),
        ("-1", []),
        ("1", ["ab2"]),
        ("2,0", ["c3", "aa1"]),
        ("0,7,1", ["aa1"]),
        ("0,-1,1", ["aa1"]),
        ("GPU-c3,0", ["c3", "aa1"]),
        ("GPU-AB", ["ab2"]),
        ("GPU-a", []),
        ("GPU-zz,0", []),
    ],
)
def test_visible(setting: str | None, shown: list[str]) -> None:
    assert devices.visible(setting, ["aa1", "ab2", "c3"]) == shown


@pytest.mark.parametrize(
    ("uuids", "mig", "values"),
    [
        (["a"], False, [None, "", "GPU-a", "0"]),
        (["a", "b"], False, [None, "", "GPU-a", "0", "1", "1,0"]),
        (["a"], True, [None, "", "MIG-a"]),
    ],
)
def test_settings_that_are_tried(uuids: list[str], mig: bool, values: list[str | None]) -> None:
    assert devices.settings(uuids, mig) == values


LOOK = """
import json, sys
from torchdock.inside import devices, health
seen = devices.nvml(float(sys.argv[1]))
uuids = {device.uuid for device in seen.devices}
with health.watched(uuids, every=0.01) as worst: pass
print(json.dumps({**seen.document(), "health": [vars(one) for one in worst]}))
"""


def look(driver: FakeDriver, seconds: float = 20) -> subprocess.CompletedProcess[str]:
    """What a Python sees that loads the library of this driver by nvidia-ml-py."""
    environment = {**os.environ, **driver.environment, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", LOOK, str(seconds)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def seen(driver: FakeDriver) -> dict[str, Any]:
    done = look(driver)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def told(document: dict[str, Any]) -> Sequence[dict[str, str]]:
    return [found for one in document["health"] for found in judge(Health(**one))]


def test_reading_a_gpu_that_is_well(tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid(), bus="0000:17:00.0"), FakeGpu(new_uuid(), memory_total=0)])
    found = seen(driver)
    assert (found["driver"], found["cuda"]) == ("580.0-fake", 13000)
    assert [device["uuid"] for device in found["devices"]] == [gpu.uuid.removeprefix("GPU-") for gpu in driver.gpus]
    assert [device["memory"] for device in found["devices"]] == [140 << 30, None]
    assert found["devices"][0]["bus"] == "0000:17:00.0"
    first = Health(**found["health"][0])
    assert (first.generation, first.most_width, first.ecc, first.uncorrected, first.remap_failed) == (
        5,
        16,
        True,
        0,
        False,
    )
    assert told(found) == []


def test_reading_what_is_wrong(tmp_path: Path) -> None:
    sick = FakeGpu(
        new_uuid(), ecc_corrected=4, ecc_uncorrected=1, ecc_uncorrected_aggregate=1, retired_single=2, retired_double=1,
        remapped_uncorrected=3, remapped_pending=1, remapped_failed=1, throttle=0x40, link_generation=3, link_width=8,
    )  # fmt: skip
    found = seen(FakeDriver(tmp_path, [FakeGpu(new_uuid()), sick]))
    well, ill = (Health(**one) for one in found["health"])
    assert judge(well) == []
    assert (ill.corrected, ill.uncorrected, ill.retired, ill.remapped) == (4, 1, 3, 3)
    assert [one["subject"] for one in judge(ill)] == [
        "ECC errors", "ECC errors", "memory", "memory", "memory", "clocks", "PCIe",
    ]  # fmt: skip
    assert "no spare rows" in str(broken(ill))


def test_reading_a_part_that_tells_little(tmp_path: Path) -> None:
    """Consumer and unified-memory parts: no ECC, no link."""
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid(), ecc=None, link_generation=None, temperature=None)])
    driver.behave(fail=["nvmlDeviceGetRemappedRows 3", "nvmlDeviceGetRetiredPages* 3", "nvmlDeviceGetCurrentClocks* 3"])
    (one,) = seen(driver)["health"]
    assert {one[name] for name in ("ecc", "corrected", "retired", "remapped", "throttle", "generation")} == {None}
    assert told(seen(driver)) == []


def test_mig_instances_are_the_devices_and_their_gpu_has_the_health(tmp_path: Path) -> None:
    parts = (FakeInstance(new_uuid("MIG")), FakeInstance(new_uuid("MIG"), gpu_instance=8))
    found = seen(FakeDriver(tmp_path, [FakeGpu(new_uuid(), mig=True, instances=parts, bus="0000:17:00.0")]))
    assert [(one["uuid"], one["mig"], one["memory"]) for one in found["devices"]] == [
        (part.uuid.removeprefix("MIG-"), True, 16 << 30) for part in parts
    ]
    assert {one["bus"] for one in found["devices"]} == {"0000:17:00.0"}
    assert len(found["health"]) == 1


def test_a_lost_gpu_is_told_in_words(tmp_path: Path) -> None:
    done = look(FakeDriver(tmp_path, [FakeGpu(new_uuid(), lost=15)]))
    assert done.returncode == 1
    assert "RuntimeError: NVML answers with an error: GPU is lost" in done.stderr


def test_a_driver_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid())])
    driver.behave(hang=["nvmlDeviceGetName"])
    start = time.monotonic()
    done = look(driver, seconds=0.5)
    assert time.monotonic() - start < 15
    assert "NVML gave no answer within 0.5 s: the driver hangs" in done.stderr
