"""A pytest plugin: writes what happens, as it happens, one JSON object a line.

``check`` runs pytest in a process of its own and reads these lines, so that a crash or a hang still has a name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from torchdock.inside import devices, limits, suite


def pytest_configure(config: pytest.Config) -> None:
    """Start recording where ``check`` asked for it; the variables are not passed on to what tests start."""
    path, gpu = os.environ.pop(suite.EVENTS, None), os.environ.pop(suite.GPU, "") == "1"
    if path:
        config.pluginmanager.register(Recorder(path, gpu), "torchdock-recorder")


class Recorder:
    """Hooks that write events; their kinds and fields are those that ``suite.Tally`` takes."""

    def __init__(self, path: str, gpu: bool) -> None:
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115  (open as long as the process lives)
        self._gpu = gpu
        self._item: pytest.Item | None = None
        self._phases: list[pytest.TestReport] = []

    def _write(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()

    def pytest_sessionstart(self) -> None:
        """Demand the GPU before anything else, then say what is here."""
        try:
            problem = devices.gpu_problem() if self._gpu else None
            device = devices.describe(self._gpu) if problem is None else None
        except Exception as error:  # torch itself is broken: every check will fail and say so
            problem, device = (f"A GPU is demanded, but torch fails: {error}" if self._gpu else None), None
        self._write("facts", device=device, versions=devices.versions())
        if problem:
            self._write("refused", message=problem)
            pytest.exit(problem, returncode=1)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write the checks that will run and each topic's first line of words."""
        words = {}
        for item in session.items:
            topic = suite.Check(item.nodeid, "", 0).topic
            words[topic] = _first_line(getattr(getattr(item, "module", None), "__doc__", None))
        self._write("collected", ids=[item.nodeid for item in session.items], words=words)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported is a failed check, not a smaller suite."""
        if report.failed:
            told = str(report.longrepr).strip().splitlines()
            crash = [line[1:].strip() for line in told if line.startswith("E ")] or told
            message = suite.paragraph("".join(crash[-1:]), f"{report.nodeid} cannot be read.", suite.DEFAULT_REMEDY)
            self._write("end", id=report.nodeid, outcome="failed", seconds=0.0, message=message)

    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Write which check starts, and how long it may take before somebody must step in."""
        self._item, self._phases = item, []
        self._write("start", id=item.nodeid, limit=sum(limits.of(item)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the report of each phase: setup, call, teardown."""
        self._phases.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Write how the check ended: one failed phase fails it."""
        bad = next((report for report in self._phases if report.failed), None)
        skipped = next((report for report in self._phases if report.skipped), None)
        outcome, message = "passed", ""
        if bad is not None:
            crash = getattr(getattr(bad.longrepr, "reprcrash", None), "message", None) or str(bad.longrepr)
            meaning = getattr(getattr(self._item, "function", None), "__doc__", None) or ""
            remedy = getattr(getattr(self._item, "module", None), "REMEDY", suite.DEFAULT_REMEDY)
            outcome, message = "failed", suite.paragraph(crash, meaning, remedy)
        elif skipped is not None:
            reason = skipped.longrepr[2] if isinstance(skipped.longrepr, tuple) else getattr(skipped, "wasxfail", "")
            outcome, message = "skipped", str(reason)
        seconds = sum(report.duration for report in self._phases)
        self._write("end", id=nodeid, outcome=outcome, seconds=seconds, message=message)


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0].strip()
