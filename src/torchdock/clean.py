"""What torchdock made for one user and one clone: found, shown with its sizes, and removed; nothing else touched.

Ours is what carries this user's and clone's labels *and* the name that torchdock gives: an image that somebody made of
a container (`docker commit`) hands its labels on to whatever is started from it. An image is this clone's where it
says so (:mod:`torchdock.uses`, a build record), and goes when nobody else says so and no container stands on it.
Nothing is removed by force, so the engine has the last word on what is in use.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from torchdock import buildcache, uses
from torchdock.buildcache import Record
from torchdock.console import Reporter
from torchdock.container import LABEL, STOP_SECONDS, UNBORN_SECONDS, Identity
from torchdock.engine import Engine
from torchdock.errors import InputError, TorchdockError
from torchdock.process import capture
from torchdock.saved import size_by_listing
from torchdock.state import CloneState
from torchdock.uses import Use

KEEP = 1  # the newest images of a variant that `--images` leaves: one goes on working where one is
ENDED = ("exited", "dead", "created")
ORPHAN = "no clone is known to use it"
STEPS_USED = "a build uses, or a step that is not torchdock's stands on"
KEPT_FOLDERS = ("reports", "logs")


@dataclass(frozen=True)
class Wishes:
    """What is to go besides ended containers, reports and logs.

    Attributes:
        running: containers that run, too.
        images: images, but for the ``keep`` newest of each variant.
        cache: the cache volume, which all clones of the user share.
        build_cache: what torchdock's builds left in BuildKit's cache, which all users share.
    """

    running: bool = False
    images: bool = False
    keep: int = KEEP
    cache: bool = False
    build_cache: bool = False


# --- facts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Container:
    """A container, anybody's. ``bytes``: what it wrote and printed, where that can be seen; of ours only."""

    id: str
    name: str
    image: str
    state: str
    status: str
    labels: Mapping[str, str]
    age: float
    volumes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    bytes: int = 0


@dataclass(frozen=True)
class Image:
    """An image, anybody's: its ID, its names, and its layers as (digest of it and all below it, bytes)."""

    id: str
    tags: tuple[str, ...]
    layers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Volume:
    """A volume and what it holds; None where the engine does not say."""

    name: str
    labels: Mapping[str, str]
    bytes: int | None


@dataclass(frozen=True)
class Entry:
    """A file or folder in the state folder of the clone."""

    path: Path
    uid: int
    bytes: int


@dataclass(frozen=True)
class Facts:
    """What is there.

    Attributes:
        containers: everybody's.
        images: everybody's; none where they are not asked about.
        uses: everybody's; ``gone`` are clones whose folder was removed.
        records: images that this clone built, with the base each stands on (or an empty string).
        current: the images of this clone's files as they are now.
        steps: the records of BuildKit's cache, everybody's; none where they are not asked about.
    """

    uid: int
    clone: str
    containers: tuple[Container, ...] = ()
    images: tuple[Image, ...] = ()
    uses: tuple[Use, ...] = ()
    gone: frozenset[str] = frozenset()
    records: Mapping[str, str] | None = None
    current: frozenset[str] = frozenset()
    cache: Volume | None = None
    entries: tuple[Entry, ...] = ()
    steps: tuple[Record, ...] = ()

    def others(self, image: str) -> list[Use]:
        """Who else uses an image, or a base: other users, and this user's other clones."""
        return [use for use in self.uses if image in (use.image, use.base) and not self.gives_up(use)]

    def gives_up(self, use: Use) -> bool:
        """It is this clone's, or that of a clone of this user that is gone."""
        return use.uid == self.uid and (use.clone == self.clone or use.clone in self.gone)

    def is_ours(self, one: Container) -> bool:
        """torchdock launched it for this user and clone."""
        labels = one.labels
        return (
            labels.get(f"{LABEL}.user") == str(self.uid)
            and labels.get(f"{LABEL}.clone") == self.clone
            and bool(labels.get(f"{LABEL}.role"))
            and one.name.startswith("torchdock-")
        )


def gather(engine: Engine, state: CloneState, who: Identity, wishes: Wishes, current: Iterable[str] = ()) -> Facts:
    """Look at what is there; changes nothing."""
    found = uses.gather(engine) if wishes.images else ()
    return Facts(
        uid=who.uid,
        clone=state.clone,
        containers=_containers(engine, who, state.clone),
        images=_images(engine) if wishes.images else (),
        uses=found,
        gone=frozenset(use.clone for use in found if use.uid == who.uid and _is_gone(use.root)),
        records={str(record["image"]): str(record.get("base", "")) for record in state.records()},
        current=frozenset(current),
        cache=_cache(engine, f"torchdock-cache-{who.uid}") if wishes.cache else None,
        entries=tuple(_entries(state)),
        steps=buildcache.gather(engine) if wishes.build_cache else (),
    )


def _is_gone(root: Path) -> bool:
    """A clone was removed: the folder that it was in is there. Where that is missing too, a disk may not be mounted."""
    return root.parent.is_dir() and not root.exists()


def _containers(engine: Engine, who: Identity, clone: str) -> tuple[Container, ...]:
    api = engine.client.api
    labels = [f"{LABEL}.user={who.uid}", f"{LABEL}.clone={clone}"]
    # Sizes are asked for ours alone: the engine walks through a container's files for one.
    sizes = {row["Id"]: _size(engine, row) for row in api.containers(all=True, size=True, filters={"label": labels})}
    return tuple(
        Container(
            id=row["Id"],
            name=str((row.get("Names") or [row["Id"]])[0]).lstrip("/"),
            image=row["ImageID"],
            state=row["State"],
            status=row["Status"],
            labels=row.get("Labels") or {},
            age=time.time() - row["Created"],
            volumes=tuple(one["Name"] for one in row.get("Mounts") or () if one.get("Name")),
            folders=tuple(one["Source"] for one in row.get("Mounts") or () if one.get("Type") == "bind"),
            bytes=sizes.get(row["Id"], 0),
        )
        for row in api.containers(all=True)
    )


def _size(engine: Engine, row: Mapping[str, Any]) -> int:
    """What a container wrote, and what it printed where this user may look there."""
    import docker.errors

    written = int(row.get("SizeRw") or 0)
    try:
        log = Path(engine.client.api.inspect_container(row["Id"]).get("LogPath") or "/nonexistent")
        return written + sum(path.stat().st_size for path in log.parent.glob(f"{log.name}*"))
    except (docker.errors.NotFound, OSError):
        return written


def _images(engine: Engine) -> tuple[Image, ...]:
    import docker.errors

    found = []
    for row in engine.client.api.images():
        tags = tuple(tag for tag in row.get("RepoTags") or () if tag != "<none>:<none>")
        try:
            image = engine.client.images.get(row["Id"])
            digests = (image.attrs.get("RootFS") or {}).get("Layers") or ()
            ours = any(tag.startswith("torchdock/") for tag in tags)
            sizes = size_by_listing(image.history(), len(digests)) if ours else [0] * len(digests)
            if engine.by_manifest and (unpacked := sum(sizes)):  # each is stored as it was compressed, too
                sizes = [size * int(row["Size"]) // unpacked for size in sizes]
        except docker.errors.ImageNotFound:  # somebody removed it just now
            continue
        layers, below = [], ""
        for digest, size in zip(digests, sizes, strict=True):  # the same layer on another one is stored again
            below = hashlib.sha256(f"{below} {digest}".encode()).hexdigest()
            layers.append((below, size))
        found.append(Image(row["Id"], tags, tuple(layers)))
    return tuple(found)


def _cache(engine: Engine, name: str) -> Volume | None:
    import docker.errors

    try:
        labels = engine.client.api.inspect_volume(name).get("Labels") or {}
    except docker.errors.NotFound:
        return None
    # Nobody but root may look into the engine's folder, so the engine has to count.
    rows = engine.disk_use("volume")
    size = next(((row.get("UsageData") or {}).get("Size", -1) for row in rows if row["Name"] == name), -1)
    return Volume(name, labels, size if size >= 0 else None)


def _entries(state: CloneState) -> Iterable[Entry]:
    for folder in KEPT_FOLDERS:
        try:
            paths = sorted((state.folder / folder).iterdir())
        except OSError:
            continue
        for path in paths:
            try:
                yield Entry(path, path.lstat().st_uid, _tree_bytes(path))
            except OSError:
                continue


def _tree_bytes(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, names in os.walk(path):  # follows no link
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


# --- plan -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """Something that goes, or stays.

    Attributes:
        what: ``container``, ``image``, ``build-cache``, ``cache``, ``reports`` or ``logs``.
        bytes: what its removal gives back; None where that cannot be told.
        why: what it is; where it stays, why.
        id: of the container or image.
        paths: the files and folders it consists of.
        steps: the records of BuildKit's cache that it consists of, each before what it stands on.
        dear: it cannot be had again, or at a price: a person has to say yes.
    """

    what: str
    name: str
    bytes: int | None
    why: str
    id: str = ""
    paths: tuple[Path, ...] = ()
    steps: tuple[Record, ...] = ()
    dear: bool = False
    running: bool = False

    def document(self) -> dict[str, Any]:
        """As ``clean --json`` prints it."""
        return {key: value for key, value in asdict(self).items() if key in ("what", "name", "bytes", "why")}


@dataclass(frozen=True)
class Plan:
    """What goes and what stays; ``uses`` are the marks that are given up."""

    items: tuple[Item, ...]
    kept: tuple[Item, ...] = ()
    uses: tuple[Use, ...] = ()

    @property
    def bytes(self) -> int:
        """What all of it gives back, as far as that can be told."""
        return sum(item.bytes or 0 for item in self.items)


def plan(facts: Facts, wishes: Wishes) -> Plan:
    """What goes, what stays, and why. Pure."""
    items, kept = _plan_containers(facts, wishes)
    left = [one for one in facts.containers if one.id not in {item.id for item in items}]
    given_up: tuple[Use, ...] = ()
    images = _plan_images(facts, wishes, left)
    steps = _plan_build_cache(facts, bool(images[0]))
    for more, stays, marks in (images, steps, _plan_cache(facts, left), _plan_files(facts, left)):
        items, kept, given_up = [*items, *more], [*kept, *stays], (*given_up, *marks)
    return Plan(tuple(items), tuple(kept), given_up)


_Part = tuple[list[Item], list[Item], tuple[Use, ...]]


def _plan_containers(facts: Facts, wishes: Wishes) -> tuple[list[Item], list[Item]]:
    items, kept = [], []
    for one in facts.containers:
        if not facts.is_ours(one) or one.state == "removing":
            continue
        role = one.labels[f"{LABEL}.role"]
        ended = one.state in ENDED
        item = Item("container", one.name, one.bytes, f"{role}: {one.status}", one.id, running=not ended)
        if one.state == "created" and one.age < UNBORN_SECONDS:
            kept.append(replace(item, why=f"{role}: it is being started"))
        elif not ended and not wishes.running:
            kept.append(replace(item, why=f"{role}: {one.status}; --running ends and removes it"))
        elif not ended:
            items.append(replace(item, why=f"{item.why}, is ended first", dear=True))
        else:
            lost = {"job": "; its output goes too", "devcontainer": "; what was installed in it goes too"}.get(role, "")
            items.append(replace(item, why=item.why + lost, dear=bool(lost)))
    return items, kept


def _plan_images(facts: Facts, wishes: Wishes, left: Sequence[Container]) -> _Part:
    if not wishes.images:
        return [], [], ()
    by_tag = {tag: image for image in facts.images for tag in image.tags}
    mine = {use.image for use in facts.uses if facts.gives_up(use)} | set(facts.records or ())
    mine |= {tag for tag in by_tag if tag.endswith(f":devcontainer-{facts.uid}-{facts.clone}")}  # built without Python
    there = [tag for tag in sorted(by_tag) if tag.startswith("torchdock/")]
    newest = _newest(facts, [tag for tag in there if tag in mine], wishes.keep)
    why: dict[str, str] = {}
    for tag in there:
        if not tag.startswith("torchdock/base:"):
            why[tag] = newest.get(tag, "") or _held(facts, by_tag[tag], tag, left)
            if not why[tag] and tag not in mine:
                why[tag] = ORPHAN
    bases = _bases(facts)
    for tag in there:
        if tag.startswith("torchdock/base:"):
            stands = sorted(image for image in bases.get(tag, ()) if why.get(image))
            why[tag] = f"{stands[0]} stands on it" if stands else _held(facts, by_tag[tag], tag, left)
            if not why[tag] and tag not in bases:
                why[tag] = ORPHAN
    going = [tag for tag in there if not why[tag]]
    stay = [image for image in facts.images if set(image.tags) - set(going) or not image.tags]
    counted = {layer for image in stay for layer, _ in image.layers}
    items, kept = [], []
    for tag in there:
        image = by_tag[tag]
        if why[tag]:
            kept.append(Item("image", tag, sum(size for _, size in image.layers), why[tag], image.id))
            continue
        own = sum(size for layer, size in image.layers if layer not in counted)
        counted |= {layer for layer, _ in image.layers}
        items.append(Item("image", tag, own, _origin(tag), image.id))
    retained = {tag for tag in mine if newest.get(tag)}
    in_use = {tag for tag in mine if tag in by_tag and _container_of(facts, by_tag[tag], left)}
    own_left = {use.volume for use in facts.uses if use.clone == facts.clone and use.image in retained | in_use}
    marks = [use for use in facts.uses if facts.gives_up(use) and use.genuine and use.volume not in own_left]
    return items, kept, tuple(marks)


def _origin(tag: str) -> str:
    if tag.startswith("torchdock/base:"):
        return "made from Debian packages; the next build makes it again where no registry has one"
    if tag.startswith("torchdock/verify:"):
        return "a second build that differed, kept by verify"
    return "used by this clone alone"


def _bases(facts: Facts) -> dict[str, set[str]]:
    """The images of this clone, the gone ones too, by the base that they stand on."""
    found: dict[str, set[str]] = {}
    pairs = [(use.image, use.base) for use in facts.uses if facts.gives_up(use)]
    for image, base in [*pairs, *(facts.records or {}).items()]:
        if base:
            found.setdefault(base, set()).add(image)
    return found


def _newest(facts: Facts, mine: Sequence[str], keep: int) -> dict[str, str]:
    """Those that retention leaves, with the words for it: per variant and target this tree's, then the last marked."""
    since = {use.image: use.since for use in facts.uses if use.clone == facts.clone and use.uid == facts.uid}
    groups: dict[str, list[str]] = {}
    for tag in mine:
        if not tag.startswith(("torchdock/base:", "torchdock/verify:")):
            groups.setdefault(kind(tag), []).append(tag)
    found = {}
    for name, tags in groups.items():
        tags.sort(key=lambda tag: (tag in facts.current, since.get(tag, 0.0)), reverse=True)
        for tag in tags[:keep]:
            which = "the image of this tree" if tag in facts.current else f"the newest of {name}"
            found[tag] = (
                f"{which}; --keep {keep} leaves so many of each variant"
                if keep > 1
                else (f"{which}; --keep 0 removes it too")
            )
    return found


def kind(tag: str) -> str:
    """Variant and target of an image's name: ``cu130`` or ``cu130-devel``."""
    repository, _, version = tag.removeprefix("torchdock/").partition(":")
    target = version.partition("-")[2]
    return f"{repository}-{target}" if target else repository


def _held(facts: Facts, image: Image, tag: str, left: Sequence[Container]) -> str:
    """Who else uses an image, in words; empty where nobody does."""
    others = facts.others(tag)
    container = _container_of(facts, image, left)
    if others:
        names = sorted({user_of(use, facts.uid) for use in others})
        return f"used by {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return container


def _container_of(facts: Facts, image: Image, left: Sequence[Container]) -> str:
    one = next((one for one in left if one.image == image.id), None)
    return f"the container {one.name} uses it" if one is not None else ""


def user_of(use: Use, uid: int) -> str:
    """Whose use it is: another user, or this one's other clone by its folder."""
    return f"your clone {use.root}" if use.uid == uid else user_name(use.uid)


def user_name(uid: int) -> str:
    """The name of a user; the number of one without a passwd entry."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"UID {uid}"


def _plan_build_cache(facts: Facts, images_go: bool) -> _Part:
    """What it shares with images that go can go after them, and is counted with them: what that is the engine knows."""
    going = [one for one in buildcache.removable(facts.steps) if images_go or not one.shared]
    own = [one for one in going if not one.shared]
    rest = [one for one in buildcache.ours(facts.steps) if not one.shared and one not in own]
    item = Item("build-cache", "torchdock's builds", sum(one.bytes for one in own), "", steps=tuple(going))
    why = f"{_steps(own)} that no image stands on, whoever built them" + ("; those of the images, too" * images_go)
    stays = replace(item, bytes=sum(one.bytes for one in rest), steps=(), why=f"{_steps(rest)} that {STEPS_USED}")
    return [replace(item, why=why)] if going else [], [stays] if rest else [], ()


def _steps(found: Sequence[Record]) -> str:
    return f"{len(found)} step{'s' * (len(found) != 1)}"


def _plan_cache(facts: Facts, left: Sequence[Container]) -> _Part:
    if facts.cache is None:
        return [], [], ()
    item = Item("cache", facts.cache.name, facts.cache.bytes, "downloads and compiled kernels of all your clones")
    holder = next((one for one in left if facts.cache.name in one.volumes), None)
    if facts.cache.labels.get(f"{LABEL}.user") != str(facts.uid):
        why = "it has no label of yours; if it is, `docker volume rm` removes it"
        return [], [replace(item, why=why)], ()
    if holder is not None:
        return [], [replace(item, why=f"the container {holder.name} uses it")], ()
    return [replace(item, dear=True)], [], ()


def _plan_files(facts: Facts, left: Sequence[Container]) -> _Part:
    busy = {folder for one in left for folder in one.folders}
    items, kept = [], []
    for name in KEPT_FOLDERS:
        found = [entry for entry in facts.entries if entry.path.parent.name == name]
        going = [entry for entry in found if entry.uid == facts.uid and str(entry.path) not in busy]
        if going:
            paths = tuple(entry.path for entry in going)
            told = f"{len(going)} of them" if len(going) > 1 else paths[0].name
            items.append(Item(name, str(paths[0].parent), sum(one.bytes for one in going), told, paths=paths))
        for entry in found:
            if entry not in going:
                why = "a container writes there" if entry.uid == facts.uid else f"belongs to {user_name(entry.uid)}"
                kept.append(Item(name, str(entry.path), entry.bytes, why))
    return items, kept, ()


# --- act --------------------------------------------------------------------------------------------------------------


def confirm(planned: Plan, reporter: Reporter, *, yes: bool) -> None:
    """Ask before something goes that nobody can bring back.

    Raises:
        InputError: there is no terminal to ask on, and ``yes`` was not said.
        TorchdockError: the answer was no.
    """
    dear = [item for item in planned.items if item.dear]
    if yes or not dear:
        return
    names = ", ".join(f"{item.what} {item.name}" for item in dear)
    if not (sys.stdin.isatty() and reporter.console.is_terminal):
        raise InputError(f"This cannot be undone: {names} would go. Add --yes if that is meant. Nothing was removed.")
    try:
        answer = reporter.console.input(f"This cannot be undone: {names}. Remove? \\[y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise TorchdockError("Nothing was removed.")


def remove(engine: Engine, state: CloneState, facts: Facts, planned: Plan) -> tuple[list[Item], list[Item]]:
    """Remove what was planned; each thing is looked at once more right before, and nothing is forced.

    Returns:
        What went, and what stayed after all, with the reason.
    """
    done: list[Item] = []
    kept: list[Item] = []
    running = [item.id for item in planned.items if item.running]
    if running:  # all at once: each may take its grace
        capture([engine.cli, "stop", *running], timeout=STOP_SECONDS + 30)
    for item in planned.items:
        if item.what == "build-cache":
            went, left_over = _remove_steps(engine, item)
            done, kept = [*done, *went], [*kept, *left_over]
            continue
        if item.what == "container":
            why = _remove_container(engine, item)
        elif item.what == "image":
            why = _remove_image(engine, facts, item)
            if not why:
                state.forget(item.name)
        elif item.what == "cache":
            why = _refused(engine.client.api.remove_volume, item.name)
        else:
            why = _remove_files(item, facts.uid)
        done, kept = ([*done, item], kept) if not why else (done, [*kept, replace(item, why=why)])
    left = {item.name for item in kept}
    for use in planned.uses:
        if use.image not in left:
            _refused(engine.client.api.remove_volume, use.volume)
    return done, kept


def _refused(act: Any, *words: Any, **options: Any) -> str:
    """Why the engine refused, or an empty string; what is gone already is no refusal."""
    import docker.errors

    try:
        act(*words, **options)
    except docker.errors.NotFound:
        return ""
    except docker.errors.APIError as error:
        said = " ".join(str(error.explanation or error).split())
        return "" if "already in progress" in said else said
    return ""


def _remove_container(engine: Engine, item: Item) -> str:
    # Without force: one that was started in the meantime stays.
    return _refused(engine.client.api.remove_container, item.id, force=False)


def _remove_image(engine: Engine, facts: Facts, item: Item) -> str:
    found = engine.image(item.name)
    if found is None:
        return ""
    if found.id != item.id:
        return "it was built anew in the meantime"
    now = replace(facts, uses=uses.gather(engine))
    holder = next((row for row in engine.client.api.containers(all=True) if row["ImageID"] == item.id), None)
    if others := now.others(item.name):
        return f"used by {user_of(others[0], facts.uid)}"
    if holder is not None:
        return f"the container {str(holder['Names'][0]).lstrip('/')} uses it"
    return _refused(engine.client.api.remove_image, item.name, force=False, noprune=True)


def _remove_steps(engine: Engine, item: Item) -> tuple[list[Item], list[Item]]:
    """What went of it, with its bytes, and what did not; an image's bytes are counted with the image."""
    gone, refused = buildcache.prune(engine, item.steps)
    there = {one.id for one in buildcache.gather(engine)} if len(gone) < len(item.steps) else set()
    own = [one for one in item.steps if not one.shared]
    rest = [one for one in own if one.id in there]
    went = replace(item, bytes=sum(one.bytes for one in own if one.id in gone))
    why = refused or f"{_steps(rest)} that {STEPS_USED}, by now"
    left = replace(item, bytes=sum(one.bytes for one in rest), why=why)
    return [went] if gone else [], [left] if rest else []


def _remove_files(item: Item, uid: int) -> str:
    failed = ""
    for path in item.paths:
        try:
            found = path.lstat()
            if found.st_uid != uid:
                failed = f"{path} belongs to {user_name(found.st_uid)}"
            elif stat.S_ISDIR(found.st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            failed = f"{error.filename or path}: {error.strerror}"
    return failed


# --- what people read -------------------------------------------------------------------------------------------------


def show(planned: Plan, reporter: Reporter) -> None:
    """What goes and how much that is, then what stays and why."""
    if planned.items:
        rows = [_row(item) for item in planned.items]
        reporter.table("", ("goes", "", "size", ""), [*rows, ("total", "", decimal(planned.bytes), "")])
    if planned.kept:
        reporter.table("", ("stays", "", "size", ""), [_row(item) for item in planned.kept])
    if any(item.why == ORPHAN for item in planned.kept):
        reporter.say("Where you know that nobody needs an image, `docker image rm NAME` removes it")


def _row(item: Item) -> tuple[str, str, str, str]:
    return item.what, item.name, "?" if item.bytes is None else decimal(item.bytes), item.why


def outdated(planned: Plan, variant: str) -> str:
    """One line about older images of a variant that lie around; empty where there are none. Pure."""
    old = [item for item in planned.items if item.what == "image" and kind(item.name).partition("-")[0] == variant]
    if not old:
        return ""
    took = decimal(sum(item.bytes or 0 for item in old))
    images = "1 older image" if len(old) == 1 else f"{len(old)} older images"
    return f"{images} of {variant} on this machine, {took} that no other shares: `invoke clean --images` removes them"
