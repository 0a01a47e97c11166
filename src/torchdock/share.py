"""One person builds, the team pulls: images to and from a registry by the digest of their inputs, and their layers.

The name of an image holds the digest of what decides it, so "has somebody built it?" is one question to a registry as
it is to an engine. What comes from there is checked before it gets its name: a tag can be moved by whoever may push.
Docker's own client carries everything, so logins, proxies, private CAs and resumed layers are the engine's.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from torchdock import brought, debian, image, variants
from torchdock.base import LOCKED
from torchdock.console import Reporter, Step
from torchdock.engine import Engine
from torchdock.errors import EngineError, InputError, TorchdockError
from torchdock.image import BuildPlan, Built, Meaning
from torchdock.process import stream
from torchdock.saved import printable
from torchdock.sources import REFERENCE, Sources
from torchdock.state import CloneState
from torchdock.variants import Variant

VARIABLE = "TORCHDOCK_REGISTRY"
EXAMPLE = "registry.example.org/team/torchdock"


# --- where ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repository:
    """A repository of a registry, as docker names it, and the digest (``sha256:…``) that is asked of it, if one is."""

    name: str
    digest: str = ""

    @property
    def login(self) -> str:
        """The command by which a person logs in there; Docker Hub goes without a host."""
        host = self.name.partition("/")[0]
        return "docker login" + (f" {host}" if re.search(r"[.:]|^localhost$", host) else "")

    def reference(self, tag: str) -> str:
        """The name of an image in it."""
        return f"{self.name}:{tag}"


def repository(text: str, origin: str) -> Repository:
    """The repository in this text, ``[HOST[:PORT]/]PATH[@sha256:…]``. Pure.

    Raises:
        InputError: it is none; names ``origin``, and does not show a text that may hold a password.
    """
    name, _, digest = text.strip().partition("@")
    if not REFERENCE.fullmatch(text.strip()) or ":" in name.rpartition("/")[2]:
        raise InputError(
            f"{origin} is no repository of a registry (it is not shown, it may hold a password, which `docker login` "
            f"takes). Write it without a scheme, a user and a tag: {EXAMPLE}, or {EXAMPLE}@sha256:… for one image."
        )
    if name.startswith("torchdock/"):
        raise InputError(
            f"{origin}: {name} begins as the names of images on this engine do. Name the registry: {EXAMPLE}."
        )
    return Repository(name, digest)


def named(root: Path, env: Mapping[str, str]) -> Repository | None:
    """The team's repository: the variable's, else the one that ``docker/variants.toml`` names; None where neither does.

    An empty variable means none.

    Raises:
        InputError: what is named is no repository.
    """
    if VARIABLE in env:
        return _whole(env[VARIABLE], VARIABLE) if env[VARIABLE].strip() else None
    found = variants.shared_repository(root)
    return _whole(found, "docker/variants.toml, [share] repository") if found else None


def asked(text: str | None, root: Path, env: Mapping[str, str]) -> Repository:
    """The repository that was typed, else the team's.

    Raises:
        InputError: there is none, or it is none.
    """
    found = repository(text, "What was typed") if text is not None else named(root, env)
    if found is None:
        raise InputError(
            f"Which repository? Type it (`invoke push {EXAMPLE}`), or name the team's once: in {VARIABLE}, or as "
            "`repository` below [share] in docker/variants.toml."
        )
    return found


def _whole(text: str, origin: str) -> Repository:
    found = repository(text, origin)
    if found.digest:
        raise InputError(f"{origin} names one image by its digest, and is to name the repository: take the digest out.")
    return found


def tag_of(name: str, architecture: str) -> str:
    """The tag of an image in a repository: ``torchdock/cu130:5edab7a1dbcb`` -> ``cu130-5edab7a1dbcb-amd64``. Pure.

    The inputs are the same for every architecture, so the name on an engine does not tell it.
    """
    variant, _, digest = name.removeprefix("torchdock/").partition(":")
    return f"{variant}-{digest}-{debian.ARCHITECTURES[architecture]}"


def cache_tag(variant: Variant, target: str, architecture: str) -> str:
    """The tag of what builds take their layers from: the newest that was pushed, whatever tree it was. Pure."""
    kind = variant.name if target == image.ENVIRONMENT else f"{variant.name}-{target}"
    return f"{kind}-cache-{debian.ARCHITECTURES[architecture]}"


# --- docker's client at work ------------------------------------------------------------------------------------------

_LAYER = re.compile(r"^([0-9a-f]{12}): (.*)$")
_DIGEST = re.compile(r"\b[Dd]igest: (sha256:[0-9a-f]{64})\b")
_SENT = ("Pushed", "Pull complete")
_THERE = ("Layer already exists", "Mounted from", "Already exists")


class Transfer:
    """Reads what `docker push` and `docker pull` print: how many layers went, how many were there, and the digest."""

    def __init__(self, step: Step | None) -> None:
        self._step = step
        self._layers: dict[str, str] = {}
        self.digest = ""
        self.rest: list[str] = []
        self._told = False

    def line(self, text: str) -> None:
        """One line of docker's output."""
        if match := _LAYER.match(text):
            layer, status = match.groups()
            self._layers[layer] = status
            if self._step is not None:
                if status.startswith("Retrying") and not self._told:
                    self._told = True
                    self._step.done("the registry broke off or failed; the engine tries again, for up to a minute")
                self._step.now(f"{self.sent + self.there} of {len(self._layers)} layers")
        elif match := _DIGEST.search(text):
            self.digest = match[1]
        elif text.strip():
            self.rest.append(text)

    @property
    def sent(self) -> int:
        """Layers that were carried."""
        return sum(status.startswith(_SENT) for status in self._layers.values())

    @property
    def there(self) -> int:
        """Layers that the other side had already."""
        return sum(status.startswith(_THERE) for status in self._layers.values())


class NotShared(TorchdockError):
    """The registry has no such image; exit code 1."""


# The first match wins. HOST, LOGIN and VERB are filled in.
_MEANINGS = (
    Meaning(
        r"Cannot connect to the Docker daemon|is the docker daemon running|error during connect",
        "The container engine went away in the middle. `make up` starts it; then run it again.",
        EngineError,
    ),
    Meaning(
        r"no basic auth credentials|unauthorized|authentication required|denied|forbidden|\b40[13]\b",
        "Log in as somebody who may VERB there: `LOGIN`; then run it again.",
    ),
    Meaning(
        r"server gave HTTP response to HTTPS client",
        "That registry speaks plain HTTP: give it TLS, or name it in `insecure-registries` of /etc/docker/daemon.json.",
    ),
    Meaning(
        r"x509|certificate",
        "The engine does not trust the registry's certificate: put its CA into /etc/docker/certs.d/HOST/ca.crt.",
    ),
    Meaning(
        r"no space left|disk quota",
        "The disk is full. `docker builder prune` and `invoke clean --images` give space back; then run it again.",
    ),
    Meaning(r"manifest unknown|not found|name unknown|no such manifest", "There is no such image.", NotShared),
    Meaning(
        r"unexpected HTTP status: 5\d\d|50\d (Internal|Bad|Service|Gateway|Insufficient)|unknown blob|blob upload",
        "The registry itself failed, as one does whose disk is full: whoever runs it finds the cause in its log. Run "
        "it again then; layers that have arrived are not sent again.",
    ),
    Meaning(
        r"connection refused|no such host|dial tcp|[Tt]ime-?out|timed out|deadline|EOF|connection reset|broken pipe"
        r"|closed network|unreachable|transport",
        "The registry cannot be reached, or the connection broke: check the name, the network and the engine's proxy, "
        "then run it again; layers that have arrived are not carried again.",
    ),
)


def failure(output: Sequence[str], where: Repository, verb: str) -> TorchdockError:
    """What docker said when it could not push or pull, what it means, what to do. Pure."""
    said = " ".join(" ".join(output[-4:]).split()).removeprefix("Error response from daemon: ").rstrip(".")
    said = printable(said)[-400:] or "docker said nothing"
    host = where.name.partition("/")[0]
    for meaning in _MEANINGS:
        if re.search(meaning.pattern, said):
            remedy = meaning.remedy.replace("LOGIN", where.login).replace("VERB", verb).replace("HOST", host)
            return meaning.kind(f"`docker {verb}` with {where.name} failed: {said}. {remedy}")
    return TorchdockError(f"`docker {verb}` with {where.name} failed: {said}.")


def _carry(engine: Engine, argv: Sequence[str], where: Repository, log: TextIO, step: Step | None) -> Transfer:
    """Run `docker push` or `docker pull` to its end.

    Raises:
        TorchdockError: it failed (:class:`NotShared`: there is no such image), EngineError: the engine went away.
        KeyboardInterrupt: after docker has ended; the layers that were carried stay where they are.
    """
    seen = Transfer(step)
    log.write(" ".join(argv) + "\n")
    if stream([engine.cli, *argv[1:]], seen.line, log=log) != 0:
        raise failure(seen.rest, where, argv[1])
    return seen


# --- push -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PushPlan:
    """What goes to the registry: an image under the digest of its inputs, and the same layers for `--cache-from`.

    Attributes:
        layers: a build that changes nothing and costs a second, as each of its steps is cached: the same layers, with
            notes in the configuration by which another engine's builds find them. So it is another image; the one
            that is shared keeps the ID that every build gives it. None where this engine cannot build, or was brought
            the image without its base.
    """

    built: Built
    where: Repository
    reference: str
    layers: BuildPlan | None

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """The docker commands, in order; the last one forgets the names that only a push needs."""
        names = [self.reference]
        found = [("docker", "tag", self.built.image, self.reference), ("docker", "push", self.reference)]
        if self.layers is not None:
            names.append(self.layers.tag)
            found += [self.layers.argv, ("docker", "push", self.layers.tag)]
        return (*found, ("docker", "image", "rm", *names))


def plan_push(engine: Engine, state: CloneState, built: Built, where: Repository, sources: Sources) -> PushPlan:
    """How this image gets there. Changes nothing.

    Raises:
        InputError: a digest is named.
        TorchdockError: it is not what the lock gives, so nobody could check it.
    """
    if where.digest:
        raise InputError("A digest is what a push gives: leave @sha256:… away.")
    if built.debian != LOCKED:
        raise TorchdockError(
            f"{built.image} has the Debian packages of the day it was built, because the locked ones were gone: nobody "
            "else can tell whether it is what the lock gives. `invoke lock --upgrade debian`, commit, build, push."
        )
    reference = where.reference(tag_of(built.image, engine.architecture))
    variant = _variant_plan(engine, state, built, sources, image.Wishes(built.target))
    layers = None
    has_base = variant.base.source != "bootstrapped" or engine.image(variant.base.reference) is not None
    if engine.facts.buildx and not engine.podman and has_base:
        name = where.reference(cache_tag(variant.variant, built.target, engine.architecture))
        wishes = image.Wishes(built.target, tag=name, offline=True)
        same = _variant_plan(engine, state, built, sources, wishes)
        layers = replace(same, argv=(*same.argv[:-1], "--cache-to", "type=inline", same.argv[-1]))
    return PushPlan(built, where, reference, layers)


def _variant_plan(engine: Engine, state: CloneState, built: Built, sources: Sources, wishes: image.Wishes) -> BuildPlan:
    """The build of an image that is there, by other wishes."""
    variant = variants.get(state.root, built.variant)
    found = image.plans(state.root, variant, engine, sources, wishes)
    return next(one for one in found if (one.base.reference, one.base.debian) == (built.base, built.debian))


@dataclass(frozen=True)
class Pushed:
    """What a push gave: ``digest`` is the registry's, of the manifest; ``cache`` names the layers for builds."""

    image: str
    id: str
    reference: str
    digest: str
    pushed: int
    there: int
    cache: str
    seconds: float

    def document(self) -> dict[str, Any]:
        """As ``push --json`` prints it."""
        return {**vars(self), "seconds": round(self.seconds, 2)}


def push(engine: Engine, state: CloneState, plan: PushPlan, reporter: Reporter) -> Pushed:
    """Push; of an image of which the registry has layers already, the others alone go.

    Raises:
        TorchdockError: the registry refused or broke off; the layers that arrived stay there.
        KeyboardInterrupt: the same.
    """
    started = time.monotonic()
    there = engine.image(plan.reference) is not None
    log_path = state.path("logs", f"push-{plan.built.variant}.log")
    try:
        brought.tag(engine, plan.built.image, plan.reference)
        with log_path.open("w") as log, reporter.step(f"Pushing {plan.reference}") as step:
            carried = _carry(engine, plan.commands[1], plan.where, log, step)
            cache = _push_layers(engine, plan, reporter, log) if plan.layers is not None else ""
    finally:
        if not there:
            brought.untag(engine, plan.reference)
    return Pushed(
        image=plan.built.image,
        id=plan.built.id,
        reference=plan.reference,
        digest=carried.digest,
        pushed=carried.sent,
        there=carried.there,
        cache=cache,
        seconds=time.monotonic() - started,
    )


def _push_layers(engine: Engine, plan: PushPlan, reporter: Reporter, log: TextIO) -> str:
    """Push what `--cache-from` reads; its name, or an empty string where the cache of that build is gone."""
    assert plan.layers is not None
    name, output = plan.layers.tag, list[str]()
    there = engine.image(name)
    try:
        argv = [engine.cli, *plan.layers.argv[1:]]
        code = stream(argv, output.append, log=log, env={**os.environ, image.OFFLINE: "1"})
        facts = engine.image(name)
        if code != 0 or facts is None or facts.layers != plan.built.layers:
            reporter.say(
                "The layers for `--cache-from` stay as they were in the registry: this engine's build cache no longer "
                "has those of this image"
            )
            return ""
        _carry(engine, ("docker", "push", name), plan.where, log, None)
        return name
    finally:
        if there is None:
            brought.untag(engine, name)


# --- pull -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PullPlan:
    """What is asked of a registry: the names that this tree's image may have there, the preferred first, or a digest.

    ``wanted`` has the plans that each reference may turn out to be.
    """

    where: Repository
    references: tuple[str, ...]
    wanted: tuple[tuple[BuildPlan, ...], ...]

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """The docker commands, in order: the first that finds an image is the last one."""
        return tuple(("docker", "pull", reference) for reference in self.references)


def plan_pull(engine: Engine, candidates: Sequence[BuildPlan], where: Repository) -> PullPlan:
    """How the image of one of these plans is had from there. Changes nothing.

    Images with other Debian packages than the locked ones are not asked for: they could not be checked.
    """
    locked = tuple(one for one in candidates if one.base.debian == LOCKED)
    if where.digest:
        return PullPlan(where, (f"{where.name}@{where.digest}",), (locked,))
    names = tuple(where.reference(tag_of(one.tag, engine.architecture)) for one in locked)
    return PullPlan(where, names, tuple((one,) for one in locked))


def pull(engine: Engine, state: CloneState, plan: PullPlan, reporter: Reporter) -> Built:
    """Pull, check, and only then give it the name that launches look for.

    Raises:
        NotShared: the registry has none of these images.
        TorchdockError: it cannot be had, or is not what this clone's lock gives; nothing of it is left then.
        KeyboardInterrupt: layers that came in whole are kept by the engine for the next try.
    """
    started = time.monotonic()
    log_path = state.path("logs", "pull.log")
    with log_path.open("w") as log, reporter.step(f"Pulling from {plan.where.name}") as step:
        for reference, wanted in zip(plan.references, plan.wanted, strict=True):
            there = engine.image(reference) is not None
            try:
                carried = _carry(engine, ("docker", "pull", reference), plan.where, log, step)
            except NotShared:
                continue
            try:
                step.now("checking it")
                found = brought.check(engine, state, reference, wanted)
                new, seconds = engine.image(found.tag) is None, time.monotonic() - started
                origin = f"{plan.where.name}@{carried.digest}" if carried.digest else reference
                return brought.adopt(engine, state, found, reference, origin, seconds, new=new)
            finally:
                if not there:
                    brought.untag(engine, reference)
    raise NotShared(_absent(plan))


def _absent(plan: PullPlan) -> str:
    if plan.where.digest:
        return f"{plan.references[0]} is not there. Whoever pushed it reads the digest in what `invoke push` prints."
    tags = ", ".join(reference.rpartition(":")[2] for reference in plan.references)
    return (
        f"{plan.where.name} has no image of this tree yet (asked for {tags}). Whoever has built it gives it to the "
        f"team: `invoke push {plan.where.name}`; until then `invoke build`."
    )


@dataclass(frozen=True)
class Offered:
    """What the team's registry has in place of a build: an image, or none; and whether it answered at all."""

    built: Built | None = None
    answered: bool = True


def offered(
    engine: Engine, state: CloneState, candidates: Sequence[BuildPlan], where: Repository, reporter: Reporter
) -> Offered:
    """Pull this tree's image where the registry has it; where it has none that will do, say so.

    Raises:
        EngineError: the engine went away.
        KeyboardInterrupt: see :func:`pull`.
    """
    try:
        return Offered(pull(engine, state, plan_pull(engine, candidates, where), reporter))
    except EngineError:
        raise
    except NotShared:
        reporter.say(f"{where.name} has no image of this tree yet; building it (`invoke push` gives it to the team)")
        return Offered()
    except TorchdockError as error:
        reporter.fallback(f"{error} Building it instead")
        return Offered(answered=False)
