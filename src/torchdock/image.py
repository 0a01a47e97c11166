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
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torchdock import provision
from torchdock.console import Reporter, Step
from torchdock.engine import Engine
from torchdock.errors import EngineError, TorchdockError
from torchdock.process import capture, csv_fields, stream
from torchdock.sources import Sources
from torchdock.state import CloneState
from torchdock.variants import GB, Base, Variant

# What a stage of the Dockerfile is for, in the words that are shown while it runs.
STAGES = {
    "system": "Debian packages",
    "uv": "uv",
    "cuda": "CUDA libraries (3.4 GB)",
    "torch": "torch, torchvision, triton (2.2 GB)",
    "tools": "tools",
    "environment": "validation suite",
}


@dataclass(frozen=True)
class BaseChoice:
    """Where the base comes from: ``registry`` (the pinned digest) or ``bootstrapped`` (made from Debian packages)."""

    source: str
    reference: str


@dataclass(frozen=True)
class BuildPlan:
    """Exactly what will be built. ``argv`` is the one docker command, good in any folder."""

    variant: Variant
    base: BaseChoice
    tag: str
    argv: tuple[str, ...]
    root: Path


@dataclass
class Built:
    """An image that is there, and how it came to be.

    Attributes:
        seconds: how long this call took; ``built`` is False where the image was there already.
        fallbacks: sentences, from the build that made the image.
    """

    variant: str
    image: str
    id: str
    layers: tuple[str, ...]
    seconds: float
    built: bool
    source: str
    fallbacks: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As ``build --json`` prints it."""
        return {**vars(self), "layers": list(self.layers), "seconds": round(self.seconds, 2)}


def input_files(root: Path, variant: Variant) -> list[Path]:
    """Every file of the clone that decides the content of this variant's image, sorted."""
    folders = ("docker/layers", f"docker/locks/{variant.name}", "src/torchdock/inside", "tests/container")
    single = (
        variant.dockerfile,
        "docker/entrypoint.sh",
        "docker/locks/uv.txt",
        "src/torchdock/__init__.py",
        ".dockerignore",
    )
    files = {root / name for name in single}
    for folder in folders:
        files |= {path for path in (root / folder).rglob("*") if path.is_file()}
    return sorted(path for path in files if "__pycache__" not in path.parts and path.suffix != ".pyc")


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


def bootstrapped_base(root: Path, base: Base) -> BaseChoice:
    """The base made from Debian packages: one for each suite, day and recipe."""
    recipe = digest_files(root, [root / "docker/base.Dockerfile"], base.suite, str(base.epoch), *BOOTSTRAP_OPTIONS)
    return BaseChoice("bootstrapped", f"torchdock/base:{base.suite}-{recipe[:12]}")


def plan(
    root: Path, variant: Variant, base: BaseChoice, sources: Sources, *, builder: str, no_cache: bool
) -> BuildPlan:
    """The build of a variant on this base. Reads the inputs of the clone, changes nothing.

    Secrets go by name: the CA bundle as a BuildKit secret, proxies as predefined arguments whose values stay in the
    environment; both are outside of layers, history and cache keys.
    """
    digest = digest_files(root, input_files(root, variant), base.reference, str(variant.base.epoch))
    tag = f"torchdock/{variant.name}:{digest[:12]}"
    argv = ["docker", "buildx", "build", "--builder", builder, "--progress=plain", "--provenance=false", "--sbom=false"]
    argv += ["--file", str(root / variant.dockerfile), "--tag", tag]
    argv += ["--build-arg", f"SOURCE_DATE_EPOCH={variant.base.epoch}"]  # the times in the image's configuration
    if base.source == "bootstrapped":
        argv += ["--build-arg", f"BASE={base.reference}"]
    if sources.ca is not None:
        argv += ["--secret", csv_fields("id=ca", f"src={sources.ca.absolute()}")]
    for name in sources.proxies:
        argv += ["--build-arg", name]
    if no_cache:
        argv += ["--no-cache"]
    return BuildPlan(variant, base, tag, (*argv, str(root)), root)


def plans(root: Path, variant: Variant, engine: Engine, sources: Sources, *, no_cache: bool = False) -> list[BuildPlan]:
    """The plans for each source of the base, the preferred one first."""
    choices = (BaseChoice("registry", variant.base.image), bootstrapped_base(root, variant.base))
    builder = engine.facts.context
    return [plan(root, variant, base, sources, builder=builder, no_cache=no_cache) for base in choices]


def find(engine: Engine, state: CloneState, candidates: list[BuildPlan]) -> Built | None:
    """The image of the first of these plans that the engine has already."""
    started = time.monotonic()
    for candidate in candidates:
        facts = engine.image(candidate.tag)
        if facts is not None:
            record = next((record for record in state.records() if record["image"] == candidate.tag), {})
            fallbacks = record.get("fallbacks") or _fallbacks(candidate.base)
            seconds = time.monotonic() - started
            name = candidate.variant.name
            return Built(name, candidate.tag, facts.id, facts.layers, seconds, False, candidate.base.source, fallbacks)
    return None


def ensure(
    engine: Engine,
    state: CloneState,
    variant: Variant,
    sources: Sources,
    reporter: Reporter,
    *,
    no_cache: bool = False,
    locked: bool = False,
) -> Built:
    """The image of this variant: found, else built.

    Raises:
        TorchdockError: the build failed, the disk is too small, or a fallback was needed and ``locked`` refuses it.
        EngineError: the engine went away, or has no buildx.
        KeyboardInterrupt: after BuildKit has stopped; finished layers stay in its cache.
    """
    started = time.monotonic()
    candidates = plans(state.root, variant, engine, sources, no_cache=no_cache)
    if locked:
        candidates = candidates[:1]
    if not no_cache:
        found = find(engine, state, candidates)
        if found is not None:
            return found
    if not engine.facts.buildx:
        raise EngineError(
            "This docker CLI has no buildx plugin, which builds the image. Install it (Debian, Ubuntu: `sudo apt-get "
            "install docker-buildx`; else https://github.com/docker/buildx#installing), then run it again."
        )
    check_disk(engine, state, variant, from_nothing=no_cache)
    chosen = _obtain_base(engine, candidates, sources, reporter)
    log_path = state.path("logs", f"build-{variant.name}.log")
    reporter.say(f"Building {chosen.tag} (log: {log_path})")
    with reporter.step(f"Image {variant.name}") as step, log_path.open("w") as log:
        progress = BuildProgress(step)
        log.write(shlex.join(chosen.argv) + "\n")
        code = stream([engine.cli, *chosen.argv[1:]], progress.line, log=log)
    if code != 0:
        raise build_failure(progress.output_of_failure(), log_path)
    facts = engine.image(chosen.tag)
    if facts is None:
        raise TorchdockError(
            f"The build ended well, yet the engine has no image {chosen.tag}: its builder keeps images elsewhere. "
            f"Run `docker buildx use {engine.facts.context}` and build again. The log is {log_path}."
        )
    seconds = time.monotonic() - started
    built = Built(
        variant.name, chosen.tag, facts.id, facts.layers, seconds, True, chosen.base.source, _fallbacks(chosen.base)
    )
    record = {**built.document(), "base": chosen.base.reference, "foundation": foundation(state.root, variant)}
    record["when"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    state.write(state.path("builds", f"{variant.name}-{chosen.tag.rpartition(':')[2]}.json"), record)
    return built


def _fallbacks(base: BaseChoice) -> list[str]:
    if base.source == "registry":
        return []
    return ["the base was made from Debian packages (mmdebstrap), because the pinned one could not be pulled"]


def foundation(root: Path, variant: Variant) -> str:
    """Digest of what decides the large layers: while it is the same, a rebuild takes little disk."""
    lock = root / "docker" / "locks" / variant.name
    files = [
        root / "docker/layers/packages.txt",
        root / "docker/layers/system.sh",
        root / "docker/layers/wheels.sh",
        root / "docker/locks/uv.txt",
        lock / "cuda.txt",
        lock / "torch.txt",
    ]
    return digest_files(root, files, variant.base.image)


def check_disk(engine: Engine, state: CloneState, variant: Variant, *, from_nothing: bool = False) -> None:
    """Refuse a build that the disk cannot hold, before it starts.

    It needs little where the large layers are in the build cache: an image that has them is there, and the cache knows
    enough steps. ``from_nothing``: the cache is not used.

    Raises:
        TorchdockError: names both sizes and what gives space back.
    """
    where = engine.data_root
    if where is None:  # the engine's disk is not this host's (Docker Desktop): it will say so itself
        return
    built_before = {
        record.get("foundation") for record in state.records() if engine.image(str(record["image"])) is not None
    }
    cached = (
        not from_nothing and foundation(state.root, variant) in built_before and engine.cached_steps() > len(STAGES)
    )
    need = 2 * GB if cached else variant.build_bytes
    free = shutil.disk_usage(where).free
    if free < need:
        raise TorchdockError(
            f"Building {variant.name} needs {need / GB:.1f} GB free below {where}, and {free / GB:.1f} GB are. "
            "`docker builder prune` gives back build caches, `invoke clean --images` this clone's images, "
            "`docker system df` shows the rest. Nothing was changed."
        )


# --- the base -------------------------------------------------------------------------------------------------------

# As small as Debian's own slim image: everything else comes with the system layer, as on the pinned base.
BOOTSTRAP_OPTIONS = ("--variant=minbase", "--format=tar")


def _obtain_base(engine: Engine, candidates: list[BuildPlan], sources: Sources, reporter: Reporter) -> BuildPlan:
    """The first plan whose base is there afterwards; makes one from Debian packages where none can be pulled."""
    registry = candidates[0]
    if engine.image(registry.base.reference) is not None:
        return registry
    with reporter.step("Base image"):
        pulled = capture([engine.cli, "pull", "--quiet", registry.base.reference], timeout=600)
    if pulled.code == 0:
        return registry
    why = " ".join((pulled.err or pulled.out).strip().split())[-300:]
    if "Cannot connect to the Docker daemon" in why:
        raise EngineError(f"The container engine stopped answering while the base was pulled. Run `make up`. ({why})")
    if len(candidates) == 1:
        raise TorchdockError(
            f"The pinned base {registry.base.reference} cannot be pulled ({why}), and --locked refuses a base made "
            "here. Reach a registry or a mirror of it (registry-mirrors in /etc/docker/daemon.json), or leave --locked."
        )
    made = candidates[1]
    missing = engine.image(made.base.reference) is None
    how = "making it from Debian packages with mmdebstrap" if missing else "taking the one made from Debian packages"
    reporter.fallback(f"no registry gave the pinned base ({why}); {how}")
    if missing:
        _bootstrap(engine, made, sources, reporter)
    return made


def _bootstrap(engine: Engine, wanted: BuildPlan, sources: Sources, reporter: Reporter) -> None:
    base = wanted.variant.base
    with (
        tempfile.TemporaryDirectory(prefix="torchdock-base-") as name,
        reporter.step("Base from Debian packages") as step,
    ):
        folder = Path(name)
        folder.chmod(0o755)  # mmdebstrap's unprivileged mode and apt's own user read it
        tool = _mmdebstrap(folder, wanted)
        context = folder / "context"
        context.mkdir(mode=0o777)
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(base.epoch), "LC_ALL": "C.UTF-8"}
        argv = [*_privilege(), *tool, *BOOTSTRAP_OPTIONS]
        if sources.ca is not None:
            argv.append(f'--aptopt=Acquire::https::CAInfo "{sources.ca.absolute()}"')
        log = wanted.root / ".torchdock" / "logs" / "base.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # Nothing of this host's may stay in the base: the option above is only for downloading.
        argv.append('--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"')
        lines: list[str] = []
        with log.open("w") as handle:
            code = stream([*argv, base.suite, str(context / "rootfs.tar")], lines.append, log=handle, env=env)
        if code != 0:
            raise TorchdockError(
                f"No registry gave the base image, and making it from Debian packages failed: {' '.join(lines[-3:])} "
                f"(log: {log}). Mend that, or bring the base by `docker load`, then run it again."
            )
        build = [engine.cli, "buildx", "build", "--builder", engine.facts.context, "--provenance=false", "--sbom=false"]
        build += ["--build-arg", f"SOURCE_DATE_EPOCH={base.epoch}", "--tag", wanted.base.reference]
        build += ["--file", str(wanted.root / "docker/base.Dockerfile"), str(context)]
        done = capture(build, timeout=600)
        if done.code != 0:
            raise build_failure(done.err.splitlines(), log)
        step.done(f"base made from Debian packages ({step.seconds:.0f} s)")


def _privilege() -> list[str]:
    """What mmdebstrap needs before it: nothing as root or where user namespaces are proved to work, else sudo.

    Raises:
        TorchdockError: neither is to be had.
    """
    if os.geteuid() == 0 or capture(["unshare", "--user", "--map-auto", "true"], timeout=10).code == 0:
        return []
    if capture(["sudo", "-n", "true"], timeout=10).code == 0:
        return ["sudo", "-n", "--preserve-env=SOURCE_DATE_EPOCH,LC_ALL,http_proxy,https_proxy,HTTP_PROXY,HTTPS_PROXY"]
    raise TorchdockError(
        "No registry gave the base image, and making it from Debian packages as a user without root needs user "
        "namespaces: `sudo apt-get install uidmap` (and, where /etc/subuid has no line for this user, `sudo usermod "
        "--add-subuids 100000-165535 --add-subgids 100000-165535 $USER`), or `sudo -v` first; then run it again."
    )


def _mmdebstrap(folder: Path, wanted: BuildPlan) -> list[str]:
    """The argv that starts mmdebstrap: the installed one, else Debian's package unpacked into ``folder``."""
    found = shutil.which("mmdebstrap")
    if found is not None:
        return [found]
    unpacked = folder / "tool"
    (unpacked / "lists" / "partial").mkdir(parents=True)
    (unpacked / "cache/archives/partial").mkdir(parents=True)
    script = 'cd "$1" && shift && apt-get download -qq "$@" mmdebstrap && dpkg-deb -x mmdebstrap_*.deb .'
    private = ["-o", f"Dir::State::Lists={unpacked}/lists", "-o", f"Dir::Cache={unpacked}/cache"]
    done = capture(["sh", "-c", script, "sh", str(unpacked)], timeout=300)
    if done.code != 0:  # a machine whose package lists were never fetched
        capture(["apt-get", *private, "-qq", "update"], timeout=300)
        done = capture(["sh", "-c", script, "sh", str(unpacked), *private], timeout=300)
    if done.code != 0 or shutil.which("perl") is None:
        raise TorchdockError(
            f"No registry gave the base {wanted.base.reference if wanted.base.source == 'registry' else 'image'}, and "
            "mmdebstrap, which makes one from Debian packages, can only be had on Debian and Ubuntu "
            f"({(done.err.strip().splitlines() or ['perl is missing'])[-1]}). Bring the pinned base to this engine: "
            f"`docker pull {wanted.variant.base.image}` where a registry answers, then `docker save` and `docker load`."
        )
    argv = ["perl", str(unpacked / "usr/bin/mmdebstrap")]
    if not Path(provision.ARCHIVE_KEYRING).is_file():  # Ubuntu trusts its own archive only
        script = script.replace("mmdebstrap", "debian-archive-keyring")
        done = capture(["sh", "-c", script, "sh", str(unpacked), *private], timeout=300)
        argv.append(f"--keyring={unpacked}{provision.ARCHIVE_KEYRING}")
    return argv


# --- what BuildKit says ---------------------------------------------------------------------------------------------

_STEP = re.compile(r"^#(\d+) \[(?:(\S+) )?(\d+)/(\d+)\] (.*)$")
_DONE = re.compile(r"^#(\d+) (DONE ([\d.]+)s|CACHED|ERROR: (.*)|CANCELED)$")
_OUTPUT = re.compile(r"^#(\d+) (?:[\d.]+ )?(.*)$")


class BuildProgress:
    """Reads BuildKit's plain progress: which stage runs, which is finished, and what a failed step printed."""

    def __init__(self, step: Step | None) -> None:
        self._step = step
        self._stage: dict[str, tuple[str, bool]] = {}  # step number -> its stage, whether it is the stage's last
        self._seconds: dict[str, float] = {}
        self._output: dict[str, list[str]] = {}
        self._failed = ""
        self._rest: list[str] = []
        self.finished: list[tuple[str, str]] = []

    def line(self, text: str) -> None:
        """One line of BuildKit's output."""
        if match := _STEP.match(text):
            number, stage, index, total, instruction = match.groups()
            if stage in STAGES and not instruction.startswith("FROM"):
                self._stage[number] = (stage, index == total)
                if self._step is not None:
                    self._step.now(STAGES[stage])
        elif match := _DONE.match(text):
            number, word, seconds, error = match.groups()
            if error is not None:
                self._failed = number
                self._output.setdefault(number, []).append(error)
            elif number in self._stage and word != "CANCELED":
                self._finish(*self._stage.pop(number), None if word == "CACHED" else float(seconds))
        elif match := _OUTPUT.match(text):
            number, output = match.groups()
            self._output.setdefault(number, []).append(output)
            if "exporting" in output and self._step is not None:
                self._step.now("writing the image")
        else:
            self._rest.append(text)

    def _finish(self, stage: str, last: bool, seconds: float | None) -> None:
        if seconds is not None:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        if last:
            took = f"{self._seconds[stage]:.0f} s" if stage in self._seconds else "cached"
            self.finished.append((stage, took))
            if self._step is not None:
                self._step.done(f"{STAGES[stage]}: {took}")

    def output_of_failure(self) -> list[str]:
        """What the failed step printed; what BuildKit itself said where no step failed."""
        return self._output.get(self._failed) or [line for line in self._rest if line.strip()]


@dataclass(frozen=True)
class _Meaning:
    """What a pattern in the output of a failed build means."""

    pattern: str
    remedy: str
    kind: type[TorchdockError] = TorchdockError


# The first match wins.
_MEANINGS = (
    _Meaning(
        r"Cannot connect to the Docker daemon|error reading from server|unix.*connection reset|closing transport"
        r"|is the docker daemon running|rpc error.*(EOF|Unavailable)",
        "The container engine went away in the middle. `make up` starts it and goes on; finished layers are kept.",
        EngineError,
    ),
    _Meaning(
        r"[Hh]ash mismatch|HASHES|requires? hash|hashes? .*did not match|--require-hashes|[Mm]issing hash",
        "What the index gives is not what the lock names. If a file below docker/locks was edited by hand, `git diff "
        "docker/locks` shows it and `git checkout docker/locks` restores it; if not, do not trust that index.",
    ),
    _Meaning(
        r"[Nn]o space left",
        "The disk is full. `docker builder prune` and `invoke clean --images` give space back; then run it again.",
    ),
    _Meaning(
        r"certificate|UnknownIssuer|SSL|TLS",
        "TLS failed: name the bundle that holds your private CA in SSL_CERT_FILE; `invoke doctor` tries each source.",
    ),
    _Meaning(
        r"No solution found|no version of|not found in the (package )?(index|registry)|No matching distribution",
        "A package of the lock is not in the index. If docker/locks was edited by hand, `git checkout docker/locks` "
        "restores it; a mirror may lag behind.",
    ),
    _Meaning(
        r"[Cc]onnection reset"
        r"|dns error|[Rr]esolve|[Cc]onnection refused|timed? ?out|[Nn]etwork|[Cc]ould not connect|Failed to (down|fet)",
        "A source could not be reached: `invoke doctor` tries each of them; check the network and the proxy.",
    ),
)


def build_failure(output: list[str], log: Path) -> TorchdockError:
    """A failed build in one paragraph: what was said, what it means, what to do. Pure."""
    text = " ".join(re.sub(r"[│├╰×▶─]+", " ", " ".join(output[-40:])).split())
    start = re.search(r"error:|Failed to|E: |ERROR", text)
    said = text[start.start() :] if start else text
    said = said if len(said) <= 600 else said[:400] + " … " + said[-180:]
    # BuildKit repeats the command of the step that failed, and words of a command (--require-hashes) mean nothing.
    judged = re.sub(r'process "/bin/sh -c .*?" did not complete successfully', "", text)
    for meaning in _MEANINGS:
        if re.search(meaning.pattern, judged):
            return meaning.kind(f"The build failed: {said} {meaning.remedy} The whole log is {log}.")
    return TorchdockError(f"The build failed: {said} The whole log is {log}.")
