"""`invoke test --gpu`, which cron runs: it demands a GPU, refuses the fake one, ends in time, and is quiet."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.engine.conftest import ROOT, Invoke
from tests.fakes import FakeDriver, FakeGpu, new_uuid


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[FakeDriver]:
    """One GPU that is not there, which the engine of this host hands over."""
    folder = tmp_path / "driver"
    folder.mkdir()
    with FakeDriver(folder, [FakeGpu(new_uuid())]).handed_over() as fake:
        yield fake


def test_without_a_gpu_it_fails_in_one_paragraph(invoke: Invoke) -> None:
    done = invoke("test", "--gpu", "--quiet")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "torchdock: --gpu demands a GPU, and this host has none that can be used: there is no"
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("image")
def test_the_fake_driver_is_refused_by_name_and_version_and_the_report_says_so(
    driver: FakeDriver, invoke: Invoke, leftovers: Callable[[str], Sequence[str]]
) -> None:
    """The launch is real, and so is the release of the GPU at its end."""
    done = invoke("test", "--gpu", "--quick", "--quiet", "--json", env=dict(driver.environment))
    assert done.returncode == 1
    document = json.loads(done.stdout)
    said = "the fake driver of the tests (driver 580.0-fake, device FAKE H200 (torchdock))"
    assert said in " ".join(document["problems"])
    assert (document["passed"], document["skipped"]) == (0, 0)
    report = json.loads(Path(document["passport"]).read_text())
    assert report["fake"] is True
    assert said in " ".join(report["problems"])
    assert "fake driver" in done.stderr  # quiet or not: it failed
    assert leftovers("test") == []


@pytest.mark.slow
@pytest.mark.usefixtures("image")
def test_quiet_is_quiet_where_all_is_good_and_says_all_where_it_is_not(invoke: Invoke) -> None:
    good = invoke("test", "--quick", "--quiet")
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    bad = invoke("test", "--quick", "--quiet", "--time", "1s")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.splitlines()[-1].startswith("torchdock: Not finished within 1s, and ended.")


@pytest.mark.slow
@pytest.mark.usefixtures("image")
def test_an_engine_that_hangs_is_no_reason_to_hang(
    driver: FakeDriver, invoke: Invoke, leftovers: Callable[[str], Sequence[str]]
) -> None:
    """The driver hangs in the container, before any check's own limit could end it."""
    driver.behave(hang=["nvmlSystemGetCudaDriverVersion*"], where="inside")
    began = time.monotonic()
    done = invoke("test", "--gpu", "--time", "20s", env=dict(driver.environment))
    assert done.returncode == 1
    assert time.monotonic() - began < 90
    assert "Traceback" not in done.stderr
    assert leftovers("test") == []


def test_make_hands_the_quiet_one_on() -> None:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # `make test` runs this
    for given, words in (("", "invoke test --gpu"), ("QUIET=1", "invoke test --gpu --quiet")):
        done = subprocess.run(
            ["make", "--dry-run", "test-gpu", *given.split()],
            cwd=ROOT, capture_output=True, text=True, check=True, env=outer,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1].strip().endswith(words)
