"""Where libraries count CPUs, at the start of every Python of the environment: cheap, and pinning nobody."""

import os
import subprocess
import sys
import types

import pytest
from given import ROOT

from torchdock.inside import startup

ALL = set(range(4, 68))


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """An operating system with 64 CPUs that this process may use; records what it is pinned to."""
    given = types.SimpleNamespace(affinity=ALL, getpid=lambda: 7, environ={})
    given.sched_getaffinity = lambda pid: given.affinity if pid in (0, 7) else ALL
    given.sched_setaffinity = lambda pid, mask: setattr(given, "affinity", set(mask))
    monkeypatch.setattr(startup, "os", given)
    return given


@pytest.mark.parametrize(("quota", "count"), [("2", 2), ("1", 1), ("63", 63), ("64", 64), ("128", 64)])
def test_the_affinity_is_told_as_the_quota(system: types.SimpleNamespace, quota: str, count: int) -> None:
    startup.follow(quota)
    assert system.sched_getaffinity(0) == system.sched_getaffinity(7) == set(sorted(ALL)[:count])
    assert system.sched_getaffinity(8) == ALL  # another process's
    assert system.affinity == ALL  # nobody is pinned


@pytest.mark.parametrize("quota", ["", "0", "-1", "default", "1.5", "²", "two"])
def test_what_is_no_number_changes_nothing(system: types.SimpleNamespace, quota: str) -> None:
    before = system.sched_getaffinity
    startup.follow(quota)
    assert system.sched_getaffinity is before


def test_pinning_works_and_what_was_told_puts_everything_back(system: types.SimpleNamespace) -> None:
    startup.follow("2")
    before = system.sched_getaffinity(0)
    system.sched_setaffinity(0, [9])
    assert (system.affinity, system.sched_getaffinity(0)) == ({9}, {9})
    system.sched_setaffinity(0, before)
    assert system.affinity == ALL
    system.sched_setaffinity(0, iter((9, 10, 11)))
    assert (system.affinity, system.sched_getaffinity(0)) == ({9, 10, 11}, {9, 10})


def test_it_loads_nothing_that_python_has_not_loaded_itself() -> None:
    script = (
        "import os, sys; before = set(sys.modules); import torchdock.inside.startup; print(set(sys.modules) - before)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHON_CPU_COUNT": "1"}
    words = [sys.executable, "-S", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert eval(done.stdout) == {"torchdock", "torchdock.inside", "torchdock.inside.startup"}
