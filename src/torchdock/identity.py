"""Who calls, and how that person is the same one in a container: what counts is who owns the files on the host."""

from __future__ import annotations

import os
import pwd
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from torchdock.engine import Engine
from torchdock.errors import EngineError, InputError
from torchdock.launch import is_plain


class Way(Enum):
    """How an engine maps the caller."""

    SAME = "the same UID inside and outside"  # an engine that runs as root
    HOST = "the same UID, with the engine's remapping switched off for the container"  # userns-remap
    ROOT = "root inside is the caller outside"  # rootless Docker: every other UID inside is none of the host's users
    KEEP = "the caller keeps the UID"  # rootless Podman: keep-id


@dataclass(frozen=True)
class Identity:
    """The caller on the host, and how the engine maps it.

    Attributes:
        groups: supplementary groups on the host.
        groups_reach: what these groups may on the host, the container may too.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    way: Way = Way.SAME
    groups_reach: bool = True

    @property
    def root_inside(self) -> bool:
        """The caller is UID 0 in the container, and nobody special outside."""
        return self.way is Way.ROOT

    @property
    def lost(self) -> tuple[int, ...]:
        """Groups of the host that the container has no part in."""
        return () if self.groups_reach else self.groups


def identity(engine: Engine) -> Identity:
    """Who calls; a UID without a passwd entry is called ``user<UID>``.

    Raises:
        EngineError: the engine is another user's rootless one, who would own all that is written.
    """
    uid, gid = os.getuid(), os.getgid()
    try:
        found = pwd.getpwuid(uid).pw_name
    except KeyError:
        found = f"user{uid}"
    name = re.sub(r"[^a-z0-9_-]", "", found.lower()) or f"user{uid}"
    groups = tuple(sorted(set(os.getgroups()) - {gid}))
    if engine.rootless and engine.owner not in (None, uid):
        raise EngineError(
            f"The rootless engine at {engine.facts.endpoint} is that of UID {engine.owner}, who would own whatever a "
            f"container writes; you are UID {uid}. Choose an engine of your own with `docker context use default` or "
            "by unsetting DOCKER_HOST, or run this as its owner."
        )
    way, reach = planned(engine)
    return Identity(uid, gid, groups, name, way, reach)


def planned(engine: Engine) -> tuple[Way, bool]:
    """How this engine maps a caller, and whether the caller's groups reach into the container. Pure."""
    if not engine.rootless:
        return Way.HOST if engine.remaps else Way.SAME, True
    return (Way.KEEP, engine.keeps_groups) if engine.podman else (Way.ROOT, False)


def arguments(who: Identity) -> list[str]:
    """The words of ``docker run`` that make the container's process the caller. Pure."""
    if who.way is Way.ROOT:
        return []
    if who.way is Way.KEEP:
        return ["--userns=keep-id", *(["--group-add", "keep-groups"] if who.groups and who.groups_reach else [])]
    added = [word for group in who.groups for word in ("--group-add", str(group))]
    # Remapped, every UID inside is a stranger on the host, and no folder of the caller's could be written.
    host = ["--userns=host"] if who.way is Way.HOST else []
    return [*host, "--user", f"{who.uid}:{who.gid}", *added]


def _bits(found: os.stat_result, who: Identity) -> int:
    """The permissions (rwx) that a file's mode gives to the caller's process in a container, without capabilities."""
    if found.st_uid == who.uid:
        return found.st_mode >> 6 & 7
    reaching = {who.gid, *(who.groups if who.groups_reach else ())}
    return found.st_mode >> (3 if found.st_gid in reaching else 0) & 7


def may_from_within(path: Path, who: Identity, *, write: bool) -> bool:
    """Whether the caller may list this folder or read this file, and ``write`` it, from within a container.

    Access lists of the host (ACL) count as far as the container has the caller's own credentials.
    """
    found = path.stat()
    folder = path.is_dir()
    wanted = (os.R_OK if not (write and folder) else 0) | (os.W_OK if write else 0) | (os.X_OK if folder else 0)
    if who.uid == 0:  # who may do everything here, and nothing beyond the mode in there
        return _bits(found, who) & wanted == wanted
    allowed = os.access(path, wanted)
    if allowed and found.st_uid != who.uid and found.st_gid in who.lost:
        return _bits(found, who) & wanted == wanted
    return allowed


def lost_groups(paths: Iterable[Path], who: Identity) -> str:
    """One line where the caller may use one of these only by a group that does not reach inside; else ``""``."""
    closed = []
    for path in paths if who.lost else ():
        try:
            found = path.stat()
            if found.st_gid in who.lost and not may_from_within(path, who, write=False):
                closed.append((path, found.st_gid))
        except OSError:
            continue
    if not closed:
        return ""
    said = ", ".join(f"{path} (group {group})" for path, group in closed)
    return f"Closed in the container, because this engine cannot hand on your groups: {said}. {groups_remedy(who.way)}"


def groups_remedy(way: Way) -> str:
    """What makes groups reach into a container."""
    if way is Way.KEEP:
        return "Podman hands groups on with the runtime crun: install it."
    return "A rootful Docker Engine and Podman with crun hand them on."


def workspace_path(path: Path) -> Path:
    """The folder as an absolute path without links; it need not exist.

    Raises:
        InputError: it cannot even be looked for (too long, a loop of links, the home of nobody), or its name would not
            reach the engine as it is.
    """
    try:
        resolved = path.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"The workspace {path} cannot be used ({why}). Name a folder of your own with -w DIR."
        ) from None
    if not is_plain(str(resolved)):
        raise InputError(
            f"The workspace {str(resolved)!a} has a control character in its name, or is no UTF-8, and cannot be "
            "mounted. Rename it, or name another folder with -w DIR."
        )
    return resolved


def check_workspace(path: Path, who: Identity) -> Path:
    """The workspace as an absolute path.

    Raises:
        InputError: it is missing, is no folder, or the caller could not write in it from a container without
            capabilities (which root on the host can, and root in there cannot) or without a group that is lost there.
    """
    resolved = workspace_path(path)
    try:
        what = "" if resolved.is_dir() else "is no folder" if resolved.exists() else "does not exist"
    except OSError as error:
        what = f"cannot be used ({error.strerror})"
    if what:
        raise InputError(
            f"The workspace {resolved} {what}. Name a folder of your own with -w DIR, or make it: "
            f"mkdir -p {shlex.quote(str(resolved))}"
        )
    if may_from_within(resolved, who, write=True):
        return resolved
    found = resolved.stat()
    if found.st_gid in who.lost and os.access(resolved, os.W_OK | os.X_OK):
        raise InputError(
            f"The workspace {resolved} is writable for {who.name} by the group {found.st_gid} alone, and this engine "
            f"cannot hand that group on. {groups_remedy(who.way)} Or choose another workspace with -w DIR."
        )
    raise InputError(
        f"The workspace {resolved} belongs to UID {found.st_uid} and is not writable for {who.name} (UID {who.uid}), "
        "who works in the container without any special right. Choose another one with -w DIR, correct the owner "
        f"(`sudo chown {who.uid} {shlex.quote(str(resolved))}`), or run this as its owner."
    )
