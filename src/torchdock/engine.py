"""The container engine: which one answers, what it can do, and its CLI and SDK client.

Facts come from the CLI, because only the CLI knows contexts and BuildKit (docker-py#2230, docker-py#3146); the SDK is
pointed at the endpoint that the CLI resolved.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchdock.errors import EngineError, TorchdockError
from torchdock.process import capture

if TYPE_CHECKING:
    import docker

# dockerd lives in sbin, which is not on everybody's PATH.
ENGINE_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin", "/sbin")
UNIT_FILES = (
    "/lib/systemd/system/docker.service",
    "/usr/lib/systemd/system/docker.service",
    "/etc/systemd/system/docker.service",
    "/lib/systemd/system/docker.socket",
    "/snap/bin/docker",
)
DEFAULT_ENDPOINTS = ("unix:///var/run/docker.sock", "unix:///run/docker.sock")


class State(Enum):
    """What can be done with the engine that the CLI points at."""

    READY = "ready"
    REMOTE = "remote"  # it answers, but the folders of this host cannot be mounted there
    FORBIDDEN = "forbidden"  # it runs, and this user may not use it
    STOPPED = "stopped"  # installed on this host, not running
    NOT_INSTALLED = "not installed"
    UNREACHABLE = "unreachable"  # a context or DOCKER_HOST names an engine that does not answer


@dataclass(frozen=True)
class EngineFacts:
    """What was found, nothing concluded.

    Attributes:
        cli: path of the docker CLI, or None.
        binary: path of an engine binary (dockerd) on this host, or None.
        unit: a service unit of an engine is installed.
        context: the name of the CLI's context.
        endpoint: where that context points, as ``unix:///…``, ``tcp://…`` or ``ssh://…``.
        info: ``docker info`` of an engine that answered, else empty.
        error: what the CLI said when the engine did not answer.
        buildx: version of the buildx plugin, or an empty string.
    """

    cli: str | None
    binary: str | None
    unit: bool
    context: str
    endpoint: str
    info: Mapping[str, Any]
    error: str
    buildx: str


def gather(env: Mapping[str, str] | None = None) -> EngineFacts:
    """Look for an engine; starts nothing and changes nothing."""
    env = os.environ if env is None else env
    cli = shutil.which("docker", path=env.get("PATH"))
    binary = shutil.which("dockerd", path=os.pathsep.join((env.get("PATH", ""), *ENGINE_FOLDERS)))
    unit = any(Path(path).exists() for path in UNIT_FILES)
    nothing = EngineFacts(cli, binary, unit, "default", DEFAULT_ENDPOINTS[0], {}, "", "")
    if cli is None:
        return nothing
    where = capture([cli, "context", "inspect", "--format", "{{.Name}} {{.Endpoints.docker.Host}}"], env=env)
    context, _, endpoint = where.out.strip().partition(" ")
    if where.code != 0:
        named = env.get("DOCKER_CONTEXT") or "default"
        return EngineFacts(cli, binary, unit, named, env.get("DOCKER_HOST", "context"), {}, where.err.strip(), "")
    answer = capture([cli, "info", "--format", "{{json .}}"], timeout=30, env=env)
    info: dict[str, Any] = {}
    if answer.out.strip().startswith("{"):
        info = json.loads(answer.out.strip().splitlines()[0])
    # Depending on its version the CLI reports a silent engine in the document, on stderr, or in both.
    errors = " ".join(info.get("ServerErrors") or []) or (answer.err.strip() if answer.code != 0 else "")
    plugins = (info.get("ClientInfo") or {}).get("Plugins") or []
    buildx = next((str(plugin.get("Version", "")) for plugin in plugins if plugin.get("Name") == "buildx"), "")
    if errors or not info.get("ID"):
        return EngineFacts(cli, binary, unit, context, endpoint, {}, errors or "it gave no answer", buildx)
    return EngineFacts(cli, binary, unit, context, endpoint, info, "", buildx)


def is_local(endpoint: str) -> bool:
    """Whether the engine behind this endpoint can mount the folders of this host."""
    return endpoint.startswith(("unix://", "npipe://"))


def classify(facts: EngineFacts) -> State:
    """The state of the engine, from the facts alone."""
    if facts.info:
        return State.READY if is_local(facts.endpoint) else State.REMOTE
    if "permission denied" in facts.error.lower() and is_local(facts.endpoint):  # ssh says it of a key
        return State.FORBIDDEN
    if facts.endpoint not in DEFAULT_ENDPOINTS:
        return State.UNREACHABLE
    installed = facts.cli is not None and (facts.binary is not None or facts.unit)
    return State.STOPPED if installed else State.NOT_INSTALLED


def explain(facts: EngineFacts, state: State) -> str:
    """One paragraph: what is wrong with the engine and the command that mends it. Empty when it is ready."""
    named = f"context {facts.context!r} ({facts.endpoint})"
    said = f" The docker CLI said: {' '.join(facts.error.split())}" if facts.error else ""
    return {
        State.READY: "",
        State.REMOTE: (
            f"The container engine of {named} is on another machine, so the folders of this one cannot be mounted into "
            "its containers. Choose a local engine with `docker context use default`, or run torchdock over there."
        ),
        State.FORBIDDEN: (
            f"The container engine of {named} runs, but this user may not use it. Join the docker group with "
            "`sudo usermod -aG docker $USER`, then log in again (or `newgrp docker`); or use rootless Docker."
        ),
        State.STOPPED: (
            "A container engine is installed but not running. Start it with `sudo systemctl start docker` (without "
            "systemd: `sudo dockerd`), or let `make up` do it, as root or with passwordless sudo."
        ),
        State.NOT_INSTALLED: (
            "No container engine is installed on this machine. `make up` installs one on Debian and Ubuntu, as root or "
            "with passwordless sudo; elsewhere install Docker Engine or Docker Desktop and start it."
        ),
        State.UNREACHABLE: (
            f"The container engine of {named} does not answer. Start it (Docker Desktop, the rootless service, the "
            f"tunnel), or choose another one with `docker context use default` or by unsetting DOCKER_HOST.{said}"
        ),
    }[state]


@dataclass(frozen=True)
class ImageFacts:
    """An image that the engine has: its ID (config digest), the digests of its layers, its size in bytes."""

    id: str
    layers: tuple[str, ...]
    size: int


class Engine:
    """An engine that answers: its facts, its CLI's argv and its SDK client."""

    def __init__(self, facts: EngineFacts) -> None:
        assert facts.cli is not None
        self.facts = facts
        self.cli = facts.cli

    @cached_property
    def client(self) -> docker.DockerClient:
        """The SDK, pointed at the endpoint that the CLI resolved."""
        import docker

        return docker.DockerClient(base_url=self.facts.endpoint, timeout=120)

    @property
    def rootless(self) -> bool:
        """Root in a container is this user on the host."""
        return any("rootless" in option for option in self.facts.info.get("SecurityOptions") or [])

    @property
    def cdi(self) -> bool:
        """It injects devices by CDI; before Docker 28.3 that has to be switched on."""
        return bool(self.facts.info.get("CDISpecDirs"))

    @property
    def architecture(self) -> str:
        """What it builds and runs for, in the words of ``uname -m``."""
        return str(self.facts.info.get("Architecture") or os.uname().machine)

    @property
    def memory_bytes(self) -> int:
        """Memory of the machine that runs the containers (on Docker Desktop that is a virtual machine)."""
        return int(self.facts.info.get("MemTotal") or 0)

    @property
    def data_root(self) -> Path | None:
        """The folder that images are stored in, where it is on this host."""
        path = Path(str(self.facts.info.get("DockerRootDir") or "/nonexistent"))
        try:
            os.statvfs(path)
        except OSError:
            return None
        return path

    @property
    def open_files(self) -> int | None:
        """The hard limit of open files that this engine can give, or None where it cannot be read."""
        rootless = (f"{os.environ.get('XDG_RUNTIME_DIR', '')}/docker.pid",)
        for pid_file in rootless if self.rootless else ("/var/run/docker.pid", "/run/docker.pid"):
            try:
                limits = Path("/proc", Path(pid_file).read_text().strip(), "limits").read_text()
            except OSError:
                continue
            hard = next(line.split()[4] for line in limits.splitlines() if line.startswith("Max open files"))
            return int(hard) if hard.isdigit() else 1 << 30
        return None

    def image(self, reference: str) -> ImageFacts | None:
        """The image of this name, or None. An ID is the config digest, as ``sha256:…``."""
        import docker.errors

        try:
            attributes = self.client.images.get(reference).attrs
        except docker.errors.ImageNotFound:
            return None
        layers = tuple((attributes.get("RootFS") or {}).get("Layers") or ())
        return ImageFacts(attributes["Id"], layers, int(attributes.get("Size") or 0))

    def containers(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Containers that carry all these labels (``name=value``), the stopped ones too, as the engine lists them."""
        return list(self.client.api.containers(all=True, filters={"label": list(labels)}))

    def cached_steps(self) -> int:
        """How many steps the build cache holds: none or few after a prune."""
        return len(self.client.df().get("BuildCache") or [])

    def has_started(self, name: str, since: float) -> bool:
        """Whether a container of this name was started after this time (seconds since 1970), even if it is gone."""
        events = self.client.events(
            since=int(since), until=int(time.time()) + 1, decode=True, filters={"container": name, "event": "start"}
        )
        return any(True for _ in events)

    def remove_container(self, name: str) -> bool:
        """Kill and remove a container; False where there was none."""
        import docker.errors

        try:
            self.client.api.remove_container(name, force=True, v=False)
        except docker.errors.NotFound:
            return False
        except docker.errors.APIError as error:
            if error.status_code == 409:  # its removal is under way already
                return True
            raise
        return True


def require() -> Engine:
    """The engine, ready for launching.

    Raises:
        EngineError: there is none that can be used (a remote one cannot mount folders of here); it has the remedy.
    """
    facts = gather()
    state = classify(facts)
    if state is not State.READY:
        raise EngineError(explain(facts, state))
    return Engine(facts)


def translate(error: Exception) -> TorchdockError | None:
    """An error of the SDK as one that a person can act on; None where it is not the engine's."""
    import docker.errors
    import requests

    # The SDK's first question, the version, hides the broken connection in an exception of its own.
    silent = isinstance(error, docker.errors.DockerException) and "fetching server API version" in str(error)
    if silent or isinstance(error, (requests.exceptions.ConnectionError, requests.exceptions.Timeout)):
        facts = gather()
        state = classify(facts)
        detail = explain(facts, state) or "It answers again now: run the command again."
        return EngineError(f"The container engine stopped answering in the middle. {detail}")
    if isinstance(error, docker.errors.DockerException):
        return TorchdockError(f"The container engine refused: {' '.join(str(error).split())}")
    return None
