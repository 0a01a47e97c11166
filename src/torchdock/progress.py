"""How a build goes: what it will download and write, said beforehand; how far it is; and what BuildKit says of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torchdock.stages import BuildStep

GB, MB = 10**9, 10**6

# What a stage of the Dockerfiles is for, in the words that are shown while it runs.
STAGES = {
    "python": "Python",
    "system": "Debian packages",
    "uv": "uv",
    "torch-wheels": "wheels of torch",
    "tools-wheels": "wheels of tools",
    "recent-wheels": "wheels of recent packages",
    "nvcc-wheels": "wheels of the CUDA compiler",
    "cuda": "CUDA libraries",
    "torch": "torch and torchvision",
    "tools": "tools",
    "merged": "layers laid together",
    "recent": "recently added packages",
    "nvcc": "CUDA compiler",
    "environment": "validation suite",
    "devel": "validation suite",
    "workspace": "packages of the workspace",
}
# The same in the line before a build, where the stages of Debian are one.
_PARTS = {
    **{"python": "Debian", "system": "Debian", "cuda": "CUDA", "torch-wheels": "torch"},
    **{"tools-wheels": "tools", "recent-wheels": "recent packages", "nvcc-wheels": "CUDA compiler"},
}

_WHEELS = "-wheels"  # how the stages are named that keep wheels as they were downloaded
# What a step of this stage writes, as a layer and once more as archives, is what that step lays on the image.
_LAID = {"system": "merged 1/1"}

# By this line of a step's output it says how many bytes it has received so far.
_RECEIVED = re.compile(r"^#(\d+) (?:[\d.]+ )?torchdock: received: \S+ (\d+)$")
# What counters see is more than the files (TLS, TCP, indexes), and after the last byte comes work: unpacking,
# compiling. So a step that runs has done at most this share of itself; the rest is its end.
_WHILE_RUNNING = 0.97
# The share of a layer that is written when its step ends; the rest is the export, which reads every new layer once more
# to set its digest: 6 s of 60 in a cold build of cu130.
_BEFORE_EXPORT = 0.85
_BEFORE_END = 0.99  # more is shown of a build that has ended, and of no other


# --- beforehand -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What is expected of one step of a build.

    Attributes:
        cached: the build cache has it: it downloads and writes nothing.
        download: bytes; None where nobody knows.
        write: bytes that it writes; None where nobody knows.
        exact: ``write`` is the size of this very layer, not of one that was built from other inputs.
        kept: the layer is in the image; what another step writes stays in the build cache.
    """

    step: BuildStep
    cached: bool
    download: int | None
    write: int | None
    exact: bool = True
    kept: bool = True


@dataclass(frozen=True)
class Forecast:
    """What a build will download and write.

    Attributes:
        image: bytes of the whole image, about; None where nobody knows.
        at_most: layers may come from a registry instead.
    """

    steps: tuple[Expected, ...] = ()
    image: int | None = None
    at_most: bool = False

    @property
    def running(self) -> list[Expected]:
        """The steps that are expected to run."""
        return [one for one in self.steps if not one.cached]

    @property
    def download_bytes(self) -> int | None:
        """What is known of the downloads; None where nothing is."""
        total = sum(one.download or 0 for one in self.running)
        return None if total == 0 and any(one.download is None for one in self.running) else total

    @property
    def write_bytes(self) -> int | None:
        """The new layers of the image and what stays beside them in the build cache.

        Where the size of a layer is not known, the image without its layers that are there. None where nobody knows.
        """
        if not self.steps:
            return None
        if all(one.write is not None for one in self.running):
            return sum(one.write or 0 for one in self.running)
        there = [one.write for one in self.steps if one.cached and one.kept]
        if self.image is None or None in there:
            return None
        beside = sum(one.write or 0 for one in self.running if not one.kept)
        return max(0, self.image - sum(size or 0 for size in there)) + beside

    @property
    def text(self) -> str:
        """In words, without what nobody knows; empty where that is all."""
        if not self.steps:
            return ""
        said = [self._downloads(), self._writes()]
        return ", ".join(part for part in said if part)

    def _downloads(self) -> str:
        parts: dict[str, int | None] = {}
        for one in self.running:
            if one.download == 0:
                continue
            name = _PARTS.get(one.step.stage, one.step.stage)
            before = parts.get(name, 0)
            parts[name] = None if before is None or one.download is None else before + one.download
        if not parts:
            return "nothing to download"
        total = self.download_bytes or 0
        if total == 0:
            return ""
        unit, word = (GB, "GB") if total >= GB else (MB, "MB")
        largest_first = sorted(parts.items(), key=lambda part: -1 if part[1] is None else part[1], reverse=True)
        names = [f"{name} {_amount(size, unit)}" for name, size in largest_first]
        detail = ", ".join(names) if len(names) > 1 else next(iter(parts))
        bound = "at most " if self.at_most else "at least " if None in parts.values() else ""
        return f"{bound}{_amount(total, unit)} {word} to download ({detail})"

    def _writes(self) -> str:
        total = self.write_bytes
        if not total:
            return "" if total is None else "nothing to write"
        about = not all(one.exact and one.write is not None for one in self.running)
        bound = "at most " if self.at_most else "about " if about else ""
        unit, word = (GB, "GB") if total >= GB else (MB, "MB")
        return f"{bound}{_amount(total, unit)} {word} to write"


def _amount(size: int | None, unit: int) -> str:
    if size is None:
        return "unknown"
    if 0 < size < 0.05 * unit:
        return "below 0.1"
    return f"{size / unit:.0f}" if unit == MB and size >= 10 * MB else f"{size / unit:.1f}"


def forecast(
    steps: Sequence[BuildStep],
    layers: Sequence[BuildStep],
    records: Iterable[Mapping[str, Any]],
    cached: frozenset[str],
    *,
    variant: str,
    image: int | None,
    at_most: bool = False,
    offline: bool = False,
) -> Forecast:
    """What a build of these steps, of which ``layers`` make the image, will download and write. Pure.

    Args:
        records: build records, the oldest first; what they say of the sizes of layers is taken as it is for an equal
            digest, and as an estimate for the same step of the same variant.
        cached: digests of the steps that the build cache has.
        image: bytes of the whole image.
        offline: nothing may be downloaded.
    """
    by_digest: dict[str, int] = {}
    by_label: dict[str, int] = {}
    for record in records:
        for label, (digest, size) in recorded(record).items():
            if size is not None:
                by_digest[digest] = size
                if record.get("variant") == variant:
                    by_label[label] = size
    in_image = {step.label for step in layers}
    expected = []
    for step in steps:
        download = 0 if offline else step.download
        write: int | None = 0
        exact, kept = True, step.label in in_image
        if kept:
            write, exact = by_digest.get(step.digest, by_label.get(step.label)), step.digest in by_digest
        elif step.stage.endswith(_WHEELS):
            write = download  # as they come
        elif step.stage in _LAID and step.layer:
            write, exact = by_label.get(_LAID[step.stage], 0), False
        expected.append(Expected(step, step.digest in cached, download, write, exact, kept))
    return Forecast(tuple(expected), image, at_most)


def record(steps: Sequence[BuildStep], sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """As a build record keeps the steps of an image: by label, the digest, and the bytes of the layer if it has one."""
    return {step.label: {"digest": step.digest, "bytes": sizes.get(step.label)} for step in steps}


def recorded(record: Mapping[str, Any]) -> dict[str, tuple[str, int | None]]:
    """(digest, bytes) of the steps in a build record; empty for one that has none, or was damaged."""
    found: dict[str, tuple[str, int | None]] = {}
    steps = record.get("steps")
    for label, said in steps.items() if isinstance(steps, dict) else ():
        if isinstance(said, dict) and isinstance(said.get("digest"), str):
            size = said.get("bytes")
            found[label] = (said["digest"], size if isinstance(size, int) else None)
    return found


# --- while it runs --------------------------------------------------------------------------------------------------


class Meter:
    """How much of a build is done, in bytes.

    All of it is what is expected to be downloaded and what is expected to be written into layers. A step that has ended
    has done all of its download and :data:`_BEFORE_EXPORT` of its layer; the export does the rest when it has written
    the layers. A step that runs has done of both the share that it has received of its download, up to
    :data:`_WHILE_RUNNING`: what arrives is unpacked, and a bar that gave a step its layer at its end alone would stand
    and then jump by gigabytes. One that downloads nothing, or nobody knows how much, has done nothing before its end. A
    step that turns out to be cached is taken out, one that was thought to be and runs comes in. The fraction never goes
    back, and is 1 at the end alone.

    Where the sizes of layers are not known, the known size of the whole image is shared out over the steps in
    proportion to their downloads: unpacking is what they write.
    """

    def __init__(self, forecast: Forecast) -> None:
        shares = _shares(forecast)
        self._all = {one.step.label: (one.download or 0, shares[one.step.label]) for one in forecast.steps}
        self._counted = {one.step.label for one in forecast.running}
        self._received: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._ended: set[str] = set()
        self._most = 0.0
        self._exported = False
        self._finished = False

    def received(self, label: str, count: int) -> None:
        """A step that runs has received so many bytes."""
        if label not in self._all or label in self._ended:
            return
        self._counted.add(label)
        if count < self._received.get(label, 0):  # a second command of the step counts from 0 again
            self._before[label] = self._before.get(label, 0) + self._received[label]
        self._received[label] = count

    def ended(self, label: str, *, cached: bool) -> None:
        """A step has ended, or did not have to run."""
        if label not in self._all:
            return
        if cached:
            self._counted.discard(label)
        else:
            self._counted.add(label)
            self._ended.add(label)

    def exporting(self) -> None:
        """All steps have ended; what never ran did not have to."""
        self._counted &= self._ended

    def exported(self) -> None:
        """The export has written the layers."""
        self._exported = True

    def finish(self) -> None:
        """The image is there."""
        self._finished = True

    @property
    def total(self) -> int:
        """Bytes to download and to write."""
        return sum(sum(self._all[label]) for label in self._counted)

    @property
    def done(self) -> int:
        """Those of them that are."""
        if self._finished:
            return self.total
        done = 0.0
        for label in self._counted:
            download, write = self._all[label]
            at_end = download + (1 if self._exported else _BEFORE_EXPORT) * write
            if label in self._ended:
                done += at_end
            elif download:
                received = self._before.get(label, 0) + self._received.get(label, 0)
                done += at_end * min(received / download, _WHILE_RUNNING)
        return int(done)

    @property
    def fraction(self) -> float | None:
        """The same as a fraction that never goes back; None where nothing is known to measure by."""
        if self._finished:
            return 1.0
        if not self.total:
            return self._most or None
        self._most = max(self._most, min(self.done / self.total, _BEFORE_END))
        return self._most


def _shares(forecast: Forecast) -> dict[str, int]:
    """What each step writes into the image, as far as it is known or can be shared out."""
    known = {one.step.label: one.write for one in forecast.steps}
    unknown = [one for one in forecast.running if one.write is None]
    downloads = sum(one.download or 0 for one in unknown)
    shares = {label: size or 0 for label, size in known.items()}
    total = forecast.write_bytes
    if unknown and total is not None and downloads:
        left = max(0, total - sum(one.write or 0 for one in forecast.running))
        shares |= {one.step.label: left * (one.download or 0) // downloads for one in unknown}
    return shares


class Shown(Protocol):
    """Where it is shown; a :class:`torchdock.console.Step`."""

    def now(self, text: str) -> None: ...
    def done(self, text: str) -> None: ...
    def measure(self, fraction: float | None, text: str) -> None: ...


# --- what BuildKit says ---------------------------------------------------------------------------------------------

_STEP = re.compile(r"^#(\d+) \[((?:(\S+) )?(\d+)/(\d+))\] (.*)$")
_DONE = re.compile(r"^#(\d+) (DONE ([\d.]+)s|CACHED|ERROR: (.*)|CANCELED)$")
_OUTPUT = re.compile(r"^#(\d+) (?:[\d.]+ )?(.*)$")
_EXPORT = re.compile(r"^#\d+ exporting to ")
_EXPORTED = re.compile(r"^#\d+ exporting layers( [\d.]+s)? done$")


def is_news(line: str) -> bool:
    """Whether a line of BuildKit's output says more than a counter."""
    return not _RECEIVED.match(line.rstrip("\n"))


@dataclass
class _Running:
    """A step that was announced: its label, its stage, and whether it is the stage's last."""

    label: str
    stage: str
    last: bool


@dataclass
class BuildProgress:
    """Reads BuildKit's plain progress: which stages run and how far all is, and what a failed step printed.

    As buildx itself prints it, one step is shown at a time, and what runs beside it is heard of some seconds late;
    from its events (:mod:`torchdock.rawjson`) the same lines come at once.

    Attributes:
        counts: whether what a step receives is its own: on the host's network its counter is that of the whole host.
        notes: what the scripts say of where they took things from.
        finished: (stage, how long it took) in the order of their ends.
    """

    step: Shown | None
    forecast: Forecast = Forecast()
    counts: bool = True
    notes: list[str] = field(default_factory=list)
    finished: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.meter = Meter(self.forecast)
        self._running: dict[str, _Running] = {}  # by the step's number
        self._seconds: dict[str, float] = {}
        self._output: dict[str, list[str]] = {}
        self._failed = ""
        self._rest: list[str] = []

    def line(self, text: str) -> None:
        """One line of BuildKit's output."""
        if match := _RECEIVED.match(text):
            running = self._running.get(match[1])
            if running is not None and self.counts:
                self.meter.received(running.label, int(match[2]))
        elif match := _STEP.match(text):
            number, label, stage, index, total, instruction = match.groups()
            if stage in STAGES and not instruction.startswith("FROM"):
                self._running[number] = _Running(label, stage, index == total)
        elif match := _DONE.match(text):
            self._end(*match.groups())
        elif match := _OUTPUT.match(text):
            number, output = match.groups()
            if output != "...":  # BuildKit's word for turning to another step
                self._output.setdefault(number, []).append(output)
            if output.startswith("torchdock: source: "):
                self.notes.append(output.removeprefix("torchdock: source: "))
            if _EXPORT.match(text):
                self._running.clear()
                self.meter.exporting()
                if self.step is not None:
                    self.step.now("writing the image")
            elif _EXPORTED.match(text):
                self.meter.exported()
        else:
            self._rest.append(text)
        self._show()

    def finish(self) -> None:
        """The build has ended well."""
        self.meter.finish()
        self._show()

    def _end(self, number: str, word: str, seconds: str | None, error: str | None) -> None:
        running = self._running.pop(number, None)
        if error is not None:
            self._failed = number
            self._output.setdefault(number, []).append(error)
        elif running is not None and word != "CANCELED":
            cached = word == "CACHED"
            self.meter.ended(running.label, cached=cached)
            self._finish(running.stage, running.last, None if cached else float(seconds or 0))

    def _show(self) -> None:
        if self.step is None:
            return
        names = dict.fromkeys(STAGES[running.stage] for running in self._running.values())
        if names:
            self.step.now(", ".join(names))
        total = self.meter.total
        sizes = f"{self.meter.done / GB:.1f} of {total / GB:.1f} GB" if total >= GB else ""
        if 0 < total < GB:
            sizes = f"{self.meter.done / MB:.0f} of {total / MB:.0f} MB"
        self.step.measure(self.meter.fraction, sizes)

    def _finish(self, stage: str, last: bool, seconds: float | None) -> None:
        if seconds is not None:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        if last:
            took = f"{self._seconds[stage]:.0f} s" if stage in self._seconds else "cached"
            self.finished.append((stage, took))
            if self.step is not None:
                self.step.done(f"{STAGES[stage]}: {took}")

    def output_of_failure(self) -> list[str]:
        """What the failed step printed; what BuildKit itself said where no step failed."""
        return self._output.get(self._failed) or [line for line in self._rest if line.strip()]
