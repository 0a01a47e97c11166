"""JupyterLab and TensorBoard in the container that is up: each at most once, and for nobody without its token.

The host opens their ports on its 127.0.0.1, which every user of that host can reach, so TensorBoard, which has no token
of its own, gets one too. A token is made here and stands in no command line and no environment, not even in those of
the notebooks; a file tells it that this user alone can read.

    python -P -m torchdock.inside.serve jupyter --start ID                      serves until it is told to end
    python -P -m torchdock.inside.serve tensorboard --start ID --logdir DIR
    python -P -m torchdock.inside.serve jupyter --wait ID                       its state as JSON, as soon as it answers
    python -P -m torchdock.inside.serve jupyter --stop

``--start`` serves nothing where one serves already, so that two who start at once get the same one; ``--wait`` says of
one that did not get as far as answering what it logged.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import signal
import struct
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path("/tmp/torchdock")
WORKSPACE = "/workspace"
START_SECONDS = 90.0  # a busy machine and a cold disk included; usual are 2 to 5
STOP_SECONDS = 15.0
LOG_LINES = 15


@dataclass(frozen=True)
class Server:
    """What can be served.

    Attributes:
        port: where it listens, in the container.
        probe: a path that answers 200 to whoever has the token.
    """

    port: int
    probe: str


SERVERS = {"jupyter": Server(8888, "/api/status"), "tensorboard": Server(6006, "/data/environment")}


class Place:
    """The files of one server: a lock that it holds while it lives, its state, its log."""

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.lock, self.state, self.log = (folder / f"{name}.{end}" for end in ("lock", "json", "log"))

    def claim(self) -> int | None:
        """Take the lock, for as long as this process lives; None where another process has it."""
        handle = os.open(self.lock, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
        return handle

    def holder(self) -> int:
        """The process that holds the lock, or 0. Takes no lock to find out, which could turn a claim away."""
        flock = struct.Struct("@hhqqi4x")
        handle = os.open(self.lock, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            asked = flock.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, process = flock.unpack(fcntl.fcntl(handle, fcntl.F_GETLK, asked))
        finally:
            os.close(handle)
        return 0 if kind == fcntl.F_UNLCK else int(process)

    def write(self, state: dict[str, Any]) -> None:
        """Replace the state at once; this user alone can read it."""
        new = self.state.with_suffix(".new")
        handle = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(state, file)
        new.replace(self.state)

    def read(self) -> dict[str, Any]:
        """The state that was written last; empty where none was."""
        try:
            found: dict[str, Any] = json.loads(self.state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return found

    def tail(self) -> list[str]:
        """The last lines that the server logged."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-LOG_LINES:]


def serve(name: str, start: str, logdir: str, place: Place) -> int:
    """Serve until SIGTERM; at once back where one serves already. Its exit code."""
    handle = place.claim()
    if handle is None:
        return 0
    token = secrets.token_urlsafe(24)
    log = os.open(place.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    state = {"start": start, "token": token, "port": SERVERS[name].port, "log": str(place.log)}
    place.write(state | ({"logdir": logdir, "there": os.path.isdir(logdir)} if logdir else {}))
    return jupyter(token) if name == "jupyter" else tensorboard(token, logdir)


def jupyter(token: str) -> int:
    """JupyterLab on the workspace; every kernel, terminal and page asks for the token."""
    from jupyterlab.labapp import LabApp

    LabApp.launch_instance([
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={WORKSPACE}",
        "--ServerApp.ip=0.0.0.0",  # of the container's own network; who reaches it is decided where it is published
        f"--ServerApp.port={SERVERS['jupyter'].port}",
        "--ServerApp.port_retries=0",  # another port would be open to nobody
        "--ServerApp.open_browser=False",
        "--ServerApp.allow_root=True",  # the caller is UID 0, or the engine is rootless, where root is the caller
        "--ServerApp.terminado_settings=shell_command=['/bin/bash']",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",  # the lock says what is new
        "--LabApp.news_url=None",
    ])  # fmt: skip
    return 0


def tensorboard(token: str, logdir: str) -> int:
    """TensorBoard on a folder, which may appear later, behind a token."""
    from tensorboard import default, program

    def guarded(app: Any, flags: Any) -> Any:
        return program.WerkzeugServer(guard(app, token), flags)

    board = program.TensorBoard(default.get_plugins(), server_class=guarded)
    board.configure(("", "--logdir", logdir, "--host", "0.0.0.0", "--port", str(SERVERS["tensorboard"].port)))
    return int(board.main())


Respond = Callable[..., Any]
Application = Callable[[dict[str, Any], Respond], Iterable[bytes]]


def guard(app: Application, token: str) -> Application:
    """A WSGI application that answers only those who know the token: by ``?token=`` once, then by a cookie."""
    # Cookies of 127.0.0.1 go to all its ports: one name for each server.
    cookie = f"torchdock-{hashlib.sha256(token.encode()).hexdigest()[:12]}"

    def knows(given: str) -> bool:
        return hmac.compare_digest(given.encode(), token.encode())

    def answer(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""))
        kept = [pair.strip().partition("=")[::2] for pair in environ.get("HTTP_COOKIE", "").split(";")]
        if knows(query.get("token", [""])[0]):
            header = ("Set-Cookie", f"{cookie}={token}; Path=/; HttpOnly; SameSite=Lax")
            return app(environ, lambda status, headers, *more: respond(status, [*headers, header], *more))
        if any(key == cookie and knows(value) for key, value in kept):
            return app(environ, respond)
        respond("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"This TensorBoard asks for its token: open the whole address that `invoke tensorboard` prints.\n"]

    return answer


def answers(url: str) -> bool:
    """Whether something answers 200 there, asked without the proxies of the environment."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):  # refused, reset, 403, no HTTP
        return False


def wait(name: str, start: str, place: Place, seconds: float = START_SECONDS) -> dict[str, Any]:
    """The state of the server that runs, as soon as it answers; ``started``: it is the one of this start.

    Where none comes to answer: ``error`` and the last lines of its log.
    """
    server = SERVERS[name]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state, runs = place.read(), place.holder()
        if state and runs and answers(f"http://127.0.0.1:{server.port}{server.probe}?token={state['token']}"):
            return {**state, "started": state["start"] == start}
        if state.get("start") == start and not runs:
            return {"error": "it ended at once", "lines": place.tail(), "log": str(place.log)}
        time.sleep(0.1)
    return {"error": f"it gave no answer in {seconds:.0f} s", "lines": place.tail(), "log": str(place.log)}


def stop(place: Place, seconds: float = STOP_SECONDS) -> bool:
    """End the server, in good order if it can; False where none runs."""
    process = place.holder()
    if not process:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(process, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if place.holder() != process:
                return True
            time.sleep(0.05)
    return True


def main(argv: list[str]) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -P -m torchdock.inside.serve")
    parser.add_argument("name", choices=sorted(SERVERS))
    parser.add_argument("--logdir", default="")
    verb = parser.add_mutually_exclusive_group(required=True)
    verb.add_argument("--start", metavar="ID")
    verb.add_argument("--wait", metavar="ID")
    verb.add_argument("--stop", action="store_true")
    asked = parser.parse_args(argv)
    place = Place(asked.name)
    if asked.start is not None:
        return serve(asked.name, asked.start, asked.logdir, place)
    print(json.dumps({"stopped": stop(place)} if asked.stop else wait(asked.name, asked.wait, place)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
