"""Proves that this host works: facts -> findings, each with what was seen, what it means and the exact remedy."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torchdock import engine as engines
from torchdock import gpus, provision, sources
from torchdock.engine import Engine, EngineFacts, State
from torchdock.process import capture
from torchdock.state import CloneState
from torchdock.variants import GB, Variant

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


def judge_gpus(inventory: gpus.Inventory, variant: Variant, cdi: bool) -> list[Finding]:
    """GPUs and driver against what the variant needs. Pure."""
    if not inventory.gpus:
        return [
            Finding("gpus", "GPUs", "note", f"none: {inventory.reason}", f"{variant.name} computes on the CPU here.")
        ]
    found = [
        Finding("gpus", f"GPU {gpu.index}", "good", f"{gpu.name}, {gpu.memory_total / 2**30:.0f} GiB, {gpu.uuid}")
        for gpu in inventory.gpus
    ]
    major = int(re.match(r"\d*", inventory.driver).group() or 0)  # type: ignore[union-attr]
    if major and major < variant.driver:
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
    image_there = live is not None and any(live.image(str(record["image"])) for record in state.records())
    free = shutil.disk_usage(where).free if where else None
    if live:
        found.append(judge_disk(free, str(where), variant, image_there=image_there))
    try:
        given = sources.gather()
        seen = f"{given.ca}" if given.ca else "none; the ones in the base are used"
        found.append(Finding("sources", "CA bundle", "good", seen))
    except sources.CaError as error:
        given = sources.Sources(None, ())
        found.append(Finding("sources", "CA bundle", "error", "it cannot be used", str(error)))
    if given.proxies:
        found.append(Finding("sources", "proxies", "good", "set: " + ", ".join(given.proxies)))
    probes: list[Callable[[], Finding]] = [lambda: _reach_packages(given), lambda: _reach_debian(given, variant)]
    if live:
        probes.append(lambda: _reach_registry(live, variant))
    with ThreadPoolExecutor() as pool:
        found += [future.result() for future in [pool.submit(probe) for probe in probes]]
    inventory = gpus.gather()
    specification = gpus.cdi_devices() if live and live.cdi else ""
    named = all(gpu.uuid in specification for gpu in inventory.gpus)
    return found + judge_gpus(inventory, variant, cdi=named)


def _reach_registry(live: Engine, variant: Variant) -> Finding:
    """Ask the engine itself, which pulls through its own network, proxy and CA."""
    import docker
    import requests

    if live.image(variant.base.image) is not None:
        return Finding("sources", "registry", "good", "the pinned base is here already")
    try:
        impatient = docker.DockerClient(base_url=live.facts.endpoint, timeout=REACH_SECONDS)
        impatient.images.get_registry_data(variant.base.image)
    except (docker.errors.APIError, requests.exceptions.RequestException) as error:
        why = " ".join(str(getattr(error, "explanation", None) or error).split())[-200:]
        can = provision.gather().id in ("debian", "ubuntu")
        remedy = (
            "A base is made from Debian packages instead, and said so."
            if can
            else f"Reach a registry or a mirror, or `docker load` the base: {variant.base.image}"
        )
        return Finding("sources", "registry", "note" if can else "error", f"the engine cannot reach it: {why}", remedy)
    return Finding("sources", "registry", "good", "the engine sees the pinned base")


def _reach_packages(given: sources.Sources) -> Finding:
    """Resolve one small package with the tool, the index and the CA that a build uses."""
    uv = Path(sys.executable).with_name("uv")
    env = dict(os.environ)
    if given.ca:
        env["SSL_CERT_FILE"] = str(given.ca)
    argv = [str(uv), "pip", "compile", "-", "--no-deps", "--no-cache", "--quiet", "--no-config"]
    with tempfile.TemporaryDirectory() as folder:
        done = capture(
            ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", folder, *argv],
            timeout=REACH_SECONDS,
            stdin="iniconfig\n",
            env=env,
        )
    if done.code == 0:
        return Finding("sources", "Python packages", "good", "the index answers, TLS included")
    text = " ".join(re.sub(r"[^\x20-\x7e]", " ", done.err).split())[-300:]
    certificate = "certificate" in text.lower() or "UnknownIssuer" in text
    remedy = (
        "Name the bundle that holds your private CA in SSL_CERT_FILE."
        if certificate
        else "Check the network and the proxy (HTTPS_PROXY)."
    )
    return Finding("sources", "Python packages", "error", f"the index cannot be reached: {text}", remedy)


def _reach_debian(given: sources.Sources, variant: Variant) -> Finding:
    """Fetch the release file of the base's suite from the mirror that apt uses on this host."""
    targets = capture(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(ORIGIN)", "Created-By: Packages"])
    found = provision.mirrors(targets.out)
    if not found:
        return Finding("sources", "Debian packages", "note", "not examined: this host uses no Debian mirror of its own")
    url = f"{found[0]}dists/{variant.base.suite}/InRelease"
    context = ssl.create_default_context(cafile=str(given.ca) if given.ca else None)
    try:
        with urllib.request.urlopen(url, timeout=REACH_SECONDS, context=context) as answer:
            answer.read(1)
    except (OSError, urllib.error.URLError) as error:
        remedy = "Check the network, the proxy (HTTP_PROXY) and the mirror in /etc/apt."
        return Finding("sources", "Debian packages", "error", f"the mirror cannot be reached: {error}", remedy)
    return Finding("sources", "Debian packages", "good", f"the mirror has {variant.base.suite}")
