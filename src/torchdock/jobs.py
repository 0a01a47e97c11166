"""The containers that torchdock launched for a user, from any clone: what they run, how they end, their output."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from packaging.utils import canonicalize_name

from torchdock import container
from torchdock.container import LABEL, Identity
from torchdock.engine import Engine
from torchdock.errors import InputError, did_you_mean
from torchdock.process import capture

# How PID 1, the entrypoint and `--time` stand before what a person typed.
_BEFORE = re.compile(
    r"^(?:/usr/bin/tini -- |\S*/init\.sh )?(?:\S*/entrypoint\.sh )?(?:timeout --foreground \S+ \S+ \S+ \d+ )?"
    r"(?:\S*/entrypoint\.sh )?"
)
_DIST_INFO = re.compile(r"/site-packages/([^/]+?)-([^/-]+)\.dist-info$")
SITE_PACKAGES = "/opt/venv/lib/python3.13/site-packages"
UNTOUCHED = "/opt/venv/lib"  # in the image of the same time as all that is in it; nobody installs anything here
ADDED, CHANGED, REMOVED = 1, 0, 2  # the engine's kinds of a change


@dataclass(frozen=True)
class Session:
    """One container.

    Attributes:
        name: what people call it: the name of a job, else the container's name without what all of them begin with.
        role: ``up``, ``job``, ``run``, ``shell`` or ``test``.
        state: ``running``, ``exited``, ``created``, … as the engine has it; ``status``: the same in words with times.
        exit_code: None while it runs.
        seconds: its time limit, or None.
        profile: what it was granted beyond least privilege (torchdock.profiles), or empty.
        added: packages that differ from the image, as ``einops 0.8.1`` or ``-numpy 2.4.0``.
    """

    name: str
    container: str
    role: str
    state: str
    status: str
    exit_code: int | None
    command: str
    image: str
    workspace: str
    clone: str
    gpus: tuple[str, ...]
    seconds: int | None
    profile: str = ""
    added: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As ``ps --json`` prints it."""
        return asdict(self)


def gather(engine: Engine, who: Identity) -> list[Session]:
    """This user's containers, the newest first, without what was added to them."""
    return [session(found, who) for found in engine.containers([f"{LABEL}.user={who.uid}"])]


def session(found: Mapping[str, Any], who: Identity) -> Session:
    """One container as the engine lists it. Pure."""
    labels = found["Labels"]
    full = str(found["Names"][0]).lstrip("/")
    code = re.match(r"Exited \((\d+)\)", found.get("Status", ""))
    limit = labels.get(f"{LABEL}.seconds", "")
    return Session(
        name=full.removeprefix(f"torchdock-{who.name}-"),
        container=full,
        role=labels.get(f"{LABEL}.role", ""),
        state=found["State"],
        status=found.get("Status", ""),
        exit_code=int(code[1]) if code else None,
        command=_BEFORE.sub("", found.get("Command", "")),
        image=found.get("Image", ""),
        workspace=labels.get(f"{LABEL}.workspace", ""),
        clone=labels.get(f"{LABEL}.clone", ""),
        gpus=tuple(uuid for uuid in labels.get(f"{LABEL}.gpus", "").split(",") if uuid),
        seconds=int(limit) if limit.isdigit() else None,
        profile=labels.get(f"{LABEL}.profile", ""),
    )


def find(sessions: Sequence[Session], name: str | None) -> Session:
    """The container of this name: the short one, the whole one, or the only job where none is named.

    Raises:
        InputError: there is none, or none is named and there are several.
    """
    if name is None:
        jobs = [one for one in sessions if one.role == "job"]
        if len(jobs) == 1:
            return jobs[0]
        names = ", ".join(one.name for one in jobs) or "none; `invoke run --detach -- CMD` starts one"
        raise InputError(f"Which job? Name one: {names}.")
    found = [one for one in sessions if name in (one.name, one.container)]
    if found:
        return found[0]
    known = [one.name for one in sessions]
    raise InputError(
        f"You have no container {name!r}.{did_you_mean(name, known)} `invoke ps` shows those that there are."
    )


def added(changes: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What was installed into a container's environment, or taken out of it (with a minus), from the engine's list of
    changed paths. Pure.
    """
    rows = []
    for change in changes:
        match = _DIST_INFO.search(change["Path"])
        if match and change["Kind"] in (ADDED, REMOVED):
            rows.append(f"{'-' if change['Kind'] == REMOVED else ''}{match[1].replace('_', '-')} {match[2]}")
    return tuple(sorted(rows, key=lambda row: row.lstrip("-").lower()))


def installed(engine: Engine, name: str) -> tuple[str, ...]:
    """As :func:`added`, of this container; quick where nothing was installed: the folder has the image's time then."""
    time = engine.modified(name, SITE_PACKAGES)
    if time and time == engine.modified(name, UNTOUCHED):
        return ()
    return added(engine.changes(name))


def with_added(engine: Engine, sessions: Sequence[Session]) -> list[Session]:
    """These sessions with what was added to each; asked for at once, because the engine may take long over each."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda one: replace(one, added=installed(engine, one.container)), sessions))


def versions(engine: Engine, name: str) -> dict[str, str]:
    """What is installed in a running container's environment: version by name, as PEP 503 normalises it.

    Empty where the container cannot be asked. A hundred times quicker than all its changes.
    """
    listing = "ls -d /opt/venv/lib/python3*/site-packages/*.dist-info"
    done = capture([engine.cli, "exec", name, "sh", "-c", listing], timeout=30)
    found = (_DIST_INFO.search(line) for line in done.out.splitlines())
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def logs_argv(engine: Engine, name: str, *, follow: bool, lines: int | None) -> tuple[str, ...]:
    """The docker command that prints what a container has printed; ``lines``: only so many of the last ones."""
    flags = [*(["--follow"] if follow else []), *(["--tail", str(lines)] if lines is not None else [])]
    return (engine.program, "logs", *flags, name)


def attach_argv(engine: Engine, name: str, *, typing: bool = True) -> tuple[str, ...]:
    """The docker command that joins a container's streams. Leaving does not end it: no signal is handed on.

    Without ``typing`` it only looks on: docker refuses to join a container's terminal from where there is none.
    """
    return (engine.program, "attach", "--sig-proxy=false", *([] if typing else ["--no-stdin"]), name)


def stop(engine: Engine, one: Session, *, remove: bool) -> int | None:
    """SIGTERM, the container's grace, its end; ``remove``: its output and its name go too.

    Returns:
        Its exit code; None where the container was removed at its end.

    Raises:
        TorchdockError: it does not end.
    """
    if one.state == "running":
        container.end(engine, one.container)
    code = engine.exit_code(one.container)
    if remove or one.role == "up":
        engine.remove_container(one.container)
    return code
