"""The steps of a Dockerfile as BuildKit counts them: what each is made of, what it downloads, which a target needs.

Read from the Dockerfile itself, so that no second list of stages can disagree with it. A step's digest covers what
BuildKit's own cache key covers, and a little more: equal digests are a step that the cache may have.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchdock.debian import ARCHITECTURES
from torchdock.locks import download_bytes

_LOCKS = Path("docker/locks")
_OFFLINE = "offline"  # the secret by which a step is told to download nothing: what has it downloads


@dataclass(frozen=True)
class BuildStep:
    """One step of a stage.

    Attributes:
        label: as BuildKit prints it: ``cuda 1/1``.
        digest: of all that decides its result, the steps before it and the stages that it takes from included.
        layer: it adds a layer of files to its stage.
        download: bytes that its locks say it downloads; 0 for a step that downloads nothing, None where they do not
            say it.
    """

    label: str
    digest: str
    layer: bool
    download: int | None = 0

    @property
    def stage(self) -> str:
        """The stage that it belongs to."""
        return self.label.partition(" ")[0]


@dataclass(frozen=True)
class Stage:
    """One stage: the stage it stands on (empty on a base), those it takes files from, and its steps."""

    name: str
    parent: str
    uses: tuple[str, ...]
    steps: tuple[BuildStep, ...]
    digest: str


def read(
    root: Path, dockerfile: Path, files: Sequence[Path], arguments: Mapping[str, str], architecture: str
) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, in its order.

    Args:
        files: those of the clone that are sent to a build; of what a step mounts, these count.
        arguments: the build arguments; one that is not named has its default.
        architecture: as ``uname -m`` names it.

    Raises:
        OSError: one of the files cannot be read.
    """
    given = {"TARGETARCH": ARCHITECTURES.get(architecture, architecture), **arguments}
    reader = _Reader(root, files, given, architecture)
    for instruction in _instructions(dockerfile.read_text(encoding="utf-8")):
        reader.take(instruction)
    return reader.stages()


def needed(stages: Mapping[str, Stage], target: str) -> list[BuildStep]:
    """The steps that a target consists of or takes from, in the order of the Dockerfile."""
    wanted, names = {target}, [target]
    while names:
        stage = stages[names.pop()]
        more = {stage.parent, *stage.uses} & stages.keys() - wanted
        wanted |= more
        names += more
    return [step for name, stage in stages.items() if name in wanted for step in stage.steps]


def layers(stages: Mapping[str, Stage], target: str) -> list[BuildStep]:
    """The steps whose layers are in the target's image, the lowest first; those of the base are not among them."""
    chain: list[BuildStep] = []
    name = target
    while name in stages:
        chain[:0] = [step for step in stages[name].steps if step.layer]
        name = stages[name].parent
    return chain


def layer_sizes(steps: Sequence[BuildStep], listing: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Bytes of the layers of these steps (:func:`layers`), by label.

    From what ``docker history`` lists of the image, the newest first; empty where that does not fit.
    """
    rows = [row for row in listing if re.match(r"(RUN|COPY|ADD)\b", str(row.get("CreatedBy") or ""))]
    if len(rows) < len(steps):
        return {}
    return {step.label: int(row.get("Size") or 0) for step, row in zip(reversed(steps), rows, strict=False)}


def _instructions(text: str) -> list[str]:
    """One logical line each; comments stand between continued lines too."""
    plain = re.sub(r"^\s*#.*\n?", "", text, flags=re.M)
    return [" ".join(line.split()) for line in re.sub(r"\\\s*\n", " ", plain).splitlines() if line.strip()]


class _Reader:
    """Takes the instructions of a Dockerfile one by one."""

    def __init__(self, root: Path, files: Sequence[Path], arguments: Mapping[str, str], architecture: str) -> None:
        self._root = root
        self._files = {path.relative_to(root).as_posix(): path for path in files}
        self._given = arguments
        self._architecture = architecture
        self._values = dict(arguments)
        self._contents: dict[Path, str] = {}
        self._done: dict[str, Stage] = {}
        self._name = self._parent = self._digest = ""
        self._uses: list[str] = []
        self._steps: list[tuple[str, bool, int | None]] = []  # digest, layer, download
        self._first = 1

    def take(self, raw: str) -> None:
        instruction = re.sub(
            r"\$(?:\{(\w+)\}|(\w+))", lambda found: self._values.get(found[1] or found[2], found[0]), raw
        )
        word, _, rest = instruction.partition(" ")
        word = word.upper()
        if word == "FROM":
            self._close()
            self._open(rest)
            return
        if word == "ARG":
            name, _, default = rest.partition("=")
            if name not in self._given and default:
                self._values[name] = default
        sources: list[Path] = []
        uses: list[str] = []
        download: int | None = 0
        if word == "RUN":
            mounts = [dict(part.partition("=")[::2] for part in one.split(",")) for one in _options("mount", rest)]
            uses = [mount["from"] for mount in mounts if "from" in mount]
            bound = [mount for mount in mounts if mount.get("type") == "bind" and "from" not in mount]
            sources = [Path(mount.get("source", ".")) for mount in bound]
            if any(mount.get("type") == "secret" and mount.get("id") == _OFFLINE for mount in mounts):
                download = self._download(source for source in sources if _LOCKS in source.parents)
        elif word in ("COPY", "ADD"):
            uses = _options("from", rest)
            words = [one for one in rest.split() if not one.startswith("--")]
            sources = [] if uses else [Path(one) for one in words[:-1]]
        self._uses += [name for name in uses if name in self._done]
        stages = [self._done[name].digest for name in uses if name in self._done]
        self._digest = _hash(self._digest, instruction, *map(self._content, sources), *stages)
        if word in ("RUN", "COPY", "ADD", "WORKDIR"):
            self._steps.append((self._digest, word != "WORKDIR", download))

    def _open(self, rest: str) -> None:
        words = [word for word in rest.split() if not word.startswith("--")]
        base = words[0]
        self._name = words[2] if len(words) == 3 else f"stage-{len(self._done)}"
        self._parent = base if base in self._done else ""
        self._uses, self._steps = [], []
        # BuildKit counts the image that a stage begins with as a step of it, another stage not.
        self._first = 1 if self._parent or base == "scratch" else 2
        self._digest = self._done[base].digest if self._parent else _hash(base)

    def _close(self) -> None:
        if not self._name:
            return
        total = len(self._steps) + self._first - 1
        steps = tuple(
            BuildStep(f"{self._name} {number}/{total}", *found) for number, found in enumerate(self._steps, self._first)
        )
        self._done[self._name] = Stage(self._name, self._parent, tuple(self._uses), steps, self._digest)

    def stages(self) -> dict[str, Stage]:
        self._close()
        return self._done

    def _content(self, source: Path) -> str:
        """The digest of what of the clone is at or below a path."""
        parts = []
        there = source.as_posix()
        for name, path in self._files.items():
            if name == there or name.startswith(f"{there}/") or there == ".":
                if path not in self._contents:
                    self._contents[path] = hashlib.sha256(path.read_bytes()).hexdigest()
                parts.append(f"{name} {self._contents[path]}")
        return _hash(*sorted(parts))

    def _download(self, sources: Iterable[Path]) -> int | None:
        paths = [self._root / source for source in sources]
        word = ARCHITECTURES.get(self._architecture, self._architecture)
        found = [download_bytes(path / f"{word}.txt" if path.is_dir() else path, self._architecture) for path in paths]
        known = [size for size in found if size is not None]
        return sum(known) if known and len(known) == len(found) else None


def _options(name: str, rest: str) -> list[str]:
    return re.findall(rf"--{name}=(\S+)", rest)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
