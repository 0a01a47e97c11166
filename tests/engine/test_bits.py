"""The same to the bit: one lock, one base source, and everything else different."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from tests import mirrors
from tests.engine.conftest import ROOT, Invoke, argv, base_of, copy_tree
from torchdock import base as bases
from torchdock import sources, variants
from torchdock.engine import Engine

pytestmark = pytest.mark.slow

VARIANT = variants.get(ROOT, "cu130")
SOMEBODY = 4321


def test_another_clone_umask_and_time_zone(image: dict[str, Any], clone: Path) -> None:
    """Every layer anew, in another folder, with another umask and time zone."""
    built = subprocess.run(
        ["sh", "-c", 'umask 077; exec "$@"', "sh", *argv("build", "--variant", "cu130", "--no-cache", "--json")],
        cwd=clone, env={**os.environ, "TZ": "Asia/Tokyo"}, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    again = json.loads(built.stdout)
    assert again["layers"] == image["layers"]
    assert again["id"] == image["id"]


@dataclass
class Second:
    """A second engine: its endpoint, and the SDK on it."""

    endpoint: str
    client: docker.DockerClient


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder that every user can reach, with a short path: containerd's sockets have no room for pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="td-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in sorted((path for path in mounted if path.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", path], check=True)  # what an engine that was stopped leaves
    shutil.rmtree(folder)


@pytest.fixture
def bridge(engine: Engine) -> Iterator[str]:
    """A bridge for a second engine, made by the first: without one, or with `--bridge=none`, it would touch docker0."""
    options = {"com.docker.network.bridge.name": "td-second"}
    network = engine.client.networks.create("torchdock-second", driver="bridge", options=options)
    yield options["com.docker.network.bridge.name"]
    network.remove()


@pytest.fixture
def second(room: Path, bridge: str) -> Iterator[Second]:
    """A second dockerd with a data folder of its own, empty caches, and a socket that everybody may use."""
    dockerd = shutil.which("dockerd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert dockerd is not None, "these tests need Docker Engine on this machine, as `make up` installs it"
    folder = room / "engine"
    folder.mkdir()
    socket = folder / "docker.sock"
    words = [dockerd, "--data-root", str(folder / "data"), "--exec-root", str(folder / "run")]
    words += ["--pidfile", str(folder / "pid"), "--host", f"unix://{socket}"]
    words += [f"--bridge={bridge}", "--iptables=false", "--ip6tables=false"]  # the first engine's stay as they are
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    client = None
    deadline = time.monotonic() + 60
    while client is None:
        try:
            client = docker.DockerClient(base_url=f"unix://{socket}")
        except docker.errors.DockerException:
            assert child.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.1)
    socket.chmod(0o666)
    yield Second(f"unix://{socket}", client)
    client.close()
    child.send_signal(signal.SIGTERM)
    child.wait(timeout=60)


def test_another_engine_user_and_mirrors(
    second: Second, image: dict[str, Any], engine: Engine, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second engine with empty caches; the base made there; a user who is not root; Debian and Python mirrors."""
    base = base_of(engine, image)
    upstream = {**mirrors.debian_upstream(base, VARIANT.base.suite), **mirrors.index_upstream()}
    with mirrors.serve(upstream) as mirror:
        names = {
            "DOCKER_HOST": second.endpoint,
            "TORCHDOCK_APT_MIRROR": mirror.url("debian"),
            "UV_DEFAULT_INDEX": mirror.url("simple"),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        if image["source"] == "bootstrapped":  # by root: a user needs newuidmap and a line in /etc/subuid
            made = subprocess.run(
                argv("build", "--variant", "cu130", "--dry-run", "--json"), capture_output=True, text=True, check=True
            )
            assert json.loads(made.stdout)["variant"] == image["variant"]
            bootstrap_there(base)
            assert second.client.images.get(base).id == engine.client.images.get(base).id

        clone = copy_tree(room / "clone")
        (clone / ".venv").unlink()
        home = room / "home"
        home.mkdir()
        for path in (clone, *clone.rglob("*"), home):
            os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)
        somebody = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
        script = (
            "umask 077; make --silent PYTHON=/usr/bin/python3 venv && "
            f"exec .venv/bin/invoke build --variant {image['variant']} --json"
        )
        built = subprocess.run(
            [*somebody, "sh", "-c", script], cwd=clone, env={**os.environ, "HOME": str(home), "TZ": "Asia/Tokyo"},
            capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        assert built.returncode == 0, built.stderr
        again = json.loads(built.stdout)
        assert again["built"] is True
        assert [path for path in mirror.asked if path.startswith("torch/")]
        assert [path for path in mirror.asked if path.startswith("pool/")]
    assert again["layers"] == image["layers"]
    assert again["id"] == image["id"]


def bootstrap_there(reference: str) -> None:
    """Make the base on the engine of the environment."""
    from torchdock import engine as engines
    from torchdock.console import Reporter

    there = engines.require()
    given = sources.gather()
    candidates = bases.choices(ROOT, VARIANT.base, there.architecture, given)
    made = bases.bootstrap(there, ROOT, VARIANT.base, candidates, given, Reporter())
    assert made.reference == reference


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("printf x >>/opt/torchdock/docker/entrypoint.sh", "content"),
        ("chmod 0700 /opt/torchdock/docker/entrypoint.sh", "mode"),
        ("touch -d @1 /opt/torchdock/docker/entrypoint.sh", "time"),
    ],
)
def test_a_build_that_differs_in_one_thing_is_told_so(
    invoke: Invoke, image: dict[str, Any], engine: Engine, tmp_path: Path, fault: str, what: str
) -> None:
    """`invoke verify IMAGE` of the large image in which one file's content, mode or time was changed in the build."""
    name = f"torchdock/trial:{what}"
    clone = copy_tree(tmp_path / "clone")
    script = clone / "docker/layers/suite.sh"
    text = script.read_text()
    stamp = 'touch -d "@$SOURCE_DATE_EPOCH" /opt/torchdock/docker/entrypoint.sh' if what == "content" else ":"
    script.write_text(f"{text}{fault}\n{stamp}\n")
    plan = json.loads(invoke("build", "--variant", "cu130", "--dry-run", "--json", cwd=clone).stdout)["argv"]
    plan[plan.index("--tag") + 1] = name
    subprocess.run(plan, check=True, capture_output=True, timeout=600)
    try:
        done = invoke("verify", name, "--json", timeout=900)
        assert done.returncode == 1, done.stderr
        document = json.loads(done.stdout)
        assert [layer["name"] for layer in document["layers"] if not layer["equal"]] == ["suite"]
        (suite,) = [layer for layer in document["layers"] if layer["name"] == "suite"]
        found = [(difference["path"], difference["what"]) for difference in suite["differences"]]
        assert found == [("opt/torchdock/docker/entrypoint.sh", [what])]
    finally:
        engine.client.images.remove(name, force=True)
