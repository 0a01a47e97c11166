"""Locks of Debian packages: each package on top of the base, and of the base itself, by name, version and SHA-256.

They are resolved from the mirror's signed index in a container of the base, so that any host with an engine can do it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torchdock.engine import Engine
from torchdock.errors import InputError, TorchdockError, read_text
from torchdock.locks import Pin, difference
from torchdock.mounts import mount
from torchdock.process import capture
from torchdock.sources import APT_MIRROR_VARIABLE, Sources

# The engine's word for an architecture, and Debian's.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
FOLDER = Path("docker/locks/debian")
# The layers of Debian packages, each with the file of the names that people ask for. Each has a lock file of its own:
# a new package of the system layer leaves the one below the wheels as it is.
PYTHON, SYSTEM = "python", "system"
REQUESTED = {PYTHON: Path("docker/layers/python-packages.txt"), SYSTEM: Path("docker/layers/packages.txt")}
_SECTIONS = {"base": PYTHON, "python": PYTHON, "system": SYSTEM}  # the lock file that a section is in
_LINE = re.compile(
    r"(base|python|system) (\S+) (\S+) ([0-9a-f]{64}) ((?:debian|debian-security)/pool/\S+\.deb) ([0-9]+)"
)


@dataclass(frozen=True)
class Package:
    """One package: its section, where it lies below Debian's archives, and how many bytes it takes to download.

    Sections: ``base`` is part of a base made here; ``python`` and ``system`` are layers on top of any base.
    """

    section: str
    name: str
    version: str
    sha256: str
    path: str
    size: int


@dataclass(frozen=True)
class DebianLock:
    """Packages of one architecture: of one lock file, or of all of them.

    Attributes:
        snapshot: the time stamp below which the snapshot archive keeps all of them.
        requested: digest of the names that it was resolved for (:data:`REQUESTED`); of all files: the last one's.
    """

    suite: str
    architecture: str
    snapshot: str
    requested: str
    packages: tuple[Package, ...]

    def text(self) -> str:
        """As the file has it."""
        fields = f"suite={self.suite} architecture={self.architecture} snapshot={self.snapshot}"
        fields += (
            f" requested={self.requested} download={sum(one.size for one in self.packages if one.section != 'base')}"
        )
        lines = [
            f"# torchdock: {fields}",
            "# Written by `invoke lock`: section, name, version, SHA-256, where it lies in Debian's archives, bytes.",
        ]
        lines += [" ".join(map(str, vars(one).values())) for one in self.packages]
        return "\n".join(lines) + "\n"

    def part(self, layer: str) -> tuple[Package, ...]:
        """The packages that are in the lock file of this layer."""
        return tuple(one for one in self.packages if _SECTIONS[one.section] == layer)

    def preferences(self) -> str:
        """apt_preferences(5) that hold the base at exactly these versions."""
        stanza = "Package: {}\nPin: version {}\nPin-Priority: 1001\n"
        return "\n".join(stanza.format(one.name, one.version) for one in self.packages if one.section == "base")


def parse(text: str, origin: str) -> DebianLock:
    """The lock in this text.

    Raises:
        InputError: a line is not a package with its SHA-256, or the header is missing; names the file and the line.
    """
    remedy = "It is written by `invoke lock`; `git checkout docker/locks` restores it."
    lines = text.splitlines()
    header = dict(re.findall(r"(\w+)=(\S+)", lines[0])) if lines and lines[0].startswith("# torchdock:") else {}
    if not {"suite", "architecture", "snapshot", "requested"} <= header.keys():
        raise InputError(
            f"{origin}: the first line does not say which suite and architecture this lock is for. {remedy}"
        )
    packages = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(
                f"{origin}, line {number}: {line[:80]!r} is no package with its SHA-256 and path. {remedy}"
            )
        section, name, version, sha256, path, size = match.groups()
        packages.append(Package(section, name, version, sha256, path, int(size)))
    fields = (header["suite"], header["architecture"], header["snapshot"], header["requested"])
    return DebianLock(*fields, tuple(packages))


def requested(root: Path, layer: str) -> list[str]:
    """The names of packages that a layer is asked for, in the order of its file (:data:`REQUESTED`).

    Raises:
        InputError: a line is no package's name; names it.
    """
    names = []
    path = REQUESTED[layer]
    for number, line in enumerate(read_text(root / path, str(path)).splitlines(), 1):
        name = line.split("#")[0].strip()
        if name and not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
            raise InputError(
                f"{path}:{number}: {name[:60]!r} is no name of a Debian package. Write one package a line, "
                "without a version: the lock has it. The locks are unchanged."
            )
        names += [name] if name else []
    return names


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:12]


def file(architecture: str, layer: str) -> Path:
    """The lock file of an architecture (``x86_64``, ``aarch64``) and a layer, below the root of the clone."""
    return FOLDER / layer / f"{ARCHITECTURES.get(architecture, architecture)}.txt"


def _read_file(root: Path, path: Path) -> DebianLock:
    return parse(read_text(root / path, str(path)), str(path))


def read(root: Path, architecture: str) -> DebianLock | None:
    """The lock of an architecture (``x86_64``, ``aarch64``), all layers; None where there is none.

    Raises:
        InputError: see :func:`parse`.
    """
    paths = [file(architecture, layer) for layer in REQUESTED]
    if not all((root / path).is_file() for path in paths):
        return None
    parts = [_read_file(root, path) for path in paths]
    packages = tuple(one for part in parts for one in part.packages)
    return replace(parts[-1], packages=packages, snapshot=max(part.snapshot for part in parts))


def check(root: Path, architecture: str, suite: str) -> list[str]:
    """Whether the lock serves a build here.

    Returns:
        Warnings: the lock is older than the names that are asked for.

    Raises:
        InputError: there is none for this architecture, or it is for another one or another suite.
    """
    warnings = []
    word = ARCHITECTURES.get(architecture, architecture)
    for layer, names in REQUESTED.items():
        path = file(architecture, layer)
        if not (root / path).is_file():
            raise InputError(f"There is no lock of Debian packages for {word} ({path}). `invoke lock` writes it.")
        lock = _read_file(root, path)
        if (lock.architecture, lock.suite) != (word, suite):
            raise InputError(
                f"{path} is a lock for Debian {lock.suite} on {lock.architecture}; here {suite} on {word} is built. "
                "`git checkout docker/locks` restores it, `invoke lock` writes it anew."
            )
        if lock.requested != _digest(requested(root, layer)):
            warnings.append(f"{names} was changed after its lock was written; `invoke lock` brings the lock up to date")
    return warnings


def is_older(root: Path, suite: str) -> bool:
    """Whether the lock of some architecture is missing, or older than the names that are asked for."""
    try:
        return any(check(root, architecture, suite) for architecture in ARCHITECTURES)
    except InputError:
        return True


def refresh(
    engine: Engine, root: Path, base: str, suite: str, sources: Sources, *, upgrade: bool
) -> tuple[dict[Path, str | None], list[tuple[str, str, str]]]:
    """Resolve every architecture; writes nothing.

    Returns:
        What is to be written (only what differs from what is there), and (package, was, is) of what differs.

    Raises:
        InputError, TorchdockError: see :func:`resolve`.
    """
    files: dict[Path, str | None] = {}
    rows: set[tuple[str, str, str]] = set()
    for architecture in ARCHITECTURES:
        try:
            old = read(root, architecture)
        except InputError:  # damaged: it is written anew
            old = None
        new = resolve(engine, root, base, architecture, suite, sources, upgrade=upgrade)
        rows |= set(difference(_versions(old), _versions(new)))
        for layer in REQUESTED:
            path = file(architecture, layer)
            said = replace(new, packages=new.part(layer), requested=_digest(requested(root, layer)))
            # The snapshot alone is no reason: the old one keeps the same packages.
            there = _read_file(root, path) if old is not None else None
            if there is None or (there.packages, there.requested) != (said.packages, said.requested):
                files[root / path] = said.text()
    return files, sorted(rows)


def _versions(lock: DebianLock | None) -> dict[str, Pin]:
    return {one.name: Pin(one.name, one.version, "") for one in lock.packages} if lock is not None else {}


def resolve(
    engine: Engine, root: Path, base: str, architecture: str, suite: str, sources: Sources, *, upgrade: bool
) -> DebianLock:
    """Resolve the packages of all layers in a container of ``base``; what is locked stays unless ``upgrade``.

    Raises:
        InputError: a package does not exist.
        TorchdockError: the mirror cannot be reached or its signature is wrong.
    """
    python, system = (requested(root, layer) for layer in (PYTHON, SYSTEM))
    word = ARCHITECTURES[architecture]
    try:
        locked = None if upgrade else read(root, architecture)
    except InputError:  # damaged: nothing of it is kept
        locked = None
    with tempfile.TemporaryDirectory(prefix="torchdock-debian-") as name:
        folder = Path(name)
        _hand_over(folder, sources)
        (folder / "old.txt").write_text(locked.text() if locked is not None else "")
        mounts = {
            root / "docker/layers/common.sh": "/run/common.sh",
            root / "docker/debian-lock.sh": "/run/debian-lock.sh",
            folder / "secrets": "/run/secrets",
            folder / "old.txt": "/run/old.txt",
        }
        argv = [engine.cli, "run", "--rm", "--init", *(["--network=host"] if sources.loopback else [])]
        for source, target in mounts.items():
            argv += mount(str(source), target, read_only=True)
        for proxy in sources.proxies:
            argv += ["--env", proxy]
        script = ["sh", "/run/debian-lock.sh", word, suite, " ".join(python), *system]
        done = capture([*argv, base, *script], timeout=600)
    if done.code != 0:
        said = sources.redact(" ".join(done.err.split()))
        unknown = re.search("Unable to locate package|has no installation candidate", said)
        remedy = f"Check the network and {APT_MIRROR_VARIABLE}; `invoke doctor` tries the mirror."
        remedy = f"Correct {' or '.join(map(str, REQUESTED.values()))}." if unknown else remedy
        kind = InputError if unknown else TorchdockError
        told = f"The Debian packages could not be resolved for {word}: {said[-400:]}"
        raise kind(f"{told} {remedy} The locks are unchanged.")
    first, _, rest = done.out.partition("\n")
    header = f"# torchdock: suite={suite} architecture={word} {first} requested={_digest(system)}\n"
    return parse(header + rest, f"the lock resolved for {word}")


def _hand_over(folder: Path, sources: Sources) -> None:
    """Lay out ``/run/secrets`` as a build has it, readable for this user alone."""
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    for name, path in (("ca", sources.ca), ("netrc", sources.netrc)):
        if path is not None:
            shutil.copyfile(path, secrets / name)
    if sources.apt_mirror is not None:
        handle = os.open(secrets / "apt-mirror", os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(sources.apt_mirror.url)
