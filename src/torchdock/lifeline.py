"""A lock that the client holds while it lives, and that the container watches: however the client ends, the kernel
frees the lock, and what was attached to that client ends too (docker itself leaves it running: moby/moby#9098).

Host side; the other end is docker/entrypoint.sh. Nothing has to be cleaned up after a kill: a stale file holds no lock.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSIDE = "/run/torchdock/lifeline"
WORD = "/run/torchdock/word"  # the same file, where the container may leave word for the client
VARIABLE = "TORCHDOCK_LIFELINE"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FOLDERS = Path("/tmp")  # on the engine's own machine and on a local disk: flock and root's access are sure


def folder(uid: int, *, make: bool = True) -> Path | None:
    """This user's folder of lifelines, made if need be; None where it cannot be had (somebody else holds the name).

    Without ``make`` it may be missing still.
    """
    path = FOLDERS / f"torchdock-{uid}"
    try:
        if make:
            path.mkdir(mode=0o700, exist_ok=True)
        elif not os.path.lexists(path):
            return path
        found = path.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return path if private else None


def word(where: Path, name: str) -> str:
    """What a container is told: its lifeline, by which kernel the lock is held (its boot ID; empty off Linux), and in
    which folder (device and inode), because one of the same name may be mounted there that was removed since.
    """
    try:
        kernel, found = BOOT_ID.read_text().strip(), where.stat()
    except OSError:
        return f"{name}:"
    return f"{name}:{kernel}:{found.st_dev}:{found.st_ino}"


@contextmanager
def held(where: Path | None) -> Iterator[str]:
    """A new lifeline in this folder, held by this process and nobody else; its name, empty where there is no folder."""
    if where is None:
        yield ""
        return
    _sweep(where)
    name = secrets.token_hex(8)
    unborn = where / f".{name}"
    try:
        handle = os.open(unborn, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a full disk: the command matters more than its lifeline
        yield ""
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        unborn.rename(where / name)
        yield name
    finally:
        (where / name).unlink(missing_ok=True)
        os.close(handle)


def word_left(where: Path | None, name: str) -> str:
    """What the container of this lifeline has written for its client; empty where it has not."""
    try:
        return "" if where is None or not name else (where / name).read_text(errors="replace").strip()
    except OSError:
        return ""


def _sweep(where: Path) -> None:
    """Remove the files of clients that were killed: those that nobody holds."""
    for path in where.glob("[0-9a-f]*"):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except OSError:
            continue
        finally:
            os.close(handle)
