"""JupyterLab and TensorBoard in the workspace container: started once, found again, their address; the host's side.

A container's ports cannot be published later, so ``up`` publishes both from the start, on free ports of 127.0.0.1. What
serves, and keeps everybody out who does not know the token, is :mod:`torchdock.inside.serve`. Its command is listed by
the engine, and ends with the container.
"""

from __future__ import annotations

import json
import os
import secrets
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torchdock import container
from torchdock.engine import Engine
from torchdock.errors import InputError, TorchdockError
from torchdock.launch import Port
from torchdock.process import capture

WORKSPACE = "/workspace"
LOGDIR = "runs"  # where torch.utils.tensorboard writes unless told otherwise
REACH_SECONDS = 20.0  # from its own container it answers already; this is docker's forwarding alone


@dataclass(frozen=True)
class Server:
    """One that can be started.

    Attributes:
        name: as in ``invoke jupyter`` and in the container (torchdock.inside.serve).
        title: what people call it.
        port: where it listens, in the container.
        page: where a person begins.
    """

    name: str
    title: str
    port: int
    page: str


JUPYTER = Server("jupyter", "JupyterLab", 8888, "/lab")
TENSORBOARD = Server("tensorboard", "TensorBoard", 6006, "/")
PORTS = (Port(0, JUPYTER.port), Port(0, TENSORBOARD.port))


@dataclass(frozen=True)
class Running:
    """A server that answers on this host.

    Attributes:
        url: the whole address, the token in it.
        address, port: where it is published on this host.
        started: it was started now, and not found.
        log: its log, in the container.
        logdir: the folder in the container that TensorBoard shows, or empty; ``there``: it exists already.
    """

    container: str
    url: str
    token: str
    address: str
    port: int
    started: bool
    log: str
    logdir: str = ""
    there: bool = True


def logdir(text: str, workspace: Path) -> str:
    """A folder as the container has it: a relative one is below the workspace, an absolute one is the container's.

    One that the shell has completed to a path of this host below the workspace is that folder. Pure.

    Raises:
        InputError: it names nothing, or a place outside of the workspace by ``..``.
    """
    path = PurePosixPath(text)
    if path.is_absolute() and path.is_relative_to(workspace):
        path = path.relative_to(workspace)
    found = os.path.normpath(PurePosixPath(WORKSPACE) / path)
    inside = path.is_absolute() or PurePosixPath(found).is_relative_to(WORKSPACE)
    if not text.strip() or not inside or "\0" in text:
        raise InputError(
            f"--logdir {text!r}: name a folder below the workspace, such as {LOGDIR}, or an absolute path in the "
            "container, such as /data/runs."
        )
    return found


def start_argv(engine: Engine, name: str, server: Server, start: str, folder: str = "") -> tuple[str, ...]:
    """The one docker command that starts a server in a container; ``start`` names this start. Pure."""
    more = ("--logdir", folder) if folder else ()
    return container.exec_argv(engine, name, [*container.SERVE, server.name, "--start", start, *more], detach=True)


def address(server: Server, host: str, port: int, token: str) -> str:
    """What a person opens in a browser, where the port is published on this address of the host. Pure."""
    host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{server.page}?token={token}"


def start(engine: Engine, name: str, server: Server, folder: str = "", *, moved: bool = False) -> Running:
    """The server in this container: the one that serves there, else one that is started now; it answers.

    ``moved``: one that shows another folder than ``folder`` is ended first.

    Raises:
        TorchdockError: the container has no port for it, it does not come to answer, or it cannot be reached.
    """
    published = engine.published(name, server.port)
    if published is None:
        raise TorchdockError(
            f"The workspace container {name} has no port for {server.title}: it was launched by an older torchdock. "
            f"End what runs in it, then `invoke down`, and `invoke {server.name}` again."
        )
    found = _started(engine, name, server, folder)
    if moved and found["logdir"] != folder:
        stop(engine, name, server)
        found = _started(engine, name, server, folder)
    host, port = published
    url = address(server, host, port, found["token"])
    deadline = time.monotonic() + REACH_SECONDS
    while not _answers(url):
        if time.monotonic() > deadline:
            raise TorchdockError(
                f"{server.title} serves in {name}, and port {port} of {host} on this host does not lead to it. A "
                "firewall or the engine's forwarding of ports is in the way; `docker port "
                f"{name}` shows what the engine forwards, `invoke down` and `invoke {server.name}` try another port."
            )
        time.sleep(0.1)
    return Running(
        container=name,
        url=url,
        token=found["token"],
        address=host,
        port=port,
        started=found["started"],
        log=found["log"],
        logdir=found.get("logdir", ""),
        there=found.get("there", True),
    )


def stop(engine: Engine, name: str, server: Server) -> bool:
    """End the server in this container; False where none serves.

    Raises:
        TorchdockError: the container does not take the command.
    """
    return bool(_ask(engine, name, [*container.SERVE, server.name, "--stop"], 60)["stopped"])


def _started(engine: Engine, name: str, server: Server, folder: str) -> dict[str, Any]:
    """The state of the server that serves after this, as torchdock.inside.serve tells it."""
    this = secrets.token_hex(8)
    done = capture([engine.cli, *start_argv(engine, name, server, this, folder)[1:]], timeout=60)
    if done.code != 0:
        raise TorchdockError(f"{server.title} could not be started in {name}: {' '.join(done.err.split())}")
    found = _ask(engine, name, [*container.SERVE, server.name, "--wait", this], 150)
    if "error" in found:
        said = "\n".join(f"    {line}" for line in found["lines"]) or "    nothing"
        raise TorchdockError(
            f"{server.title} was started in {name} and does not serve: {found['error']}. `invoke shell` looks into its "
            f"log, {found['log']}, which ends with:\n{said}"
        )
    return found


def _ask(engine: Engine, name: str, command: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run a command in the container that answers with one JSON document."""
    done = capture([engine.cli, *container.exec_argv(engine, name, command)[1:]], timeout=seconds)
    if done.code != 0 or not done.out.startswith("{"):
        said = " ".join((done.err or done.out).split()) or f"exit code {done.code}"
        raise TorchdockError(f"The workspace container {name} did not take a command: {said} `invoke ps` shows it.")
    document: dict[str, Any] = json.loads(done.out)
    return document


def _answers(url: str) -> bool:
    """Whether a page comes from there, asked without the proxies of the environment."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False
