"""Who has a GPU: cgroups, processes, containers, leases; and what can be known of how long it has been idle."""

import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from torchdock import holders
from torchdock.gpus import Gpu, Inventory, Load, Process
from torchdock.holders import Box, Facts, Idle, Program, Row
from torchdock.lease import Lease

ID, OTHER = "a" * 63 + "1", "b" * 63 + "2"
GIB = 1 << 30
NOW = 1_800_000_000.0
HOUR = 3600.0


@pytest.mark.parametrize(
    ("cgroups", "found"),
    [
        pytest.param(f"9:name=systemd:/docker/{ID}\n8:pids:/docker/{ID}\n", ID, id="cgroup v1, cgroupfs"),
        pytest.param(f"0::/docker/{ID}\n", ID, id="cgroup v2, cgroupfs"),
        pytest.param(f"0::/system.slice/docker-{ID}.scope\n", ID, id="systemd"),
        pytest.param(f"11:memory:/system.slice/docker-{ID}.scope/init.scope\n0::/x\n", ID, id="systemd, v1, below it"),
        pytest.param(
            f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container\n", ID,
            id="rootless Podman",
        ),
        pytest.param(f"0::/machine.slice/libpod-{ID}.scope/container\n", ID, id="Podman"),
        pytest.param(f"0::/libpod_parent/libpod-{ID}\n", ID, id="Podman, cgroupfs"),
        pytest.param(f"0::/user.slice/user-1000.slice/user@1000.service/docker-{ID}.scope", ID, id="rootless Docker"),
        pytest.param(f"0::/kubepods.slice/pod12.slice/cri-containerd-{ID}.scope\n", ID, id="Kubernetes"),
        pytest.param(f"0::/docker/{ID}/docker/{OTHER}\n", ID, id="one in another: the outer one"),
        pytest.param("0::/user.slice/user-1000.slice/session-3.scope\n", "", id="a session"),
        pytest.param("0::/\n", "", id="the root"),
        pytest.param("", "", id="nothing"),
        pytest.param(f"0::/app.slice/f{ID}.service\n", "", id="digits, and too many of them"),
    ],
)  # fmt: skip
def test_a_process_is_in_a_container(cgroups: str, found: str) -> None:
    assert holders.container_id(cgroups) == found


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["/opt/venv/bin/python", "-u", "train.py", "--token", "s3cret"], "python train.py"),
        (["python3.13", "/workspace/a/train.py"], "python3.13 train.py"),
        (["python", "-m", "torch.distributed.run", "--rdzv", "x"], "python -m torch.distributed.run"),
        (["python", "-W", "error", "-X", "dev", "t.py"], "python t.py"),
        (["python", "-c", "import os; key = 's3cret'"], "python"),
        (["python"], "python"),
        (["/usr/bin/ollama", "serve", "s3cret"], "ollama"),
        ([""], ""),
    ],
)
def test_a_program_is_told_without_its_secrets(words: "list[str]", name: str) -> None:
    assert holders.program(words) == name


def test_a_process_of_this_host_is_seen() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        import time

        before = time.time()
        found = holders.look(child.pid)
        assert found.name.startswith("python")
        assert found.user == holders.name_of(os.getuid())
        assert found.since is not None and abs(found.since - before) < 60
    finally:
        child.communicate(b"\n")
    assert holders.look(child.pid) == Program(child.pid)  # gone


def test_a_process_that_is_hidden_is_its_pid(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a b) c) R 1")
    assert holders.look(7, tmp_path) == Program(7, user=holders.name_of(os.getuid()))


def test_containers_are_asked_of_every_engine_that_answers(tmp_path: Path) -> None:
    """One is silent, one is none, one does not know it, the last one does."""
    body = (
        f'[{{"Id": "{ID}", "Names": ["/anna-x"], "Labels": {{"dev.torchdock.user": "0", "dev.torchdock.role": "up"}}}}]'
    )
    (tmp_path / "docker.sock").write_text("no socket")
    listening = socket.socket(socket.AF_UNIX)
    (tmp_path / "podman").mkdir()
    listening.bind(str(tmp_path / "podman" / "podman.sock"))
    listening.listen()

    def answer() -> None:
        line, _ = listening.accept()
        assert line.recv(4096).startswith(b"GET /containers/json ")
        line.sendall(f"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{body}".encode())
        line.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    env = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "XDG_RUNTIME_DIR": str(tmp_path)}
    assert holders.listed({ID}, env) == {ID: Box("anna-x", "root", "up")}
    thread.join(10)
    listening.close()
    assert not thread.is_alive()


def test_no_engine_is_asked_where_nobody_is_in_a_container(tmp_path: Path) -> None:
    assert holders.listed(set(), {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}) == {}


@pytest.mark.parametrize(
    ("env", "places"),
    [
        ({}, ["/var/run/docker.sock", "/run/podman/podman.sock"]),
        ({"DOCKER_HOST": "tcp://10.0.0.1:2375"}, ["/var/run/docker.sock", "/run/podman/podman.sock"]),
        (
            {"DOCKER_HOST": "unix:///run/user/7/docker.sock", "XDG_RUNTIME_DIR": "/run/user/7"},
            [
                "/run/user/7/docker.sock", "/var/run/docker.sock", "/run/user/7/podman/podman.sock",
                "/run/podman/podman.sock",
            ],
        ),
    ],
)  # fmt: skip
def test_engines_are_looked_for(env: "dict[str, str]", places: "list[str]") -> None:
    assert holders.sockets(env) == places


def test_a_container_without_labels_is_one_too() -> None:
    assert holders.box({"Id": ID, "Names": None, "Labels": None}) == Box(ID[:12])
    assert holders.box({"Id": ID, "Names": ["/x"], "Labels": {"dev.torchdock.user": "evil"}}) == Box("x")


# --- who has what ---

GPU = Gpu(0, "GPU-0", "NVIDIA H200", 140 * GIB, 0)


def of(*processes: int, lease: "Lease | None" = None, **more: object) -> Row:
    """The row of one GPU: process 1 is anna's in her container, 2 in a foreign one, 3 and 4 bob's in none."""
    programs = {
        1: Program(1, "python train.py", "4711", NOW - 60, ID),
        2: Program(2, "serve", "root", NOW - HOUR, OTHER),
        3: Program(3, "python", "bob", NOW - 30),
        4: Program(4, "python", "bob", NOW - 90),
    }
    boxes = {ID: Box("torchdock-anna-night", "anna", "job")}
    gpu = replace(GPU, processes=tuple(Process(pid, pid * GIB) for pid in processes), **more)
    facts = Facts(NOW, {} if lease is None else {"GPU-0": lease}, programs, boxes)
    (row,) = holders.rows(Inventory((gpu,), "1", ""), facts)
    return row


LEASE = Lease(True, False, "anna", "torchdock-anna-night", "job", NOW - 2 * HOUR, NOW + HOUR)


def test_nobody_has_a_free_gpu() -> None:
    assert (of().holders, of().state) == ((), "free")
    assert of(memory_used=71 * GIB).state == "in use"


def test_a_lease_and_the_processes_of_its_container_are_one_holder() -> None:
    row = of(1, lease=LEASE)
    (one,) = row.holders
    assert (one.user, one.container, one.role, one.leased, one.pending) == (
        "anna", "torchdock-anna-night", "job", True, False,
    )  # fmt: skip
    assert (one.since, one.until) == (NOW - 2 * HOUR, NOW + HOUR)
    assert [(program.pid, program.memory) for program in one.programs] == [(1, GIB)]
    assert row.state == "leased"


def test_a_lease_without_a_process_is_a_holder() -> None:
    (one,) = of(lease=LEASE).holders
    assert (one.leased, one.programs) == (True, ())


def test_a_launch_under_way_is_one_too() -> None:
    row = of(lease=replace(LEASE, held=False, pending=True, until=None))
    assert (row.holders[0].pending, row.state) == (True, "launching")


def test_those_without_a_lease_are_told_by_container_and_user() -> None:
    row = of(3, 1, 2, 4)
    assert row.state == "in use"
    assert [(one.user, one.container, one.leased, one.since) for one in row.holders] == [
        ("root", OTHER[:12], False, NOW - HOUR),
        ("bob", "", False, NOW - 90),
        ("anna", "torchdock-anna-night", False, NOW - 60),
    ]
    assert [program.pid for program in row.holders[1].programs] == [3, 4]


def test_a_stranger_on_a_leased_gpu_is_told_beside_the_lease() -> None:
    row = of(1, 3, lease=LEASE)
    assert [(one.user, one.leased) for one in row.holders] == [("anna", True), ("bob", False)]


def test_a_process_that_is_gone_is_its_pid() -> None:
    (one,) = of(99).holders
    assert (one.user, one.container, one.since, one.programs) == ("", "", None, (Program(99, memory=99 * GIB),))


@pytest.mark.parametrize(
    ("processes", "lease", "more", "idle"),
    [
        pytest.param((), None, {}, Idle(NOW, False), id="nothing is told of it: now"),
        pytest.param((), None, {"utilisation": 0}, Idle(NOW, False), id="its load is 0: now"),
        pytest.param((1,), LEASE, {"utilisation": 3}, None, id="it computes"),
        pytest.param((1,), LEASE, {}, None, id="an instance with a process: that is not told"),
        pytest.param(
            (1,), LEASE, {"utilisation": 0, "load": Load(NOW - 20)}, Idle(NOW - 20, False), id="as far as is remembered"
        ),
        pytest.param(
            (1,), LEASE, {"utilisation": 0, "load": Load(NOW - 20, NOW - 12)}, Idle(NOW - 12, True), id="a while ago"
        ),
        pytest.param((1,), LEASE, {"utilisation": 0, "load": Load(NOW - 20, NOW - 2)}, None, id="a moment ago"),
        pytest.param(
            (), LEASE, {"utilisation": 0, "load": Load(NOW - 20, None, NOW - HOUR)}, Idle(NOW - HOUR, True),
            id="since the driver's accounts say that the last process ended",
        ),
        pytest.param(
            (1,), LEASE, {"utilisation": 0, "load": Load(NOW - 20, None, NOW - HOUR)}, Idle(NOW - 20, False),
            id="a process is there: the accounts of others tell nothing",
        ),
        pytest.param(
            (), replace(LEASE, since=NOW - 9), {"utilisation": 0, "load": Load(NOW - 20)}, Idle(NOW - 9, True),
            id="ever since it was leased",
        ),
        pytest.param(
            (), replace(LEASE, since=NOW + 9), {"utilisation": 0, "load": Load(NOW + 20)}, Idle(NOW, False),
            id="clocks that disagree",
        ),
    ],
)  # fmt: skip
def test_how_long_it_has_been_idle(
    processes: "tuple[int, ...]", lease: "Lease | None", more: "dict[str, object]", idle: "Idle | None"
) -> None:
    assert of(*processes, lease=lease, **more).idle == idle


def test_who_looks_on_knows_more() -> None:
    first = replace(of(1, lease=LEASE), idle=Idle(NOW - 20, False))
    later = replace(first, idle=Idle(NOW + 10, False))
    assert holders.looked_on([first], [later]) == [first]
    for idle in (None, Idle(NOW + 10, True)):
        row = replace(first, idle=idle)
        assert holders.looked_on([first], [row]) == [row]
        assert holders.looked_on([row], [later])[0].idle == later.idle or idle is not None
    assert holders.looked_on([], [later]) == [later]


IDLE = {"utilisation": 0, "load": Load(NOW - 20)}
FRIDAY = replace(LEASE, role="up", since=NOW - 62 * HOUR, until=None)


def test_a_lease_that_is_idle_for_long_is_warned_about() -> None:
    (told,) = holders.warnings([of(lease=FRIDAY, **IDLE)], NOW, "bob")
    assert told == (
        "GPU 0 has been leased by anna (torchdock-anna-night) for 2 d 14 h, and nothing has computed on it for at "
        "least 20 s: ask anna whether it is still needed; `invoke down` gives it back; `--time 8h` at its launch "
        "bounds a lease."
    )
    (told,) = holders.warnings([of(lease=replace(FRIDAY, role="job", until=NOW + 9), **IDLE)], NOW, "anna")
    assert told.endswith("20 s: `invoke stop torchdock-anna-night` gives it back.")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(of(lease=replace(FRIDAY, since=NOW - HOUR), **IDLE), id="not for long"),
        pytest.param(of(1, lease=FRIDAY, utilisation=40), id="it computes"),
        pytest.param(of(1, lease=FRIDAY, utilisation=0, load=Load(NOW - 90, NOW - 60)), id="it did a minute ago"),
        pytest.param(of(2, **IDLE), id="no lease"),
        pytest.param(of(), id="nobody"),
    ],
)
def test_others_are_not(row: Row) -> None:
    assert holders.warnings([row], NOW, "bob") == []


# --- words ---


def test_what_others_wrote_reaches_no_terminal_as_a_command() -> None:
    lease = replace(LEASE, user="\x1b[2Janna", container="x\x07\u202ey")
    row = of(lease=lease, **IDLE)
    _, ((_, user, container, *_),) = holders.held([row], NOW)
    assert (user, container) == ("\\x1b[2Janna", "x\\x07\\u202ey (job)")


def test_the_tables_have_all_of_it() -> None:
    row = of(1, 3, lease=LEASE, temperature=41, memory_used=12 * GIB, **IDLE)
    cut = replace(GPU, index=1, uuid="GPU-1")
    part = Row(replace(GPU, index=1, uuid="MIG-1", slot=0, parent="GPU-1", memory_total=0))
    columns, lines = holders.table([row, part], [cut])
    assert columns == ("GPU", "name", "memory, GiB", "load", "temp.", "state", "UUID")
    assert lines == [
        ("0", "NVIDIA H200", "12.0 of 140.0", "0 %", "41 °C", "leased", "GPU-0"),
        ("1", "NVIDIA H200", "0.0 of 140.0", "-", "-", "in MIG mode", "GPU-1"),
        ("1:0", "NVIDIA H200", "-", "-", "-", "free", "MIG-1"),
    ]
    columns, lines = holders.held([row], NOW)
    assert columns == ("GPU", "user", "container", "since", "idle", "processes")
    begun, end = holders.clock(NOW - 2 * HOUR, NOW), holders.clock(NOW + HOUR, NOW)
    assert lines == [
        ("0", "anna", "torchdock-anna-night (job)", f"{begun}, until {end}", "≥ 20 s", "1 python train.py (1.0 GiB)"),
        ("0", "bob", "- (no lease)", holders.clock(NOW - 30, NOW), "≥ 20 s", "3 python (3.0 GiB)"),
    ]


def test_its_document_has_all_of_it() -> None:
    document = of(1, lease=LEASE, **IDLE).document()
    assert (document["uuid"], document["state"], document["idle"]) == (
        "GPU-0",
        "leased",
        {"since": NOW - 20, "exact": False},
    )
    (one,) = document["holders"]
    assert (one["user"], one["container"], one["leased"], one["since"]) == (
        "anna", "torchdock-anna-night", True, NOW - 2 * HOUR,
    )  # fmt: skip
    assert one["programs"] == [
        {"pid": 1, "name": "python train.py", "user": "4711", "since": NOW - 60, "box": ID, "memory": GIB}
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0 s"), (0.9, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h 0 min"),
        (11_100, "3 h 5 min"), (62 * 3600, "2 d 14 h"), (1e9, "11574 d 1 h"),
    ],
)  # fmt: skip
def test_a_span_is_told(seconds: float, words: str) -> None:
    assert holders.span(seconds) == words


def test_a_time_is_told_with_its_day_where_that_is_another() -> None:
    assert len(holders.clock(NOW, NOW)) == 5
    assert holders.clock(NOW - 86400, NOW) != holders.clock(NOW, NOW)
    assert (holders.clock(None, NOW), holders.clock(1e300, NOW)) == ("", "?")
