"""What doctor gathers on a host with GPUs: the driver as this host and real containers see it. Concludes nothing.

Every probe is bounded, and a probe that fails is a fact. The conclusions are in torchdock.diagnoses.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torchdock import cdi, container, gpus, holders, lease, passthrough, workspace
from torchdock.engine import Engine
from torchdock.errors import TorchdockError
from torchdock.gpus import Gpu, Inventory
from torchdock.identity import Identity
from torchdock.passthrough import Attempt
from torchdock.process import capture
from torchdock.sources import Sources
from torchdock.state import CloneState

HOST_SECONDS = 40.0
CONTAINER_SECONDS = 180.0  # torch is imported from a disk that may be cold
EXAMINE = ("python", "-P", "-m", "torchdock.inside.examine")
LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")
HOST_PIDS = "pid:[4026531836]"  # the kernel's own name of the first PID namespace
TOOLKIT = Path("/etc/nvidia-container-runtime/config.toml")


@dataclass(frozen=True)
class Use:
    """A process on a GPU, as the driver tells it: its PID is one of this host.

    Attributes:
        gpu: the UUID.
        user: who runs it; empty where that is hidden.
        container: the ID of the container that it is in, else empty.
        name: that container's name; empty where no engine that this user may ask names it.
        gone: there is no such process.
    """

    gpu: str
    pid: int
    user: str = ""
    container: str = ""
    name: str = ""
    gone: bool = False


@dataclass(frozen=True)
class Host:
    """The driver and its surroundings on this host.

    Attributes:
        inventory: by NVML.
        seen: what a process of this host sees (torchdock.inside.sight); None where the driver gives no answer.
        module: the version of the kernel's part of the driver; empty where it is not told.
        library: the version in the name of this host's NVML library; empty where it is not told.
        catalogue: the CDI specifications.
        live: of each path that they name its device numbers, (0, 0) for what is no device, None where it is missing.
        uses: who computes on the GPUs; ``leases``: who has one.
        systemd: the engine's containers have their cgroups from systemd.
        runtimes: the names of the engine's runtimes; ``cdi``: it injects devices by CDI.
        rootless: the engine is; ``cgroups``: the toolkit's hook makes device rules, None where its file is not here.
        editor: dev container files of the workspace that leave it to the editor to find a GPU.
    """

    inventory: Inventory
    seen: Mapping[str, Any] | None = None
    module: str = ""
    library: str = ""
    catalogue: cdi.Catalogue = field(default_factory=cdi.Catalogue)
    live: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)
    uses: tuple[Use, ...] = ()
    leases: Mapping[str, lease.Lease] = field(default_factory=dict)
    systemd: bool = False
    runtimes: tuple[str, ...] = ()
    cdi: bool = False
    rootless: bool = False
    cgroups: bool | None = None
    editor: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Containers:
    """What real containers show.

    Attributes:
        image: of which they were.
        attempts: each way in which a GPU was handed to one, for every GPU.
        bare: what one sees that was given no GPU (torchdock.inside.sight); None, and ``bare_error``, without an answer.
        inside: what a launch is like from within (torchdock.inside.examine); None, and ``inside_error``, without one.
        uid: who started them, and ``owner``: whose the file is on this host that one wrote into the workspace; None
            where it wrote none.
        given: the GPU that the launch had; None without one.
    """

    image: str
    attempts: tuple[tuple[Gpu, tuple[Attempt, ...]], ...] = ()
    bare: Mapping[str, Any] | None = None
    bare_error: str = ""
    inside: Mapping[str, Any] | None = None
    inside_error: str = ""
    uid: int = 0
    owner: int | None = None
    given: Gpu | None = None


def host(live: Engine | None, root: Path) -> Host:
    """Look at this host; ``root``: the workspace."""
    inventory = gpus.gather()
    info = live.facts.info if live else {}
    facts = passthrough.gather(live) if live else None
    catalogue = facts.catalogue if facts else cdi.gather()
    leases = _leases(inventory.gpus)
    return Host(
        inventory,
        _seen_here(),
        _module(),
        _library(),
        catalogue,
        {path: _numbers(path) for path in _paths(catalogue)},
        tuple(uses(inventory, leases)),
        leases,
        info.get("CgroupDriver") == "systemd",
        tuple(sorted(info.get("Runtimes") or ())),
        bool(facts and facts.injects),
        bool(live and live.rootless),
        _cgroups(),
        tuple(_editor(root)),
    )


def _seen_here() -> Mapping[str, Any] | None:
    done = capture([sys.executable, "-I", "-S", str(passthrough.SIGHT)], timeout=HOST_SECONDS)
    try:
        found: dict[str, Any] = json.loads(done.out)
    except ValueError:
        return None
    return found


def _module() -> str:
    try:
        text = passthrough.MODULE.read_text()
    except OSError:
        return ""
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else ""


def _library() -> str:
    for folder in (*os.environ.get("LD_LIBRARY_PATH", "").split(":"), *LIBRARY_FOLDERS):
        path = Path(folder or "/nonexistent", "libnvidia-ml.so.1")
        if path.exists():
            version = path.resolve().name.partition(".so.")[2]
            return version if "." in version else ""
    return ""


def _paths(catalogue: cdi.Catalogue) -> set[str]:
    named = [one for file in catalogue.files for one in (file.common, *file.devices)]
    return {path for one in named for path in (*one.mounts, *(node.path for node in one.nodes))}


def _numbers(path: str) -> tuple[int, int] | None:
    try:
        number = os.stat(path).st_rdev
    except OSError:
        return None
    return os.major(number), os.minor(number)


def _leases(cards: Sequence[Gpu]) -> Mapping[str, lease.Lease]:
    with suppress(TorchdockError, OSError):  # a folder that cannot be used is told by each launch
        return lease.gather([gpu.uuid for gpu in cards])
    return {}


def uses(inventory: Inventory, leases: Mapping[str, lease.Lease]) -> list[Use]:
    """Whose the processes on the GPUs are. In a container the driver's list is empty: it knows no PID namespaces."""
    facts = holders.gather(inventory, leases)
    found = []
    for gpu in inventory.gpus:
        for process in gpu.processes:
            seen = facts.programs[process.pid]
            name = facts.boxes[seen.box].name if seen.box in facts.boxes else ""
            found.append(Use(gpu.uuid, process.pid, seen.user, seen.box, name, _gone(process.pid)))
    return found


def _gone(pid: int) -> bool:
    """Whether there is no such process; never where this one has PIDs of its own (a container, WSL)."""
    try:
        if os.readlink("/proc/self/ns/pid") != HOST_PIDS:
            return False
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


def _cgroups() -> bool | None:
    try:
        text = TOOLKIT.read_text()
    except OSError:
        return None
    return re.search(r"^\s*no-cgroups\s*=\s*true", text, re.MULTILINE) is None


def _editor(root: Path) -> list[Path]:
    """Dev container files that ask the editor for a GPU."""
    found = []
    for path in sorted((root / ".devcontainer").glob("**/devcontainer.json")):
        with suppress(OSError, UnicodeDecodeError):
            if re.search(r'"hostRequirements"\s*:\s*\{[^}]*"gpu"\s*:\s*(?!false)', path.read_text()):
                found.append(path)
    return found


def containers(
    live: Engine, image: str, state: CloneState, given: Sources, inventory: Inventory, served: Sequence[Gpu]
) -> Containers:
    """Launch real containers: one for each GPU and way until one is proved, one without a GPU, one as `invoke run`.

    ``served``: the GPUs that the image computes on. Of these the launch gets one that nobody has, if there is one.

    Raises:
        TorchdockError: no container can be launched here, with the remedy.
    """
    who = container.identity(live)
    facts = passthrough.gather(live)
    tried = []
    for gpu in inventory.gpus:
        tried.append((gpu, tuple(passthrough.attempts(live, image, who, [gpu], facts))))
        if tried[-1][1][-1].silent:  # so are the others, and each would take its time
            break
    bare, bare_error = passthrough.look(live, image, who, ())
    taken = {uuid for uuid, found in _leases(inventory.gpus).items() if found.held or found.pending}
    idle = [gpu for gpu in served if not gpu.processes and gpu.uuid not in taken]
    proved = {gpu.uuid: ways[-1].words for gpu, ways in tried if ways and not ways[-1].why}
    chosen = next((gpu for gpu in idle if gpu.uuid in proved), None)
    words = proved[chosen.uuid] if chosen else ()
    inside, error, owner = _launch(live, image, who, given, state, chosen, words)
    return Containers(image, tuple(tried), bare, bare_error, inside, error, os.getuid(), owner, chosen)


def _launch(
    live: Engine,
    image: str,
    who: Identity,
    given: Sources,
    state: CloneState,
    gpu: Gpu | None,
    words: Sequence[str],
) -> tuple[Mapping[str, Any] | None, str, int | None]:
    """(what it is like inside, why there is no answer, whose the file is that it wrote into the workspace)."""
    file = state.path(f"doctor-{secrets.token_hex(6)}")
    folder = container.check_workspace(state.root, who)
    plan = container.plan(
        live,
        image,
        who,
        given,
        role="test",
        clone=state.clone,
        workspace=folder,
        command=[*EXAMINE, f"/workspace/{file.relative_to(state.root)}"],
        gpus=[gpu] if gpu else [],
        gpu_arguments=words,
        wishes=replace(workspace.read(folder).wishes(os.environ), ports=()),  # which somebody may have
    )
    plan.prepare()
    try:
        done = capture([live.cli, *plan.argv[1:]], timeout=CONTAINER_SECONDS, env={**os.environ, **plan.environment})
        owner = file.lstat().st_uid if file.exists() else None
    finally:
        capture([live.cli, "rm", "--force", plan.name], timeout=30)
        with suppress(OSError):
            file.unlink(missing_ok=True)
    try:
        found: dict[str, Any] = json.loads(done.out)
    except ValueError:
        return None, " ".join(done.err.split())[-400:] or f"exit code {done.code}", owner
    return found, "", owner
