"""Which GPUs one launch gets: what is asked for, and what is free of it. Pure.

Two kinds of no: what this host does not have is wrong input; what it has and others use is busy, and may be had later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from types import MappingProxyType

from torchdock import launch
from torchdock.errors import BusyError, InputError
from torchdock.gpus import Gpu, Inventory

SETS = 5000  # so many sets of GPUs are compared one by one; of more hosts than these, a good one is grown
NOBODY: Mapping[str, str] = MappingProxyType({})
CPU = "`--gpus 0` computes on the CPU."
PATIENCE = "`--wait` waits for its turn, `--gpus 0` computes on the CPU, `invoke gpus` shows them all."


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        gpus: a number, ``all``, UUIDs (or beginnings of them) separated by commas, or None for the default: one where
            there is one.
        memory: bytes that each is to have, and to have left; None for any.
        name: a part of each one's name, such as ``H200``; empty for any.
    """

    gpus: str | None = None
    memory: int | None = None
    name: str = ""

    @property
    def particular(self) -> bool:
        """It says what a GPU has to be, so that there has to be one."""
        return self.memory is not None or bool(self.name)

    @property
    def number(self) -> int | None:
        """How many, where that is what was said; nobody has a million."""
        word = "1" if self.gpus is None and self.particular else self.gpus
        return int(word[:6]) if word is not None and word.isascii() and word.isdigit() else None

    @property
    def exact(self) -> bool:
        """It names which ones, so no other one would do."""
        return self.gpus is not None and self.number is None

    @property
    def words(self) -> str:
        """As it was typed."""
        words = [f"--gpus {self.gpus}"] if self.gpus is not None else []
        words += [f"--min-memory {amount(self.memory)}"] if self.memory is not None else []
        words += [f"--gpu-name {self.name}"] if self.name else []
        return " ".join(words) or "a GPU"


def wish(gpus: str | None = None, min_memory: str | None = None, gpu_name: str | None = None) -> Wish:
    """From the words of the options.

    Raises:
        InputError: the memory is no size, or the name is empty.
    """
    if gpu_name is not None and not gpu_name.strip():
        raise InputError("--gpu-name was given an empty name (a variable that is not set?). Name a GPU, such as H200.")
    memory = None if min_memory is None else launch.size(min_memory, "--min-memory")
    return Wish(gpus, memory, (gpu_name or "").strip())


def word(text: str) -> str:
    """What ``--gpus`` takes, as far as it can be told without a host.

    Raises:
        InputError: it is nothing of that kind.
    """
    if not re.fullmatch(r"\d{1,6}|all|(GPU|MIG)-[\w-]+(,(GPU|MIG)-[\w-]+)*", text, re.ASCII):
        raise InputError(f"{text!r} is neither a number of GPUs, nor `all`, nor UUIDs with commas between them.")
    return text


def merge(default: Wish, asked: Wish) -> Wish:
    """What the command line asks for above the workspace's default, which says nothing more where GPUs are named."""
    if asked.exact or asked.number == 0:
        return asked
    memory = default.memory if asked.memory is None else asked.memory
    gpus = default.gpus if asked.gpus is None and not (asked.particular and default.number == 0) else asked.gpus
    return Wish(gpus, memory, asked.name or default.name)


def keeping(inventory: Inventory, wish: Wish, held: Sequence[str]) -> Wish:
    """The same, for a container in whose place this launch comes: where nothing else is said it keeps what it has.

    ``held``: UUIDs of its GPUs. One that is gone, or is not what is asked for any more, is not kept.
    """
    there = {gpu.uuid: gpu for gpu in inventory.gpus}
    if wish.gpus is not None or any(uuid not in there or _lacks(there[uuid], wish) for uuid in held):
        return wish
    if not held:
        return wish if wish.particular else replace(wish, gpus="0")
    return replace(wish, gpus=",".join(held))


def amount(size: int) -> str:
    """Bytes in GiB, as people write them."""
    return f"{size / (1 << 30):.1f}".removesuffix(".0") + "GiB"


def possible(inventory: Inventory, wish: Wish) -> tuple[Gpu, ...]:
    """Every GPU that might be handed to a launch which asks for this, whoever uses it now.

    Raises:
        InputError: what is asked for does not exist on this host, or contradicts itself.
    """
    if wish.number == 0:
        if wish.particular:
            raise InputError(f"{wish.words}: no GPU is asked for, and what it has to be; leave one of them.")
        return ()
    if wish.gpus is None and not wish.particular:
        return inventory.gpus
    if not inventory.gpus and (wish.number is not None or wish.gpus == "all"):
        raise InputError(f"{wish.words}: {_none(inventory)}. Leave it away to compute on the CPU.")
    if wish.exact and wish.gpus != "all":
        named = _named(inventory, wish.gpus or "")
        for gpu in named:
            if lacks := _lacks(gpu, wish):
                raise InputError(f"{wish.words}: GPU {gpu.label} ({gpu.uuid}) {lacks}. Leave one of them.")
        return _together(named, wish)
    fitting = tuple(gpu for gpu in inventory.gpus if not _lacks(gpu, wish))
    if not fitting:
        have = ", ".join(_kinds(inventory.gpus))
        raise InputError(f"{wish.words}: no GPU of this host is that; it has {have}. Ask for less, or for another one.")
    if wish.gpus == "all":
        return _together([gpu for gpu in fitting if not gpu.parent] or fitting, wish)
    assert wish.number is not None
    whole = [gpu for gpu in fitting if not gpu.parent]
    if wish.number > 1 and len(whole) < wish.number <= len(fitting):
        _together(fitting[: wish.number], wish)
    if wish.number > len(fitting):
        raise InputError(
            f"{wish.words}: this host has {len(fitting)}{' of that kind' if wish.particular else ''}"
            f"{_faults(inventory)}. Ask for as many as there are, or leave it away."
        )
    return fitting


def choose(
    inventory: Inventory,
    wish: Wish,
    *,
    unserved: Collection[str] = (),
    why: str = "",
    taken: Mapping[str, str] = NOBODY,
) -> tuple[Gpu, ...]:
    """The GPUs for one launch.

    By number: those that nobody uses and nobody has leased; of these, such as NVLink joins, then those with the least
    memory in use. By UUID, and with ``all``: exactly these, shared with whoever computes on them without a lease.
    ``unserved``: UUIDs of GPUs that the variant cannot compute on, and ``why``; they are handed to nobody. ``taken``:
    who has leased a GPU, by UUID. With the one that turned out to be taken added, it is asked again for the next best.

    Raises:
        InputError: see :func:`possible`; or one of them is not served.
        BusyError: as many exist, but they are in use or leased; names by whom.
    """
    candidates = possible(inventory, wish)
    served = [gpu for gpu in candidates if gpu.uuid not in unserved]
    if wish.exact:
        if len(served) < len(candidates):
            raise InputError(f"{wish.words}: {why} {CPU}")
        held = [gpu for gpu in served if gpu.uuid in taken]
        if held:
            raise BusyError(f"{wish.words}: {_reasons(held, wish, taken)}. {PATIENCE}")
        return tuple(served)
    number = wish.number
    if number is None:  # the default: where no GPU would do, the CPU does
        number = 1 if served else 0
    if number > 1:
        served = [gpu for gpu in served if not gpu.parent]
    if number > len(served):
        raise InputError(f"{wish.words}: {why} {CPU}")
    free = [gpu for gpu in served if not obstacle(gpu, wish, taken)]
    if number > len(free):
        count = f"{len(free)} of {len(served)} GPUs are free" if len(served) > 1 else "the GPU is not free"
        share = (
            " A GPU that nobody has leased is shared where its UUID is named."
            if any(gpu.uuid not in taken for gpu in served if gpu not in free)
            else ""
        )
        raise BusyError(f"{wish.words}: {count}: {_reasons(served, wish, taken)}. {PATIENCE}{share}")
    return _best(free, number, wish)


def wanted(inventory: Inventory, wish: Wish, unserved: Collection[str] = ()) -> tuple[int, tuple[str, ...]]:
    """How many GPUs a launch wants, and the UUIDs of all that would do, the best first.

    For what :func:`choose` takes.
    """
    fitting = [gpu for gpu in possible(inventory, wish) if gpu.uuid not in unserved]
    if wish.exact:
        return len(fitting), tuple(gpu.uuid for gpu in fitting)
    number = (1 if fitting else 0) if wish.number is None else wish.number
    ranked = sorted(fitting, key=lambda gpu: _rank(gpu, wish))
    return number, tuple(gpu.uuid for gpu in ranked if number == 1 or not gpu.parent)


def obstacle(gpu: Gpu, wish: Wish, taken: Mapping[str, str] = NOBODY) -> str:
    """Why a GPU is not free for this, to be read after its name; empty where it is. Anybody's process counts."""
    if gpu.uuid in taken:
        return f"is leased by {taken[gpu.uuid]}" if taken[gpu.uuid] else "is leased"
    if gpu.processes:
        pids = ", ".join(str(one.pid) for one in gpu.processes[:3]) + (", …" if len(gpu.processes) > 3 else "")
        return f"is computed on without a lease (PID {pids})"
    if wish.memory is not None and gpu.memory_free < wish.memory:
        return f"has {amount(gpu.memory_free)} of {amount(gpu.memory_total)} left"
    if gpu.in_use:
        return f"has {amount(gpu.memory_used)} of {amount(gpu.memory_total)} in use"
    return ""


def _reasons(gpus: Iterable[Gpu], wish: Wish, taken: Mapping[str, str]) -> str:
    found = [(gpu, obstacle(gpu, wish, taken)) for gpu in gpus]
    return "; ".join(f"GPU {gpu.label} ({gpu.uuid}) {why}" for gpu, why in found if why)


# --- what exists ------------------------------------------------------------------------------------------------------


def _named(inventory: Inventory, wanted: str) -> list[Gpu]:
    """The GPUs of these UUIDs, each once; the beginning of one will do where it is the only one."""
    found: dict[str, Gpu] = {}
    for word in wanted.split(","):
        exact = [gpu for gpu in inventory.gpus if gpu.uuid == word]
        begun = [gpu for gpu in inventory.gpus if gpu.uuid.lower().startswith(word.lower())]
        fits = exact or (begun if re.match(r"(?i)(GPU|MIG)-.", word) else [])
        if len(fits) == 1:
            found[fits[0].uuid] = fits[0]
            continue
        known = ", ".join(gpu.uuid for gpu in inventory.gpus) or f"none; {_none(inventory)}"
        known += _faults(inventory)
        if fits:
            several = " and of ".join(gpu.uuid for gpu in fits)
            raise InputError(f"--gpus {word} is the beginning of {several}: say more of the one that is meant.")
        if cut := next((gpu for gpu in inventory.cut if gpu.uuid.lower() == word.lower()), None):
            parts = ", ".join(gpu.uuid for gpu in inventory.gpus if gpu.parent == cut.uuid) or "none yet"
            raise InputError(f"--gpus {word} is cut into MIG instances: name one of these instead: {parts}.")
        index = next((gpu for gpu in inventory.gpus if gpu.label == word), None)
        hint = f" Indices move, so a GPU is named by its UUID: {word} is {index.uuid} now." if index else ""
        raise InputError(f"--gpus takes a number, `all` or UUIDs; {word!r} is none of them here.{hint} GPUs: {known}.")
    return list(found.values())


def _lacks(gpu: Gpu, wish: Wish) -> str:
    """What it is not of what is asked for, to be read after its name."""
    if wish.name and wish.name.lower() not in gpu.name.lower():
        return f"is {gpu.name}"
    if wish.memory is not None and gpu.memory_total < wish.memory:
        return f"has {amount(gpu.memory_total)}" if gpu.memory_total else "does not tell how much memory it has"
    return ""


def _together(gpus: Sequence[Gpu], wish: Wish) -> tuple[Gpu, ...]:
    """These, if one process can compute on all of them."""
    if len(gpus) > 1 and any(gpu.parent for gpu in gpus):
        raise InputError(
            f"{wish.words}: CUDA shows a process one MIG instance and nothing besides, and these are {len(gpus)} "
            f"devices with an instance among them. Ask for one: `--gpus 1`, or `--gpus {gpus[0].uuid}`."
        )
    return tuple(gpus)


def _kinds(gpus: Iterable[Gpu]) -> list[str]:
    """``2 × NVIDIA H200 (140.4GiB)`` for each kind."""
    kinds: dict[tuple[str, str], int] = {}
    for gpu in gpus:
        kind = (gpu.name, amount(gpu.memory_total))
        kinds[kind] = kinds.get(kind, 0) + 1
    return [f"{f'{count} × ' if count > 1 else ''}{name} ({size})" for (name, size), count in kinds.items()]


def _none(inventory: Inventory) -> str:
    return inventory.reason or "this host has no GPU"


def _faults(inventory: Inventory) -> str:
    return f" ({'; '.join(inventory.faults)})" if inventory.faults else ""


# --- the best of what is free -----------------------------------------------------------------------------------------


def _rank(gpu: Gpu, wish: Wish) -> tuple[object, ...]:
    """One GPU before another: whole ones; then the largest instance, or the smallest that has what is asked for."""
    size = gpu.memory_total if wish.memory is not None else -gpu.memory_total
    return (bool(gpu.parent), size if gpu.parent else 0, gpu.memory_used, gpu.index, gpu.slot or 0)


def links(gpus: Sequence[Gpu]) -> int:
    """How many pairs of them NVLink joins."""
    return sum(other.uuid in gpu.joined for gpu, other in combinations(gpus, 2))


def _best(free: Sequence[Gpu], number: int, wish: Wish) -> tuple[Gpu, ...]:
    """So many of these: most joined by NVLink, then by rank."""
    ranked = sorted(free, key=lambda gpu: _rank(gpu, wish))
    if number == 1 or not any(gpu.joined for gpu in ranked):
        return tuple(ranked[:number])
    place = {gpu.uuid: index for index, gpu in enumerate(ranked)}
    if math.comb(len(ranked), number) <= SETS:
        sets: Iterable[Sequence[Gpu]] = combinations(ranked, number)
    else:
        sets = [_grown(seed, ranked, number, place) for seed in ranked]
    # Of equals max() takes the first one, which has the better ranks.
    best: Sequence[Gpu] = max(sets, key=lambda one: (links(one), -sum(gpu.memory_used for gpu in one)))
    return tuple(best)


def _grown(seed: Gpu, ranked: Sequence[Gpu], number: int, place: dict[str, int]) -> list[Gpu]:
    """A set around one GPU: each time the one that most of the set are joined with."""
    found = [seed]
    left = [gpu for gpu in ranked if gpu != seed]
    while len(found) < number:
        following = max(left, key=lambda gpu: (sum(one.uuid in gpu.joined for one in found), -place[gpu.uuid]))
        found.append(following)
        left.remove(following)
    return sorted(found, key=lambda gpu: place[gpu.uuid])
