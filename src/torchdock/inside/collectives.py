"""Do processes of this machine reach each other? ``python -m torchdock.inside.collectives [--backend gloo|nccl]``

Each process sums, sends and gathers numbers with the others, on the CPU by gloo or each on a GPU of its own by NCCL.
One that dies or hangs ends the run in bounded time, with its name. Where NCCL hangs it is tried once more without
peer-to-peer copies between the GPUs; that it goes by TCP although InfiniBand is there is read in its log.

Exit codes: 0 good, 1 a process failed or hung, 2 wrong input.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchdock.inside.suite import ended

SECONDS = 90.0  # for all of it: importing torch takes most of them
AFTER = 5.0  # how long the others may live on once one has failed: their own errors are worth reading
BUFFER = 16 * 2**20  # float32 numbers of the sum that is timed: 64 MiB


@dataclass(frozen=True)
class Outcome:
    """How the processes of one run ended.

    codes: each rank's return code as subprocess has it, None where it was still running when the time was over.
    first: the rank that failed first. logs: what each has printed, NCCL's log included.
    gigabytes: 10^9 bytes a second that each rank sent while summing (its bus bandwidth); None where it was not timed.
    """

    codes: tuple[int | None, ...]
    first: int | None
    seconds: float
    logs: tuple[str, ...]
    gigabytes: float | None = None

    @property
    def good(self) -> bool:
        """Whether all ended well."""
        return all(code == 0 for code in self.codes)

    @property
    def hung(self) -> bool:
        """Whether the time was over before one had failed."""
        return self.first is None and not self.good


@dataclass(frozen=True)
class Transport:
    """What NCCL's log (NCCL_DEBUG=INFO) says of its ways.

    network: "IB", "Socket", or the name of a plugin; "" where it says none. channels: how ranks reach each other:
    "P2P", "SHM", "NET/Socket", "NET/IB", …. warnings: NCCL's own, once each.
    """

    network: str
    channels: frozenset[str]
    warnings: tuple[str, ...]


def transport(log: str) -> Transport:
    """Read NCCL's log. Pure."""
    networks = re.findall(r"NCCL INFO Using network (\S+)", log)
    ways = re.findall(
        r"NCCL INFO (?:Channel|Ring) \d+(?:/\d+)? : .* via (P2P|SHM|NET/[A-Za-z0-9_]+|COLLNET|direct)", log
    )
    warnings = dict.fromkeys(words.strip() for words in re.findall(r"NCCL WARN (.+)", log))
    return Transport(networks[-1] if networks else "", frozenset(ways), tuple(warnings))


def adapters(root: Path = Path("/sys/class/infiniband")) -> list[str]:
    """Return the names of this host's InfiniBand and RoCE adapters; the kernel tells them inside a container too."""
    return sorted(path.name for path in root.glob("*"))


def tcp_instead(way: Transport, there: Sequence[str], reachable: bool) -> str | None:
    """Return, in a paragraph with the remedy, that NCCL goes by TCP although there is InfiniBand; None where not.

    there: ``adapters()``. reachable: whether /dev/infiniband is in this container.
    """
    if not there or way.network not in ("", "Socket") or (not way.network and "NET/Socket" not in way.channels):
        return None
    if reachable:
        why = "/dev/infiniband is here, so the limit of locked memory or IPC_LOCK is missing, or NCCL_IB_DISABLE is set"
    else:
        why = "this container has no /dev/infiniband"
    return (
        f"NCCL goes by TCP (NET/Socket) between machines, and this host has InfiniBand ({', '.join(there)}): {why}. "
        "Training on several machines is many times slower than it could be; on one it does not matter. Remedy: launch "
        "with --device=/dev/infiniband --ulimit memlock=-1 --cap-add=IPC_LOCK, and unset NCCL_IB_DISABLE."
    )


def problem(backend: str, outcome: Outcome, without_p2p: Outcome | None = None) -> str | None:
    """Return what is wrong, in a paragraph with the remedy; None where all ranks ended well. Pure.

    without_p2p: the same again with NCCL_P2P_DISABLE=1, where the first one hung.
    """
    if outcome.good:
        return None
    heard = transport("\n".join(outcome.logs))
    if outcome.hung:
        waiting = ", ".join(str(rank) for rank, code in enumerate(outcome.codes) if code is None)
        met = f"{len(outcome.codes)} processes ({backend}) did not meet within {outcome.seconds:.0f} s"
        what = f"{met}: rank {waiting} hung."
        if without_p2p is not None and without_p2p.good:
            return (
                f"{what} Without peer-to-peer copies between GPUs (NCCL_P2P_DISABLE=1) they do meet: PCIe ACS or the "
                "IOMMU turns these copies away. Remedy: export NCCL_P2P_DISABLE=1, which is slower; or switch off ACS "
                "(BIOS, or setpci on the bridges) and set iommu=pt on the host's kernel command line."
            )
        again = " Nor do they with NCCL_P2P_DISABLE=1." if without_p2p is not None else ""
        return f"{what}{again} {_seen(heard, outcome.logs)}"
    first = outcome.first or 0
    code = outcome.codes[first]
    how = f"ended by {ended(code or 0)}" if code and code < 0 else f"failed with {ended(code or 0)}"
    what = (
        f"Of {len(outcome.codes)} processes ({backend}) rank {first} {how}; the run ended in {outcome.seconds:.1f} s."
    )
    if code == -signal.SIGKILL:
        return f"{what} Remedy: out of memory ends a process like this (--memory); else look who sent the signal."
    if code == -signal.SIGBUS:
        return f"{what} Remedy: a bus error means /dev/shm is too small: launch with --shm-size=2g or more."
    return f"{what} {_seen(heard, (outcome.logs[first],))}"


def _seen(heard: Transport, logs: Iterable[str]) -> str:
    """Return the last words of these logs, NCCL's warnings before all else, and a remedy."""
    lines = [line.strip() for log in logs for line in log.splitlines() if line.strip() and "NCCL INFO" not in line]
    words = " | ".join((*heard.warnings, *lines[-1:]))[:500] or "none"
    known = (
        ("posix_fallocate|shared memory segment|No space left", "/dev/shm is too small: --shm-size=2g or more."),
        ("Duplicate GPU", "each process needs a GPU of its own."),
        ("memory.*memlock|ibv_(create|reg)", "raise the limit of locked memory: --ulimit memlock=-1."),
    )
    remedy = next((remedy for pattern, remedy in known if re.search(pattern, words)), "NCCL_DEBUG=INFO tells more.")
    return f"Last words: {words}. Remedy: {remedy}"


def environment(given: Mapping[str, str], rank: int, world: int) -> dict[str, str]:
    """Return the environment of one rank: the caller's, without what a torchrun around it has set."""
    names = {"MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE"}
    kept = {name: value for name, value in given.items() if name not in names and not name.startswith("TORCHELASTIC")}
    source = str(Path(__file__).resolve().parents[2])
    kept["PYTHONPATH"] = source + (f":{path}" if (path := given.get("PYTHONPATH")) else "")
    kept |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return {"OMP_NUM_THREADS": "1", **kept, "NCCL_DEBUG": "INFO", "PYTHONUNBUFFERED": "1"}


def run(
    backend: str,
    world: int = 2,
    seconds: float = SECONDS,
    settings: Mapping[str, str] | None = None,
    command: Sequence[str] = ("-m", "torchdock.inside.collectives", "--rank"),
    after: float = AFTER,
) -> Outcome:
    """Start the ranks, wait, end what is left. settings: more of the environment, such as NCCL_P2P_DISABLE.

    command: what Python runs as each rank; ours is given the backend and the file by which they meet.
    after: how long the others may live on once one has failed.
    """
    with tempfile.TemporaryDirectory(prefix="torchdock-ranks-") as folder:
        logs = [Path(folder) / f"{rank}.log" for rank in range(world)]
        start, processes = time.monotonic(), []
        try:
            for rank, log in enumerate(logs):
                with log.open("wb") as out:
                    words = [sys.executable, *command, "--backend", backend, "--store", f"{folder}/store"]
                    env = {**environment(os.environ, rank, world), **(settings or {})}
                    processes.append(subprocess.Popen(words, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL))
            first = _wait(processes, start + seconds, after)
            took = time.monotonic() - start
            codes = tuple(process.poll() for process in processes)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()
        texts = tuple(log.read_text(encoding="utf-8", errors="replace") for log in logs)
        timed = re.search(r'^\{"gigabytes": ([0-9.]+)\}$', texts[0], re.MULTILINE)
        return Outcome(codes, first, took, texts, float(timed[1]) if timed else None)


def _wait(processes: Sequence[subprocess.Popen[bytes]], deadline: float, after: float) -> int | None:
    """Wait until all have ended, or a while after one has failed; return the rank that failed first."""
    first = None
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if first is None and any(codes):
            first = next(rank for rank, code in enumerate(codes) if code)
            deadline = min(deadline, time.monotonic() + after)
        if None not in codes:
            break
        time.sleep(0.02)
    return first


def _expect(name: str, seen: object, wanted: object) -> None:
    if seen != wanted:
        raise SystemExit(f"{name} gave {seen}, and not {wanted}")


def work(backend: str, store: str) -> None:
    """Be one rank: do each collective with numbers whose result is known, then time a sum."""
    from datetime import timedelta

    import torch
    from torch import distributed

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    meeting = distributed.FileStore(store, world)
    limit = timedelta(seconds=SECONDS)
    distributed.init_process_group(backend, store=meeting, rank=rank, world_size=world, timeout=limit)
    mine = torch.arange(1000, device=device, dtype=torch.float64) * (rank + 1)
    everybody = sum(range(1, world + 1))

    total = mine.clone()
    distributed.all_reduce(total)
    _expect("all_reduce", total.tolist(), [place * everybody for place in range(1000)])
    highest = mine.clone()
    distributed.all_reduce(highest, op=distributed.ReduceOp.MAX)
    _expect("all_reduce of the maximum", highest.tolist(), [place * world for place in range(1000)])
    told = mine.clone()
    distributed.broadcast(told, src=world - 1)
    _expect("broadcast", told.tolist(), [place * world for place in range(1000)])
    gathered = [torch.empty_like(mine) for _ in range(world)]
    distributed.all_gather(gathered, mine)
    _expect("all_gather", [one[7].item() for one in gathered], [7.0 * (other + 1) for other in range(world)])
    if world > 1:  # round the ring: each sends to the next and hears from the one before
        heard, before, after = torch.empty_like(mine), (rank - 1) % world, (rank + 1) % world
        sending = distributed.P2POp(distributed.isend, mine, after)
        hearing = distributed.P2POp(distributed.irecv, heard, before)
        for request in distributed.batch_isend_irecv([sending, hearing]):
            request.wait()
        _expect("send and receive", heard[7].item(), 7.0 * (before + 1))
    if backend == "nccl":
        _time(world)
    distributed.barrier()
    distributed.destroy_process_group()


def _time(world: int) -> None:
    """Print the bus bandwidth of a sum: 2 (n-1)/n of its bytes pass each rank; the median of ten, after a warm-up."""
    import torch
    from torch import distributed

    buffer = torch.randn(BUFFER, device="cuda")
    for _ in range(3):
        distributed.all_reduce(buffer)
    times = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        distributed.all_reduce(buffer)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
        buffer.normal_()
    median = sorted(times)[len(times) // 2]
    if world > 1 and distributed.get_rank() == 0:
        print(json.dumps({"gigabytes": round(buffer.nbytes * 2 * (world - 1) / world / median / 1e9, 3)}), flush=True)


def proved(backend: str, world: int, seconds: float = SECONDS) -> tuple[Outcome, str | None, str | None]:
    """Run, and once more without P2P where NCCL hung; return the outcome, what is wrong, what is slow."""
    outcome, again = run(backend, world, seconds), None
    if backend == "nccl" and outcome.hung:
        again = run(backend, world, seconds, {"NCCL_P2P_DISABLE": "1"})
    slow = None
    if backend == "nccl":
        slow = tcp_instead(transport("\n".join(outcome.logs)), adapters(), Path("/dev/infiniband").exists())
    return outcome, problem(backend, outcome, again), slow


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and one line on stderr where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m torchdock.inside.collectives",
        description="Prove that the processes of a training reach each other on this machine.",
        epilog="Exit codes: 0 good, 1 a process failed or hung, 2 wrong input.",
    )
    parser.add_argument("--backend", choices=("gloo", "nccl"), help="nccl where there are two GPUs, else gloo")
    parser.add_argument("--processes", type=int, metavar="N", help="2, or one for each GPU")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.processes is not None and not 2 <= args.processes <= 64:
        parser.error("--processes: 2 to 64 can be tried on one machine")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's text."""
    args = arguments(argv)
    if args.rank:
        work(args.backend, args.store)
        return 0
    import torch

    gpus = torch.cuda.device_count()
    backend = args.backend or ("nccl" if gpus >= 2 else "gloo")
    world = args.processes or (gpus if backend == "nccl" else 2)
    if backend == "nccl" and gpus < max(2, world):
        print(
            f"collectives: NCCL needs a GPU for each of {max(2, world)} processes, and there are {gpus}. "
            "Remedy: --backend gloo tries the CPU's way.",
            file=sys.stderr,
        )
        return 2
    outcome, wrong, slow = proved(backend, world)
    for words in (wrong, slow):
        if words:
            print(f"collectives: {words}", file=sys.stderr)
    if wrong:
        return 1
    way = transport("\n".join(outcome.logs))
    more = f" by {', '.join(sorted(way.channels))}" if way.channels else ""
    more += f", {outcome.gigabytes:.1f} GB/s" if outcome.gigabytes else ""
    print(f"good: {world} processes ({backend}) met{more}; {outcome.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
