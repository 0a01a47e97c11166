"""The GPUs that a launch gets: what is asked for, what is free of it, in which order; and each way to be refused."""

import random
from dataclasses import replace
from itertools import combinations

import pytest

from torchdock import selection
from torchdock.errors import BusyError, InputError, TorchdockError
from torchdock.gpus import Gpu, Inventory, Process
from torchdock.selection import Wish

GIB = 1 << 30


def gpu(index: int, used: int = 0, processes: int = 0, **more: object) -> Gpu:
    return Gpu(
        index, f"GPU-{index}{index}aa", "NVIDIA H200", 140 * GIB, used * GIB,
        tuple(Process(1000 + number, GIB) for number in range(processes)), "9.0", **more,
    )  # fmt: skip


def part(index: int, slot: int, size: int, used: int = 0) -> Gpu:
    name = f"NVIDIA H200 MIG {size}gb"
    return Gpu(index, f"MIG-{index}{slot}", name, size * GIB, used * GIB, parent=f"GPU-{index}", slot=slot)


# 0 is busy, 1 free and somewhat used, 2 free and empty, 3 busy and empty
SERVER = Inventory((gpu(0, 90, 2), gpu(1, 2), gpu(2), gpu(3, 0, 1)), "580.95.05", "")
BARE = Inventory((), "", "there is no NVIDIA driver")
FULL = Inventory((gpu(0, 90, 2), gpu(3, 0, 1)), "580.95.05", "")
MIXED = Inventory(
    (
        gpu(0, 1), replace(gpu(1), name="Tesla T4", memory_total=16 * GIB),
        part(2, 0, 20), part(2, 1, 40), part(2, 2, 20),
    ),
    "580.95.05", "", cut=(gpu(2),),
)  # fmt: skip
PARTS = replace(MIXED, gpus=MIXED.gpus[2:])


@pytest.mark.parametrize(
    ("inventory", "wish", "labels"),
    [
        pytest.param(BARE, Wish(), "", id="none there, none asked"),
        pytest.param(BARE, Wish("0"), "", id="none asked"),
        pytest.param(SERVER, Wish(), "2", id="the emptiest free one by default"),
        pytest.param(SERVER, Wish("0"), "", id="zero"),
        pytest.param(SERVER, Wish("1"), "2", id="one"),
        pytest.param(SERVER, Wish("2"), "2 1", id="two"),
        pytest.param(SERVER, Wish("all"), "0 1 2 3", id="all, whoever uses them"),
        pytest.param(SERVER, Wish("GPU-00aa"), "0", id="a busy one by name"),
        pytest.param(SERVER, Wish("GPU-33aa,GPU-11aa,GPU-33aa"), "3 1", id="by name, in order, each once"),
        pytest.param(SERVER, Wish("GPU-33,gpu-1"), "3 1", id="by the beginning of a name, in any case"),
        pytest.param(SERVER, Wish(memory=139 * GIB), "2", id="one with so much left"),
        pytest.param(SERVER, Wish("2", memory=130 * GIB), "2 1", id="two with so much left"),
        pytest.param(MIXED, Wish(), "1", id="a whole one"),
        pytest.param(MIXED, Wish(name="h200"), "0", id="by a part of its name, a whole one before an instance"),
        pytest.param(MIXED, Wish(name="MIG"), "2:1", id="the largest instance"),
        pytest.param(MIXED, Wish(name="MIG", memory=18 * GIB), "2:0", id="the smallest instance with so much"),
        pytest.param(MIXED, Wish(name="MIG", memory=21 * GIB), "2:1", id="the only instance with so much"),
        pytest.param(MIXED, Wish("2"), "1 0", id="two are whole ones"),
        pytest.param(MIXED, Wish("all"), "0 1", id="all whole ones"),
        pytest.param(MIXED, Wish("all", name="T4"), "1", id="all of a name"),
        pytest.param(MIXED, Wish("all", name="40gb"), "2:1", id="all of a name, one instance"),
        pytest.param(MIXED, Wish("MIG-21"), "2:1", id="an instance by name"),
        pytest.param(PARTS, Wish("1"), "2:1", id="one where all are instances"),
    ],
)
def test_a_launch_gets(inventory: Inventory, wish: Wish, labels: str) -> None:
    assert [one.label for one in selection.choose(inventory, wish)] == labels.split()


@pytest.mark.parametrize(
    ("inventory", "wish", "kind", "words"),
    [
        pytest.param(SERVER, Wish("3"), BusyError, "--gpus 3: 2 of 4 GPUs are free: GPU 0 (GPU-00aa) is", id="busy"),
        pytest.param(FULL, Wish("1"), BusyError, "0 of 2 GPUs are free", id="all busy"),
        pytest.param(FULL, Wish(), BusyError, "a GPU: 0 of 2 GPUs are free", id="all busy, none asked for"),
        pytest.param(FULL, Wish(), BusyError, "computed on without a lease (PID 1000, 1001)", id="by whom"),
        pytest.param(FULL, Wish(), BusyError, "is shared where its UUID is named", id="it may be shared"),
        pytest.param(
            Inventory((gpu(0, 71),), "1", ""), Wish(), BusyError,
            "the GPU is not free: GPU 0 (GPU-00aa) has 71GiB of 140GiB in use",
            id="memory in use, and no process in sight",
        ),
        pytest.param(
            Inventory((gpu(0, 20),), "1", ""), Wish(memory=130 * GIB), BusyError,
            "--min-memory 130GiB: the GPU is not free: GPU 0 (GPU-00aa) has 120GiB of 140GiB left",
            id="memory that is in use",
        ),
        pytest.param(SERVER, Wish("5"), InputError, "--gpus 5: this host has 4", id="too many"),
        pytest.param(SERVER, Wish("9" * 5000), InputError, "this host has 4", id="far too many"),
        pytest.param(BARE, Wish("1"), InputError, "there is no NVIDIA driver", id="a number without a driver"),
        pytest.param(BARE, Wish("all"), InputError, "there is no NVIDIA driver", id="all without a driver"),
        pytest.param(BARE, Wish("GPU-0"), InputError, "GPUs: none; there is no NVIDIA driver", id="a name without one"),
        pytest.param(BARE, Wish(name="H200"), InputError, "--gpu-name H200: there is no NVIDIA driver", id="a kind"),
        pytest.param(SERVER, Wish("GPU-9"), InputError, "'GPU-9' is none of them here. GPUs: GPU-00aa", id="unknown"),
        pytest.param(SERVER, Wish("GPU-11aa,"), InputError, "'' is none of them", id="an empty name"),
        pytest.param(SERVER, Wish("GPU-"), InputError, "'GPU-' is none of them", id="every name's beginning"),
        pytest.param(SERVER, Wish(""), InputError, "'' is none of them", id="nothing"),
        pytest.param(SERVER, Wish("-1"), InputError, "'-1' is none of them", id="negative"),
        pytest.param(SERVER, Wish("²"), InputError, "'²' is none of them", id="a digit that is no number"),
        pytest.param(
            SERVER, Wish("2,1"), InputError, "Indices move, so a GPU is named by its UUID: 2 is GPU-22aa now",
            id="an index",
        ),
        pytest.param(
            replace(SERVER, gpus=(*SERVER.gpus, replace(gpu(4), uuid="GPU-11bb"))), Wish("GPU-11"), InputError,
            "the beginning of GPU-11aa and of GPU-11bb: say more", id="two begin so",
        ),
        pytest.param(
            SERVER, Wish(memory=141 * GIB), InputError, "no GPU of this host is that; it has 4 × NVIDIA H200 (140GiB)",
            id="memory no GPU has",
        ),
        pytest.param(SERVER, Wish(name="B200"), InputError, "no GPU of this host is that", id="a name none has"),
        pytest.param(MIXED, Wish("2", name="T4"), InputError, "this host has 1 of that kind", id="too many of a kind"),
        pytest.param(
            MIXED, Wish("GPU-00aa", name="T4"), InputError, "GPU 0 (GPU-00aa) is NVIDIA H200. Leave one of them",
            id="a name and a UUID that contradict",
        ),
        pytest.param(
            MIXED, Wish("GPU-11aa", memory=40 * GIB), InputError, "GPU 1 (GPU-11aa) has 16GiB", id="less memory"
        ),
        pytest.param(SERVER, Wish("0", name="H200"), InputError, "no GPU is asked for, and what it has", id="0 of"),
        pytest.param(MIXED, Wish("3"), InputError, "CUDA shows a process one MIG instance", id="more than are whole"),
        pytest.param(MIXED, Wish("MIG-20,MIG-21"), InputError, "CUDA shows a process one MIG", id="two instances"),
        pytest.param(MIXED, Wish("GPU-00aa,MIG-21"), InputError, "an instance among them", id="a GPU and an instance"),
        pytest.param(PARTS, Wish("all"), InputError, "CUDA shows a process one MIG instance", id="all are instances"),
        pytest.param(
            MIXED, Wish("GPU-22aa"), InputError, "is cut into MIG instances: name one of these instead: none yet",
            id="cut",
        ),
        pytest.param(
            replace(SERVER, faults=("GPU 4 does not answer (NVML: GPU is lost)",)), Wish("5"), InputError,
            "this host has 4 (GPU 4 does not answer (NVML: GPU is lost))", id="one is lost",
        ),
        pytest.param(
            replace(SERVER, gpus=(replace(gpu(0), memory_total=0),)), Wish(memory=GIB), InputError,
            "no GPU of this host", id="memory that is not told",
        ),
    ],
)  # fmt: skip
def test_a_launch_is_refused(inventory: Inventory, wish: Wish, kind: "type[TorchdockError]", words: str) -> None:
    with pytest.raises(kind) as refused:
        selection.choose(inventory, wish)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == {BusyError: 75, InputError: 2}[kind]


@pytest.mark.parametrize(
    ("wish", "taken", "labels"),
    [
        (Wish(), "2", "1"),
        (Wish("1"), "1", "2"),
        (Wish("all"), "", "0 1 2 3"),
        (Wish("GPU-00aa"), "1 2 3", "0"),
    ],
)
def test_what_is_leased_is_passed_over(wish: Wish, taken: str, labels: str) -> None:
    held = {one.uuid: "anna" for one in SERVER.gpus if one.label in taken.split()}
    assert [one.label for one in selection.choose(SERVER, wish, taken=held)] == labels.split()


@pytest.mark.parametrize("wish", [Wish(), Wish("2"), Wish("all"), Wish("GPU-22aa"), Wish(name="H200")])
def test_what_is_leased_is_busy_and_its_holder_named(wish: Wish) -> None:
    held = {"GPU-11aa": "", "GPU-22aa": "anna (torchdock-anna-night, since 14:05)"}
    with pytest.raises(BusyError, match=r"GPU 2 \(GPU-22aa\) is leased by anna \(torchdock-anna-night, since 14:05\)"):
        selection.choose(SERVER, wish, taken=held)


def test_every_lease_is_passed_over_until_none_is_left() -> None:
    """As a launch goes on that finds the best one taken."""
    taken: dict[str, str] = {}
    got = []
    for _ in range(4):
        (one,) = selection.choose(MIXED, Wish(name="H200"), taken=taken)
        got.append(one.label)
        taken[one.uuid] = "anna"
    assert got == ["0", "2:1", "2:0", "2:2"]
    with pytest.raises(BusyError, match="`--wait` waits for its turn"):
        selection.choose(MIXED, Wish(name="H200"), taken=taken)


@pytest.mark.parametrize(
    ("wish", "unserved", "labels"),
    [
        pytest.param(Wish(), "2", "1", id="the emptiest free one that is served"),
        pytest.param(Wish(), "0 1 2 3", "", id="none is served: the CPU"),
        pytest.param(Wish("0"), "0 1 2 3", "", id="zero"),
        pytest.param(Wish("1"), "2", "1", id="one"),
        pytest.param(Wish("GPU-11aa,GPU-22aa"), "0", "1 2", id="by name"),
    ],
)
def test_a_gpu_that_is_not_served_is_left(wish: Wish, unserved: str, labels: str) -> None:
    uuids = [one.uuid for one in SERVER.gpus if one.label in unserved.split()]
    assert [one.label for one in selection.choose(SERVER, wish, unserved=uuids)] == labels.split()


@pytest.mark.parametrize(
    ("wish", "unserved", "kind"),
    [
        pytest.param(Wish("all"), "1", InputError, id="all"),
        pytest.param(Wish("GPU-11aa"), "1", InputError, id="by name"),
        pytest.param(Wish("GPU-00aa,GPU-11aa"), "1", InputError, id="one of two"),
        pytest.param(Wish("4"), "1", InputError, id="more than are served"),
        pytest.param(Wish("1"), "0 1 2 3", InputError, id="none is served"),
        pytest.param(Wish(name="H200"), "0 1 2 3", InputError, id="none of a kind is served"),
        pytest.param(Wish("2"), "1", BusyError, id="served, and busy"),
        pytest.param(Wish(), "1 2", BusyError, id="served, and busy, none asked for"),
    ],
)
def test_a_gpu_that_is_not_served_is_refused(wish: Wish, unserved: str, kind: "type[TorchdockError]") -> None:
    uuids = [one.uuid for one in SERVER.gpus if one.label in unserved.split()]
    why = "cu130 does not compute on it. What would: cu126."
    with pytest.raises(kind) as refused:
        selection.choose(SERVER, wish, unserved=uuids, why=why)
    if kind is InputError:
        assert str(refused.value) == f"{wish.words}: {why} `--gpus 0` computes on the CPU."
    else:
        assert "GPUs are free" in str(refused.value)


@pytest.mark.parametrize(
    ("wish", "count", "labels"),
    [
        (Wish(), 1, "2 3 1 0"),
        (Wish("0"), 0, ""),
        (Wish("2"), 2, "2 3 1 0"),
        (Wish("all"), 4, "0 1 2 3"),
        (Wish("GPU-11aa,GPU-00aa"), 2, "1 0"),
        (Wish(memory=140 * GIB), 1, "2 3 1 0"),
    ],
)
def test_all_that_would_do_are_told_for_those_who_wait(wish: Wish, count: int, labels: str) -> None:
    found = selection.wanted(SERVER, wish)
    uuids = {one.uuid: one.label for one in SERVER.gpus}
    assert (found[0], [uuids[uuid] for uuid in found[1]]) == (count, labels.split())


def test_those_who_wait_for_several_wait_for_whole_ones() -> None:
    assert selection.wanted(MIXED, Wish("2")) == (2, ("GPU-11aa", "GPU-00aa"))
    assert selection.wanted(MIXED, Wish("1", name="MIG"))[1] == ("MIG-21", "MIG-20", "MIG-22")
    assert selection.wanted(BARE, Wish()) == (0, ())


@pytest.mark.parametrize(
    ("wish", "held", "kept"),
    [
        (Wish(), ["GPU-00aa"], "GPU-00aa"),
        (Wish(), ["GPU-00aa", "GPU-11aa"], "GPU-00aa,GPU-11aa"),
        (Wish(), [], "0"),
        (Wish("2"), ["GPU-00aa"], "2"),
        (Wish(), ["GPU-gone"], None),
        (Wish(name="T4"), ["GPU-00aa"], None),
        (Wish(name="T4"), ["GPU-11aa"], "GPU-11aa"),
        (Wish(name="T4"), [], None),
    ],
)
def test_a_container_that_is_launched_anew_keeps_its_gpus(wish: Wish, held: "list[str]", kept: "str | None") -> None:
    assert selection.keeping(MIXED, wish, held) == replace(wish, gpus=kept)


# --- properties, over many hosts ---


def some_host(chance: random.Random) -> Inventory:
    """A host of up to nine GPUs of two kinds, some busy, some cut, joined in pairs, by a switch, at random or not."""
    count = chance.randint(0, 9)
    devices: list[Gpu] = []
    for index in range(count):
        kind = chance.choice([("NVIDIA H200", 140), ("NVIDIA L4", 24)])
        if chance.random() < 0.15:
            devices += [part(index, slot, chance.choice([10, 20])) for slot in range(chance.randint(0, 3))]
            continue
        used = chance.choice([0, 0, 0, 1, 12, 90]) % kind[1]
        one = gpu(index, used, chance.choice([0, 0, 0, 0, 1, 4]))
        devices.append(replace(one, name=kind[0], memory_total=kind[1] * GIB))
    way = chance.choice(["pairs", "switch", "random", "none"])
    joined = {one.uuid: set() for one in devices if not one.parent}
    for one, other in combinations([one for one in devices if not one.parent], 2):
        pair = one.index // 2 == other.index // 2
        if way == "switch" or (way == "pairs" and pair) or (way == "random" and chance.random() < 0.3):
            joined[one.uuid].add(other.uuid)
            joined[other.uuid].add(one.uuid)
    return Inventory(
        tuple(replace(one, joined=frozenset(joined.get(one.uuid, ()))) for one in devices),
        "580.95.05" if count else "", "" if devices else "none",
    )  # fmt: skip


def some_wish(chance: random.Random) -> Wish:
    return Wish(
        chance.choice([None, None, "0", "1", "1", "2", "3", "4", "all"]),
        chance.choice([None, None, None, 8 * GIB, 100 * GIB, 200 * GIB]),
        chance.choice(["", "", "", "H200", "l4", "MIG", "B200"]),
    )


def is_free(one: Gpu, wish: Wish) -> bool:
    room = wish.memory is None or one.memory_total - one.memory_used >= wish.memory
    return not one.processes and room and one.memory_used <= one.memory_total / 2


def fits(one: Gpu, wish: Wish) -> bool:
    return wish.name.lower() in one.name.lower() and (wish.memory is None or one.memory_total >= wish.memory)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_chosen_is_what_was_asked_for_and_free(seed: int) -> None:
    """A hundred hosts and wishes for each seed: an answer is right, a refusal is due, and each is of the right kind."""
    chance = random.Random(seed)
    for _ in range(100):
        host, wish = some_host(chance), some_wish(chance)
        unserved = {one.uuid for one in host.gpus if chance.random() < 0.1}
        taken = {one.uuid: "anna" for one in host.gpus if chance.random() < 0.2}
        exist = [one for one in host.gpus if fits(one, wish)]
        served = [one for one in exist if one.uuid not in unserved]
        free = [one for one in served if one.uuid not in taken and is_free(one, wish)]
        try:
            found = selection.choose(host, wish, unserved=unserved, why="why.", taken=taken)
        except InputError:
            # It could not be had if everybody went home.
            number = {"0": 0, "all": 1, None: int(wish.particular)}.get(wish.gpus, 0) or int(wish.number or 0)
            whole = [one for one in served if not one.parent]
            assert (
                wish.number == 0
                or len(served if number == 1 else whole) < number
                or (wish.gpus == "all" and (set(exist) - set(served) or len(exist) > 1))
            )
        except BusyError:
            number = 1 if wish.number is None else wish.number
            assert len(free if number == 1 else [one for one in free if not one.parent]) < number or (
                wish.gpus == "all" and set(taken) & {one.uuid for one in exist}
            )
        else:
            assert len(set(found)) == len(found)
            assert all(one in served and one.uuid not in taken for one in found)
            assert len(found) == 1 or not any(one.parent for one in found)
            if wish.gpus == "all":
                assert found
            else:
                assert set(found) <= set(free)
                assert len(found) == (wish.number if wish.number is not None else min(1, len(served)))


@pytest.mark.parametrize("seed", range(20))
def test_no_other_set_is_joined_better(seed: int) -> None:
    chance = random.Random(1000 + seed)
    asked = 0
    while asked < 40:
        host, number = some_host(chance), chance.randint(2, 4)
        free = [one for one in host.gpus if is_free(one, Wish()) and not one.parent]
        if len(free) < number:
            continue
        asked += 1
        found = selection.choose(host, Wish(str(number)))
        best = max(selection.links(one) for one in combinations(free, number))
        assert selection.links(found) == best


def test_many_gpus_joined_by_switches_are_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many sets to compare: 32 GPUs in four groups, one of them free as a whole."""

    def pairs(found: "list[Gpu]", number: int) -> "combinations[tuple[Gpu, ...]]":
        assert number == 2, "millions of sets"
        return combinations(found, number)

    monkeypatch.setattr(selection, "combinations", pairs)
    groups = [{f"GPU-{index}" for index in range(start, start + 8)} for start in range(0, 32, 8)]
    devices = [
        Gpu(index, f"GPU-{index}", "G", 80 * GIB, 0, (Process(1),) if index in (1, 12, 30) else (),
            joined=frozenset(groups[index // 8] - {f"GPU-{index}"}))
        for index in range(32)
    ]  # fmt: skip
    found = selection.choose(Inventory(tuple(devices), "1", ""), Wish("8"))
    assert {one.uuid for one in found} == groups[2]


def test_of_equals_the_emptiest_are_taken() -> None:
    devices = [replace(gpu(index, used), joined=frozenset()) for index, used in enumerate([5, 3, 9, 1])]
    pairs = [frozenset({devices[index ^ 1].uuid}) for index in range(4)]
    joined = Inventory(tuple(replace(one, joined=pair) for one, pair in zip(devices, pairs, strict=True)), "1", "")
    assert [one.label for one in selection.choose(joined, Wish("2"))] == ["1", "0"]
    assert [one.label for one in selection.choose(Inventory(tuple(devices), "1", ""), Wish("2"))] == ["3", "1"]
