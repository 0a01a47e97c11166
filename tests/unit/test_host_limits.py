"""What one container may take: defaults that leave the host alive, wishes that the machine can give, or a refusal."""

from typing import Any

import pytest
from given import INFO, TableEngine

from torchdock import limits
from torchdock.errors import InputError
from torchdock.launch import NOTHING, Wishes
from torchdock.limits import GIB, Limits

BARE = {name: INFO[name] for name in ("ID", "ServerVersion", "MemTotal", "NCPU")}  # an engine without cgroups


def planned(asked: Wishes = NOTHING, *, open_files: "int | None" = 20_000, **info: Any) -> Limits:
    return limits.plan(TableEngine(info={**INFO, **info}, open_files=open_files), asked)


def test_without_a_wish_a_quarter_of_the_memory_is_left_and_cpus_are_shared() -> None:
    assert planned() == Limits(12 * GIB, True, 6 * GIB, None, 512, 32768, 20_000)


@pytest.mark.parametrize(
    ("total", "asked", "memory", "shm"),
    [
        (16 * GIB, NOTHING, 12 * GIB, 6 * GIB),
        ((4 * GIB) + (3 << 20) + 4097, NOTHING, (3 * GIB) + (2 << 20), (3 * GIB // 2) + (1 << 20)),
        (1 * GIB, NOTHING, 768 << 20, 768 << 20),  # half would be what DataLoader workers die of
        (2 * GIB, NOTHING, 1536 << 20, 1 * GIB),
        (16 * GIB, Wishes(memory=512 << 20), 512 << 20, 512 << 20),
        (16 * GIB, Wishes(memory=16 * GIB), 16 * GIB, 8 * GIB),
        (16 * GIB, Wishes(memory=4 * GIB, shm=4 * GIB), 4 * GIB, 4 * GIB),
        (16 * GIB, Wishes(shm=64 << 20), 12 * GIB, 64 << 20),
        (0, NOTHING, None, 1 * GIB),  # an engine that does not say
        (0, Wishes(memory=2 * GIB), 2 * GIB, 1 * GIB),
    ],
)
def test_shared_memory_is_half_of_the_memory(total: int, asked: Wishes, memory: "int | None", shm: int) -> None:
    found = planned(asked, MemTotal=total)
    assert (found.memory, found.shm) == (memory, shm)


@pytest.mark.parametrize(("limit", "asked"), [(None, None), (20_000, 20_000), (65_536, 65_536), (1 << 30, 65_536)])
def test_as_many_open_files_as_the_engine_can_give(limit: "int | None", asked: "int | None") -> None:
    assert planned(open_files=limit).open_files == asked


def test_an_engine_that_cannot_limit_is_not_asked_to() -> None:
    found = limits.plan(TableEngine(info=BARE), NOTHING)
    assert found == Limits(None, False, 6 * GIB, None, None, None, 20_000)
    assert limits.arguments(found) == [
        *("--oom-score-adj", "500", "--shm-size", str(6 * GIB), "--ulimit", "nofile=20000")
    ]


@pytest.mark.parametrize(
    ("asked", "info", "told"),
    [
        (Wishes(memory=(512 << 20) - 1), {}, "is less than torch needs to start: ask for 512 MiB or more"),
        (Wishes(memory=17 * GIB), {}, "--memory 17.0 GiB: this machine has 16.0 GiB. Ask for less."),
        (Wishes(cpus=8.5), {}, "--cpus 8.5: this machine has 8. Ask for fewer"),
        (Wishes(shm=13 * GIB), {}, "--shm-size 13.0 GiB: /dev/shm counts as memory, and the container gets 12.0 GiB"),
        (Wishes(memory=GIB, shm=2 * GIB), {}, "the container gets 1.0 GiB"),
        (Wishes(memory=GIB), {"MemoryLimit": False}, "--memory: this container engine cannot limit that"),
        (Wishes(cpus=1.0), {"CpuCfsQuota": False}, "--cpus: this container engine cannot limit that"),
    ],
)
def test_what_the_machine_cannot_give_is_told(asked: Wishes, info: "dict[str, Any]", told: str) -> None:
    with pytest.raises(InputError) as refused:
        planned(asked, **info)
    assert told in str(refused.value)


@pytest.mark.parametrize("asked", [Wishes(cpus=8.0), Wishes(memory=16 * GIB), Wishes(memory=512 << 20)])
def test_all_of_the_machine_and_the_least_can_be_asked_for(asked: Wishes) -> None:
    planned(asked)


def test_limits_are_words_of_docker() -> None:
    words = limits.arguments(Limits(GIB, True, GIB, 1.5, 512, 100, 65536))
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--memory": str(GIB),
        "--memory-swap": str(GIB),  # as much with swap as without: none
        "--cpus": "1.5",
        "--cpu-shares": "512",
        "--pids-limit": "100",
        "--oom-score-adj": "500",
        "--shm-size": str(GIB),
        "--ulimit": "nofile=65536",
    }
    assert "--memory-swap" not in limits.arguments(Limits(GIB, False, GIB, None, None, None, None))


@pytest.mark.parametrize(
    ("size", "told"), [(None, "no limit"), (512 << 20, "512 MiB"), (GIB, "1.0 GiB"), (3 << 29, "1.5 GiB")]
)
def test_a_size_in_words(size: "int | None", told: str) -> None:
    assert limits.told(size) == told
