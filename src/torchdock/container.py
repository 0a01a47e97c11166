"""From facts and an image to a container: who runs in it, with what, and the one docker command that starts it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

from torchdock import identity as identities
from torchdock import launch, lease, lifeline, limits, passthrough, profiles
from torchdock import mounts as binds
from torchdock.engine import Engine, require
from torchdock.errors import EngineError, InputError, TorchdockError
from torchdock.gpus import Gpu
from torchdock.identity import Identity as Identity
from torchdock.identity import check_workspace as check_workspace
from torchdock.identity import identity as identity
from torchdock.identity import workspace_path as workspace_path
from torchdock.launch import NOTHING, Port, Wishes
from torchdock.lease import NO_CLAIM, Claim, Lost
from torchdock.mounts import mount as mount
from torchdock.process import Foreground, capture, foreground
from torchdock.sources import Sources

# Colours and line editing as the caller's terminal has them; by name, so a variable that is not set is not set inside.
# docker holds back the first key with which one would leave, and Ctrl-P is the previous line. NUL, which some editors
# have for a mark, is no harm a key later; the rest nobody types after it.
TERMINAL = ("--tty", "--detach-keys", "ctrl-@,ctrl-^,ctrl-@", "--env", "TERM", "--env", "COLORTERM")
INIT = "/usr/bin/tini "
ENTRYPOINT = "/opt/torchdock/docker/entrypoint.sh"
SERVE = ("python", "-P", "-m", "torchdock.inside.serve")  # -P: no module of the workspace in its place
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
STAY = ("torchdock-stay",)  # the workspace container's own command, in the entrypoint
STOP_SECONDS = 120  # what a training gets to save its state (failure mode 38: 10 s lose the run)
BEGIN_SECONDS = 2.0  # how long the launch of a job waits at most to see that its command exists
BUSY = 75  # of PID 1 that found a lease taken (docker/init.sh), which it is sure of after so long
LOST_SECONDS = 2.0
LEASED_SECONDS = 10.0  # how long a container that was started is waited for until it has its leases
# Docker's codes for a launch that was refused: 126 where the engine's own complaint has "permission denied" in it, 127
# where a file was not found. Each may be the command's own code as well.
REFUSED = (125, 126, 127)
LOST = 255  # docker's code for a further command whose end it never heard of; a command's own too
SETTLED_SECONDS = 10  # after so long a container watches its lifeline
UNBORN_SECONDS = 60  # an attached container that was made and not started for so long has lost its client
LABEL = "dev.torchdock"
RENEWED = f"{LABEL}.renewed"  # the variables that each further command gets anew from this host's sources
# Output must not fill a disk, whatever the engine's own bound is. A job's is kept until it is cleaned up: the newest
# 500 MB to 1 GB of it. Of an attached command, which may draw progress bars for days, `invoke logs` shows the last.
KEPT_OUTPUT = ("--log-driver", "json-file", "--log-opt", "max-size=500m")
RECENT_OUTPUT = ("--log-driver", "json-file", "--log-opt", "max-size=10m")
WATCH = "TORCHDOCK_WATCH"
JOB_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


@dataclass(frozen=True)
class LaunchPlan:
    """Exactly what will be launched: ``argv`` is the one docker command.

    Attributes:
        environment: values that docker takes by name from its own environment; never shown.
        renewed: names of those among them that come from this host's sources. They make no other container: a token
            that was renewed must not cost what was installed in one.
        note: what the caller should know of it, in a line, or empty.
        doubt: why the engine may refuse it, with the remedy, or empty.
        copies: files of torchdock's own and where the engine can get at them, which may be a copy that is to be made.
        role: see :func:`plan`.
        points: where mounts are below others, on this host; True for a folder, False for a file.
    """

    name: str
    argv: tuple[str, ...]
    image: str
    gpus: tuple[Gpu, ...]
    wishes: Wishes = NOTHING
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    renewed: frozenset[str] = frozenset()
    note: str = ""
    doubt: str = ""
    copies: tuple[tuple[Path, Path], ...] = ()
    role: str = "run"
    points: tuple[tuple[Path, bool], ...] = ()

    def prepare(self) -> None:
        """Make the copies that the launch mounts, and the mount points of the host, which the engine would make root's.

        Raises:
            InputError: a mount point cannot be made.
        """
        for file, target in self.copies:
            binds.copy(file, target)
        for point, folder in self.points:
            binds.make_point(point, folder=folder)

    @property
    def digest(self) -> str:
        """Names this plan: two launches with the same digest are the same container."""
        values = [f"{name}={value}" for name, value in sorted(self.environment.items()) if name not in self.renewed]
        words = [*self.argv, *values, *(file.digest for file in self.wishes.files)]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


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
    lease_arguments: Sequence[str] = (),
    name: str = "",
    tty: bool = False,
    mounts: Sequence[str] = (),
    wishes: Wishes = NOTHING,
    seconds: int | None = None,
) -> LaunchPlan:
    """The launch of a container with least privilege: the caller's identity, no capabilities, no new privileges.

    ``role`` is ``up`` (detached, stays), ``job`` (detached, its output stays after its end), ``run``, ``shell`` or
    ``test`` (attached, removed at its end). ``seconds``: after so long the command gets SIGTERM and then its grace.

    Raises:
        InputError: the limits in ``wishes`` are none that this machine can give, or the engine cannot get at a folder.
    """
    name = name or fresh_name(who, role)
    kept = KEPT_OUTPUT if role == "job" else RECENT_OUTPUT
    flags = {"up": ["--detach"], "job": ["--detach", "--interactive"]}
    argv = [engine.program, "run", *flags.get(role, ["--rm", "--interactive"]), *kept]
    # Podman's json-file cuts its one file at max-size, and knows no max-file.
    argv += [] if engine.podman else ["--log-opt", "max-file=2"]
    argv += [*TERMINAL] if tty else []
    argv += ["--name", name, "--hostname", "torchdock"]
    labels = {"role": role, "user": str(who.uid), "clone": clone, "workspace": str(workspace or "")}
    labels["gpus"] = ",".join(gpu.uuid for gpu in gpus)
    if wishes.profile:
        labels["profile"] = wishes.profile
    if seconds is not None:
        labels["seconds"] = str(seconds)
        # --foreground: in the terminal's process group, where it can read from it.
        limit = ["timeout", "--foreground", "--preserve-status", "--verbose", f"--kill-after={STOP_SECONDS}"]
        own = [ENTRYPOINT] if role == "up" else []  # whose command is the entrypoint's own
        command = [*limit, str(seconds), *own, *command]
    for key, value in labels.items():
        argv += ["--label", f"{LABEL}.{key}={value}"]
    argv += identities.arguments(who)
    argv += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    argv += binds.labels(engine)
    if wishes.profile:
        argv += profiles.arguments(wishes.profile, engine.kernel)
    argv += [*limits.arguments(limits.plan(engine, wishes)), "--stop-timeout", str(STOP_SECONDS)]
    if workspace is not None:
        argv += mount(str(workspace), "/workspace")
    label = "" if engine.podman else f"{LABEL}.user={who.uid}"  # Podman's --mount has no word for it
    argv += mount(f"torchdock-cache-{who.uid}", "/cache", kind="volume", label=label)
    copies: tuple[tuple[Path, Path], ...] = ()
    if sources.ca is not None:
        bundle = sources.ca.resolve()
        copies = ((bundle, binds.reachable(engine, who, bundle)),)
        argv += mount(str(copies[0][1]), CA_INSIDE, read_only=True)
        for variable in CA_VARIABLES:
            argv += ["--env", f"{variable}={CA_INSIDE}"]
    for variable in sources.proxies:
        argv += ["--env", variable]  # by name: the value stays in the environment
    argv += ["--env", f"TORCHDOCK_USER={who.name}", "--env", "TORCHDOCK_LAUNCHED=1"]
    if gpus:  # CUDA's own order is by speed, and NVML's by bus: an index shall mean one GPU (pytorch/pytorch#86539)
        argv += ["--env", "CUDA_DEVICE_ORDER=PCI_BUS_ID", "--env", f"TORCHDOCK_GPUS={labels['gpus']}"]
        argv += watching(os.environ)
    argv += mounts
    for asked in wishes.mounts:
        argv += mount(str(asked.source), asked.target, read_only=asked.read_only)
    for file in wishes.files:
        argv += ["--env-file", str(file.path)]
    environment = sources.installing
    renewed = frozenset(environment) - {one.name for one in wishes.variables}
    for variable in environment:
        argv += ["--env", variable]
    if renewed:
        argv += ["--label", f"{RENEWED}={','.join(sorted(renewed))}"]
    for one in wishes.variables:
        argv += ["--env", one.name if one.by_name else f"{one.name}={one.value}"]
        if one.by_name:
            environment[one.name] = one.value
    for port in wishes.ports:
        argv += ["--publish", port.word]
    argv += [*gpu_arguments, *lease_arguments]
    argv += [image, *command]
    folders = [*([workspace] if workspace is not None else []), *(asked.source for asked in wishes.mounts)]
    binds.check(engine, who, folders)
    note, doubt = identities.lost_groups(folders, who), binds.doubt(engine, who, folders)
    points = tuple(binds.points(workspace, wishes.mounts))
    return LaunchPlan(
        name,
        tuple(argv),
        image,
        tuple(gpus),
        wishes,
        environment,
        renewed=renewed,
        note=note,
        doubt=doubt,
        copies=copies,
        role=role,
        points=points,
    )


def watching(environ: Mapping[str, str]) -> list[str]:
    """How often a container looks whether its GPUs are still there, where this host's environment names it. Pure.

    Raises:
        InputError: it is no number of seconds.
    """
    text = environ.get(WATCH, "")
    if text and not re.fullmatch(r"\d{1,6}(\.\d+)?", text, re.ASCII):
        raise InputError(
            f"{WATCH}={text}: a number of seconds, such as 30; 0 watches over no GPU. Correct or unset it."
        )
    return ["--env", f"{WATCH}={text}"] if text else []


def fresh_name(who: Identity, role: str) -> str:
    """A name that no container has had yet."""
    return f"torchdock-{who.name}-{role}-{secrets.token_hex(4)}"


def job_name(who: Identity, short: str) -> str:
    """The container's name of a job that the caller calls ``short``.

    Raises:
        InputError: docker would not take it.
    """
    if not JOB_NAME.fullmatch(short):
        raise InputError(
            f"--name {short!r}: a name is letters, digits, `_`, `.` and `-`, begins with a letter or digit, and has "
            "up to 63 of them."
        )
    return f"torchdock-{who.name}-{short}"


def refuse_taken(engine: Engine, name: str) -> None:
    """Raises InputError where a container of this name is there already, running or ended."""
    taken = next((one for one in engine.containers([f"{LABEL}.role"]) if f"/{name}" in one["Names"]), None)
    if taken is not None:
        raise InputError(
            f"The name is in use: {name} ({taken['Status']}). {_REFUSALS['already in use by container'][1]}"
        )


def workspace_name(who: Identity, clone: str, workspace: Path) -> str:
    """The name of the ``up`` container of one user, clone and workspace."""
    # The UID too: j.doe and jdoe have one name here.
    where = hashlib.sha256(f"{who.uid}\0{clone}\0{workspace}".encode()).hexdigest()[:8]
    label = re.sub(r"[^a-zA-Z0-9_.-]", "", workspace.name)[:30] or "root"
    return f"torchdock-{who.name}-{label}-{where}"


def find_up(engine: Engine, name: str) -> Mapping[str, Any] | None:
    """The caller's workspace container of this name as the engine lists it, in whatever state; None without one."""
    listed = engine.containers([f"{LABEL}.role=up", f"{LABEL}.user={os.getuid()}"])
    return next((found for found in listed if f"/{name}" in found["Names"]), None)


def held_gpus(engine: Engine, name: str) -> str | None:
    """What ``--gpus`` would be for a running workspace container: UUIDs, or 0; None where there is no container."""
    found = find_up(engine, name)
    if found is None or found["State"] != "running":
        return None
    return found["Labels"].get(f"{LABEL}.gpus") or "0"


def check_ports(found: Mapping[str, Any] | None, ports: Iterable[Port]) -> None:
    """Whether each port is free on this host, or is held by this container, in whose place the launch comes.

    Raises:
        InputError: one is taken by somebody else.
    """
    held = {one.get("PublicPort") for one in (found or {}).get("Ports") or ()}
    launch.check_ports(port for port in ports if port.host not in held)


def is_up(engine: Engine, wanted: LaunchPlan) -> bool:
    """Whether the workspace container of this very plan runs."""
    found = find_up(engine, wanted.name)
    return bool(found and found["State"] == "running" and found["Labels"].get(f"{LABEL}.plan") == wanted.digest)


def up(engine: Engine, wanted: LaunchPlan, claim: Claim = NO_CLAIM) -> tuple[str, bool]:
    """The workspace container of this plan, running: the one that is there if it has the same plan, else a new one.

    Returns:
        Its name, and whether it was launched now.

    Raises:
        InputError: a port is taken, or a mount point cannot be made; the container that is there lives on.
        TorchdockError: the engine refused the launch.
        Lost: another container took a lease of ``claim`` in between; nothing of the new one is left.
    """
    if is_up(engine, wanted):
        return wanted.name, False
    found = find_up(engine, wanted.name)
    if found and found["State"] == "running":
        _refuse_in_use(engine, wanted.name)
    check_ports(found, wanted.wishes.ports)
    wanted.prepare()
    if found:
        stop(engine, wanted.name)
    argv = [*wanted.argv]
    argv[2:2] = additions(engine, wanted)
    try:
        done = capture([engine.cli, *argv[1:]], timeout=120, env={**os.environ, **wanted.environment})
    except KeyboardInterrupt:
        _remove_after_interrupt(engine, wanted.name)
        raise
    if done.code != 0:
        _remove_refused(engine, wanted, done.err)
        raise launch_failure(done.err, wanted.doubt)
    _await_leases(engine, wanted, claim)
    return wanted.name, True


def _await_leases(engine: Engine, wanted: LaunchPlan, claim: Claim) -> None:
    """Wait until a container that was started has the leases of this claim, or has ended.

    On a machine so busy that it takes seconds it is left to itself: it takes them, or ends.

    Raises:
        Lost: another container has one; nothing of this one is left.
    """
    deadline = time.monotonic() + LEASED_SECONDS
    while not claim.settle(wanted.name) and time.monotonic() < deadline:
        if not engine.runs(wanted.name):
            if engine.exit_code(wanted.name) == BUSY and lease.LOST in (said := _last_words(engine, wanted.name)):
                engine.remove_container(wanted.name)
                raise Lost(said)
            return
        time.sleep(lease.LOOK_SECONDS)


def _last_words(engine: Engine, name: str) -> str:
    """The last line that a container printed, where torchdock itself did; else empty: it is the command's own."""
    said = capture([engine.cli, "logs", name])
    last = (said.out + said.err).strip().rpartition("\n")[2]
    return last.removeprefix("torchdock: ") if last.startswith(("torchdock: ", ENTRYPOINT)) else ""


def end(engine: Engine, name: str) -> None:
    """SIGTERM to the command, and SIGKILL after the container's own grace.

    Raises:
        TorchdockError: it did not end.
    """
    done = capture([engine.cli, "stop", name], timeout=STOP_SECONDS + 30)
    if done.code != 0 and "No such container" not in done.err:
        raise TorchdockError(f"{name} could not be stopped: {' '.join(done.err.split())} `invoke ps` shows its state.")


def stop(engine: Engine, name: str) -> None:
    """Stop a container in good order, within its own grace, and remove it."""
    capture([engine.cli, "stop", name], timeout=STOP_SECONDS + 30)
    engine.remove_container(name)


def start(engine: Engine, wanted: LaunchPlan, claim: Claim = NO_CLAIM) -> None:
    """Launch a job; it lives on without this process. Returns when its command has begun, or has ended already.

    Raises:
        InputError: its name is in use, or a port.
        TorchdockError: the engine refused the launch.
        NoCommand: there is no such command in the container, or none that can be executed; nothing of it is left.
        Lost: another container took a lease of ``claim`` in between; nothing of it is left.
    """
    launch.check_ports(wanted.wishes.ports)
    wanted.prepare()
    try:
        done = capture([engine.cli, *wanted.argv[1:]], timeout=120, env={**os.environ, **wanted.environment})
    except KeyboardInterrupt:
        _remove_after_interrupt(engine, wanted.name)
        raise
    if done.code != 0:
        _remove_refused(engine, wanted, done.err)
        raise launch_failure(done.err, wanted.doubt)
    try:
        _await_leases(engine, wanted, claim)
        code = _begun(engine, wanted.name)
    except KeyboardInterrupt:  # nobody has been told its name
        _remove_after_interrupt(engine, wanted.name)
        raise
    if code in (126, 127) and (why := _last_words(engine, wanted.name)):  # else the command's own code
        engine.remove_container(wanted.name)
        raise NoCommand(f"The command could not be started: {why}. Correct it; nothing of this job is left.", code)


def _remove_refused(engine: Engine, wanted: LaunchPlan, said: str) -> None:
    if "already in use by container" not in said:  # which would be somebody's else
        engine.remove_container(wanted.name)
    if wanted.gpus:
        passthrough.forget()


def _begun(engine: Engine, name: str) -> int | None:
    """Wait until a container's entrypoint has become the command; the exit code of one that has ended, else None.

    The entrypoint takes 50 ms; on a machine so busy that it takes seconds, the command counts as begun.
    """
    deadline = time.monotonic() + BEGIN_SECONDS
    while time.monotonic() < deadline:
        processes = engine.processes(name)
        if not processes and (code := engine.exit_code(name)) is not None:
            return code
        if command_runs(processes):
            return None
        time.sleep(0.02)
    return None


def command_runs(processes: Sequence[str]) -> bool:
    """Whether these command lines of a container's processes are those of a command, after its entrypoint. Pure."""
    has_init = any(line.startswith(INIT) for line in processes)  # before that the process is the runtime's own
    below = [line for line in processes if not line.startswith((INIT, "["))]  # [name]: it is ending
    return has_init and bool(below) and not any(ENTRYPOINT in line for line in below)


def attached(engine: Engine, wanted: LaunchPlan, claim: Claim = NO_CLAIM, *, stdout: int | None = None) -> int:
    """Run to the end on this terminal or these pipes; afterwards no container is left, whatever interrupted it.

    Returns:
        The command's exit code.

    Raises:
        InputError: a port is taken.
        TorchdockError: the engine refused the launch (docker's own exit codes 125 to 127), or the command ended because
            the container had no memory left.
        LostGpu: the command ended because its GPU was lost.
        Lost: another container took a lease of ``claim`` in between; the command did not begin.
    """
    launch.check_ports(wanted.wishes.ports)
    wanted.prepare()
    _remove_unborn(engine)
    since = time.time() - 1
    where = _lifeline_folder(engine)
    with lifeline.held(where) as line, claim.watched(wanted.name) as begun:
        argv = [engine.cli, *wanted.argv[1:]]
        argv[2:2] = additions(engine, wanted, line)
        try:
            # With a lifeline the command gets its one SIGTERM from there; without one the client has to hand it on.
            ended = foreground(
                argv,
                stdout=stdout,
                env=wanted.environment,
                dies_with_us=SIGKILL if line else SIGTERM,
                past_child=lambda number: capture([engine.cli, "kill", "--signal", str(number), wanted.name]),
                leave_on_hangup=bool(line),
                begun=begun,
            )
        except BaseException:
            _remove_after_interrupt(engine, wanted.name)
            raise
        lost = lifeline.word_left(where, line) if wanted.gpus else ""
    if ended.left and ended.seconds > SETTLED_SECONDS:
        return ended.code  # its lifeline is cut now: SIGTERM, its grace, its end
    if ended.code == BUSY and not claim.settled and ended.seconds >= LOST_SECONDS and not ended.interrupted:
        raise Lost("another container has the lease")
    if ended.interrupted:
        _remove_after_interrupt(engine, wanted.name, patience=2.0 if ended.seconds < 3 else 0.0)
    elif ended.code in REFUSED or ended.code > 128:  # refused, or the client itself was killed
        engine.remove_container(wanted.name)
    if ended.code in REFUSED and not ended.interrupted:
        require()  # an engine that went away in the middle is another error, with its own remedy
        if not engine.had(wanted.name, "start", since):
            if wanted.gpus:
                passthrough.forget()
            launch.check_ports(wanted.wishes.ports)  # one that somebody took in between
            raise TorchdockError(
                "The engine could not launch the container; what it said is above. "
                + (
                    wanted.doubt
                    or "Correct what it names (a mount, a port, a device); `invoke doctor` checks the engine."
                )
            )
    if lost and not ended.interrupted:
        raise LostGpu(
            f"The container lost its GPU, and its command was ended (it gave {ended.code}): {lost}. Launch it again "
            "from its last checkpoint; `invoke doctor` says whether the GPU is back, and what prevents this."
        )
    if ended.code == 137 and not ended.interrupted and engine.had(wanted.name, "oom", since):
        raise OutOfMemory(
            "The command was killed: it needed more memory than the container has "
            f"({limits.told(limits.plan(engine, wanted.wishes).memory)}). Ask for more with --memory, or make batches, "
            "workers or data in /dev/shm fewer."
        )
    return ended.code


class NoCommand(TorchdockError):
    """The command of a job could not be started; exit code 126 or 127, as a shell has them."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.exit_code = code


class LostGpu(TorchdockError):
    """A GPU was lost in mid-run; exit code 74 (EX_IOERR of sysexits.h), whatever the command's own was."""

    exit_code = 74


class OutOfMemory(TorchdockError):
    """The command was killed for its container's memory; exit code 137, as the command's own."""

    exit_code = 137


def _lifeline_folder(engine: Engine, *, make: bool = True) -> Path | None:
    """None where a lock of ours is not seen in a container: the engine's machine is a virtual one, or its /tmp, or ours
    is not the host's.
    """
    if engine.virtual or engine.own_tmp:
        return None
    where = lifeline.folder(os.getuid(), make=make)
    return where if where is not None and (not make or engine.sees(where)) else None


def additions(engine: Engine, wanted: LaunchPlan, line: str = "", *, dry_run: bool = False) -> list[str]:
    """The options that a launch gets besides those of its plan: what only torchdock itself can keep.

    For a workspace container the name of its plan, and where the lifelines of commands in it will be; for what is
    attached its lifeline, ``line``, where there is one. A job has neither. ``dry_run``: no folder is made for it.
    """
    if wanted.role == "job":
        return []
    where = _lifeline_folder(engine, make=not dry_run)
    mounted = [] if where is None else mount(str(where), lifeline.INSIDE, read_only=True)
    if wanted.role == "up":
        return ["--label", f"{LABEL}.plan={wanted.digest}", *mounted]
    if line and where is not None and wanted.gpus:
        mounted += mount(str(where / line), lifeline.WORD)
    return [*mounted, *held_by(where, line)] if line else []


def additions_of_exec(engine: Engine) -> list[str]:
    """As :func:`additions`, of a further command in a running container, for a dry run."""
    return held_by(_lifeline_folder(engine, make=False), "ID")


def held_by(where: Path | None, line: str) -> list[str]:
    """What tells a container of the lifeline of this name."""
    return ["--env", f"{lifeline.VARIABLE}={lifeline.word(where, line)}"] if where is not None and line else []


def sessions(engine: Engine, name: str) -> list[str]:
    """The commands that people run in the workspace container of this name; a server is what they typed to start it."""
    return [re.sub(rf"^{' '.join(SERVE)} (\w+) .*", r"invoke \1", line) for line in engine.sessions(name)]


def _refuse_in_use(engine: Engine, name: str) -> None:
    if commands := sessions(engine, name):
        raise TorchdockError(
            f"The workspace container {name} would have to be launched anew, because its image or options have "
            f"changed, and commands run in it ({', '.join(commands)}). End them, or `invoke down`, then run this again."
        )


def _remove_unborn(engine: Engine) -> None:
    """Remove containers of this user whose client was killed between making and starting them: nobody starts them."""
    for found in engine.containers([f"{LABEL}.user={os.getuid()}"]):
        attached_role = found["Labels"].get(f"{LABEL}.role") in ("run", "shell", "test")
        if attached_role and found["State"] == "created" and time.time() - found["Created"] > UNBORN_SECONDS:
            engine.remove_container(found["Id"])


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


def exec_argv(
    engine: Engine,
    name: str,
    command: Sequence[str],
    *,
    tty: bool = False,
    detach: bool = False,
    variables: Iterable[str] = (),
) -> tuple[str, ...]:
    """The one docker command of :func:`execute`; ``detach``: of one that lives on until the container ends.

    ``variables`` are given by name.
    """
    flags = ["--detach"] if detach else ["--interactive", *(TERMINAL if tty else [])]
    for variable in variables:
        flags += ["--env", variable]
    return (engine.program, "exec", *flags, name, ENTRYPOINT, *command)


def renewed(found: Mapping[str, Any], gather: Callable[[], Sources]) -> dict[str, str]:
    """The variables of this host's sources as they are now, for a further command in a container that has them.

    ``gather`` is asked only where it has some: tokens run out while a container lives.
    """
    names = [name for name in found["Labels"].get(RENEWED, "").split(",") if name]
    return {name: value for name, value in gather().installing.items() if name in names} if names else {}


def execute(
    engine: Engine,
    name: str,
    command: Sequence[str],
    *,
    tty: bool = False,
    stdout: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Foreground:
    """A further command in a running container, with the environment that the entrypoint prepares; it ends with us.

    ``environment``: more of it, whose values docker takes by name.

    Raises:
        EngineError: the engine went away in the middle.
    """
    given = environment or {}
    where = _lifeline_folder(engine)
    with lifeline.held(where) as line:
        argv = [engine.cli, *exec_argv(engine, name, command, tty=tty, variables=given)[1:]]
        argv[2:2] = held_by(where, line)
        ended = foreground(argv, stdout=stdout, env=given, dies_with_us=SIGKILL)
    if ended.code == LOST and not ended.interrupted:
        require()  # an engine that went away in the middle is another error, with its own remedy
    return ended


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
    "already in use by container": (
        InputError,
        "Take another --name, or free this one: `invoke ps` shows who has it, `invoke stop --remove NAME` ends that.",
    ),
    "port is already allocated": (InputError, "Take another port; `invoke ps` and `ss -ltnp` show who has it."),
    "address already in use": (InputError, "Take another port; `invoke ps` and `ss -ltnp` show who has it."),
    "bind source path does not exist": (InputError, "A folder to mount does not exist on the engine's machine."),
}


def launch_failure(said: str, doubt: str = "") -> TorchdockError:
    """What the engine said to a launch, with what to do about it; ``doubt``: see :class:`LaunchPlan`. Pure."""
    text = " ".join(said.split())
    if doubt and re.search(r"permission denied|does not exist|input/output error|no such file", text, re.IGNORECASE):
        return InputError(f"The container could not be launched: {text} {doubt}")
    for pattern, (kind, remedy) in _REFUSALS.items():
        if pattern.lower() in text.lower():
            return kind(f"The container could not be launched: {text} {remedy}")
    return TorchdockError(f"The container could not be launched: {text} `invoke doctor` checks the engine.")
