"""The suite's rules, without the suite: what is selected, what counts as good, and how it is told. Pure."""

from __future__ import annotations

import re
import signal
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

# Checks that must have run, by selection: fewer is a failure, so a lost file or a silent skip cannot pass.
# A check added or removed is a number changed here.
COMMITTED = {"quick": 81, "default": 84, "gpu": 96, "quick-gpu": 90}
# So many more where torchdock launched the container (TORCHDOCK_LAUNCHED=1): they check that launch's privileges.
COMMITTED_LAUNCHED = 2
# So many more with --devel, and those among them that need a GPU.
COMMITTED_DEVEL, COMMITTED_DEVEL_GPU = 7, 1

# How check tells recorder, in pytest's process, where to write events and whether a GPU is demanded.
EVENTS = "TORCHDOCK_CHECK_EVENTS"
GPU = "TORCHDOCK_CHECK_GPU"

MARKERS = {
    "quick": "among the few that `make up` runs",
    "gpu": "needs a GPU; without one it fails",
    "launched": "only where torchdock launched the container",
    "devel": "needs the compiler of the devel image; without it it fails",
    "limit": "limit(seconds, grace=30): its own time limit",
}


@dataclass(frozen=True)
class Selection:
    """Which checks run. name: a key of COMMITTED, and ``-devel`` where those are among them.

    markers: pytest's -m expression. expression: the user's -k.
    """

    name: str
    markers: str
    gpu: bool
    committed: int
    expression: str | None = None


def select(quick: bool, gpu: bool, launched: bool, expression: str | None = None, *, devel: bool = False) -> Selection:
    """Return the selection of the options; ``launched`` says whether torchdock launched this container.

    ``devel`` adds the checks of the compiler, also to the quick ones.
    """
    terms = ["(quick or devel)" if devel else "quick"] if quick else []
    terms += [f"not {term}" for term, wanted in (("gpu", gpu), ("launched", launched), ("devel", devel)) if not wanted]
    name = {(False, False): "default", (True, False): "quick", (False, True): "gpu", (True, True): "quick-gpu"}
    chosen = name[quick, gpu]
    committed = COMMITTED[chosen] + (COMMITTED_LAUNCHED if launched else 0)
    if devel:
        chosen, committed = f"{chosen}-devel", committed + COMMITTED_DEVEL + (COMMITTED_DEVEL_GPU if gpu else 0)
    return Selection(chosen, " and ".join(terms), gpu, committed, expression)


def pytest_arguments(selection: Selection, suite: str, junit: str | None) -> list[str]:
    """Return pytest's arguments: only our configuration and plugins, whatever the caller's workspace holds."""
    arguments = ["-c", "/dev/null", f"--rootdir={suite}", f"--confcutdir={suite}", suite]
    # pytest's own faulthandler plugin would cancel our time limits whenever a test fails.
    for plugin in ("no:cacheprovider", "no:faulthandler", "torchdock.inside.recorder"):
        arguments += ["-p", plugin]
    arguments += ["--strict-markers", "-o", "xfail_strict=true", "-o", "junit_family=xunit2"]
    arguments += ["--continue-on-collection-errors", "--import-mode=importlib", "--tb=long", "-m", selection.markers]
    if selection.expression is not None:
        arguments += ["-k", selection.expression]
    if junit is not None:
        arguments.append(f"--junitxml={junit}")
    return arguments


def child_environment(environment: Mapping[str, str], source: str) -> dict[str, str]:
    """Return the environment for pytest's process: the caller's, without what would steer pytest."""
    kept = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    kept["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    kept["PYTHONDONTWRITEBYTECODE"] = "1"  # The suite's folder belongs to the image or to a clone.
    kept["PYTHONFAULTHANDLER"] = "1"
    # A compiler runs beside the checks: threads that spin while they wait would take its core, and theirs from them.
    kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    kept["PYTHONPATH"] = source + (f":{path}" if (path := environment.get("PYTHONPATH")) else "")
    return kept


@dataclass(frozen=True)
class Check:
    """One check's result. outcome: passed, failed or skipped. message: empty, or what, meaning and remedy."""

    id: str
    outcome: str
    seconds: float
    message: str = ""

    @property
    def topic(self) -> str:
        """The file's subject: ``tensors`` of ``test_tensors.py::test_views``."""
        return self.id.partition("::")[0].removesuffix(".py").rpartition("/")[2].removeprefix("test_")


def paragraph(crash: str, meaning: str, remedy: str) -> str:
    """Return a failure in three lines: what was seen, what it means, the remedy.

    crash: pytest's message for the failure; an assertion's own text may carry ``Remedy: …``, which then wins.
    """
    text = re.sub(r"^(AssertionError|Failed): ?", "", crash.strip())
    said = text.partition("\nassert ")[0] if not text.startswith("assert ") else text
    what, _, own = " ".join(said.split()).partition("Remedy: ")
    lines = [textwrap.shorten(what, 600, placeholder=" …") or "It failed without a message."]
    if meaning:
        lines.append(f"Meaning: {' '.join(meaning.split())}")
    lines.append(f"Remedy: {own or remedy}")
    return "\n".join(lines)


DEFAULT_REMEDY = "build the image again (invoke build --no-cache); if it fails again, report it with report.xml."


def ended(code: int) -> str:
    """Return how a process ended, in words, from subprocess's return code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def last_words(log: str) -> str:
    """Return what a log says of its end, on one line: from the last fatal error or time-out, else the last lines."""
    # Python writes it wherever the output stood, so not always at the start of a line.
    fatal = [match.start() for match in re.finditer(r"Fatal Python error|Timeout \(\d", log)]
    lines = [line.strip() for line in log[fatal[-1] if fatal else 0 :].splitlines() if line.strip()]
    # The first frames are where it stuck; those of the suite, which of its lines got there.
    stuck = [line for number, line in enumerate(lines) if number < 5 or "/test_" in line]
    return " | ".join(stuck if fatal else lines[-8:])[:500] or "none"


@dataclass
class Tally:
    """What the events of pytest's process add up to. Events are the dicts that ``recorder`` writes."""

    words: dict[str, str] = field(default_factory=dict)  # topic -> what its checks prove
    planned: list[str] = field(default_factory=list)
    checks: dict[str, Check] = field(default_factory=dict)
    running: str | None = None
    refused: str | None = None
    device: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Add one event. Unknown kinds are left aside."""
        kind = event.get("event")
        if kind == "facts":
            self.device, self.versions = event["device"], dict(event["versions"])
        elif kind == "refused":
            self.refused = event["message"]
        elif kind == "collected":
            self.planned, self.words = list(event["ids"]), dict(event["words"])
        elif kind == "start":
            self.running = event["id"]
        elif kind == "end":
            check = Check(event["id"], event["outcome"], round(float(event["seconds"]), 3), event["message"])
            self.checks[check.id] = check
            self.running = None

    def crash(self, how: str, log: str) -> None:
        """Turn the check that was running into a failure: its process ended, or was ended, underneath it."""
        if self.running is not None:
            what = f"The process ended while this check ran ({how}). Its last words: {last_words(log)}"
            remedy = (
                "a bus error means /dev/shm is too small (--shm-size); SIGKILL means out of memory (--memory); a time "
                "limit means a hang; anything else is a broken library: build the image again."
            )
            self.checks[self.running] = Check(self.running, "failed", 0.0, paragraph(what, "", remedy))
            self.running = None


def judge(selection: Selection, tally: Tally, code: int, log: str) -> list[str]:
    """Return what is wrong beyond failed checks, one paragraph each: lost checks, skips that may not be, crashes.

    code and log: the return code and the output of pytest's process.
    """
    if tally.refused:
        return [tally.refused]
    outcomes = [check.outcome for check in tally.checks.values()]
    problems = []
    if code not in (0, 1) or (code == 1 and "failed" not in outcomes):
        problems.append(f"pytest's process did not end well ({ended(code)}). Its last words: {last_words(log)}")
    skipped = outcomes.count("skipped")
    if selection.gpu and skipped:
        problems.append(f"{skipped} checks skipped. With --gpu a skip is a failure: nothing was proved there.")
    ran = len(outcomes) - skipped
    if selection.expression is None and ran < selection.committed:
        problems.append(
            f"{ran} checks ran, and {selection.committed} are committed for the selection {selection.name}. A check "
            "that does not run proves nothing. Remedy: restore the missing test files, look for what ended the run "
            "early, or, where a check was removed on purpose, change COMMITTED in torchdock/inside/suite.py."
        )
    return problems


@dataclass(frozen=True)
class Result:
    """A whole run. problems: what is wrong beyond failed checks. seconds: from start to end, imports included."""

    selection: Selection
    checks: tuple[Check, ...]
    problems: tuple[str, ...]
    seconds: float
    device: str | None
    versions: Mapping[str, str | None]
    variant: str | None

    def count(self, outcome: str) -> int:
        """Return how many checks had this outcome."""
        return sum(check.outcome == outcome for check in self.checks)

    @property
    def good(self) -> bool:
        """True where every check passed that had to."""
        return not self.problems and not self.count("failed")

    def document(self) -> dict[str, Any]:
        """Return summary.json."""
        return {
            "good": self.good,
            "passed": self.count("passed"),
            "failed": self.count("failed"),
            "skipped": self.count("skipped"),
            "seconds": self.seconds,
            "selection": self.selection.name,
            "expression": self.selection.expression,
            "committed": self.selection.committed,
            "device": self.device,
            "versions": dict(self.versions),
            "variant": self.variant,
            "problems": list(self.problems),
            "checks": [
                {"id": check.id, "outcome": check.outcome, "seconds": check.seconds, "message": check.message}
                for check in self.checks
            ],
        }

    def junit(self) -> str:
        """Return a JUnit document of the run, for when pytest's process died before it wrote its own."""
        cases = [*self.checks, *(Check("torchdock.check", "failed", 0.0, problem) for problem in self.problems)]
        failures, skipped = sum(case.outcome == "failed" for case in cases), self.count("skipped")
        top = ElementTree.Element("testsuites")
        numbers: Any = {"tests": str(len(cases)), "failures": str(failures), "errors": "0", "skipped": str(skipped)}
        group = ElementTree.SubElement(top, "testsuite", name="torchdock", time=str(self.seconds), **numbers)
        for case in cases:
            file, _, name = case.id.rpartition("::")
            node = ElementTree.SubElement(group, "testcase", classname=file, name=name, time=str(case.seconds))
            if case.outcome != "passed":
                tag = "failure" if case.outcome == "failed" else "skipped"
                ElementTree.SubElement(node, tag, message=case.message.partition("\n")[0]).text = case.message
        return ElementTree.tostring(top, encoding="unicode", xml_declaration=True)


GREEN, RED, YELLOW, BOLD = "32", "31", "33", "1"


def paint(text: str, code: str, color: bool) -> str:
    """Return text in a terminal's color, or as it is."""
    return f"\x1b[{code}m{text}\x1b[0m" if color else text


def heading(selection: Selection, tally: Tally, variant: str | None) -> str:
    """Return the first line: what is checked, and where."""
    torch = tally.versions.get("torch")
    parts = (selection.name, variant, torch and f"torch {torch}", tally.device)
    return "torchdock check · " + " · ".join(part for part in parts if part)


def topic_line(topic: str, words: str, checks: Sequence[Check], color: bool = False, width: int = 110) -> str:
    """Return one line: outcome, topic, counts, seconds, and in words what was proved."""
    passed = sum(check.outcome == "passed" for check in checks)
    if any(check.outcome == "failed" for check in checks):
        mark = paint("FAILED", RED, color)
    else:
        mark = paint("ok    ", GREEN, color) if passed == len(checks) else paint("skips ", YELLOW, color)
    seconds = sum(check.seconds for check in checks)
    numbers = f"{topic:<11}{f'{passed}/{len(checks)}':>7}{seconds:7.1f} s  "
    room = max(20, width - len(numbers) - 8)
    return f"{mark}  {numbers}{textwrap.shorten(words, room, placeholder=' …')}"


def closing(result: Result, color: bool = False, width: int = 110) -> str:
    """Return all failures, a paragraph each, and the line with the totals."""
    lines = []
    for check in result.checks:
        if check.outcome == "failed":
            lines += ["", paint(f"FAILED {check.id}", RED, color)]
            for line in check.message.splitlines():
                lines.append(textwrap.fill(line, width, initial_indent="  ", subsequent_indent="  "))
    for problem in result.problems:
        lines += [
            "",
            paint("FAILED", RED, color),
            textwrap.fill(problem, width, initial_indent="  ", subsequent_indent="  "),
        ]
    counts = ", ".join(f"{result.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))
    verdict = paint("good", GREEN, color) if result.good else paint("FAILED", RED, color)
    return "\n".join([*lines, "", f"{verdict}: {counts} in {result.seconds:.1f} s"])
