"""Which processes a check left behind, and whether the clock jumped: from values, without either."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from torchdock.inside import clock, processes
from torchdock.inside.processes import Process


def process(pid: int, parent: int, group: int = 99, state: str = "S", command: str = "python") -> Process:
    return Process(pid, parent, group, state, pid * 10, command)


HERE = [
    process(1, 0, 1, command="tini"),
    process(50, 1, 50, command="pytest"),
    process(60, 50, 50, command="python worker"),
    process(61, 60, 61, command="python worker of a worker"),
    process(62, 1, 50, command="python orphan"),
    process(63, 50, 50, "Z", command="[python]"),
    process(64, 50, 50, command="python -c from multiprocessing.resource_tracker import main;main(5)"),
    process(65, 50, 50, command="python -m torchdock.inside.one_kernel"),
    process(66, 65, 50, command="g++ kernel.cpp"),
    process(70, 1, 70, command="somebody else's"),
]


def test_ours_are_children_of_children_and_orphans_of_the_group() -> None:
    assert {pid for pid, _ in processes.ours(HERE, 50, 50)} == {60, 61, 62}
    assert {pid for pid, _ in processes.ours(HERE, 50, -1)} == {60, 61}


def test_a_loop_of_parents_ends() -> None:
    """/proc is not read at one moment: a number may be reused meanwhile."""
    assert processes.ours([process(7, 8), process(8, 7)], 50, 50) == {}


def test_left_is_what_was_not_there_before() -> None:
    before = processes.ours(HERE, 50, 50)
    again = process(60, 50, 50)
    reused = Process(61, 50, 50, "S", 999_999, "another of the same number")
    after = processes.ours([HERE[0], HERE[1], again, reused], 50, 50)
    assert processes.left(before, after) == [reused]


def test_parse() -> None:
    rest = " ".join(["S", "50", "51", *["0"] * 16, "777", "0"])
    one = processes.parse(f"60 (a) b) {rest}", b"python\0-c\0pass\0")
    assert one == Process(60, 50, 51, "S", 777, "python -c pass")
    assert processes.parse(f"2 (kthreadd) {rest}", b"").command == "[kthreadd]"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_child_is_seen_until_it_ends() -> None:
    before = processes.here()
    with subprocess.Popen(["sleep", "300"]) as child:
        assert [one.pid for one in processes.left(before, processes.here())] == [child.pid]
        assert processes.alive(child.pid)
        child.kill()
    assert processes.left(before, processes.here()) == []
    assert not processes.alive(child.pid)
    assert processes.alive(os.getpid())


class Clocks:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self.now, self.set = 1000.0, 0.0

    def watch(self) -> clock.Watch:
        return clock.Watch(lambda: 1.8e9 + self.now + self.set, lambda: self.now)


def test_a_clock_that_runs_evenly() -> None:
    machine = Clocks()
    watch = machine.watch()
    for _ in range(5):
        machine.now += 3600
        machine.set += 0.01  # kept in step
        watch.look("a check")
    assert (watch.jumps, watch.told()) == ([], "")


@pytest.mark.parametrize(("by", "told"), [(3600, "forward by 3600 s"), (-7.4, "back by 7 s")])
def test_a_clock_that_jumps(by: float, told: str) -> None:
    machine = Clocks()
    watch = machine.watch()
    watch.look("test_a")
    machine.set += by
    watch.look("test_b")
    watch.look("test_c")
    assert watch.told() == f"the clock jumped {told} while test_b ran"


def test_a_clock_that_drifts_off() -> None:
    machine = Clocks()
    watch = machine.watch()
    for number in range(5):
        machine.set += 0.5
        watch.look(f"test_{number}")
    assert watch.told() == "the clock jumped forward by 2 s while test_4 ran"


def test_the_machines_own_clocks() -> None:
    watch = clock.Watch()
    watch.look("nothing")
    assert watch.jumps == []
