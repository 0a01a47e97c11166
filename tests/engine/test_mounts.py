"""Mounts, variables, secrets, ports and a workspace's torchdock.toml, seen from inside and from the host."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.engine.conftest import ROOT, Invoke, argv
from tests.engine.waiting import SECONDS, until
from torchdock.engine import Engine

Leftovers = Callable[[str], Sequence[str]]

pytestmark = pytest.mark.usefixtures("image")

# Split, so that the secret is not in the text of this test's own command lines.
HIDDEN = "hunter2" + "-and-more"


def test_mounts_of_every_kind_are_there(invoke: Invoke, tmp_path: Path) -> None:
    workspace = tmp_path / "work, space: here"
    names = {"plain": "/data/rw", "read only": "/data/ro", "a,b": "/data/with, comma", "a:b": "/data/colon", "ü": "/ü"}
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "found").write_text(name)
    workspace.mkdir()
    (tmp_path / "one file.txt").write_text("file\n")
    options = [word for name, target in names.items() for word in ("-v", f"{name}:{target}")]
    options[options.index("read only:/data/ro")] += ":ro"
    options += ["-v", f"{tmp_path}/one file.txt:/etc/one file.txt:ro", "-v", "plain:/workspace/inner:rw"]
    script = "\n".join(
        [
            *(f"cat '{target}/found'; echo" for target in names.values()),
            "cat '/etc/one file.txt'",
            "cat /workspace/inner/found; echo",
            "touch /data/rw/made && echo written",
            "touch /data/ro/made 2>/dev/null || echo read-only",
            "echo x 2>/dev/null >>'/etc/one file.txt' || echo read-only",
        ]
    )
    done = invoke("-r", str(ROOT), "run", "-w", str(workspace), *options, "--", "sh", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*names, "file", "plain", "written", "read-only", "read-only"]
    made = (tmp_path / "plain" / "made").stat()
    assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())
    assert f"{tmp_path / 'plain'} at /data/rw, {tmp_path / 'read only'} at /data/ro (read-only), " in done.stderr


TOML = """
mounts = ["data:/data:ro", "data:/more"]
environment = ["MODE=file", "ONLY=file", "OF_THE_FILE=toml", "NOT_SET_HERE", "OF_THE_CALLER", "MINE_1=%s"]
env_files = [".env"]
secrets = ["MINE_*"]
"""


def test_the_workspaces_defaults_and_what_is_typed_above_them(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "torchdock.toml").write_text(TOML % HIDDEN)
    (tmp_path / ".env").write_text(f"FROM_FILE=a b\n# comment\nBY_NAME\nMODE=envfile\nIN_FILE_TOKEN={HIDDEN}\n")
    (tmp_path / "more.env").write_text("FROM_MORE=1\nOF_THE_FILE=typed file\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "it").touch()
    options = ["-w", str(tmp_path), "-v", f"{tmp_path}/other:/data", "-e", "MODE=typed", "-e", "TYPED=a=b  c"]
    options += ["--env-file", str(tmp_path / "more.env"), "-e", "WANDB_API_KEY", "--secret", "PLAIN"]
    env = {"OF_THE_CALLER": "caller", "BY_NAME": "named", "WANDB_API_KEY": HIDDEN, "PLAIN": HIDDEN}
    names = "MODE|ONLY|NOT_|OF_|FROM|BY|TYPED|WANDB|PLAIN|MINE|IN_"
    script = f'ls /data; touch /data/it && test -d /more && env | grep -E "^({names})"'
    words = ("run", *options, "--", "sh", "-c", script)
    done = invoke(*words, env=env)
    assert done.returncode == 0, done.stderr
    found, *lines = done.stdout.splitlines()
    assert found == "it"
    assert sorted(lines) == sorted(
        [
            *("MODE=typed", "ONLY=file", "OF_THE_CALLER=caller", "FROM_FILE=a b", "BY_NAME=named", "TYPED=a=b  c"),
            *(
                "FROM_MORE=1",
                "OF_THE_FILE=typed file",
                f"WANDB_API_KEY={HIDDEN}",
                f"PLAIN={HIDDEN}",
                f"MINE_1={HIDDEN}",
                f"IN_FILE_TOKEN={HIDDEN}",
            ),
        ]
    )
    assert HIDDEN not in done.stderr
    # What is printed instead of a launch shows no value, and works when it is pasted where the values are.
    for more in ([], ["--json"]):
        planned = invoke("run", *more, "--dry-run", *words[1:], env=env)
        assert planned.returncode == 0
        assert HIDDEN not in planned.stdout + planned.stderr
        assert "WANDB_API_KEY" in planned.stdout and "MODE=typed" in planned.stdout


def test_the_value_of_a_secret_is_in_no_place_where_others_look(invoke: Invoke, tmp_path: Path, engine: Engine) -> None:
    """Not in a command line while it is launched, not in the container's command or labels, not in our records."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if HIDDEN in line or "LAUNCHED_SECRET" in line:
                    seen.add(line)

    watcher = threading.Thread(target=watch)
    watcher.start()
    name = f"t{os.getpid()}-secret"
    words = [
        "-w",
        str(tmp_path),
        "-e",
        "LAUNCHED_SECRET",
        "--",
        "sh",
        "-c",
        'test -n "$LAUNCHED_SECRET"; exec sleep 600',
    ]
    env = {"LAUNCHED_SECRET": HIDDEN}
    full = ""
    try:
        started = invoke("run", "--detach", "--name", name, "--json", *words, env=env)
        assert started.returncode == 0, started.stderr
        full = json.loads(started.stdout)["container"]
        attached = subprocess.Popen(
            argv("run", *words),
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert attached.stderr is not None
        told = attached.stderr.readline()
        until(lambda: _running(engine, told.split()[1]), "the attached container runs")
        listed = invoke("ps", "--json")
        attached.terminate()
        attached.wait(timeout=SECONDS)
        facts = engine.client.api.inspect_container(full)
    finally:
        done.set()
        watcher.join()
        if full:
            engine.remove_container(full)
    assert f"LAUNCHED_SECRET={HIDDEN}" in facts["Config"]["Env"]  # it did arrive
    del facts["Config"]["Env"]
    assert HIDDEN not in json.dumps(facts)
    assert HIDDEN not in started.stdout + started.stderr + listed.stdout + listed.stderr + told
    assert any("docker run" in line or " run " in line for line in seen), "the watcher saw no launch"
    assert [line for line in seen if HIDDEN in line] == []
    for path in (ROOT / ".torchdock").rglob("*"):
        if path.is_file():
            assert HIDDEN.encode() not in path.read_bytes(), path


def _running(engine: Engine, name: str) -> bool:
    return any(found["State"] == "running" for found in engine.containers([]) if f"/{name}" in found["Names"])


SERVER = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8123, bind='0.0.0.0')"


def test_a_port_is_open_on_this_host_alone(invoke: Invoke, tmp_path: Path, leftovers: Leftovers) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "torchdock.toml").write_text('ports = ["1:8123"]\n')
    words = argv("run", "-w", str(tmp_path), "-p", f"{port}:8123", "--", "python", "-c", SERVER)
    client = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(lambda: _answers("127.0.0.1", port), "the server in the container answers")
        for address in _addresses() - {"127.0.0.1"}:
            assert not _answers(address, port), address
        # While it is taken, a second one is told at once, and a job too.
        for more in ([], ["--detach"]):
            second = invoke("run", *more, "-p", f"{port}:8123", "--", "true")
            assert (second.returncode, second.stdout) == (2, "")
            assert f"The port {port} of 127.0.0.1 cannot be used" in second.stderr
    finally:
        client.terminate()
        client.communicate(timeout=SECONDS)
    assert leftovers("job") == []


def _addresses() -> set[str]:
    listed = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    return {address for address in listed if re.fullmatch(r"[\d.]+", address)}


def _answers(address: str, port: int) -> bool:
    """Whether there is an HTTP server; a mere connection may be the engine's proxy before it."""
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            return connection.recv(4) == b"HTTP"
    except OSError:
        return False
