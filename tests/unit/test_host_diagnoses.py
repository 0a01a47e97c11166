"""The diagnoses of doctor on GPU hosts: from evidence to findings, each bad one with its reason and remedy."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given import ROOT

from torchdock import cdi, diagnoses, doctor, variants
from torchdock.cdi import Device, Node
from torchdock.evidence import Containers, Host, Use
from torchdock.findings import Finding
from torchdock.gpus import Gpu, Inventory
from torchdock.lease import Lease
from torchdock.passthrough import Attempt, Way

CU130 = variants.get(ROOT, "cu130")
NOTHING = Device("")
H200 = Gpu(0, "GPU-1", "NVIDIA H200", 141 << 30, 0, compute_capability="9.0")
SECOND = replace(H200, index=1, uuid="GPU-2")


def sight(code: int = 0, *uuids: str, nodes: "dict[str, int] | None" = None, **more: Any) -> "dict[str, Any]":
    found = {"code": code, "call": "nvmlInit_v2", "error": "Unknown Error" if code else "", "visible": uuids}
    return {**found, "driver": "580.95.05", "cuda": 13000, "nodes": nodes or {}, "libraries": [], **more}


def specification(*names: str, path: str = "/etc/cdi/nvidia.yaml", common: Device = NOTHING) -> cdi.Specification:
    return cdi.Specification(Path(path), tuple(map(Device, names)), common)


GOOD = Host(
    Inventory((H200,), "580.95.05", ""),
    seen=sight(0, "GPU-1"),
    catalogue=cdi.Catalogue((specification("GPU-1"),)),
    cdi=True,
)
NONE = Host(Inventory((), "", "there is no NVIDIA driver"), seen=sight(12))


def bad(found: "list[Finding]") -> "dict[str, Finding]":
    """Findings that are not good, by subject; each has a remedy, and those that are good have none."""
    assert all(bool(finding.remedy) is (finding.severity != "good") for finding in found)
    return {finding.subject: finding for finding in found if finding.severity != "good"}


def test_of_a_healthy_host_nothing_is_said() -> None:
    assert bad(doctor.judge_host(GOOD, CU130)) == {}
    said = [finding.seen for finding in doctor.judge_host(GOOD, CU130)]
    assert said == ["NVIDIA H200, 141 GiB, GPU-1", "driver 580.95.05"]


def with_gpus(*gpus: Gpu, **more: Any) -> Inventory:
    return Inventory(gpus, "580.95.05", "", **more)


NODES = cdi.Specification(
    Path("/etc/cdi/nvidia.yaml"),
    (Device("GPU-1", (Node("/dev/nvidia0", 195, 0),)),),
    Device("", (), ("/usr/lib/libcuda.so.580.95.05",)),
)
THERE = {"/dev/nvidia0": (195, 0), "/usr/lib/libcuda.so.580.95.05": (0, 0)}


@pytest.mark.parametrize(
    ("host", "subject", "severity", "seen", "remedy"),
    [
        pytest.param(
            replace(NONE), "GPUs", "note", "none: there is no NVIDIA driver", "cu130 computes on the CPU", id="none"
        ),
        pytest.param(
            replace(NONE, inventory=Inventory((), "", "it does not answer", broken=True), seen=sight(999)),
            "GPUs",
            "error",
            "it does not answer",
            "dmesg",
            id="a broken driver",
        ),
        pytest.param(
            replace(GOOD, seen=sight(18), module="580.95.05", library="580.65.06", inventory=Inventory((), "", "x")),
            "driver",
            "error",
            "kernel module is 580.95.05 and its libraries are 580.65.06",
            "Reboot",
            id="2: mismatch",
        ),
        pytest.param(
            replace(GOOD, module="580.95.05", library="580.65.06"),
            "driver",
            "error",
            "updated while it ran",
            "Reboot",
            id="2: a mismatch that NVML does not tell",
        ),
        pytest.param(
            replace(GOOD, seen=None), "driver", "error", "gave no answer", "--gpu-reset", id="a driver that hangs"
        ),
        pytest.param(
            replace(GOOD, inventory=replace(GOOD.inventory, driver="579.99")),
            "driver",
            "error",
            "driver 579.99",
            "driver 580 or newer",
            id="6: too old",
        ),
        pytest.param(
            replace(GOOD, inventory=with_gpus(replace(H200, compute_capability="6.1"))),
            "GPU 0",
            "note",
            "GPU-1",
            "cu130 has no code for compute capability 6.1",
            id="10: no code",
        ),
        pytest.param(
            replace(GOOD, inventory=with_gpus(replace(H200, memory_total=0))),
            "memory of GPU 0",
            "note",
            "Not Supported",
            "mem_get_info",
            id="21: unified memory",
        ),
        pytest.param(
            replace(GOOD, inventory=with_gpus(H200, cut=(SECOND,))),
            "MIG",
            "error",
            "GPU 1 (GPU-2) is in MIG mode and has no instance",
            "mig -i 1 -cgi 0 -C",
            id="18: no instance",
        ),
        pytest.param(
            replace(GOOD, inventory=with_gpus(H200, faults=("GPU 1 does not answer (NVML: GPU is lost)",))),
            "GPU fault",
            "error",
            "GPU is lost",
            "xid",
            id="one of two is lost",
        ),
        pytest.param(
            replace(GOOD, catalogue=cdi.Catalogue((NODES,)), live={**THERE, "/dev/nvidia0": (236, 0)}),
            "CDI specification",
            "error",
            "/dev/nvidia0 is 236:0 now, and 195:0 in it",
            "cdi generate",
            id="4: numbers",
        ),
        pytest.param(
            replace(GOOD, catalogue=cdi.Catalogue((NODES,)), live={**THERE, "/usr/lib/libcuda.so.580.95.05": None}),
            "CDI specification",
            "error",
            "libcuda.so.580.95.05, which it names, is not there",
            "cdi generate",
            id="4: a library of before",
        ),
        pytest.param(
            replace(
                GOOD, catalogue=cdi.Catalogue((NODES, specification("GPU-1", path="/var/run/cdi/a.yaml"))), live=THERE
            ),
            "CDI override",
            "note",
            "something else of GPU-1 than nvidia.yaml",
            "/var/run/cdi goes before",
            id="4: overridden",
        ),
        pytest.param(
            replace(
                GOOD, catalogue=cdi.Catalogue((specification("GPU-1"), specification("GPU-1", path="/etc/cdi/b.yaml")))
            ),
            "CDI",
            "note",
            "no CDI specification that can be used names GPU-1",
            "Keep one file",
            id="4: in conflict",
        ),
        pytest.param(
            replace(GOOD, catalogue=cdi.Catalogue((replace(specification("GPU-1"), error="Permission denied"),))),
            "CDI file",
            "error",
            "nvidia.yaml cannot be read (Permission denied)",
            "chmod 644",
            id="24: unreadable",
        ),
        pytest.param(
            replace(GOOD, catalogue=cdi.Catalogue()),
            "CDI",
            "note",
            "no CDI specification names",
            "cdi generate",
            id="3: none",
        ),
        pytest.param(replace(GOOD, cdi=False), "CDI", "note", "switched off", '"cdi": true', id="3: switched off"),
        pytest.param(
            replace(GOOD, cdi=False, rootless=True, cgroups=True),
            "rootless GPUs",
            "error",
            "Insufficient Permissions",
            "no-cgroups",
            id="24: rootless",
        ),
        pytest.param(
            replace(GOOD, uses=(Use("GPU-1", 7, "anna"),)),
            "use of GPU 0",
            "note",
            "PID 7 of anna, in no container, computes on it without a lease",
            "torchdock",
            id="36",
        ),
        pytest.param(
            replace(GOOD, uses=(Use("GPU-1", 7, "anna", "c0ffee", "lab"),)),
            "use of GPU 0",
            "note",
            "in container lab",
            "within a container this process is not seen",
            id="22",
        ),
        pytest.param(
            replace(GOOD, uses=(Use("GPU-1", 7, gone=True),)),
            "orphan on GPU 0",
            "error",
            "PID 7, which no process of this host has",
            "fuser -v /dev/nvidia0",
            id="37",
        ),
        pytest.param(
            replace(GOOD, uses=(Use("GPU-1", 7, "", "c0ffee", ""),)),
            "use of GPU 0",
            "note",
            "PID 7 of another user, in container c0ffee",
            "Ask its owner",
            id="36: somebody hidden",
        ),
        pytest.param(
            replace(
                GOOD,
                uses=(Use("GPU-1", 7, "anna"), Use("GPU-1", 8, "bob", "beef", "bobs")),
                leases={"GPU-1": Lease(held=True, container="bobs")},
            ),
            "use of GPU 0",
            "note",
            "without a lease, beside bobs, which has the lease",
            "Ask its owner",
            id="36: beside a lease",
        ),
        pytest.param(
            replace(GOOD, editor=(Path("w/.devcontainer/devcontainer.json"),)),
            "editor",
            "note",
            "looks for a runtime named nvidia",
            "hostRequirements.gpu",
            id="26: CDI alone",
        ),
        pytest.param(
            replace(NONE, runtimes=("nvidia",)), "editor", "note", "has no GPU", "--remove", id="26: no driver"
        ),
        pytest.param(
            replace(GOOD, inventory=replace(GOOD.inventory, driver="580.0-fake")),
            "fake driver",
            "note",
            "nothing computes on it",
            "make test-gpu",
            id="20: the fake one",
        ),
    ],
)
def test_a_host_is_diagnosed(host: Host, subject: str, severity: str, seen: str, remedy: str) -> None:
    found = bad(doctor.judge_host(host, CU130))[subject]
    assert (found.severity, seen in found.seen, remedy in found.remedy) == (severity, True, True), found


def test_a_driver_of_an_older_minor_cuda_is_noted() -> None:
    older = replace(GOOD, seen=sight(0, "GPU-1", cuda=12020))
    found = bad(diagnoses.driver(older, variants.get(ROOT, "cu128")))["CUDA of the driver"]
    assert "the driver knows CUDA 12.2, and cu128 is built with 12.8" in found.seen
    assert "error 222" in found.remedy
    assert bad(diagnoses.driver(older, variants.get(ROOT, "cpu"))) == {}


@pytest.mark.parametrize(
    ("name", "driver", "severity"),
    [("cu126", "525.60.12", "error"), ("cu126", "525.60.13", "good"), ("cpu", "470.1", "good")],
)
def test_a_driver_is_judged_by_its_whole_version(name: str, driver: str, severity: str) -> None:
    host = replace(GOOD, inventory=replace(GOOD.inventory, driver=driver))
    assert diagnoses.driver(host, variants.get(ROOT, name))[0].severity == severity


def test_one_who_holds_a_lease_is_no_finding() -> None:
    held = replace(
        GOOD, uses=(Use("GPU-1", 7, "anna", "c0ffee", "lab"),), leases={"GPU-1": Lease(held=True, container="lab")}
    )
    assert bad(diagnoses.use(held)) == {}


# --- containers ---

TORCH = {"version": "2.14.1+cu130", "archs": ["sm_90"], "devices": [{"uuid": "1"}], "kernel": "", "nms": ""}
INSIDE = {
    "shm": 8 << 30,
    "open_files": 20_000,
    "uid": 1000,
    "user": "anna",
    "home": "",
    "workspace": "",
    "environment": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    "cuda_code": 0,
    "torch": TORCH,
}
BY_CDI = Attempt(Way.CDI, ("--device", "nvidia.com/gpu=GPU-1"), "", sight(0, "GPU-1"))
FINE = Containers("torchdock/cu130:1", ((H200, (BY_CDI,)),), sight(12), "", INSIDE, "", 1000, 1000, H200)


def inside(**different: Any) -> Containers:
    return replace(FINE, inside={**INSIDE, **different})


def torch_is(**different: Any) -> Containers:
    return inside(torch={**TORCH, **different})


def tried(*attempts: Attempt) -> Containers:
    return replace(FINE, attempts=((H200, attempts),))


def test_of_healthy_containers_nothing_is_said() -> None:
    found = doctor.judge_containers(FINE, GOOD, CU130)
    assert bad(found) == {}
    assert {finding.subject for finding in found} == {"passthrough", "launch", "torch", "CUDA"}


def test_of_containers_on_a_host_without_a_gpu_nothing_is_said() -> None:
    found = replace(FINE, attempts=(), given=None, inside={**INSIDE, "torch": {**TORCH, "devices": []}})
    assert bad(doctor.judge_containers(found, NONE, CU130)) == {}


LOST = sight(999, nodes={"/dev/nvidiactl": 1})
BY_HOOK = Attempt(Way.GPUS, ("--gpus", "device=GPU-1"), "", sight(0, "GPU-1"))
NO_CDI = Attempt(Way.CDI, (), "no CDI specification names these GPUs")


@pytest.mark.parametrize(
    ("found", "subject", "severity", "seen", "remedy"),
    [
        pytest.param(
            tried(replace(BY_CDI, why="NVML fails", seen=LOST)),
            "GPU access",
            "error",
            "gives 999 (Unknown Error); /dev/nvidiactl cannot be opened",
            "Launch anew",
            id="1",
        ),
        pytest.param(
            tried(NO_CDI, replace(BY_HOOK, why="the engine refuses: no hook", seen=None)),
            "passthrough",
            "error",
            "by --gpus, the engine refuses: no hook",
            "NVIDIA Container Toolkit",
            id="3",
        ),
        pytest.param(
            tried(NO_CDI, BY_HOOK), "passthrough", "note", "GPUs go by --gpus", "CDI keeps them", id="1: risk"
        ),
        pytest.param(
            tried(replace(BY_CDI, why="sees GPU-2", seen=sight(0, "GPU-1", "GPU-2"))),
            "isolation",
            "error",
            "given GPU-1 sees GPU-2 too",
            "--privileged",
            id="19: one too many",
        ),
        pytest.param(
            replace(FINE, bare=sight(0, "GPU-1")),
            "isolation",
            "error",
            "given no GPU sees GPU-1",
            "default-runtime",
            id="19: all of them",
        ),
        pytest.param(
            replace(FINE, bare=sight(12, libraries=["/usr/lib/libcuda.so.1"])),
            "driver in the image",
            "error",
            "/usr/lib/libcuda.so.1",
            "invoke build --no-cache",
            id="2: in the image",
        ),
        pytest.param(
            replace(FINE, bare=None, bare_error="no space"),
            "launch",
            "error",
            "no space",
            "invoke build",
            id="no start",
        ),
        pytest.param(inside(shm=64 << 20), "shared memory", "error", "64 MiB", "shm_size", id="13"),
        pytest.param(inside(open_files=1024), "open files", "error", "may open 1024", "LimitNOFILE", id="14"),
        pytest.param(
            inside(environment={"CUDA_VISIBLE_DEVICES": "1"}),
            "GPU order",
            "note",
            "CUDA_VISIBLE_DEVICES=1",
            "UUID",
            id="17",
        ),
        pytest.param(
            inside(environment={"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}),
            "GPU order",
            "note",
            "fastest first",
            "UUID",
            id="17: order",
        ),
        pytest.param(inside(user=""), "user", "error", "UID 1000 has no entry", "entrypoint", id="27: no name"),
        pytest.param(inside(home="/home/a: No"), "home", "error", "/home/a: No", "invoke build", id="27: no home"),
        pytest.param(inside(workspace="/w: No"), "files", "error", "/w: No", "chown", id="27: no writing"),
        pytest.param(
            replace(FINE, owner=0), "files", "error", "belongs to UID 0", "docker info", id="27: root's files"
        ),
        pytest.param(
            torch_is(nms="operator torchvision::nms does not exist"),
            "torchvision",
            "error",
            "nms",
            "invoke lock",
            id="11",
        ),
        pytest.param(torch_is(kernel="no kernel image"), "kernels", "error", "no kernel image", "--variant", id="10"),
        pytest.param(
            torch_is(devices=[]), "CUDA", "error", "torch sees no GPU (cuInit gives 0)", "cdi generate", id="20"
        ),
        pytest.param(
            inside(cuda_code=-1, torch={**TORCH, "devices": []}),
            "CUDA",
            "error",
            "no CUDA library",
            "libcuda",
            id="4: no libcuda",
        ),
        pytest.param(inside(cuda_code=802), "CUDA", "error", "802", "nvidia-fabricmanager", id="5"),
        pytest.param(
            inside(torch={"error": "bus error"}), "torch", "error", "bus error", "invoke build", id="no torch"
        ),
    ],
)
def test_containers_are_diagnosed(found: Containers, subject: str, severity: str, seen: str, remedy: str) -> None:
    one = bad(doctor.judge_containers(found, GOOD, CU130))[subject]
    assert (one.severity, seen in one.seen, remedy in one.remedy) == (severity, True, True), one


def test_by_the_hook_under_systemd_the_danger_is_told() -> None:
    found: Mapping[str, Finding] = bad(diagnoses.passage(tried(NO_CDI, BY_HOOK), replace(GOOD, systemd=True)))
    assert "daemon-reload takes such a GPU away" in found["passthrough"].seen
