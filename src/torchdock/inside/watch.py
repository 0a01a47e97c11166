"""Watches over the GPUs of a container while it lives, and ends its command in good order when they are lost.

    python -m torchdock.inside.watch PID end|tell      started by the entrypoint where GPUs were assigned

A GPU is lost where the driver says so, where its device nodes can no longer be opened (a systemd reload drops the rules
of GPUs that came by the legacy hook: NVIDIA/nvidia-container-toolkit#48), or where it is no longer among those that are
seen. Then the reason is said on stderr and left for the client (:data:`WORD`) and for later commands (:data:`MARK`),
and PID gets SIGTERM and its grace. ``tell`` does all but that, for what a person types to. That a driver gives no
answer is said and nothing else: it may be at work.
"""

from __future__ import annotations

import glob
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torchdock.inside import sight

SECONDS = 10.0  # between looks; TORCHDOCK_WATCH names another number, 0 for none
AGAIN = 2  # looks that have to say the same, so that no hiccup ends a training
ANSWER_SECONDS = 20.0
WORD = "/run/torchdock/word"
MARK = "/tmp/torchdock-gpu-lost"
NO_LIBRARY = 12  # NVML_ERROR_LIBRARY_NOT_FOUND
LOST = {4: "no permission", 9: "no driver", 15: "the GPU is lost", 16: "the GPU needs a reset", 999: "unknown error"}


def judge(first: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is lost since the first look, in words with its cause; empty where nothing is. Pure."""
    closed = {path: code for path, code in now["nodes"].items() if code and first["nodes"].get(path) == 0}
    if closed:
        path, code = next(iter(closed.items()))
        return (
            f"{path} cannot be opened any more ({os.strerror(code)}): the rules that let this container at its GPU "
            "were dropped, as a systemd reload on the host does to a GPU that did not come by CDI"
        )
    gone = sorted({path for path, code in first["nodes"].items() if code == 0} - set(now["nodes"]))
    if gone:
        return f"{gone[0]} is gone: the driver was unloaded, or the GPU taken away, on the host"
    if now["code"] in LOST:
        cause = "`sudo dmesg | grep -i xid` on the host tells the cause"
        return f"NVML's {now['call']} gives {now['code']} ({now['error'] or LOST[now['code']]}): {cause}"
    if now["code"] == 0:
        missing = set(first["visible"]) - set(now["visible"])
        if missing:
            return f"the driver does not list {', '.join(sorted(missing))} any more: the GPU fell off its bus"
    return ""


def look() -> dict[str, Any] | None:
    """:func:`sight.look` in a child of its own, for only a new process asks the driver anew; None without an answer."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as answer:
                json.dump(sight.look(), answer)
        finally:
            os._exit(0)
    os.close(writer)
    text, deadline = b"", time.monotonic() + ANSWER_SECONDS
    with os.fdopen(reader, "rb", buffering=0) as answers:
        while select.select([answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = answers.read(65536)
            if not part:
                break
            text += part
    os.kill(child, signal.SIGKILL)
    if text:
        os.waitpid(child, 0)
    else:  # one that hangs in the kernel cannot be waited for
        os.waitpid(child, os.WNOHANG)
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return found


def watch(first: Mapping[str, Any] | None, seconds: float, say: Callable[[str], None]) -> str:
    """Look until something is lost, and return what; ``first``: the first look, None where the driver hung then."""
    heard = True
    before: list[str] = []
    now = first
    while True:
        if now is None:
            if heard:
                say(f"the NVIDIA driver has given no answer for {ANSWER_SECONDS:.0f} s; the command is left alone")
            heard = False
        else:
            heard = True
            first = first or now
            reason = judge(first, now)
            if reason and len(before) >= AGAIN:
                return reason
            before = [*before, reason] if reason else []
        time.sleep(min(seconds, 2.0) if before else seconds)
        now = look()


def awake(paths: Sequence[str]) -> list[int]:
    """The devices, held open: else a driver without persistence would start an idle GPU anew for each look."""
    held = []
    for path in paths:
        with suppress(OSError):
            held.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    return held


def _leave(path: str, flags: int, text: str) -> None:
    with suppress(OSError), os.fdopen(os.open(path, flags | os.O_WRONLY | os.O_CLOEXEC, 0o644), "w") as file:
        file.write(text + "\n")


def _say(text: str) -> None:
    with suppress(OSError):
        print(f"torchdock: {text}", file=sys.stderr, flush=True)


def end(pid: int, grace: int) -> None:
    """SIGTERM, and SIGKILL after the grace, in seconds."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)


def main(pid: int, manner: str) -> None:
    """Watch, until a GPU is lost or the container ends."""
    seconds = float(os.environ.get("TORCHDOCK_WATCH") or SECONDS)
    grace = int(os.environ.get("TORCHDOCK_GRACE") or 120)
    first: dict[str, Any] | None = look() if seconds else {"code": NO_LIBRARY}
    if first is not None and first["code"] == NO_LIBRARY:  # no driver came in at all: nothing to lose
        return
    if first is not None and first["code"]:  # lost before the first look: what the launch proved counts
        first = {**first, "nodes": dict.fromkeys(first["nodes"], 0)}
    held = awake([path for path, code in first["nodes"].items() if code == 0] if first else [])
    reason = watch(first, seconds, _say)
    for one in held:
        os.close(one)
    _leave(WORD, 0, reason)
    _leave(MARK, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, reason)
    if manner == "end":
        _say(f"this container has lost its GPU: {reason}. SIGTERM now, and {grace} s to save")
        end(pid, grace)
        return
    text = f"this container has lost its GPU: {reason}. Save your work and launch it anew"
    _say(text)
    for path in glob.glob("/dev/pts/[0-9]*"):  # the terminals of the commands that people run in it
        _leave(path, os.O_NOCTTY | os.O_NONBLOCK, f"\r\ntorchdock: {text}\r")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
