"""`--profile debug`: debuggers work on one's own processes, as root and as a user, and nothing more is granted."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Invoke
from torchdock import container, profiles, sources
from torchdock.engine import Engine
from torchdock.launch import NOTHING

pytestmark = pytest.mark.usefixtures("image")

NAMED = 1 << 38 | 1 << 19  # CAP_PERFMON, CAP_SYS_PTRACE
ANN = 4306  # nobody's UID in another test: her cache volume is removed
STRANGER = 4444
# What the tools can do: each on another process of the same user, and on one of another user (PID in argv).
PROBE = """
import ctypes, json, os, platform, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 298, "aarch64": 241}[platform.machine()]

def count(process):  # perf_event_open(2): the CPU time of a process in user space, a software event
    user_space = struct.pack("Q", 1 << 5 | 1 << 6)
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 1) + bytes(24) + user_space, 112)
    handle = libc.syscall(number, attributes, process, -1, -1, 0)
    if handle < 0:
        return os.strerror(ctypes.get_errno())
    sum(range(300_000))
    return int.from_bytes(os.read(handle, 8), "little")

def everybody():  # the same of all processes of the machine
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0), 112)
    return libc.syscall(number, attributes, -1, 0, -1, 0) >= 0

def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout + done.stderr

status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
program = "def busy():\\n while True: print(flush=True)\\nbusy()"
child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
child.stdout.readline()
mine = str(child.pid)
seen = {"uid": os.getuid(), "no_new_privs": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip()}
seen |= {name: int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
seen |= {"perf": count(0), "perf_other": count(child.pid), "perf_everybody": everybody()}
seen |= {"py_spy": run("py-spy", "dump", "--pid", mine), "gdb": run("gdb", "-p", mine, "-batch", "-ex", "bt")}
for stranger in sys.argv[1:]:
    seen |= {"py_spy_stranger": run("py-spy", "dump", "--pid", stranger), "perf_stranger": count(int(stranger))}
    seen |= {"gdb_stranger": run("gdb", "-p", stranger, "-batch", "-ex", "bt")}
child.kill()
print(json.dumps(seen))
"""


@pytest.fixture(params=[ANN, 0], ids=["user", "root"])
def debugged(
    request: pytest.FixtureRequest, engine: Engine, image: dict[str, Any], tmp_path: Path
) -> Iterator[container.LaunchPlan]:
    """A container of the profile that is up, of this UID; in it a process of somebody else, which waits."""
    tmp_path.chmod(0o755)
    os.chown(tmp_path, request.param, request.param)
    who = container.Identity(request.param, request.param, (), "ann")
    plan = container.plan(
        engine, image["image"], who, sources.gather(), role="up", clone="t", workspace=tmp_path,
        command=container.STAY, wishes=replace(NOTHING, profile="debug"),
    )  # fmt: skip
    subprocess.run(plan.argv, check=True, capture_output=True)
    try:
        yield plan
    finally:
        engine.remove_container(plan.name)
        if request.param:
            engine.client.volumes.get(f"torchdock-cache-{request.param}").remove()


def test_debuggers_work_on_ones_own_processes_and_on_no_others(debugged: container.LaunchPlan, engine: Engine) -> None:
    stranger = ["docker", "exec", "--detach", "--user", str(STRANGER), debugged.name, "sleep", "600"]
    subprocess.run(stranger, check=True, capture_output=True)
    found = ["docker", "exec", debugged.name, "pgrep", "-u", str(STRANGER), "sleep"]
    process = subprocess.run(found, check=True, capture_output=True, text=True).stdout.strip()
    argv = container.exec_argv(engine, debugged.name, ["python", "-c", PROBE, process])
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads(done.stdout)

    assert "busy (<string>:2)" in seen["py_spy"]
    assert "detached" in seen["gdb"]
    assert "#1" in seen["gdb"]
    assert seen["perf"] > 0, seen["perf"]
    assert isinstance(seen["perf_other"], int), seen["perf_other"]

    assert seen["Bnd"] == NAMED
    assert [seen[name] for name in ("Inh", "Prm", "Eff", "Amb")] == [0, 0, 0, 0]
    assert (seen["no_new_privs"], seen["seccomp"]) == ("1", "2")
    assert seen["perf_everybody"] is False
    assert "Operation not permitted" in seen["gdb_stranger"]
    assert "ermission" in seen["py_spy_stranger"]
    assert isinstance(seen["perf_stranger"], str), seen["perf_stranger"]


def test_without_the_profile_nothing_is_granted(invoke: Invoke) -> None:
    done = invoke("run", "--", "python", "-c", PROBE)
    seen = json.loads(done.stdout)
    assert [seen[name] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0, 0, 0, 0, 0]
    assert seen["perf"] == "Operation not permitted"


def test_run_takes_the_profile_and_ps_shows_it(invoke: Invoke, engine: Engine) -> None:
    script = "grep -E 'Cap(Prm|Eff|Amb)' /proc/self/status; sleep 600"
    started = invoke("run", "--detach", "--profile", "debug", "--json", "--", "sh", "-c", script)
    job = json.loads(started.stdout)
    try:
        assert started.returncode == 0, started.stderr
        found = engine.client.containers.get(job["container"])
        added = found.attrs["HostConfig"]["CapAdd"]
        assert sorted(name.removeprefix("CAP_") for name in added) == ["PERFMON", "SYS_PTRACE"]
        deadline = time.monotonic() + 30
        while len(lines := found.logs().decode().splitlines()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [line.split()[1] for line in lines] == ["0" * 16] * 3
        listed = json.loads(invoke("ps", "--json").stdout)["containers"]
        assert {one["container"]: one["profile"] for one in listed}[job["container"]] == "debug"
    finally:
        engine.remove_container(job["container"])


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="reads the arguments of a system call from registers")
def test_every_python_consents_to_its_debugger_and_so_do_its_forks(image: dict[str, Any]) -> None:
    """Where Yama asks for consent; it is not in every kernel, so what is watched here is the system call."""
    program = "import os\nif os.fork(): os.wait()\nos.write(1, b'ended\\n')"
    said = 'printf "asked 0x%lx %ld in %d\\n", $rdi, $rsi, $_inferior'
    steps = ["catch syscall prctl", "run", said, "continue", "set follow-fork-mode child", "continue", said]
    gdb = ["gdb", "-nx", "-batch", *(word for step in steps for word in ("-ex", step)), "--args"]
    gdb += ["python", "-c", program]
    asked = {}
    for profile in ("debug", ""):
        argv = ["docker", "run", "--rm", "--user", str(ANN), "--env", f"{profiles.VARIABLE}={profile}", image["image"]]
        done = subprocess.run([*argv, *gdb], capture_output=True, text=True)
        asked[profile] = [line for line in done.stdout.splitlines() if line.startswith("asked")]
    # PR_SET_PTRACER, PR_SET_PTRACER_ANY; in the process and in its fork
    assert asked["debug"] == [f"asked 0x59616d61 -1 in {process}" for process in (1, 2)]
    assert asked[""] == []


def test_an_unknown_profile_is_wrong_input(invoke: Invoke) -> None:
    done = invoke("run", "--profile", "debag", "--", "true")
    assert done.returncode == 2
    assert (
        done.stderr == "torchdock: --profile debag: there is no such profile. Did you mean 'debug'? There is: debug.\n"
    )
