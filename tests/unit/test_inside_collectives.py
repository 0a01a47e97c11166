"""How the processes of a training fail to meet, read from return codes and from NCCL's log; and the command line."""

import signal
from pathlib import Path

import pytest

from torchdock.inside import collectives, devices
from torchdock.inside.collectives import Outcome, Transport

# NCCL's own lines (NCCL_DEBUG=INFO), as users have posted them.
ALONE = """\
lab:1425048:1425048 [0] NCCL INFO NET/IB : No device found.
lab:1425048:1425048 [0] NCCL INFO NET/IB : Using [RO]; OOB enp129s0:10.0.0.195<0>
lab:1425048:1425048 [0] NCCL INFO Failed to initialize NET plugin IB
lab:1425048:1425048 [0] NCCL INFO NET/Socket : Using [0]enp129s0:10.0.0.195<0> [1]wlp128s20f3:10.0.2.15<0>
lab:1425048:1425048 [0] NCCL INFO Assigned NET plugin Socket to comm
lab:1425048:1425048 [0] NCCL INFO Using network Socket
"""
NVLINK = (
    ALONE
    + """\
node:919:1150 [0] NCCL INFO Channel 01/0 : 8[0] -> 15[7] via P2P/IPC/read
node:919:1150 [0] NCCL INFO Channel 02/0 : 0[0] -> 1[1] via P2P/CUMEM
"""
)
SOCKETS = ALONE + "node:926:1151 [7] NCCL INFO Channel 03/0 : 15[7] -> 6[6] [send] via NET/Socket/3\n"
SHARED = (
    ALONE
    + """\
altair:1696338:1696401 [0] NCCL INFO Could not enable P2P between dev 0(=41000) and dev 1(=81000)
altair:1696338:1696401 [0] NCCL INFO Channel 00 : 0[41000] -> 1[81000] via SHM/direct/direct
"""
)
INFINIBAND = """\
node:1:1 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB ; OOB ib0:10.0.0.1<0>
node:1:1 [0] NCCL INFO Using network IB
node:1:9 [0] NCCL INFO Channel 01/1 : 3[81000] -> 0[41000] [receive] via NET/IB/0/Shared
"""
OLD = "c6ad:117277:117384 [0] NCCL INFO Ring 00 : 15 -> 0 [receive] via NET/Socket/0\n"
FULL = """\
gpu:77:95 [1] misc/shmutils.cc:72 NCCL WARN Error: failed to extend /dev/shm/nccl-WBHN1q to 9637892 bytes
gpu:77:95 [1] misc/shmutils.cc:113 NCCL WARN Error while creating shared memory segment /dev/shm/nccl-WBHN1q
gpu:77:95 [1] misc/shmutils.cc:113 NCCL WARN Error while creating shared memory segment /dev/shm/nccl-WBHN1q
torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, unhandled system error
"""


@pytest.mark.parametrize(
    ("log", "network", "channels"),
    [
        ("", "", set()),
        (ALONE, "Socket", set()),
        (NVLINK, "Socket", {"P2P"}),
        (SHARED, "Socket", {"SHM"}),
        (SOCKETS, "Socket", {"NET/Socket"}),
        (INFINIBAND, "IB", {"NET/IB"}),
        (OLD, "", {"NET/Socket"}),
    ],
)
def test_nccl_log_names_its_ways(log: str, network: str, channels: set[str]) -> None:
    assert collectives.transport(log) == Transport(network, frozenset(channels), ())


def test_nccl_warnings_are_read_once_each() -> None:
    first, second = collectives.transport(FULL).warnings
    assert first.startswith("Error: failed to extend /dev/shm") and second.startswith("Error while creating")


def test_tcp_beside_infiniband_is_named() -> None:
    way = collectives.transport(SOCKETS)
    told = collectives.tcp_instead(way, ["mlx5_0", "mlx5_1"], reachable=False)
    assert told is not None
    assert "mlx5_0, mlx5_1" in told and "no /dev/infiniband" in told and "Remedy: launch with --device" in told
    assert "\n" not in told
    hidden = collectives.tcp_instead(way, ["mlx5_0"], reachable=True)
    assert hidden is not None and "locked memory" in hidden
    assert collectives.tcp_instead(collectives.transport(OLD), ["mlx5_0"], reachable=True) is not None


@pytest.mark.parametrize(
    ("log", "there"),
    [(SOCKETS, []), (INFINIBAND, ["mlx5_0"]), ("", ["mlx5_0"]), ("NCCL INFO Using network AWS", ["x"])],
)
def test_no_tcp_no_infiniband_no_words(log: str, there: list[str]) -> None:
    assert collectives.tcp_instead(collectives.transport(log), there, reachable=True) is None


def test_adapters(tmp_path: Path) -> None:
    assert collectives.adapters(tmp_path / "none") == []
    (tmp_path / "mlx5_1").mkdir()
    (tmp_path / "mlx5_0").mkdir()
    assert collectives.adapters(tmp_path) == ["mlx5_0", "mlx5_1"]


GOOD = Outcome((0, 0), None, 3.0, ("", ""))
HUNG = Outcome((0, None), None, 90.0, (SHARED, ""))


def test_good_is_no_problem() -> None:
    assert GOOD.good and not GOOD.hung
    assert collectives.problem("gloo", GOOD) is None


def test_a_hang_that_p2p_makes_is_named() -> None:
    assert HUNG.hung
    told = collectives.problem("nccl", HUNG, without_p2p=GOOD)
    assert told is not None
    assert "rank 1 hung" in told and "PCIe ACS" in told and "Remedy: export NCCL_P2P_DISABLE=1" in told


def test_a_hang_of_another_kind_is_not_p2ps() -> None:
    told = collectives.problem("nccl", HUNG, without_p2p=HUNG)
    assert told is not None and "Nor do they with NCCL_P2P_DISABLE=1" in told and "ACS" not in told
    alone = collectives.problem("gloo", HUNG)
    assert alone is not None and "P2P" not in alone and "Remedy: " in alone


@pytest.mark.parametrize(
    ("code", "log", "words"),
    [
        (-signal.SIGKILL, "", "rank 1 ended by signal SIGKILL; the run ended in 4.0 s. Remedy: out of memory"),
        (-signal.SIGBUS, "", "Remedy: a bus error means /dev/shm is too small"),
        (1, FULL, "Remedy: /dev/shm is too small"),
        (1, "Traceback\nncclInvalidUsage: Duplicate GPU detected : rank 1\n", "a GPU of its own"),
        (
            3,
            "one thing\nlast thing\n",
            "rank 1 failed with exit code 3; the run ended in 4.0 s. Last words: last thing.",
        ),
        (1, "", "Last words: none"),
    ],
)
def test_a_rank_that_fails_is_named(code: int, log: str, words: str) -> None:
    told = collectives.problem("nccl", Outcome((None, code), 1, 4.0, (SHARED, log)))
    assert told is not None and words in told and "Remedy: " in told and "\n" not in told


def test_a_rank_that_failed_is_no_hang() -> None:
    """The others were still waiting for it when they were ended."""
    assert not Outcome((None, 1), 1, 4.0, ("", "")).hung


def test_ranks_do_not_inherit_a_torchrun() -> None:
    given = {"HOME": "/h", "MASTER_ADDR": "x", "TORCHELASTIC_RUN_ID": "1", "RANK": "7", "OMP_NUM_THREADS": "2"}
    made = collectives.environment(given, 1, 2)
    assert (made["RANK"], made["LOCAL_RANK"], made["WORLD_SIZE"], made["HOME"]) == ("1", "1", "2", "/h")
    assert made["OMP_NUM_THREADS"] == "2"
    assert not {"MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & made.keys()


def test_a_rank_that_dies_ends_the_other_one(tmp_path: Path) -> None:
    """With real processes: the one that waits for ever is ended, and nothing is left of either."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, signal, sys, time\n"
        f"open(os.path.join({str(tmp_path)!r}, os.environ['RANK']), 'w').write(str(os.getpid()))\n"
        f"while not os.path.exists({str(tmp_path / '1')!r}): time.sleep(0.01)\n"
        "sys.exit('the reason') if os.environ['RANK'] == '0' else signal.pause()\n"
    )
    outcome = collectives.run("gloo", 2, seconds=30, command=[str(script)], after=0.2)
    assert (outcome.codes, outcome.first) == ((1, None), 0)
    assert outcome.seconds < 20
    told = collectives.problem("gloo", outcome)
    assert told is not None and "rank 0 failed with exit code 1" in told and "Last words: the reason" in told
    waiting = int((tmp_path / "1").read_text())
    assert not Path(f"/proc/{waiting}").exists()


@pytest.mark.parametrize("argv", [["--processes", "1"], ["--processes", "100"], ["--backend", "mpi"], ["x"]])
def test_wrong_options_exit_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        collectives.arguments(argv)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("uuids", "mig", "setting", "expected"),
    [
        (["aa", "bb"], False, None, True),
        (["aa"], False, None, False),
        (["aa", "bb"], False, "1", False),
        (["aa", "bb"], False, "GPU-bb,GPU-aa", True),
        (["aa", "bb"], True, None, False),
    ],
)
def test_two_gpus_are_counted_as_cuda_shows_them(
    monkeypatch: pytest.MonkeyPatch, uuids: list[str], mig: bool, setting: "str | None", expected: bool
) -> None:
    found = tuple(devices.NvmlDevice(uuid, "H200", 1, mig) for uuid in uuids)
    monkeypatch.setattr(devices, "nvml", lambda: devices.Nvml("580.65.06", 13000, found))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert devices.several() is expected


def test_without_a_driver_there_are_no_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> devices.Nvml:
        raise RuntimeError("NVML does not answer")

    monkeypatch.setattr(devices, "nvml", silent)
    assert devices.several() is False
