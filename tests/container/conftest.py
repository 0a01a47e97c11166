"""Markers, time limits and equal seeds for the validation suite."""

import subprocess
import time
from collections.abc import Generator, Iterator

import pytest

from torchdock.inside import clock as clocks
from torchdock.inside import devices, limits, one_kernel, processes, suite

# How a check hands something to the report, also where plain pytest runs it.
from torchdock.inside.recorder import NAME, finding, fingerprint, measured  # noqa: F401

AHEAD = pytest.StashKey[subprocess.Popen[str]]()
CLOCK = pytest.StashKey[clocks.Watch]()
# It watches over the others; it waits for what goes on beside them.
LAST = ("test_the_clock_does_not_jump", "test_one_kernel")
LEFT_SECONDS = 5.0  # for what a check ended to be gone


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CLOCK] = clocks.Watch()
    for name, meaning in suite.MARKERS.items():
        config.addinivalue_line("markers", meaning if meaning.startswith(name) else f"{name}: {meaning}")


def pytest_sessionstart(session: pytest.Session) -> None:
    # The compiler works while torch is imported and other checks run: a third of the quick checks' time.
    if not (session.config.option.collectonly or session.config.option.keyword):
        session.config.stash[AHEAD] = one_kernel.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LAST.index(item.name) if item.name in LAST else -1)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (process := config.stash.get(AHEAD, None)) is not None:
        process.kill()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with limits.bounded(item.nodeid, *limits.of(item)):
        result = yield
    item.config.stash[CLOCK].look(item.nodeid)
    return result


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Also under plain pytest: a GPU check without a GPU fails, it never skips.
    if item.get_closest_marker("gpu") and (problem := devices.gpu_problem()):
        pytest.fail(problem, pytrace=False)


@pytest.fixture(autouse=True)
def equal_seeds() -> None:
    """Every check starts from the same random numbers, whatever ran before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A check that leaves a process behind fails, by name: it would hold memory, or a GPU, in the next ones' way."""
    before = processes.here()
    yield
    deadline = time.monotonic() + LEFT_SECONDS
    while (left := processes.left(before, processes.here())) and time.monotonic() < deadline:
        time.sleep(0.02)
    if left:
        told = "; ".join(f"{process.pid} ({process.command[:80]})" for process in left)
        pytest.fail(f"This check left processes behind: {told}. Remedy: end them; see what should have.", pytrace=False)


@pytest.fixture
def clock(pytestconfig: pytest.Config) -> clocks.Watch:
    """The watch over the clock since the beginning."""
    return pytestconfig.stash[CLOCK]


@pytest.fixture
def compiling(pytestconfig: pytest.Config) -> subprocess.Popen[str]:
    """A process that compiles one kernel, under way."""
    return pytestconfig.stash.setdefault(AHEAD, None) or one_kernel.start()


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """The device of the selection: ``cuda`` where a GPU was demanded, else ``cpu``."""
    recorder = pytestconfig.pluginmanager.get_plugin(NAME)
    return "cuda" if recorder is not None and recorder.gpu else "cpu"
