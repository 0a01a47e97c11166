"""workers: over 64 MB through /dev/shm, in order, seeded; their errors and deaths arrive, none outlives its trainer"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from torchdock.inside import processes

MEGABYTE = 1_000_000


class Counted(Dataset):
    """Items of 2 MB, each filled with its own number."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        return torch.full((2 * MEGABYTE // 4,), index, dtype=torch.int32)


class Failing(Counted):
    """Fails at item 3."""

    def __getitem__(self, index):
        if index == 3:
            raise ValueError("item 3 is broken")
        return super().__getitem__(index)


class Dying(Dataset):
    """Its worker is killed at item 5, as by the kernel when memory is short, or leaves as a crashed library does."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 16

    def __getitem__(self, index):
        if index == 5:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(3)
        return index


class Drawn(Dataset):
    """Each item is a random number, as augmentations draw them, and who drew it."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.rand(()).item(), os.getpid()


class Stream(IterableDataset):
    """The numbers below 20, each from one worker."""

    def __iter__(self):
        info = get_worker_info()
        return iter(range(20) if info is None else range(info.id, 20, info.num_workers))


def mapped() -> int:
    """Bytes of torch's shared memory that this process holds mapped."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [line.split()[0].split("-") for line in lines if "/dev/shm/torch_" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


def gone(pids, seconds=30.0):
    """Wait until none of these processes is left; return those that are."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if processes.alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


@pytest.mark.quick
def test_workers_hand_over_more_than_64_mb():
    """Docker's default /dev/shm of 64 MB ends a worker with a bus error; 96 MB at once must pass, in order."""
    shm = os.statvfs("/dev/shm")
    free = shm.f_bavail * shm.f_frsize
    assert free > 128 * MEGABYTE, f"/dev/shm has {free // MEGABYTE} MB free. Remedy: launch with --shm-size=2g."
    batches = list(DataLoader(Counted(), batch_size=6, num_workers=2))
    assert all(batch.is_shared() for batch in batches)
    assert sum(batch.nbytes for batch in batches) == 96 * MEGABYTE
    held = mapped()
    assert held >= 96 * MEGABYTE, f"only {held} bytes of /dev/shm hold the batches"
    assert [batch[:, [0, -1]].tolist() for batch in batches] == [
        [[item, item] for item in range(first, first + 6)] for first in range(0, 48, 6)
    ]


@pytest.mark.quick
def test_order_is_that_of_no_workers():
    """Equal seeds give equal order, however many workers there are."""

    def order(workers: int) -> list[int]:
        loader = DataLoader(
            range(100), batch_size=7, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(5)
        )
        return torch.cat(list(loader)).tolist()

    alone = order(0)
    assert sorted(alone) == list(range(100)) != alone
    assert order(2) == alone


@pytest.mark.parametrize("workers", [1, 3])
def test_order_with_one_and_more_workers(workers):
    """Batches come in the sampler's order, also where one worker is ahead of another; each item once."""
    loader = DataLoader(range(50), batch_size=4, num_workers=workers, prefetch_factor=4)
    assert [batch.tolist() for batch in loader] == [list(range(50))[first : first + 4] for first in range(0, 50, 4)]
    assert len(loader) == 13


def test_random_numbers_in_workers_follow_the_seed():
    """Equal seeds give equal augmentations; each worker has its own, and another epoch others."""

    def draw(seed):
        loader = DataLoader(Drawn(), batch_size=3, num_workers=2, generator=torch.Generator().manual_seed(seed))
        epochs = [
            [(value, pid) for values, pids in loader for value, pid in zip(values.tolist(), pids.tolist(), strict=True)]
            for _ in range(2)
        ]
        assert all(len({pid for _, pid in epoch}) == 2 for epoch in epochs)
        return [[value for value, _ in epoch] for epoch in epochs]

    first, second = draw(7)
    assert draw(7) == [first, second]
    assert draw(8)[0] != first
    assert len({*first, *second}) == 48, "two workers, or two epochs, drew the same numbers"


def test_a_stream_is_shared_out():
    """An IterableDataset sees which worker it is in: each item comes once."""
    assert sorted(torch.cat(list(DataLoader(Stream(), batch_size=4, num_workers=2))).tolist()) == list(range(20))


def test_persistent_workers_are_the_same_in_every_epoch():
    """They start once; without persistence, once an epoch."""

    def workers(persistent):
        loader = DataLoader(Drawn(), batch_size=6, num_workers=2, persistent_workers=persistent)
        seen = [{pid for _, pids in loader for pid in pids.tolist()} for _ in range(2)]
        if persistent:
            loader._iterator._shutdown_workers()
        return seen

    first, second = workers(True)
    assert first == second and len(first) == 2
    first, second = workers(False)
    assert not first & second


@pytest.mark.quick
def test_a_failing_worker_says_why():
    """The worker's own error reaches the loop: its type, its words and which worker it was."""
    batches = iter(DataLoader(Failing(), batch_size=2, num_workers=2))
    try:
        with pytest.raises(ValueError, match="item 3 is broken") as caught:
            list(batches)
    finally:
        # Left to the garbage collector, the workers would hold up some later check for 5 s each.
        batches._shutdown_workers()
    assert "DataLoader worker process 1" in str(caught.value)


@pytest.mark.limit(60)
@pytest.mark.parametrize("how", ["killed", "left"])
def test_a_worker_that_dies_ends_the_loop(how):
    """Without a word of its own: the loop raises and says which worker is gone; it never waits for it forever."""
    # Lists, no tensors: fetching a tensor's file from a worker that has just died fails in the socket's words instead.
    batches = iter(DataLoader(Dying(how), batch_size=2, num_workers=2, collate_fn=list))
    dead = batches._workers[0].pid  # it gets items 0, 1, 4, 5
    try:
        # In the one way or the other, by whether the signal or the empty queue is noticed first.
        with pytest.raises(
            RuntimeError, match=r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)"
        ) as caught:
            list(batches)
    finally:
        batches._shutdown_workers()
    assert str(dead) in str(caught.value)


def test_workers_end_with_their_loader():
    """A loop that is left early, as by an error in the training step, leaves no process behind."""
    batches = iter(DataLoader(Drawn(), batch_size=2, num_workers=2, persistent_workers=True))
    pids = [worker.pid for worker in batches._workers]
    next(batches)
    assert all(processes.alive(pid) for pid in pids)
    del batches
    left = gone(pids)
    assert not left, (
        f"DataLoader workers {left} are left, {len(pids)} were started. Remedy: look at what holds them (py-spy)."
    )


TRAINER = """
import os, sys
from torch.utils.data import DataLoader
from test_data import Drawn
batches = iter(DataLoader(Drawn(), batch_size=2, num_workers=2))
for _ in range(2):  # one from each: a worker learns at its start whose it is, and one that never started would not
    next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.limit(60)
def test_workers_end_with_a_trainer_that_is_killed(tmp_path):
    """SIGKILL, or the kernel short of memory: workers that went on would hold memory, and the GPU, for nobody."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    output = tmp_path / "output"  # no pipe: workers that live on would hold it open, and this check with it
    with output.open("w") as file:
        code = subprocess.run([sys.executable, "-c", TRAINER], env=environment, stdout=file, stderr=file).returncode
    assert code == -signal.SIGKILL, output.read_text()
    pids = [int(word) for word in output.read_text().split()]
    assert len(pids) == 2
    left = gone(pids)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, (
        f"DataLoader workers {left} outlived their trainer, which was killed. Remedy: end them (kill), and launch with "
        "an init (--init) that ends with the container's command."
    )


@pytest.mark.gpu
def test_pinned_batches():
    """pin_memory=True: batches lie in pinned memory, so that a copy goes on beside the kernels; values as unpinned."""
    loader = DataLoader(Counted(), batch_size=6, num_workers=2, pin_memory=True)
    for first, batch in zip(range(0, 48, 6), loader, strict=True):
        assert batch.is_pinned()
        there = batch.to("cuda", non_blocking=True)
        assert there[:, 0].tolist() == list(range(first, first + 6))
        assert torch.equal(there.cpu(), batch)


@pytest.mark.gpu
def test_a_pinned_copy_does_not_wait():
    """While the GPU is busy, a copy from pinned memory returns at once; the same from pageable memory would not."""
    pinned = torch.randn(1 << 24).pin_memory()
    there = torch.empty_like(pinned, device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(int(5e8))  # a quarter of a second or more, whatever the clock
    there.copy_(pinned, non_blocking=True)
    assert not torch.cuda.current_stream().query(), "the copy waited for the kernel before it"
    torch.cuda.synchronize()
    assert torch.equal(there.cpu(), pinned)
