"""The watch over a container's GPUs: what counts as lost, and how a command is ended."""

import errno
import signal
import subprocess
import time
from typing import Any

import pytest

from torchdock.inside import watch


def seen(code: int = 0, uuids: "tuple[str, ...]" = ("GPU-1",), **nodes: int) -> "dict[str, Any]":
    paths = {f"/dev/{name}": number for name, number in nodes.items()}
    return {"code": code, "call": "nvmlInit_v2", "error": "", "visible": [] if code else [*uuids], "nodes": paths}


FIRST = seen(nvidiactl=0, nvidia0=0, nvidia7=errno.EPERM)  # nvidia7 was never ours


@pytest.mark.parametrize(
    ("now", "words"),
    [
        pytest.param(FIRST, "", id="as before"),
        pytest.param(seen(999, nvidiactl=0, nvidia0=0), "gives 999 (unknown error)", id="unknown error"),
        pytest.param(seen(15, nvidiactl=0, nvidia0=0), "gives 15 (the GPU is lost)", id="lost"),
        pytest.param(
            seen(999, nvidiactl=errno.EPERM, nvidia0=0),
            "/dev/nvidiactl cannot be opened any more (Operation not permitted)",
            id="the rules were dropped",
        ),
        pytest.param(seen(9, nvidia0=0), "/dev/nvidiactl is gone", id="the node is gone"),
        pytest.param(seen(uuids=(), nvidiactl=0, nvidia0=0), "does not list GPU-1 any more", id="off its bus"),
        pytest.param(seen(uuids=("GPU-1", "GPU-2"), nvidiactl=0, nvidia0=0), "", id="one more"),
        pytest.param(seen(3, nvidiactl=0, nvidia0=0), "", id="an answer that means nothing"),
        pytest.param(seen(18, nvidiactl=0, nvidia0=0), "", id="a driver that is being updated"),
    ],
)
def test_what_counts_as_lost(now: "dict[str, Any]", words: str) -> None:
    reason = watch.judge(FIRST, now)
    assert bool(reason) is bool(words)
    assert words in reason


def test_a_hiccup_is_not_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = seen(999, nvidiactl=0, nvidia0=0)
    answers = iter([bad, bad, FIRST, bad, None, bad, bad])
    said: list[str] = []
    monkeypatch.setattr(watch, "look", lambda: next(answers))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert "gives 999" in watch.watch(FIRST, 10.0, said.append)
    assert len(said) == 1 and "no answer for 20 s" in said[0]
    assert next(answers, "all were needed") == "all were needed"


def test_a_driver_that_hangs_at_the_start_is_watched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = seen(uuids=(), nvidiactl=0, nvidia0=0)
    answers = iter([None, FIRST, gone, gone, gone])
    said: list[str] = []
    monkeypatch.setattr(watch, "look", lambda: next(answers))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert "does not list GPU-1" in watch.watch(None, 10.0, said.append)
    assert len(said) == 1


def test_a_look_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(watch.sight, "look", lambda: time.sleep(600))
    began = time.monotonic()
    assert watch.look() is None
    assert time.monotonic() - began < 10


def test_a_look_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.sight, "look", lambda: FIRST)
    assert watch.look() == FIRST


@pytest.mark.parametrize(
    ("trap", "code"), [("echo saved; exit 3", 3), ("", -signal.SIGKILL)], ids=["it saves", "it does not hear"]
)
def test_a_command_gets_its_grace_and_no_more(trap: str, code: int) -> None:
    script = f"trap '{trap}' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        watch.end(child.pid, 1)
        assert child.wait(timeout=10) == code


def test_a_command_that_is_gone_needs_no_end() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    watch.end(child.pid, 1)
