"""Faults of an environment, planted from outside: each is caught by the check that names it; and what is no fault."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import indexes
from tests.engine.conftest import ROOT
from tests.engine.planting import SITE, checked, invalid
from tests.fakes import FakeDriver, FakeGpu, new_uuid

# What the extension of a torchvision that was built for another torch looks like to the loader.
OF_ANOTHER_BUILD = """
extern void _ZN3c1016of_another_buildEv(void);
void *needed = (void *)_ZN3c1016of_another_buildEv;
"""
# An environment that has torch and lacks torchvision, whatever is installed.
WITHOUT_TORCHVISION = """
import sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Lacking())
"""
# torch.cuda of a machine whose GPUs are those of NVML, computing on the CPU; and a GPU that may be demanded.
STAND_IN = """
import os, types
if os.environ.get("TORCHDOCK_CHECK_EVENTS") or os.environ.get("STAND_IN"):
    os.environ["STAND_IN"] = "1"
    import torch
    from torchdock.inside import devices
    known = {device.uuid: device for device in devices.nvml().devices}
    uuids = sorted(known, key=lambda uuid: known[uuid].bus)
    def shown():
        return [known[uuid] for uuid in devices.visible(os.environ.get("CUDA_VISIBLE_DEVICES"), uuids)]
    def properties(index):
        device = shown()[index]
        domain, bus, rest = device.bus.split(":")
        where = dict(pci_domain_id=int(domain, 16), pci_bus_id=int(bus, 16), pci_device_id=int(rest[:2], 16))
        return types.SimpleNamespace(uuid=device.uuid, name=device.name, total_memory=device.memory - 2**28, **where)
    torch.cuda.device_count = lambda: len(shown())
    torch.cuda.is_available = lambda: bool(shown())
    torch.cuda.get_device_name = lambda index: shown()[index].name
    torch.cuda.get_device_properties = properties
    torch.cuda.synchronize = lambda index: None
    torch.Tensor.pin_memory = lambda self: self
    randn, like = torch.randn, torch.empty_like
    torch.randn = lambda *sizes, device=None: randn(*(min(size, 2048) for size in sizes))
    torch.empty_like = lambda one, device=None: like(one)
    devices.gpu_problem = lambda: None
"""


def planted(folder: Path, program: str) -> tuple[str, ...]:
    """Options by which every Python of the container runs a program first."""
    (folder / "sitecustomize.py").write_text(program)
    folder.chmod(0o755)
    return "-v", f"{folder}:/planted:ro", "-e", "PYTHONPATH=/planted"


def test_versions_that_are_not_the_locks_and_a_workspace_that_is_closed(image: dict[str, Any], tmp_path: Path) -> None:
    """A wheel that pip put in the place of a locked one, and a folder of somebody else's."""
    name, content = indexes.stand_in_wheel("six", "1.0.0", modules={"six.py": ""})
    (tmp_path / name).write_bytes(content)
    (tmp_path / "workspace").mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    options = ["-v", f"{tmp_path}:/planted:ro", "-v", f"{tmp_path / 'workspace'}:/workspace"]
    install = f"uv pip install -q --offline --no-deps --no-index /planted/{name} &&"
    found = checked(image, "installed_versions or workspace or utf8", *options, before=install)
    assert (found.code, len(found.failed)) == (1, 2)
    found.tells("test_installed_versions_equal_the_lock", "six is 1.0.0, locked 1.")
    found.tells("test_workspace_is_writable", "/workspace: Permission denied. Meaning: Checkpoints and logs go there")


@pytest.mark.slow
def test_a_workspace_that_is_mounted_read_only(image: dict[str, Any], tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    found = checked(image, "workspace", "-v", f"{tmp_path}:/workspace:ro")
    found.tells("test_workspace_is_writable", "/workspace: Read-only file system.")
    assert checked(image, "workspace", "-v", f"{tmp_path}:/workspace").code == 0


@pytest.mark.slow
def test_a_torchvision_of_another_build(image: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "other.c").write_text(OF_ANOTHER_BUILD)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "other.so", tmp_path / "other.c"], check=True)
    found = checked(image, "torchvision_is_built", "-v", f"{tmp_path / 'other.so'}:{SITE}/torchvision/_C_stable.so:ro")
    found.tells(
        "test_torchvision_is_built_for_this_torch", "does not load into torch 2.14.1+cu130: operator torchvision::nms"
    )


@pytest.mark.slow
def test_a_shared_library_off_the_path(image: dict[str, Any]) -> None:
    """A folder of libraries is hidden: torch does not load, and the checks that do without it name the library."""
    found = checked(image, "imported or file_is_missing", "--tmpfs", f"{SITE}/nvidia/cudnn/lib")
    found.tells("test_torch_can_be_imported", "libcudnn.so.9: cannot open shared object file")
    found.tells("test_no_file_is_missing_or_cut_short", "nvidia/cudnn/lib/libcudnn.so.9 of nvidia-cudnn-cu13: No such")


@pytest.mark.slow
def test_a_shared_library_that_is_first_used_in_the_middle_of_a_run(image: dict[str, Any], tmp_path: Path) -> None:
    """torch itself loads without it: on a CPU nothing computes with it."""
    (tmp_path / "empty").touch()
    name = "libcudnn_engines_tensor_ir.so.9"
    options = ["-v", f"{tmp_path / 'empty'}:{SITE}/nvidia/cudnn/lib/{name}:ro"]
    found = checked(image, "imported or file_is_missing or library_loads", *options)
    assert len(found.failed) == 2
    found.tells("test_no_file_is_missing_or_cut_short", f"{name} of nvidia-cudnn-cu13 has 0 bytes, recorded ")
    found.tells("test_each_library_loads", f"{name}: file too short")


@pytest.mark.slow
def test_a_check_that_was_lost(image: dict[str, Any]) -> None:
    """A file of checks is gone: without -k, as only then the counts are compared."""
    lose = "cp -r /opt/torchdock /tmp/t && rm /tmp/t/tests/container/test_vision.py && export PYTHONPATH=/tmp/t/src"
    command = f"{lose} && exec python -m torchdock.inside.check --quick --json"
    docker = ["docker", "run", "--rm", "--user", "1234:1234", "--shm-size", "1g", image["image"]]
    done = subprocess.run([*docker, "sh", "-c", command], capture_output=True, text=True)
    document = json.loads(done.stdout)
    (problem,) = document["problems"]
    assert "vision 0 of " in problem
    assert (done.returncode, document["failed"]) == (1, 0)


def test_another_environment_is_compared_and_goes_on(image: dict[str, Any], tmp_path: Path) -> None:
    """A Python of its own beside the image's packages, another numpy and no torchvision: findings, and no failure."""
    other = tmp_path / "numpy-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    path = f"PYTHONPATH=/planted:/opt/torchdock/src:{SITE}"
    before = f"python3 -m venv --without-pip /tmp/mine && PATH=/tmp/mine/bin:$PATH {path} TORCHDOCK_VARIANT="
    (tmp_path / "report").mkdir()
    (tmp_path / "report").chmod(0o777)
    options = [*planted(tmp_path, WITHOUT_TORCHVISION), "-v", f"{tmp_path / 'report'}:/report"]
    found = checked(image, "versions or torchvision or jpeg", *options, before=before, more="--report /report")
    assert found.failed == {}
    assert (found.code, found.document["good"], found.document["variant"]) == (0, True, None)
    told = {one["subject"]: one["seen"] for one in found.document["findings"]}
    assert "Beside the lock of cu130: numpy 1.0 (locked 2." in told["versions"]
    assert "torchvision is not installed here, so checks were left out of: " in told["torchvision"]
    assert told["torchvision"].endswith(" versions, vision.")
    assert {one["id"].partition("::")[2] for one in found.document["checks"]} == {
        "test_installed_versions_equal_the_lock", "test_built_for_this_machine",
    }  # fmt: skip

    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert invalid(image, report) == []
    assert (report["host"], report["environment"]["image"], report["environment"]["variant"]) == (None, False, None)
    assert "numpy is 1.0, locked 2." in "; ".join(report["environment"]["lock"]["differences"])
    bad = {**report, "seconds": "many", "mine": 1, "findings": [{"severity": "dreadful"}]}
    told = " ".join(invalid(image, bad))
    assert all(words in told for words in ("$.seconds", "'mine'", "$.findings[0]"))


def driver_of(folder: Path, *gpus: FakeGpu) -> tuple[FakeDriver, tuple[str, ...]]:
    """A driver that is not there, and the options that put it and a stand-in for CUDA into a container."""
    (folder / "driver").mkdir()
    (folder / "planted").mkdir()
    driver = FakeDriver(folder / "driver", gpus)
    folder.chmod(0o755)
    uuids = ",".join(gpu.uuid for gpu in driver.gpus)
    given = ["-e", "FAKE_NVML=/fake", "-e", "LD_LIBRARY_PATH=/fake", "-e", "TORCHDOCK_LAUNCHED=1"]
    mounted = ["-v", f"{driver.folder}:/fake:ro", "-e", f"TORCHDOCK_GPUS={uuids}"]
    return driver, (*planted(folder / "planted", STAND_IN), *given, *mounted)


CHECKS = "uuids or addresses or assigned or any_choice or out_of_service or slows_it_down"


@pytest.mark.slow
def test_the_checks_of_nvml_and_health_read_what_is_there(image: dict[str, Any], tmp_path: Path) -> None:
    """No GPU computes here: that they run to their end, see nothing wrong, and tell what is worn."""
    hot = FakeGpu(new_uuid(), throttle=0x40, link_generation=3)
    _, options = driver_of(tmp_path, FakeGpu(new_uuid()), hot)
    found = checked(image, CHECKS, *options, more="--gpu --ops none")
    assert found.failed == {}
    assert (found.code, found.document["passed"]) == (0, 6)
    told = {one["subject"]: one["seen"] for one in found.document["findings"]}
    assert set(told) == {"clocks", "PCIe"}
    assert hot.uuid in told["clocks"] and "under load the hardware slows it down for heat" in told["clocks"]
    assert {one["name"] for one in found.document["numbers"]} == {"temperature under load"}


@pytest.mark.slow
def test_a_gpu_that_was_not_assigned_and_one_that_is_broken(image: dict[str, Any], tmp_path: Path) -> None:
    mine, other = new_uuid(), new_uuid()
    _, options = driver_of(tmp_path, FakeGpu(mine), FakeGpu(other, remapped_failed=1))
    found = checked(image, CHECKS, *options, "-e", f"TORCHDOCK_GPUS={mine}", more="--gpu --ops none")
    assert set(found.failed) == {"test_exactly_the_assigned_gpus", "test_no_gpu_belongs_out_of_service"}
    found.tells("test_exactly_the_assigned_gpus", f"given: {mine.removeprefix('GPU-')}; seen: ")
    found.tells("test_no_gpu_belongs_out_of_service", f"{other}: its memory has no spare rows left")


@pytest.mark.slow
def test_without_a_stand_in_the_fake_driver_is_refused_and_the_report_says_fake(
    image: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "report").mkdir(mode=0o777)
    (tmp_path / "report").chmod(0o777)
    _, options = driver_of(tmp_path, FakeGpu(new_uuid()))
    unset = ["-e", "PYTHONPATH=", "-v", f"{tmp_path / 'report'}:/report"]
    found = checked(image, CHECKS, *options, *unset, more="--gpu --report /report")
    assert found.code == 1 and "fake driver of the tests" in found.document["problems"][0]
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["fake"] is True and report["environment"]["nvml"]["driver"] == "580.0-fake"


def test_what_is_committed_is_what_there_is(image: dict[str, Any]) -> None:
    """The file of counts says exactly what pytest finds in the image: a new check has to be counted too."""
    command = ["docker", "run", "--rm", image["image"], "python", "-m", "torchdock.inside.check", "--count"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    committed = (ROOT / "tests/container/committed.txt").read_text()
    assert [line for line in committed.splitlines() if not line.startswith("#")] == found.splitlines()
