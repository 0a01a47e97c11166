"""The driver that is not there, by the real nvidia-ml-py: what it tells, how it fails, and that it says it is fake."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import GIB, FakeDriver, FakeGpu, FakeInstance, new_uuid

PRELUDE = """\
import json, sys
import pynvml as n
def handle(index=0): return n.nvmlDeviceGetHandleByIndex(index)
def code(call, *given):
    try: call(*given)
    except n.NVMLError as error: return error.value
    return 0
"""


def ask(driver: FakeDriver, code: str, timeout: float = 20) -> Any:
    """What a program with nvidia-ml-py prints, as JSON; NVML is open."""
    env = {**os.environ, **driver.environment}
    program = f"{PRELUDE}n.nvmlInit()\nprint(json.dumps({code}))"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def opens(driver: FakeDriver) -> int:
    """NVML's code for its own opening."""
    env = {**os.environ, **driver.environment}
    program = f"{PRELUDE}print(code(n.nvmlInit))"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_it_says_that_it_is_fake(tmp_path: Path) -> None:
    part = FakeInstance(new_uuid("MIG"))
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid(), mig=True, instances=(part,))])
    names = ask(
        driver,
        "[n.nvmlSystemGetDriverVersion(), n.nvmlSystemGetNVMLVersion(), n.nvmlDeviceGetName(handle()),"
        "n.nvmlDeviceGetName(n.nvmlDeviceGetMigDeviceHandleByIndex(handle(), 0))]",
    )
    assert len(names) == 4
    assert all("fake" in name.lower() for name in names)


def test_gpus_are_listed_as_they_are(tmp_path: Path) -> None:
    """Twelve of them, for 10 comes after 9."""
    gpus = [FakeGpu(new_uuid(), memory_total=(index + 1) * GIB, memory_used=index) for index in range(12)]
    driver = FakeDriver(tmp_path, gpus)
    assert ask(driver, "[n.nvmlDeviceGetUUID(handle(i)) for i in range(n.nvmlDeviceGetCount())]") == [
        gpu.uuid for gpu in gpus
    ]
    memory = "n.nvmlDeviceGetMemoryInfo(handle(11))"
    assert ask(driver, f"[{memory}.total, {memory}.used, {memory}.free]") == [12 * GIB, 11, 12 * GIB - 11]
    assert ask(driver, f"n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID({gpus[7].uuid!r}))") == 7


def test_what_a_gpu_is_and_does_is_told(tmp_path: Path) -> None:
    gpu = FakeGpu(
        new_uuid(), serial="1650924001234", bus="0000:3b:00.0", utilisation=42, temperature=71, throttle=0x40,
        link_generation=3, link_width=8, ecc_uncorrected=5, retired_double=2, remapped_failed=1,
        processes=((4242, GIB), (4243, 2 * GIB)), samples=((1_000_000, 0), (2_000_000, 9)), accounting=1,
        accounted=((99, 1_000_000, 2500, 0),),
    )  # fmt: skip
    driver = FakeDriver(tmp_path, [gpu])
    told = {
        "serial": "n.nvmlDeviceGetSerial(handle())",
        "bus": "n.nvmlDeviceGetPciInfo(handle()).busId",
        "utilisation": "n.nvmlDeviceGetUtilizationRates(handle()).gpu",
        "temperature": "[n.nvmlDeviceGetTemperature(handle(), 0), n.nvmlDeviceGetTemperatureV(handle(), 0)]",
        "throttle": "n.nvmlDeviceGetCurrentClocksEventReasons(handle())",
        "link": "[f(handle()) for f in (n.nvmlDeviceGetCurrPcieLinkGeneration, n.nvmlDeviceGetMaxPcieLinkGeneration,"
        " n.nvmlDeviceGetCurrPcieLinkWidth, n.nvmlDeviceGetMaxPcieLinkWidth)]",
        "ecc": "[n.nvmlDeviceGetTotalEccErrors(handle(), 1, 0), n.nvmlDeviceGetTotalEccErrors(handle(), 0, 0)]",
        "retired": "[len(n.nvmlDeviceGetRetiredPages(handle(), cause)) for cause in (0, 1)]",
        "remapped": "n.nvmlDeviceGetRemappedRows(handle())",
        "processes": "[[p.pid, p.usedGpuMemory, p.gpuInstanceId]"
        " for p in n.nvmlDeviceGetComputeRunningProcesses(handle())]",
        "samples": "[[s.timeStamp, s.sampleValue.uiVal] for s in n.nvmlDeviceGetSamples(handle(), 1, 0)[1]]",
        "accounted": "[[pid, n.nvmlDeviceGetAccountingStats(handle(), pid).time]"
        " for pid in n.nvmlDeviceGetAccountingPids(handle())]",
    }
    asked = ", ".join(f"{name!r}: {code}" for name, code in told.items())
    assert ask(driver, f"{{{asked}}}") == {
        "serial": "1650924001234",
        "bus": "00000000:3B:00.0",
        "utilisation": 42,
        "temperature": [71, 71],
        "throttle": 0x40,
        "link": [3, 5, 8, 16],
        "ecc": [5, 0],
        "retired": [0, 2],
        "remapped": [0, 0, 0, 1],
        "processes": [[4242, GIB, 0xFFFFFFFF], [4243, 2 * GIB, 0xFFFFFFFF]],
        "samples": [[1_000_000, 0], [2_000_000, 9]],
        "accounted": [[99, 2500]],
    }


def test_gpus_are_joined_by_links_and_by_a_switch(tmp_path: Path) -> None:
    links = [("0000:11:00.0",), ("0000:10:00.0", "down"), ("switch",), ("switch",), ()]
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid(), nvlinks=found, node=len(found)) for found in links])
    pairs = "for i in range(5) for j in range(i + 1, 5)"
    joined = f"[[i, j] {pairs} if not n.nvmlDeviceGetP2PStatus(handle(i), handle(j), 2)]"
    assert ask(driver, joined) == [[0, 1], [2, 3]]
    assert ask(driver, "[n.nvmlDeviceGetNvLinkState(handle(1), link) for link in (0, 1)]") == [1, 0]
    assert ask(driver, "n.nvmlDeviceGetNvLinkRemotePciInfo(handle(0), 0).busId") == "00000000:11:00.0"
    assert ask(driver, "[n.nvmlDeviceGetTopologyCommonAncestor(handle(2), handle(i)) for i in (1, 3)]") == [50, 40]


def test_instances_are_devices_of_their_own(tmp_path: Path) -> None:
    parts = (
        FakeInstance(new_uuid("MIG"), gpu_instance=9, processes=((77, GIB),)),
        FakeInstance(new_uuid("MIG"), gpu_instance=11, memory_used=3 * GIB),
    )
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid()), FakeGpu(new_uuid(), mig=True, instances=parts)])
    assert ask(driver, "[n.nvmlDeviceGetMigMode(handle(i)) for i in (0, 1)]") == [[0, 0], [1, 1]]
    units = "[n.nvmlDeviceGetMigDeviceHandleByIndex(handle(1), slot) for slot in (0, 1)]"
    assert ask(driver, f"[n.nvmlDeviceGetUUID(unit) for unit in {units}]") == [part.uuid for part in parts]
    assert ask(driver, f"[n.nvmlDeviceGetMemoryInfo(unit).used for unit in {units}]") == [0, 3 * GIB]
    assert ask(driver, f"[code(n.nvmlDeviceGetUtilizationRates, unit) for unit in {units}]") == [3, 3]
    seen = "[[p.pid, p.gpuInstanceId] for p in n.nvmlDeviceGetComputeRunningProcesses({})]"
    assert ask(driver, seen.format("handle(1)")) == [[77, 9]]
    assert ask(driver, seen.format(f"{units}[1]")) == []
    parent = "n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle({}[0])"
    assert ask(driver, f"n.nvmlDeviceGetUUID({parent.format(units)})") == driver.gpus[1].uuid
    assert ask(driver, "code(n.nvmlDeviceGetMigDeviceHandleByIndex, handle(1), 2)") == 6
    assert ask(driver, "code(n.nvmlDeviceGetMigDeviceHandleByIndex, handle(0), 0)") == 3


@pytest.mark.parametrize("number", [9, 12, 18, 999])
def test_it_does_not_open(number: int, tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid())])
    driver.behave(fail=[f"nvmlInit* {number}"])
    assert opens(driver) == number
    driver.behave()
    assert opens(driver) == 0


def test_one_call_fails_from_its_nth_time_on(tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid())])
    driver.behave(fail=["nvmlDeviceGetMemoryInfo 13 3"])
    assert ask(driver, "[code(n.nvmlDeviceGetMemoryInfo, handle()) for _ in range(4)]") == [0, 0, 13, 13]
    assert ask(driver, "code(n.nvmlDeviceGetName, handle())") == 0


def test_a_gpu_disappears_at_a_given_call_and_no_other_one(tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid(), lost_at=4), FakeGpu(new_uuid())])
    asked = "[code(n.nvmlDeviceGetName, one) for one in [handle({})] for _ in range(5)]"
    assert ask(driver, asked.format(0)) == [0, 0, 15, 15, 15]  # the handle was a call about it too
    assert ask(driver, asked.format(1)) == [0] * 5


def test_it_changes_under_a_process_that_has_it_open(tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid(), utilisation=1)])
    program = f"{PRELUDE}n.nvmlInit()\none = handle()\nfor _ in sys.stdin:\n" + (
        "    print(code(n.nvmlDeviceGetUtilizationRates, one) or n.nvmlDeviceGetUtilizationRates(one).gpu, flush=True)"
    )
    pipe = subprocess.PIPE
    env = {**os.environ, **driver.environment}
    with subprocess.Popen([sys.executable, "-c", program], env=env, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def now() -> int:
            print(file=process.stdin, flush=True)
            return int(process.stdout.readline())

        assert now() == 1
        driver.change(driver.gpus[0].uuid, utilisation=93)
        assert now() == 93
        driver.change(driver.gpus[0].uuid, lost=999)
        assert now() == 999
        driver.change(driver.gpus[0].uuid, lost=None)
        driver.behave(fail=["nvmlDeviceGetUtilizationRates 15"])
        assert now() == 15
        process.stdin.close()


def test_a_call_hangs(tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid())])
    driver.behave(hang=["nvmlDeviceGetName"])
    program = f"{PRELUDE}n.nvmlInit()\nprint('before', flush=True)\nn.nvmlDeviceGetName(handle())\nprint('after')"
    env = {**os.environ, **driver.environment}
    with subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "before\n"
        # It sleeps in pause(2), and spins nowhere.
        path, deadline = Path(f"/proc/{process.pid}/stat"), time.monotonic() + 20
        while path.read_text().rpartition(")")[2].split()[0] != "S" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None
        process.kill()
        assert process.stdout.read() == ""


def test_where_a_fault_is_planted_is_where_it_shows(tmp_path: Path) -> None:
    """A container has the driver's behaviour in a file of its own."""
    driver = FakeDriver(tmp_path, [FakeGpu(new_uuid())])
    driver.behave(fail=["nvmlInit* 999"], where="inside")
    assert opens(driver) == 0
    assert "fail=nvmlInit* 999" in (driver.inside / "driver").read_text()


@pytest.mark.parametrize(("by", "names"), [("uuid", "uuids"), ("index", "indices"), ("both", "both")])
def test_the_cdi_specification_names_what_can_be_handed_over(by: str, names: str, tmp_path: Path) -> None:
    part = FakeInstance(new_uuid("MIG"))
    whole, cut = FakeGpu(new_uuid()), FakeGpu(new_uuid(), mig=True, instances=(part,))
    driver = FakeDriver(tmp_path, [whole, cut])
    found = {one["name"]: one for one in json.loads(driver.specification(by=by))["devices"]}
    uuids, indices = [whole.uuid, part.uuid], ["0", "1:0"]
    expected = {"uuids": uuids, "indices": indices, "both": [uuids[0], indices[0], uuids[1], indices[1]]}[names]
    assert list(found) == expected
    mounts = found[expected[-1]]["containerEdits"]["mounts"]
    assert [Path(one["containerPath"]).name for one in mounts] == ["1.gpu", "1.0.mig"]
