"""A pytest plugin: writes what happens, as it happens, one JSON object a line.

``check`` runs pytest in a process of its own and reads these lines, so that a crash or a hang still has a name.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from torchdock.inside import devices, limits, passport, suite, versions

NAME = "torchdock-recorder"


def pytest_configure(config: pytest.Config) -> None:
    """Start recording where ``check`` asked for it; the variables are not passed on to what tests start."""
    path, gpu = os.environ.pop(suite.EVENTS, None), os.environ.pop(suite.GPU, "") == "1"
    if path:
        config.pluginmanager.register(Recorder(path, gpu), NAME)


@pytest.fixture  # type: ignore[untyped-decorator]
def finding(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``finding(severity, subject, seen=…, meaning=…, remedy=…)``: reported, and no failure; see suite.Finding."""

    def tell(severity: str, subject: str, *, seen: str, meaning: str, remedy: str) -> None:
        _tell(request, "finding", suite.Finding(request.node.nodeid, severity, subject, seen, meaning, remedy))

    return tell


@pytest.fixture  # type: ignore[untyped-decorator]
def measured(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``measured(name, value, unit, **details)``: a number for the report. Raises ValueError for NaN and infinity."""

    def tell(name: str, value: float, unit: str, **details: Any) -> None:
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}: nothing was measured")
        _tell(request, "number", suite.Number(request.node.nodeid, name, float(value), unit, details))

    return tell


@pytest.fixture  # type: ignore[untyped-decorator]
def fingerprint(request: pytest.FixtureRequest) -> Callable[..., str]:
    """``fingerprint(name, *parts, **details)``: the digest of results that must be the same to the bit, also returned.

    parts: bytes (a tensor's ``.cpu().numpy().tobytes()``), text, or lists of numbers; see suite.digest.
    """

    def tell(name: str, *parts: bytes | str | Iterable[float], **details: Any) -> str:
        sha256 = suite.digest(*parts)
        _tell(request, "fingerprint", suite.Fingerprint(request.node.nodeid, name, sha256, details))
        return sha256

    return tell


def _tell(request: pytest.FixtureRequest, kind: str, what: Any) -> None:
    """Write it at once, so that it outlives a crash; under plain pytest it stands in a JUnit report alone."""
    fields = vars(what)
    text = json.dumps(fields, allow_nan=False)  # what is no JSON value fails its check, and no other
    request.node.user_properties.append((kind, text))
    if (recorder := request.config.pluginmanager.get_plugin(NAME)) is not None:
        recorder.write(kind, **fields)


class Recorder:
    """Hooks that write events; their kinds and fields are those that ``suite.Tally`` takes."""

    def __init__(self, path: str, gpu: bool) -> None:
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115  (open as long as the process lives)
        self.gpu = gpu
        self._item: pytest.Item | None = None
        self._phases: list[pytest.TestReport] = []
        self._absent: str | None = None
        self._image = versions.in_image()

    def _lacks(self, error: str) -> str | None:
        """The package without which this went wrong, where an environment may lack it: in the image nothing may."""
        found = re.search(r"ModuleNotFoundError: No module named '(\w+)", error)
        return found[1] if found and found[1] in suite.OPTIONAL and not self._image else None

    def write(self, event: str, **fields: Any) -> None:
        """Write one event."""
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()

    def pytest_sessionstart(self) -> None:
        """Demand the GPU before anything else, then say what is here."""
        try:
            problem = devices.gpu_problem() if self.gpu else None
            device = devices.describe(self.gpu) if problem is None else None
        except Exception as error:  # torch itself is broken: every check will fail and say so
            problem, device = (f"A GPU is demanded, but torch fails: {error}" if self.gpu else None), None
        environment = passport.gather(Path(__file__).resolve().parents[3])
        self.write("facts", device=device, versions=devices.versions(), environment=environment)
        if problem:
            self.write("refused", message=problem)
            pytest.exit(problem, returncode=1)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write the checks that will run and each topic's first line of words."""
        words, kinds = {}, {"quick", *suite.NEEDS}
        for item in session.items:
            topic = suite.Check(item.nodeid, "", 0).topic
            words[topic] = _first_line(getattr(getattr(item, "module", None), "__doc__", None))
        markers = [sorted({marker.name for marker in item.iter_markers()} & kinds) for item in session.items]
        self.write("collected", ids=[item.nodeid for item in session.items], words=words, markers=markers)

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        """Write which file is read: an import may hang too."""
        if isinstance(collector, pytest.Module):
            self.write("reading", id=collector.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported is a failed check, not a smaller suite."""
        self.write("read")
        if report.failed:
            told = str(report.longrepr).strip().splitlines()
            crash = [line[1:].strip() for line in told if line.startswith("E ")] or told
            message = suite.paragraph("".join(crash[-1:]), "The file of checks cannot be read.", suite.DEFAULT_REMEDY)
            self.write("end", id=report.nodeid, outcome="failed", seconds=0.0, message=message)

    @pytest.hookimpl(wrapper=True)  # type: ignore[untyped-decorator]
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, Any, Any]:
        """A file whose packages another environment lacks is left out there, and it is told."""
        report = yield
        if report.failed and (package := self._lacks(str(report.longrepr))):
            self.write("absent", id=collector.nodeid, package=package)
            report.outcome, report.longrepr, report.result = "passed", None, []
        return report

    @pytest.hookimpl(wrapper=True)  # type: ignore[untyped-decorator]
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """So is a check that imports such a package itself."""
        report = yield
        if report.failed and call.excinfo is not None and (package := self._lacks(call.excinfo.exconly())):
            self._absent = package
            report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"{package} is not installed")
        return report

    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Write which check starts, and how long it may take before somebody must step in."""
        self._item, self._phases, self._absent = item, [], None
        self.write("start", id=item.nodeid, limit=sum(limits.of(item)))

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
        if outcome == "skipped" and self._absent is not None:
            return self.write("absent", id=nodeid, package=self._absent)
        seconds = sum(report.duration for report in self._phases)
        self.write("end", id=nodeid, outcome=outcome, seconds=seconds, message=message)

    @pytest.hookimpl(trylast=True)  # type: ignore[untyped-decorator]
    def pytest_sessionfinish(self) -> None:
        """Write that all is done: what is left is the end of the process, which a thread or a child may hold up."""
        self.write("finished")


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0].strip()
