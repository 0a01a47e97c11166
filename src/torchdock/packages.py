"""The packages that a workspace lists: their locks beside it, and the one more layer that they are on the environment.

The environment is taken as it is: its versions constrain what is resolved, and are left out of the result, so that the
layer holds only what is new and torch is never moved. ``invoke lock -w DIR`` resolves; nothing else does.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from torchdock import devel, image, launch, locks, resolver, variants, workspace
from torchdock.base import BaseChoice
from torchdock.console import Reporter
from torchdock.errors import InputError, TorchdockError, did_you_mean
from torchdock.image import BuildPlan, Meaning
from torchdock.locks import Header, Pin
from torchdock.resolver import Refreshed, Unsolved
from torchdock.sources import Sources
from torchdock.variants import Variant, numbers

FOLDER = "torchdock.locks"  # in the workspace, to be committed with it: <variant>.txt
LAYER = "workspace"
DOCKERFILE = "docker/workspace.Dockerfile"
# What decides the layer besides the environment's image and the lock.
SCRIPTS = ("finish.py", "common.sh", "wheels.sh", "workspace.sh")
NOTE = "# Written by `invoke lock -w` from torchdock.toml; change that, not this. Commit it with the project.\n"
LARGEST = 16 << 20  # bytes of a lock; a package may have a hundred hashes
UNCHANGED = "The workspace's locks are unchanged."


@dataclass(frozen=True)
class Layer:
    """What one workspace adds to one variant: at least one package.

    Attributes:
        folder: the workspace, absolute.
        text: the lock as it was read.
    """

    folder: Path
    variant: Variant
    text: str = field(repr=False)
    pins: Mapping[str, Pin] = field(repr=False)

    @property
    def versions(self) -> dict[str, str]:
        """The packages of the layer by name."""
        return {name: pin.version for name, pin in sorted(self.pins.items())}


def file(folder: Path, variant: Variant) -> Path:
    """Where the lock of a workspace for a variant is."""
    return folder / FOLDER / f"{variant.name}.txt"


# --- from a lock to a layer -------------------------------------------------------------------------------------------


def find(root: Path, folder: Path, variant: Variant, architecture: str) -> Layer | None:
    """What this workspace adds to a variant; None where it asks for nothing that the environment lacks.

    Reads files only. ``architecture`` as ``uname -m`` names it.

    Raises:
        InputError: what it asks for is wrong, or its lock is missing, damaged, for something else, or older than what
            it was made from; names the file and the remedy.
    """
    asked = workspace.read(folder).packages()
    if not asked:
        return None
    path = file(folder, variant)
    try:
        text = launch.read_file(path, LARGEST).decode("utf-8")
    except FileNotFoundError:
        raise _unfit(f"{folder} asks for packages that are not locked for {variant.name} yet", folder) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unfit(f"{path} cannot be read ({getattr(error, 'strerror', None) or 'it is no text'})", folder) from None
    found = locks.header(text)
    problem = _mismatch(found, variant, architecture)
    if not problem and found is not None:
        if found.requirements != locks.digest(asked):
            problem = f"is older than what {workspace.FILE} asks for"
        elif found.environment != _digest(_environment(root, variant)):
            problem = f"is for another state of the environment {variant.name}, which has been locked anew since"
    if problem:
        raise _unfit(f"{path} {problem}", folder)
    try:
        pins = locks.parse(text, str(path))
    except InputError:
        raise _unfit(f"{path} has a line that is no pinned package with its hash", folder) from None
    if twice := sorted({*pins} & {*locks.read(root, variant.name)}):
        raise _unfit(f"{path} has {', '.join(twice)}, which the environment has", folder)
    return Layer(folder, variant, text, pins) if pins else None


def _mismatch(found: Header | None, variant: Variant, architecture: str) -> str:
    """What a lock's header says it is for instead; empty where it fits."""
    if found is None or found.layer != LAYER:
        return "does not begin with the line that says what it is for (`# torchdock: …`)"
    if found.variant != variant.name:
        return f"is for the variant {found.variant}, not for {variant.name}"
    if found.python != variant.python:
        return f"is for Python {found.python}, and the variant {variant.name} has {variant.python}"
    if architecture not in found.architectures:
        return f"is for {', '.join(found.architectures)}, not for {architecture}: a package has no wheels for it"
    return ""


def _unfit(problem: str, folder: Path) -> InputError:
    return InputError(f"{problem}. Lock them: invoke lock -w {shlex.quote(str(folder))}")


def plan(
    root: Path, layer: Layer, environment: str, sources: Sources, *, builder: str, wishes: image.Wishes
) -> BuildPlan:
    """The build of the layer on the image of this name. Reads the inputs of the clone, changes nothing."""
    variant = layer.variant
    files = [root / DOCKERFILE, *(root / "docker/layers" / name for name in SCRIPTS)]
    lock = hashlib.sha256(layer.text.encode()).hexdigest()
    digest = image.digest_files(root, files, environment, lock, str(variant.base.epoch))
    tag = f"torchdock/{variant.name}-{LAYER}:{digest[:12]}"
    argv = image.command(builder, root / DOCKERFILE, LAYER, tag, variant.base.epoch)
    argv += ["--build-arg", f"ENVIRONMENT={environment}", "--build-arg", f"VARIANT={variant.name}"]
    argv += ["--build-context", f"lock={layer.folder / FOLDER}", *image.handed_over(sources, wishes)]
    return BuildPlan(variant, BaseChoice("environment", environment, environment), tag, (*argv, str(root)), root, LAYER)


def meanings(layer: Layer) -> tuple[Meaning, ...]:
    """What failures of the layer's build mean, where the workspace's lock and not the clone's is to blame."""
    again = f"invoke lock -w {shlex.quote(str(layer.folder))}"
    locked = shlex.quote(str(layer.folder / FOLDER))
    return (
        Meaning(
            image.OTHER_HASHES,
            f"What the index gives is not what {file(layer.folder, layer.variant)} names. If that file was edited by "
            # Locking again keeps the hashes that are there: what an index swaps must not pass unseen.
            f"hand, restore it, or make it from nothing: rm -r {locked} && {again}. If not, do not trust that index.",
        ),
        Meaning(
            image.NOT_FOUND,
            f"A package of {file(layer.folder, layer.variant)} is not in the index; a mirror may lag behind. Versions "
            f"that are there: {again} --upgrade",
        ),
    )


# --- from what is asked for to a lock ---------------------------------------------------------------------------------


def refresh(
    root: Path,
    folder: Path,
    given: Sources,
    reporter: Reporter,
    *,
    architecture: str,
    variant: str | None = None,
    upgrade: str | bool | None = None,
) -> Refreshed:
    """Resolve what a workspace asks for; writes nothing and moves no version unasked.

    For the variant that is named or pinned; else for every one that this clone has a lock of, since each host's GPU
    chooses among these. There, one for which it cannot be resolved is left out, which is said. ``architecture``: this
    host's; where a package has no wheels for another one, the lock is without that, which is said too. ``upgrade``: a
    package to move, True for all of them.

    Raises:
        InputError: what is asked for is wrong, contradicts the environment, or is not to be had as wheels.
        TorchdockError: the index cannot be reached, or refuses its credentials.
    """
    config = workspace.read(folder)
    asked = config.packages()
    rows = _rows(root, config.variant, variant)
    old = {row.name: _read(folder, row) for row in rows}
    if not asked:
        there = [file(folder, row) for row in variants.read(root).values() if file(folder, row).is_file()]
        if not there:
            raise InputError(
                f"{folder} asks for no packages. List them in its {workspace.FILE}, "
                f"`{workspace.KEYS['packages'][1]}`, then run it again."
            )
        return Refreshed(dict.fromkeys(there), {row.name: locks.difference(old[row.name], {}) for row in rows})
    if isinstance(upgrade, str):
        upgrade = _known(upgrade, asked, old.values())
    found = Refreshed()
    refusals: list[InputError] = []
    for row in rows:
        environment = _environment(root, row)
        # A variant takes the versions that others have: numbers should move with torch alone.
        seeds = {name: pin for pins in (*old.values(), old[row.name]) for name, pin in pins.items()}
        seeds = {name: pin for name, pin in seeds.items() if name not in environment}
        try:
            with reporter.step(f"Resolving {row.name}"):
                pins, served, short = _resolve(row, asked, environment, seeds, given, architecture, upgrade)
                own = {name: pin for name, pin in pins.items() if name not in locks.read(root, row.name)}
                _refuse_cuda(row, own)
        except InputError as refusal:
            refusals.append(refusal)
            found.left[row.name] = str(refusal)
            continue
        for other, why in short.items():
            reporter.fallback(f"{row.name}: the lock is not for {other}: {why}")
        said = Header(
            variant=row.name,
            layer=LAYER,
            python=row.python,
            architectures=served,
            requirements=locks.digest(asked),
            environment=_digest(environment),
        )
        text = said.line + NOTE + "".join(pin.text for _, pin in sorted(own.items()))
        found.differences[row.name] = locks.difference(old[row.name], own)
        path = file(folder, row)
        if not path.is_file() or path.read_bytes() != text.encode():
            found.files[path] = text
    if refusals and not found.differences:
        raise refusals[0]
    for name, why in found.left.items():
        reporter.fallback(f"{name} is left out, and launches with it are refused: {why}")
    return found


def _rows(root: Path, pinned: str | None, named: str | None) -> list[Variant]:
    """The variants that a workspace may be launched with."""
    if pinned is not None and named not in (None, pinned):
        raise InputError(f"The workspace pins the variant {pinned}, and {named} is asked for: leave --variant away.")
    wanted = named or pinned
    rows = [row for row in variants.read(root).values() if row.locked]
    if wanted is None:
        return rows
    row = variants.get(root, wanted)
    if not row.locked:
        raise InputError(
            f"The variant {row.name} has no lock in this clone yet, which a workspace's stands on: `invoke lock "
            f"--variant {row.name}` writes it."
        )
    return [row]


def _environment(root: Path, variant: Variant) -> dict[str, Pin]:
    """Every pin of a variant: its layers, and its devel layer, so that the workspace's fits on either image."""
    found = locks.read(root, variant.name)
    path = devel.file(root, variant)
    if path.is_file():
        name = str(path.relative_to(root))
        found |= locks.parse(path.read_text(encoding="utf-8"), name)
    return found


def _digest(environment: Mapping[str, Pin]) -> str:
    """12 hex digits of versions. Hashes do not count: an index that has one more file moves nothing."""
    lines = sorted(f"{name}=={pin.version}" for name, pin in environment.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _read(folder: Path, variant: Variant) -> dict[str, Pin]:
    """The pins that there are; a damaged lock counts for nothing, as it is about to be written anew."""
    try:
        return locks.parse(launch.read_file(file(folder, variant), LARGEST).decode("utf-8"), "")
    except (OSError, UnicodeDecodeError, InputError):
        return {}


def _known(name: str, asked: Iterable[Requirement], old: Iterable[Mapping[str, Pin]]) -> str:
    """The package to upgrade as it is spelt in locks."""
    known = sorted({canonicalize_name(one.name) for one in asked} | {one for pins in old for one in pins})
    wanted = canonicalize_name(name)
    if wanted not in known:
        raise InputError(
            f"--upgrade {name}: the workspace's locks do not have this package.{did_you_mean(wanted, known)} The "
            f"environment's own are upgraded without -w. {UNCHANGED}"
        )
    return wanted


def _resolve(
    variant: Variant,
    asked: Sequence[Requirement],
    environment: Mapping[str, Pin],
    locked: Mapping[str, Pin],
    given: Sources,
    here: str,
    upgrade: str | bool | None,
) -> tuple[dict[str, Pin], tuple[str, ...], dict[str, str]]:
    """(pins, architectures that they serve, why they do not serve the others), the environment's pins among them.

    This host's architecture must be served.
    """
    first, *others = sorted(variant.locked, key=lambda one: (one != here, one))
    results: dict[str, dict[str, Pin]] = {}
    short: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="torchdock-lock-") as name:
        wanted, fixed = Path(name, "requirements.in"), Path(name, "constraints.txt")
        wanted.write_text("".join(f"{one}\n" for one in asked), encoding="utf-8")
        fixed.write_text("".join(f"{one}=={pin.version}\n" for one, pin in environment.items()), encoding="utf-8")
        # torch's own index need not be reached: what torch and torchvision need is in the environment.
        for one in ("torch", "torchvision"):
            if one in environment:
                _stand_in(Path(name), one, environment[one].version)
        inputs = [str(wanted), "--constraints", str(fixed), "--find-links", name]
        for architecture in (first, *others):
            done = resolver.compile_one(variant, architecture, inputs, locked, given, upgrade)
            if isinstance(done, Unsolved):
                error = _explain(done.text, variant, architecture, environment, given)
                if architecture == first or not isinstance(error, InputError):
                    raise error
                short[architecture] = str(error)
                continue
            rows = locks.difference(results[first], done) if results else []
            if rows:
                short[architecture] = f"{', '.join(row[0] for row in rows)} would be of other versions there"
            else:
                results[architecture] = done
    served = tuple(one for one in variant.architectures if one in results)
    return resolver.same(results), served, short


def _stand_in(folder: Path, name: str, version: str) -> None:
    """An empty wheel of that name and version, without dependencies."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _refuse_cuda(variant: Variant, pins: Mapping[str, Pin]) -> None:
    """Libraries of two CUDAs in one process shadow each other; without CUDA they are gigabytes for nothing."""
    major = str(numbers(variant.cuda)[0]) if variant.cuda else ""
    foreign = [
        name
        for name in sorted(pins)
        if locks.layer_of(name) != "tools"
        and (not major or ((match := re.search(r"-cu(\d\d)$", name)) and match[1] != major))
    ]
    if foreign:
        cuda = f"CUDA {variant.cuda}" if variant.cuda else "no CUDA"
        raise InputError(
            f"What the workspace asks for brings {', '.join(foreign)}, and the variant {variant.name} has {cuda}. Ask "
            f"for a build of it that uses the variant's own libraries, or pin another variant. {UNCHANGED}"
        )


def _explain(
    text: str, variant: Variant, architecture: str, environment: Mapping[str, Pin], given: Sources
) -> TorchdockError:
    """What a failed resolve means."""
    told = resolver.plainly(text, given)
    error = resolver.unreachable(told, variant, given)
    if error is not None:
        return error
    cause = told.partition("hint: ")[0]
    cause = (cause.partition("cause: ")[2] or cause).strip()
    fixed = [
        f"{name} {pin.version}"
        for name, pin in sorted(environment.items())
        if re.search(rf"(?<![\w.-]){re.escape(name)}=={re.escape(pin.version)}(?![\w.+])", cause)
    ]
    if "registry" in cause:
        advice = "Correct its name; a mirror may also not carry it, or be no package index."
    elif re.search(r"no (usable )?wheels", cause):
        advice = (
            "A lock holds wheels alone, nothing is built from source: ask for a version that has one for Python "
            f"{variant.python} on {architecture}, or install it in the container (`pip install`)."
        )
    elif fixed:
        advice = (
            f"The environment has {', '.join(fixed)}, and a workspace adds to it and moves nothing in it: ask for "
            "versions that go with that."
        )
    else:
        advice = f"Change it in {workspace.FILE}."
    return InputError(
        f"What the workspace asks for cannot be resolved for {variant.name}: {cause[:800]} {advice} {UNCHANGED}"
    )
