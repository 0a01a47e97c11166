"""GPUs: what NVML says, which ones a launch gets, and how they are handed over."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from torchdock import gpus
from torchdock.errors import BusyError, InputError, TorchdockError
from torchdock.gpus import Gpu, Inventory

GIB = 1 << 30
# index, memory in use, processes: 0 is busy, 1 free and somewhat used, 2 free and empty, 3 busy and empty
BOX = tuple(
    Gpu(index, f"GPU-{index}", "H200", 141 * GIB, used, processes)
    for index, used, processes in ((0, 90 * GIB, 2), (1, 2 * GIB, 0), (2, 0, 0), (3, 0, 1))
)
SERVER = Inventory(BOX, "580.95.05", "")
BARE = Inventory((), "", "there is no NVIDIA driver")
FULL = Inventory((BOX[0], BOX[3]), "580.95.05", "")


@pytest.mark.parametrize(
    ("inventory", "wanted", "indices"),
    [
        pytest.param(BARE, None, [], id="none there, none asked"),
        pytest.param(BARE, "0", [], id="none asked"),
        pytest.param(SERVER, None, [2], id="the emptiest free one by default"),
        pytest.param(FULL, None, [3], id="the emptiest where none is free"),
        pytest.param(SERVER, "0", [], id="zero"),
        pytest.param(SERVER, "1", [2], id="one"),
        pytest.param(SERVER, "2", [2, 1], id="two"),
        pytest.param(SERVER, "all", [0, 1, 2, 3], id="all, whoever uses them"),
        pytest.param(SERVER, "GPU-0", [0], id="a busy one by name"),
        pytest.param(SERVER, "GPU-3,GPU-1,GPU-3", [3, 1], id="by name, in order, each once"),
    ],
)
def test_a_launch_gets(inventory: Inventory, wanted: "str | None", indices: "list[int]") -> None:
    assert [gpu.index for gpu in gpus.choose(inventory, wanted)] == indices


@pytest.mark.parametrize(
    ("inventory", "wanted", "kind", "words"),
    [
        pytest.param(SERVER, "3", BusyError, "2 of 4 GPUs are free", id="busy"),
        pytest.param(FULL, "1", BusyError, "0 of 2 GPUs are free", id="all busy"),
        pytest.param(SERVER, "5", InputError, "this host has 4", id="too many"),
        pytest.param(BARE, "1", InputError, "there is no NVIDIA driver", id="a number without a driver"),
        pytest.param(BARE, "all", InputError, "there is no NVIDIA driver", id="all without a driver"),
        pytest.param(BARE, "GPU-0", InputError, "GPUs: none; there is no NVIDIA driver", id="a name without a driver"),
        pytest.param(SERVER, "GPU-9", InputError, "'GPU-9' is none of them here. GPUs: GPU-0, GPU-1", id="unknown"),
        pytest.param(SERVER, "GPU-1,", InputError, "'' is none of them", id="an empty name"),
        pytest.param(SERVER, "", InputError, "'' is none of them", id="nothing"),
        pytest.param(SERVER, "-1", InputError, "'-1' is none of them", id="negative"),
        pytest.param(SERVER, "²", InputError, "'²' is none of them", id="a digit that is no number"),
    ],
)
def test_a_launch_is_refused(inventory: Inventory, wanted: str, kind: "type[TorchdockError]", words: str) -> None:
    with pytest.raises(kind) as refused:
        gpus.choose(inventory, wanted)
    assert words in str(refused.value)
    assert refused.value.exit_code == {BusyError: 75, InputError: 2}[kind]


@pytest.mark.parametrize(
    ("wanted", "unserved", "indices"),
    [
        pytest.param(None, {"GPU-2"}, [1], id="the emptiest free one that is served"),
        pytest.param(None, {"GPU-1", "GPU-2"}, [3], id="a busy one before one that is not served"),
        pytest.param(None, {"GPU-0", "GPU-1", "GPU-2", "GPU-3"}, [], id="none is served: the CPU"),
        pytest.param("0", {"GPU-0", "GPU-1", "GPU-2", "GPU-3"}, [], id="zero"),
        pytest.param("1", {"GPU-2"}, [1], id="one"),
        pytest.param("GPU-1,GPU-2", {"GPU-0"}, [1, 2], id="by name"),
    ],
)
def test_a_gpu_that_is_not_served_is_left(wanted: "str | None", unserved: "set[str]", indices: "list[int]") -> None:
    assert [gpu.index for gpu in gpus.choose(SERVER, wanted, unserved=unserved)] == indices


@pytest.mark.parametrize(
    ("wanted", "unserved", "kind"),
    [
        pytest.param("all", {"GPU-1"}, InputError, id="all"),
        pytest.param("GPU-1", {"GPU-1"}, InputError, id="by name"),
        pytest.param("GPU-0,GPU-1", {"GPU-1"}, InputError, id="one of two"),
        pytest.param("4", {"GPU-1"}, InputError, id="more than are served"),
        pytest.param("1", {"GPU-0", "GPU-1", "GPU-2", "GPU-3"}, InputError, id="none is served"),
        pytest.param("2", {"GPU-1"}, BusyError, id="served, and busy"),
    ],
)
def test_a_gpu_that_is_not_served_is_refused(wanted: str, unserved: "set[str]", kind: "type[TorchdockError]") -> None:
    why = "cu130 does not compute on it. What would: cu126."
    with pytest.raises(kind) as refused:
        gpus.choose(SERVER, wanted, unserved=unserved, why=why)
    if kind is InputError:
        assert str(refused.value) == f"--gpus {wanted}: {why} `--gpus 0` computes on the CPU."
    else:
        assert "1 of 3 GPUs are free" in str(refused.value)


@pytest.mark.parametrize(
    ("chosen", "specification", "argv"),
    [
        ([], "nvidia.com/gpu GPU-0", []),
        ([0], "nvidia.com/gpu GPU-0 GPU-1", ["--device", "nvidia.com/gpu=GPU-0"]),
        ([1, 0], "GPU-0 GPU-1", ["--device", "nvidia.com/gpu=GPU-1", "--device", "nvidia.com/gpu=GPU-0"]),
        ([0, 1], "nvidia.com/gpu GPU-0", ["--gpus", '"device=GPU-0,GPU-1"']),
        ([0], "", ["--gpus", '"device=GPU-0"']),
    ],
)
def test_gpus_are_handed_over_by_cdi_where_it_names_each(
    chosen: "list[int]", specification: str, argv: "list[str]"
) -> None:
    assert gpus.arguments([BOX[index] for index in chosen], specification) == argv


def test_every_cdi_specification_that_can_be_read_is_read(tmp_path: Path) -> None:
    etc, run = tmp_path / "etc", tmp_path / "run"
    etc.mkdir()
    run.mkdir()
    (etc / "nvidia.yaml").write_text("kind: nvidia.com/gpu\ndevices: [GPU-1]\n")
    (run / "nvidia.json").write_text('{"kind": "nvidia.com/gpu", "name": "GPU-2"}')
    (run / "short.yml").write_text("kind: nvidia.com/gpu # GPU-3")
    (run / "other.yaml").write_text("kind: vendor.com/nic # GPU-4")
    (run / "nvidia.yaml.bak").write_text("kind: nvidia.com/gpu # GPU-5")
    (run / "binary.json").write_bytes(b"nvidia.com/gpu \xff\xfe GPU-6")
    (run / "folder.yaml").mkdir()
    (run / "gone.yaml").symlink_to("nowhere")
    text = gpus.cdi_devices([str(etc), str(run), str(tmp_path / "none")])
    assert [digit for digit in "123456" if f"GPU-{digit}" in text] == ["1", "2", "3"]


def test_a_host_without_cdi_has_no_specification(tmp_path: Path) -> None:
    assert gpus.cdi_devices([str(tmp_path / "none")]) == ""


# --- NVML ---


class FakeNvml(ModuleType):
    """nvidia-ml-py as far as it is used, with the errors that the test says."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    class NVMLError_FunctionNotFound(NVMLError):
        pass

    def __init__(self, **errors: Exception) -> None:
        super().__init__("pynvml")
        self.errors = errors
        self.open = 0

    def _may_fail(self, what: str) -> None:
        if what in self.errors:
            raise self.errors[what]

    def nvmlInit(self) -> None:
        self._may_fail("init")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"

    def nvmlDeviceGetCount(self) -> int:
        self._may_fail("count")
        return 0 if "empty" in self.errors else 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._may_fail("memory")
        return SimpleNamespace(total=141 * GIB, used=handle * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> "list[int]":
        self._may_fail("processes")
        return [1] * handle

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> "list[int]":
        self._may_fail("capability")
        return [9, handle]

    def nvmlDeviceGetMigMode(self, handle: int) -> "list[int]":
        self._may_fail("mig")
        return [handle, 1 - handle]  # now, and after the next reset

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"


def gathered(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> Inventory:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = gpus.gather()
    assert nvml.open == 0  # whatever happened, NVML was let go
    return found


def test_two_gpus_are_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gathered(FakeNvml(), monkeypatch) == Inventory(
        (
            Gpu(0, "GPU-0", "NVIDIA H200", 141 * GIB, 0, 0, "9.0", False),
            Gpu(1, "GPU-1", "NVIDIA H200", 141 * GIB, GIB, 1, "9.1", True),
        ),
        "580.95.05",
        "",
    )


def test_parts_that_share_the_hosts_memory_have_none_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gathered(FakeNvml(memory=FakeNvml.NVMLError_NotSupported("Not Supported")), monkeypatch)
    assert [(gpu.memory_total, gpu.memory_used) for gpu in found.gpus] == [(0, 0), (0, 0)]


def test_processes_that_cannot_be_listed_do_not_hide_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gathered(FakeNvml(processes=FakeNvml.NVMLError("no permission")), monkeypatch)
    assert [gpu.processes for gpu in found.gpus] == [0, 0]


@pytest.mark.parametrize("kind", [FakeNvml.NVMLError_NotSupported, FakeNvml.NVMLError_FunctionNotFound])
def test_what_a_driver_does_not_tell_hides_no_gpu(kind: "type[Exception]", monkeypatch: pytest.MonkeyPatch) -> None:
    found = gathered(FakeNvml(capability=kind(), mig=kind()), monkeypatch)
    assert [(gpu.compute_capability, gpu.mig) for gpu in found.gpus] == [("", False), ("", False)]


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ({"init": FakeNvml.NVMLError_LibraryNotFound()}, "there is no NVIDIA driver (libnvidia-ml.so.1 was not found)"),
        ({"init": FakeNvml.NVMLError("Driver Not Loaded")}, "does not answer (NVML: Driver Not Loaded)"),
        ({"count": FakeNvml.NVMLError("GPU is lost")}, "failed while its GPUs were listed (NVML: GPU is lost)"),
        ({"memory": FakeNvml.NVMLError("GPU is lost")}, "failed while its GPUs were listed (NVML: GPU is lost)"),
        ({"capability": FakeNvml.NVMLError("GPU is lost")}, "failed while its GPUs were listed (NVML: GPU is lost)"),
        ({"mig": FakeNvml.NVMLError("GPU is lost")}, "failed while its GPUs were listed (NVML: GPU is lost)"),
        ({"empty": Exception()}, "the NVIDIA driver sees no GPU"),
    ],
)
def test_a_host_without_gpus_says_why(
    errors: "dict[str, Exception]", reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gathered(FakeNvml(**errors), monkeypatch)
    assert found.gpus == ()
    assert reason in found.reason


def test_the_real_nvml_answers_or_says_why() -> None:
    found = gpus.gather()
    assert bool(found.gpus) is not bool(found.reason)
