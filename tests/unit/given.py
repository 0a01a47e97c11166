"""What the unit tests of the host side are given: facts, an engine that answers from a table, identities."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from torchdock.engine import Engine, EngineFacts, ImageFacts
from torchdock.identity import Identity

ROOT = Path(__file__).resolve().parents[2]
SOCKET = "unix:///var/run/docker.sock"
INFO = {
    "ID": "b4c1",
    "ServerVersion": "26.1.5",
    "Architecture": "x86_64",
    "MemTotal": 16 << 30,
    "NCPU": 8,
    **dict.fromkeys(("MemoryLimit", "SwapLimit", "CpuCfsQuota", "CPUShares", "PidsLimit"), True),
    "SecurityOptions": ["name=seccomp"],
}
ANNA = Identity(uid=1000, gid=1000, groups=(44, 998), name="anna")
NOBODY = 65534


def facts(**different: Any) -> EngineFacts:
    """Facts of an engine that answers on this host, except for what is named."""
    usual: dict[str, Any] = {
        "cli": "/usr/bin/docker",
        "binary": "/usr/sbin/dockerd",
        "unit": True,
        "context": "default",
        "endpoint": SOCKET,
        "info": INFO,
        "error": "",
        "buildx": "v0.13.1",
    }
    return EngineFacts(**{**usual, **different})


class TableEngine(Engine):
    """An engine whose disk, limits, images and containers are what the test says; it launches nothing."""

    def __init__(
        self,
        *,
        info: Mapping[str, Any] = INFO,
        open_files: int | None = 20_000,
        data_root: Path | None = None,
        images: Sequence[str] = (),
        containers: Sequence[dict[str, Any]] = (),
        cli: str = "/usr/bin/docker",
        cached_steps: int = 100,
        started: bool = False,
        podman: Mapping[str, Any] | None = None,
        owner: int | None = None,
    ) -> None:
        super().__init__(facts(info=info, cli=cli, podman=podman or {}))
        self._owner = owner
        self._given = (open_files, data_root, tuple(images), list(containers))
        self._counted = (cached_steps, started)
        self.removed: list[str] = []
        self.busy: list[str] = []

    @cached_property
    def client(self) -> Any:
        """Refused: what a unit test finds out must not depend on an engine that happens to run on this host."""
        raise AssertionError("a unit test asked a real engine; TableEngine lacks that answer")

    @property
    def open_files(self) -> int | None:
        return self._given[0]

    @property
    def owner(self) -> int | None:
        return self._owner

    @property
    def data_root(self) -> Path | None:
        return self._given[1]

    def image(self, reference: str) -> ImageFacts | None:
        return ImageFacts(f"sha256:{reference}", ("sha256:1",), 1) if reference in self._given[2] else None

    def history(self, reference: str) -> list[dict[str, Any]]:
        return []

    def containers(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        def has(found: dict[str, Any], label: str) -> bool:
            key, equals, value = label.partition("=")
            return found["Labels"].get(key) == value if equals else key in found["Labels"]

        return [found for found in self._given[3] if all(has(found, label) for label in labels)]

    def sees(self, folder: Path) -> bool:
        return True

    def cached_steps(self) -> int:
        return self._counted[0]

    def had(self, name: str, event: str, since: float) -> bool:
        return event == "start" and self._counted[1]

    def sessions(self, name: str) -> list[str]:
        return self.busy

    def processes(self, name: str) -> list[str]:
        return ["/usr/bin/tini -- entrypoint.sh python", "python train.py"]

    def remove_container(self, name: str) -> bool:
        self.removed.append(name)
        return len(self.removed) == 1


def program(path: Path, script: str) -> str:
    """An executable shell script; returns its path."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach (pytest's own temporary folders are private to one)."""
    folder = Path(tempfile.mkdtemp(prefix="torchdock-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def at_once() -> Iterator[None]:
    """Fails, rather than hangs, where a pipe is waited for."""

    def late(*_: Any) -> None:
        raise AssertionError("it waited for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user who is not root: as nobody where the tests run as root, else as whoever runs them."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


class Screen:
    """What a step was told to show."""

    def __init__(self) -> None:
        self.doing: list[str] = []
        self.finished: list[str] = []
        self.measured: list[tuple[float | None, str]] = []

    def now(self, text: str) -> None:
        self.doing.append(text)

    def measure(self, fraction: "float | None", text: str) -> None:
        self.measured.append((fraction, text))

    def done(self, text: str) -> None:
        self.finished.append(text)
