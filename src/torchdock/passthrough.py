"""How GPUs get into a container on this host: by CDI, by `--gpus`, or by the runtime named nvidia.

The first way that a probe container proves: NVML inside sees exactly the GPUs that were asked for. What an engine says
of itself proves nothing (NVIDIA/nvidia-docker#1034). A proof holds while the engine runs, under the same driver and
with the same CDI specifications; it is kept in this user's folder of the host, which a reboot empties.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from torchdock import cdi, identity, lifeline, mounts
from torchdock.engine import Engine
from torchdock.errors import TorchdockError
from torchdock.gpus import Gpu
from torchdock.identity import Identity
from torchdock.process import Completed, capture, csv_fields

SIGHT = Path(__file__).with_name("inside") / "sight.py"
PROBE_SECONDS = 60.0  # a driver that has to wake up eight GPUs takes ten
SILENT = "the driver gave a container no answer"
MODULE = Path("/proc/driver/nvidia/version")
MEMORY = "passthrough.json"
GENERATE = "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"


class Way(Enum):
    """A way into a container, the best first."""

    CDI = "CDI"
    GPUS = "--gpus"
    RUNTIME = "--runtime=nvidia"


@dataclass(frozen=True)
class Candidate:
    """A way for these GPUs: its words of docker's argv, or why it is none here."""

    way: Way
    words: tuple[str, ...] = ()
    obstacle: str = ""


@dataclass(frozen=True)
class Facts:
    """What the ways depend on, nothing concluded.

    Attributes:
        injects: the engine injects devices by CDI.
        podman: it knows CDI alone.
        runtimes: the names of its runtimes.
        catalogue: the CDI specifications of this host.
    """

    injects: bool
    podman: bool
    runtimes: tuple[str, ...]
    catalogue: cdi.Catalogue


@dataclass(frozen=True)
class Proof:
    """The way that was proved, and why each better one is none: (way, reason)."""

    way: Way
    failed: tuple[tuple[Way, str], ...] = ()

    @property
    def fallback(self) -> str:
        """One line about a way that is not the best, else empty."""
        if not self.failed:
            return ""
        whys = "; ".join(f"{way.value}: {why}" for way, why in self.failed)
        return f"GPUs are handed over by {self.way.value} ({whys})"


def gather(engine: Engine) -> Facts:
    """Look at the engine's settings and this host's CDI specifications."""
    info = engine.facts.info
    folders = [str(folder) for folder in info.get("CDISpecDirs") or cdi.FOLDERS]
    runtimes = tuple(sorted(info.get("Runtimes") or ()))
    return Facts(engine.cdi or engine.podman, engine.podman, runtimes, cdi.gather(folders))


def cdi_names(gpus: Sequence[Gpu], known: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What a CDI specification calls these GPUs: by UUID, else by index (``0``, ``0:1``), as old toolkits
    name them; None where it does not name each. Pure.
    """
    found = []
    for gpu in gpus:
        names = (gpu.uuid, gpu.label)
        name = next((name for name in names if name in known), None)
        if name is None:
            return None
        found.append(name)
    return tuple(found)


def arguments(way: Way, gpus: Sequence[Gpu], names: Sequence[str] = ()) -> tuple[str, ...]:
    """The part of docker's argv that hands these GPUs over; ``names``: theirs in the CDI specification. Pure."""
    if not gpus:
        return ()
    uuids = ",".join(gpu.uuid for gpu in gpus)
    if way is Way.CDI:
        return tuple(word for name in names for word in ("--device", f"{cdi.KIND}={name}"))
    if way is Way.GPUS:
        return ("--gpus", csv_fields(f"device={uuids}"))  # docker reads it as CSV: quotes keep it one field
    return (
        *("--runtime", "nvidia", "--env", f"NVIDIA_VISIBLE_DEVICES={uuids}"),
        *("--env", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
    )


def candidates(facts: Facts, gpus: Sequence[Gpu]) -> list[Candidate]:
    """Every way for these GPUs, the best first, with what is known against it before anything is launched. Pure."""
    names = cdi_names(gpus, facts.catalogue.devices)
    if not facts.injects:
        first = Candidate(Way.CDI, obstacle="it is switched off in the engine")
    elif names is None:
        unread = [f"{file.path} cannot be read ({file.error})" for file in facts.catalogue.files if file.error]
        first = Candidate(Way.CDI, obstacle="; ".join(unread) or "no CDI specification names these GPUs")
    else:
        first = Candidate(Way.CDI, arguments(Way.CDI, gpus, names))
    if facts.podman:
        return [first]
    last = Candidate(Way.RUNTIME, obstacle="the engine has no runtime of that name")
    if "nvidia" in facts.runtimes:
        last = Candidate(Way.RUNTIME, arguments(Way.RUNTIME, gpus))
    return [first, Candidate(Way.GPUS, arguments(Way.GPUS, gpus)), last]


def judge(gpus: Sequence[Gpu], seen: Mapping[str, Any]) -> str:
    """What is wrong with what a container sees that was given these GPUs; empty where it is exactly these. Pure."""
    if seen["code"] == 12:
        return "the container starts, and has no driver library in it"
    if seen["code"]:
        closed = [path for path, code in seen["nodes"].items() if code]
        more = f"; {', '.join(closed)} cannot be opened" if closed else ""
        return f"NVML fails in the container: {seen['call']} gives {seen['code']} ({seen['error']}){more}"
    asked, found = {gpu.uuid for gpu in gpus}, set(seen["visible"])
    wrong = []
    if asked - found:
        wrong.append(f"the container does not see {', '.join(sorted(asked - found))}")
    if found - asked:
        wrong.append(f"the container sees {', '.join(sorted(found - asked))}, which it was not given")
    return "; ".join(wrong)


def probe_argv(engine: Engine, image: str, who: Identity, words: Sequence[str], name: str) -> tuple[str, ...]:
    """The docker command of a probe: least privilege, as a launch, and :data:`SIGHT` in the image's Python."""
    return (
        *(engine.program, "run", "--rm", "--name", name, "--label", "dev.torchdock.role=probe", "--pull", "never"),
        *("--label", f"dev.torchdock.user={who.uid}", "--network", "none", "--log-driver", "none"),
        *identity.arguments(who),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", *mounts.labels(engine)),
        *("--entrypoint", "python", *words, image, "-I", "-S", "-c", SIGHT.read_text(encoding="utf-8")),
    )


def look(engine: Engine, image: str, who: Identity, words: Sequence[str]) -> tuple[Mapping[str, Any] | None, str]:
    """What a container sees that is launched with these words (see :func:`torchdock.inside.sight.look`), or None and
    why there is no answer. Bounded by :data:`PROBE_SECONDS`; nothing is left.
    """
    name = f"torchdock-probe-{secrets.token_hex(6)}"
    argv = probe_argv(engine, image, who, words, name)
    try:
        done = capture([engine.cli, *argv[1:]], timeout=PROBE_SECONDS)
    except BaseException:
        capture([engine.cli, "rm", "--force", name], timeout=30)
        raise
    if done.code == 124:
        capture([engine.cli, "rm", "--force", name], timeout=30)
        return None, f"{SILENT} within {PROBE_SECONDS:.0f} s"
    if done.code in (125, 126, 127) or not done.out.startswith("{"):
        capture([engine.cli, "rm", "--force", name], timeout=30)  # one that was made and not started
        return None, _refusal(done)
    found: dict[str, Any] = json.loads(done.out)
    return found, ""


def _refusal(done: Completed) -> str:
    """What docker, or else the probe, said; without docker's own preamble and hints."""
    text = " ".join(line for line in done.err.splitlines() if not line.startswith("Run 'docker"))
    text = re.sub(r"^(docker|Error): (Error response from daemon: )?", "", " ".join(text.split()))
    refused = done.code in (125, 126, 127)  # docker's own
    who = "the engine refuses" if refused else f"the probe failed in the container (exit code {done.code})"
    return f"{who}: {text[-400:].rstrip('.') or 'without a word'}"


@dataclass(frozen=True)
class Attempt:
    """One way that was tried: what was seen in the container, None without an answer; ``why`` it is none, or empty."""

    way: Way
    words: tuple[str, ...]
    why: str
    seen: Mapping[str, Any] | None = None

    @property
    def silent(self) -> bool:
        """The driver hangs: another way would take as long and tell no more."""
        return self.why.startswith(SILENT)


def attempts(engine: Engine, image: str, who: Identity, gpus: Sequence[Gpu], facts: Facts) -> Iterator[Attempt]:
    """Launch a probe container by each way in turn, until one hands over exactly these GPUs, or the driver hangs."""
    for candidate in candidates(facts, gpus):
        seen, why = None, candidate.obstacle
        if not why:
            seen, why = look(engine, image, who, candidate.words)
            why = judge(gpus, seen) if seen is not None else why
        attempt = Attempt(candidate.way, candidate.words, why, seen)
        yield attempt
        if not why or attempt.silent:
            return


def prove(engine: Engine, image: str, who: Identity, gpus: Sequence[Gpu], facts: Facts) -> Proof:
    """The first way that a probe container proves.

    Raises:
        NoPassthrough: none does.
    """
    tried = list(attempts(engine, image, who, gpus, facts))
    failed = tuple((one.way, one.why) for one in tried if one.why)
    if len(failed) == len(tried):
        raise NoPassthrough(gpus, failed)
    return Proof(tried[-1].way, failed)


class NoPassthrough(TorchdockError):
    """No way hands these GPUs over; exit code 1.

    Attributes:
        failed: (way, reason) of each.
    """

    def __init__(self, gpus: Sequence[Gpu], failed: Sequence[tuple[Way, str]]) -> None:
        self.failed = tuple(failed)
        named = ", ".join(gpu.uuid for gpu in gpus)
        super().__init__(
            f"No way hands {named} to a container here: "
            + "; ".join(f"by {way.value}, {why}" for way, why in failed)
            + f". Install the NVIDIA Container Toolkit, make its CDI specification ({GENERATE}), and see to it that "
            "the engine has CDI switched on; `invoke doctor` examines each, and `--gpus 0` computes on the CPU."
        )


def settle(engine: Engine, image: str, who: Identity, gpus: Sequence[Gpu], *, dry_run: bool = False) -> Settled:
    """The words that hand these GPUs over, by the way that is proved here, which is remembered.

    ``dry_run``: nothing is launched; without a proof it is the first way that nothing is known against.

    Raises:
        NoPassthrough: none hands them over.
    """
    if not gpus:
        return Settled((), "")
    facts = gather(engine)
    key = _key(engine, facts, gpus)
    proof = _recall(key)
    ways = {candidate.way: candidate for candidate in candidates(facts, gpus)}
    if proof is not None and (proof.way not in ways or ways[proof.way].obstacle):
        proof = None  # proved for other GPUs, which the specification names
    if proof is None and dry_run:
        first = next((candidate for candidate in ways.values() if not candidate.obstacle), ways[Way.CDI])
        return Settled(first.words, "")
    if proof is None:
        proof = prove(engine, image, who, gpus, facts)
        _remember(key, proof)
    return Settled(ways[proof.way].words, proof.fallback)


@dataclass(frozen=True)
class Settled:
    """The words of docker's argv, and what is to be said of a way that is not the best, or empty."""

    words: tuple[str, ...]
    fallback: str


def forget() -> None:
    """A launch failed by what was proved: the next one proves anew."""
    with suppress(OSError):
        (_folder(make=False) or Path("/nonexistent")).joinpath(MEMORY).unlink(missing_ok=True)


def _folder(*, make: bool) -> Path | None:
    return lifeline.folder(os.getuid(), make=make)


def _key(engine: Engine, facts: Facts, gpus: Sequence[Gpu]) -> str:
    """What a proof depends on: the engine and when it started, this boot, the driver, the CDI specifications.

    And these GPUs, where a specification names them by index: that one index is right proves no other.
    """

    def text(path: Path) -> str:
        try:
            return path.read_text().strip()
        except OSError:
            return ""

    settings = (facts.injects, facts.runtimes, facts.catalogue.digest)
    uuids = [gpu.uuid for gpu in gpus]
    these = () if set(uuids) >= set(cdi_names(gpus, facts.catalogue.devices) or ()) else tuple(uuids)
    boot = (text(lifeline.BOOT_ID), text(MODULE))
    return repr((engine.facts.info.get("ID"), engine.started, boot, settings, these))


def _recall(key: str) -> Proof | None:
    folder = _folder(make=False)
    if folder is None:
        return None
    try:
        kept = json.loads((folder / MEMORY).read_text())
        if kept["key"] != key:
            return None
        return Proof(Way(kept["way"]), tuple((Way(way), str(why)) for way, why in kept["failed"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(key: str, proof: Proof) -> None:
    folder = _folder(make=True)
    if folder is None:
        return
    kept = {"key": key, "way": proof.way.value, "failed": [(way.value, why) for way, why in proof.failed]}
    unborn = folder / f".{MEMORY}.{secrets.token_hex(4)}"
    with suppress(OSError):  # proved again next time
        unborn.write_text(json.dumps(kept))
        unborn.replace(folder / MEMORY)
