"""The tasks that people type. Each parses its options, calls ``src/torchdock``, prints, and exits; nothing more.

Imports only the standard library, invoke and how tasks are declared until a task runs, so that ``invoke --list`` is
quick and works before anything is installed.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from invoke import Collection as Tasks
from invoke import Context, Exit

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))

from torchdock.commandline import Asked, launching, task, task_run  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from typing import TypeVar

    from torchdock.choice import Choice
    from torchdock.console import Part, Reporter
    from torchdock.container import Identity, LaunchPlan
    from torchdock.engine import Engine
    from torchdock.gpus import Gpu
    from torchdock.image import BuildPlan, Built, Wishes
    from torchdock.jobs import Session
    from torchdock.launch import Wishes as LaunchWishes
    from torchdock.lease import Claim
    from torchdock.packages import Layer
    from torchdock.resolver import Refreshed
    from torchdock.selection import Wish as GpuWish
    from torchdock.share import Offered, Repository
    from torchdock.sources import Sources
    from torchdock.state import CloneState
    from torchdock.variants import Variant

    Launched = TypeVar("Launched")

WATCH_SECONDS = 2.0  # between two looks of `gpus --watch`
QUICK_SECONDS = 90  # the quick checks after `up` take at most this long

# --- what several tasks need ------------------------------------------------------------------------------------------


def _image(
    reporter: Reporter,
    engine: Engine,
    choice: Choice,
    sources: Sources,
    wishes: Wishes | None = None,
    layer: Layer | None = None,
) -> Built:
    """The image for a choice, with what a workspace adds to it: found, else built."""
    from torchdock import image, packages

    wishes = wishes or image.Wishes()
    built = _environment(reporter, engine, choice, sources, wishes)
    if layer is None:
        return built
    plan = packages.plan(ROOT, layer, built.image, sources, builder=engine.facts.context, wishes=wishes)
    found = None if wishes.no_cache else image.find_extended(engine, built, plan, layer.versions)
    if found is not None:
        return _used(reporter, engine, found)
    state, meanings = _state(), packages.meanings(layer)
    with state.exclusive(reporter):
        whole = image.extend(engine, state, built, plan, layer.versions, sources, reporter, wishes, meanings=meanings)
    _used(reporter, engine, whole)
    if whole.built:
        count = len(layer.versions)
        reporter.good(f"Built {whole.image}: {count} more package{'s' * (count > 1)}, in {whole.seconds:.0f} s")
    return whole


def _layer(engine: Engine, choice: Choice, folder: Path) -> Layer | None:
    """What the workspace adds to the image; a lock that does not fit is told here, before anything is built."""
    from torchdock import container, packages

    return packages.find(ROOT, container.workspace_path(folder), choice.variant, engine.architecture)


def _environment(reporter: Reporter, engine: Engine, choice: Choice, sources: Sources, wishes: Wishes) -> Built:
    from dataclasses import replace

    from torchdock import image

    state, variant = _state(), choice.variant
    wishes = wishes if wishes.cache_from else _with_layers(engine, variant, wishes)
    for warning in image.check(ROOT, variant, engine.architecture, sources, wishes):
        reporter.fallback(warning)
    candidates = image.plans(ROOT, variant, engine, sources, wishes)
    found = None if wishes.no_cache else image.find(engine, image.acceptable(candidates, wishes))
    if found is not None:
        return _used(reporter, engine, found)
    with state.exclusive(reporter):
        offer = _offered(reporter, engine, candidates, wishes)
        built = offer.built
        if built is None:
            wishes = wishes if offer.answered else replace(wishes, cache_from="")  # it would be waited for once more
            built = image.ensure(engine, state, variant, sources, reporter, wishes, second_best=choice.fallbacks)
    _used(reporter, engine, built)
    if built.built:
        reporter.good(f"Built {built.image} in {built.seconds:.0f} s")
        _tell_outdated(reporter, engine, built)
    return built


def _registry(wishes: Wishes) -> Repository | None:
    """The team's registry, where a build may take an image from it."""
    from torchdock import share

    return None if wishes.offline or wishes.no_cache else share.named(ROOT, os.environ)


def _with_layers(engine: Engine, variant: Variant, wishes: Wishes, cache_from: str | None = None) -> Wishes:
    """The same wishes, with the registry whose layers a build takes: the one that was typed, else the team's."""
    from dataclasses import replace

    from torchdock import share

    where = share.repository(cache_from, "--cache-from") if cache_from is not None else _registry(wishes)
    if where is None or engine.podman:
        return wishes
    tag = share.cache_tag(variant, wishes.target, engine.architecture)
    return replace(wishes, cache_from=where.reference(tag))


def _offered(reporter: Reporter, engine: Engine, candidates: list[BuildPlan], wishes: Wishes) -> Offered:
    """What the team's registry has in place of a build; nothing where there is no registry."""
    from torchdock import image, share

    where, wanted = _registry(wishes), image.acceptable(candidates, wishes)
    if where is None or (found := image.find(engine, wanted)) is not None:  # another command has just got it
        return share.Offered(None if where is None else found)
    offer = share.offered(engine, _state(), wanted, where, reporter)
    if offer.built is not None:
        reporter.good(f"Pulled {offer.built.image} in {offer.built.seconds:.0f} s ({offer.built.brought})")
    return offer


def _used(reporter: Reporter, engine: Engine, built: Built) -> Built:
    """Say in the engine that this user and clone use the image, so that no clean of another one removes it."""
    from torchdock import uses

    why = uses.mark(engine, _state(), built.image, built.base)
    if why:
        reporter.fallback(f"the engine took no note that you use {built.image} ({why}); another's clean may remove it")
    return built


def _tell_outdated(reporter: Reporter, engine: Engine, built: Built) -> None:
    """After a build: how many older images of the variant lie around, and the command that removes them."""
    from torchdock import clean as cleaning
    from torchdock import container

    wishes = cleaning.Wishes(images=True)
    facts = cleaning.gather(engine, _state(), container.identity(engine), wishes, _current_images(engine))
    told = cleaning.outdated(cleaning.plan(facts, wishes), built.variant)
    if told:
        reporter.say(told)


def _current_images(engine: Engine) -> set[str]:
    """The images of this clone's files as they are now, as far as they are there and its locks can be read."""
    from torchdock import image, sources, variants
    from torchdock.errors import TorchdockError

    there = {tag for row in engine.client.api.images() for tag in row.get("RepoTags") or ()}
    found = set()
    with suppress(TorchdockError):
        given = sources.gather()
        for variant in variants.read(ROOT).values():
            if any(tag.startswith(f"torchdock/{variant.name}:") for tag in there):
                for target in (image.ENVIRONMENT, image.DEVEL):
                    tags = [plan.tag for plan in image.plans(ROOT, variant, engine, given, image.Wishes(target))]
                    found |= {*[tag for tag in tags if tag in there][:1]}
    return found


def _refresh_debian(
    reporter: Reporter, given: Sources, *, upgrade: bool, dry_run: bool
) -> tuple[dict[Path, str | None], list[Any]]:
    """Resolve the Debian packages in a container of the base; writes no lock. A dry run takes a base that is there."""
    from torchdock import base as bases
    from torchdock import debian, variants
    from torchdock import engine as engines

    engine = engines.require()
    base = variants.get(ROOT, None).base
    choices = bases.choices(ROOT, base, engine.architecture, given)
    if not dry_run:
        chosen = bases.obtain(engine, ROOT, base, choices, given, reporter)
    elif there := [choice for choice in choices if engine.image(choice.reference) is not None]:
        chosen = there[0]
    else:
        reporter.say("The Debian packages would be resolved in a container of the base, which is not here yet")
        return {}, []
    with reporter.step("Resolving Debian packages"):
        return debian.refresh(engine, ROOT, chosen.reference, base.suite, given, upgrade=upgrade)


@lru_cache
def _state() -> CloneState:
    from torchdock.state import CloneState

    return CloneState(ROOT)


def _wish(
    variant: str | None,
    *,
    cuda: bool = False,
    cpu: bool = False,
    devel: bool = False,
    gpus: GpuWish | None = None,
    workspace: str | None = None,
) -> dict[str, Any]:
    """What was asked for and what this host is: the arguments of a choice. Reaches out to nobody.

    Wrong input is refused here, before anything is installed or built.
    """
    from torchdock import choice, container, host, selection, variants
    from torchdock.errors import InputError

    contradicting = (
        "--cuda" if cuda else "--devel" if devel else f"--variant {variant}" if variant not in (None, "cpu") else ""
    )
    if cpu and contradicting:
        raise InputError(f"--cpu and {contradicting} contradict each other: leave one of them.")
    facts = host.gather(gpus or selection.Wish(), container.workspace_path(_folder(workspace)))
    wish = {"host": facts, "variants": variants.read(ROOT), "wanted": "cpu" if cpu else variant}
    wish["cuda"] = cuda or devel  # the compiler of `devel` is CUDA's
    choice.choose(**wish)
    return wish


def _choose(
    wish: dict[str, Any],
    sources: Sources,
    engine: Engine | None,
    wishes: Wishes | None = None,
    *,
    thrifty: bool = False,
) -> Choice:
    """The variant for this host. Its wheel index is asked only where the choice depends on it and no image is there.

    ``thrifty``: the image of the second best will do as well.
    """
    from torchdock import choice, devel, image
    from torchdock import sources as origins
    from torchdock.variants import torch_index

    wanted = wishes or image.Wishes()

    def reaches(variant: Variant) -> str:
        if wanted.offline:
            return "--offline asks no source"
        answer = origins.probe_torch_index(sources, torch_index(ROOT), variant.index)
        return "" if answer.ok else answer.why

    def built(variant: Variant) -> bool:
        if engine is None or wanted.no_cache:
            return False
        return image.find(engine, image.plans(ROOT, variant, engine, sources, wanted)) is not None

    chosen = choice.decide(**wish, reaches=reaches, built=built, thrifty=thrifty)
    if wanted.target == image.DEVEL:
        devel.check(ROOT, chosen.variant, wish["host"].architecture)
    return chosen


def _tell(reporter: Reporter, choice: Choice, *, reason: bool = True) -> None:
    """Say what was chosen, why, and what a person must know about it."""
    if reason:
        reporter.say(f"{choice.variant.name}: {choice.reason}")
    for text in choice.fallbacks:
        reporter.fallback(text)
    for text in choice.notes:
        reporter.say(text)


def _told(choice: Choice) -> dict[str, Any]:
    """A choice as a part of a task's JSON document."""
    return {"variant": choice.variant.name, "reason": choice.reason, "warnings": list(choice.warnings)}


def _shown(engine: Engine, choice: Choice, gpus: GpuWish, holder: dict[str, Any], mine: Collection[str] = ()) -> Claim:
    """The GPUs that one launch would get now, for a dry run: nobody is kept from them."""
    from torchdock import gpus as cards
    from torchdock import lease, selection

    inventory = cards.gather()
    uuids = [gpu.uuid for gpu in inventory.gpus] if gpus.number != 0 and not engine.virtual else []
    where = lease.folder(make=False) if uuids else None
    taken = lease.busy(where, uuids, mine) if where is not None else {}
    chosen = selection.choose(inventory, gpus, unserved=choice.unserved, why=choice.refusal, taken=taken)
    return lease.Claim(where, chosen, words=lease.description(**holder))


def _waits(wait: str | bool | None) -> float | None:
    """How many seconds ``--wait`` waits; None: without end."""
    from torchdock import launch

    return 0 if wait is None else None if wait is True else launch.duration(str(wait), "--wait")


def _leased(
    reporter: Reporter,
    engine: Engine,
    choice: Choice,
    gpus: GpuWish,
    holder: dict[str, Any],
    launch: Callable[[Claim], Launched],
    *,
    seconds: float | None = 0,
    mine: Collection[str] = (),
) -> Launched:
    """Choose and lease the GPUs for one launch, and do it; anew where another container was quicker.

    ``holder``: what others are told of it (lease.description); ``seconds``: how long to wait until they are free;
    ``mine``: GPUs of the container in whose place the launch comes, which it keeps if they will do.
    """
    from dataclasses import replace

    from torchdock import gpus as cards
    from torchdock import lease, selection
    from torchdock.errors import BusyError

    limits: dict[str, Any] = {"unserved": choice.unserved, "why": choice.refusal}
    inventory = cards.gather()
    if gpus.number == 0 or not inventory.gpus:
        if gpus.number != 0 and inventory.broken:
            reporter.fallback(f"the CPU computes, as {inventory.reason}; `invoke doctor` tells more")
        return launch(lease.Claim(None, selection.choose(inventory, gpus, **limits)))
    why = lease.hindrance(engine, lease.folder())
    if why:
        reporter.fallback(f"no GPU is leased, so others may get the same one: {why}")
        return launch(lease.Claim(None, selection.choose(inventory, gpus, **limits)))

    def ask() -> lease.Request:
        found = cards.gather()
        # What runs in one's own container makes its GPU look used.
        own = [replace(gpu, processes=(), memory_used=0) if gpu.uuid in mine else gpu for gpu in found.gpus]
        inventory = replace(found, gpus=tuple(own))

        def choose(taken: Mapping[str, str]) -> tuple[Gpu, ...]:
            if mine:
                others = {gpu.uuid: "" for gpu in inventory.gpus if gpu.uuid not in mine}
                with suppress(BusyError):
                    return selection.choose(inventory, gpus, **limits, taken={**others, **taken})
            return selection.choose(inventory, gpus, **limits, taken=taken)

        count, uuids = selection.wanted(inventory, gpus, choice.unserved)
        leases, there = lease.gather(uuids), {gpu.uuid: gpu for gpu in inventory.gpus}
        usable = [
            one for one in uuids if not leases[one].free or gpus.exact or not selection.obstacle(there[one], gpus)
        ]
        return lease.Request(choose, count, uuids, frozenset(mine), lease.description(**holder), tuple(usable))

    while True:
        with lease.taking(ask, seconds=seconds, say=reporter.say) as claim:
            try:
                return launch(claim)
            except lease.Lost:
                reporter.say("Another container took a GPU of this launch in between; choosing again")


def _launch(
    engine: Engine,
    image: str,
    who: Identity,
    sources: Sources,
    claim: Claim,
    workspace: Path | None,
    *,
    dry_run: bool = False,
    **more: Any,
) -> LaunchPlan:
    """The plan of a launch, its GPUs by the way that is proved on this host; a dry run launches no probe."""
    from torchdock import container, passthrough

    handed = passthrough.settle(engine, image, who, claim.gpus, dry_run=dry_run)
    if handed.fallback:
        _say_fallback(handed.fallback)
    options = {"gpus": claim.gpus, "gpu_arguments": handed.words, "lease_arguments": claim.arguments}
    return container.plan(engine, image, who, sources, clone=_state().clone, workspace=workspace, **options, **more)


@lru_cache
def _say_fallback(text: str) -> None:
    """Once, however often a launch is planned."""
    from torchdock.console import Reporter

    Reporter().aside.fallback(text)


def _holder(who: Identity, name: str, role: str, seconds: int | None = None) -> dict[str, Any]:
    """What others are told of a launch that has leased a GPU (lease.description)."""
    return {"user": who.name, "container": name, "role": role, "clone": _state().clone, "seconds": seconds}


def _gpu_wish(asked: Asked, folder: Path) -> GpuWish:
    """Which GPUs are asked for: the command line's words above those of the workspace's ``torchdock.toml``."""
    from torchdock import container, selection, workspace

    typed = selection.wish(asked.gpus, asked.min_memory, asked.gpu_name)
    return selection.merge(workspace.read(container.workspace_path(folder)).gpus, typed)


def _launch_wishes(asked: Asked, folder: Path) -> LaunchWishes:
    """What is asked of a launch: the command line's words above those of the workspace's ``torchdock.toml``."""
    from torchdock import launch, profiles, workspace

    config, here = workspace.read(folder), Path.cwd()
    patterns = config.values.get("secrets", ())
    variables = [launch.variable(text, os.environ, patterns=patterns) for text in asked.env]
    variables += [launch.variable(text, os.environ, secret=True) for text in asked.secret]
    typed = launch.Wishes(
        mounts=tuple(launch.mount(text, here) for text in asked.volume),
        variables=tuple(variables),
        files=tuple(launch.env_file(text, here) for text in asked.env_file),
        ports=tuple(launch.port(text) for text in asked.publish),
        memory=None if asked.memory is None else launch.size(asked.memory, "--memory"),
        cpus=None if asked.cpus is None else launch.cpus(asked.cpus),
        shm=None if asked.shm_size is None else launch.size(asked.shm_size, "--shm-size"),
        profile="" if asked.profile is None else profiles.check(asked.profile),
    )
    return launch.merge(config.wishes(os.environ), typed)


def _tell_hindrances(reporter: Reporter, engine: Engine, wishes: LaunchWishes) -> None:
    """Say what this host keeps from working of the profile that is asked for."""
    from torchdock import profiles

    if wishes.profile:
        for text in profiles.hindrances(profiles.gather(engine.kernel, virtual=engine.virtual)):
            reporter.say(f"--profile {wishes.profile}: {text}")


def _declared(
    engine: Engine, folder: Path, variant: str, layer: Layer | None = None, *, devel: bool = False, up: str = ""
) -> str:
    """One line about what the workspace's own files declare and the environment has not; empty where it has all.

    ``layer``: what the workspace adds to the environment. ``up``: the running container in question, which is looked
    into only where the locks alone do not do.
    """
    from torchdock import declared, jobs, locks, variants
    from torchdock.errors import InputError

    if folder == ROOT:  # its pyproject.toml is for the tools on the host
        return ""
    wanted = declared.gather(folder)
    if not (wanted.requirements or wanted.damaged):
        return ""
    try:
        python = variants.get(ROOT, variant).python
        pins = locks.read(ROOT, variant, (*locks.LAYERS, "devel") if devel else locks.LAYERS)
    except InputError:  # a container that is there is not refused for a lock that is not
        return ""
    locked = {name: pin.version for name, pin in pins.items()} | (layer.versions if layer is not None else {})
    missing = declared.unmet(wanted, locked, python=python, machine=engine.architecture)
    if missing and up and (there := jobs.versions(engine, up)):
        missing = declared.unmet(wanted, there, python=python, machine=engine.architecture)
    return declared.warning(wanted, missing)


def _where(plan: LaunchPlan, fate: str) -> str:
    """Which container a command is in, and what is mounted there: a file in the workspace may have asked for it."""
    return ", ".join((f"In {plan.name} ({plan.image})", *_mounted(plan), fate))


def _mounted(plan: LaunchPlan) -> list[str]:
    return [f"{one.source} at {one.target}{' (read-only)' * one.read_only}" for one in plan.wishes.mounts]


def _up(
    reporter: Reporter,
    engine: Engine,
    image: str,
    who: Identity,
    sources: Sources,
    choice: Choice,
    workspace: Path,
    wishes: LaunchWishes,
    gpus: GpuWish,
    *,
    wait: str | bool | None = None,
    time: str | None = None,
    dry_run: bool = False,
) -> tuple[LaunchPlan, bool]:
    """The workspace container, running, and whether it was launched now.

    One that is there keeps the GPUs that it was launched with, if they will do.
    """
    from torchdock import container, launch, selection, servers
    from torchdock import gpus as cards
    from torchdock.errors import BusyError, InputError

    name = container.workspace_name(who, _state().clone, workspace)
    # A port cannot be published later: these two are there for `invoke jupyter` and `invoke tensorboard`.
    wishes = launch.merge(launch.Wishes(ports=servers.PORTS), wishes)
    seconds = None if time is None else launch.duration(time)
    options: dict[str, Any] = {"role": "up", "name": name, "command": list(container.STAY), "wishes": wishes}
    holder, held = _holder(who, name, "up", seconds), container.held_gpus(engine, name)
    mine = [] if held in (None, "0") else str(held).split(",")
    if held is not None and not set(mine) & set(choice.unserved):  # else launched with another variant
        gpus = selection.keeping(cards.gather(), gpus, mine)

    def planned(claim: Claim) -> LaunchPlan:
        return _launch(engine, image, who, sources, claim, workspace, dry_run=dry_run, seconds=seconds, **options)

    def go(claim: Claim) -> tuple[LaunchPlan, bool]:
        plan = planned(claim)
        return plan, container.up(engine, plan, claim)[1]

    with suppress(BusyError, InputError):
        plan = planned(_shown(engine, choice, gpus, holder, mine))
        if dry_run or container.is_up(engine, plan):
            return plan, False
    if dry_run:
        return planned(_shown(engine, choice, gpus, holder, mine)), False
    return _leased(reporter, engine, choice, gpus, holder, go, seconds=_waits(wait), mine=mine)


def _folder(workspace: str | None) -> Path:
    """The folder of ``-w``; this clone without it. An empty name is a variable that was not set, never a folder."""
    from torchdock.errors import InputError

    if workspace == "":
        raise InputError("-w was given an empty name (a variable that is not set?). Name a folder, or leave -w away.")
    return ROOT if workspace is None else Path(workspace)


def _require_folder(workspace: str | None) -> Path:
    """The folder of ``-w``, absolute; a mistyped one is said, for its torchdock.toml would be passed over."""
    from torchdock import container
    from torchdock.errors import InputError

    folder = container.workspace_path(_folder(workspace))
    if not os.path.isdir(folder):
        raise InputError(f"The workspace {folder} is no folder. Name the folder of your project with -w DIR.")
    return folder


def _wishes(devel: bool, **more: bool) -> Wishes:
    """How the image is wanted."""
    from torchdock import image

    return image.Wishes(image.DEVEL if devel else image.ENVIRONMENT, **more)


def _planned_image(engine: Engine, choice: Choice, sources: Sources, wishes: Wishes, layer: Layer | None = None) -> str:
    """The name of the image for ``--dry-run``: the one that is there, else the one that would be built."""
    from torchdock import image, packages

    candidates = image.plans(ROOT, choice.variant, engine, sources, wishes)
    found = image.find(engine, candidates)
    name = found.image if found else _likely(engine, choice, sources, wishes).tag
    if layer is None:
        return name
    return packages.plan(ROOT, layer, name, sources, builder=engine.facts.context, wishes=wishes).tag


def _likely(engine: Engine, choice: Choice, sources: Sources, wishes: Wishes) -> BuildPlan:
    """The build on the base that is there; on the pinned one where none is."""
    from torchdock import image

    return image.likely(engine, image.plans(ROOT, choice.variant, engine, sources, wishes))


def _foresee(aside: Reporter, engine: Engine, planned: BuildPlan, wishes: Wishes) -> dict[str, int | None]:
    """What a build will download and write, in bytes, None where nobody knows; nothing where its image is there."""
    from torchdock import image

    if not wishes.no_cache and engine.image(planned.tag) is not None:
        return {"download_bytes": 0, "write_bytes": 0}
    forecast = image.foresee(engine, _state(), planned, wishes)
    aside.say(f"Building {planned.tag}{forecast.text and ': '}{forecast.text}")
    return {"download_bytes": forecast.download_bytes, "write_bytes": forecast.write_bytes}


def _show(reporter: Reporter, argv: tuple[str, ...], *, then: tuple[str, ...] = (), **more: Any) -> None:
    """Print the command of a dry run, and the one that comes after it where there is one."""
    import shlex

    if not reporter.as_json:
        print(*(shlex.join(words) for words in (argv, then) if words), sep="\n")
    reporter.document({"dry_run": True, "argv": list(argv), **({"then": list(then)} if then else {}), **more})


def _show_launch(reporter: Reporter, engine: Engine, plan: LaunchPlan, **more: Any) -> None:
    """The same for the launch of a container, with what is not in its command."""
    import shlex

    from torchdock import container

    if plan.environment:
        reporter.aside.say(f"{', '.join(plan.environment)}: given by name, the value is not shown")
    adds = container.additions(engine, plan, "ID", dry_run=True)
    if adds:
        reporter.aside.say(f"A launch by torchdock also has: {shlex.join(adds)}")
    _show(reporter, plan.argv, adds=adds, **more)


def _read_document(output: IO[str]) -> dict[str, Any]:
    """The JSON document that the suite wrote to this file; empty where it did not come to that."""
    import json

    output.seek(0)
    text = output.read()
    return json.loads(text) if text.strip().startswith("{") else {}


def _checks(engine: Engine, name: str, command: list[str]) -> tuple[int, dict[str, Any]]:
    """Run the suite in a running container: its table goes to our stderr, its document comes back."""
    import tempfile

    from torchdock import container
    from torchdock.process import capture

    with tempfile.TemporaryFile("w+") as output:
        ended = container.execute(engine, name, command, stdout=output.fileno())
        if ended.interrupted:  # docker exec hands no signal on
            capture([engine.cli, "exec", name, "pkill", "-INT", "-f", "torchdock.inside.check"])
            raise KeyboardInterrupt
        return ended.code, _read_document(output)


# --- tasks ------------------------------------------------------------------------------------------------------------


@task(
    "cuda",
    "cpu",
    "variant",
    "devel",
    "locked",
    "offline",
    "no-cache",
    "json",
    "dry-run",
    workspace="with the packages that this folder's torchdock.toml lists (default: this clone)",
    cache_from="a repository of a registry, from which layers that are there are taken (default: the team's)",
)
def build(
    _: Context,
    cuda: bool = False,
    cpu: bool = False,
    variant: str | None = None,
    devel: bool = False,
    locked: bool = False,
    offline: bool = False,
    no_cache: bool = False,
    workspace: str | None = None,
    cache_from: str | None = None,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Build the image for this host, or find the one that is there."""
    with task_run(json) as reporter:
        from torchdock import engine as engines
        from torchdock import image, packages, provision, share, sources
        from torchdock.errors import InputError, TorchdockError

        if offline and no_cache:
            raise InputError("--offline and --no-cache contradict each other: what is not cached would be downloaded.")
        if cache_from is not None and (offline or no_cache):
            other = "--offline" if offline else "--no-cache"
            raise InputError(f"--cache-from and {other} contradict each other: leave one of them.")
        wish = _wish(variant, cuda=cuda, cpu=cpu, devel=devel, workspace=workspace)
        _require_folder(workspace)
        given = sources.gather()
        # --offline contacts nobody: not for an engine either.
        engine = engines.require() if offline else provision.ensure(reporter, dry_run=dry_run)
        if engine is None:
            return reporter.document({"dry_run": True, "argv": []})
        wishes = _wishes(devel, no_cache=no_cache, locked=locked, offline=offline)
        choice = _choose(wish, given, engine, wishes, thrifty=offline and not locked)
        chosen = choice.variant
        wishes = _with_layers(engine, chosen, wishes, cache_from)
        # With --dry-run stdout is the command alone.
        _tell(reporter.aside if dry_run else reporter, choice)
        if locked and choice.fallbacks:
            raise TorchdockError(
                f"--locked refuses a fallback, and {choice.fallbacks[0]}. Mend that, or name the variant: "
                f"--variant {chosen.name}."
            )
        layer = _layer(engine, choice, _folder(workspace))
        if dry_run:
            image.check(ROOT, chosen, engine.architecture, given, wishes)
            planned = _likely(engine, choice, given, wishes)
            if (where := _registry(wishes)) is not None and engine.image(planned.tag) is None:
                candidates = image.acceptable(image.plans(ROOT, chosen, engine, given, wishes), wishes)
                names = ", ".join(share.plan_pull(engine, candidates, where).references)
                reporter.aside.say(f"The first of these that there is would be pulled in its place: {names}")
            sizes = _foresee(reporter.aside, engine, planned, wishes)
            if layer is None:
                return _show(reporter, planned.argv, **sizes, **_told(choice))
            context = engine.facts.context
            then = packages.plan(ROOT, layer, planned.tag, given, builder=context, wishes=wishes).argv
            return _show(reporter, planned.argv, then=then, **sizes, **_told(choice))
        built = _image(reporter, engine, choice, given, wishes, layer)
        if not (built.built or built.brought):
            reporter.say(f"{built.image} is there already; nothing to build")
        reporter.document({**built.document(), **_told(choice)})


@launching(time="a limit, such as 8h, for the container and its GPUs: SIGTERM, two minutes of grace, the end")
def up(_: Context, asked: Asked, time: str | None = None) -> None:
    """Everything from nothing: engine, image, workspace container, quick checks."""
    with task_run(asked.json) as reporter:
        from torchdock import container, jobs, limits, mounts, provision, sources
        from torchdock.errors import TorchdockError

        folder = _folder(asked.workspace)
        gpus = _gpu_wish(asked, folder)
        wish = _wish(asked.variant, devel=asked.devel, gpus=gpus, workspace=asked.workspace)
        wishes = _wishes(asked.devel)
        given = sources.gather()
        launch_wishes = _launch_wishes(asked, folder)
        if not os.path.isdir(folder):  # said before an engine is installed, with the identity that a launch will have
            container.check_workspace(folder, container.Identity(os.getuid(), os.getgid(), (), str(os.getuid())))
        if asked.dry_run:
            engine = provision.ensure(reporter, dry_run=True)
            if engine is None:
                return reporter.document({"dry_run": True, "argv": []})
            who = container.identity(engine)
            choice = _choose(wish, given, engine, wishes)
            _tell(reporter.aside, choice)  # stdout is the command alone
            image = _planned_image(engine, choice, given, wishes, _layer(engine, choice, folder))
            folder = container.check_workspace(folder, who)
            planned, _ = _up(
                reporter, engine, image, who, given, choice, folder, launch_wishes, gpus, time=time, dry_run=True
            )  # fmt: skip
            return _show_launch(reporter, engine, planned, **_told(choice))
        with _state().exclusive(reporter):  # the second of two `make up` finds everything done, and checks it
            engine = provision.ensure(reporter)
            assert engine is not None
            who = container.identity(engine)
            folder = container.check_workspace(folder, who)
            mounts.check(engine, who, (folder, *(one.source for one in launch_wishes.mounts)))
            limits.plan(engine, launch_wishes)
            name = container.workspace_name(who, _state().clone, folder)
            container.check_ports(container.find_up(engine, name), launch_wishes.ports)  # all are told before a build
            _tell_hindrances(reporter, engine, launch_wishes)
            choice = _choose(wish, given, engine, wishes)
            _tell(reporter, choice)
            layer = _layer(engine, choice, folder)
            built = _image(reporter, engine, choice, given, wishes, layer)
            for fallback in built.fallbacks if not built.built else []:
                reporter.fallback(fallback)
            had = jobs.installed(engine, name)
            anew = container.find_up(engine, name) is not None
            plan, launched = _up(
                reporter, engine, built.image, who, given, choice, folder, launch_wishes, gpus,
                wait=asked.wait, time=time,
            )  # fmt: skip
            if plan.note:
                reporter.say(plan.note)
            if anew and launched:
                lost = f"; what was installed in the old one is gone: {', '.join(had)}" if had else ""
                reporter.say(f"The workspace container is launched anew: its image or options have changed{lost}")
            verb = "Launched" if launched else "Running already:"
            reporter.say(", ".join((f"{verb} {name} ({built.image})", f"{folder} at /workspace", *_mounted(plan))))
            if lacking := _declared(engine, folder, choice.variant.name, layer, devel=asked.devel, up=name):
                reporter.say(lacking)
            reporter.say("Quick checks ...")
            command = ["timeout", "--signal=INT", "--kill-after=5", str(QUICK_SECONDS)]
            command += ["python", "-m", "torchdock.inside.check", "--quick", "--ops", "none", "--json"]
            code, summary = _checks(engine, name, command)
        held = [gpu.uuid for gpu in plan.gpus]
        document = {"container": name, "launched": launched, "gpus": held, **built.document(), **_told(choice)}
        document.update(checks=summary, added=[] if launched else list(had))
        reporter.document(document)
        if code in (124, 137):
            raise TorchdockError(
                f"The quick checks were not finished after {QUICK_SECONDS} s and were stopped; {name} runs "
                "on. `invoke test --quick` runs them without this limit; a busy machine or a cold disk explains much."
            )
        if code != 0:
            raise TorchdockError(f"A quick check failed (above, with its remedy); the container {name} runs on.")
        reporter.say("")
        reporter.table("", ("next", ""), [
            ("make shell", "a shell in this container"),
            (".venv/bin/invoke run -- python train.py", "one command in a container of its own"),
            (".venv/bin/invoke up -w ~/project", "the same for a project of yours"),
            ("make test", "the project's tests and the whole validation suite"),
            ("make down", "stop it"),
        ])  # fmt: skip


@task("cuda", "cpu", "json", "dry-run")
def devcontainer(_: Context, cuda: bool = False, cpu: bool = False, json: bool = False, dry_run: bool = False) -> None:
    """The image and the GPUs for a dev container of this host, as .devcontainer/initialize.sh asks for them."""
    with task_run(json) as reporter:
        from dataclasses import replace

        from torchdock import engine as engines
        from torchdock import gpus as cards
        from torchdock import selection, sources
        from torchdock.errors import BusyError, InputError

        if cuda == cpu:
            raise InputError("A dev container is one of two: give --cpu or --cuda.")
        wanted = asked = "0" if cpu else os.environ.get("TORCHDOCK_GPUS") or None

        @contextmanager
        def choosing_gpus() -> Iterator[None]:
            try:
                yield
            except (InputError, BusyError) as error:
                told = str(error).replace(
                    selection.PATIENCE, "Open it again later; TORCHDOCK_GPUS=0 computes on the CPU."
                )
                raise type(error)(f"TORCHDOCK_GPUS: {told}" if cuda and asked else told) from None

        # The GPUs of the container that is there already, if it may keep them: its own work makes them look taken.
        inventory = cards.gather()
        held = [] if cpu else [word for word in os.environ.get("TORCHDOCK_HELD", "").split(",") if word]
        own = [word for word in os.environ.get("TORCHDOCK_OWN", "").split(",") if word]  # which it holds itself now
        if held and set(held) <= {gpu.uuid for gpu in inventory.gpus}:
            wanted = ",".join(held)
        with choosing_gpus():
            selection.possible(inventory, selection.Wish(wanted))
        wish = _wish(None, cuda=cuda, gpus=selection.Wish(wanted))
        if cpu:  # as `invoke build` chooses on a host without a GPU, the fallback included
            wish["host"] = replace(wish["host"], gpus=(), driver="", no_gpu_reason="the CPU configuration was chosen")
        given = sources.gather()
        engine = engines.require()
        wishes = _wishes(False)
        choice = _choose(wish, given, engine, wishes, thrifty=True)
        aside = reporter.aside
        _tell(aside, choice)
        if set(held) & set(choice.unserved):  # made with another variant
            wanted = asked
        with choosing_gpus():  # initialize.sh takes the pending locks, which are to outlive this process
            chosen = () if cpu else _shown(engine, choice, selection.Wish(wanted), {}, [*held, *own]).gpus
        layer = _layer(engine, choice, ROOT)
        if dry_run:
            image = _planned_image(engine, choice, given, wishes, layer)
        else:
            image = _image(aside, engine, choice, given, wishes, layer).image
        found = {
            "image": image,
            "ca": str(given.ca.resolve()) if given.ca is not None else "",
            "gpus": ",".join(gpu.uuid for gpu in chosen),
        }
        if not json:
            print("\n".join(f"{name}={value}" for name, value in found.items()))
        reporter.document({**found, **_told(choice)})


@task("workspace", "json", "dry-run")
def down(_: Context, workspace: str | None = None, json: bool = False, dry_run: bool = False) -> None:
    """Stop and remove the workspace container."""
    with task_run(json) as reporter:
        from torchdock import container
        from torchdock import engine as engines

        engine = engines.require()
        folder = container.workspace_path(_folder(workspace))
        name = container.workspace_name(container.identity(engine), _state().clone, folder)
        if dry_run:
            return _show(reporter, (engine.program, "stop", name))
        there = container.find_up(engine, name) is not None
        if there:
            _tell_ending(reporter, engine, name)
            container.stop(engine, name)
        reporter.say(f"Stopped {name}" if there else f"There is no workspace container for {folder}; nothing to stop")
        reporter.document({"container": name, "stopped": there})


def _tell_ending(reporter: Reporter, engine: Engine, name: str) -> None:
    """Say which commands end with a workspace container."""
    from torchdock import container

    if commands := container.sessions(engine, name):
        reporter.say(f"Commands that end now, with up to {container.STOP_SECONDS} s to save: {', '.join(commands)}")


@launching(
    detach="start it and return: a job, which lives on without this terminal (`ps`, `logs`, `attach`, `stop`)",
    name="what to call a job (default: a name with digits)",
    time="a limit, such as 8h: SIGTERM, two minutes of grace, the end",
)
def run(_: Context, asked: Asked, detach: bool = False, name: str | None = None, time: str | None = None) -> None:
    """One command in a container of its own: invoke run -- python train.py"""
    with task_run(asked.json) as reporter:
        from torchdock import launch
        from torchdock.errors import InputError

        command = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
        if not command:
            raise InputError("`invoke run` needs a command after two dashes: invoke run -- python train.py")
        if name is not None and not detach:
            raise InputError("--name is for a job, which stays after its end: add --detach, or leave --name away.")
        if name in namespace.task_names:
            raise InputError(f"--name {name}: that is a task of invoke's, so `invoke stop {name}` would start it.")
        seconds = None if time is None else launch.duration(time)
        _command(reporter, asked, "job" if detach else "run", command, name=name, seconds=seconds)


@launching()
def shell(_: Context, asked: Asked) -> None:
    """A shell in the workspace container if it is up, else in a new one."""
    with task_run(asked.json) as reporter:
        from torchdock import container, sources
        from torchdock import engine as engines

        engine = engines.require()
        folder = container.workspace_path(_folder(asked.workspace))
        name = container.workspace_name(container.identity(engine), _state().clone, folder)
        found = container.find_up(engine, name)
        if found is None or found["State"] != "running" or asked.anything:
            return _command(reporter, asked, "shell", ["bash"])
        tty = sys.stdin.isatty() and sys.stdout.isatty() and not asked.json
        renewed = container.renewed(found, sources.gather)
        if asked.dry_run:
            adds = container.additions_of_exec(engine)
            reporter.aside.say(f"A command by torchdock also has: {' '.join(adds)}")
            return _show(reporter, container.exec_argv(engine, name, ["bash"], tty=tty, variables=renewed), adds=adds)
        print(f"In {name}, which runs on after this shell", file=sys.stderr)
        variant = str(found["Image"]).partition("/")[2].partition(":")[0].removesuffix("-workspace")
        if lacking := _declared(engine, folder, variant, up=name):
            reporter.aside.say(lacking)
        ended = container.execute(
            engine, name, ["bash"], tty=tty, stdout=2 if asked.json else None, environment=renewed
        )
        reporter.document({"container": name, "exit_code": ended.code})
        raise Exit(code=ended.code)


def _command(
    reporter: Reporter,
    asked: Asked,
    role: str,
    command: list[str],
    *,
    name: str | None = None,
    seconds: int | None = None,
) -> None:
    """Launch; a job is left to itself, anything else waited for: then exit with the command's own code.

    With ``--json`` the command's output goes to stderr.
    """
    from torchdock import container, launch, limits, mounts, sources
    from torchdock import engine as engines

    gpus = _gpu_wish(asked, _folder(asked.workspace))
    wish = _wish(asked.variant, devel=asked.devel, gpus=gpus, workspace=asked.workspace)
    wishes = _wishes(asked.devel)
    given = sources.gather()
    launch_wishes = _launch_wishes(asked, _folder(asked.workspace))
    engine = engines.require()
    who = container.identity(engine)
    folder = container.check_workspace(_folder(asked.workspace), who)
    mounts.check(engine, who, (folder, *(one.source for one in launch_wishes.mounts)))
    limits.plan(engine, launch_wishes)
    launch.check_ports(launch_wishes.ports)  # all are told before a build
    tty = role != "job" and sys.stdin.isatty() and sys.stdout.isatty() and not reporter.as_json
    options: dict[str, Any] = {
        "role": role,
        "command": command,
        "tty": tty,
        "wishes": launch_wishes,
        "seconds": seconds,
        "name": container.fresh_name(who, role) if name is None else container.job_name(who, name),
    }
    if name is not None:
        container.refuse_taken(engine, options["name"])
    holder = _holder(who, options["name"], role, seconds)
    choice = _choose(wish, given, engine, wishes, thrifty=True)
    # A command's stdout is its own: what torchdock has to say goes to stderr.
    aside = reporter.aside
    _tell(aside, choice, reason=False)
    _tell_hindrances(aside, engine, launch_wishes)
    layer = _layer(engine, choice, folder)
    if asked.dry_run:
        image = _planned_image(engine, choice, given, wishes, layer)
        claim = _shown(engine, choice, gpus, holder)
        plan = _launch(engine, image, who, given, claim, folder, dry_run=True, **options)
        return _show_launch(reporter, engine, plan)
    image = _image(aside, engine, choice, given, wishes, layer).image
    if lacking := _declared(engine, folder, choice.variant.name, layer, devel=asked.devel):
        aside.say(lacking)

    def go(claim: Claim) -> tuple[LaunchPlan, int]:
        plan = _launch(engine, image, who, given, claim, folder, **options)
        if plan.note:
            aside.say(plan.note)
        if role == "job":
            container.start(engine, plan, claim)
            return plan, 0
        aside.say(_where(plan, "removed at its end"))
        return plan, container.attached(engine, plan, claim, stdout=2 if reporter.as_json else None)

    plan, code = _leased(aside, engine, choice, gpus, holder, go, seconds=_waits(asked.wait))
    document = {"container": plan.name, "image": image, "gpus": [gpu.uuid for gpu in plan.gpus]}
    if role == "job":
        short = plan.name.removeprefix(f"torchdock-{who.name}-")
        aside.say(
            _where(plan, f"which lives on without this terminal: `invoke logs -f {short}`, `invoke stop {short}`")
        )
        if not reporter.as_json:
            print(short)
        return reporter.document({**document, "name": short})
    reporter.document({**document, "exit_code": code})
    raise Exit(code=code)


@task("workspace", "json", "dry-run", stop="end it; `invoke down` does so too")
def jupyter(
    _: Context, workspace: str | None = None, stop: bool = False, json: bool = False, dry_run: bool = False
) -> None:
    """JupyterLab in the workspace container; prints its address, serves until `invoke down`."""
    with task_run(json) as reporter:
        _serve(reporter, "jupyter", workspace, stop=stop, dry_run=dry_run)


@task(
    "workspace",
    "json",
    "dry-run",
    stop="end it; `invoke down` does so too",
    logdir="the folder to show: below the workspace, or an absolute path in the container (default: runs)",
)
def tensorboard(
    _: Context,
    logdir: str | None = None,
    workspace: str | None = None,
    stop: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """TensorBoard in the workspace container; prints its address, serves until `invoke down`."""
    with task_run(json) as reporter:
        _serve(reporter, "tensorboard", workspace, stop=stop, dry_run=dry_run, logdir=logdir)


def _serve(
    reporter: Reporter, name: str, workspace: str | None, *, stop: bool, dry_run: bool, logdir: str | None = None
) -> None:
    """Start or find a server in the workspace container, which is launched where it is not up; print its address."""
    import shlex
    from dataclasses import asdict
    from platform import node

    from torchdock import container, servers
    from torchdock import engine as engines
    from torchdock.errors import InputError

    if stop and logdir is not None:
        raise InputError("--stop ends it and shows no folder: leave --logdir away.")
    server = {one.name: one for one in (servers.JUPYTER, servers.TENSORBOARD)}[name]
    folder = container.workspace_path(_folder(workspace))
    shown = "" if server is servers.JUPYTER else servers.logdir(servers.LOGDIR if logdir is None else logdir, folder)
    engine = engines.require()
    up = container.workspace_name(container.identity(engine), _state().clone, folder)
    found = container.find_up(engine, up)
    runs = found is not None and found["State"] == "running"
    if stop:
        if dry_run:
            return _show(reporter, container.exec_argv(engine, up, [*container.SERVE, name, "--stop"]))
        ended = runs and servers.stop(engine, up, server)
        reporter.say(f"Stopped {server.title} in {up}" if ended else f"No {server.title} serves for {folder}")
        return reporter.document({"container": up, "stopped": ended})
    # What is printed on stdout is the address alone.
    aside = reporter.aside
    launched = None if runs else _launch_up(aside, engine, workspace, dry_run=dry_run)
    if dry_run:
        adds = container.additions(engine, launched, dry_run=True) if launched else []
        if launched and not reporter.as_json:
            print(shlex.join(launched.argv))
            aside.say(f"A launch by torchdock also has: {shlex.join(adds)}")
        command = servers.start_argv(engine, up, server, "ID", shown)
        return _show(reporter, command, launch=list(launched.argv if launched else ()), adds=adds)
    with aside.step(f"{server.title} in {up}"):
        one = servers.start(engine, up, server, shown, moved=logdir is not None)
    verb = "serves" if one.started else "serves already"
    end = f"until `invoke {name} --stop` or `invoke down`"
    aside.say(f"{server.title} {verb} {one.logdir or '/workspace'} in {up}, {end}; its log there is {one.log}")
    if not one.there:
        aside.say(f"{one.logdir} does not exist yet: what appears there is shown")
    if "SSH_CONNECTION" in os.environ and one.address.startswith("127."):
        aside.say(f"From your own machine: ssh -N -L {one.port}:127.0.0.1:{one.port} {node()}, then the same address")
    if not reporter.as_json:
        print(one.url)
    reporter.document(asdict(one))


def _launch_up(reporter: Reporter, engine: Engine, workspace: str | None, *, dry_run: bool) -> LaunchPlan:
    """Launch the workspace container with what ``torchdock.toml`` says, without the quick checks of ``up``."""
    from contextlib import nullcontext

    from torchdock import container, limits, sources

    gpus = _gpu_wish(Asked(), _folder(workspace))
    wish = _wish(None, gpus=gpus, workspace=workspace)
    given = sources.gather()
    who = container.identity(engine)
    folder = container.check_workspace(_folder(workspace), who)
    wishes = _launch_wishes(Asked(), folder)
    limits.plan(engine, wishes)
    container.check_ports(
        container.find_up(engine, container.workspace_name(who, _state().clone, folder)), wishes.ports
    )
    choice = _choose(wish, given, engine, thrifty=True)
    _tell(reporter, choice, reason=False)
    layer = _layer(engine, choice, folder)
    with nullcontext() if dry_run else _state().exclusive(reporter):
        if dry_run:
            image = _planned_image(engine, choice, given, _wishes(False), layer)
        else:
            image = _image(reporter, engine, choice, given, layer=layer).image
        plan, launched = _up(reporter, engine, image, who, given, choice, folder, wishes, gpus, dry_run=dry_run)
        if launched:
            reporter.say(", ".join((f"Launched {plan.name} ({image})", f"{folder} at /workspace", *_mounted(plan))))
    return plan


@task("json", watch="show it anew every two seconds until Ctrl-C")
def gpus(_: Context, watch: bool = False, json: bool = False) -> None:
    """Which GPUs there are, who has each, since when, and whether anything computes on it."""
    with task_run(json) as reporter:
        import time

        from torchdock import gpus as cards
        from torchdock import holders, lease
        from torchdock.errors import InputError, TorchdockError

        if watch and json:
            raise InputError("--watch shows it again and again, and --json is one document: leave one of them.")

        def look() -> tuple[cards.Inventory, list[holders.Row], float]:
            inventory = cards.gather()
            facts = holders.gather(inventory, lease.gather(gpu.uuid for gpu in inventory.gpus))
            return inventory, holders.rows(inventory, facts), facts.now

        def parts(inventory: cards.Inventory, rows: list[holders.Row], now: float, told: list[str]) -> list[Part]:
            shown: list[Part] = [holders.table(rows, inventory.cut)] if rows or inventory.cut else []
            if inventory.reason:
                shown.append(f"No GPU can be used: {inventory.reason}")
            if any(row.holders for row in rows):
                shown += ["", holders.held(rows, now)]
            return [*shown, *([""] if told else []), *told]

        def warned(inventory: cards.Inventory, rows: list[holders.Row], now: float) -> list[str]:
            return [*inventory.faults, *holders.warnings(rows, now, holders.name_of(os.getuid()))]

        rows: list[holders.Row] = []
        if watch:
            with suppress(KeyboardInterrupt), reporter.live() as show:
                while True:
                    begun = time.monotonic()
                    inventory, new, now = look()
                    rows = holders.looked_on(rows, new)
                    head = f"{time.strftime('%H:%M:%S', time.localtime(now))}, driver {inventory.driver or '-'}"
                    show([head, *parts(inventory, rows, now, warned(inventory, rows, now))])
                    time.sleep(max(0.0, WATCH_SECONDS - (time.monotonic() - begun)))
            return
        inventory, rows, now = look()
        told = warned(inventory, rows, now)
        reporter.show(parts(inventory, rows, now, told))
        document = {"driver": inventory.driver, "gpus": [row.document() for row in rows], "reason": inventory.reason}
        reporter.document({**document, "mig": [gpu.uuid for gpu in inventory.cut], "warnings": told})
        if inventory.broken:
            raise TorchdockError(f"The NVIDIA driver does not work: {inventory.reason}. `invoke doctor` tells more.")


@task("json", running="only those that run")
def ps(_: Context, running: bool = False, json: bool = False) -> None:
    """Your containers, from every clone: what they run, how they ended, what was installed in them."""
    with task_run(json) as reporter:
        from textwrap import shorten

        from torchdock import container, jobs
        from torchdock import engine as engines

        engine = engines.require()
        found = [
            one for one in jobs.gather(engine, container.identity(engine)) if one.state == "running" or not running
        ]
        found = jobs.with_added(engine, found)
        if not found:
            reporter.say("No container of yours" + (" runs" if running else " is there"))
        else:
            rows = [
                (
                    one.name,
                    f"{one.role} ({one.profile})" if one.profile else one.role,
                    one.status,
                    one.workspace,
                    ", ".join(one.gpus) or "-",
                    shorten(one.command, 60, placeholder=" …"),
                    ", ".join(one.added),
                )
                for one in found
            ]
            reporter.table("", ("name", "role", "state", "workspace", "GPUs", "command", "added packages"), rows)
        reporter.document({"containers": [one.document() for one in found]})


@task(
    "json",
    "dry-run",
    name="which one; may be left away where there is one job",
    follow="go on until it ends",
    lines="only the last N lines",
)
def logs(
    _: Context,
    name: str | None = None,
    follow: bool = False,
    lines: str | None = None,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """What a container has printed; a job's output is kept after its end: invoke logs -f NAME"""
    with task_run(json) as reporter:
        from torchdock import container, jobs
        from torchdock import engine as engines
        from torchdock.errors import InputError

        if lines is not None and not (lines.isascii() and lines.isdigit()):
            raise InputError(f"--lines {lines}: how many of the last lines is a number, such as 100.")
        engine = engines.require()
        one = jobs.find(jobs.gather(engine, container.identity(engine)), name)
        argv = jobs.logs_argv(engine, one.container, follow=follow, lines=None if lines is None else int(lines))
        _streams(reporter, engine, one, argv, dry_run=dry_run)


@task("json", "dry-run", name="which one; may be left away where there is one job")
def attach(_: Context, name: str | None = None, json: bool = False, dry_run: bool = False) -> None:
    """Join a running job: see what it prints from now on, type to it. Leaving does not end it: invoke attach NAME"""
    with task_run(json) as reporter:
        from torchdock import container, jobs
        from torchdock import engine as engines
        from torchdock.errors import InputError

        engine = engines.require()
        one = jobs.find(jobs.gather(engine, container.identity(engine)), name)
        if one.state != "running":
            raise InputError(f"{one.name} has ended ({one.status}); `invoke logs {one.name}` shows what it printed.")
        terminal = engine.has_terminal(one.container)
        keys = "Ctrl-P Ctrl-Q" if terminal else "Ctrl-C"
        reporter.aside.say(f"Joining {one.container}; {keys} leaves it running, `invoke stop {one.name}` ends it")
        argv = jobs.attach_argv(engine, one.container, typing=sys.stdin.isatty() or not terminal)
        _streams(reporter, engine, one, argv, dry_run=dry_run)


def _streams(reporter: Reporter, engine: Engine, one: Session, argv: tuple[str, ...], *, dry_run: bool) -> None:
    """Run a docker command about a container on our own streams, and exit as it does."""
    from torchdock import engine as engines
    from torchdock.process import foreground

    if dry_run:
        return _show(reporter, argv)
    ended = foreground([engine.cli, *argv[1:]], stdout=2 if reporter.as_json else None, hand_on=False)
    # Looking on ends with Ctrl-C; docker ends with 1 where a job was joined and left by Ctrl-P Ctrl-Q.
    left = ended.interrupted or (argv[1] == "attach" and engine.runs(one.container))
    if ended.code and not left:
        engines.require()  # one that went away in the middle is said, with its remedy
    code = 0 if left else ended.code
    reporter.document({"container": one.container, "exit_code": code})
    raise Exit(code=code)


@task("json", "dry-run", name="which one", remove="also remove it, with what it printed: its name is free again")
def stop(_: Context, name: str | None = None, remove: bool = False, json: bool = False, dry_run: bool = False) -> None:
    """End a container: SIGTERM, two minutes of grace. A job's output stays: invoke stop NAME"""
    with task_run(json) as reporter:
        from torchdock import container, jobs
        from torchdock import engine as engines

        engine = engines.require()
        one = jobs.find(jobs.gather(engine, container.identity(engine)), name)
        if dry_run:
            return _show(reporter, (engine.program, "stop", one.container))
        ran = one.state == "running"
        remove = remove or one.role == "up"
        if one.role == "up":
            _tell_ending(reporter, engine, one.container)
        code = jobs.stop(engine, one, remove=remove)
        told = f"{'Stopped' if ran else 'Had ended:'} {one.name}"
        told += f" (exit code {code})" if code is not None else ""
        reporter.say(told + (", removed" if remove or code is None else ""))
        reporter.document({"container": one.container, "stopped": ran, "removed": remove, "exit_code": code})


@contextmanager
def _unattended(*, quiet: bool, json: bool, limit: str | None) -> Iterator[int | None]:
    """What a task that cron runs needs: no word where all is good, an end in any case. Gives the limit in seconds."""
    from contextlib import nullcontext

    from torchdock import console, container, launch, process

    seconds = None if limit is None else launch.duration(limit)
    told = f"Not finished within {limit}, and ended. What it was at is above; --time gives it more."
    with (
        console.quietly(keep_stdout=json) if quiet else nullcontext(),
        process.bounded(seconds, told, grace=container.STOP_SECONDS + 30),
    ):
        yield seconds


@task(
    "variant",
    "devel",
    "gpus",
    "min-memory",
    "gpu-name",
    "wait",
    "json",
    "dry-run",
    optional=("wait",),
    gpu="a GPU is demanded: fails without one, never skips",
    quick="the quick checks alone",
    ops="how many samples each operator of torch is checked with: `one` of a dtype (default), `full`: all, or `none`",
    min_share="with --gpu: one that reaches less than this share of its maker's peak (0.6) fails",
    time="a limit for all of it, such as 1h (default: 30m with --gpu, else none)",
    quiet="print nothing where all is good: for cron",
)
def test(
    _: Context,
    gpu: bool = False,
    quick: bool = False,
    ops: str | None = None,
    min_share: str | None = None,
    variant: str | None = None,
    devel: bool = False,
    gpus: str | None = None,
    min_memory: str | None = None,
    gpu_name: str | None = None,
    wait: str | None = None,
    time: str | None = None,
    quiet: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """The validation suite in a container of its own, on this host's device."""
    import tempfile
    from time import strftime

    limit = time or ("30m" if gpu else None)
    with task_run(json) as reporter, _unattended(quiet=quiet, json=json, limit=limit) as seconds:
        from torchdock import container, mounts, passport, sources
        from torchdock import engine as engines
        from torchdock import gpus as cards
        from torchdock.errors import InputError, TorchdockError
        from torchdock.inside import operators, speed

        if ops is not None and ops not in operators.SAMPLES:
            raise InputError(
                f"--ops {ops}: expected `one`, `full` or `none`: how many samples of each operator are checked."
            )
        if min_share is not None and (problem := speed.bad_gate(min_share, gpu)):
            raise InputError(problem)
        asked = _gpu_wish(Asked(gpus=gpus, min_memory=min_memory, gpu_name=gpu_name), ROOT)
        wish = _wish(variant, cuda=gpu, devel=devel, gpus=asked)
        wishes = _wishes(devel)
        given = sources.gather()
        inventory = cards.gather()
        if gpu and not inventory.gpus:
            raise TorchdockError(
                f"--gpu demands a GPU, and this host has none that can be used: {inventory.reason}. Install or repair "
                "the NVIDIA driver (`invoke doctor` shows what was found), or test on the CPU without --gpu."
            )
        engine = engines.require()
        choice = _choose(wish, given, engine, wishes, thrifty=True)
        _tell(reporter.aside if dry_run else reporter, choice, reason=False)
        if (
            gpu
            and asked.number is None
            and not asked.exact
            and {one.uuid for one in inventory.gpus} <= set(choice.unserved)
        ):
            raise TorchdockError(f"--gpu demands a GPU, and {choice.refusal}")
        who = container.identity(engine)
        name = container.fresh_name(who, "test")
        holder = _holder(who, name, "test", seconds)
        stamp = strftime("%Y%m%d-%H%M%S")
        report = _state().folder / "reports" / stamp
        if not dry_run:
            report = Path(tempfile.mkdtemp(prefix=f"{stamp}-", dir=_state().path("reports", stamp).parent))

        def planned(claim: Claim, image: str, folder: Path) -> LaunchPlan:
            command = ["python", "-m", "torchdock.inside.check", "--json", "--report", "/report"]
            flags = {"--quick": quick, "--gpu": gpu or bool(claim.gpus), "--devel": devel}
            command += [flag for flag, wanted in flags.items() if wanted]
            command += ["--ops", ops] if ops else []
            command += ["--min-share", min_share] if min_share else []
            options = {"role": "test", "name": name, "command": command, "seconds": seconds}
            return _launch(
                engine, image, who, given, claim, None, mounts=container.mount(str(folder), "/report"), **options
            )

        if dry_run:
            image = _planned_image(engine, choice, given, wishes)
            return _show_launch(reporter, engine, planned(_shown(engine, choice, asked, holder), image, report))
        image = _image(reporter, engine, choice, given, wishes).image

        def go(claim: Claim) -> tuple[int, dict[str, Any], tuple[Gpu, ...]]:
            # A clone in a HOME on a file server, where the engine's root is nobody: written beside it first.
            with mounts.stand_in(engine, who, report) as shown, tempfile.TemporaryFile("w+") as output:
                code = container.attached(engine, planned(claim, image, shown), claim, stdout=output.fileno())
                return code, _read_document(output), claim.gpus

        code, summary, chosen = _leased(reporter, engine, choice, asked, holder, go, seconds=_waits(wait))
        part = passport.gather(engine, _state(), image, inventory, chosen)
        if passport.complete(report, part, _state(), given.redact) is not None:
            reporter.say(f"Report: {report / 'report.xml'}; with all numbers and what it ran on: report.json beside it")
        written = {"report": str(report / "report.xml"), "passport": str(report / "report.json")}
        reporter.document({**summary, **written, "image": image})
        if code != 0:
            raise Exit(code=code)


@task(
    "json",
    "dry-run",
    running="also containers that run: SIGTERM, two minutes of grace, the end",
    images="also images that nobody else uses, but for the newest of each variant",
    keep="how many images of each variant stay (default: 1, this tree's if it is there)",
    cache="also your cache volume, which all your clones share",
    build_cache="also what torchdock's builds, anybody's, left in BuildKit's cache and no image stands on",
    all="everything: --running --images --keep 0 --cache --build-cache",
    yes="do not ask before something goes that cannot be had again",
)
def clean(
    _: Context,
    running: bool = False,
    images: bool = False,
    keep: str | None = None,
    cache: bool = False,
    build_cache: bool = False,
    all: bool = False,
    yes: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Show what torchdock made for this user and clone, with its size, and remove it; only that."""
    with task_run(json) as reporter:
        from rich.filesize import decimal

        from torchdock import buildcache, container
        from torchdock import clean as cleaning
        from torchdock import engine as engines
        from torchdock.errors import InputError

        images = images or all
        if keep is not None and not (keep.isascii() and keep.isdigit()):
            raise InputError(f"--keep {keep}: how many images of each variant stay is a number, such as 2.")
        if keep is not None and not images:
            raise InputError("--keep says how many images stay, and without --images all do: add --images.")
        left = (0 if all else cleaning.KEEP) if keep is None else int(keep)
        wishes = cleaning.Wishes(running or all, images, left, cache or all, build_cache or all)
        engine = engines.require()
        state = _state()
        current = _current_images(engine) if images else ()
        facts = cleaning.gather(engine, state, container.identity(engine), wishes, current)
        planned = cleaning.plan(facts, wishes)
        cleaning.show(planned, reporter)
        done: list[cleaning.Item] = []
        kept = [*planned.kept]
        if not planned.items:
            reporter.say("Nothing to remove for this user and clone")
        elif dry_run:
            reporter.say(f"Would remove these, {decimal(planned.bytes)}; with --dry-run nothing was removed")
        if not dry_run:
            cleaning.confirm(planned, reporter, yes=yes)
            with state.exclusive(reporter):
                done, stayed = cleaning.remove(engine, state, facts, planned)
            kept += stayed
            for item in stayed:
                reporter.say(f"Kept {item.what} {item.name}: {item.why}")
        total = planned.bytes if dry_run else sum(item.bytes or 0 for item in done)
        if done:
            reporter.good(f"Removed {len(done)} of {len(planned.items)}, {decimal(total)}")
        if any(item.what == "image" for item in done) and not wishes.build_cache:
            spare = decimal(buildcache.spare(buildcache.gather(engine)))
            reporter.say(
                f"BuildKit's cache, which all users share, holds {spare} of torchdock's builds that no image needs, "
                "for the next build: `invoke clean --build-cache` gives that back too"
            )
        reporter.document(
            {
                "dry_run": dry_run,
                "found": [item.document() for item in planned.items],
                "removed": [item.document() for item in done],
                "kept": [item.document() for item in kept],
                "bytes": total,
            }
        )


@task("variant", "json", "dry-run")
def doctor(_: Context, variant: str | None = None, json: bool = False, dry_run: bool = False) -> None:
    """Prove that this host works; findings with remedies."""
    with task_run(json) as reporter:
        from torchdock import doctor as examination
        from torchdock import sources

        wish = _wish(variant)
        if dry_run:
            return reporter.say(
                "It examines and changes nothing: engine, disk, sources and GPUs, without --dry-run too."
            )
        with reporter.step("Examining this host"):
            try:
                given = sources.gather()
            except sources.SourceError:  # which is a finding
                given = sources.Sources(None, ())
            choice = _choose(wish, given, None)
            findings = examination.examine(_state(), choice.variant)
        _tell(reporter, choice)
        rows = [
            (found.severity, found.subject, found.seen + (f"\n{found.remedy}" if found.remedy else ""))
            for found in findings
        ]
        reporter.table("", ("", "what", "seen"), rows)
        errors = sum(found.severity == "error" for found in findings)
        reporter.say(
            f"{len(findings)} findings, {errors} of them errors" if errors else f"{len(findings)} findings, no error"
        )
        document = {"findings": [vars(found) for found in findings], "errors": errors, **_told(choice)}
        reporter.document(document)
        if errors:
            raise Exit(code=1)


@task(
    "json",
    "dry-run",
    optional=("upgrade",),
    variant="this variant alone (default: every one whose index can be reached)",
    upgrade="move this package to its newest version (`debian`: Debian's packages); without a name, all of them",
    workspace="lock the packages that this folder's torchdock.toml lists, instead of the environment's",
)
def lock(
    _: Context,
    variant: str | None = None,
    upgrade: str | None = None,
    workspace: str | None = None,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Resolve what is asked for anew, write the locks, show the difference.

    Python packages from docker/requirements.in; Debian's from docker/layers/packages.txt, where that file was changed.
    """
    from contextlib import nullcontext

    with task_run(json) as reporter:
        from torchdock import debian, locks, resolver, sources, variants
        from torchdock.errors import InputError

        given = sources.gather()
        if workspace is not None:
            return _lock_workspace(reporter, given, _require_folder(workspace), variant, upgrade, dry_run=dry_run)
        if upgrade == "debian" and variant is not None:
            raise InputError("--upgrade debian moves the packages that all variants share: leave --variant away.")
        moves = upgrade in (True, "debian")
        stale = debian.is_older(ROOT, variants.get(ROOT, None).base.suite)
        with nullcontext() if dry_run else _state().exclusive(reporter):
            found = resolver.Refreshed()
            if upgrade != "debian":
                found = resolver.refresh(ROOT, given, reporter, variant=variant, upgrade=upgrade)
            if variant is None and (moves or stale):
                files, rows = _refresh_debian(reporter, given, upgrade=moves, dry_run=dry_run)
                found.files.update(files)
                found.differences["Debian"] = rows
            elif stale:
                reporter.say(
                    "The lock of Debian packages is out of date too: `invoke lock` without --variant writes it"
                )
            if not dry_run:
                locks.replace(found.files)
        _tell_locked(reporter, found, ROOT, dry_run=dry_run)


def _lock_workspace(
    reporter: Reporter, given: Sources, folder: Path, variant: str | None, upgrade: str | None, *, dry_run: bool
) -> None:
    from torchdock import host, locks, packages
    from torchdock.errors import InputError

    found = packages.refresh(
        ROOT, folder, given, reporter, architecture=host.architecture(), variant=variant, upgrade=upgrade
    )
    try:
        locks.replace({} if dry_run else found.files)
    except OSError as error:
        where = folder / packages.FOLDER
        raise InputError(
            f"{where} cannot be written ({error.strerror}). It is to be a folder of yours: correct its owner, or move "
            "what stands in its place, and run it again."
        ) from None
    _tell_locked(reporter, found, folder, dry_run=dry_run)


def _tell_locked(reporter: Reporter, found: Refreshed, folder: Path, *, dry_run: bool) -> None:
    """What moved and which files below ``folder`` have changed."""
    for name, rows in found.differences.items():
        if rows:
            cells = [(one, was or "-", now or "-") for one, was, now in rows]
            reporter.table(name, ("package", "was", "is"), cells)
        words = [] if rows else ["no version moved"]
        words += [str(found.layers[name])] if name in found.layers else []
        if words:
            reporter.say(f"{name}: {'; '.join(words)}")
    changed = [str(path.relative_to(folder)) for path in found.files]
    reporter.say(f"{'Would write' if dry_run else 'Wrote'} {', '.join(changed) or 'nothing'}")
    reporter.document(
        {
            "dry_run": dry_run,
            "files": changed,
            "variants": {name: [list(row) for row in rows] for name, rows in found.differences.items()},
            "left": found.left,
            "layers": {name: laid.document() for name, laid in found.layers.items()},
        }
    )


@task(
    "variant",
    "json",
    "dry-run",
    image="check this image, which somebody else built, against this clone's lock; also `invoke verify IMAGE`",
    base="make the base from Debian packages again instead, and compare that",
)
def verify(
    _: Context,
    image: str | None = None,
    variant: str | None = None,
    base: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Build again from nothing and compare to the bit; or check an image: invoke verify IMAGE"""
    with task_run(json) as reporter:
        from torchdock import engine as engines
        from torchdock import sources
        from torchdock import verify as verifying
        from torchdock.errors import InputError

        if image is None and "--" in sys.argv:
            image = next(iter(sys.argv[sys.argv.index("--") + 1 :]), None)
        if base and image is not None:
            raise InputError(f"--base is about the base of this host, and {image} has its own: leave one of them.")
        wish = _wish(variant) if image is None else {}
        given = sources.gather()
        engine = engines.require()
        # With --dry-run stdout is the command alone.
        aside = reporter.aside if dry_run else reporter
        if image is not None:
            chosen = verifying.variant_of(engine, ROOT, image, variant)
        else:
            choice = _choose(wish, given, engine, thrifty=True)
            _tell(aside, choice, reason=False)
            chosen = choice.variant
        if base:
            plan = verifying.plan_base(engine, _state(), chosen, given)
        else:
            plan = verifying.plan(engine, _state(), chosen, given, other=image or "")
        if dry_run:
            aside.say(plan.words)
            return _show(reporter, plan.argv) if plan.argv else reporter.document({"dry_run": True, "argv": []})
        comparison = verifying.run(engine, _state(), plan, given, reporter)
        reporter.document({"variant": chosen.name, **comparison.document()})
        if not comparison.equal:
            raise Exit(code=1)


def _shareable(reporter: Reporter, variant: str | None, devel: bool) -> tuple[Engine, Choice, Sources, list[BuildPlan]]:
    """The engine, and the plans of this tree's image on it, for what carries an image there or away."""
    from torchdock import engine as engines
    from torchdock import image, sources

    wish = _wish(variant, devel=devel)
    given = sources.gather()
    engine = engines.require()
    wishes = _wishes(devel)
    choice = _choose(wish, given, engine, wishes, thrifty=True)
    _tell(reporter, choice, reason=False)
    image.check(ROOT, choice.variant, engine.architecture, given, wishes)
    return engine, choice, given, image.plans(ROOT, choice.variant, engine, given, wishes)


def _built(engine: Engine, candidates: list[BuildPlan]) -> Built:
    """The image that is there."""
    from torchdock import image
    from torchdock.errors import InputError

    found = image.find(engine, candidates)
    if found is None:
        raise InputError(f"{candidates[0].tag}, this tree's image, is not here yet: `invoke build` first.")
    return found


def _show_all(reporter: Reporter, commands: tuple[tuple[str, ...], ...]) -> None:
    """Print the commands of a dry run, one a line."""
    import shlex

    if not reporter.as_json:
        print(*(shlex.join(words) for words in commands), sep="\n")
    reporter.document({"dry_run": True, "commands": [list(words) for words in commands]})


@task(
    "variant",
    "devel",
    "json",
    "dry-run",
    repository="where to, such as registry.example.org/team/torchdock (default: TORCHDOCK_REGISTRY)",
)
def push(
    _: Context,
    repository: str | None = None,
    variant: str | None = None,
    devel: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Give this tree's image to a registry, and its layers to builds: invoke push REPOSITORY"""
    with task_run(json) as reporter:
        from torchdock import share

        where = share.asked(repository, ROOT, os.environ)
        engine, _choice, given, candidates = _shareable(reporter.aside if dry_run else reporter, variant, devel)
        plan = share.plan_push(engine, _state(), _built(engine, candidates), where, given)
        if dry_run:
            return _show_all(reporter, plan.commands)
        with _state().exclusive(reporter):
            done = share.push(engine, _state(), plan, reporter)
        reporter.say(f"{done.pushed} layers went, {done.there} were there already")
        reporter.good(f"Pushed {done.reference} in {done.seconds:.0f} s: {where.name}@{done.digest}")
        reporter.document(done.document())


@task(
    "variant",
    "devel",
    "json",
    "dry-run",
    repository="where from, with @sha256:… for one image (default: TORCHDOCK_REGISTRY)",
)
def pull(
    _: Context,
    repository: str | None = None,
    variant: str | None = None,
    devel: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Take this tree's image from a registry, checked before it is used: invoke pull REPOSITORY[@sha256:…]"""
    with task_run(json) as reporter:
        from torchdock import image, share

        where = share.asked(repository, ROOT, os.environ)
        engine, choice, _given, candidates = _shareable(reporter.aside if dry_run else reporter, variant, devel)
        plan = share.plan_pull(engine, candidates, where)
        if dry_run:
            return _show_all(reporter, plan.commands)
        found = None if where.digest else image.find(engine, candidates)
        if found is not None:
            reporter.say(f"{found.image} is there already; nothing to pull")
        else:
            with _state().exclusive(reporter):
                found = share.pull(engine, _state(), plan, reporter)
            reporter.good(f"Pulled {found.image} in {found.seconds:.0f} s ({found.brought})")
            _tell_checked(reporter)
        _used(reporter, engine, found)
        reporter.document({**found.document(), **_told(choice)})


def _tell_checked(reporter: Reporter) -> None:
    reporter.say(
        "Its suite, locks and Debian packages are this clone's; `invoke verify` builds it again, which proves all of it"
    )


@task("variant", "devel", "json", "dry-run", file="the file to write, such as torchdock.tar")
def save(
    _: Context,
    file: str | None = None,
    variant: str | None = None,
    devel: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Write this tree's image to a file, for a host without a network: invoke save FILE"""
    with task_run(json) as reporter:
        from rich.filesize import decimal

        from torchdock import parcel

        path = parcel.check_target(_file(file, "save"))
        engine, _choice, _given, candidates = _shareable(reporter.aside if dry_run else reporter, variant, devel)
        built = _built(engine, candidates)
        if dry_run:
            reporter.aside.say(f"What it gives goes to {path}, whole or not at all")
            return _show_all(reporter, ((engine.program, "save", built.image),))
        size = parcel.save(engine, built, path, reporter)
        reporter.good(f"Saved {built.image} to {path}, {decimal(size)}; on the other host: `invoke load FILE`")
        reporter.document({"image": built.image, "id": built.id, "file": str(path), "bytes": size})


@task("variant", "devel", "json", "dry-run", file="a file that `invoke save` wrote")
def load(
    _: Context,
    file: str | None = None,
    variant: str | None = None,
    devel: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Take this tree's image from a file, checked before it is used: invoke load FILE"""
    with task_run(json) as reporter:
        from torchdock import image, parcel, variants

        path = Path(_file(file, "load")).absolute()
        carried = parcel.contained(path)
        known = variants.read(ROOT)
        variant = variant or (carried.variant if carried.variant in known else None)  # what it is decides, not the host
        devel = devel or any(name.endswith(f"-{image.DEVEL}") for name in carried.names)
        engine, choice, _given, candidates = _shareable(reporter.aside if dry_run else reporter, variant, devel)
        parcel.plan_load(engine, carried, path, candidates)
        if dry_run:
            return _show_all(reporter, ((engine.program, "load", "--input", str(path)),))
        with _state().exclusive(reporter):
            found = parcel.load(engine, _state(), carried, path, candidates, reporter)
        _used(reporter, engine, found)
        reporter.good(f"Loaded {found.image} in {found.seconds:.0f} s ({found.brought})")
        _tell_checked(reporter)
        reporter.document({**found.document(), **_told(choice)})


def _file(file: str | None, name: str) -> str:
    from torchdock.errors import InputError

    if not file:
        raise InputError(f"Which file? invoke {name} torchdock.tar")
    return file


namespace = Tasks(
    build,
    up,
    down,
    run,
    shell,
    jupyter,
    tensorboard,
    devcontainer,
    gpus,
    ps,
    logs,
    attach,
    stop,
    test,
    clean,
    doctor,
    lock,
    verify,
    push,
    pull,
    save,
    load,
)
