"""GPUs: what NVML says, and how they are handed over."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from torchdock import apart, gpus
from torchdock.gpus import Gpu, Inventory, Load, Process

GIB = 1 << 30
BOX = tuple(Gpu(index, f"GPU-{index}", "H200", 141 * GIB, 0) for index in range(2))


# --- NVML ---


class FakeNvml(ModuleType):
    """nvidia-ml-py as far as it is used, with the errors that the test says: of a call, or of a call about one GPU."""

    NVML_TEMPERATURE_GPU, NVML_GPU_UTILIZATION_SAMPLES, NVML_FEATURE_ENABLED = 0, 1, 1
    NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 2, 0

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    class NVMLError_FunctionNotFound(NVMLError):
        pass

    class NVMLError_NotFound(NVMLError):
        pass

    def __init__(self, **errors: Exception) -> None:
        super().__init__("pynvml")
        self.errors = errors
        self.open = 0
        self.parts: dict[int, dict[int, str]] = {}  # of GPU 1: slots and UUIDs

    def _may_fail(self, what: str, handle: "int | str" = "") -> None:
        for key in (what, f"{what}_{handle}"):
            if key in self.errors:
                raise self.errors[key]

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
        self._may_fail("handle", index)
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: "int | str") -> Any:
        self._may_fail("memory", handle)
        return (
            SimpleNamespace(total=141 * GIB, used=handle * GIB)
            if handle in (0, 1)
            else SimpleNamespace(total=9, used=4)
        )

    def nvmlDeviceGetComputeRunningProcesses(self, handle: "int | str") -> "list[Any]":
        self._may_fail("processes", handle)
        return [SimpleNamespace(pid=70 + handle, usedGpuMemory=GIB)] * handle if handle in (0, 1) else []

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> "list[int]":
        self._may_fail("capability")
        return [9, handle]

    def nvmlDeviceGetMigMode(self, handle: int) -> "list[int]":
        self._may_fail("mig")
        return [1 if handle in self.parts else 0, 1]  # now, and after the next reset

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:
        self._may_fail("slots")
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, slot: int) -> str:
        if slot not in self.parts[handle]:
            raise self.NVMLError_NotFound
        return self.parts[handle][slot]

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        self._may_fail("temperature")
        return 30 + handle

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self._may_fail("rates")
        return SimpleNamespace(gpu=50 * handle)

    def nvmlDeviceGetSamples(self, handle: int, kind: int, since: int) -> Any:
        self._may_fail("samples")
        busy = [1_700_000_000, 1_700_000_010] if handle else []
        times = [1_700_000_000, 1_700_000_010, 1_700_000_020]
        return 1, [
            SimpleNamespace(timeStamp=at * 1_000_000, sampleValue=SimpleNamespace(uiVal=int(at in busy)))
            for at in times
        ]

    def nvmlDeviceGetAccountingMode(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetAccountingPids(self, handle: int) -> "list[int]":
        self._may_fail("accounts")
        return [5, 6, 7]

    def nvmlDeviceGetAccountingStats(self, handle: int, pid: int) -> Any:
        return SimpleNamespace(startTime=(1_600_000_000 + pid) * 1_000_000, time=2500, isRunning=int(pid == 7))

    def nvmlDeviceGetP2PStatus(self, handle: int, other: int, what: int) -> int:
        self._may_fail("links")
        return 0

    def nvmlDeviceGetName(self, handle: "int | str") -> str:
        return "NVIDIA H200" if handle in (0, 1) else "NVIDIA H200 MIG 1g.18gb"

    def nvmlDeviceGetUUID(self, handle: "int | str") -> str:
        return f"GPU-{handle}" if handle in (0, 1) else str(handle)


def asked(nvml: FakeNvml) -> Inventory:
    found = gpus.ask(nvml)
    assert nvml.open == 0  # whatever happened, NVML was let go
    return found


IDLE = Load(1_700_000_000.0, None, None)
AT_WORK = Load(1_700_000_000.0, 1_700_000_010.0, 1_600_000_008.5)  # PID 7 still runs


def test_two_gpus_are_two_gpus() -> None:
    assert asked(FakeNvml()) == Inventory(
        (
            Gpu(0, "GPU-0", "NVIDIA H200", 141 * GIB, 0, (), "9.0", "", None, 0, 30, IDLE, frozenset({"GPU-1"})),
            Gpu(
                1, "GPU-1", "NVIDIA H200", 141 * GIB, GIB, (Process(71, GIB),), "9.1", "", None, 50, 31, AT_WORK,
                frozenset({"GPU-0"}),
            ),
        ),
        "580.95.05",
        "",
    )  # fmt: skip


def test_instances_stand_in_the_place_of_their_gpu() -> None:
    """They have its temperature and capability, and no load of their own; slots may be free."""
    nvml = FakeNvml()
    nvml.parts = {1: {0: "MIG-a", 4: "MIG-b"}}
    found = asked(nvml)
    assert [(one.label, one.uuid, one.parent) for one in found.gpus] == [
        ("0", "GPU-0", ""), ("1:0", "MIG-a", "GPU-1"), ("1:4", "MIG-b", "GPU-1"),
    ]  # fmt: skip
    part = found.gpus[1]
    assert (part.memory_total, part.memory_free, part.compute_capability) == (9, 5, "9.1")
    assert (part.temperature, part.utilisation, part.load, part.joined) == (31, None, None, frozenset())
    assert [one.uuid for one in found.cut] == ["GPU-1"]
    assert found.gpus[0].joined == frozenset()


def test_gpus_that_are_cut_into_nothing_are_none() -> None:
    nvml = FakeNvml()
    nvml.parts = {0: {}, 1: {}}
    found = asked(nvml)
    assert (found.gpus, [one.uuid for one in found.cut]) == ((), ["GPU-0", "GPU-1"])
    assert "in MIG mode and have no instance" in found.reason


def test_a_gpu_that_is_lost_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ("handle", "memory"):
        found = asked(FakeNvml(**{f"{call}_0": FakeNvml.NVMLError("GPU is lost")}))
        assert [one.uuid for one in found.gpus] == ["GPU-1"]
        assert found.faults == ("GPU 0 does not answer (NVML: GPU is lost)",)
        assert (found.reason, found.broken) == ("", False)


def test_parts_that_share_the_hosts_memory_have_none_of_their_own() -> None:
    found = asked(FakeNvml(memory=FakeNvml.NVMLError_NotSupported("Not Supported")))
    assert [(gpu.memory_total, gpu.memory_used) for gpu in found.gpus] == [(0, 0), (0, 0)]


def test_processes_that_cannot_be_listed_do_not_hide_a_gpu() -> None:
    found = asked(FakeNvml(processes=FakeNvml.NVMLError("no permission")))
    assert [gpu.processes for gpu in found.gpus] == [(), ()]


@pytest.mark.parametrize("kind", [FakeNvml.NVMLError_NotSupported, FakeNvml.NVMLError_FunctionNotFound])
def test_what_a_driver_does_not_tell_hides_no_gpu(kind: "type[Exception]") -> None:
    calls = ("capability", "mig", "temperature", "rates", "samples", "links")
    found = asked(FakeNvml(**{call: kind() for call in calls}))
    assert [(gpu.compute_capability, gpu.temperature, gpu.utilisation, gpu.load) for gpu in found.gpus] == [
        ("", None, None, None)
    ] * 2
    assert [gpu.joined for gpu in found.gpus] == [frozenset()] * 2


def test_a_driver_without_accounts_tells_its_samples() -> None:
    found = asked(FakeNvml(accounts=FakeNvml.NVMLError_NotSupported()))
    assert [gpu.load and gpu.load.ended for gpu in found.gpus] == [None, None]


LOST = FakeNvml.NVMLError("GPU is lost")


@pytest.mark.parametrize(
    ("errors", "reason", "broken"),
    [
        ({"init": FakeNvml.NVMLError_LibraryNotFound()}, "there is no NVIDIA driver (libnvidia-ml.so.1 was not", False),
        ({"init": FakeNvml.NVMLError("Driver Not Loaded")}, "does not answer (NVML: Driver Not Loaded)", True),
        ({"count": LOST}, "failed while its GPUs were listed (NVML: GPU is lost)", True),
        ({"memory": LOST}, "failed while its GPUs were listed: GPU 0 does not answer (NVML: GPU is lost); GPU 1", True),
        ({"capability": LOST}, "GPU 0 does not answer (NVML: GPU is lost)", True),
        ({"mig": LOST}, "GPU 0 does not answer (NVML: GPU is lost)", True),
        ({"empty": Exception()}, "the NVIDIA driver sees no GPU", False),
    ],
)
def test_a_host_without_gpus_says_why(errors: "dict[str, Exception]", reason: str, broken: bool) -> None:
    found = asked(FakeNvml(**errors))
    assert found.gpus == ()
    assert reason in found.reason
    assert found.broken is broken


def test_the_real_nvml_answers_or_says_why() -> None:
    found = gpus.gather()
    assert bool(found.gpus) is not bool(found.reason)


def test_nvml_is_asked_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert [gpu.uuid for gpu in gpus.gather().gpus] == ["GPU-0", "GPU-1"]
    nvml.nvmlSystemGetDriverVersion = lambda: time.sleep(60)
    started = time.monotonic()
    found = gpus.gather(0.3)
    assert time.monotonic() - started < 20
    assert (found.gpus, found.broken) == ((), True)
    assert "the NVIDIA driver does not answer (asking it gave nothing within 0.3 s)" in found.reason
    # From now on it gets but a moment, until it has answered.
    monkeypatch.setattr(gpus, "MOMENT_SECONDS", 0.4)
    assert "within 0.4 s" in gpus.gather(60).reason
    del nvml.nvmlSystemGetDriverVersion
    monkeypatch.setattr(gpus, "MOMENT_SECONDS", 20.0)
    assert len(gpus.gather().gpus) == 2
    nvml.nvmlSystemGetDriverVersion = lambda: time.sleep(60)
    assert "within 0.3 s" in gpus.gather(0.3).reason
    del nvml.nvmlSystemGetDriverVersion
    assert len(gpus.gather().gpus) == 2


# --- calls that may never return ---


def test_a_call_apart_gives_what_it_returns_or_raises() -> None:
    assert apart.call(lambda: {"a": (1, 2)}, 20) == {"a": (1, 2)}
    assert len(apart.call(lambda: bytes(5_000_000), 20)) == 5_000_000  # more than a pipe holds
    with pytest.raises(ZeroDivisionError):
        apart.call(lambda: 1 / 0, 20)


def test_a_call_apart_that_dies_or_hangs_is_silent_and_leaves_no_process() -> None:
    with pytest.raises(apart.Silent, match="killed the process"):
        apart.call(lambda: os.kill(os.getpid(), signal.SIGKILL), 20)
    with pytest.raises(apart.Silent, match=r"gave nothing within 0\.2 s"):
        apart.call(lambda: time.sleep(60), 0.2)
    with pytest.raises(ChildProcessError):  # no child is left, not even an ended one
        os.waitpid(-1, os.WNOHANG)


def test_a_call_apart_hears_no_ctrl_c_of_the_terminal_and_ends_with_its_parent() -> None:
    """Of the terminal's session it is none; killed in the middle, the one that asked leaves nobody behind."""
    assert apart.call(lambda: os.getsid(0), 20) != os.getsid(0)
    program = "import os, sys, time\nfrom torchdock import apart\nout = int(sys.argv[1])\n"
    program += "apart.call(lambda: (os.write(out, b'begun\\n'), time.sleep(100)), 90)"
    reading, writing = os.pipe()
    env = {**os.environ, "PYTHONPATH": str(Path(gpus.__file__).parents[1])}
    asking = subprocess.Popen([sys.executable, "-c", program, str(writing)], pass_fds=[writing], env=env)
    os.close(writing)
    assert os.read(reading, 100).endswith(b"\n")  # it is at it
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    # The end of the pipe, which the child had open: it has ended.
    assert select.select([reading], [], [], 20)[0] and os.read(reading, 100) == b""
    os.close(reading)


def test_a_call_apart_writes_to_nobodys_streams(capfd: pytest.CaptureFixture[str]) -> None:
    assert apart.call(lambda: os.write(1, b"out") + os.write(2, b"err"), 20) == 6
    assert capfd.readouterr() == ("", "")
