"""The same to the bit: two images compared by layer and file, and what differs named so that a person can act.

Equal means equal configuration digests; the configuration holds the digests of the layers (OCI image spec, config.md:
``rootfs.diff_ids``). Where they differ, ``docker save`` is read once per image as a stream, and only the layers that
differ are looked into. Nothing of an image is unpacked or run, so one that a stranger built may be compared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from torchdock import base as bases
from torchdock import image, uses, variants
from torchdock.console import Reporter, Step
from torchdock.difference import MEANINGS, STORES, Comparison, LayerComparison, compare, pairs, tree
from torchdock.engine import Engine
from torchdock.errors import InputError, TorchdockError
from torchdock.saved import Entry, LayerName, SavedImage, name_by_listing, printable, read_image
from torchdock.sources import Sources
from torchdock.state import CloneState
from torchdock.variants import GB, Variant

SHOWN = 40  # differing files, and as many values of the configuration, that are printed; the report has all of them


# --- two images of the engine ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Inspected:
    """What the engine says of an image: see ``docker image inspect`` and ``docker history``."""

    name: str
    id: str
    layers: tuple[str, ...]
    size: int
    labels: Mapping[str, str]
    listing: Sequence[Mapping[str, Any]]

    @property
    def names(self) -> list[LayerName]:
        """The names of its layers."""
        return name_by_listing(self.listing, len(self.layers))

    @property
    def has_compiler(self) -> bool:
        """It is of the target `devel`."""
        return any(layer.name == image.DEVEL for layer in self.names)


def _inspect(engine: Engine, reference: str) -> _Inspected:
    """Raises: InputError: the engine has no such image."""
    import docker.errors

    try:
        found = engine.client.images.get(reference)
    except (docker.errors.ImageNotFound, docker.errors.NullResource):
        raise InputError(
            f"This engine has no image {reference!r}. Bring it with `docker pull {reference}`, or from a file with "
            "`docker load --input FILE`; `docker image ls` lists those there are."
        ) from None
    layers = tuple((found.attrs.get("RootFS") or {}).get("Layers") or ())
    size = int(found.attrs.get("Size") or 0)
    return _Inspected(reference, str(found.id), layers, size, found.labels or {}, found.history())


def verify(engine: Engine, first: str, second: str, reporter: Reporter) -> Comparison:
    """Compare two images that the engine has; changes nothing.

    Where their IDs are equal, nothing else is read. Else each is read once (`docker save`, about 9 s per GB, whose
    copy below the engine's folder is gone afterwards); where they may be of engines with different image stores, again
    and whole.

    Raises:
        InputError: there is no such image.
        TorchdockError: it cannot be read, or the disk is too small for it.
    """
    one, two = _inspect(engine, first), _inspect(engine, second)
    if one.id == two.id:
        layers = [
            LayerComparison(name.name, name.step, digest, digest)
            for name, digest in zip(one.names, one.layers, strict=True)
        ]
        return Comparison(first, second, one.id, two.id, tuple(layers))
    differing = [pair for pair in pairs(one.names, one.layers, two.names, two.layers) if not pair.equal]
    wanted = ({pair.first for pair in differing if pair.first}, {pair.second for pair in differing if pair.second})
    read = [_reading(engine, side, digests, reporter) for side, digests in zip((one, two), wanted, strict=True)]
    comparison = compare(first, read[0], second, read[1])
    if comparison.by_store:  # whether that is all, only both whole images tell
        seen = [_files(engine, side, reporter) for side in (one, two)]
        if seen[0] == seen[1]:
            comparison = replace(comparison, notes=(*comparison.notes, STORES))
    return comparison


def _files(engine: Engine, image: _Inspected, reporter: Reporter) -> Mapping[str, Entry]:
    """What a container sees of an image."""
    layers = _reading(engine, image, set(image.layers), reporter).layers
    return tree(layers[digest] for digest in image.layers)


def _reading(engine: Engine, image: _Inspected, wanted: set[str], reporter: Reporter) -> SavedImage:
    _check_disk(engine, image)
    with reporter.step(f"Reading {image.name}") as step:
        return _read(engine, image, wanted, step)


def _check_disk(engine: Engine, image: _Inspected) -> None:
    # The engine writes the whole image into its folder before `docker save` gives the first byte.
    where = engine.data_root
    if where is None:
        return
    free = shutil.disk_usage(where).free
    need = image.size + GB // 10
    if free < need:
        raise TorchdockError(
            f"Looking into {image.name} needs {need / GB:.1f} GB free below {where} for a moment, and {free / GB:.1f} "
            "GB are: the images differ, where cannot be told. `docker builder prune` gives back build caches."
        )


def _read(engine: Engine, image: _Inspected, wanted: set[str], step: Step) -> SavedImage:
    step.now(f"{len(wanted)} of {len(image.layers)} layers")
    with tempfile.TemporaryFile("w+", errors="replace") as errors, _saving(engine, image.id, errors) as child:
        assert child.stdout is not None
        try:
            return read_image(child.stdout, image.id, image.layers, wanted)
        except TorchdockError:
            # If docker itself failed, its own words say more. It still runs where a layer was at fault.
            with suppress(subprocess.TimeoutExpired):
                if child.wait(timeout=2) != 0:
                    errors.seek(0)
                    said = printable(" ".join(errors.read().split()))
                    raise TorchdockError(
                        f"`docker save` of {image.name} failed: {said}. The images differ; where cannot be told. "
                        "Mend that (often the disk of the engine is full), then run it again."
                    ) from None
            raise


@contextmanager
def _saving(engine: Engine, id: str, errors: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """`docker save`, ended with us in any case; in a session of its own, so that Ctrl-C reaches it from here only."""
    child = subprocess.Popen(
        [engine.cli, "save", id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        assert child.stdout is not None
        child.stdout.close()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


# --- what people read -----------------------------------------------------------------------------------------------


def show(comparison: Comparison, reporter: Reporter) -> None:
    """One line a layer, then the differing files and values (at most SHOWN of each) and what their kinds mean."""
    width = max((len(layer.name) for layer in comparison.layers), default=0)
    for layer in comparison.layers:
        reporter.say(f"  {layer.name:{width}}  {_line(layer)}")
    rows = [
        (layer.name, printable(found.path), ", ".join(found.what), found.first, found.second)
        for layer in comparison.layers
        for found in layer.differences
    ]
    sides = (f"first: {comparison.first}", f"second: {comparison.second}")
    if rows:
        title = f"{SHOWN} of the {len(rows)} differing files" if len(rows) > SHOWN else ""
        reporter.table(title, ("layer", "file", "differs in", *sides), rows[:SHOWN])
    values = [(printable(one.key), _short(one.first), _short(one.second)) for one in comparison.config]
    if values:
        title = f"{SHOWN} of the {len(values)} differing values" if len(values) > SHOWN else ""
        reporter.table(title, ("configuration", *sides), values[:SHOWN])
    kinds = {kind for layer in comparison.layers for found in layer.differences for kind in found.what}
    for kind, meaning in MEANINGS.items():
        if kind in kinds:
            reporter.say(f"{meaning}.")
    for note in comparison.notes:
        reporter.say(note)


def _line(layer: LayerComparison) -> str:
    if layer.equal:
        return f"equal    {_brief(layer.first)}"
    kinds = Counter(kind for found in layer.differences for kind in found.what)
    counted = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    files = f"{len(layer.differences)} file{'s' if len(layer.differences) != 1 else ''} ({counted})" if kinds else ""
    said = "; ".join(part for part in (files, layer.note) if part)
    step = f" [{_short(layer.step)}]" if layer.name.startswith("layer ") and layer.step else ""
    return f"differs  {_brief(layer.first)} and {_brief(layer.second)}{step}: {said or 'empty'}"


def _brief(digest: str | None) -> str:
    return printable(digest.removeprefix("sha256:")[:12]) if digest else "none"


def _short(text: str | None, width: int = 100) -> str:
    if text is None:
        return "none"
    text = printable(text)
    return text if len(text) <= width else f"{text[: width - 1]}…"


# --- a build, and the same build again ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What will be compared with what.

    Attributes:
        wishes: how this lock's image is wanted.
        ours: the build of this lock's image.
        there: that image is there already.
        other: what it is compared with: somebody else's image, or the name that the second build gets.
        again: the second build; None where ``other`` is somebody else's.
        pinned: ``ours`` stands on the base of ``other``, and has to.
        base: it is about the bootstrapped base, not about the image.
        note: a sentence to say first, or an empty string.
    """

    wishes: image.Wishes
    ours: image.BuildPlan
    there: bool
    other: str
    again: image.BuildPlan | None = None
    pinned: bool = False
    base: bool = False
    note: str = ""

    @property
    def argv(self) -> tuple[str, ...]:
        """The docker command that comes next, for ``--dry-run``: a build, else the reading of the other image.

        Empty for a base, which mmdebstrap makes.
        """
        if self.base:
            return ()
        if not self.there:
            return self.ours.argv
        return self.again.argv if self.again is not None else ("docker", "save", self.other)

    @property
    def words(self) -> str:
        """What would be done, for people."""
        first = "" if self.there else f"build {self.ours.tag} and "
        said = f"{self.note} " if self.note else ""
        if self.base:
            return f"Would make {self.ours.base.reference} again with mmdebstrap as {self.other}, and compare the two"
        if self.again is not None:
            return f"{said}Would {first}build {self.ours.tag} again with no cache as {self.other}, and compare the two"
        return f"Would {first}compare {self.other} with {self.ours.tag}" + (f". {self.note}" if self.note else "")

    @property
    def mine(self) -> bool:
        """``other`` is made for this comparison."""
        return self.base or self.again is not None


def variant_of(engine: Engine, root: Path, reference: str, asked: str | None) -> Variant:
    """The variant that an image says it is.

    Raises:
        InputError: there is no such image, it is none of torchdock's, its variant is not in this clone, or another one
            was asked for.
    """
    name = _inspect(engine, reference).labels.get("dev.torchdock.variant")
    if name is None:
        raise InputError(
            f"{reference} has no label dev.torchdock.variant, so torchdock did not build it and no lock of this clone "
            "says what belongs in it. Name an image that `invoke build` made."
        )
    if asked is not None and asked != name:
        raise InputError(f"{reference} is {name!r}, and --variant asks for {asked!r}: leave --variant.")
    return variants.get(root, name)


def plan(
    engine: Engine,
    state: CloneState,
    variant: Variant,
    sources: Sources,
    wishes: image.Wishes | None = None,
    *,
    other: str = "",
) -> Plan:
    """What to compare this clone's image with: ``other``, or a second build of it. Changes nothing.

    Args:
        wishes: the target of the image, and whether fallbacks are refused; for ``other`` the target is what it has.
    """
    wishes = wishes or image.Wishes()
    theirs = _inspect(engine, other) if other else None
    if theirs is not None:
        wishes = replace(wishes, target=image.DEVEL if theirs.has_compiler else image.ENVIRONMENT)
    candidates = image.plans(state.root, variant, engine, sources, wishes)
    usual = next((candidate for candidate in candidates if engine.image(candidate.tag)), candidates[0])
    if theirs is None:
        again = _second_build(engine, state, variant, sources, wishes, usual)
        return Plan(wishes, usual, engine.image(usual.tag) is not None, again.tag, again)
    same = _on_the_base_of(engine, candidates, theirs)
    note = (
        f"{theirs.name} stands on a base that is none of this engine's for {variant.name}. Images are equal on one "
        "base only, and what a base holds may differ above it too; `base` in the build record beside it names it."
    )
    ours = same or usual
    there = engine.image(ours.tag)
    twin = there is not None and (brought := engine.image(theirs.name)) is not None and engine.same(there, brought)
    if twin and (origin := uses.brought(engine, ours.tag)):
        again = _second_build(engine, state, variant, sources, wishes, ours)
        note = (
            f"{ours.tag} was not built on this engine, it came from {origin}: it is compared with a build of its own."
        )
        return Plan(wishes, ours, True, again.tag, again, note=note)
    return Plan(wishes, ours, there is not None, theirs.name, pinned=same is not None, note="" if same else note)


def _second_build(
    engine: Engine,
    state: CloneState,
    variant: Variant,
    sources: Sources,
    wishes: image.Wishes,
    ours: image.BuildPlan,
) -> image.BuildPlan:
    twice = replace(wishes, no_cache=True, tag=_second_name(state, ours))
    anew = image.plans(state.root, variant, engine, sources, twice)
    return next(candidate for candidate in anew if candidate.base == ours.base)


def _second_name(state: CloneState, ours: image.BuildPlan) -> str:
    """A name of this clone's own: two clones may verify the same image at once."""
    return f"torchdock/verify:{ours.tag.rpartition(':')[2]}-{state.clone}"


def _on_the_base_of(engine: Engine, candidates: Sequence[image.BuildPlan], other: _Inspected) -> image.BuildPlan | None:
    """The plan whose base the other image stands on; where two do, the one whose image is there."""
    same = []
    for candidate in candidates:
        base, built = engine.image(candidate.base.reference), engine.image(candidate.tag)
        # The base may be gone, or be known to the builder alone; the first layer of what was built is still of it.
        layers = base.layers if base is not None else built.layers[:1] if built is not None else ()
        if layers and other.layers[: len(layers)] == layers:
            same.append((built is None, candidate))
    return min(same, key=lambda found: found[0])[1] if same else None


def plan_base(engine: Engine, state: CloneState, variant: Variant, sources: Sources) -> Plan:
    """The bootstrapped base and a second one. Changes nothing.

    Raises:
        InputError: this engine has none, because the base comes from a registry.
    """
    candidates = image.plans(state.root, variant, engine, sources)
    for candidate in candidates:
        reference = candidate.base.reference
        if candidate.base.source == "bootstrapped" and engine.image(reference) is not None:
            other = f"torchdock/verify:base-{reference.rpartition(':')[2]}-{state.clone}"
            return Plan(image.Wishes(), candidate, True, other, base=True)
    raise InputError(
        "This engine has no base made from Debian packages, so there is nothing to compare: a base from a registry is "
        "pinned by its digest. Leave --base."
    )


def run(engine: Engine, state: CloneState, plan: Plan, sources: Sources, reporter: Reporter) -> Comparison:
    """Build what is missing, compare, print and write the report. A second build is removed where it is equal.

    Raises:
        TorchdockError: a build failed, or an image cannot be read.
        KeyboardInterrupt: after the builder has stopped; a second build is removed.
    """
    with state.exclusive(reporter):
        if plan.note:
            reporter.say(plan.note)
        ours = _obtain(engine, state, plan, sources, reporter)
        if plan.again is not None:  # the base that could be had is a part of the name
            plan = replace(plan, other=_second_name(state, ours))
        first = ours.base.reference if plan.base else ours.tag
        try:
            if plan.mine:
                _remove(engine, plan.other)  # what an earlier difference has left
                _build_again(engine, state, plan, ours, sources, reporter)
            comparison = verify(engine, first, plan.other, reporter)
        except BaseException:
            if plan.mine:
                _remove(engine, plan.other)
            raise
        if plan.mine and comparison.equal:
            _remove(engine, plan.other)
        elif plan.mine:
            _record(state, ours.variant, plan.other)
    kept = f"The second build is kept as {plan.other}, to look into; `docker image rm {plan.other}` removes it."
    notes = (plan.note, *comparison.notes, kept if plan.mine and not comparison.equal else "")
    comparison = replace(comparison, notes=tuple(note for note in notes if note))
    show(comparison, reporter)
    report = state.path("reports", f"verify-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json")
    state.write(report, comparison.document())
    reporter.say(f"Report: {report}")
    if not comparison.equal:
        reporter.say(f"{first} and {plan.other} differ: {_summary(comparison)}")
    elif plan.mine:
        reporter.good(f"{first}, built again from nothing, is the same to the bit")
    else:
        reporter.good(f"{plan.other} is what this lock builds")
    return comparison


def _summary(comparison: Comparison) -> str:
    layers = [layer.name for layer in comparison.layers if not layer.equal]
    parts = [f"layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}"] if layers else []
    if comparison.config:
        parts.append(f"{len(comparison.config)} of the configuration's values")
    return " and ".join(parts) or "the bytes of the configuration alone"


def _obtain(engine: Engine, state: CloneState, plan: Plan, sources: Sources, reporter: Reporter) -> image.BuildPlan:
    """This lock's image, found or built; the plan that it was built by."""
    if plan.there:
        return plan.ours
    variant = plan.ours.variant
    # Which base can be had shows only when it is tried, unless the other image settles it.
    wishes = replace(plan.wishes, base=plan.ours.base) if plan.pinned else plan.wishes
    built = image.ensure(engine, state, variant, sources, reporter, wishes)
    candidates = image.plans(state.root, variant, engine, sources, plan.wishes)
    return next(candidate for candidate in candidates if candidate.tag == built.image)


def _build_again(
    engine: Engine, state: CloneState, plan: Plan, ours: image.BuildPlan, sources: Sources, reporter: Reporter
) -> None:
    variant = ours.variant
    choices = [candidate.base for candidate in image.plans(state.root, variant, engine, sources)]
    if plan.base:
        bases.bootstrap(engine, state.root, variant.base, choices, sources, reporter, plan.other)
    else:
        made = ours.base.source == "bootstrapped"
        if made and engine.image(ours.base.reference) is None:  # the image was brought, and its base was not
            base = bases.bootstrap(engine, state.root, variant.base, choices, sources, reporter)
            if base != ours.base:
                raise TorchdockError(
                    f"{ours.tag} stands on {ours.base.reference}, of which the mirrors no longer have every package, "
                    "so it cannot be built again here. Verify it where that base is, or lock today's packages with "
                    "`invoke lock --upgrade debian`."
                )
        wishes = replace(plan.wishes, no_cache=True, tag=plan.other, base=ours.base)
        image.ensure(engine, state, variant, sources, reporter, wishes)


def _record(state: CloneState, variant: Variant, tag: str) -> None:
    # `clean --images` finds the image by it. Without `steps`, so that no build counts on it for little disk.
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {"image": tag, "variant": variant.name, "when": when}
    state.write(state.path("builds", f"verify-{tag.rpartition(':')[2]}.json"), record)


def _remove(engine: Engine, tag: str) -> None:
    import docker.errors

    # A container of the user's own may hold it; then it is theirs to remove.
    with suppress(docker.errors.APIError):
        engine.client.images.remove(tag)
