"""several processes: sums by gloo and NCCL, torchrun, DDP as one process; one that dies ends the run"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchdock.inside import collectives, workloads
from torchdock.inside.workloads import checkpoint, loop

REMEDY = "python -m torchdock.inside.collectives says more; see what it prints with --backend gloo and --backend nccl."
# The processes meet at this machine's name by default, and without a network there is none to find it by.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2")


def environment() -> dict[str, str]:
    """The caller's, without a torchrun around it; one thread a process, as torchrun gives."""
    return {**collectives.environment(os.environ, 0, 1), "OMP_NUM_THREADS": "1"} | {"NCCL_DEBUG": "WARN"}


def torchrun(*words: object, cwd: Path, seconds: float = 150) -> "subprocess.CompletedProcess[str]":
    """Run torchrun on two processes to its end."""
    kept = {name: value for name, value in environment().items() if "RANK" not in name and "WORLD_SIZE" not in name}
    argv = [sys.executable, *TORCHRUN, *map(str, words)]
    return subprocess.run(argv, cwd=cwd, env=kept, capture_output=True, text=True, timeout=seconds)


@pytest.mark.limit(150)
def test_two_processes_by_gloo():
    """all_reduce, broadcast, all_gather, send and receive on two CPU processes, to exact values."""
    _, wrong, _ = collectives.proved("gloo", 2)
    assert wrong is None, wrong


@pytest.mark.limit(60)
def test_a_rank_that_dies_ends_the_run_with_its_name(tmp_path):
    """The other one, which waits for it, is ended too, and the message says which and how."""
    script = tmp_path / "die.py"
    script.write_text(
        "import os, signal\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "signal.pause()\n"  # as a rank that waits for the other
    )
    outcome = collectives.run("gloo", 2, seconds=50, command=[str(script)], after=0.5)
    assert outcome.seconds < 40
    assert outcome.codes[1] == -signal.SIGKILL
    assert "rank 1 ended by signal SIGKILL" in collectives.problem("gloo", outcome)


@pytest.mark.limit(60)
def test_a_rank_that_hangs_ends_the_run_with_its_name(tmp_path):
    """Bounded by the time given, not by patience."""
    script = tmp_path / "hang.py"
    script.write_text("import os, signal\nif os.environ['RANK'] == '0': signal.pause()\n")
    outcome = collectives.run("gloo", 2, seconds=1.5, command=[str(script)])
    assert outcome.hung
    assert "rank 0 hung" in collectives.problem("gloo", outcome)


@pytest.mark.limit(200)
def test_torchrun_trains_as_one_process_does(tmp_path):
    """DistributedDataParallel on two processes: the losses of one, but for rounding; it resumes in one process."""
    words = ("-m", "torchdock.inside.train", "--model", "classifier", "--device", "cpu", "--json", "--epochs")
    done = torchrun(*words, 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["processes"] == 2
    workload = workloads.get("classifier")
    alone = loop.train(workload, loop.settings(workload, epochs=2))
    assert document["losses"] == pytest.approx(alone.losses, rel=1e-4)
    assert document["losses"] != list(alone.losses), "equal to the bit: was the batch shared at all?"


@pytest.mark.limit(200)
def test_torchrun_ends_when_a_rank_is_killed(tmp_path):
    """A rank killed while training: torchrun ends in bounded time and names it; the checkpoint is whole."""
    kept = {name: value for name, value in environment().items() if "RANK" not in name and "WORLD_SIZE" not in name}
    words = ("-m", "torchdock.inside.train", "--model", "classifier", "--device", "cpu", "--epochs", "100000")
    argv = [sys.executable, *TORCHRUN, *words]
    process = subprocess.Popen(
        argv, cwd=tmp_path, env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert next((line for line in process.stdout if line.startswith("epoch ")), ""), process.stderr.read()
        victim = child(process.pid, rank=1)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        _, errors = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 1
    assert time.monotonic() - killed < 60
    # In a line of its log or in its report, where the other rank may stand first: its own end was seen first then.
    named = rf"exitcode: -9\) local_rank: 1 \(pid: {victim}\)|exitcode : -9 \(pid: {victim}\)"
    assert re.search(named, " ".join(errors.split())), errors
    assert checkpoint.read(tmp_path / "runs/classifier/checkpoint.pt")["epoch"] >= 1


def child(parent: int, rank: int) -> int:
    """The PID of the child of this process that is this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(status[1]) == parent and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"process {parent} has no rank {rank}")


@pytest.mark.gpu
@pytest.mark.limit(240)
def test_nccl_on_one_gpu():
    """NCCL loads and sums on this GPU, alone."""
    _, wrong, _ = collectives.proved("nccl", 1)
    assert wrong is None, wrong


@pytest.mark.gpu
@pytest.mark.gpus
@pytest.mark.limit(300)
def test_two_processes_by_nccl(measured, finding):
    """Each on a GPU of its own, to exact values; a hang of peer-to-peer copies is named, TCP beside InfiniBand told."""
    outcome, wrong, slow = collectives.proved("nccl", 2)
    if slow:
        what, _, remedy = slow.partition(" Remedy: ")
        seen, _, meaning = what.partition(". ")
        finding("note", "NCCL", seen=f"{seen}.", meaning=meaning, remedy=remedy)
    assert wrong is None, wrong
    measured("all_reduce of 64 MiB by NCCL, 2 GPUs", outcome.gigabytes, "GB/s", bus=True)


@pytest.mark.gpu
@pytest.mark.gpus
@pytest.mark.limit(240)
def test_torchrun_trains_on_two_gpus(tmp_path):
    """DistributedDataParallel by NCCL: the losses of one GPU, but for rounding."""
    words = ("-m", "torchdock.inside.train", "--model", "classifier", "--device", "cuda", "--json", "--epochs", 2)
    done = torchrun(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    workload = workloads.get("classifier")
    alone = loop.train(workload, loop.settings(workload, epochs=2), device="cuda")
    assert json.loads(done.stdout)["losses"] == pytest.approx(alone.losses, rel=1e-2)
