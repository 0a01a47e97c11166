"""An image that was built elsewhere: looked at, compared with what this clone's lock gives, and only then named.

What can be seen without building: the configuration, the files that come from the clone (suite, locks, entrypoint), and
the Debian packages. It tells a mistake (another tree, variant, architecture or day); that every byte is right, `invoke
verify` proves by building it again.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from torchdock import debian, image, uses
from torchdock.engine import Engine
from torchdock.errors import TorchdockError
from torchdock.image import BuildPlan, Built
from torchdock.saved import printable
from torchdock.state import CloneState
from torchdock.variants import Variant

HOME = "/opt/torchdock"  # where the suite, the locks and the entrypoint are in an image (docker/layers/suite.sh)
DPKG = "/var/lib/dpkg/status"


@dataclass(frozen=True)
class Contents:
    """What is looked at of an image that was built elsewhere; nothing of it is run.

    Attributes:
        created: of its configuration, as it stands there.
        steps: what made its layers, the oldest first (``created_by``).
        files: below :data:`HOME`, a path to the SHA-256 of its content.
        packages: Debian's, name to version.
    """

    id: str
    layers: tuple[str, ...]
    variant: str
    architecture: str
    created: str
    steps: tuple[str, ...]
    files: Mapping[str, str]
    packages: Mapping[str, str]


@dataclass(frozen=True)
class Expected:
    """What this clone's lock gives, as far as an image shows it without being built again.

    Attributes:
        files: every file that the last layer takes from the clone, a path to the SHA-256 of its content.
        suite: those of them that have to be there.
        packages: Debian's, name to version, those on top of any base; ``base``: those of a base that was made.
    """

    files: Mapping[str, str]
    suite: frozenset[str]
    packages: Mapping[str, str]
    base: Mapping[str, str]


def expected(root: Path, variant: Variant, target: str, architecture: str) -> Expected:
    """Reads the clone, changes nothing.

    Raises:
        InputError: the lock of Debian packages is damaged.
    """
    files = {path.relative_to(root).as_posix(): sha256(path.read_bytes()) for path in image.input_files(root, variant)}
    locked = f"docker/locks/{variant.name}/"
    ours = ("src/torchdock/inside/", "tests/container/", "docker/entrypoint.sh", locked)
    suite = {name for name in files if name.startswith(ours)}
    if target != image.DEVEL:
        suite.discard(f"{locked}devel.txt")
    lock = debian.read(root, architecture)
    pairs = [(one.section, one.name, one.version) for one in (lock.packages if lock is not None else ())]
    system = {name: version for section, name, version in pairs if section != "base"}
    base = {name: version for section, name, version in pairs if section == "base"}
    return Expected(files, frozenset(suite), system, base)


def mismatches(seen: Contents, wanted: BuildPlan, given: Expected, architecture: str) -> list[str]:
    """What of an image is not as this plan builds it, a few words each; none where all that is seen fits. Pure."""
    found = []
    variant = wanted.variant
    if seen.variant != variant.name:
        found.append(f"it says that it is {seen.variant or 'none of torchdock’s'}, not {variant.name}")
    if seen.architecture != debian.ARCHITECTURES[architecture]:
        found.append(f"it is for {seen.architecture}, not {debian.ARCHITECTURES[architecture]}")
    if _seconds(seen.created) != variant.base.epoch:
        found.append(f"it says that it is of {seen.created}, and a build says {_day(variant.base.epoch)}")
    devel = any("/run/devel.sh" in step for step in seen.steps)
    if devel != (image.target(wanted) == image.DEVEL):
        found.append("it has the compiler" if devel else "it has no compiler")
    if _made_here(seen) != (wanted.base.source == "bootstrapped"):
        found.append(f"it does not stand on {wanted.base.name}")
    differing = sorted(
        {name for name, digest in seen.files.items() if _ours(name) and given.files.get(name) != digest}
        | {name for name in given.suite if name not in seen.files}
    )
    if differing:
        found.append(f"{listed(differing)} {'differs' if len(differing) == 1 else 'differ'} from this clone's")
    locked = {**given.base, **given.packages} if _made_here(seen) else given.packages
    moved = sorted(name for name, version in locked.items() if seen.packages.get(name) != version)
    if _made_here(seen):
        moved += sorted(seen.packages.keys() - locked.keys())
    if moved:
        found.append(f"the Debian packages {listed(moved)} are not those of the lock")
    return found


def _ours(path: str) -> bool:
    """A file that comes from the clone, and not one that the last layer makes."""
    return path.startswith(("src/", "tests/", "docker/"))


def _made_here(seen: Contents) -> bool:
    """Its base was made from Debian packages: by the step of docker/base.Dockerfile."""
    return bool(seen.steps) and "ADD rootfs.tar /" in seen.steps[0]


def listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(printable(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _seconds(created: str) -> int | None:
    with suppress(ValueError):
        return int(datetime.fromisoformat(re.sub(r"(\.\d+)?Z$", "+00:00", created)).timestamp())
    return None


def _day(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def look(engine: Engine, reference: str) -> Contents:
    """What there is to see of an image of the engine: its configuration, and files out of a container that never runs.

    Takes about half a second.
    """
    import docker.errors

    found = engine.client.images.get(reference)
    steps = tuple(str(row.get("CreatedBy") or "") for row in reversed(found.history()))
    labels = found.labels or {}
    layers = tuple((found.attrs.get("RootFS") or {}).get("Layers") or ())
    api = engine.client.api
    container = api.create_container(str(found.id), command=["true"], entrypoint=[])["Id"]
    try:
        trees = {}
        for path in (HOME, DPKG):
            try:
                chunks, _ = api.get_archive(container, path)
                trees[path] = b"".join(chunks)
            except docker.errors.NotFound:
                trees[path] = b""
    finally:
        engine.remove_container(container)
    return Contents(
        id=str(found.id),
        layers=layers,
        variant=str(labels.get("dev.torchdock.variant") or ""),
        architecture=str(found.attrs.get("Architecture") or ""),
        created=str(found.attrs.get("Created") or ""),
        steps=steps,
        files=_digests(trees[HOME]),
        packages=installed(next(iter(_files(trees[DPKG]).values()), b"").decode(errors="replace")),
    )


def _digests(tar: bytes) -> dict[str, str]:
    """The files below :data:`HOME` in the archive of it."""
    folder = f"{HOME.rpartition('/')[2]}/"
    return {name.removeprefix(folder): sha256(content) for name, content in _files(tar).items()}


def _files(tar: bytes) -> dict[str, bytes]:
    """The regular files of an archive."""
    if not tar:
        return {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = [(member.name, archive.extractfile(member)) for member in archive if member.isreg()]
        return {name: content.read() for name, content in members if content is not None}


def installed(status: str) -> dict[str, str]:
    """The packages that dpkg's status file says are installed, name to version. Pure."""
    found = {}
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", stanza, re.M))
        if fields.get("Status", "").endswith(" installed") and "Package" in fields:
            found[fields["Package"]] = fields.get("Version", "")
    return found


def check(engine: Engine, state: CloneState, reference: str, candidates: Sequence[BuildPlan]) -> BuildPlan:
    """Which of these plans this image is what it builds; looks, and runs nothing.

    Raises:
        TorchdockError: of none of them; says what does not fit.
    """
    seen = look(engine, reference)
    architecture = engine.architecture
    told: list[list[str]] = []
    for candidate in candidates:
        given = expected(state.root, candidate.variant, image.target(candidate), architecture)
        told.append(mismatches(seen, candidate, given, architecture))
        if not told[-1]:
            return candidate
    said = "; ".join(sorted(told, key=len)[0])
    raise TorchdockError(
        f"{reference} is not what this clone's lock gives: {said}. It is not used, and nothing of it was kept. Check "
        "out the tree that it was built from, or build this one's with `invoke build`."
    )


def tag(engine: Engine, source: str, name: str) -> None:
    repository, _, tag = name.rpartition(":")
    engine.client.api.tag(source, repository, tag)


def untag(engine: Engine, name: str) -> None:
    """Take a name from an image; with its last name it goes, unless a container stands on it."""
    import docker.errors

    with suppress(docker.errors.ImageNotFound, docker.errors.APIError):
        engine.client.images.remove(name)


def adopt(
    engine: Engine, state: CloneState, found: BuildPlan, reference: str, origin: str, seconds: float, *, new: bool
) -> Built:
    """Give a checked image its name and, where the engine had none by it, note where it came from.

    Raises:
        TorchdockError: the engine has another image by that name.
    """
    facts = engine.image(reference)
    assert facts is not None
    has = engine.image(found.tag)
    if has is not None and not engine.same(has, facts):
        raise TorchdockError(
            f"This engine has {found.tag} already, and what came from {origin} differs from it, which it should not: "
            f"{has.id[7:19]} here, {facts.id[7:19]} there. Nothing was changed. `docker pull` it, and `invoke verify "
            "IMAGE` with its name says what differs."
        )
    if new:
        if has is None:
            tag(engine, facts.id, found.tag)
        why = uses.mark(engine, state, found.tag, found.base.reference, origin)
        if why:
            untag(engine, found.tag)
            raise TorchdockError(f"The engine took no note of where {found.tag} came from: {why}. Run it again.")
    built = Built(
        variant=found.variant.name,
        image=found.tag,
        id=facts.id,
        layers=facts.layers,
        seconds=seconds,
        built=False,
        target=image.target(found),
        source=found.base.source,
        debian=found.base.debian,
        fallbacks=found.base.fallbacks(),
        base=found.base.reference,
        brought=origin,
    )
    if new:  # without `steps`: its layers are in no build cache
        record = {**built.document(), "when": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        state.write(state.path("builds", f"{found.label}-{found.tag.rpartition(':')[2]}.json"), record)
    return built
