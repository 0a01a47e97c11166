"""Proves that this host works: facts -> findings, each with what was seen, what it means and the exact remedy."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torchdock import base as bases
from torchdock import choice, debian, gpus, host, provision, sources, variants
from torchdock import engine as engines
from torchdock.engine import Engine, EngineFacts, State
from torchdock.process import capture
from torchdock.state import CloneState
from torchdock.variants import GB, Variant, numbers

REACH_SECONDS = 20


@dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        group: ``engine``, ``disk``, ``sources`` or ``gpus``.
        subject: what was examined, in a word or two.
        severity: ``good``, ``note`` (works, with a fallback), or ``error``.
        seen: what was seen.
        remedy: what to do; empty for a good finding.
    """

    group: str
    subject: str
    severity: str
    seen: str
    remedy: str = ""


def judge_engine(facts: EngineFacts) -> list[Finding]:
    """Engine, permission and buildx, from the facts. Pure."""
    state = engines.classify(facts)
    if state is not State.READY:
        return [Finding("engine", "engine", "error", state.value, engines.explain(facts, state))]
    info = facts.info
    kind = ", rootless" if any("rootless" in option for option in info.get("SecurityOptions") or []) else ""
    found = [
        Finding(
            "engine", "engine", "good", f"{info.get('ServerVersion')}{kind}, context {facts.context} ({facts.endpoint})"
        ),
        Finding("engine", "permission", "good", "this user may use it"),
    ]
    if facts.buildx:
        found.append(Finding("engine", "buildx", "good", facts.buildx))
    else:
        remedy = "Install it: `sudo apt-get install docker-buildx` (Debian, Ubuntu), else https://github.com/docker/buildx#installing"
        found.append(
            Finding("engine", "buildx", "error", "the docker CLI has no buildx plugin, which builds the image", remedy)
        )
    return found


def judge_disk(free: int | None, where: str, variant: Variant, *, image_there: bool) -> Finding:
    """Free space (bytes) below the engine's folder against what a cold build takes. Pure."""
    if free is None:
        return Finding("disk", "free space", "note", "the engine's disk is not this host's; it was not examined")
    seen = (
        f"{free / GB:.1f} GB free below {where}; a cold build of {variant.name} takes {variant.build_bytes / GB:.1f} GB"
    )
    if free >= variant.build_bytes:
        return Finding("disk", "free space", "good", seen)
    remedy = (
        "`docker builder prune` gives back build caches, `invoke clean --images` this clone's images; "
        "`docker system df` shows the rest."
    )
    return Finding("disk", "free space", "note" if image_there else "error", seen, remedy)


def judge_gpus(inventory: gpus.Inventory, variant: Variant, cdi: bool, *, architecture: str) -> list[Finding]:
    """GPUs and driver against what the variant needs. Pure."""
    if not inventory.gpus:
        return [
            Finding("gpus", "GPUs", "note", f"none: {inventory.reason}", f"{variant.name} computes on the CPU here.")
        ]
    found = []
    for gpu in inventory.gpus:
        facts = host.HostGpu(gpu.uuid, gpu.name, gpu.compute_capability, gpu.mig)
        seen = f"{gpu.name}, {gpu.memory_total / 2**30:.0f} GiB, {gpu.uuid}"
        # The driver has a finding of its own, one for all GPUs.
        why = choice.obstacle(variant, facts, driver="", architecture=architecture)
        remedy = f"{variant.name} {why}, so this GPU is handed to no container of it." if why else ""
        found.append(Finding("gpus", f"GPU {gpu.index}", "note" if why else "good", seen, remedy))
    needed = numbers(variant.driver)
    if numbers(inventory.driver) and numbers(inventory.driver) < needed:
        remedy = f"Install driver {variant.driver} or newer: CUDA {variant.cuda} does not start on an older one."
        found.append(Finding("gpus", "driver", "error", f"driver {inventory.driver}", remedy))
    else:
        found.append(Finding("gpus", "driver", "good", f"driver {inventory.driver}"))
    if not cdi:
        remedy = (
            "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` makes one; until then --gpus is used, whose "
            "devices a systemd reload can take away."
        )
        found.append(Finding("gpus", "CDI", "note", "no CDI specification names these GPUs", remedy))
    return found


def examine(state: CloneState, variant: Variant) -> list[Finding]:
    """Examine this host. Takes up to :data:`REACH_SECONDS` and a bit, changes nothing, needs no engine."""
    facts = engines.gather()
    found = judge_engine(facts)
    live = Engine(facts) if facts.info and engines.is_local(facts.endpoint) else None
    where = live.data_root if live else None
    image_there = live is not None and any(
        live.image(str(record["image"])) for record in state.records() if "foundation" in record
    )
    free = shutil.disk_usage(where).free if where else None
    if live:
        found.append(judge_disk(free, str(where), variant, image_there=image_there))
    settled = True
    try:
        given = sources.gather()
        seen = f"{given.ca}" if given.ca else "none; the ones in the base are used"
        found.append(Finding("sources", "CA bundle", "good", seen))
    except sources.SourceError as error:
        given, settled = sources.Sources(None, ()), False
        found.append(Finding("sources", "settings", "error", "one of them cannot be used", str(error)))
    if given.proxies:
        found.append(Finding("sources", "proxies", "good", "set: " + ", ".join(given.proxies)))
    if given.netrc is not None:
        found.append(Finding("sources", "netrc", "good", f"{given.netrc}"))
    probes: list[Callable[[], Finding]] = [
        lambda: _reach_packages(given),
        lambda: _reach_debian(given, variant),
        lambda: _reach_snapshot(given, state, variant, live.architecture if live else os.uname().machine),
    ]
    rows = variants.read(state.root)
    with_index = [row for row in ([variant] if variant.index else rows.values()) if row.index and row.locked]
    root_url = variants.torch_index(state.root)
    probes += [lambda row=row: _reach_torch(given, row, root_url) for row in with_index]  # type: ignore[misc]
    if not settled:  # what would be asked is not what a build would ask
        probes = []
    if live:
        probes.append(lambda: _reach_registry(live, given, variant))
    with ThreadPoolExecutor() as pool:
        found += [future.result() for future in [pool.submit(probe) for probe in probes]]
    inventory = gpus.gather()
    specification = gpus.cdi_devices() if live and live.cdi else ""
    named = all(gpu.uuid in specification for gpu in inventory.gpus)
    return found + judge_gpus(inventory, variant, cdi=named, architecture=host.architecture())


def _reach_registry(live: Engine, given: sources.Sources, variant: Variant) -> Finding:
    """Ask the engine itself, which pulls through its own network, proxy and CA."""
    import docker
    import requests

    wanted = bases.mirrored(variant.base.image, given.base_image).reference
    where = f" ({sources.BASE_IMAGE_VARIABLE})" if given.base_image else ""
    if live.image(wanted) is not None:
        return Finding("sources", "registry", "good", f"the pinned base is here already{where}")
    try:
        impatient = docker.DockerClient(base_url=live.facts.endpoint, timeout=REACH_SECONDS)
        impatient.images.get_registry_data(wanted)
    except (docker.errors.APIError, requests.exceptions.RequestException) as error:
        why = " ".join(str(getattr(error, "explanation", None) or error).split())[-200:]
        can = provision.gather().id in ("debian", "ubuntu")
        remedy = (
            "A base is made from Debian packages instead, and said so."
            if can
            else f"Reach a registry or a mirror ({sources.BASE_IMAGE_VARIABLE}), or `docker load` the base: {wanted}"
        )
        return Finding("sources", "registry", "note" if can else "error", f"the engine cannot reach it: {why}", remedy)
    return Finding("sources", "registry", "good", f"the engine sees the pinned base{where}")


def _reach_packages(given: sources.Sources) -> Finding:
    """Resolve one small package with the tool, the index, the credentials and the CA that a build uses."""
    uv = Path(sys.executable).with_name("uv")
    argv = [str(uv), "pip", "compile", "-", "--no-deps", "--no-cache", "--quiet", "--no-config"]
    with tempfile.TemporaryDirectory() as folder:
        done = capture(
            ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", folder, *argv],
            timeout=REACH_SECONDS,
            stdin="iniconfig\n",
            env=given.environment(),
        )
    name = given.index.label if given.index is not None else "the public index"
    if done.code == 0:
        return Finding("sources", "Python packages", "good", f"{name} answers, TLS included")
    text = given.redact(" ".join(re.sub(r"[^\x20-\x7e]", " ", done.err).split()))
    refused = re.search(r"\b(401|403|407)\b", text)
    reach = sources.judge_answer(int(refused[1])) if refused else sources.judge_failure(text)
    return Finding("sources", "Python packages", "error", f"{name}: {reach.why}", reach.remedy)


def _reach_torch(given: sources.Sources, variant: Variant, root_url: str) -> Finding:
    """Ask the index of torch's own wheels for torch."""
    reach = sources.probe_torch_index(given, root_url, variant.index, seconds=REACH_SECONDS)
    name = given.torch_index.label if given.torch_index is not None else f"{root_url}/{variant.index}"
    if reach.ok:
        return Finding("sources", "torch wheels", "good", f"{name} answers, TLS included")
    seen = f"{name} is needed for {variant.name} alone: {reach.why}"
    severity = "error" if given.torch_index is not None else "note"
    return Finding("sources", "torch wheels", severity, seen, f"{reach.remedy} Other variants do without it.")


def _reach_debian(given: sources.Sources, variant: Variant) -> Finding:
    """Fetch the release file of the base's suite from the mirror of this host, or the one that was named."""
    if given.apt_mirror is not None:
        name, url = given.apt_mirror.label, given.apt_mirror.url.rstrip("/") + "/"
    else:
        targets = capture(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(ORIGIN)", "Created-By: Packages"])
        found = provision.mirrors(targets.out)
        if not found:
            seen = "not examined: this host uses no Debian mirror of its own"
            return Finding("sources", "Debian packages", "note", seen)
        name, url = "the mirror", found[0]
    reach = sources.probe(given, f"{url}dists/{variant.base.suite}/InRelease", seconds=REACH_SECONDS)
    if reach.ok:
        return Finding("sources", "Debian packages", "good", f"{name} has {variant.base.suite}")
    remedy = f"{reach.remedy} The mirror is named in /etc/apt or {sources.APT_MIRROR_VARIABLE}."
    return Finding("sources", "Debian packages", "error", f"{name}: {reach.why}", remedy)


def _reach_snapshot(given: sources.Sources, state: CloneState, variant: Variant, architecture: str) -> Finding:
    """Fetch the release file of the day that the Debian packages were locked."""
    lock = debian.read(state.root, architecture)
    if lock is None:
        return Finding("sources", "Debian snapshot", "note", "there is no lock of Debian packages", "`invoke lock`")
    url = f"{bases.SNAPSHOT}/debian/{lock.snapshot}/dists/{variant.base.suite}/InRelease"
    reach = sources.probe(given, url, seconds=REACH_SECONDS)
    if reach.ok:
        return Finding("sources", "Debian snapshot", "good", f"the locked packages of {lock.snapshot} are kept")
    remedy = "It is needed only for locked packages that the mirror has dropped; then they drift, and it is said."
    return Finding("sources", "Debian snapshot", "note", reach.why, remedy)
