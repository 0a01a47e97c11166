"""The judgements of doctor: from facts to findings, each bad one with its remedy."""

from dataclasses import replace
from typing import Any

import pytest
from given import INFO, ROOT, facts

from torchdock import doctor, variants
from torchdock.engine import EngineFacts
from torchdock.gpus import Gpu, Inventory

VARIANT = variants.get(ROOT, "cu130")
GB = 10**9
H200 = Gpu(0, "GPU-1", "NVIDIA H200", 141 << 30, 0, 0, "9.0")


def rows(found: "list[doctor.Finding]") -> "list[tuple[str, str]]":
    return [(finding.subject, finding.severity) for finding in found]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (facts(), [("engine", "good"), ("permission", "good"), ("buildx", "good")]),
        (facts(buildx=""), [("engine", "good"), ("permission", "good"), ("buildx", "error")]),
        (facts(info={}, error="Cannot connect"), [("engine", "error")]),
        (facts(info={}, error="permission denied"), [("engine", "error")]),
        (facts(info={}, cli=None, binary=None), [("engine", "error")]),
        (facts(info={}, endpoint="tcp://lab:2376", error="dial"), [("engine", "error")]),
        (facts(endpoint="ssh://lab"), [("engine", "error")]),
    ],
    ids=["ready", "no buildx", "stopped", "forbidden", "not installed", "unreachable", "remote"],
)
def test_the_engine_is_judged(found: EngineFacts, expected: "list[tuple[str, str]]") -> None:
    findings = doctor.judge_engine(found)
    assert rows(findings) == expected
    assert all(bool(finding.remedy) is (finding.severity != "good") for finding in findings)
    assert {finding.group for finding in findings} == {"engine"}


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (["name=seccomp"], "26.1.5, context default (unix:///var/run/docker.sock)"),
        (["name=rootless"], "26.1.5, rootless, context default (unix:///var/run/docker.sock)"),
        (None, "26.1.5, context default (unix:///var/run/docker.sock)"),
    ],
)
def test_an_engine_is_described(options: "list[str] | None", seen: str) -> None:
    assert doctor.judge_engine(facts(info={**INFO, "SecurityOptions": options}))[0].seen == seen


@pytest.mark.parametrize(
    ("free", "image_there", "severity"),
    [
        (VARIANT.build_bytes, False, "good"),
        (VARIANT.build_bytes - 1, False, "error"),
        (VARIANT.build_bytes - 1, True, "note"),
        (0, True, "note"),
        (None, False, "note"),
    ],
)
def test_the_disk_is_judged(free: "int | None", image_there: bool, severity: str) -> None:
    finding = doctor.judge_disk(free, "/var/lib/docker", VARIANT, image_there=image_there)
    assert (finding.group, finding.severity) == ("disk", severity)
    if free is not None:
        size = f"{VARIANT.build_bytes / GB:.1f} GB"
        assert finding.seen == f"{free / GB:.1f} GB free below /var/lib/docker; a cold build of cu130 takes {size}"
        assert ("docker builder prune" in finding.remedy) is (severity != "good")


@pytest.mark.parametrize(
    ("inventory", "cdi", "expected"),
    [
        pytest.param(Inventory((), "", "no driver"), False, [("GPUs", "note")], id="none"),
        pytest.param(
            Inventory((H200,), "580.95.05", ""), True, [("GPU 0", "good"), ("driver", "good")], id="all is well"
        ),
        pytest.param(
            Inventory((H200,), "999", ""), True, [("GPU 0", "good"), ("driver", "good")], id="a driver of the future"
        ),
        pytest.param(
            Inventory((H200,), "579.99", ""), True, [("GPU 0", "good"), ("driver", "error")], id="an old driver"
        ),
        pytest.param(
            Inventory((H200,), "", ""), True, [("GPU 0", "good"), ("driver", "good")], id="a driver of no number"
        ),
        pytest.param(
            Inventory((H200,), "580.95.05", ""),
            False,
            [("GPU 0", "good"), ("driver", "good"), ("CDI", "note")],
            id="no CDI",
        ),
    ],
)
def test_gpus_are_judged(inventory: Inventory, cdi: bool, expected: "list[tuple[str, str]]") -> None:
    findings = doctor.judge_gpus(inventory, VARIANT, cdi, architecture="x86_64")
    assert rows(findings) == expected
    assert all(bool(finding.remedy) is (finding.severity != "good") for finding in findings)


def test_an_old_driver_names_the_one_that_is_needed() -> None:
    finding = doctor.judge_gpus(Inventory((H200,), "535.1", ""), VARIANT, True, architecture="x86_64")[1]
    assert (finding.seen, finding.remedy.partition(":")[0]) == ("driver 535.1", "Install driver 580 or newer")


def test_a_gpu_is_seen_with_name_memory_and_uuid() -> None:
    finding: Any = doctor.judge_gpus(Inventory((H200,), "580.1", ""), VARIANT, True, architecture="x86_64")[0]
    assert finding.seen == "NVIDIA H200, 141 GiB, GPU-1"


@pytest.mark.parametrize(
    ("name", "driver", "severity"),
    [("cu126", "525.60.12", "error"), ("cu126", "525.60.13", "good"), ("cpu", "470.1", "good")],
)
def test_a_driver_is_judged_by_its_whole_version(name: str, driver: str, severity: str) -> None:
    variant = variants.get(ROOT, name)
    assert (
        doctor.judge_gpus(Inventory((H200,), driver, ""), variant, True, architecture="x86_64")[1].severity == severity
    )


@pytest.mark.parametrize(
    ("name", "capability", "architecture", "remedy"),
    [
        (
            "cu130",
            "6.1",
            "x86_64",
            "cu130 has no code for compute capability 6.1, so this GPU is handed to no container",
        ),
        ("cu130", "7.5", "aarch64", "cu130 has no code for compute capability 7.5"),
        ("cpu", "9.0", "x86_64", "cpu is for CPUs alone"),
        ("cu130", "7.5", "x86_64", ""),
    ],
)
def test_a_gpu_that_is_not_served_is_noted(name: str, capability: str, architecture: str, remedy: str) -> None:
    gpu = replace(H200, compute_capability=capability)
    variant = variants.get(ROOT, name)
    finding = doctor.judge_gpus(Inventory((gpu,), "580.1", ""), variant, True, architecture=architecture)[0]
    assert finding.severity == ("note" if remedy else "good")
    assert remedy in finding.remedy and bool(remedy) is bool(finding.remedy)
