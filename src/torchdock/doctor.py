"""Proves that this host works: facts -> findings, each with what was seen, what it means and the exact remedy."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torchdock import base as bases
from torchdock import debian, diagnoses, evidence, host, identity, image, provision, sources, variants
from torchdock import engine as engines
from torchdock.engine import Engine, EngineFacts, State
from torchdock.errors import TorchdockError
from torchdock.findings import Finding as Finding
from torchdock.process import capture
from torchdock.state import CloneState
from torchdock.variants import GB, Variant

REACH_SECONDS = 20


def judge_engine(facts: EngineFacts) -> list[Finding]:
    """Engine, permission and buildx, from the facts. Pure."""
    state = engines.classify(facts)
    if state is not State.READY:
        return [Finding("engine", "engine", "error", state.value, engines.explain(facts, state))]
    live = Engine(facts)
    found = [
        Finding("engine", "engine", "good", f"{live.kind}, context {facts.context} ({facts.endpoint})"),
        judge_identity(live),
        Finding("engine", "permission", "good", "this user may use it"),
    ]
    if live.podman:
        found.append(Finding("engine", "buildx", "note", "Podman has none, so it builds no image", image.CARRY))
    elif facts.buildx:
        found.append(Finding("engine", "buildx", "good", facts.buildx))
    else:
        remedy = "Install it: `sudo apt-get install docker-buildx` (Debian, Ubuntu), else https://github.com/docker/buildx#installing"
        found.append(
            Finding("engine", "buildx", "error", "the docker CLI has no buildx plugin, which builds the image", remedy)
        )
    return found


def judge_identity(live: Engine) -> Finding:
    """Who a caller is in a container of this engine. Pure."""
    way, groups_reach = identity.planned(live)
    seen = f"{way.value}; {'groups reach' if groups_reach else 'groups of the host do not reach'} into a container"
    seen += "; SELinux is switched off for containers, so that no folder is labelled anew" if live.selinux else ""
    if groups_reach:
        return Finding("engine", "identity", "good", seen)
    return Finding("engine", "identity", "note", seen, identity.groups_remedy(way))


def judge_disk(free: int | None, where: str, variant: Variant, need: int, *, image_there: bool) -> Finding:
    """Free space (bytes) below the engine's folder against what a cold build takes (bytes). Pure."""
    if free is None:
        return Finding("disk", "free space", "note", "the engine's disk is not this host's; it was not examined")
    seen = f"{free / GB:.1f} GB free below {where}; a cold build of {variant.name} takes {need / GB:.1f} GB"
    if free >= need:
        return Finding("disk", "free space", "good", seen)
    remedy = (
        "`docker builder prune` gives back build caches, `invoke clean --images` this clone's images; "
        "`docker system df` shows the rest."
    )
    return Finding("disk", "free space", "note" if image_there else "error", seen, remedy)


def judge_host(found: evidence.Host, variant: Variant) -> list[Finding]:
    """The GPUs of this host, their driver, and how the engine is set up for them. Pure."""
    return [
        *diagnoses.gpus(found, variant, architecture=host.architecture()),
        *diagnoses.driver(found, variant),
        *diagnoses.specifications(found),
        *diagnoses.use(found),
        *diagnoses.surroundings(found),
    ]


def judge_containers(found: evidence.Containers, here: evidence.Host, variant: Variant) -> list[Finding]:
    """What real containers showed. Pure."""
    findings = diagnoses.passage(found, here) + diagnoses.bare(found)
    if found.bare is not None:
        findings += diagnoses.launch(found) + diagnoses.torch(found, here, variant)
    return findings


def examine(state: CloneState, variant: Variant, *, of: str | None = None) -> list[Finding]:
    """Examine this host, and containers of this variant's image, or of the image ``of``. Needs no engine.

    Changes nothing; every probe is bounded, and one that fails is a finding.
    """
    facts = engines.gather()
    live = Engine(facts) if facts.info and engines.is_local(facts.endpoint) else None
    given, settled, found = examine_settings()
    return [
        *judge_engine(facts),
        *(_guarded("disk", "free space", lambda: examine_disk(live, state, variant)) if live else []),
        *found,
        *examine_sources(live, state, variant, given, settled=settled),
        *examine_gpus(live, state, variant, given, of=of),
    ]


def examine_disk(live: Engine, state: CloneState, variant: Variant) -> list[Finding]:
    """The space that a build finds."""
    where = live.data_root
    image_there = any(live.image(str(record["image"])) for record in state.records() if "steps" in record)
    free = shutil.disk_usage(where).free if where else None
    return [judge_disk(free, str(where), variant, image.cold_bytes(live, variant), image_there=image_there)]


def examine_settings() -> tuple[sources.Sources, bool, list[Finding]]:
    """The sources of this host's settings, whether they can be used, and the findings about them."""
    try:
        given, settled = sources.gather(), True
        seen = f"{given.ca}" if given.ca else "none; the ones in the base are used"
        found = [Finding("sources", "CA bundle", "good", seen)]
    except sources.SourceError as error:
        given, settled = sources.Sources(None, ()), False
        found = [Finding("sources", "settings", "error", "one of them cannot be used", str(error))]
    if given.proxies:
        found.append(Finding("sources", "proxies", "good", "set: " + ", ".join(given.proxies)))
    if given.netrc is not None:
        found.append(Finding("sources", "netrc", "good", f"{given.netrc}"))
    return given, settled, found


def examine_sources(
    live: Engine | None, state: CloneState, variant: Variant, given: sources.Sources, *, settled: bool = True
) -> list[Finding]:
    """Each source, as a build would reach it; takes up to :data:`REACH_SECONDS` and a bit."""
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
        return [future.result() for future in [pool.submit(probe) for probe in probes]]


def examine_gpus(
    live: Engine | None, state: CloneState, variant: Variant, given: sources.Sources, *, of: str | None = None
) -> list[Finding]:
    """The driver, on this host and in real containers; see :func:`examine`."""
    here: list[evidence.Host] = []

    def look_here() -> list[Finding]:
        here.append(evidence.host(live, state.root))
        return judge_host(here[0], variant)

    def look_inside() -> list[Finding]:
        if live is None or not here:
            return []
        name = of or _image(live, state, variant, given)
        if not name:
            seen = f"the image of {variant.name} is not built yet, so no container was launched"
            return [Finding("container", "image", "note", seen, "`invoke build`, and then this again.")]
        inventory = here[0].inventory
        served = [gpu for gpu in inventory.gpus if not diagnoses.obstacle(variant, gpu, host.architecture())]
        seen_inside = evidence.containers(live, name, state, given, inventory, served)
        return judge_containers(seen_inside, here[0], variant)

    return _guarded("gpus", "GPUs", look_here) + _guarded("container", "launch", look_inside)


def _guarded(group: str, subject: str, work: Callable[[], list[Finding]]) -> list[Finding]:
    """An examination that fails is a finding, with what it said, and hides no other."""
    try:
        return work()
    except TorchdockError as error:
        return [Finding(group, subject, "error", "it cannot be examined", str(error))]
    except Exception as error:
        seen = f"it could not be examined: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return [Finding(group, subject, "note", seen, "All else was; run it again, and report this if it stays.")]


def _image(live: Engine, state: CloneState, variant: Variant, given: sources.Sources) -> str:
    """The image of this variant that is there, or an empty string."""
    built = image.find(live, image.plans(state.root, variant, live, given, image.Wishes()))
    return built.image if built else ""


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
