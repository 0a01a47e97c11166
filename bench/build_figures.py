"""What `bench/build.py` makes of its numbers: medians, ratios and their limits, tables, a chart. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

GB, MB = 10**9, 10**6
BUILDERS = {"plain": "pip install", "uv": "uv, as documented", "ours": "torchdock"}
SCENARIOS = {
    "cold": "cold",
    "unchanged": "no change",
    "added": "one tool added",
    "moved": "one tool moved",
    "edited": "source edited",
}
# What is added, and to which version a tool is moved: the first that the lock does not have. Small, of Python alone,
# without dependencies; with their versions, so that all builders install the same.
ADDED = ("einops==0.8.1", "toolz==1.0.0")
MOVED = ("wcwidth==0.9.3", "wcwidth==0.9.2")


@dataclass(frozen=True)
class Measured:
    """One build.

    Attributes:
        seconds: wall clock, from the command's start to its end.
        lock: seconds of the `invoke lock` before it; None where nothing was locked.
        written: bytes written to the engine's disk; None where that cannot be read.
        peak: bytes that the engine's disk held more than before, at most; of cold builds alone.
        upload: bytes that a push would upload; None where it was not counted.
    """

    builder: str
    scenario: str
    repeat: int
    seconds: float
    lock: float | None = None
    written: int | None = None
    peak: int | None = None
    upload: int | None = None


@dataclass(frozen=True)
class Image:
    """What a cold build made: its size in bytes, and the seconds of `import torch` in new containers."""

    builder: str
    size: int
    imports: tuple[float, ...]


@dataclass(frozen=True)
class Floor:
    """The least that a cold build could take: seconds to install, and to write as many bytes as the image has."""

    install: float
    write: float

    @property
    def seconds(self) -> float:
        return self.install + self.write


@dataclass
class Raw:
    """Everything that was measured in one run; ``machine``: what it was measured on, word to value."""

    variant: str
    machine: dict[str, str] = field(default_factory=dict)
    builds: list[Measured] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    floors: list[Floor] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Raw:
        """From a document.

        Raises:
            KeyError, TypeError: it is none.
        """
        return cls(
            document["variant"],
            dict(document["machine"]),
            [Measured(**one) for one in document["builds"]],
            [Image(**{**one, "imports": tuple(one["imports"])}) for one in document["images"]],
            [Floor(**one) for one in document["floors"]],
        )

    def values(self, builder: str, scenario: str, what: str) -> list[float]:
        """One figure of all repeats, as far as it was measured."""
        found = [one for one in self.builds if (one.builder, one.scenario) == (builder, scenario)]
        return [value for one in found if (value := getattr(one, what)) is not None]

    def median(self, builder: str, scenario: str, what: str = "seconds") -> float | None:
        """The median of one figure over the repeats; None where it was not measured."""
        found = self.values(builder, scenario, what)
        return statistics.median(found) if found else None

    def size(self, builder: str) -> float | None:
        """The median size of a builder's image in bytes."""
        found = [image.size for image in self.images if image.builder == builder]
        return statistics.median(found) if found else None

    def importing(self, builder: str) -> float | None:
        """The median seconds of `import torch` in a builder's image, over all repeats."""
        found = [seconds for image in self.images if image.builder == builder for seconds in image.imports]
        return statistics.median(found) if found else None

    @property
    def floor(self) -> float | None:
        """The median of the floor in seconds."""
        return statistics.median(floor.seconds for floor in self.floors) if self.floors else None


# --- what a measurement needs to know -------------------------------------------------------------------------------


def requirements(pins: Iterable[str]) -> str:
    """Entries of a lock (``name==version``, perhaps a marker, and hashes) as people write a requirements.txt."""
    return "".join(f"{entry.partition(chr(92))[0].strip()}\n" for entry in pins)


def with_tool(text: str, tool: str) -> str:
    """A requirements.txt with this ``name==version``: in the place of the package's line, else at the end."""
    name = tool.partition("==")[0]
    kept = [line for line in text.splitlines() if line.partition("==")[0] != name]
    return "\n".join([*kept, tool]) + "\n"


def another(candidates: Sequence[str], locked: Mapping[str, str]) -> str:
    """The first ``name==version`` of these that is not what is locked (name to version)."""
    return next(one for one in candidates if locked.get(one.partition("==")[0]) != one.partition("==")[2])


def sectors_written(diskstats: str, device: tuple[int, int]) -> int | None:
    """From /proc/diskstats: sectors of 512 bytes written to the device of this number; None where it is not there."""
    for line in diskstats.splitlines():
        fields = line.split()
        if len(fields) > 9 and fields[:2] == [str(device[0]), str(device[1])]:
            return int(fields[9])
    return None


def mounted_from(mountinfo: str, device: tuple[int, int]) -> str:
    """From /proc/self/mountinfo: what the file system of this number is mounted from; empty where it is not there.

    Btrfs, for one, gives its files a device number that no disk has.
    """
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [f"{device[0]}:{device[1]}"] and len(after.split()) > 1:
            return after.split()[1]
    return ""


# --- ratios and their limits ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """What is promised of our builds: a value, None where its parts were not measured, and what it may be at most.

    Attributes:
        below: it must be less than the limit, not equal to it; ``limit`` is None where nothing is promised.
        unit: s or MB, empty for a ratio.
    """

    name: str
    value: float | None
    limit: float | None
    unit: str = ""
    below: bool = False

    @property
    def good(self) -> bool | None:
        """Whether it holds; None where that cannot be said."""
        if self.value is None or self.limit is None:
            return None
        return self.value < self.limit if self.below else self.value <= self.limit

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """As a row: name, value, limit, verdict."""
        digits = {"MB": 1, "s": 2}.get(self.unit, 3)
        unit = f" {self.unit}" if self.unit else ""
        value = "-" if self.value is None else f"{self.value:.{digits}f}{unit}"
        limit = "" if self.limit is None else f"{'<' if self.below else '≤'} {self.limit:g}{unit}"
        return self.name, value, limit, {True: "holds", False: "DOES NOT HOLD", None: ""}[self.good]


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def ratios(raw: Raw) -> list[Ratio]:
    """Everything that is promised, from medians; of the disk's peak the highest one counts."""
    found = []
    for scenario in ("added", "moved"):
        ours, plain = raw.median("ours", scenario), raw.median("plain", scenario)
        lock = raw.median("ours", scenario, "lock")
        both = None if ours is None or lock is None else ours + lock
        upload = raw.median("ours", scenario, "upload")
        what = SCENARIOS[scenario]
        # Promised of a tool that is added; what moves is shown beside it.
        limits = (1 / 20, 25.0) if scenario == "added" else (None, None)
        found += [
            Ratio(f"{what}: torchdock / pip install", _over(ours, plain), limits[0]),
            Ratio(f"{what}: the same, `invoke lock` counted in", _over(both, plain), None),
            Ratio(f"{what}: to upload", None if upload is None else upload / MB, limits[1], "MB", below=True),
        ]
    cold, size = raw.median("ours", "cold"), raw.size("ours")
    peaks = raw.values("ours", "cold", "peak")
    return [
        *found,
        Ratio("cold: torchdock / pip install", _over(cold, raw.median("plain", "cold")), 0.55),
        Ratio("cold: torchdock / floor", _over(cold, raw.floor), 1.4),
        Ratio("size: torchdock / pip install", _over(size, raw.size("plain")), 1, below=True),
        Ratio("import torch: torchdock / pip install", _over(raw.importing("ours"), raw.importing("plain")), 1),
        Ratio("cold: disk at its peak / size of the image", _over(max(peaks, default=None), size), 2.2),
        Ratio("source edited: torchdock", raw.median("ours", "edited"), 2, "s", below=True),
        Ratio("no change: torchdock", raw.median("ours", "unchanged"), 1, "s", below=True),
    ]


# --- tables ---------------------------------------------------------------------------------------------------------

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def amount(count: float | None) -> str:
    """Bytes for people; ``-`` where there is nothing to tell."""
    if count is None:
        return "-"
    for unit, size in (("GB", GB), ("MB", MB), ("kB", 1000)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds for people; ``-`` where there is nothing to tell."""
    if seconds is None:
        return "-"
    return f"{seconds:.{2 if seconds < 10 else 1 if seconds < 100 else 0}f} s"


def tables(raw: Raw) -> list[Table]:
    """Title, columns and rows of everything: the builds, the images, the floor, the ratios."""
    rows = []
    for scenario, what in SCENARIOS.items():
        for builder, name in BUILDERS.items():
            seconds = raw.values(builder, scenario, "seconds")
            if not seconds:
                continue
            spread = f"{duration(min(seconds))} to {duration(max(seconds))}" if len(seconds) > 1 else ""
            figures = [raw.median(builder, scenario, figure) for figure in ("written", "peak", "upload")]
            lock = raw.median(builder, scenario, "lock")
            median = duration(statistics.median(seconds))
            rows.append((what, name, median, spread, duration(lock) if lock else "", *map(amount, figures)))
    images: list[tuple[str, ...]] = [
        (name, amount(raw.size(builder)), duration(raw.importing(builder)))
        for builder, name in BUILDERS.items()
        if raw.size(builder)
    ]
    columns = ("", "by", "median", "least to most", "lock", "written", "disk at its peak", "to upload")
    found: list[Table] = [(headline(raw), columns, rows)] if rows else []
    if images:
        found.append(("The image", ("by", "size", "import torch"), images))
    if raw.floors:
        parts = [statistics.median(getattr(floor, part) for floor in raw.floors) for part in ("install", "write")]
        cells: tuple[str, ...] = (duration(parts[0]), duration(parts[1]), duration(raw.floor))
        found.append(("The floor of a cold build", ("install", "write", "both"), [cells]))
    found.append(("What is promised", ("", "measured", "limit", ""), [*(ratio.cells for ratio in ratios(raw))]))
    return found


def headline(raw: Raw) -> str:
    """What was measured, on what, when."""
    words = [raw.machine.get(key, "") for key in ("cpus", "memory", "engine", "date")]
    return f"Building {raw.variant}: " + ", ".join(word for word in words if word)


NOTES = (
    "cold: nothing of the image in the cache, the base on this host. The changes: each on the image of the cold build.",
    "one tool added, one tool moved: the others' requirements.txt was edited by hand; torchdock's lock column is what "
    "`invoke lock` took to resolve and hash it, before the build.",
    "to upload: the layers, compressed as by a push, that the image before the change has not; of a cold build all.",
)


# --- the chart ------------------------------------------------------------------------------------------------------


def chart(raw: Raw) -> dict[str, Any]:
    """What `bench/build/chart.py` draws: panels of bars, each bar with its value's text.

    A panel has a scale of its own, from zero: a cold build takes a hundred times as long as one without a change.
    """

    def panel(title: str, values: Mapping[str, float | None], say: Any, mark: float | None = None) -> dict[str, Any]:
        bars = [
            {"builder": builder, "label": name, "value": values[builder], "text": say(values[builder])}
            for builder, name in BUILDERS.items()
            if values[builder] is not None
        ]
        line = {} if mark is None else {"mark": {"value": mark, "text": f"floor {say(mark)}"}}
        return {"title": title, "bars": bars, **line}

    def of(scenario: str, figure: str = "seconds") -> dict[str, float | None]:
        return {builder: raw.median(builder, scenario, figure) for builder in BUILDERS}

    panels = [
        panel("Cold build", of("cold"), duration, raw.floor),
        panel("One tool added", of("added"), duration),
        panel("One tool moved", of("moved"), duration),
        panel("Source edited", of("edited"), duration),
        panel("No change", of("unchanged"), duration),
        panel("To upload after one tool was added", of("added", "upload"), amount),
        panel("Size of the image", {builder: raw.size(builder) for builder in BUILDERS}, amount),
        panel("import torch in a new container", {builder: raw.importing(builder) for builder in BUILDERS}, duration),
    ]
    repeats = max((one.repeat for one in raw.builds), default=0)
    return {
        "title": headline(raw),
        "subtitle": f"{f'medians of {repeats} runs' if repeats > 1 else 'one run'}, less is better, each scale its own",
        "panels": [one for one in panels if one["bars"]],
    }


def drawing(image: str, name: str, program: str) -> list[str]:
    """What docker is asked to draw with: the image has Pillow, the host has not. JSON goes in, a PNG comes out."""
    fixed = ["--rm", "--interactive", "--network", "none", "--name", name]
    return ["run", *fixed, image, "python", "-c", program]
