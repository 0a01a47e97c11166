"""A shared server at nine in the morning: four users, one clone, twenty launches at once; then one port for all."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import open_clone
from tests.unit.given import open_folder
from torchdock import lifeline
from torchdock.engine import Engine
from torchdock.state import CloneState

UIDS = (0, 4101, 4102, 4103)  # none but root has a passwd entry; no other test has them


@dataclass(frozen=True)
class User:
    """Somebody in the docker group, with a folder to work in."""

    uid: int
    group: int
    clone: Path
    folder: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`invoke` with these words, as this user types it."""
        # Coverage's data is root's to write; the variables of git, pip and proxies stay.
        env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        return subprocess.Popen(
            [str(self.clone / ".venv/bin/python"), "-m", "invoke", *words],
            cwd=self.clone, env={**env, "HOME": str(self.folder)}, user=self.uid, group=self.uid,
            extra_groups=[self.group], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end(self, *words: str) -> tuple[int, str, str]:
        """The same to its end: code, stdout, stderr."""
        child = self.start(*words)
        out, err = child.communicate(timeout=100)
        return child.returncode, out, err


@pytest.fixture(scope="module")
def users(engine: Engine, image: dict[str, Any]) -> Iterator[list[User]]:
    """Four of them with one clone that all can read; what they leave on the engine and in /tmp is removed."""
    group = os.stat(engine.facts.endpoint.removeprefix("unix://")).st_gid
    with ExitStack() as stack:
        room = stack.enter_context(open_folder())
        clone = open_clone(room / "clone", room / "tools")
        made = []
        for uid in UIDS:
            folder = room / f"home-{uid}"
            folder.mkdir()
            os.chown(folder, uid, uid)
            made.append(User(uid, group, clone, folder))
        label = f"dev.torchdock.clone={CloneState(clone).clone}"
        try:
            yield made
        finally:
            for found in engine.containers([label]):
                engine.remove_container(found["Id"])
            for volume in engine.client.volumes.list():
                if volume.name in {f"torchdock-cache-{uid}" for uid in UIDS if uid}:
                    volume.remove()
            for uid in UIDS:
                if uid:
                    shutil.rmtree(lifeline.FOLDERS / f"torchdock-{uid}", ignore_errors=True)


def free_ports(count: int) -> list[str]:
    """Ports of 127.0.0.1 that nobody has now."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [str(server.getsockname()[1]) for server in servers]


def left(engine: Engine, user: User) -> list[str]:
    """The containers of this clone that are there."""
    return [found["Names"][0] for found in engine.containers([f"dev.torchdock.clone={CloneState(user.clone).clone}"])]


@pytest.mark.slow
def test_twenty_launches_at_once_from_four_users(engine: Engine, users: list[User]) -> None:
    ports = free_ports(len(users))
    started: list[tuple[User, str, subprocess.Popen[str]]] = []
    for number, (user, port) in enumerate(zip(users, ports, strict=True)):
        where = ["run", "-w", str(user.folder)]
        for kind, words in {
            "streams": [*where, "--", "sh", "-c", f"echo out {user.uid}; echo err {user.uid} >&2; exit {10 + number}"],
            "stdin": [*where, "--", "cat"],
            "port": [*where, "-p", port, "--", "sh", "-c", "id -u"],
            "file": [*where, "--", "python", "-c", "open('made', 'w').write('x')"],
            "job": [
                *where,
                "--detach",
                "--name",
                "night",
                "--",
                "sh",
                "-c",
                f"echo job {user.uid}; exit {20 + number}",
            ],
        }.items():
            started.append((user, kind, user.start(*words)))
    assert len(started) == 20
    names = set()
    for user, kind, child in started:
        out, err = child.communicate(f"typed {user.uid}\n" if kind == "stdin" else None, timeout=100)
        told = (user.uid, kind, child.returncode, out, err)
        number = users.index(user)
        assert child.returncode == (10 + number if kind == "streams" else 0), told
        expected = {"streams": f"out {user.uid}\n", "stdin": f"typed {user.uid}\n", "port": f"{user.uid}\n", "file": ""}
        assert out == expected.get(kind, "night\n"), told
        if kind == "streams":
            assert f"err {user.uid}\n" in err
        assert "Traceback" not in err and "torchdock: " not in err, told
        name = re.search(r"^In (torchdock-\S+) ", err, re.MULTILINE)
        assert name is not None, told
        names.add(name[1])
    assert len(names) == 20
    for number, user in enumerate(users):
        assert (user.folder / "made").stat().st_uid == user.uid
        assert user.end("logs", "-f", "night")[:2] == (0, f"job {user.uid}\n")
        code, out, err = user.end("stop", "--remove", "night")
        assert (code, f"(exit code {20 + number}), removed" in out) == (0, True), (out, err)
        folder = lifeline.FOLDERS / f"torchdock-{user.uid}"
        held = {path.name for path in folder.glob("*")} if user.uid else set()
        assert held == set()
    assert left(engine, users[0]) == []


@pytest.mark.slow
def test_one_port_for_four_users_goes_to_one(engine: Engine, users: list[User]) -> None:
    """The three others are told, whether the probe or the engine noticed it, as wrong input; nothing is left."""
    (port,) = free_ports(1)
    command = "echo have it; until [ -e /workspace/end ]; do sleep 0.05; done"
    children = [user.start("run", "-w", str(user.folder), "-p", port, "--", "sh", "-c", command) for user in users]
    try:
        deadline = time.monotonic() + 90
        while sum(child.poll() is None for child in children) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        running = [child for child in children if child.poll() is None]
        assert len(running) == 1
        assert len(left(engine, users[0])) == 1
    finally:
        for user in users:
            (user.folder / "end").touch()
        ended = [(*child.communicate(timeout=60), child.returncode) for child in children]
    assert sorted(code for *_, code in ended) == [0, 2, 2, 2], ended
    assert [out for out, _, code in ended if code == 0] == ["have it\n"]
    for out, err, code in ended:
        if code == 2:
            assert out == ""
            assert err.splitlines()[-1].startswith(f"torchdock: The port {port} of 127.0.0.1 cannot be used"), err
            assert err.count("torchdock: ") == 1
            assert "Traceback" not in err
    assert left(engine, users[0]) == []
