"""From docker/requirements.in and the rows of docker/variants.toml to locks, by uv; moves no version unasked.

torch and torchvision come from the variant's index, everything else from the Python package index: the torch indexes
carry stale copies of torch's dependencies, and one that is found there first would be taken.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from torchdock import devel, locks, sizes, sources, variants
from torchdock.console import Reporter
from torchdock.errors import InputError, TorchdockError, did_you_mean, read_text
from torchdock.locks import Laid, Pin
from torchdock.process import capture
from torchdock.sources import Reach, Sources
from torchdock.variants import Variant

PLATFORM = "{}-manylinux_2_28"  # what the wheels of torch are made for; Debian 13 is younger
# What people have set for projects of their own and would move versions here, or bring packages that a build, which
# is given the indexes of `sources` alone, could not find again.
STEERING = (
    *("UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_NO_INDEX", "UV_INDEX_STRATEGY"),
    *("UV_TORCH_BACKEND", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_EXCLUDE", "UV_EXCLUDE_NEWER", "UV_PRERELEASE"),
    *("UV_RESOLUTION", "UV_FORK_STRATEGY", "UV_NO_SOURCES", "UV_NO_BINARY", "UV_ONLY_BINARY", "UV_WORKING_DIR"),
)
UNCHANGED = "The locks are unchanged."


@dataclass(frozen=True)
class Refreshed:
    """What resolving found; nothing is written yet.

    Attributes:
        files: what is to be written (:func:`torchdock.locks.replace`): only what differs from what is there.
        differences: (package, was, is) of each variant that was resolved.
        left: why a variant was left as it is.
        layers: which layer each package of a variant of the clone is in now.
    """

    files: dict[Path, str | None] = field(default_factory=dict)
    differences: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    layers: dict[str, Laid] = field(default_factory=dict)


def refresh(
    root: Path, given: Sources, reporter: Reporter, *, variant: str | None = None, upgrade: str | bool | None = None
) -> Refreshed:
    """Resolve every variant, or the one that is named; writes nothing.

    Without a name, a variant whose index cannot be reached is left as it is, which is said. ``upgrade``: a package to
    move, True for all of them, None to move nothing that need not move.

    Raises:
        InputError: the requirements or the package to upgrade are wrong, or cannot be satisfied.
        TorchdockError: an index cannot be reached, or refuses its credentials.
    """
    chosen = list(variants.read(root).values()) if variant is None else [variants.get(root, variant)]
    asked = locks.requirements(root)
    old = {row.name: locks.read(root, row.name) for row in chosen}
    for row in chosen:
        _refuse_conflicts(asked, row)
    if isinstance(upgrade, str):
        known = [*old.values(), *(_devel(root, row) for row in chosen)]
        upgrade = _known(upgrade, [*(name for pins in known for name in pins), *_names(asked.values())])
    seeds = _tools(root)
    digest = locks.digest(asked.values())
    found, told = Refreshed(), sizes.Sizes(given)
    for row in chosen:
        reach = _reach(given, row)
        if not reach.ok:
            why = f"{_index_label(given, row)}: {reach.why}"
            if variant is not None:
                raise TorchdockError(f"The variant {row.name} cannot be resolved, {why}. {reach.remedy} {UNCHANGED}")
            found.left[row.name] = why
            words = (f"{row.name} is left as it is, {why}.", reach.remedy, _left(root, row, digest))
            reporter.fallback(" ".join(word for word in words if word))
            continue
        with reporter.step(f"Resolving {row.name}"):
            pins = resolve(row, asked.values(), seeds | old[row.name], given, upgrade)
            there = locks.texts(root, row)
            laid = locks.lay(row, pins, there, upgraded=upgrade is True)
            download = {layer: told.of(row, layer, laid.layers[layer]) for layer in laid.changed}
            texts = locks.files(root, row, laid, digest, there, download)
            found.layers[row.name] = laid
            rows = locks.difference(old[row.name], pins)
            if devel.exists(row):
                before = _devel(root, row)
                wanted = [Requirement(line) for line in devel.devel_requirements(row, pins)]
                added = devel.added(row, pins, resolve(row, wanted, before | pins, given, upgrade))
                texts[devel.file(root, row)] = devel.text(row, added)
                rows += locks.difference(before, added)
        found.differences[row.name] = rows
        for path, text in texts.items():
            if text is None or not path.is_file() or path.read_bytes() != text.encode():
                found.files[path] = text
    return found


def resolve(
    variant: Variant,
    asked: Iterable[Requirement],
    locked: Mapping[str, Pin],
    given: Sources,
    upgrade: str | bool | None = None,
) -> dict[str, Pin]:
    """The pins of one variant, the same for all its architectures, keeping versions that are locked.

    Raises:
        InputError: the requirements cannot be satisfied, or differ between architectures; the text says which.
        TorchdockError: an index cannot be reached, or refuses its credentials.
    """
    # The folder is this user's alone: the index in it may carry a token.
    with tempfile.TemporaryDirectory(prefix="torchdock-lock-") as name:
        project, wanted = Path(name, "pyproject.toml"), Path(name, "requirements.in")
        project.write_text(_project(variant, given), encoding="utf-8")
        wanted.write_text("".join(f"{requirement}\n" for requirement in asked), encoding="utf-8")
        results = {}
        for architecture in variant.architectures:
            found = compile_one(variant, architecture, [str(project), str(wanted)], locked, given, upgrade)
            if isinstance(found, Unsolved):
                raise _explain(found.text, variant, given)
            results[architecture] = found
    return same(results)


@dataclass(frozen=True)
class Unsolved:
    """What uv said where it found no versions; it may name an index with its token (:meth:`Sources.redact`)."""

    text: str


def compile_one(
    variant: Variant,
    architecture: str,
    inputs: Sequence[str],
    locked: Mapping[str, Pin],
    given: Sources,
    upgrade: str | bool | None = None,
) -> dict[str, Pin] | Unsolved:
    """The pins of what ``inputs`` (words for ``uv pip compile``) ask for, for one architecture, wheels alone.

    Versions that are locked are kept, but for ``upgrade`` (see :func:`refresh`).
    """
    moved = ["--upgrade-package", upgrade] if isinstance(upgrade, str) else ["--upgrade"] if upgrade else []
    env = {name: value for name, value in given.environment().items() if name not in STEERING}
    with tempfile.TemporaryDirectory(prefix="torchdock-lock-") as name:
        output = Path(name, "lock.txt")
        # uv keeps the versions, and the hashes, that it finds in its output file.
        output.write_text("".join(pin.text for pin in locked.values()), encoding="utf-8")
        argv = [str(Path(sys.executable).with_name("uv")), "pip", "compile", *inputs]
        argv += ["--python", sys.executable, "--no-python-downloads", "--python-version", variant.python]
        argv += ["--python-platform", PLATFORM.format(architecture), "--only-binary", ":all:", "--generate-hashes"]
        argv += ["--no-config", "--no-header", "--no-annotate", "--quiet", "--color", "never"]
        done = capture([*argv, "--output-file", str(output), *moved], timeout=600, env=env)
        if done.code != 0:
            return Unsolved(done.err)
        return locks.parse(output.read_text(), architecture)


def _project(variant: Variant, given: Sources) -> str:
    """A project that depends on the variant's torch; ``explicit``: its index is asked for these two alone."""
    lines = ["[project]", f'name = "{variant.name}"', 'version = "0"', f'requires-python = "=={variant.python}.*"']
    lines += [f'dependencies = ["torch=={variant.torch}", "torchvision=={variant.torchvision}"]']
    if variant.index:
        url = _torch_url(given, variant).replace("\\", "\\\\").replace('"', '\\"')
        lines += ["[tool.uv.sources]", 'torch = { index = "torch" }', 'torchvision = { index = "torch" }']
        lines += ["[[tool.uv.index]]", 'name = "torch"', f'url = "{url}"', "explicit = true"]
    return "\n".join(lines) + "\n"


def _torch_url(given: Sources, variant: Variant) -> str:
    return given.torch_index_url(variant.index_url.removesuffix(f"/{variant.index}"), variant.index)


def same(results: Mapping[str, Mapping[str, Pin]]) -> dict[str, Pin]:
    """One lock of the results for each architecture; a version's hashes are those of all of them.

    Raises:
        InputError: they differ.
    """
    (first, pins), *others = results.items()
    merged = dict(pins)
    for architecture, theirs in others:
        rows = locks.difference(pins, theirs)
        if rows:
            raise InputError(
                f"These packages resolve differently on {first} and {architecture}: "
                f"{', '.join(name for name, *_ in rows)}. One lock serves both; constrain them in "
                f"{locks.REQUIREMENTS}. {UNCHANGED}"
            )
        for name, pin in theirs.items():
            head, *hashes = merged[name].text.splitlines()
            words = {word.strip(" \\") for word in [*hashes, *pin.text.splitlines()[1:]]}
            entry = " \\\n    ".join([head.removesuffix(" \\"), *sorted(words)]) + "\n"
            merged[name] = Pin(name, pin.version, entry)
    return merged


def _refuse_conflicts(asked: Mapping[int, Requirement], variant: Variant) -> None:
    pinned = {"torch": variant.torch, "torchvision": variant.torchvision}
    for number, requirement in asked.items():
        version = pinned.get(canonicalize_name(requirement.name))
        if version and not requirement.specifier.contains(Version(version), prereleases=True):
            raise InputError(
                f"{locks.REQUIREMENTS}:{number} asks for {requirement}, and the variant {variant.name} has "
                f"{canonicalize_name(requirement.name)} {version}. Remove that line: the torch line of a variant is "
                f"changed in its row of docker/variants.toml. {UNCHANGED}"
            )


def _known(name: str, known: Sequence[str]) -> str:
    """The package to upgrade as it is spelt in locks."""
    wanted = canonicalize_name(name)
    if wanted in ("torch", "torchvision"):
        raise InputError(
            f"{wanted}'s version belongs to the variant: change it in the variant's row of docker/variants.toml, then "
            f"`invoke lock`. {UNCHANGED}"
        )
    if wanted not in known:
        raise InputError(
            f"--upgrade {name}: no lock has this package.{did_you_mean(wanted, list(known))} A new package goes into "
            f"{locks.REQUIREMENTS}. {UNCHANGED}"
        )
    return wanted


def _names(asked: Iterable[Requirement]) -> list[str]:
    return [canonicalize_name(requirement.name) for requirement in asked]


def _tools(root: Path) -> dict[str, Pin]:
    """The tools of all locks, the default variant's above the others': a new lock takes the versions that are known."""
    names = [name for name in variants.read(root) if name != variants.DEFAULT]
    seeds: dict[str, Pin] = {}
    for variant in (*names, variants.DEFAULT):
        seeds |= {name: pin for name, pin in locks.read(root, variant).items() if locks.layer_of(name) == "tools"}
    return seeds


def _devel(root: Path, variant: Variant) -> dict[str, Pin]:
    """The pins of the devel layer; empty where it has no lock yet."""
    path = devel.file(root, variant)
    return (
        locks.parse(read_text(path, str(path.relative_to(root))), str(path.relative_to(root))) if path.is_file() else {}
    )


def _reach(given: Sources, variant: Variant) -> Reach:
    """Whether the variant's own index answers; the Python package index is everybody's and shows while resolving."""
    if not variant.index:
        return Reach(True)
    return sources.probe_torch_index(given, variant.index_url.removesuffix(f"/{variant.index}"), variant.index)


def _index_label(given: Sources, variant: Variant) -> str:
    return given.torch_index.label if given.torch_index is not None else variant.index_url.partition("://")[2]


def _left(root: Path, variant: Variant, digest: str) -> str:
    if not locks.folder(root, variant.name).is_dir():
        return "It has no lock yet."
    if locks.is_older(root, variant.name, digest):
        return f"Its lock is now older than {locks.REQUIREMENTS}: lock it where that index can be reached."
    return ""


def _explain(text: str, variant: Variant, given: Sources) -> TorchdockError:
    """What a failed resolve means."""
    told = plainly(text, given)
    error = unreachable(told, variant, given)
    if error is not None:
        return error
    advice = f"Change {locks.REQUIREMENTS}."
    if "registry" in told:
        advice = "Correct its name; a mirror may also not carry it, or be no package index."
    elif re.search(r"\btorch(vision)?\b", told):
        advice += " The torch line of a variant is changed in its row of docker/variants.toml."
    told = told.partition("cause: ")[2] or told
    return InputError(
        f"{locks.REQUIREMENTS} could not be resolved for {variant.name}: {told[:800]} {advice} {UNCHANGED}"
    )


def plainly(text: str, given: Sources) -> str:
    """What uv said, without secrets, frames and colours, on one line."""
    return " ".join(re.sub(r"[^\x20-\x7e]", " ", given.redact(text)).split())


def unreachable(told: str, variant: Variant, given: Sources) -> TorchdockError | None:
    """The error where a resolve failed for an index and not for the versions that were asked for, else None."""
    unsolved = "No solution found" in told
    # An index is asked itself. Of a token that is refused, uv says "no solution" too, and gives this as a hint.
    if unsolved and not re.search(r"credentials|\b40[137]\b", told):
        return None
    reach, label = Reach(True), "An index"
    if given.index is not None:
        reach, label = sources.probe(given, f"{given.index.url.rstrip('/')}/numpy/"), given.index.label
    if reach.ok and variant.index:
        reach, label = _reach(given, variant), _index_label(given, variant)
    if reach.ok:
        reach, label = sources.judge_failure(told.replace("Expired", "expired")), "An index"
    return TorchdockError(f"{variant.name} could not be resolved, {label}: {reach.why}. {reach.remedy} {UNCHANGED}")
