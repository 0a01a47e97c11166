"""Prove this environment.

``python -m torchdock.inside.check [--quick] [--gpu] [--devel] [--report DIR] [--json] [-k EXPR]``

Exit codes: 0 good, 1 a check failed (or none could run), 2 wrong input.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from torchdock.inside import suite

ROOT = Path(__file__).resolve().parents[3]
SUITE = ROOT / "tests" / "container"
# Silence outside of checks: imports, collection, the writing of reports. A check's own limit comes on top.
SILENCE = 300.0
MARGIN = 60.0


class WrongInput(Exception):
    """The command line asks for what cannot be; the message is for the user."""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and one line on stderr where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m torchdock.inside.check",
        description="Prove that this PyTorch environment works, on this machine.",
        epilog="Exit codes: 0 good, 1 a check failed, 2 wrong input.",
    )
    parser.add_argument("--quick", action="store_true", help="the few checks that take seconds")
    parser.add_argument("--gpu", action="store_true", help="a GPU is demanded: none, a fake one or a skip is a failure")
    parser.add_argument("--devel", action="store_true", help="also the compiler for CUDA, which the devel image has")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write report.xml (JUnit), summary.json, pytest.log")
    parser.add_argument("--json", action="store_true", help="the summary document on stdout, text on stderr")
    parser.add_argument("-k", dest="expression", metavar="EXPR", help="only checks whose names match (as pytest's -k)")
    return parser.parse_args(argv)


class Run:
    """One run of pytest in a process of its own, followed event by event.

    out: where people read. The process is ended, with all it started, when the run is over in whatever way.
    """

    def __init__(self, selection: suite.Selection, folder: Path, report: Path | None, out: TextIO) -> None:
        self.selection, self.folder, self.report, self.out = selection, folder, report, out
        self.tally = suite.Tally()
        self.color = out.isatty() and not os.environ.get("NO_COLOR")
        self.width = min(shutil.get_terminal_size((110, 24)).columns, 130)
        self.variant = os.environ.get("TORCHDOCK_VARIANT") or None
        self._events, self._log = folder / "events", folder / "pytest.log"
        self._read = 0
        self._deadline = time.monotonic() + SILENCE
        self._shown: set[str] = set()
        self._headed = False

    def run(self, tests: Path = SUITE) -> suite.Result:
        """Run the selected checks of the folder ``tests``; print a line a topic as it ends; return the result.

        Raises WrongInput where -k is no expression or matches nothing.
        """
        start = time.monotonic()
        junit = str(self.report / "report.xml") if self.report else None
        environment = suite.child_environment(os.environ, str(ROOT / "src"))
        environment |= {suite.EVENTS: str(self._events), suite.GPU: "1" if self.selection.gpu else "0"}
        command = [sys.executable, "-m", "pytest", *suite.pytest_arguments(self.selection, str(tests), junit)]
        self._events.touch()
        with self._log.open("wb") as log:
            # From an empty folder: a workspace with a random.py of its own must not become part of the proof.
            process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        try:
            code = self._follow(process)
        finally:
            # Also what a check left behind: its workers share the process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._take()
        output = self._log.read_text(encoding="utf-8", errors="replace")
        if self.selection.expression is not None and (code == 4 or (code == 5 and not self.tally.checks)):
            why = "is no expression" if code == 4 else f"matches no check of the selection {self.selection.name}"
            raise WrongInput(f"-k {self.selection.expression!r} {why}. Names are those of tests/container.")
        self.tally.crash(suite.ended(code), output)
        problems = suite.judge(self.selection, self.tally, code, output)
        self._show(everything=True)
        seconds = round(time.monotonic() - start, 3)
        checks, facts = tuple(self.tally.checks.values()), (self.tally.device, self.tally.versions, self.variant)
        return suite.Result(self.selection, checks, tuple(problems), seconds, *facts)

    def _follow(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the process while reading events; end it where it is silent for longer than its limit."""
        while (code := process.poll()) is None:
            self._take()
            self._show()
            if time.monotonic() > self._deadline:
                os.killpg(process.pid, signal.SIGKILL)
                return process.wait()
            time.sleep(0.05)
        return code

    def _take(self) -> None:
        with self._events.open("rb") as file:
            file.seek(self._read)
            *lines, _ = file.read().split(b"\n")
        for line in lines:
            self._read += len(line) + 1
            event = json.loads(line)
            self._deadline = time.monotonic() + (event["limit"] + MARGIN if event["event"] == "start" else SILENCE)
            self.tally.take(event)

    def _show(self, everything: bool = False) -> None:
        """Print the heading once torch is there, and each topic once its last check has ended."""
        if not self._headed and (self.tally.versions or everything):
            self._headed = True
            self._print(suite.heading(self.selection, self.tally, self.variant) + "\n")
        done = list(self.tally.checks.values())
        left = {suite.Check(id, "", 0).topic for id in self.tally.planned if id not in self.tally.checks}
        for topic in dict.fromkeys(check.topic for check in done):
            if topic not in self._shown and (everything or (topic not in left and self.tally.planned)):
                self._shown.add(topic)
                checks = [check for check in done if check.topic == topic]
                words = self.tally.words.get(topic, "")
                self._print(suite.topic_line(topic, words, checks, self.color, self.width))

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)


def write_report(result: suite.Result, report: Path, log: Path) -> None:
    """Write summary.json and pytest.log, and report.xml where pytest did not live to write it."""
    (report / "summary.json").write_text(json.dumps(result.document(), indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(log, report / "pytest.log")
    if not (report / "report.xml").exists():
        (report / "report.xml").write_text(result.junit(), encoding="utf-8")


def prepare(report: Path) -> Path:
    """Make the report's folder, without an older run's files, and return it absolute. Raises WrongInput."""
    try:
        report.mkdir(parents=True, exist_ok=True)
        for name in ("report.xml", "summary.json", "pytest.log"):
            (report / name).unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=report):
            return report.resolve()
    except OSError as error:
        raise WrongInput(f"--report {report}: {error.strerror}. Name a folder that you may write to.") from error


def _terminate(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the selected checks and return the exit code."""
    args = arguments(argv)
    out = sys.stderr if args.json else sys.stdout
    launched = os.environ.get("TORCHDOCK_LAUNCHED") == "1"
    selection = suite.select(args.quick, args.gpu, launched, args.expression, devel=args.devel)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if not SUITE.is_dir():
            raise WrongInput(f"there is no suite at {SUITE}: run this from a clone or from the image.")
        report = prepare(args.report) if args.report else None
        with tempfile.TemporaryDirectory(prefix="torchdock-check-") as folder:
            run = Run(selection, Path(folder), report, out)
            result = run.run()
            if report:
                write_report(result, report, Path(folder) / "pytest.log")
    except WrongInput as error:
        print(f"check: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("check: interrupted; nothing was left running", file=sys.stderr)
        return 130
    print(suite.closing(result, run.color, run.width), file=out)
    if not result.good and report is None:
        print("Full tracebacks: the same command with --report DIR.", file=out)
    if args.json:
        print(json.dumps(result.document()))
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
