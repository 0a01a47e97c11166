"""What one container may take, seen from inside: memory, CPUs, processes, open files, and what follows from them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Invoke
from torchdock import launch, limits
from torchdock.engine import Engine

pytestmark = pytest.mark.usefixtures("image")

# Prints what the container's Python sees, as JSON. Both cgroup versions.
PROBE = """
import json, os, pathlib, resource, subprocess, warnings
import torch
def first(*names):
    for name in names:
        path = pathlib.Path("/sys/fs/cgroup", name)
        if path.is_file():
            return path.read_text().split()
quota, period = first("cpu.max") or first("cpu/cpu.cfs_quota_us") + first("cpu/cpu.cfs_period_us")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    torch.utils.data.DataLoader([1], num_workers=1)
    few = len(said)
    torch.utils.data.DataLoader([1], num_workers=2)
shm = os.statvfs("/dev/shm")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "memory": first("memory.max", "memory/memory.limit_in_bytes")[0],
    "swap": first("memory.swap.max", "memory/memory.memsw.limit_in_bytes"),
    "cpus": None if quota in ("max", "-1") else int(quota) / int(period),
    "pids": first("pids.max", "pids/pids.max")[0],
    "shm": shm.f_blocks * shm.f_frsize,
    "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "oom": open("/proc/self/oom_score_adj").read().strip(),
    "omp": os.environ["OMP_NUM_THREADS"], "mkl": os.environ["MKL_NUM_THREADS"],
    "torch": torch.get_num_threads(), "count": os.cpu_count(), "process_count": os.process_cpu_count(),
    "affinity": len(os.sched_getaffinity(0)),
    "allowed": status["Cpus_allowed_list"].strip(),
    "nproc": subprocess.run(["nproc"], capture_output=True, text=True).stdout.strip(),
    "hints": [few, len(said)], "hint": str(said[-1].message) if said else "",
}))
"""


def probed(invoke: Invoke, *options: str) -> dict[str, Any]:
    done = invoke("run", *options, "--", "python", "-c", PROBE)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cpus_of(listed: str) -> int:
    """How many CPUs ``0-1,4`` are."""
    ends = [[int(end) for end in part.split("-")] for part in listed.split(",")]
    return sum(end[-1] - end[0] + 1 for end in ends)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a quota of one CPU is none on a machine with one")
def test_a_container_takes_what_it_was_given_and_threads_follow(invoke: Invoke, engine: Engine) -> None:
    seen = probed(invoke, "--memory", "1g", "--cpus", "1", "--shm-size", "256m")
    assert seen["memory"] == str(1 << 30)
    if engine.facts.info.get("SwapLimit"):
        assert seen["swap"] in (["0"], [str(1 << 30)])  # cgroup v1 counts memory and swap together
    assert seen["cpus"] == 1.0
    assert seen["shm"] == 256 << 20
    assert [seen[name] for name in ("omp", "mkl", "nproc")] == ["1"] * 3
    assert [seen[name] for name in ("torch", "count", "process_count", "affinity")] == [1] * 4
    assert seen["hints"] == [0, 1]
    assert "suggested max number of worker in current system is 1," in seen["hint"]
    assert cpus_of(seen["allowed"]) == len(os.sched_getaffinity(0))  # nobody is pinned


def test_without_a_wish_the_host_keeps_a_quarter(invoke: Invoke, engine: Engine) -> None:
    seen = probed(invoke)
    planned = limits.plan(engine, launch.NOTHING)
    assert seen["memory"] == str(planned.memory)
    assert planned.memory is not None and planned.memory <= engine.memory_bytes * 3 // 4
    assert (seen["shm"], seen["pids"], seen["oom"]) == (planned.shm, str(planned.processes), "500")
    assert seen["files"] == [planned.open_files] * 2
    assert planned.open_files == min(65536, engine.open_files or 0)
    everything = len(os.sched_getaffinity(0))
    assert (seen["cpus"], seen["torch"], seen["affinity"], seen["count"]) == (None, *[everything] * 3)
    assert seen["hints"] == ([0, 0] if everything > 1 else [0, 1])


def test_the_workspace_says_its_limits_and_the_command_line_goes_before_them(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "torchdock.toml").write_text('memory = "1g"\nshm_size = "128m"\ncpus = 1\n')
    done = invoke("run", "-w", str(tmp_path), "--dry-run", "--memory", "2g", "--", "true")
    assert f"--memory {2 << 30} " in done.stdout
    assert f"--shm-size {128 << 20} " in done.stdout
    assert "--cpus 1 " in done.stdout


def test_memory_that_runs_out_ends_the_command_which_is_said(invoke: Invoke) -> None:
    script = "held = []\nwhile True:\n    held.append(bytearray(b'x' * (64 << 20)))"
    done = invoke("run", "--memory", "512m", "--", "python", "-c", script)
    assert done.returncode == 137
    *_, told = done.stderr.strip().splitlines()
    assert told.startswith("torchdock: The command was killed: it needed more memory than the container has (512 MiB)")
    assert "Traceback" not in done.stderr


def test_fewer_threads_of_openmp_are_fewer_of_torch(invoke: Invoke) -> None:
    """torch asks MKL, which goes by a variable of its own."""
    done = invoke(
        "run", "-e", "OMP_NUM_THREADS=1", "--", "python", "-c", "import torch; print(torch.get_num_threads())"
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.parametrize("cpus", ["0.5", "1", "1.5"])
def test_plain_docker_has_as_many_threads_too(image: dict[str, Any], cpus: str) -> None:
    script = "echo $OMP_NUM_THREADS; python -c 'import os; print(len(os.sched_getaffinity(0)))'"
    run = ["docker", "run", "--rm", "--cpus", cpus, image["image"], "sh", "-c", script]
    assert subprocess.run(run, capture_output=True, text=True).stdout == "1\n1\n"


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--memory", "100m", r"less than torch needs to start: ask for 512 MiB or more"),
        ("--memory", "900t", r"this machine has .* GiB\. Ask for less"),
        ("--cpus", "4096", r"this machine has \d+\. Ask for fewer"),
        ("--shm-size", "900t", r"/dev/shm counts as memory"),
    ],
)
def test_what_the_machine_cannot_give_is_told(invoke: Invoke, option: str, value: str, told: str) -> None:
    done = invoke("run", option, value, "--", "true")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(told, done.stderr) and len(done.stderr.strip().splitlines()) == 1
