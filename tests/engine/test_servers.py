"""`invoke jupyter` and `invoke tensorboard`: an address, for who has its token, for as long as the container lives."""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Invoke, argv
from torchdock import container, launch, servers, sources
from torchdock.engine import Engine
from torchdock.errors import TorchdockError

pytestmark = pytest.mark.usefixtures("image")

ANN = 4307  # nobody's UID in another test: her cache volume is removed


@pytest.fixture(scope="module")
def workspace(invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose workspace container is launched by the first test that asks for a server."""
    folder = tmp_path_factory.mktemp("project")
    yield folder
    invoke("down", "-w", str(folder))


@pytest.fixture
def anns(engine: Engine, image: dict[str, Any], tmp_path: Path) -> Iterator[str]:
    """A workspace container of somebody who is not root, as `up` launches it; its name."""
    os.chown(tmp_path, ANN, ANN)
    who = container.Identity(ANN, ANN, (), "ann")
    plan = container.plan(
        engine, image["image"], who, sources.gather(), role="up", clone="t", workspace=tmp_path,
        command=container.STAY, wishes=launch.Wishes(ports=servers.PORTS),
    )  # fmt: skip
    subprocess.run(plan.argv, check=True, capture_output=True)
    try:
        yield plan.name
    finally:
        engine.remove_container(plan.name)
        engine.client.volumes.get(f"torchdock-cache-{ANN}").remove()


def ask(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """GET, without proxies: status, headers, body."""
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname == "127.0.0.1"
    link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    link.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers)
    answer = link.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def execute(url: str, code: str) -> str:
    """Run code in a new kernel as a browser does, by a WebSocket through the published port; what it printed."""
    parts = urllib.parse.urlsplit(url)
    token = urllib.parse.parse_qs(parts.query)["token"][0]
    assert parts.hostname and parts.port
    link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    link.request("POST", "/api/kernels", body="{}", headers={"Authorization": f"token {token}"})
    kernel = json.loads(link.getresponse().read())["id"]
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as channel:
        stream = channel.makefile("rb")
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        channel.sendall(
            f"GET /api/kernels/{kernel}/channels?token={token} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in stream.readline()
        while stream.readline().strip():
            pass
        header = {"msg_id": "one", "session": "s", "username": "", "version": "5.3", "msg_type": "execute_request"}
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        text = json.dumps(message).encode()
        mask = secrets.token_bytes(4)
        masked = bytes(byte ^ mask[number % 4] for number, byte in enumerate(text))
        channel.sendall(b"\x81\xfe" + len(text).to_bytes(2, "big") + mask + masked)
        printed = ""
        while True:
            kind, length = stream.read(2)
            length = int.from_bytes(stream.read({126: 2, 127: 8}[length]), "big") if length > 125 else length
            found = stream.read(length)
            if kind & 15 != 1:
                continue
            reply = json.loads(found)
            if reply["parent_header"].get("msg_id") != "one":
                continue
            if reply["msg_type"] == "stream":
                printed += reply["content"]["text"]
            elif reply["msg_type"] == "execute_reply":
                assert reply["content"]["status"] == "ok", reply["content"]
            elif reply["msg_type"] == "status" and reply["content"]["execution_state"] == "idle":
                return printed


def inside(name: str, *command: str) -> str:
    done = subprocess.run(["docker", "exec", name, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_jupyter_is_one_address_for_the_token_alone(invoke: Invoke, workspace: Path, engine: Engine) -> None:
    """Nothing is up before it; the second command finds the same one."""
    first = invoke("jupyter", "-w", str(workspace))
    assert first.returncode == 0, first.stderr
    (url,) = first.stdout.splitlines()
    assert url.startswith("http://127.0.0.1:")
    assert ask(url)[0] == 200
    bare, _, token = url.partition("?token=")
    assert len(token) >= 32
    assert ask(bare.replace("/lab", "/api/status"))[0] == 403
    assert ask(bare.replace("/lab", "/api/status") + "?token=wrong")[0] == 403

    second = json.loads(invoke("jupyter", "-w", str(workspace), "--json").stdout)
    assert (second["url"], second["started"]) == (url, False)
    name = second["container"]
    published = engine.client.containers.get(name).attrs["NetworkSettings"]["Ports"]
    assert {one["HostIp"] for bindings in published.values() for one in bindings} == {"127.0.0.1"}

    # A kernel works, and nothing that others can see, or that a notebook prints by chance, has the token.
    told = execute(url, "import os\nopen('made', 'w').write('x')\nprint(os.getcwd(), dict(os.environ))")
    assert told.startswith("/workspace ")
    assert token not in told
    assert (workspace / "made").stat().st_uid == os.getuid()
    assert token not in inside(name, "ps", "axwwe")
    assert token not in inside(name, "cat", second["log"])
    described = engine.client.api.inspect_container(name)
    running = [engine.client.api.exec_inspect(one) for one in described["ExecIDs"]]
    assert running
    assert token not in json.dumps([described, running])
    shown = inside(name, "stat", "-c", "%a %n", "/tmp/torchdock", "/tmp/torchdock/jupyter.json", second["log"])
    assert [line.split()[0] for line in shown.splitlines()] == ["700", "600", "600"]


def test_two_at_once_get_the_same_one(invoke: Invoke, workspace: Path) -> None:
    words = argv("tensorboard", "--json", "-w", str(workspace))
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [child.communicate(timeout=200) for child in both]
    assert [child.returncode for child in both] == [0, 0], outputs
    documents = [json.loads(out) for out, _ in outputs]
    assert len({one["url"] for one in documents}) == 1
    assert sorted(one["started"] for one in documents) == [False, True]
    assert all("/workspace/runs does not exist yet" in said for _, said in outputs)


def test_tensorboard_shows_what_appears_to_those_who_know_the_token(invoke: Invoke, workspace: Path) -> None:
    one = json.loads(invoke("tensorboard", "--json", "-w", str(workspace)).stdout)
    start = one["url"].partition("?")[0]
    status, headers, _ = ask(one["url"])
    assert status == 200
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    for others, known in ((f"{start}data/runs", {}), (f"{start}data/runs?token=wrong", {}), (f"{start}?token=", {})):
        assert ask(others, **known)[0] == 403
    wrong = cookie.partition("=")[0] + "=" + one["token"][::-1]
    assert ask(f"{start}data/runs", Cookie=wrong)[0] == 403

    kept = f'foreign="a;b"; {cookie.partition(";")[0]}'
    assert ask(f"{start}data/runs", Cookie=kept)[::2] == (200, b"[]")
    written = "from torch.utils.tensorboard import SummaryWriter as W\nwith W() as w: w.add_scalar('loss', 0.5, 1)"
    inside(one["container"], container.ENTRYPOINT, "python", "-c", written)
    assert (workspace / "runs").is_dir()
    deadline = time.monotonic() + 60
    while not (found := json.loads(ask(f"{start}data/runs", Cookie=kept)[2])):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (run,) = found
    query = urllib.parse.urlencode({"run": run, "tag": "loss"})
    point = json.loads(ask(f"{start}data/plugin/scalars/scalars?{query}", Cookie=kept)[2])
    assert point[0][1:] == [1, 0.5]


def test_another_logdir_is_shown_when_it_is_asked_for(invoke: Invoke, workspace: Path) -> None:
    words = ("tensorboard", "--json", "-w", str(workspace))
    other = json.loads(invoke(*words, "--logdir", str(workspace / "old")).stdout)
    assert (other["logdir"], other["there"], other["started"]) == ("/workspace/old", False, True)
    again = json.loads(invoke(*words).stdout)
    assert (again["url"], again["logdir"], again["started"]) == (other["url"], "/workspace/old", False)
    assert json.loads(ask(other["url"].replace("/?", "/data/environment?"))[2])["data_location"] == "/workspace/old"


def test_a_server_is_not_ended_by_the_way(invoke: Invoke, workspace: Path) -> None:
    """`up` with other options would launch the container anew, and end what runs in the notebooks."""
    url = invoke("jupyter", "-w", str(workspace)).stdout.strip()
    done = invoke("up", "-w", str(workspace), "--cpus", "1")
    assert done.returncode == 1
    assert "commands run in it (invoke jupyter" in done.stderr
    assert ask(url)[0] == 200


def test_stop_and_down_end_it(invoke: Invoke, workspace: Path) -> None:
    words = ("-w", str(workspace))
    board = invoke("tensorboard", *words).stdout.strip()
    lab = invoke("jupyter", *words).stdout.strip()
    assert json.loads(invoke("tensorboard", "--stop", "--json", *words).stdout)["stopped"] is True
    with pytest.raises(OSError):
        ask(board)
    assert json.loads(invoke("tensorboard", "--stop", "--json", *words).stdout)["stopped"] is False
    assert ask(lab)[0] == 200
    assert json.loads(invoke("down", "--json", *words).stdout)["stopped"] is True
    with pytest.raises(OSError):
        ask(lab)
    assert invoke("jupyter", "--stop", *words).stdout.startswith("No JupyterLab serves")


def test_somebody_who_is_not_root(engine: Engine, anns: str, tmp_path: Path) -> None:
    lab = servers.start(engine, anns, servers.JUPYTER)
    assert execute(lab.url, "import getpass\nopen('made', 'w').write('x')\nprint(getpass.getuser())") == "ann\n"
    assert (tmp_path / "made").stat().st_uid == ANN
    board = servers.start(engine, anns, servers.TENSORBOARD, "/workspace/runs")
    assert ask(board.url)[0] == 200


def test_what_fails_to_serve_says_what_it_logged(engine: Engine, anns: str) -> None:
    """Something else has its port in the container."""
    program = "import socket\nlistener = socket.create_server(('', 8888))\nwhile True: listener.accept()[0].close()"
    subprocess.run(["docker", "exec", "--detach", anns, "python", "-c", program], check=True, capture_output=True)
    deadline = time.monotonic() + 30
    while ":22B8 " not in inside(anns, "cat", "/proc/net/tcp"):  # 8888
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(TorchdockError, match=r"(?s)it ended at once.*jupyter\.log.*port 8888 is not available"):
        servers.start(engine, anns, servers.JUPYTER)


def test_a_dry_run_starts_nothing(invoke: Invoke, tmp_path: Path, engine: Engine) -> None:
    done = invoke("tensorboard", "--dry-run", "--logdir", "logs", "-w", str(tmp_path))
    launched, served = done.stdout.splitlines()
    assert launched.startswith("docker run --detach")
    assert "--publish 127.0.0.1::6006" in launched
    assert served.startswith("docker exec --detach")
    assert served.endswith("tensorboard --start ID --logdir /workspace/logs")
    assert engine.containers([f"dev.torchdock.workspace={tmp_path}"]) == []


@pytest.mark.parametrize("folder", ["", "../elsewhere"])
def test_a_wrong_logdir_is_wrong_input(invoke: Invoke, folder: str) -> None:
    done = invoke("tensorboard", "--logdir", folder)
    assert done.returncode == 2
    assert "name a folder below the workspace" in done.stderr
