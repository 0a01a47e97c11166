"""What people read: progress that moves on a terminal, plain lines elsewhere; with ``--json`` all of it on stderr."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress

# A line of plain text, or a table's columns and rows.
Part: TypeAlias = "str | tuple[Sequence[str], Iterable[Sequence[str]]]"


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
        self.console.print(_table(title, columns, rows), soft_wrap=False)

    def show(self, parts: Iterable[Part]) -> None:
        """Tables, as their columns and rows, and lines of plain text, one below the other."""
        for part in parts:
            if isinstance(part, str):
                self.say(part)
            else:
                self.table("", *part)

    @contextmanager
    def live(self) -> Iterator[Callable[[Sequence[Part]], None]]:
        """What changes: each time in the place of the last on a terminal, one below the other elsewhere."""
        if not self.console.is_terminal:
            yield self.show
            return
        from rich.console import Group
        from rich.live import Live

        # No thread of its own: what is shown is asked for by forking.
        with Live(console=self.console, auto_refresh=False, vertical_overflow="visible") as display:

            def show(parts: Sequence[Part]) -> None:
                drawn = [Text(part) if isinstance(part, str) else _table("", *part) for part in parts]
                display.update(Group(*drawn), refresh=True)

            yield show

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
    def step(self, title: str, *, measured: bool = False) -> Iterator[Step]:
        """A step that takes a while: a line that moves on a terminal, one line at its start elsewhere.

        ``measured``: the line has a bar, which :meth:`Step.measure` moves.
        """
        started = time.monotonic()
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
            if measured:
                columns += [BarColumn(bar_width=20), TextColumn("{task.fields[measure]}", markup=False)]
            with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as progress:
                task = progress.add_task(title, total=None if measured else 100.0, measure="")
                yield Step(self, started, progress, task, title)
        else:
            self.say(f"{title} ...")
            yield Step(self, started, None, None, title)


@contextmanager
def quietly(*, keep_stdout: bool = False) -> Iterator[None]:
    """What is printed meanwhile, by children too, is shown only where it ends with an error: then on stderr.

    ``keep_stdout``: stdout is for a program's document, and stays.
    """
    streams = [sys.stderr] if keep_stdout else [sys.stdout, sys.stderr]
    with tempfile.TemporaryFile() as kept:
        saved = []
        for stream in streams:
            stream.flush()
            saved.append(os.dup(stream.fileno()))
            os.dup2(kept.fileno(), stream.fileno())

        def restore() -> None:
            for stream, handle in zip(streams, saved, strict=True):
                stream.flush()
                os.dup2(handle, stream.fileno())
                os.close(handle)

        try:
            yield
        except BaseException:
            restore()
            kept.seek(0)
            sys.stderr.write(kept.read().decode(errors="replace"))
            sys.stderr.flush()
            raise
        restore()


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "UUID")  # which is there to be copied
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


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

    def measure(self, fraction: float | None, text: str) -> None:
        """How far a measured step is, and that in words; None: nobody knows. Shown on a terminal only."""
        if self._progress is None:
            return
        words = " ".join(part for part in ("" if fraction is None else f"{int(100 * fraction)}%", text) if part)
        if fraction is None:
            self._progress.update(self._task, measure=words)
        else:
            self._progress.update(self._task, total=1.0, completed=fraction, measure=words)

    def done(self, text: str) -> None:
        """A part that is finished: a line that stays."""
        self._reporter.say(f"  {text}")

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started
