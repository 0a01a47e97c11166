"""Prove this environment.

``python -m torchdock.inside.check [--quick] [--gpu] [--min-share 0.6] [--devel] [--ops full] [--report DIR] [--json]
[-k EXPR]``

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
from datetime import datetime, timezone
from pathlib import Path
from typing import NoReturn, TextIO

from torchdock.inside import devices, discretion, operators, passport, speed, suite, versions

ROOT = Path(__file__).resolve().parents[3]
SUITE = ROOT / "tests" / "container"
# Seconds of silence that end pytest's process: anywhere; beyond a check's own limit, which that process itself keeps;
# while a file of checks is imported; and at the end, once only the report is to be written.
SILENCE, MARGIN, READING, ENDING = 300.0, 60.0, 120.0, 60.0


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
    parser.add_argument(
        "--ops",
        choices=operators.SAMPLES,
        default="one",
        help="samples of each operator and dtype: one, all (full) or none",
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write report.json (the passport), report.xml (JUnit), pytest.log"
    )
    parser.add_argument("--json", action="store_true", help="the summary document on stdout, text on stderr")
    parser.add_argument("--count", action="store_true", help=f"print what {suite.COMMITTED} should say; nothing runs")
    parser.add_argument(
        "--min-share",
        type=speed.share,
        metavar="SHARE",
        help="with --gpu: a GPU below this share (0.6) of its peak fails",
    )
    parser.add_argument("-k", dest="expression", metavar="EXPR", help="only checks whose names match (as pytest's -k)")
    return parser.parse_args(argv)


class Run:
    """One run of pytest in a process of its own, followed event by event.

    out: where people read. ops: of operators.SAMPLES. The process is ended, with all it started, at the end of the run.
    """

    def __init__(
        self, selection: suite.Selection, folder: Path, report: Path | None, out: TextIO, ops: str = "one"
    ) -> None:
        self.selection, self.folder, self.report, self.out, self.ops = selection, folder, report, out, ops
        self.tally = suite.Tally()
        self.color = out.isatty() and not os.environ.get("NO_COLOR")
        self.width = min(shutil.get_terminal_size((110, 24)).columns, 130)
        self.variant = os.environ.get("TORCHDOCK_VARIANT") or None
        self._events, self._log = folder / "events", folder / "pytest.log"
        self._secrets = discretion.secrets(os.environ)
        self._read = 0
        self._deadline = time.monotonic() + SILENCE
        self._shown: set[str] = set()
        self._headed = False

    def run(self, tests: Path = SUITE, *more: str) -> suite.Result:
        """Run the selected checks of the folder ``tests``; print a line a topic as it ends; return the result.

        more: further arguments for pytest.

        Raises WrongInput where -k is no expression or matches nothing.
        """
        start = time.monotonic()
        junit = str(self.report / "report.xml") if self.report else None
        environment = suite.child_environment(os.environ, str(ROOT / "src"))
        environment |= {suite.EVENTS: str(self._events), suite.GPU: "1" if self.selection.gpu else "0"}
        environment[operators.OPS] = self.ops
        command = [sys.executable, "-m", "pytest", *suite.pytest_arguments(self.selection, str(tests), junit), *more]
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
        for path in (self._log, *([self.report / "report.xml"] if self.report else [])):
            self._clean(path)
        output = self._log.read_text(encoding="utf-8", errors="replace")
        if self.selection.expression is not None and (code == 4 or (code == 5 and not self.tally.checks)):
            why = "is no expression" if code == 4 else f"matches no check of the selection {self.selection.name}"
            raise WrongInput(f"-k {self.selection.expression!r} {why}. Names are those of tests/container.")
        self.tally.crash(suite.ended(code), output)
        problems = suite.judge(self.selection, self.tally, code, output)
        self._show(everything=True)
        seconds = round(time.monotonic() - start, 3)
        tally = self.tally
        return suite.Result(
            self.selection,
            tuple(tally.checks.values()),
            tuple(problems),
            seconds,
            tally.device,
            tally.versions,
            self.variant,
            environment=tally.environment,
            findings=(*tally.findings, *suite.strangers(self.selection, tally)),
            numbers=tuple(tally.numbers),
            fingerprints=tuple(tally.fingerprints),
        )

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
            event = discretion.everywhere(json.loads(line), self._hide)
            limits = {"start": event.get("limit", 0.0) + MARGIN, "reading": READING, "finished": ENDING}
            self._deadline = time.monotonic() + limits.get(event["event"], SILENCE)
            self.tally.take(event)

    def _hide(self, text: str) -> str:
        return discretion.redact(text, self._secrets)

    def _clean(self, path: Path) -> None:
        """Take this environment's secrets out of a file: a traceback shows what functions were called with."""
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            if (clean := self._hide(text)) != text:
                path.write_text(clean, encoding="utf-8")

    def _show(self, everything: bool = False) -> None:
        """Print the heading once torch is there, and each topic once its last check has ended."""
        if not self._headed and (self.tally.versions or everything):
            self._headed = True
            self._print(suite.heading(self.selection, self.tally, self.variant) + "\n")
        done = list(self.tally.checks.values())
        ended = {*self.tally.checks, *self.tally.absent}
        left = {suite.topic_of(id) for id in self.tally.planned if id not in ended}
        for topic in dict.fromkeys(check.topic for check in done):
            if topic not in self._shown and (everything or (topic not in left and self.tally.planned)):
                self._shown.add(topic)
                checks = [check for check in done if check.topic == topic]
                words = self.tally.words.get(topic, "")
                self._print(suite.topic_line(topic, words, checks, self.color, self.width))

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)


def write_report(result: suite.Result, report: Path, log: Path) -> None:
    """Write report.json and pytest.log, and report.xml where pytest did not live to write it."""
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    (report / "report.json").write_text(json.dumps(passport.document(result, made), indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(log, report / "pytest.log")
    if not (report / "report.xml").exists():
        (report / "report.xml").write_text(result.junit(), encoding="utf-8")


def prepare(report: Path) -> Path:
    """Make the report's folder, without an older run's files, and return it absolute. Raises WrongInput."""
    try:
        report.mkdir(parents=True, exist_ok=True)
        for name in ("report.xml", "report.json", "pytest.log"):
            (report / name).unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=report):
            return report.resolve()
    except OSError as error:
        raise WrongInput(f"--report {report}: {error.strerror}. Name a folder that you may write to.") from error


def committed() -> dict[str, dict[frozenset[str], int]]:
    """Return the counts that are written beside the suite. Raises WrongInput where there is no suite, or none."""
    try:
        return suite.read_counts((SUITE / suite.COMMITTED).read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongInput(
            f"{SUITE / suite.COMMITTED}: {error.strerror}. Run this from a clone or from the image."
        ) from error
    except ValueError as error:
        raise WrongInput(f"{error}. --count prints what it should say.") from error


def count(tests: Path = SUITE) -> str:
    """Return the text of suite.COMMITTED for all checks of the folder ``tests``. Raises WrongInput."""
    everything = suite.Selection("everything", "", gpu=False, committed={})
    with tempfile.TemporaryDirectory(prefix="torchdock-check-") as folder, Path(os.devnull).open("w") as nowhere:
        run = Run(everything, Path(folder), None, nowhere)
        result = run.run(tests, "--collect-only")
    if result.problems or result.checks:
        raise WrongInput(" ".join([*result.problems, *(check.message for check in result.checks)]))
    return suite.write_counts(run.tally.counts)


def _terminate(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the selected checks and return the exit code."""
    args = arguments(argv)
    out = sys.stderr if args.json else sys.stdout
    has = {"gpu": args.gpu, "devel": args.devel, "launched": os.environ.get("TORCHDOCK_LAUNCHED") == "1"}
    has["image"], has["gpus"] = versions.in_image(), args.gpu and devices.several()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if args.count:
            print(count(), end="")
            return 0
        if args.min_share is not None and not args.gpu:
            raise WrongInput(f"{speed.ungateable(None)}")
        os.environ |= {suite.MIN_SHARE: "" if args.min_share is None else str(args.min_share)}
        without = ["operators"] if args.ops == "none" else []
        needs = [need for need, there in has.items() if there]
        selection = suite.select(args.quick, needs, committed(), args.expression, without)
        report = prepare(args.report) if args.report else None
        with tempfile.TemporaryDirectory(prefix="torchdock-check-") as folder:
            run = Run(selection, Path(folder), report, out, args.ops)
            result = run.run()
            if report:
                write_report(result, report, Path(folder) / "pytest.log")
    except WrongInput as error:
        print(f"check: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("check: interrupted; nothing was left running", file=sys.stderr)
        return 130
    if table := speed.table(result.numbers):
        print(f"\n{table}", file=out)
    print(suite.closing(result, run.color, run.width), file=out)
    if not result.good and report is None:
        print("Full tracebacks: the same command with --report DIR.", file=out)
    if args.json:
        print(json.dumps(result.document()))
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
