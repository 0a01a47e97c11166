"""Faults of a machine and of a launch, planted from outside: each is caught by the check that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.planting import checked

# A clock that runs wild: from its start on, ten hours ahead in every second.
JUMPING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);

int clock_gettime(clockid_t clock, struct timespec *result) {
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, result);
    if (code == 0 && clock == CLOCK_REALTIME) {
        struct timespec since;
        real(CLOCK_MONOTONIC, &since);
        result->tv_sec += 3600 * (since.tv_sec * 10 + since.tv_nsec / 100000000);
    }
    return code;
}
"""
# Workers that never look whether their trainer is still there.
DEAF = """
from torch.utils.data._utils import worker
worker.ManagerWatchdog.is_alive = lambda self: True
"""
# A DataLoader that does not end its workers.
FORGETFUL = """
from torch.utils.data import dataloader
dataloader._MultiProcessingDataLoaderIter._shutdown_workers = lambda self: None
"""


def told(failed: dict[str, str], expected: dict[str, str]) -> None:
    """These checks failed and no other; each message has these words, and a remedy."""
    assert set(failed) == set(expected)
    for name, words in expected.items():
        assert words in failed[name]
        assert "Remedy: " in failed[name]


def planted(tmp_path: Path, program: str) -> tuple[str, ...]:
    """Options by which every Python of the container runs a program first."""
    (tmp_path / "sitecustomize.py").write_text(program)
    tmp_path.chmod(0o755)
    return "-v", f"{tmp_path}:/planted:ro", "-e", "PYTHONPATH=/planted"


def test_a_launch_with_dockers_defaults_and_worse(image: dict[str, Any]) -> None:
    """64 MB of shared memory, few open files, and more threads than CPUs, at once."""
    faults = ["--shm-size=64m", "--ulimit=nofile=1024:1024", "--cpus=1", "--env=OMP_NUM_THREADS=4"]
    tests = "shared_memory or over_more_than or open_files or threads_are_not or writable or utf8"
    told(
        checked(image, tests, *faults).failed,
        {
            "test_shared_memory": "/dev/shm has 64 MiB, 1 GiB is the least",
            "test_workers_hand_over_more_than_64_mb": "launch with --shm-size=2g",
            "test_open_files": "1024 open files are allowed",
            "test_threads_are_not_above_the_cpus": "threads on 1 CPUs",
        },
    )


@pytest.mark.slow
def test_a_cache_that_is_read_only(image: dict[str, Any], tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    failed = checked(image, "writable_and_executable or utf8", "-v", f"{tmp_path}:/cache:ro").failed
    # torchvision cannot even be imported then, nor the files of the suite that need it: their failures say so too.
    unread = {name: failed.pop(name) for name in list(failed) if name.endswith(".py")}
    assert any("Read-only file system: '/cache/inductor'" in message for message in unread.values())
    folders = {"TORCH_HOME": "torch", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    told(
        failed,
        {
            f"test_cache_is_writable_and_executable[{variable}]": f"{variable}: /cache/{folder}: Read-only file system"
            for variable, folder in folders.items()
        },
    )


@pytest.mark.slow
def test_a_cache_that_loads_no_code(image: dict[str, Any]) -> None:
    """A file system mounted noexec: writable, and no compiled kernel loads from it."""
    failed = checked(image, "writable_and_executable", "--tmpfs", "/cache:noexec,mode=1777").failed
    names = [f"test_cache_is_writable_and_executable[{name}_CACHE_DIR]" for name in ("TORCHINDUCTOR", "TRITON")]
    told(failed, dict.fromkeys(names, "is mounted noexec: no compiled kernel loads"))


@pytest.mark.slow
def test_no_compiler(image: dict[str, Any]) -> None:
    failed = checked(image, "one_kernel or autocast_chooses", before="PATH=/opt/venv/bin").failed
    told(failed, {"test_one_kernel": "C++ compiler"})


@pytest.mark.slow
def test_workers_that_outlive_a_killed_trainer(image: dict[str, Any], tmp_path: Path) -> None:
    failed = checked(image, "workers_end_with", *planted(tmp_path, DEAF)).failed
    told(failed, {"test_workers_end_with_a_trainer_that_is_killed": "outlived their trainer"})


@pytest.mark.slow
def test_a_leaked_worker(image: dict[str, Any], tmp_path: Path) -> None:
    """Whichever check leaves it behind is the one that fails."""
    failed = checked(image, "order_is_that or workers_end_with_their or jpeg", *planted(tmp_path, FORGETFUL)).failed
    told(
        failed,
        {
            "test_order_is_that_of_no_workers": "This check left processes behind",
            "test_workers_end_with_their_loader": "are left, 2 were started",
        },
    )


@pytest.mark.slow
def test_a_clock_that_jumps(image: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "jumping.c").write_text(JUMPING)
    tmp_path.chmod(0o755)
    compiled = "gcc -shared -fPIC -o /tmp/jumping.so /planted/jumping.c && LD_PRELOAD=/tmp/jumping.so"
    failed = checked(image, "clock or jpeg", "-v", f"{tmp_path}:/planted:ro", before=compiled).failed
    told(
        failed,
        {
            "test_the_clock_does_not_jump": "the clock jumped forward by",
            "test_files_get_the_time_of_the_clock": "a file written now",
        },
    )
