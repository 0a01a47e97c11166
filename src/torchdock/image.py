"""From facts and a lock to an image: which bytes decide it, the plan of its build, and the build.

The name of an image holds the digest of everything that decides its content, so "is it built?" is one question to the
engine, and a change of any input is a new name.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torchdock import base as bases
from torchdock import debian, devel, locks, progress, rawjson, stages
from torchdock.base import DRIFT, LOCKED, BaseChoice
from torchdock.console import Reporter
from torchdock.engine import OUTPUT, Engine
from torchdock.errors import EngineError, TorchdockError
from torchdock.process import stream
from torchdock.progress import BuildProgress, Forecast
from torchdock.sources import Sources
from torchdock.state import CloneState
from torchdock.variants import GB, Variant

# The targets of a Dockerfile that people use: the environment, and the same with a compiler for CUDA.
ENVIRONMENT, DEVEL = "environment", "devel"
# What to do where the engine cannot build.
CARRY = (
    "Build it with a Docker Engine, here or elsewhere, and bring it over: `docker save IMAGE | podman load` (the name "
    "is in what `invoke build` says)."
)
OFFLINE = "TORCHDOCK_OFFLINE"  # by this variable the scripts of the layers are told; a secret, so no cache key changes


@dataclass(frozen=True)
class BuildPlan:
    """Exactly what will be built. ``argv`` is the one docker command, good in any folder.

    It has ``--progress=plain``, for people; where buildx can tell the same as events, it is run so (`rawjson`).

    Attributes:
        base: what it stands on: a base, or, for what is added to an environment, that environment's image.
        added: what is added to an environment (see :mod:`torchdock.packages`); empty for the environment itself.
    """

    variant: Variant
    base: BaseChoice
    tag: str
    argv: tuple[str, ...]
    root: Path
    added: str = ""

    @property
    def label(self) -> str:
        """What it is called in messages and in the names of logs and records."""
        return "-".join(part for part in (self.variant.name, self.added) if part)


@dataclass(frozen=True)
class Wishes:
    """How an image is wanted.

    Attributes:
        target: :data:`ENVIRONMENT` or :data:`DEVEL`.
        no_cache: every layer is built anew.
        locked: refuse every fallback.
        offline: contact no source.
        tag: the image's name instead of the computed one; such a build is not recorded.
        base: the base to stand on, which is there, instead of the preferred one that can be had.
        cache_from: an image in a registry whose layers are taken where they are what would be built (`--cache-from`).
    """

    target: str = ENVIRONMENT
    no_cache: bool = False
    locked: bool = False
    offline: bool = False
    tag: str | None = None
    base: BaseChoice | None = None
    cache_from: str = ""


@dataclass
class Built:
    """An image that is there, and how it came to be.

    Attributes:
        seconds: how long this call took; ``built`` is False where the image was there already.
        target: :data:`ENVIRONMENT` or :data:`DEVEL`.
        source: of the base (see :class:`BaseChoice`); ``base``: its name.
        debian: ``locked`` or ``drift``.
        fallbacks: sentences, from the build that made the image.
        environment: the image that a workspace's packages were added to; empty where none were.
        packages: these, name to version.
        brought: where it came from instead of a build: a registry's digest, or a file; empty where it was built.
    """

    variant: str
    image: str
    id: str
    layers: tuple[str, ...]
    seconds: float
    built: bool
    target: str
    source: str
    debian: str
    fallbacks: list[str] = field(default_factory=list)
    base: str = ""
    environment: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    brought: str = ""

    def document(self) -> dict[str, Any]:
        """As ``build --json`` prints it."""
        return {**vars(self), "layers": list(self.layers), "seconds": round(self.seconds, 2)}


def input_files(root: Path, variant: Variant) -> list[Path]:
    """Every file of the clone that decides the content of this variant's image, sorted."""
    folders = (
        "docker/layers",
        f"docker/locks/{variant.name}",
        str(debian.FOLDER),
        "src/torchdock/inside",
        "tests/container",
    )
    single = (
        variant.dockerfile,
        "docker/entrypoint.sh",
        "docker/init.sh",
        "docker/locks/uv.txt",
        "src/torchdock/__init__.py",
        ".dockerignore",
    )
    files = {root / name for name in single}
    for folder in folders:
        files |= {path for path in (root / folder).rglob("*") if path.is_file()}
    return sorted(path for path in files if path.name == ".dockerignore" or not _ignored(path.relative_to(root)))


def _ignored(path: Path) -> bool:
    """What `.dockerignore` keeps out of a build below the folders it lets in."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return hidden or path.suffix in (".pyc", ".orig") or path.name.endswith("~")


def digest_files(root: Path, files: Iterable[Path], *more: str) -> str:
    """SHA-256 over names and contents (not modes or times, which differ between clones) and further words, as hex.

    Raises:
        TorchdockError: a file is missing; names it.
    """
    digest = hashlib.sha256("\0".join(more).encode())
    for path in files:
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise TorchdockError(
                f"{path} cannot be read ({error.strerror}); `git status` shows what is missing."
            ) from None
        digest.update(f"\n{path.relative_to(root).as_posix()} {content}".encode())
    return digest.hexdigest()


def plan(
    root: Path, variant: Variant, base: BaseChoice, sources: Sources, *, builder: str, wishes: Wishes = Wishes()
) -> BuildPlan:
    """The build of a variant on this base. Reads the inputs of the clone, changes nothing.

    Secrets go by name: files and mirrors as BuildKit secrets, proxies as predefined arguments whose values stay in the
    environment; both are outside of layers, history and cache keys.
    """
    digest = digest_files(root, input_files(root, variant), base.name, base.debian, str(variant.base.epoch))
    suffix = "" if wishes.target == ENVIRONMENT else f"-{wishes.target}"
    tag = wishes.tag or f"torchdock/{variant.name}:{digest[:12]}{suffix}"
    argv = command(builder, root / variant.dockerfile, wishes.target, tag, variant.base.epoch)
    if variant.cuda:
        argv += ["--build-arg", f"VARIANT={variant.name}"]
    if base.reference != variant.base.image:
        argv += ["--build-arg", f"BASE={base.reference}"]
    if base.debian != LOCKED:
        argv += ["--build-arg", f"DEBIAN={base.debian}"]
    if wishes.cache_from:
        argv += ["--cache-from", f"type=registry,ref={wishes.cache_from}"]
    return BuildPlan(variant, base, tag, (*argv, *handed_over(sources, wishes), str(root)), root)


def command(builder: str, dockerfile: Path, target: str, tag: str, epoch: int) -> list[str]:
    """How every image is built: no attestations, the times of its configuration fixed (seconds since 1970).

    Its output is for people to read.
    """
    argv = ["docker", "buildx", "build", "--builder", builder, rawjson.PLAIN, "--provenance=false", "--sbom=false"]
    argv += ["--output", OUTPUT, "--file", str(dockerfile), "--target", target, "--tag", tag]
    return [*argv, "--build-arg", f"SOURCE_DATE_EPOCH={epoch}"]


def handed_over(sources: Sources, wishes: Wishes) -> list[str]:
    """The options of a build that tell it of this host: where things come from, by name, and how they are wanted."""
    argv: list[str] = []
    for secret in sources.secrets():
        argv += ["--secret", secret]
    if wishes.offline:
        argv += ["--secret", f"id=offline,env={OFFLINE}"]
    for name in sources.proxies:
        argv += ["--build-arg", name]
    if sources.loopback:  # a mirror or proxy of this host's own, which the network of a build does not reach
        argv += ["--network=host"]
    if wishes.no_cache:
        argv += ["--no-cache"]
    return argv


def plans(root: Path, variant: Variant, engine: Engine, sources: Sources, wishes: Wishes = Wishes()) -> list[BuildPlan]:
    """The plans for each base that the image may stand on, the preferred one first."""
    choices = bases.choices(root, variant.base, engine.architecture, sources)
    builder = engine.facts.context
    return [plan(root, variant, base, sources, builder=builder, wishes=wishes) for base in choices]


def acceptable(candidates: list[BuildPlan], wishes: Wishes) -> list[BuildPlan]:
    """Those of the plans whose image would do as it is wanted."""
    if wishes.base is not None:
        return [candidate for candidate in candidates if candidate.base == wishes.base]
    return candidates[:1] if wishes.locked else candidates


def find(engine: Engine, candidates: list[BuildPlan]) -> Built | None:
    """The image of the first of these plans that the engine has already."""
    started = time.monotonic()
    for candidate in candidates:
        facts = engine.image(candidate.tag)
        if facts is not None:
            return Built(
                variant=candidate.variant.name,
                image=candidate.tag,
                id=facts.id,
                layers=facts.layers,
                seconds=time.monotonic() - started,
                built=False,
                target=target(candidate),
                source=candidate.base.source,
                debian=candidate.base.debian,
                fallbacks=candidate.base.fallbacks(),
                base=candidate.base.reference,
            )
    return None


def target(built: BuildPlan) -> str:
    """What is built: :data:`ENVIRONMENT` or :data:`DEVEL`."""
    return built.argv[built.argv.index("--target") + 1]


def check(root: Path, variant: Variant, architecture: str, sources: Sources, wishes: Wishes) -> list[str]:
    """Whether the locks serve an image as it is wanted, be it there or not. Reads files only.

    Returns:
        What is to be said: a lock that is older than what it locks.

    Raises:
        InputError: a lock is missing, damaged, or for another Python or architecture.
        TorchdockError: ``locked`` refuses what is to be said.
    """
    warnings = locks.check(root, variant, architecture)
    warnings += debian.check(root, architecture, variant.base.suite)
    if wishes.target == DEVEL:
        devel.check(root, variant, architecture)
    if wishes.locked:
        if warnings:
            raise TorchdockError(f"--locked refuses this build: {'; '.join(warnings)}.")
        bases.refuse_custom(variant.base.image, sources)
    return warnings


def ensure(
    engine: Engine,
    state: CloneState,
    variant: Variant,
    sources: Sources,
    reporter: Reporter,
    wishes: Wishes = Wishes(),
    *,
    second_best: Sequence[str] = (),
) -> Built:
    """The image of this variant: found, else built.

    ``second_best``: fallbacks in the choice of the variant, said already, for the record.

    Raises:
        InputError: a lock is missing, damaged, or for another Python or architecture.
        TorchdockError: the build failed, the disk is too small, or a fallback was needed and ``locked`` refuses it.
        EngineError: the engine went away, or has no buildx.
        KeyboardInterrupt: after BuildKit has stopped; finished layers stay in its cache.
    """
    started = time.monotonic()
    warnings = check(state.root, variant, engine.architecture, sources, wishes)
    candidates = plans(state.root, variant, engine, sources, wishes)
    if not wishes.no_cache and wishes.tag is None:
        found = find(engine, acceptable(candidates, wishes))
        if found is not None:
            return found
    if engine.podman:
        raise EngineError(
            f"Podman has no buildx, which builds the image {candidates[0].tag}, and a build of its own would not be "
            f"the same to the bit. {CARRY}"
        )
    _require_buildx(engine)
    check_disk(engine, variant, foresee(engine, state, likely(engine, candidates), wishes))
    choices = [candidate.base for candidate in candidates]
    chosen = wishes.base or bases.obtain(
        engine, state.root, variant.base, choices, sources, reporter, locked=wishes.locked, offline=wishes.offline
    )
    wanted = candidates[choices.index(chosen)]
    notes: list[str] = []
    may_drift = not (wishes.locked or wishes.offline or wishes.base)
    if not _build(engine, state, wanted, sources, reporter, wishes, notes, may_drift=may_drift):
        wanted = candidates[choices.index(replace(chosen, debian=DRIFT))]
        _build(engine, state, wanted, sources, reporter, wishes, notes, may_drift=False)
    facts = engine.image(wanted.tag)
    if facts is None:
        raise TorchdockError(
            f"The build ended well, yet the engine has no image {wanted.tag}: its builder keeps images elsewhere. "
            f"Run `docker buildx use {engine.facts.context}` and build again."
        )
    built = Built(
        variant=variant.name,
        image=wanted.tag,
        id=facts.id,
        layers=facts.layers,
        seconds=time.monotonic() - started,
        built=True,
        target=wishes.target,
        source=wanted.base.source,
        debian=wanted.base.debian,
        fallbacks=[*second_best, *wanted.base.fallbacks(), *warnings],
        base=wanted.base.reference,
    )
    if wishes.tag is None:
        _record(engine, state, built, wanted, sources, notes)
    return built


def find_extended(engine: Engine, environment: Built, wanted: BuildPlan, packages: dict[str, str]) -> Built | None:
    """The image of a plan that adds to an environment, if the engine has one that stands on exactly this one."""
    started = time.monotonic()
    facts = engine.image(wanted.tag)
    if facts is None or facts.layers[: len(environment.layers)] != environment.layers:
        return None
    return replace(
        environment,
        image=wanted.tag,
        id=facts.id,
        layers=facts.layers,
        seconds=environment.seconds + time.monotonic() - started,
        environment=environment.image,
        packages=packages,
    )


def extend(
    engine: Engine,
    state: CloneState,
    environment: Built,
    wanted: BuildPlan,
    packages: dict[str, str],
    sources: Sources,
    reporter: Reporter,
    wishes: Wishes = Wishes(),
    *,
    meanings: Sequence[Meaning] = (),
) -> Built:
    """The image that adds to an environment: found (:func:`find_extended`), else built and recorded.

    ``meanings``: of failures that are its own.

    Raises:
        TorchdockError, EngineError, KeyboardInterrupt: as :func:`ensure`.
    """
    started = time.monotonic()
    found = None if wishes.no_cache else find_extended(engine, environment, wanted, packages)
    if found is not None:
        return found
    _require_buildx(engine)
    notes: list[str] = []
    _build(engine, state, wanted, sources, reporter, wishes, notes, may_drift=False, meanings=meanings)
    found = find_extended(engine, environment, wanted, packages)
    if found is None:
        raise TorchdockError(
            f"The build ended well, yet the engine has no image {wanted.tag} on {environment.image}: somebody built or "
            "removed one of them at the same moment, or its builder keeps images elsewhere. Run it again."
        )
    built = replace(found, built=True, seconds=environment.seconds + time.monotonic() - started)
    _record(engine, state, built, wanted, sources, notes)
    return built


def _require_buildx(engine: Engine) -> None:
    if not engine.facts.buildx:
        raise EngineError(
            "This docker CLI has no buildx plugin, which builds the image. Install it (Debian, Ubuntu: `sudo apt-get "
            "install docker-buildx`; else https://github.com/docker/buildx#installing), then run it again."
        )


def _build(
    engine: Engine,
    state: CloneState,
    wanted: BuildPlan,
    sources: Sources,
    reporter: Reporter,
    wishes: Wishes,
    notes: list[str],
    *,
    may_drift: bool,
    meanings: Sequence[Meaning] = (),
) -> bool:
    """Build; False where the locked Debian packages are gone and ``may_drift`` allows today's, which is said.

    ``notes`` takes what the scripts say of where they took things from.
    """
    log_path = state.path("logs", f"build-{wanted.label}.log")
    forecast = foresee(engine, state, wanted, wishes)
    told = ": ".join(part for part in (f"Building {wanted.tag}", forecast.text) if part)
    reporter.say(f"{told} (log: {log_path})")
    with reporter.step(f"Image {wanted.label}", measured=True) as step, log_path.open("w") as log:
        seen = BuildProgress(step, forecast, counts="--network=host" not in wanted.argv)
        log.write(shlex.join(wanted.argv) + "\n")
        argv, translate = rawjson.listening([engine.cli, *wanted.argv[1:]], engine.facts.buildx)
        env, clean, news = {**os.environ, OFFLINE: "1"}, sources.redact, progress.is_news
        code = stream(argv, seen.line, log=log, env=env, clean=clean, logged=news, translate=translate)
        if code == 0:
            seen.finish()
    notes += seen.notes
    if code == 0:
        return True
    output = seen.output_of_failure()
    drift = next((line for line in output if "torchdock: drift:" in line), None)
    if drift is None or not may_drift:
        raise build_failure(output, log_path, meanings)
    reporter.fallback(
        f"{drift.partition('drift: ')[2]}; taking what the mirror has today. `invoke lock --upgrade debian` locks that"
    )
    return False


def _record(
    engine: Engine, state: CloneState, built: Built, wanted: BuildPlan, sources: Sources, notes: list[str]
) -> None:
    """Write what this build was made from beside the image, never into it."""
    made = read_stages(wanted, engine.architecture)
    sizes = stages.layer_sizes(stages.layers(made, target(wanted)), engine.history(built.image))
    record = {**built.document(), "steps": progress.record(stages.needed(made, target(wanted)), sizes)}
    record["when"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record["mirrors"] = [mirror.label for mirror in sources.mirrors]
    record["sources"] = notes
    state.write(state.path("builds", f"{wanted.label}-{wanted.tag.rpartition(':')[2]}.json"), record)


# --- what a build will take -----------------------------------------------------------------------------------------


def read_stages(wanted: BuildPlan, architecture: str) -> dict[str, stages.Stage]:
    """The stages of the Dockerfile of a plan, with its arguments and on its base, by name."""
    given = [value for option, value in zip(wanted.argv, wanted.argv[1:], strict=False) if option == "--build-arg"]
    # Its base by the name that stands for its content, wherever that comes from.
    arguments = {**dict(value.split("=", 1) for value in given if "=" in value), "BASE": wanted.base.name}
    dockerfile = Path(wanted.argv[wanted.argv.index("--file") + 1])
    return stages.read(wanted.root, dockerfile, input_files(wanted.root, wanted.variant), arguments, architecture)


def foresee(engine: Engine, state: CloneState, wanted: BuildPlan, wishes: Wishes) -> Forecast:
    """What a build by this plan will download and write.

    A step counts as cached where an image that was built with it here is there, and the cache knows enough steps.
    """
    made = read_stages(wanted, engine.architecture)
    steps = stages.needed(made, target(wanted))
    records = sorted(state.records(), key=lambda record: str(record.get("when")))
    cached: set[str] = set()
    if not wishes.no_cache:
        there = [record for record in records if "steps" in record and engine.image(str(record["image"])) is not None]
        cached = {digest for record in there for digest, _ in progress.recorded(record).values()}
        if cached and engine.cached_steps() < len(steps):  # it was emptied
            cached = set()
    return progress.forecast(
        steps,
        stages.layers(made, target(wanted)),
        records,
        frozenset(cached),
        variant=wanted.variant.name,
        image=None if wanted.added or target(wanted) != ENVIRONMENT else wanted.variant.image_bytes,
        at_most=bool(wishes.cache_from),
        offline=wishes.offline,
    )


def likely(engine: Engine, candidates: Sequence[BuildPlan]) -> BuildPlan:
    """The plan on the base that is there; the preferred one where none is."""
    return next((plan for plan in candidates if engine.image(plan.base.reference)), candidates[0])


def cold_bytes(engine: Engine, variant: Variant) -> int:
    """The disk that a cold build takes at its peak, the image included."""
    return variant.build_bytes + _written_twice(engine, variant.image_bytes)


def _written_twice(engine: Engine, written: int) -> int:
    """What containerd's store takes besides of so many bytes of layers: compressed, half; and unpacked from that again.

    For there an image shares nothing with the build cache. Measured with Docker 26.1 and cu130: 17 GB.
    """
    return written * 3 // 2 if engine.by_manifest else 0


def check_disk(engine: Engine, variant: Variant, forecast: Forecast) -> None:
    """Refuse a build that the disk cannot hold, before it starts.

    Raises:
        TorchdockError: names both sizes and what gives space back.
    """
    where = engine.data_root
    if where is None:  # the engine's disk is not this host's (Docker Desktop): it will say so itself
        return
    need = cold_bytes(engine, variant)
    if forecast.write_bytes is not None and any(one.cached and one.write for one in forecast.steps):
        need = min(need, 2 * GB + forecast.write_bytes + _written_twice(engine, forecast.write_bytes))
    free = shutil.disk_usage(where).free
    if free < need:
        raise TorchdockError(
            f"Building {variant.name} needs {need / GB:.1f} GB free below {where}, and {free / GB:.1f} GB are. "
            "`docker builder prune` gives back build caches, `invoke clean --images` this clone's images, "
            "`docker system df` shows the rest. Nothing was changed."
        )


# --- what a failure means ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meaning:
    """What a pattern in the output of a failed build means."""

    pattern: str
    remedy: str
    kind: type[TorchdockError] = TorchdockError


OTHER_HASHES = (
    r"[Hh]ash mismatch|HASHES|requires? hash|hashes? .*did not match|--require-hashes|[Mm]issing hash"
    r"|other files than the lock"
)
NOT_FOUND = r"No solution found|no version of|not found in the (package )?(index|registry)|No matching distribution"
# The first match wins.
_MEANINGS = (
    Meaning(
        r"Cannot connect to the Docker daemon|error reading from server|unix.*connection reset|closing transport"
        r"|is the docker daemon running|rpc error.*(EOF|Unavailable)",
        "The container engine went away in the middle. `make up` starts it and goes on; finished layers are kept.",
        EngineError,
    ),
    Meaning(
        r"torchdock: drift:",
        "--locked and --offline refuse other packages. `invoke lock --upgrade debian` locks what the mirror has "
        "today; where the snapshot archive can be reached, the locked ones are taken from it.",
    ),
    Meaning(
        r"torchdock: offline:",
        "Build once with the sources in reach, or bring the image from a machine that has it: `invoke save FILE` "
        "there, `invoke load FILE` here.",
    ),
    Meaning(
        r"\b40[13]\b.{0,20}(Unauthorized|Forbidden)|40[13] Client Error|status code.{0,20}\b40[13]\b",
        "A source refuses the credentials: renew the token in the URL of the index or mirror, or its entry in "
        "~/.netrc; `invoke doctor` tries each source.",
    ),
    Meaning(
        r"certificate.{0,40}expired|expired.{0,40}certificate",
        "The TLS certificate of a source has expired: whoever runs it renews it; check this host's clock (`date`).",
    ),
    Meaning(
        OTHER_HASHES,
        "What the index gives is not what the lock names. If a file below docker/locks was edited by hand, `git diff "
        "docker/locks` shows it and `git checkout docker/locks` restores it; if not, do not trust that index.",
    ),
    Meaning(
        r"[Nn]o space left",
        "The disk is full. `docker builder prune` and `invoke clean --images` give space back; then run it again.",
    ),
    Meaning(
        r"certificate|UnknownIssuer|SSL|TLS",
        "TLS failed: name the bundle that holds your private CA in SSL_CERT_FILE; `invoke doctor` tries each source.",
    ),
    Meaning(
        NOT_FOUND,
        "A package of the lock is not in the index. If docker/locks was edited by hand, `git checkout docker/locks` "
        "restores it; a mirror may lag behind.",
    ),
    Meaning(
        r"[Cc]onnection reset"
        r"|dns error|[Rr]esolve|[Cc]onnection refused|timed? ?out|[Nn]etwork|[Cc]ould not connect|Unable to connect"
        r"|Failed to (down|fet)|could not be downloaded",
        "A source could not be reached: `invoke doctor` tries each of them; check the network and the proxy.",
    ),
)


def build_failure(output: list[str], log: Path, own: Sequence[Meaning] = ()) -> TorchdockError:
    """A failed build in one paragraph: what was said, what it means, what to do. Pure.

    ``own``: what is said instead of the usual meaning of the same pattern.
    """
    text = " ".join(re.sub(r"[│├╰×▶─]+", " ", " ".join(output[-40:])).split())
    start = re.search(r"error:|Failed to|E: |ERROR", text)
    said = text[start.start() :] if start else text
    said = said if len(said) <= 600 else said[:400] + " … " + said[-180:]
    # BuildKit repeats the command of the step that failed, and words of a command (--require-hashes) mean nothing.
    judged = re.sub(r'process "/bin/sh -c .*?" did not complete successfully', "", text)
    instead = {meaning.pattern: meaning for meaning in own}
    for meaning in (instead.get(usual.pattern, usual) for usual in _MEANINGS):
        if re.search(meaning.pattern, judged):
            return meaning.kind(f"The build failed: {said} {meaning.remedy} The whole log is {log}.")
    return TorchdockError(f"The build failed: {said} The whole log is {log}.")
