"""Which variant a host gets, and the reason in one sentence. Pure, but for :func:`decide`, handed its questions.

Two words: a variant *serves* a GPU when the driver is new enough for its CUDA and its wheels have code for the GPU. It
is *at hand* when this clone has its lock for the architecture and its wheel index can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torchdock.errors import InputError
from torchdock.host import HostFacts, HostGpu
from torchdock.variants import Variant, numbers, unknown

# The newest driver branch in NVIDIA's CUDA release notes, and the highest compute capability, when this was written.
# What is newer gets the newest variant and a warning, never a refusal: tables of compatibility go stale.
KNOWN_DRIVER = 595  # CUDA 13.2: 595.45.04
KNOWN_CAPABILITY = (12, 1)
FALLBACK = "fallback: "


@dataclass(frozen=True)
class Choice:
    """A variant and why.

    Attributes:
        reason: one sentence without a full stop, to be read after the variant's name.
        warnings: what else a person must know; those that begin with :data:`FALLBACK` are second best on this host.
        unserved: UUIDs of the GPUs that this variant cannot compute on; they are not handed over.
        refusal: why not, and what would compute on them; empty where all are served.
    """

    variant: Variant
    reason: str
    warnings: tuple[str, ...] = ()
    unserved: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The warnings that are fallbacks, without that word."""
        return tuple(text[len(FALLBACK) :] for text in self.warnings if text.startswith(FALLBACK))

    @property
    def notes(self) -> tuple[str, ...]:
        """The warnings that are no fallbacks."""
        return tuple(text for text in self.warnings if not text.startswith(FALLBACK))


def choose(
    host: HostFacts, variants: Mapping[str, Variant], wanted: str | None = None, *, cuda: bool = False
) -> Choice:
    """The variant for this host. Pure.

    ``wanted``: a variant by name; ``cuda``: a CUDA variant is demanded, GPU or not. A variant that is wanted or pinned
    is taken whatever the GPUs are; reach is not asked for, because its image may be there.

    Raises:
        InputError: the wanted variant contradicts the pin, is unknown, not made for this architecture, not locked, or
            without CUDA where that is demanded; or nothing is at hand for this architecture.
    """
    if host.pinned is not None and wanted not in (None, host.pinned):
        raise InputError(
            f"{host.pinned_by} pins the variant {host.pinned}, and {wanted} is asked for: numbers move with the "
            f"version, so one workspace has one variant. Leave the option away, or change the pin in that file."
        )
    name = wanted if host.pinned is None else host.pinned
    if name is not None:
        return _named(host, variants, name, cuda=cuda)
    ranked = _ranked(host, variants)
    at_hand = [variant for variant in ranked if not _missing(host, variant)]
    # Of equals max() takes the first one, which is the newest.
    best = max(at_hand, key=lambda variant: _count(host, variant), default=None)
    if best is not None and _count(host, best):
        return _serving(host, ranked, best)
    return _on_cpu(host, variants, ranked, cuda=cuda)


def decide(
    host: HostFacts,
    variants: Mapping[str, Variant],
    wanted: str | None = None,
    *,
    cuda: bool = False,
    reaches: Callable[[Variant], str],
    built: Callable[[Variant], bool],
    thrifty: bool = False,
) -> Choice:
    """:func:`choose`, asking for the reach of an index only where the choice depends on it.

    ``reaches`` says why the wheel index of a variant gives no answer (empty: it does), ``built`` whether the image of a
    variant is there, for which no index is needed. ``thrifty``: the image of the second best will do as well, and is
    taken without a word: its fallback was said when it was built.

    Raises:
        InputError: see :func:`choose`.
    """
    indexes = {variant.index for variant in variants.values() if variant.index}
    reached: set[str] = set()
    silence: dict[str, str] = {}

    def assume(reachable: set[str]) -> Choice:
        facts = replace(host, reachable=frozenset(reachable), silence=tuple(silence.items()))
        return choose(facts, variants, wanted, cuda=cuda)

    while True:
        hoped = assume(indexes - set(silence))
        try:
            feared = assume(reached)
        except InputError:
            feared = None
        if feared is not None and feared.variant == hoped.variant:
            break
        if built(hoped.variant):
            return hoped
        if thrifty and feared is not None and built(feared.variant):
            hoped = feared
            break
        why = reaches(hoped.variant)
        if why:
            silence[hoped.variant.index] = why
        else:
            reached.add(hoped.variant.index)
    if thrifty and hoped.fallbacks and built(hoped.variant):
        return replace(hoped, warnings=hoped.notes)
    return hoped


def obstacle(variant: Variant, gpu: HostGpu, *, driver: str, architecture: str) -> str:
    """What keeps a variant from serving a GPU, to be read after its name; empty where it serves it. Pure."""
    if not variant.cuda:
        return "is for CPUs alone"
    if not _code(variant, gpu, architecture):
        return f"has no code for compute capability {gpu.compute_capability}"
    return f"needs driver {variant.driver} or newer" if _too_old(driver, variant) else ""


# --- the cases --------------------------------------------------------------------------------------------------------


def _serving(host: HostFacts, ranked: Sequence[Variant], chosen: Variant) -> Choice:
    """The variant at hand that serves the most GPUs of this host."""
    newest, count = ranked[0], _count(host, chosen)
    passed_over, warnings = [], []
    for variant in ranked[: ranked.index(chosen)]:
        missing = _missing(host, variant)
        if _count(host, variant) < count:
            obstacles = [_obstacle(host, variant, gpu) for gpu in host.gpus if not _obstacle(host, chosen, gpu)]
            passed_over.append(f"{variant.name} {next(filter(None, obstacles))}")
            continue
        passed_over.append(f"{variant.name} {missing}")
        if _count(host, variant) == count and _is_unlocked(host, variant):
            told = _missing(host, variant, remedy=True)
            warnings.append(f"{variant.name} would fit, with torch {variant.torch_release}, but it {told}")
    served = [gpu for gpu in host.gpus if not _obstacle(host, chosen, gpu)]
    extent = "" if count == len(host.gpus) else f"{count} of {len(host.gpus)} GPUs, "
    clause = f"it serves {extent}{_listed(served)} with driver {host.driver}"
    where = f", where {_and(passed_over)}" if passed_over else ""
    if chosen == newest:
        reason = f"the newest variant, and {clause}"
    elif chosen.torch_release == newest.torch_release:
        reason = f"the same torch {chosen.torch_release} as {newest.name}, and {clause}{where}"
    else:
        reason = f"torch {chosen.torch_release} instead of {newest.torch_release}, because {clause}{where}"
        moved = f"{chosen.name} has torch {chosen.torch_release} instead of {newest.torch_release}"
        warnings.append(f"{moved}, and numbers move with the version")
    return _choice(host, ranked, chosen, reason, [*_out_of_reach(host, ranked, chosen), *warnings])


def _on_cpu(host: HostFacts, variants: Mapping[str, Variant], ranked: Sequence[Variant], *, cuda: bool) -> Choice:
    """The variant of a host without a GPU, or without one that any variant at hand serves."""
    newest = next((variant for variant in ranked if not _missing(host, variant)), None)
    cpu = next(
        (found for found in variants.values() if not found.cuda and host.architecture in found.architectures), None
    )
    if host.gpus:
        why = f"no variant that can be built here serves {_listed(host.gpus)} with driver {host.driver}"
    else:
        why = "there is no GPU" + (f", as {host.no_gpu_reason}" if host.no_gpu_reason else "")
    warnings: list[str] = []
    if newest is not None and newest != ranked[0]:  # a lock is missing, or an index
        warnings.append(f"{ranked[0].name} {_missing(host, ranked[0], remedy=True)}")
        if newest.torch_release != ranked[0].torch_release:
            moved = f"{newest.name} has torch {newest.torch_release} instead of {ranked[0].torch_release}"
            warnings.append(f"{moved}, and numbers move with the version")
    if cuda and newest is not None:
        return _choice(host, ranked, newest, f"the newest CUDA variant, as one is demanded; {why}", warnings)
    if cpu is not None and not cuda and not _missing(host, cpu):
        return _choice(host, ranked, cpu, f"{why}, and it is for CPUs alone", _out_of_reach(host, ranked, cpu))
    if newest is not None:
        if cpu is not None:
            told = _missing(host, cpu, remedy=True)
            warnings.insert(0, f"{FALLBACK}{cpu.name} {told}; {newest.name} is taken, whose wheels compute on CPUs too")
        warnings += _out_of_reach(host, ranked, newest)
        return _choice(host, ranked, newest, f"{why}, and its wheels compute on CPUs too", warnings)
    made = [variant for variant in variants.values() if host.architecture in variant.architectures]
    if made:
        told = "; ".join(f"{variant.name} {_missing(host, variant, remedy=True)}" for variant in made)
        raise InputError(f"No variant can be built on this host: {told}.")
    listed = ", ".join(sorted({name for variant in variants.values() for name in variant.architectures}))
    raise InputError(
        f"There is no variant for this machine's architecture, {host.architecture}; there are some for {listed}. Use "
        "a machine of one of these."
    )


def _named(host: HostFacts, variants: Mapping[str, Variant], name: str, *, cuda: bool) -> Choice:
    """The variant that is pinned or asked for by name, whatever the GPUs are."""
    pinned = host.pinned is not None
    by = f"{host.pinned_by} pins {name}. " if pinned else ""
    if name not in variants:
        raise InputError((f"{host.pinned_by}: " if pinned else "") + unknown(name, variants))
    chosen = variants[name]
    if cuda and not chosen.cuda:
        contradicting = f"the pin in {host.pinned_by}" if pinned else f"--variant {name}"
        raise InputError(
            f"A CUDA variant is demanded (--cuda, --devel, --gpu), and {contradicting} has none: leave one of them."
        )
    ranked = _ranked(host, variants)
    if host.architecture not in chosen.architectures:
        others = [variant for variant in variants.values() if host.architecture in variant.architectures]
        raise InputError(
            f"{by}{name} is made for {_and(chosen.architectures)} alone, and this machine is {host.architecture}. "
            f"Variants for it: {', '.join(sorted(variant.name for variant in others)) or 'none'}."
        )
    if _is_unlocked(host, chosen):
        count = _count(host, chosen)
        rest = [other for other in ranked if not _missing(host, other) and _count(host, other) >= count]
        offered = [f"{other.name} (torch {other.torch_release}, CUDA {other.cuda})" for other in rest]
        until = f"Until then choose {' or '.join(offered)}" if offered else "No other variant that is locked would do"
        raise InputError(f"{by}{name} cannot be built: it {_missing(host, chosen, remedy=True)}. {until}.")
    reason = f"{host.pinned_by} pins it" if pinned else "it was asked for"
    newest = next((variant for variant in ranked if variant.torch_release != chosen.torch_release), None)
    if newest is not None and numbers(newest.torch_release) > numbers(chosen.torch_release):
        reason += f", with torch {chosen.torch_release} instead of {newest.torch_release}"
    return _choice(host, ranked, chosen, reason, [])


def _choice(
    host: HostFacts, ranked: Sequence[Variant], chosen: Variant, reason: str, warnings: Sequence[str]
) -> Choice:
    """What every case has in common: the GPUs that are not served, and what is unusual about those that are."""
    served = [gpu for gpu in host.gpus if not _obstacle(host, chosen, gpu)]
    left: dict[tuple[str, str], list[HostGpu]] = {}
    for gpu in host.gpus:
        if gpu not in served:
            left.setdefault((_obstacle(host, chosen, gpu), _help(host, ranked, chosen, gpu)), []).append(gpu)
    refusals = [
        f"{chosen.name} does not compute on {_listed(found, uuids=True)}, because it {why}. {help_}"
        for (why, help_), found in left.items()
    ]
    remarks = []
    unknown_gpus = [gpu for gpu in served if _code(chosen, gpu, host.architecture) == "newer"]
    if unknown_gpus:
        remarks.append(
            f"{_listed(unknown_gpus)} is newer than any GPU that this version of torchdock knows; {chosen.name} is "
            "tried, and where it has no code for it (`no kernel image is available`), a newer torch line is needed in "
            "docker/variants.toml"
        )
    untold = [gpu for gpu in served if not gpu.compute_capability]
    if untold:
        remarks.append(f"the driver does not tell the compute capability of {_listed(untold)}; it is taken on trust")
    if served and numbers(host.driver)[:1] > (KNOWN_DRIVER,):
        remarks.append(
            f"driver {host.driver} is newer than any that this version of torchdock knows ({KNOWN_DRIVER}); newer "
            f"drivers run older CUDA, so {chosen.name} is expected to work"
        )
    unserved = tuple(gpu.uuid for gpu in host.gpus if gpu not in served)
    return Choice(chosen, reason, (*warnings, *refusals, *remarks), unserved, " ".join(refusals))


# --- facts about one variant ------------------------------------------------------------------------------------------


def _ranked(host: HostFacts, variants: Mapping[str, Variant]) -> list[Variant]:
    """The CUDA variants of this architecture: the newest torch first, then the newest CUDA."""
    fitting = [found for found in variants.values() if found.cuda and host.architecture in found.architectures]
    return sorted(fitting, key=lambda found: (numbers(found.torch), numbers(found.cuda)), reverse=True)


def _obstacle(host: HostFacts, variant: Variant, gpu: HostGpu) -> str:
    return obstacle(variant, gpu, driver=host.driver, architecture=host.architecture)


def _count(host: HostFacts, variant: Variant) -> int:
    """How many of the host's GPUs it serves."""
    return sum(not _obstacle(host, variant, gpu) for gpu in host.gpus)


def _too_old(driver: str, variant: Variant) -> bool:
    return numbers(driver) < numbers(variant.driver) if numbers(driver) else False  # no number: taken on trust


def _code(variant: Variant, gpu: HostGpu, architecture: str) -> str:
    """What the wheels have for a GPU: ``built`` code; nothing; or it cannot be known, because the GPU is ``newer`` than
    all that was known, or its capability is ``untold``.

    Built code runs on the same major and any higher minor number. Only wheels for the newest known GPUs are tried on
    newer ones.
    """
    wanted = numbers(gpu.compute_capability)
    if not wanted:
        return "untold"
    built = [numbers(found) for found in variant.compute_capability.get(architecture, ())]
    if any(found[0] == wanted[0] and found <= wanted for found in built):
        return "built"
    return "newer" if wanted > KNOWN_CAPABILITY and max(built, default=(0,))[0] == KNOWN_CAPABILITY[0] else ""


def _is_unlocked(host: HostFacts, variant: Variant) -> bool:
    return host.architecture not in variant.locked


def _missing(host: HostFacts, variant: Variant, *, remedy: bool = False) -> str:
    """Why a variant cannot be built here, to be read after its name; empty where it is at hand."""
    if _is_unlocked(host, variant):
        told = f"has no lock{f' for {host.architecture}' if variant.locked else ''} in this clone yet"
        return f"{told}: {_lock_it(variant)}" if remedy else told
    if variant.index and host.reachable is not None and variant.index not in host.reachable:
        why = dict(host.silence).get(variant.index, "")
        return f"needs the wheel index {variant.index_url}, which cannot be reached{f' ({why})' if why else ''}"
    return ""


def _lock_it(variant: Variant) -> str:
    where = variant.index_url or "the Python package index"
    return f"`invoke lock --variant {variant.name}` where {where} can be reached writes it"


def _out_of_reach(host: HostFacts, ranked: Sequence[Variant], chosen: Variant) -> list[str]:
    """The fallbacks from variants that are better than the chosen one, and locked, and out of reach."""
    rank = {variant.name: number for number, variant in enumerate(ranked)}
    this = (_count(host, chosen), -rank.get(chosen.name, len(ranked)))
    return [
        f"{FALLBACK}{variant.name} {_missing(host, variant)}; {chosen.name} is taken"
        for variant in ranked
        if _count(host, variant) and (_count(host, variant), -rank[variant.name]) > this
        if _missing(host, variant) and not _is_unlocked(host, variant)
    ]


def _help(host: HostFacts, ranked: Sequence[Variant], chosen: Variant, gpu: HostGpu) -> str:
    """What would compute on a GPU that the chosen variant does not serve."""
    options = []
    for variant in ranked:
        if not _code(variant, gpu, host.architecture):
            continue
        needs = [f"driver {variant.driver} or newer"] if _too_old(host.driver, variant) else []
        if _is_unlocked(host, variant):
            needs.append(f"its lock ({_lock_it(variant)})")
        elif _missing(host, variant):
            needs.append(f"its wheel index {variant.index_url}, or a mirror of it in TORCHDOCK_TORCH_INDEX, in reach")
        options.append(variant.name + (f" with {_and(needs)}" if needs else ""))
    return f"What would: {'; or '.join(options)}." if options else f"No variant for {host.architecture} does."


# --- words ------------------------------------------------------------------------------------------------------------


def _listed(gpus: Iterable[HostGpu], *, uuids: bool = False) -> str:
    """``2 × NVIDIA H200 (9.0) and Tesla T4 (7.5)``, with the UUIDs on demand."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for gpu in gpus:
        kinds.setdefault((gpu.name, gpu.compute_capability or "compute capability unknown"), []).append(gpu.uuid)
    return _and(
        (f"{len(found)} × " if len(found) > 1 else "")
        + f"{name} ({capability}{'; ' + ', '.join(found) if uuids else ''})"
        for (name, capability), found in kinds.items()
    )


def _and(words: Iterable[str]) -> str:
    listed = list(words)
    return ", ".join(listed[:-1]) + (" and " if len(listed) > 1 else "") + "".join(listed[-1:])
