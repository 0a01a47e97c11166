"""What is mounted from the host, and whether the engine, which need not be the caller, can reach it there."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torchdock import lifeline
from torchdock.engine import Engine
from torchdock.errors import InputError, TorchdockError
from torchdock.identity import Identity, Way
from torchdock.launch import Mount
from torchdock.process import csv_fields

MOUNTINFO = Path("/proc/self/mountinfo")
# Servers that may take root for nobody (`root_squash`, Kerberos): only what everybody may walk through is open to it.
SQUASHING = re.compile(r"nfs4?|cifs|smb3|afs|ceph|lustre|gpfs|beegfs|9p|virtiofs")
OLD_SECONDS = 24 * 3600  # since a copy was last asked for


@dataclass(frozen=True)
class Mounted:
    """A file system of this host: where it is, its type, its options."""

    point: Path
    kind: str
    options: frozenset[str]


def mount(source: str, target: str, *, read_only: bool = False, kind: str = "bind", label: str = "") -> list[str]:
    """``--mount`` with its value as CSV, so that commas and colons in paths are harmless.

    ``label``: what a volume gets that is made by it.
    """
    more = ["readonly"] if read_only else []
    more += [f"volume-label={label}"] if label else []
    return ["--mount", csv_fields(f"type={kind}", f"source={source}", f"target={target}", *more)]


def points(workspace: Path | None, mounts: Iterable[Mount]) -> list[tuple[Path, bool]]:
    """Where, on this host, mounts are that stand below the workspace or below one another, the upper ones first.

    Not below what is read-only. True: it is a folder.
    """
    mounts = sorted(mounts, key=lambda one: len(PurePosixPath(one.target).parts))
    above = [*([Mount(workspace, "/workspace")] if workspace is not None else []), *mounts]
    found = []
    for one in mounts:
        target = PurePosixPath(one.target)
        over = [other for other in above if PurePosixPath(other.target) in target.parents]
        nearest = max(over, key=lambda other: len(PurePosixPath(other.target).parts), default=None)
        if nearest is not None and not nearest.read_only:
            found.append((nearest.source / target.relative_to(nearest.target), one.source.is_dir()))
    return found


def make_point(point: Path, *, folder: bool) -> None:
    """Make a mount point as the caller, where there is nothing: the engine, which runs as root, would make it root's.

    Raises:
        InputError: it cannot be made.
    """
    if os.path.lexists(point) or any(one.is_symlink() for one in point.parents):  # a link leads elsewhere in there
        return
    try:
        (point if folder else point.parent).mkdir(parents=True, exist_ok=True)
        if not folder:
            point.touch()
    except OSError as error:
        raise InputError(
            f"{point}, where something is to be mounted, cannot be made ({error.strerror}). Make it, or mount that at "
            "another place in the container, such as /data."
        ) from None


def labels(engine: Engine) -> list[str]:
    """What SELinux needs to let a container at folders of the host.

    The label is switched off for the container. The other way is to label the folders anew (``z``), for good and for
    all that is below them: it takes minutes for a data set, locks sshd out of a home, and docker's ``--mount`` has no
    word for it.
    What a container may do is decided by its UID and its lack of capabilities as before.
    """
    return ["--security-opt", "label=disable"] if engine.selinux else []


def table(text: str) -> list[Mounted]:
    """The mounted file systems of a ``mountinfo``. Pure."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if len(before) > 5 and len(after) > 2:
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before[4])
            found.append(Mounted(Path(point), after[0], frozenset((*before[5].split(","), *after[2].split(",")))))
    return found


def holding(path: Path, mounted: Iterable[Mounted]) -> Mounted | None:
    """The file system that a path without links is on. Pure."""
    over = [one for one in mounted if path == one.point or one.point in path.parents]
    return max(reversed(over), key=lambda one: len(one.point.parts), default=None)  # the last one hides those below


def _facts() -> list[Mounted]:
    try:
        return table(MOUNTINFO.read_text(errors="surrogateescape"))
    except OSError:  # macOS, Windows: the engine is virtual there
        return []


def closed(path: Path, mounted: Iterable[Mounted]) -> str:
    """Why root of this host cannot get to a path of the caller's: ``fuse``, ``squashed`` (perhaps), or ``""``."""
    mounted = list(mounted)
    on = holding(path, mounted)
    if on is None:
        return ""
    if on.kind.startswith("fuse") and on.kind != "fuseblk" and "allow_other" not in on.options:
        return "fuse"
    if not SQUASHING.fullmatch(on.kind):
        return ""
    for parent in path.parents:
        if holding(parent, mounted) != on:
            break
        try:
            if not parent.stat().st_mode & 0o001:
                return "squashed"
        except OSError:
            return "squashed"
    return ""


def _as_root(engine: Engine, who: Identity) -> bool:
    """It looks at this host's folders as this host's root."""
    return who.way in (Way.SAME, Way.HOST) and not engine.virtual


def check(engine: Engine, who: Identity, sources: Iterable[Path]) -> None:
    """Whether the engine can get at what it shall mount.

    Raises:
        InputError: one of these is for the caller's eyes alone, or in a /tmp that is not the engine's.
    """
    mounted = _facts()
    for source in sources:
        if engine.own_tmp and (source == Path("/tmp") or Path("/tmp") in source.parents):
            raise InputError(
                f"{source} cannot be mounted: the Docker that came as a snap has a /tmp of its own. Use a folder "
                "in your home, or install Docker Engine from packages."
            )
        if _as_root(engine, who) and closed(source, mounted) == "fuse":
            raise InputError(
                f"{source} is on a FUSE file system that is open to you alone, so the engine, which runs as root, "
                "cannot mount it. Mount it with -o allow_other (and `user_allow_other` in /etc/fuse.conf), use a "
                "rootless engine, or a folder on a disk of this machine (-w DIR)."
            )


def doubt(engine: Engine, who: Identity, sources: Iterable[Path]) -> str:
    """What to say when the engine refuses these mounts: a file server may hold it for a stranger; or ``""``."""
    mounted = _facts()
    suspects = [one for one in sources if _as_root(engine, who) and closed(one, mounted) == "squashed"]
    if not suspects:
        return ""
    path = suspects[0]
    on = holding(path, mounted)
    inner = [one for one in path.parents if holding(one, mounted) == on and not _open(one)]
    words = " ".join(shlex.quote(str(one)) for one in reversed(inner))
    return (
        f"{path} is on a file server ({on.kind if on else 'network'}) that may take the engine's root for a stranger "
        f"(root_squash), and the folders above it are closed to strangers. Let them be walked through, not read: "
        f"`chmod o+x {words}`; or use a rootless engine, or a folder on a disk of this machine (-w DIR)."
    )


def _open(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & 0o001)
    except OSError:
        return False


def reachable(engine: Engine, who: Identity, file: Path) -> Path:
    """Where the engine can get at a file of the caller's: the file, or where :func:`copy` puts it on a local disk.

    The name of a copy is its content's, so that equal launches are equal.
    """
    if not _as_root(engine, who) or not closed(file, _facts()):
        return file
    name = f"local-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    return lifeline.FOLDERS / f"torchdock-{os.getuid()}" / name


def copy(file: Path, target: Path) -> None:
    """Make the copy that :func:`reachable` named, and sweep old ones.

    Raises:
        TorchdockError: the folder for it is somebody else's, whose file would be mounted in its place.
    """
    if target == file:
        return
    place = lifeline.folder(os.getuid())
    if place is None:
        raise TorchdockError(
            f"{target.parent} is to hold a copy of {file} for the engine, and is no folder of yours alone. Remove it, "
            f"or have it removed: sudo rm -r {shlex.quote(str(target.parent))}"
        )
    content = file.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        os.utime(target)  # it is in use
    else:
        unborn = target.with_name(f".local-{os.getpid()}")
        unborn.write_bytes(content)
        unborn.chmod(0o644)
        unborn.replace(target)
    _sweep(place, target)


def _sweep(place: Path, mine: Path) -> None:
    """Remove copies that nobody has asked for since a day, and what killed clients left of theirs.

    A container that runs keeps what it has mounted.
    """
    for path in (*place.glob("local-*"), *place.glob(".local-*")):
        with suppress(OSError):
            if path == mine or time.time() - path.lstat().st_mtime < OLD_SECONDS:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def stand_in(engine: Engine, who: Identity, folder: Path) -> Iterator[Path]:
    """A folder to mount in place of this one, itself where the engine gets at it.

    What was written into it goes where it belongs in the end, also when what wrote it failed or was interrupted.
    """
    local = _local_folder(engine, who, folder)
    try:
        yield local
    finally:
        if local != folder:
            shutil.copytree(local, folder, dirs_exist_ok=True)
            shutil.rmtree(local, ignore_errors=True)


def _local_folder(engine: Engine, who: Identity, folder: Path) -> Path:
    place = lifeline.folder(os.getuid())
    if not _as_root(engine, who) or not closed(folder.resolve(), _facts()) or place is None:
        return folder
    local = place / f"local-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    local.mkdir(mode=0o700, exist_ok=True)
    return local
