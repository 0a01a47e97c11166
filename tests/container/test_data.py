"""workers pass more than 64 MB through /dev/shm, in order; errors arrive"""

import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

pytestmark = pytest.mark.quick
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


def mapped() -> int:
    """Bytes of torch's shared memory that this process holds mapped."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [line.split()[0].split("-") for line in lines if "/dev/shm/torch_" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


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
