"""From facts and an image to a container: who runs in it, with what, and the one docker command that starts it."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchdock.engine import Engine, require
from torchdock.errors import EngineError, InputError, TorchdockError
from torchdock.gpus import Gpu
from torchdock.process import Foreground, capture, csv_fields, foreground
from torchdock.sources import Sources

ENTRYPOINT = "/opt/torchdock/docker/entrypoint.sh"
CA_INSIDE = "/run/torchdock/ca.crt"
# Every client that people use in there looks for its CA bundle under a name of its own.
CA_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)
STOP_SECONDS = 120  # what a training gets to save its state (failure mode 38: 10 s lose the run)
OPEN_FILES = 65536
LABEL = "dev.torchdock"


@dataclass(frozen=True)
class Identity:
    """The caller on the host. ``root_inside``: the engine is rootless, so the caller is root in the container."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    root_inside: bool = False


@dataclass(frozen=True)
class LaunchPlan:
    """Exactly what will be launched: ``argv`` is the one docker command."""

    name: str
    argv: tuple[str, ...]
    image: str
    gpus: tuple[Gpu, ...]

    @property
    def digest(self) -> str:
        """Names this plan: two launches with the same digest are the same container."""
        return hashlib.sha256("\0".join(self.argv).encode()).hexdigest()[:12]


def identity(engine: Engine) -> Identity:
    """Who calls; a UID without a passwd entry is called ``user<UID>``."""
    uid, gid = os.getuid(), os.getgid()
    try:
        found = pwd.getpwuid(uid).pw_name
    except KeyError:
        found = f"user{uid}"
    name = re.sub(r"[^a-z0-9_-]", "", found.lower()) or f"user{uid}"
    return Identity(uid, gid, tuple(sorted(set(os.getgroups()) - {gid})), name, engine.rootless)


def workspace_path(path: Path) -> Path:
    """The folder as an absolute path without links; it need not exist.

    Raises:
        InputError: it cannot even be looked for (too long, a loop of links, the home of nobody).
    """
    try:
        return path.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"The workspace {path} cannot be used ({why}). Name a folder of your own with -w DIR."
        ) from None


def check_workspace(path: Path, who: Identity) -> Path:
    """The workspace as an absolute path.

    Raises:
        InputError: it is missing, is no folder, or the caller could not write in it from a container without
            capabilities (which root on the host can, and root in there cannot).
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
    if who.uid == 0 and not who.root_inside:
        found = resolved.stat()
        in_group = found.st_gid in (who.gid, *who.groups)
        writable = found.st_mode & (0o200 if found.st_uid == 0 else 0o020 if in_group else 0o002)
    else:
        writable = os.access(resolved, os.W_OK | os.X_OK)
    if not writable:
        owner = resolved.stat().st_uid
        raise InputError(
            f"The workspace {resolved} belongs to UID {owner} and is not writable for {who.name} (UID {who.uid}), who "
            "works in the container without any special right. Choose another one with -w DIR, correct the owner "
            f"(`sudo chown {who.uid} {shlex.quote(str(resolved))}`), or run this as its owner."
        )
    return resolved


def mount(source: str, target: str, *, read_only: bool = False, kind: str = "bind") -> list[str]:
    """``--mount`` with its value as CSV, so that commas and colons in paths are harmless."""
    more = ["readonly"] if read_only else []
    return ["--mount", csv_fields(f"type={kind}", f"source={source}", f"target={target}", *more)]


def shared_memory(memory_bytes: int) -> int:
    """Bytes for /dev/shm: half of the machine's memory, as Linux itself sizes a tmpfs; at least 1 GiB."""
    return max(memory_bytes // 2 >> 20 << 20, 1 << 30)  # whole MiB: the kernel rounds to pages


def plan(
    engine: Engine,
    image: str,
    who: Identity,
    sources: Sources,
    *,
    role: str,
    clone: str,
    workspace: Path | None,
    command: Sequence[str],
    gpus: Sequence[Gpu] = (),
    gpu_arguments: Sequence[str] = (),
    name: str = "",
    tty: bool = False,
    mounts: Sequence[str] = (),
) -> LaunchPlan:
    """The launch of a container with least privilege: the caller's identity, no capabilities, no new privileges.

    ``role`` is ``up`` (detached, stays), ``run``, ``shell`` or ``test`` (attached, removed at its end).
    """
    name = name or f"torchdock-{who.name}-{role}-{secrets.token_hex(4)}"
    argv = ["docker", "run", *(["--detach"] if role == "up" else ["--rm", "--interactive"])]
    argv += ["--tty"] if tty else []
    argv += ["--name", name, "--hostname", "torchdock"]
    labels = {"role": role, "user": str(who.uid), "clone": clone, "workspace": str(workspace or "")}
    labels["gpus"] = ",".join(gpu.uuid for gpu in gpus)
    for key, value in labels.items():
        argv += ["--label", f"{LABEL}.{key}={value}"]
    if not who.root_inside:
        argv += ["--user", f"{who.uid}:{who.gid}"]
        for group in who.groups:
            argv += ["--group-add", str(group)]
    argv += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    argv += ["--shm-size", str(shared_memory(engine.memory_bytes)), "--stop-timeout", str(STOP_SECONDS)]
    if engine.open_files is not None:
        argv += ["--ulimit", f"nofile={min(OPEN_FILES, engine.open_files)}"]
    if workspace is not None:
        argv += mount(str(workspace), "/workspace")
    argv += mount(f"torchdock-cache-{who.uid}", "/cache", kind="volume")
    if sources.ca is not None:
        argv += mount(str(sources.ca.resolve()), CA_INSIDE, read_only=True)
        for variable in CA_VARIABLES:
            argv += ["--env", f"{variable}={CA_INSIDE}"]
    for variable in sources.proxies:
        argv += ["--env", variable]  # by name: the value stays in the environment
    argv += ["--env", f"TORCHDOCK_USER={who.name}", "--env", "TORCHDOCK_LAUNCHED=1"]
    argv += mounts
    argv += gpu_arguments
    argv += [image, *command]
    return LaunchPlan(name, tuple(argv), image, tuple(gpus))


def workspace_name(who: Identity, clone: str, workspace: Path) -> str:
    """The name of the ``up`` container of one user, clone and workspace."""
    where = hashlib.sha256(f"{clone}\0{workspace}".encode()).hexdigest()[:8]
    label = re.sub(r"[^a-zA-Z0-9_.-]", "", workspace.name)[:30] or "root"
    return f"torchdock-{who.name}-{label}-{where}"


def find_up(engine: Engine, name: str) -> Mapping[str, Any] | None:
    """The workspace container of this name as the engine lists it, in whatever state; None where there is none."""
    listed = engine.containers([f"{LABEL}.role=up"])
    return next((found for found in listed if f"/{name}" in found["Names"]), None)


def held_gpus(engine: Engine, name: str) -> str | None:
    """What ``--gpus`` would be for a running workspace container: UUIDs, or 0; None where there is no container."""
    found = find_up(engine, name)
    if found is None or found["State"] != "running":
        return None
    return found["Labels"].get(f"{LABEL}.gpus") or "0"


def up(engine: Engine, wanted: LaunchPlan) -> tuple[str, bool]:
    """The workspace container of this plan, running: the one that is there if it has the same plan, else a new one.

    Returns:
        Its name, and whether it was launched now.

    Raises:
        TorchdockError: the engine refused the launch.
    """
    found = find_up(engine, wanted.name)
    if found and found["State"] == "running" and found["Labels"].get(f"{LABEL}.plan") == wanted.digest:
        return wanted.name, False
    if found:
        stop(engine, wanted.name)
    argv = [*wanted.argv]
    argv[2:2] = ["--label", f"{LABEL}.plan={wanted.digest}"]
    try:
        done = capture([engine.cli, *argv[1:]], timeout=120)
    except KeyboardInterrupt:
        _remove_after_interrupt(engine, wanted.name)
        raise
    if done.code != 0:
        engine.remove_container(wanted.name)
        raise launch_failure(done.err)
    return wanted.name, True


def stop(engine: Engine, name: str) -> None:
    """Stop a container in good order, within its own grace, and remove it."""
    capture([engine.cli, "stop", name], timeout=STOP_SECONDS + 30)
    engine.remove_container(name)


def attached(engine: Engine, wanted: LaunchPlan, *, stdout: int | None = None) -> int:
    """Run to the end on this terminal or these pipes; afterwards no container is left, whatever interrupted it.

    Returns:
        The command's exit code.

    Raises:
        TorchdockError: the engine refused the launch (docker's own exit code 125).
    """
    since = time.time() - 1
    try:
        ended: Foreground = foreground([engine.cli, *wanted.argv[1:]], stdout=stdout)
    except BaseException:
        _remove_after_interrupt(engine, wanted.name)
        raise
    if ended.interrupted:
        _remove_after_interrupt(engine, wanted.name, patience=2.0 if ended.seconds < 3 else 0.0)
    elif ended.code == 125 or ended.code > 128:  # refused, or the client itself was killed
        engine.remove_container(wanted.name)
    if ended.code == 125 and not ended.interrupted:
        require()  # an engine that went away in the middle is another error, with its own remedy
        if not engine.has_started(wanted.name, since):
            raise TorchdockError(
                "The engine could not launch the container; what it said is above. `invoke doctor` checks the engine."
            )
    return ended.code


def _remove_after_interrupt(engine: Engine, name: str, patience: float = 2.0) -> None:
    """Remove a container that may be running, being removed, or still being created for a client that was cut off.

    One that was never seen may still be in the making for ``patience`` seconds; one that was seen is waited for.
    """
    deadline = time.monotonic() + patience
    seen = False
    while True:
        there = engine.remove_container(name)
        if not there and (seen or time.monotonic() > deadline):
            return
        seen = seen or there
        time.sleep(0.05)


def exec_argv(name: str, command: Sequence[str], *, tty: bool = False) -> tuple[str, ...]:
    """The one docker command of :func:`execute`."""
    flags = ["--interactive", *(["--tty"] if tty else [])]
    return ("docker", "exec", *flags, name, ENTRYPOINT, *command)


def execute(
    engine: Engine, name: str, command: Sequence[str], *, tty: bool = False, stdout: int | None = None
) -> Foreground:
    """A further command in a running container, with the environment that the entrypoint prepares."""
    return foreground([engine.cli, *exec_argv(name, command, tty=tty)[1:]], stdout=stdout)


# What the engine says to a launch that it refuses, and what to do about it.
_CDI = "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"
_REFUSALS: dict[str, tuple[type[TorchdockError], str]] = {
    'device driver "cdi"': (
        TorchdockError,
        'The engine has CDI switched off: put {"features": {"cdi": true}} into /etc/docker/daemon.json and restart it.',
    ),
    "could not select device driver": (
        TorchdockError,
        f"The engine has no NVIDIA hook: install the NVIDIA Container Toolkit, run {_CDI}, and restart the engine.",
    ),
    "unresolvable CDI devices": (TorchdockError, f"The CDI specification is stale; {_CDI} makes it anew."),
    "Cannot connect to the Docker daemon": (EngineError, "The engine stopped in the middle; `make up` starts it."),
    "No space left": (
        TorchdockError,
        "The disk is full; `docker builder prune` and `invoke clean --images` give back.",
    ),
    "bind source path does not exist": (InputError, "A folder to mount does not exist on the engine's machine."),
}


def launch_failure(said: str) -> TorchdockError:
    """What the engine said to a launch, with what to do about it. Pure."""
    text = " ".join(said.split())
    for pattern, (kind, remedy) in _REFUSALS.items():
        if pattern.lower() in text.lower():
            return kind(f"The container could not be launched: {text} {remedy}")
    return TorchdockError(f"The container could not be launched: {text} `invoke doctor` checks the engine.")


def mine(engine: Engine, who: Identity, clone: str) -> list[Mapping[str, Any]]:
    """The containers that torchdock launched for this user from this clone."""
    return [*engine.containers([f"{LABEL}.user={who.uid}", f"{LABEL}.clone={clone}"])]
