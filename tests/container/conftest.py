"""Markers, time limits and equal seeds for the validation suite."""

import subprocess
from collections.abc import Generator

import pytest

from torchdock.inside import devices, limits, one_kernel, suite

AHEAD = pytest.StashKey[subprocess.Popen[str]]()


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in suite.MARKERS.items():
        config.addinivalue_line("markers", meaning if meaning.startswith(name) else f"{name}: {meaning}")


def pytest_sessionstart(session: pytest.Session) -> None:
    # The compiler works while torch is imported and other checks run: a third of the quick checks' time.
    if not (session.config.option.collectonly or session.config.option.keyword):
        session.config.stash[AHEAD] = one_kernel.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.name == "test_one_kernel")  # last: it waits for the process started above


def pytest_unconfigure(config: pytest.Config) -> None:
    if (process := config.stash.get(AHEAD, None)) is not None:
        process.kill()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with limits.bounded(item.nodeid, *limits.of(item)):
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Also under plain pytest: a GPU check without a GPU fails, it never skips.
    if item.get_closest_marker("gpu") and (problem := devices.gpu_problem()):
        pytest.fail(problem, pytrace=False)


@pytest.fixture(autouse=True)
def equal_seeds() -> None:
    """Every check starts from the same random numbers, whatever ran before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def compiling(pytestconfig: pytest.Config) -> subprocess.Popen[str]:
    """A process that compiles one kernel, under way."""
    return pytestconfig.stash.setdefault(AHEAD, None) or one_kernel.start()
