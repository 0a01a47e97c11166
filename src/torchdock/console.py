"""What people read: progress that moves on a terminal, plain lines elsewhere; with ``--json`` all of it on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


class Reporter:
    """Writes for people, and at the end one JSON document for programs.

    Attributes:
        as_json: stdout is for one JSON document, people's text goes to stderr.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        # soft_wrap: a line of a log or a command to paste is not broken where no terminal has a width.
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True, emoji=False)
        if not self.console.is_terminal:
            self.console.width = 120

    @property
    def aside(self) -> Reporter:
        """One whose text goes to stderr, where stdout is for something else: a command, or a command's output."""
        return Reporter(as_json=True)

    def say(self, text: str) -> None:
        """One line of plain text (no markup is read in it)."""
        self.console.print(text, markup=False)

    def fallback(self, text: str) -> None:
        """A fallback, said out loud on the line where it happens (DESIGN, principle 3)."""
        self.console.print(f"fallback: {text}", style="yellow", markup=False)

    def good(self, text: str) -> None:
        """Something that was achieved."""
        self.console.print(text, style="green", markup=False)

    def document(self, value: dict[str, Any]) -> None:
        """The one JSON document of a ``--json`` task; nothing without ``--json``."""
        if self.as_json:
            json.dump(value, sys.stdout, indent=2)
            sys.stdout.write("\n")
            sys.stdout.flush()

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table; cells are plain text."""
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table, soft_wrap=False)

    def ask(self, question: str) -> bool:
        """Yes or no, asked on a terminal; yes where there is nobody to ask."""
        if not (sys.stdin.isatty() and self.console.is_terminal):
            return True
        try:
            answer = self.console.input(f"{question} \\[Y/n] ").strip().lower()
        except EOFError:
            return False
        return answer in ("", "y", "yes")

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """A step that takes a while: a line that moves on a terminal, one line at its start elsewhere."""
        started = time.monotonic()
        if self.console.is_terminal:
            with Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            ) as progress:
                yield Step(self, started, progress, progress.add_task(title), title)
        else:
            self.say(f"{title} ...")
            yield Step(self, started, None, None, title)


class Step:
    """A running step: what it does now, and what of it is finished."""

    def __init__(self, reporter: Reporter, started: float, progress: Progress | None, task: Any, title: str) -> None:
        self._reporter = reporter
        self._progress = progress
        self._task = task
        self._title = title
        self.started = started

    def now(self, text: str) -> None:
        """What is being done now; shown on a terminal only."""
        if self._progress is not None:
            self._progress.update(self._task, description=f"{self._title}: {text}")

    def done(self, text: str) -> None:
        """A part that is finished: a line that stays."""
        self._reporter.say(f"  {text}")

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started
