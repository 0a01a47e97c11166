"""A second Docker Engine with settings of its own, and a small image for it: the environment's Python without torch."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import docker

from tests.engine.conftest import ROOT
from tests.engine.waiting import until
from torchdock import engine as engines
from torchdock.engine import Engine

PYTHON = "python3.13"


@dataclass(frozen=True)
class Second:
    """A second engine: its endpoint, its folder, and the engine as torchdock knows it."""

    endpoint: str
    folder: Path
    engine: Engine


@contextmanager
def second_engine(
    first: Engine,
    *,
    settings: Mapping[str, Any] | None = None,
    path: Sequence[Path] = (),
    before: Sequence[str] = (),
    data: Path | None = None,
) -> Iterator[Second]:
    """While this lasts a second dockerd serves.

    ``settings``: its daemon.json; ``path``: folders before its PATH; ``before``: words before its command; ``data``:
    its data folder, if it is not to be one of its own. docker's command finds it by DOCKER_HOST, as everybody's.
    """
    dockerd = shutil.which("dockerd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert dockerd is not None, "these tests need Docker Engine on this machine, as `make up` installs it"
    folder = Path(tempfile.mkdtemp(prefix="td-", dir="/tmp"))  # short: containerd's sockets have no room for pytest's
    folder.chmod(0o755)
    # Made by the first: without one, or with `--bridge=none`, it would touch docker0.
    bridge = f"td-{secrets.token_hex(4)}"
    options = {"com.docker.network.bridge.name": bridge}
    network = first.client.networks.create(f"torchdock-{bridge}", driver="bridge", options=options)
    (folder / "daemon.json").write_text(json.dumps(settings or {}))
    words = [
        *before,
        dockerd,
        "--config-file",
        str(folder / "daemon.json"),
        "--data-root",
        str(data or folder / "data"),
    ]
    words += ["--exec-root", str(folder / "run"), "--pidfile", str(folder / "pid")]
    words += ["--host", f"unix://{folder}/docker.sock", f"--bridge={bridge}", "--iptables=false", "--ip6tables=false"]
    env = {**os.environ, "PATH": os.pathsep.join([*map(str, path), os.environ["PATH"]])}
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(
            words, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    client: docker.DockerClient | None = None

    def answers() -> docker.DockerClient | None:
        assert child.poll() is None, (folder / "log").read_text()[-2000:]
        try:
            return docker.DockerClient(base_url=f"unix://{folder}/docker.sock")
        except docker.errors.DockerException:
            return None

    try:
        client = until(answers, "a second engine")
        (folder / "docker.sock").chmod(0o666)
        endpoint = f"unix://{folder}/docker.sock"
        with mock.patch.dict(os.environ, {"DOCKER_HOST": endpoint}):
            found = engines.require()
        yield Second(endpoint, folder, found)
    finally:
        if client is not None:
            client.close()
        child.send_signal(signal.SIGTERM)
        child.wait(timeout=60)
        network.remove()
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((mount for mount in mounted if mount.startswith(f"{folder}/")), reverse=True):
            subprocess.run(["umount", mount], check=True)  # what an engine that was stopped leaves
        shutil.rmtree(folder)


@contextmanager
def small_image(base: str, image: str, more: str = "") -> Iterator[str]:
    """An image on the base with the environment's Python and entrypoint, 130 MB; ``more``: lines of its Dockerfile."""
    tag = f"torchdock-test/small:{secrets.token_hex(6)}"
    text = (
        f"FROM {base}\n"
        f"COPY --from={image} /usr/bin/{PYTHON} /opt/venv/bin/python\n"
        f"COPY --from={image} /usr/lib/{PYTHON} /usr/lib/{PYTHON}\n"
        f"COPY --from={image} /usr/lib/*/libexpat.so.1 /usr/lib/*/libz.so.1 /usr/lib/*/libffi.so.8 /usr/lib/\n"
        f"COPY --from={image} /var/lib/extrausers /var/lib/extrausers\n"
        f"COPY --from={image} /etc/nsswitch.conf /etc/nsswitch.conf\n"
        f"COPY --from={image} /usr/bin/tini /usr/bin/tini\n"
        f"COPY --from={image} /opt/torchdock /opt/torchdock\n"
        "RUN chmod 666 /var/lib/extrausers/* && chmod 1777 /home && mkdir -p /cache /workspace && chmod 777 /cache\n"
        "ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        "ENV LANG=C.UTF-8 PYTHONPATH=/opt/torchdock/src\n"
        "WORKDIR /workspace\n"
        'ENTRYPOINT ["/usr/bin/tini", "--", "/opt/torchdock/docker/entrypoint.sh"]\n'
        f"{more}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(text)
        subprocess.run(["docker", "build", "--quiet", "--tag", tag, folder], check=True, capture_output=True, cwd=ROOT)
    try:
        yield tag
    finally:
        subprocess.run(["docker", "image", "rm", "--force", tag], check=True, capture_output=True)


def load(second: Second, image: str) -> None:
    """Carry an image of the first engine to this one."""
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
        subprocess.run(
            ["docker", "--host", second.endpoint, "load", "--quiet"],
            stdin=saved.stdout,
            check=True,
            capture_output=True,
        )
    assert saved.returncode == 0
