"""The container engine: which one answers, what it can do, and its CLI and SDK client.

Facts come from the CLI, because only the CLI knows contexts and BuildKit (docker-py#2230, docker-py#3146); the SDK is
pointed at the endpoint that the CLI resolved.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
COUNTING_SECONDS = 600
# How a build's image is kept. The containerd store alone compresses while it builds: zstd's fastest level takes 0.4 of
# the time of gzip, which is the default, to the same size. By OCI's media types, as Docker's own have none for zstd:
# Docker 26 does not list an image that has it all the same. The other store ignores all of it.
OUTPUT = "type=image,compression=zstd,compression-level=1,oci-mediatypes=true"


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
        podman: ``podman info`` where Podman answers in Docker's place, else empty. ``cli`` is its own client then:
            docker's knows no ``keep-id``, and its ``run --rm`` waits for ever for an event that Podman 4.3 never sends.
    """

    cli: str | None
    binary: str | None
    unit: bool
    context: str
    endpoint: str
    info: Mapping[str, Any]
    error: str
    buildx: str
    podman: Mapping[str, Any] = field(default_factory=dict)


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
        if capture([cli, "--version"], env=env).out.startswith("podman"):  # which may know no contexts
            return _gather_podman(env, "")
        named = env.get("DOCKER_CONTEXT") or "default"
        return EngineFacts(cli, binary, unit, named, env.get("DOCKER_HOST", "context"), {}, where.err.strip(), "")
    answer = capture([cli, "info", "--format", "{{json .}}"], timeout=30, env=env)
    info: dict[str, Any] = {}
    if answer.out.strip().startswith("{"):
        info = json.JSONDecoder().raw_decode(answer.out.strip())[0]
    if "host" in info and "store" in info:  # the package podman-docker: `docker` is Podman's client
        return _gather_podman(env, "")
    # Depending on its version the CLI reports a silent engine in the document, on stderr, or in both.
    errors = " ".join(info.get("ServerErrors") or []) or (answer.err.strip() if answer.code != 0 else "")
    plugins = (info.get("ClientInfo") or {}).get("Plugins") or []
    buildx = next((str(plugin.get("Version", "")) for plugin in plugins if plugin.get("Name") == "buildx"), "")
    if errors or not info.get("ID"):
        return EngineFacts(cli, binary, unit, context, endpoint, {}, errors or "it gave no answer", buildx)
    # Docker always names its init; whoever does not is asked who it is.
    if not info.get("InitBinary") and is_local(endpoint):
        who = capture([cli, "version", "--format", "{{json .Server.Components}}"], env=env)
        if '"Podman Engine"' in who.out:
            return _gather_podman(env, endpoint)
    return EngineFacts(cli, binary, unit, context, endpoint, info, "", buildx)


def _gather_podman(env: Mapping[str, str], endpoint: str) -> EngineFacts:
    """Ask Podman by its own client, and by the socket that the SDK uses; ``endpoint``: where docker's client looked."""
    import docker
    import docker.errors
    import requests

    def bad(error: str, document: Mapping[str, Any] | None = None) -> EngineFacts:
        return EngineFacts(cli, None, False, "podman", endpoint, {}, error, "", document or {"host": {}})

    cli = shutil.which("podman", path=env.get("PATH"))
    if cli is None:
        return bad("its own client is needed, and `podman` is not on the PATH: install it (Debian: podman)")
    answer = capture([cli, "info", "--format", "json"], timeout=30, env=env)
    try:
        document = json.loads(answer.out)
        remote, root = document["host"].get("remoteSocket") or {}, document["store"]["graphRoot"]
    except (ValueError, KeyError, TypeError):
        return bad(f"`podman info` failed: {' '.join(answer.err.split())}")
    if document["host"].get("serviceIsRemote"):
        return bad("its client is set to a remote one: `unset CONTAINER_HOST CONTAINER_CONNECTION`", document)
    rootless = (document["host"].get("security") or {}).get("rootless")
    endpoint = endpoint or "unix://" + str(remote.get("path") or "").removeprefix("unix://")
    service = "systemctl --user" if rootless else "sudo systemctl"
    try:
        api = docker.APIClient(base_url=endpoint, timeout=30)
        info: dict[str, Any] = api.info()
        api.close()
    except (docker.errors.DockerException, requests.exceptions.RequestException):
        start = f"`{service} enable --now podman.socket` (without systemd: `podman system service --time=0 &`)"
        return bad(f"its socket does not answer; start it with {start}", document)
    if info.get("DockerRootDir") not in (None, "", root):
        return bad(
            f"`podman` keeps its containers in {root}, and the socket's Podman in {info['DockerRootDir']}: it is that "
            "of another user. `unset DOCKER_HOST`, or name the socket of your own",
            document,
        )
    return EngineFacts(cli, None, False, "podman", endpoint, info, "", "", document)


def is_local(endpoint: str) -> bool:
    """Whether the engine behind this endpoint can mount the folders of this host."""
    return endpoint.startswith(("unix://", "npipe://"))


def classify(facts: EngineFacts) -> State:
    """The state of the engine, from the facts alone."""
    if facts.info:
        return State.READY if is_local(facts.endpoint) else State.REMOTE
    if "permission denied" in facts.error.lower() and is_local(facts.endpoint):  # ssh says it of a key
        return State.FORBIDDEN
    if facts.endpoint not in DEFAULT_ENDPOINTS or facts.podman:
        return State.UNREACHABLE
    installed = facts.cli is not None and (facts.binary is not None or facts.unit)
    return State.STOPPED if installed else State.NOT_INSTALLED


def explain(facts: EngineFacts, state: State) -> str:
    """One paragraph: what is wrong with the engine and the command that mends it. Empty when it is ready."""
    named = f"context {facts.context!r} ({facts.endpoint})"
    if facts.podman and state is State.UNREACHABLE:
        return f"Podman answers in Docker's place here and cannot be used yet: {facts.error.rstrip('.')}."
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
    """An image that the engine has.

    Attributes:
        id: the digest of its configuration; with the containerd store of its manifest, which tells how the layers are
            compressed as well, so equal images may have different ones (see :meth:`Engine.same`).
        layers: their digests, uncompressed.
        size: bytes; with the containerd store of the layers as they are compressed.
        digests: ``repository@sha256:…`` of the registries that it was pulled from or pushed to; with the containerd
            store of what was built here, too.
        settings: see :func:`settings`.
    """

    id: str
    layers: tuple[str, ...]
    size: int
    digests: tuple[str, ...] = ()
    settings: str = ""


# The keys of `config` in OCI's specification and Docker's.
_SETTINGS = [
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "Healthcheck",
    "OnBuild",
    "Shell",
]


def settings(document: Mapping[str, Any]) -> str:
    """What an image says besides its layers, as text to compare: platform, day, environment, command, labels and so on.

    From its configuration (OCI image spec, config.md) or from ``docker image inspect``, which shows it with further
    fields and empty ones; the history is left out, since that does not show it. Pure.
    """
    fields = {key.lower(): value for key, value in document.items()}
    ran = fields.get("config") or {}
    found = {key: ran[key] for key in _SETTINGS if ran.get(key)}
    found |= {key: fields[key] for key in ("architecture", "os", "variant", "created", "author") if fields.get(key)}
    return json.dumps(found, sort_keys=True)


class Known(Protocol):
    """What tells one image from another, of the engine or of a file (``id``: of its configuration)."""

    @property
    def id(self) -> str: ...
    @property
    def layers(self) -> tuple[str, ...]: ...
    @property
    def settings(self) -> str: ...


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
    def podman(self) -> bool:
        """It is Podman, in Docker's place."""
        return bool(self.facts.podman)

    @property
    def program(self) -> str:
        """What a person types to launch a container of it."""
        return "podman" if self.podman else "docker"

    @property
    def rootless(self) -> bool:
        """It runs as a user, who is root in its containers unless it maps otherwise."""
        if self.podman:
            return bool((self.facts.podman["host"].get("security") or {}).get("rootless"))
        return any("rootless" in option for option in self.facts.info.get("SecurityOptions") or [])

    @property
    def remaps(self) -> bool:
        """It runs as root and gives containers other UIDs than the host's (``userns-remap``)."""
        return any(option.startswith("name=userns") for option in self.facts.info.get("SecurityOptions") or [])

    @property
    def owner(self) -> int | None:
        """The UID whose engine it is by its socket; None where that is no file of this host."""
        try:
            return os.stat(self.facts.endpoint.removeprefix("unix://")).st_uid
        except OSError:
            return None

    @property
    def pid(self) -> int | None:
        """The process that serves this engine's socket, as far as it is one of this host."""
        with suppress(OSError, struct.error), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(self.facts.endpoint.removeprefix("unix://"))
            peer = probe.getsockopt(socket.SOL_SOCKET, getattr(socket, "SO_PEERCRED", 0), struct.calcsize("3i"))
            if (number := int(struct.unpack("3i", peer)[0])) > 1:  # systemd listens in its place
                return number
        rootless = (f"{os.environ.get('XDG_RUNTIME_DIR', '')}/docker.pid",)
        for pid_file in rootless if self.rootless else ("/var/run/docker.pid", "/run/docker.pid"):
            with suppress(OSError, ValueError):
                return int(Path(pid_file).read_text())
        return None

    @property
    def started(self) -> str:
        """Names the start of this engine's process; empty where that is not seen."""
        with suppress(OSError, IndexError):
            ticks = Path("/proc", str(self.pid), "stat").read_text().rpartition(")")[2].split()[19]
            return f"{self.pid}:{ticks}"
        return ""

    @property
    def keeps_groups(self) -> bool:
        """A rootless one whose runtime leaves a process its groups of the host."""
        runtime = self.facts.podman.get("host", {}).get("ociRuntime") or {}
        return self.podman and runtime.get("name") == "crun"

    @property
    def selinux(self) -> bool:
        """Its containers run under SELinux, which opens no folder of the host to them."""
        security = self.facts.podman.get("host", {}).get("security") or {}
        named = any("selinux" in option for option in self.facts.info.get("SecurityOptions") or [])
        return named or bool(security.get("selinuxEnabled"))

    @property
    def own_tmp(self) -> bool:
        """It came as a snap: its /tmp is not this host's."""
        return str(self.facts.info.get("DockerRootDir") or "").startswith(("/var/snap/", "/snap/"))

    @property
    def kind(self) -> str:
        """Which engine it is, in words."""
        words = f"{'Podman ' if self.podman else ''}{self.facts.info.get('ServerVersion')}"
        words += ", rootless" if self.rootless else ""
        return words + (", Docker Desktop" if self.virtual else ", from a snap" if self.own_tmp else "")

    @property
    def virtual(self) -> bool:
        """It runs in a virtual machine (Docker Desktop): locks and processes of this host are not seen there."""
        return "docker desktop" in str(self.facts.info.get("OperatingSystem") or "").lower()

    @property
    def cdi(self) -> bool:
        """It injects devices by CDI; before Docker 28.3 that has to be switched on."""
        return bool(self.facts.info.get("CDISpecDirs"))

    @property
    def by_manifest(self) -> bool:
        """It has containerd's image store, as Docker 29 and newer do: the ID of an image is its manifest's digest."""
        return "io.containerd.snapshotter" in str(self.facts.info.get("DriverStatus") or "")

    def same(self, one: Known, other: Known) -> bool:
        """Whether two images have the same content.

        Where IDs are of manifests, layers and settings tell: the same image, built and pulled, may have two.
        """
        alike = (one.layers, one.settings) == (other.layers, other.settings)
        return one.id == other.id or (self.by_manifest and alike)

    @property
    def architecture(self) -> str:
        """What it builds and runs for, in the words of ``uname -m`` (Podman has Go's)."""
        from torchdock import host

        return host.architecture(self.facts.info.get("Architecture") or None)

    @property
    def kernel(self) -> str:
        """The version of the kernel that containers run on, as ``uname -r`` tells it."""
        return str(self.facts.info.get("KernelVersion") or os.uname().release)

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
        if self.podman:  # no daemon: a container has no more than whoever starts it
            import resource

            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            return 1 << 30 if hard == resource.RLIM_INFINITY else hard
        try:
            limits = Path("/proc", str(self.pid), "limits").read_text()
        except OSError:
            return None
        most = next(line.split()[4] for line in limits.splitlines() if line.startswith("Max open files"))
        return int(most) if most.isdigit() else 1 << 30

    def image(self, reference: str) -> ImageFacts | None:
        """The image of this name, or None."""
        import docker.errors

        try:
            attributes = self.client.images.get(reference).attrs
        except docker.errors.ImageNotFound:
            return None
        layers = tuple((attributes.get("RootFS") or {}).get("Layers") or ())
        digests = tuple(attributes.get("RepoDigests") or ())
        return ImageFacts(attributes["Id"], layers, int(attributes.get("Size") or 0), digests, settings(attributes))

    def history(self, reference: str) -> list[dict[str, Any]]:
        """How an image that is there was made, as ``docker history`` lists it: the newest step first."""
        return list(self.client.images.get(reference).history())

    def containers(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Containers that carry all these labels (``name=value``), the stopped ones too, as the engine lists them."""
        return list(self.client.api.containers(all=True, filters={"label": list(labels)}))

    def cached_steps(self) -> int:
        """How many steps the build cache holds: none or few after a prune."""
        return len(self.disk_use("build-cache"))

    def disk_use(self, kind: str) -> list[dict[str, Any]]:
        """The rows of ``docker system df`` for ``build-cache`` or ``volume`` alone: all take minutes on large volumes.

        The engine walks through every volume for the size of one.
        """
        api = self.client.api
        url = f"{api.base_url}/v{api.api_version}/system/df"
        told = api.get(url, params={"type": kind}, timeout=COUNTING_SECONDS)
        key = {"build-cache": "BuildCache", "volume": "Volumes"}[kind]
        return list((told.json().get(key) if told.ok else None) or ())

    def had(self, name: str, event: str, since: float) -> bool:
        """Whether a container of this name had an event (``start``, ``oom``) after this time (seconds since 1970).

        Even if it is gone.
        """
        events = self.client.events(
            since=int(since), until=int(time.time()) + 1, decode=True, filters={"container": name, "event": event}
        )
        return any(True for _ in events)

    def exit_code(self, name: str) -> int | None:
        """The exit code of a container that has ended; None where it runs or is gone."""
        import docker.errors

        try:
            state = self.client.api.inspect_container(name)["State"]
        except docker.errors.NotFound:
            return None
        return None if state["Running"] else int(state["ExitCode"])

    def processes(self, name: str) -> list[str]:
        """The command lines of the processes in a container; none where it does not run."""
        import docker.errors

        try:
            table = self.client.api.top(name)
            column = table["Titles"].index("CMD")
        except docker.errors.APIError:  # 404, 409 or 500, depending on how far its end is
            return []
        except ValueError:  # Podman 4.3 answers nothing, and calls the column otherwise
            return []
        return [row[column] for row in table["Processes"] or ()]

    def runs(self, name: str) -> bool:
        """Whether a container of this name is there and runs."""
        import docker.errors

        try:
            return bool(self.client.api.inspect_container(name)["State"]["Running"])
        except docker.errors.NotFound:
            return False

    def has_terminal(self, name: str) -> bool:
        """Whether a container's streams are a terminal."""
        return bool(self.client.api.inspect_container(name)["Config"]["Tty"])

    def modified(self, name: str, path: str) -> str:
        """When a path in a container, running or ended, was last modified, as the engine tells it; empty without one.

        Takes 5 ms, where :meth:`changes` compares every file of the container with the image's: 1.4 s of a CPU.
        """
        api = self.client.api  # HEAD of an archive: the SDK has GET alone, which packs the whole folder
        url = f"{api.base_url}/v{api.api_version}/containers/{name}/archive"
        answer = api.head(url, params={"path": path})
        if not answer.ok:
            return ""
        return str(json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))["mtime"])

    def sees(self, folder: Path) -> bool:
        """Whether a folder of this host is one for the engine too: a client may have a /tmp of its own (PrivateTmp).

        Nothing is made: an engine looks at the mounts of a new container first, and at its image, which does not exist,
        after that.
        """
        import docker.errors
        from docker.types import Mount

        api = self.client.api
        mounted = api.create_host_config(mounts=[Mount("/mnt", str(folder), type="bind")])
        try:
            api.create_container(f"sha256:{'0' * 64}", host_config=mounted)
        except docker.errors.APIError as error:
            return "does not exist" not in str(error.explanation)
        return True

    def published(self, name: str, port: int) -> tuple[str, int] | None:
        """The address and port of this host behind which a running container's TCP port is; None where it is not."""
        ports = self.client.api.inspect_container(name)["NetworkSettings"].get("Ports") or {}
        found = ports.get(f"{port}/tcp") or []
        return (str(found[0]["HostIp"]), int(found[0]["HostPort"])) if found else None

    def changes(self, name: str) -> list[dict[str, Any]]:
        """What differs in a container's file system from its image: ``Path``, ``Kind`` (0 changed, 1 added, 2 gone)."""
        import docker.errors

        try:
            return list(self.client.api.diff(name) or [])
        except docker.errors.NotFound:
            return []

    def sessions(self, name: str) -> list[str]:
        """The commands that run in a container besides its own (``docker exec``), without the entrypoint, sorted.

        The engine itself gives them in another order each time.
        """
        api = self.client.api
        found = [api.exec_inspect(one) for one in api.inspect_container(name).get("ExecIDs") or []]
        words = [
            [one["ProcessConfig"]["entrypoint"], *one["ProcessConfig"]["arguments"]] for one in found if one["Running"]
        ]
        return sorted(" ".join(word for word in line if not word.endswith("/entrypoint.sh")) for line in words)

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
