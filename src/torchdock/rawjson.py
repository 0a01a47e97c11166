"""BuildKit's events (``--progress=rawjson``) as the lines of ``--progress=plain``, each at the moment of its event.

buildx's own plain output shows one running step at a time and turns to another after 5 to 10 s: of what runs beside it
one hears late. The events come at once. As plain lines they are read by the same reader, redacted by the same rules and
kept in the same log as where there are no events.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

_SINCE = (0, 13)  # the buildx that can tell its progress so
PLAIN, _RAWJSON = "--progress=plain", "--progress=rawjson"
_KINDS = ("vertexes", "statuses", "logs", "warnings")  # what a document of BuildKit's has, some of them
_TIME = re.compile(r"([\d-]+T[\d:]+)(\.\d+)?(Z|[+-]\d\d:\d\d)")
_CUT = "ERROR: what BuildKit told of this build ends in the middle\n"


def known_to(buildx: str) -> bool:
    """Whether a buildx of this version (``v0.13.1``, ``0.13.1+ds1``) has it; an unknown version has not."""
    found = re.match(r"v?(\d+)\.(\d+)", buildx)
    return found is not None and (int(found[1]), int(found[2])) >= _SINCE


def listening(argv: Sequence[str], buildx: str) -> tuple[list[str], Callable[[Iterable[str]], Iterable[str]]]:
    """The command of a build (with :data:`PLAIN`) so that this buildx tells most, and what makes plain lines of it."""
    if not known_to(buildx):
        return list(argv), iter
    return [_RAWJSON if word == PLAIN else word for word in argv], plain_lines


def plain_lines(raw: Iterable[str]) -> Iterator[str]:
    """The lines of what ``--progress=rawjson`` prints, as plain ones, each with its line end. Pure.

    A document is one line, or many that are indented, as buildx 0.13 writes them. What is none (errors, which buildx
    prints beside them) stays as it is. Where a document is cut off, a line says so.
    """
    translator = _Translator()
    document = ""
    for line in raw:
        if document and line.startswith((" ", "}")):
            document += line
            if line.startswith(" "):
                continue
        elif document:
            yield _CUT
            document = ""
        if not document and not line.startswith("{"):
            yield line
            continue
        document = document or line
        if document.strip() == "{":
            continue
        told = _document(document)
        if told is not None:
            yield from translator.lines(told)
        else:
            yield _CUT if document.startswith('{"') else document
        document = ""
    yield from translator.rest()
    if document:
        yield _CUT


def _document(text: str) -> dict[str, Any] | None:
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return told if isinstance(told, dict) and (not told or not told.keys().isdisjoint(_KINDS)) else None


class _Translator:
    """Turns one document after the other into lines."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # of the steps that were announced, by digest
        self._started: dict[str, float] = {}  # seconds since 1970
        self._partial: dict[tuple[str, int], tuple[float, bytes]] = {}  # by step and stream: since when, what
        self._transfers: set[tuple[str, str]] = set()  # those that were announced

    def lines(self, told: Mapping[str, Any]) -> Iterator[str]:
        # One message may tell of a step twice: that its key was computed, then that it runs or is cached.
        steps = {str(step["digest"]): step for step in told.get("vertexes") or ()}
        for digest, step in steps.items():
            if step.get("started"):
                yield from self._begin(digest, step)
            if step.get("cached"):  # it prints nothing
                yield from self._end(digest, step)
        for status in told.get("statuses") or ():
            yield from self._transfer(status)
        for log in told.get("logs") or ():
            yield from self._log(log)
        for digest, step in steps.items():
            if step.get("completed") and not step.get("cached"):
                yield from self._end(digest, step)

    def rest(self) -> Iterator[str]:
        """What steps had printed of a line when all ended."""
        for digest in self._numbers:
            yield from self._flush(digest)

    def _begin(self, digest: str, step: Mapping[str, Any]) -> Iterator[str]:
        self._started[digest] = _seconds(step["started"])
        if digest not in self._numbers:
            self._numbers[digest] = len(self._numbers) + 1
            yield "\n"
            yield f"#{self._numbers[digest]} {_one_line(step.get('name'))}\n"

    def _end(self, digest: str, step: Mapping[str, Any]) -> Iterator[str]:
        if digest not in self._numbers:
            return
        yield from self._flush(digest)
        error = _one_line(step.get("error"))
        if error.endswith("context canceled"):
            word = "CANCELED"
        elif error:
            word = f"ERROR: {error}"
        elif step.get("cached"):
            word = "CACHED"
        else:
            word = f"DONE {max(0.0, _seconds(step['completed']) - self._started[digest]):.1f}s"
        yield f"#{self._numbers[digest]} {word}\n"

    def _transfer(self, status: Mapping[str, Any]) -> Iterator[str]:
        """A part of a step that BuildKit itself does, such as a pull: its begin and its end."""
        digest, name = str(status.get("vertex")), _one_line(status.get("id"))
        if digest not in self._numbers:
            return
        line = f"#{self._numbers[digest]} {name}"
        if status.get("completed"):
            took = _seconds(status["completed"]) - _seconds(status.get("started") or status["completed"])
            size = f" {status['current']} bytes" if status.get("current") else ""
            yield f"{line}{size} {max(0.0, took):.1f}s done\n"
        elif (digest, name) not in self._transfers:
            yield f"{line}\n"
        self._transfers.add((digest, name))

    def _log(self, log: Mapping[str, Any]) -> Iterator[str]:
        digest, stream = str(log.get("vertex")), int(log.get("stream") or 0)
        if digest not in self._numbers:
            return
        when = _seconds(log["timestamp"])
        since, before = self._partial.pop((digest, stream), (when, b""))
        *whole, partial = (before + base64.b64decode(log.get("data") or "")).split(b"\n")
        for line in whole:
            yield from self._output(digest, since, line)
            since = when
        if partial:
            self._partial[digest, stream] = (since, partial)

    def _flush(self, digest: str) -> Iterator[str]:
        for key in [key for key in self._partial if key[0] == digest]:
            yield from self._output(digest, *self._partial.pop(key))

    def _output(self, digest: str, when: float, line: bytes) -> Iterator[str]:
        after = f"{max(0.0, when - self._started[digest]):.3f}"[:5]
        for part in line.decode(errors="replace").rstrip("\r").split("\r"):
            yield f"#{self._numbers[digest]} {after} {part}\n"


def _one_line(text: object) -> str:
    return str(text or "").replace("\n", " ")


def _seconds(text: str) -> float:
    """Seconds since 1970 of a time as Go writes it: with up to nine decimals, and Z or a shift."""
    found = _TIME.fullmatch(text)
    assert found is not None, f"no time: {text}"
    whole, decimals, zone = found.groups()
    return datetime.fromisoformat(whole + zone.replace("Z", "+00:00")).timestamp() + float(decimals or 0)
