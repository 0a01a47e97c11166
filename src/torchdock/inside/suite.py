"""The suite's rules, without the suite: what is selected, what counts as good, and how it is told. Pure."""

from __future__ import annotations

import hashlib
import re
import signal
import struct
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

# The file beside the checks that says how many there are: one lost, or silently skipped, is a failure with a name.
COMMITTED = "committed.txt"
# What a check needs besides torch. `select` is told which of these are there; checks marked with another do not run.
NEEDS = ("gpu", "gpus", "launched", "devel", "image")

# What the image has and another environment with torch may lack: there, what needs it is left out, and it is told.
OPTIONAL = {
    "torchvision": "torchvision",
    "PIL": "Pillow",
    "pynvml": "nvidia-ml-py",
    "tensorboard": "tensorboard",
    "expecttest": "expecttest",
}  # by module, what is installed for it

# How check tells recorder, in pytest's process, where to write events and whether a GPU is demanded.
EVENTS = "TORCHDOCK_CHECK_EVENTS"
GPU = "TORCHDOCK_CHECK_GPU"
# How check tells the checks of speed the share of a GPU's peak that they demand.
MIN_SHARE = "TORCHDOCK_CHECK_MIN_SHARE"

MARKERS = {
    "quick": "among the few that `make up` runs",
    "gpu": "needs a GPU; without one it fails",
    "gpus": "needs two GPUs, beside the marker gpu; with one it does not run",
    "launched": "only where torchdock launched the container",
    "devel": "needs the compiler of the devel image; without it it fails",
    "image": "what torchdock's image alone promises; in another environment it does not run",
    "limit": "limit(seconds, grace=30): its own time limit",
}


@dataclass(frozen=True)
class Selection:
    """Which checks run.

    name: ``default``, ``quick``, ``gpu`` or ``quick-gpu``; ``-devel`` is added where the compiler's are among them.
    markers: pytest's -m expression. committed: {topic: checks that must have run}. expression: the user's -k.
    without: topics whose files are not even read.
    """

    name: str
    markers: str
    gpu: bool
    committed: Mapping[str, int]
    expression: str | None = None
    without: tuple[str, ...] = ()


# {topic: {markers of a check: how many have just these}}; markers are those of NEEDS, and ``quick``.
Counts = Mapping[str, Mapping[frozenset[str], int]]


def read_counts(text: str) -> dict[str, dict[frozenset[str], int]]:
    """Return the counts of a text with a line a topic, such as ``compile: plain 2, quick 1, quick+gpu 3``.

    ``plain`` stands for no marker. Raises ValueError for a line that is none, and for a topic that has two (which a
    merge may leave behind).
    """
    found: dict[str, dict[frozenset[str], int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        topic, colon, rest = line.partition("#")[0].partition(":")
        if not topic.strip():
            continue
        counts = {}
        for part in rest.split(","):
            markers, _, count = part.strip().partition(" ")
            kinds = frozenset(markers.split("+")) - {"plain"}
            if not colon or not count.isdecimal() or kinds - {"quick", *NEEDS} or kinds in counts:
                raise ValueError(f"{COMMITTED}: line {number} says no number of checks: {line!r}")
            counts[kinds] = int(count)
        if topic.strip() in found:
            raise ValueError(f"{COMMITTED}: line {number} is a second one for {topic.strip()}: one must go")
        found[topic.strip()] = counts
    return found


def write_counts(counts: Counts) -> str:
    """Return the lines that ``read_counts`` reads, sorted by topic."""
    lines = []
    for topic, kinds in sorted(counts.items()):
        named = {"+".join(one for one in ("quick", *NEEDS) if one in kind) or "plain": n for kind, n in kinds.items()}
        lines.append(f"{topic}: {', '.join(f'{name} {number}' for name, number in sorted(named.items()))}\n")
    return "".join(lines)


def select(
    quick: bool, has: Collection[str], counts: Counts, expression: str | None = None, without: Sequence[str] = ()
) -> Selection:
    """Return the selection of the options. has: those of NEEDS that are there. counts: of all checks.

    The compiler's checks (``devel``) are also among the quick ones.
    """
    devel = "devel" in has
    terms = ["(quick or devel)" if devel else "quick"] if quick else []
    terms += [f"not {need}" for need in NEEDS if need not in has]
    name = "-".join(word for word in ("quick" * quick, "gpu" * ("gpu" in has)) if word) or "default"

    def runs(kind: frozenset[str]) -> bool:
        return kind - {"quick"} <= set(has) and (not quick or "quick" in kind or "devel" in kind)

    sums = {
        topic: sum(n for kind, n in kinds.items() if runs(kind))
        for topic, kinds in counts.items()
        if topic not in without
    }
    committed = {topic: number for topic, number in sums.items() if number}
    name += "-devel" * devel + "".join(f" without {topic}" for topic in without)
    return Selection(name, " and ".join(terms), "gpu" in has, committed, expression, tuple(without))


def pytest_arguments(selection: Selection, suite: str, junit: str | None) -> list[str]:
    """Return pytest's arguments: only our configuration and plugins, whatever the caller's workspace holds."""
    arguments = ["-c", "/dev/null", f"--rootdir={suite}", f"--confcutdir={suite}", suite]
    # pytest's own faulthandler plugin would cancel our time limits whenever a test fails.
    for plugin in ("no:cacheprovider", "no:faulthandler", "torchdock.inside.recorder"):
        arguments += ["-p", plugin]
    arguments += ["--strict-markers", "-o", "xfail_strict=true", "-o", "junit_family=xunit2"]
    arguments += ["--continue-on-collection-errors", "--import-mode=importlib", "--tb=long", "-m", selection.markers]
    arguments += [f"--ignore={suite}/test_{topic}.py" for topic in selection.without]
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
        return topic_of(self.id)


def topic_of(id: str) -> str:
    """Return the topic of a check, or of a file."""
    return id.partition("::")[0].removesuffix(".py").rpartition("/")[2].removeprefix("test_")


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


SEVERITIES = ("note", "error")


@dataclass(frozen=True)
class Finding:
    """What a check saw that is no failure of this environment, and that a person should know all the same.

    check: the id of the check that found it, or a topic. severity: ``note`` (works, less well than it could) or
    ``error`` (something is broken that these checks do not depend on). subject: what was examined, in a word or two.
    seen, meaning, remedy: a sentence each; the remedy may be a command.
    """

    check: str
    severity: str
    subject: str
    seen: str
    meaning: str
    remedy: str

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"{self.severity!r} is no severity: expected {' or '.join(SEVERITIES)}")
        if empty := [name for name, value in vars(self).items() if not str(value).strip()]:
            raise ValueError(f"a finding without {' and '.join(empty)} helps nobody")


@dataclass(frozen=True)
class Number:
    """What a check measured. value: finite. details: what it was measured on, how; JSON values."""

    check: str
    name: str
    value: float
    unit: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Fingerprint:
    """What must be the same to the bit wherever this is run in the same way: see ``digest``."""

    check: str
    name: str
    sha256: str
    details: Mapping[str, Any]


def digest(*parts: bytes | str | Iterable[float]) -> str:
    """Return the SHA-256, in hex, of these parts in their order: bytes, text, or numbers as little-endian float64."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        packed = data if isinstance(data, bytes) else b"".join(struct.pack("<d", float(value)) for value in data)
        whole.update(len(packed).to_bytes(8, "little") + packed)
    return whole.hexdigest()


@dataclass
class Tally:
    """What the events of pytest's process add up to. Events are the dicts that ``recorder`` writes."""

    words: dict[str, str] = field(default_factory=dict)  # topic -> what its checks prove
    planned: list[str] = field(default_factory=list)
    counts: dict[str, dict[frozenset[str], int]] = field(default_factory=dict)  # of the planned ones
    checks: dict[str, Check] = field(default_factory=dict)
    running: str | None = None
    finished: bool = False
    refused: str | None = None
    device: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # id of a check or a whole file -> package it lacks
    findings: list[Finding] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    fingerprints: list[Fingerprint] = field(default_factory=list)

    def take(self, event: Mapping[str, Any]) -> None:
        """Add one event. Unknown kinds are left aside."""
        kind = event.get("event")
        if kind == "facts":
            self.device, self.versions = event["device"], dict(event["versions"])
            self.environment = dict(event["environment"])
        elif kind == "refused":
            self.refused = event["message"]
        elif kind == "collected":
            self.planned, self.words = list(event["ids"]), dict(event["words"])
            for id, markers in zip(self.planned, event["markers"], strict=True):
                kinds = self.counts.setdefault(topic_of(id), {})
                kinds[frozenset(markers)] = kinds.get(frozenset(markers), 0) + 1
        elif kind in ("start", "reading"):
            self.running = event["id"]
        elif kind == "end":
            check = Check(event["id"], event["outcome"], round(float(event["seconds"]), 3), event["message"])
            self.checks[check.id] = check
            self.running = None
        elif kind == "read":
            self.running = None
        elif kind == "finished":
            self.finished = True
        elif kind == "absent":
            self.absent[event["id"]] = event["package"]
            self.running = None
        elif kind in ("finding", "number", "fingerprint"):
            fields = {name: value for name, value in event.items() if name != "event"}
            if kind == "finding":
                self.findings.append(Finding(**fields))
            elif kind == "number":
                self.numbers.append(Number(**fields))
            else:
                self.fingerprints.append(Fingerprint(**fields))

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
        when = (
            " after its last check: a thread or a child of some check holds it up"
            if tally.finished and code < 0
            else ""
        )
        problems.append(f"pytest's process did not end well ({ended(code)}){when}. Its last words: {last_words(log)}")
    skipped = outcomes.count("skipped")
    if selection.gpu and skipped:
        problems.append(f"{skipped} checks skipped. With --gpu a skip is a failure: nothing was proved there.")
    lost = [words for topic, words in missing(selection, tally).items() if not excused(topic, tally)]
    if lost:
        problems.append(
            f"Fewer checks ran than are committed for the selection {selection.name}: {', '.join(lost)}. A check that "
            "does not run proves nothing. Remedy: restore the missing test files, look for what ended the run early, "
            f"or, where a check was removed on purpose, change its topic's line in tests/container/{COMMITTED}."
        )
    return problems


def missing(selection: Selection, tally: Tally) -> dict[str, str]:
    """Return {topic: "vision 3 of 7"} where fewer checks ran than are committed; none where the user chose them."""
    if selection.expression is not None:
        return {}
    ran = Counter(check.topic for check in tally.checks.values() if check.outcome != "skipped")
    committed = selection.committed.items()
    return {topic: f"{topic} {ran[topic]} of {number}" for topic, number in committed if ran[topic] < number}


def excused(topic: str, tally: Tally) -> bool:
    """True where fewer checks of a topic are no failure: the environment is not the image, whose versions they count.

    It lacks a package that the topic needs, or has another torch, whose operators may be others. A topic of which
    nothing ran and nothing was left out is lost there too, and so are checks that a crash kept from running.
    """
    early = set(tally.planned) - set(tally.checks) - set(tally.absent)
    if tally.environment.get("image", True) or early:
        return False
    ran = any(check.topic == topic for check in tally.checks.values())
    return ran or topic in {topic_of(id) for id in tally.absent}


def strangers(selection: Selection, tally: Tally) -> list[Finding]:
    """Return what another environment has not proved, for want of a package or as its versions are others."""
    found = []
    for package in dict.fromkeys(tally.absent.values()):
        topics = sorted({topic_of(id) for id, lacking in tally.absent.items() if lacking == package})
        topics = [topic for topic in topics if topic in selection.committed]
        name = OPTIONAL.get(package, package)
        seen = f"{name} is not installed here, so checks were left out of: {', '.join(topics)}."
        remedy = f"install {name} as it fits this torch, or use torchdock's image."
        if topics:
            found.append(Finding(topics[0], "note", name, seen, "Nothing was proved of them.", remedy))
    told = {topic_of(id) for id in tally.absent}
    lost = {topic: words for topic, words in missing(selection, tally).items() if excused(topic, tally)}
    fewer = [words for topic, words in lost.items() if topic not in told]
    if fewer:
        seen = f"Fewer checks ran than in the image: {', '.join(fewer)}."
        remedy = "none, if these versions are meant; else use torchdock's image."
        found.append(Finding("versions", "note", "counts", seen, "Other versions have other checks.", remedy))
    return found


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
    environment: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    numbers: tuple[Number, ...] = ()
    fingerprints: tuple[Fingerprint, ...] = ()

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
            "committed": sum(self.selection.committed.values()),
            "device": self.device,
            "versions": dict(self.versions),
            "variant": self.variant,
            "problems": list(self.problems),
            "findings": [vars(one) for one in self.findings],
            "numbers": [vars(one) for one in self.numbers],
            "fingerprints": [vars(one) for one in self.fingerprints],
            "checks": [vars(one) for one in self.checks],
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
    """Return all failures and findings, a paragraph each, and the line with the totals."""
    lines = []
    alike: dict[str, list[str]] = {}  # one cause can keep every file from being read: it is told once
    for check in result.checks:
        if check.outcome == "failed":
            alike.setdefault(check.message, []).append(check.id)
    for message, ids in alike.items():
        lines += ["", paint(textwrap.fill(f"FAILED {', '.join(ids)}", width, subsequent_indent="  "), RED, color)]
        for line in message.splitlines():
            lines.append(textwrap.fill(line, width, initial_indent="  ", subsequent_indent="  "))
    for problem in result.problems:
        lines += [
            "",
            paint("FAILED", RED, color),
            textwrap.fill(problem, width, initial_indent="  ", subsequent_indent="  "),
        ]
    for finding in result.findings:
        mark = paint(f"{finding.severity:6}", RED if finding.severity == "error" else YELLOW, color)
        text = f"{finding.subject}: {finding.seen} {finding.meaning} Remedy: {finding.remedy}"
        told = textwrap.fill(text, width, initial_indent=" " * 8, subsequent_indent="  ")
        lines += ["", f"{mark}  {told.lstrip()}"]
    counts = ", ".join(f"{result.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))
    verdict = paint("good", GREEN, color) if result.good else paint("FAILED", RED, color)
    return "\n".join([*lines, "", f"{verdict}: {counts} in {result.seconds:.1f} s"])
