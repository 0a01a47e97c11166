"""BuildKit's cache: which of its records torchdock's builds made, and their removal, one by one.

An engine has one cache for all its users, and a record names neither a user nor a clone but the step that made it, so
torchdock's steps are known by their commands (docker/*.Dockerfile). What an image stands on is shared with that image,
takes no room of its own, and stays: the engine itself refuses to remove it, and what a build uses or another record
stands on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from torchdock.engine import Engine

# Those of earlier Dockerfiles too: their records lie in the cache until somebody removes them.
SCRIPTS = ("debian", "devel", "download", "merge", "pack", "suite", "system", "uv", "wheels", "workspace")
STEP = re.compile(
    rf"(cached )?mount \S+ from exec /bin/sh -c sh /run/({'|'.join(SCRIPTS)})\.sh( .*)?"
    r"|\[torchdock-base 1/1\] ADD rootfs\.tar /"
)
# Many a Dockerfile has it: torchdock's is the one that stands on a step of torchdock's.
FOLLOWING = re.compile(r"\[\S+ \d+/\d+\] WORKDIR /workspace")


@dataclass(frozen=True)
class Record:
    """What a step of a build left in the cache, anybody's.

    Attributes:
        parents: the records that it stands on.
        in_use: a build that runs has it.
        shared: an image stands on it.
    """

    id: str
    description: str
    bytes: int
    parents: tuple[str, ...] = ()
    in_use: bool = False
    shared: bool = False


def gather(engine: Engine) -> tuple[Record, ...]:
    """All records, everybody's."""
    return tuple(
        Record(
            id=row["ID"],
            description=row.get("Description") or "",
            bytes=int(row.get("Size") or 0),
            # Docker's own name of it begins with a blank, by a slip that has become its interface.
            parents=tuple(row.get(" Parents") or row.get("Parents") or ()),
            in_use=bool(row.get("InUse")),
            shared=bool(row.get("Shared")),
        )
        for row in engine.disk_use("build-cache")
    )


def ours(records: Sequence[Record]) -> list[Record]:
    """Those that torchdock's builds made, whoever built, each before what it stands on. Pure.

    What nothing but them stands on was got for them: a base that was pulled, the layers below a workspace's.
    """
    children = _children(records)
    steps = {one.id for one in records if STEP.fullmatch(one.description)}
    found = steps | {one.id for one in records if FOLLOWING.fullmatch(one.description) and steps & {*one.parents}}
    by_id = {one.id: one for one in records}
    order = [one for one in TopologicalSorter(children).static_order() if one in by_id]
    for one in order:
        if children[one] and children[one] <= found:
            found.add(one)
    return [by_id[one] for one in order if one in found]


def removable(records: Sequence[Record]) -> list[Record]:
    """Those of ours that no build uses and no record that stays stands on, each before what it stands on. Pure.

    Shared ones among them can go when the images that stand on them are gone.
    """
    children = _children(records)
    going: dict[str, Record] = {}
    for one in ours(records):
        if not one.in_use and children[one.id] <= going.keys():
            going[one.id] = one
    return list(going.values())


def _children(records: Iterable[Record]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {one.id: set() for one in records}
    for one in records:
        for parent in one.parents:
            found.setdefault(parent, set()).add(one.id)
    return found


def spare(records: Sequence[Record]) -> int:
    """How many bytes torchdock's builds hold that no image stands on. Pure."""
    return sum(one.bytes for one in removable(records) if not one.shared)


def prune(engine: Engine, records: Iterable[Record]) -> tuple[frozenset[str], str]:
    """Remove these records, in this order, as far as the engine finds no image, build or record that needs them.

    Returns:
        The IDs of those that went, and why the engine would remove no more, else an empty string.
    """
    import docker.errors

    gone: set[str] = set()
    for one in records:
        # The filter is a regular expression, and one call takes one. Without `all` what an image stands on stays.
        which: Any = {"id": f"^{one.id}$"}
        try:
            told = engine.client.api.prune_builds(filters=which)
        except docker.errors.APIError as error:
            return frozenset(gone), " ".join(str(error.explanation or error).split())
        gone |= {*(told.get("CachesDeleted") or ())}
    return frozenset(gone), ""
