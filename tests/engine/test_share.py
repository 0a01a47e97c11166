"""Images to and from a real registry on the loopback, and files: by a small clone whose image is 90 MB.

The registry is Debian's docker-registry, which the tests install where it is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Invoke, argv
from tests.engine.test_bits import Second, bridge, room, second  # noqa: F401 - fixtures
from tests.engine.waiting import until
from torchdock import debian, uses
from torchdock.engine import Engine
from torchdock.state import CloneState

EPOCH = 1791158400
# anna's password is "secret", by bcrypt.
LOGINS = "anna:$2y$05$CoXVsA1t/at9D8B2.BFWlO75ArRYd9Sgo5.q0bAVgfUwDdLSuqpCS\n"
DOCKERFILE = """ARG BASE={base}
FROM ${{BASE}} AS system
ARG SOURCE_DATE_EPOCH={epoch}
RUN --mount=type=bind,source=docker/layers/debian.sh,target=/run/debian.sh sh /run/debian.sh system
FROM system AS tools
ARG SOURCE_DATE_EPOCH={epoch}
RUN --mount=type=bind,source=docker/layers/uv.sh,target=/run/uv.sh sh /run/uv.sh
FROM tools AS environment
ARG SOURCE_DATE_EPOCH={epoch}
LABEL dev.torchdock.variant="cu130"
RUN --mount=type=bind,source=docker/layers/suite.sh,target=/run/suite.sh \\
    --mount=type=bind,source=docker/entrypoint.sh,target=/run/clone/docker/entrypoint.sh \\
    --mount=type=bind,source=docker/locks/cu130,target=/run/clone/docker/locks/cu130 \\
    --mount=type=bind,source=src/torchdock,target=/run/clone/src/torchdock \\
    --mount=type=bind,source=tests/container,target=/run/clone/tests/container \\
    sh /run/suite.sh
"""
# Two layers that do not compress: what a push takes can be counted. The second build of one lock gives the same bytes.
LAYER = """echo {unique} >/opt/{seed}.unique
perl -e 'srand {seed}; print pack "N*", map {{ rand 2**32 }} 1 .. {words}' >/opt/{seed}
touch -d "@$SOURCE_DATE_EPOCH" /opt/{seed} /opt/{seed}.unique /opt /run /etc /
"""
SUITE = """cd /run/clone
find src/torchdock/__init__.py src/torchdock/inside tests/container docker -name __pycache__ -prune -o -type f -print |
    while read -r file; do install -D -m 0644 "$file" "/opt/torchdock/$file"; done
find /opt/torchdock -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
touch -d "@$SOURCE_DATE_EPOCH" /opt / /etc /run
"""
MB = 10**6
LARGE, MEDIUM = 6 * MB, 2 * MB  # bytes of the two layers


def installed() -> str:
    """The registry's program."""
    if shutil.which("docker-registry") is None:
        install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "docker-registry"]
        done = subprocess.run(install, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    found = shutil.which("docker-registry")
    assert found is not None
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A registry that answers: its port, its folder, and its log of requests."""

    port: int
    folder: Path
    log: Path

    @property
    def repository(self) -> str:
        return f"127.0.0.1:{self.port}/team/torchdock"

    def stored(self) -> int:
        """Bytes of the layers and documents that it holds."""
        return sum(path.stat().st_size for path in self.folder.glob("docker/registry/v2/blobs/sha256/*/*/data"))

    def carried(self) -> list[str]:
        """The layers and documents that were asked of it, so far."""
        return re.findall(r'"GET /v2/\S+/blobs/(\S+) HTTP', self.log.read_text())


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start registries; they end with the test."""
    children: list[subprocess.Popen[bytes]] = []

    def start(folder: Path | None = None, *, logins: bool = False) -> Server:
        place = tmp_path / f"registry-{len(children)}"
        place.mkdir()
        found = Server(free_port(), folder or place / "storage", place / "log")
        config: dict[str, Any] = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(found.folder)}},
            "http": {"addr": f"127.0.0.1:{found.port}"},
        }
        if logins:
            (place / "htpasswd").write_text(LOGINS)
            config["auth"] = {"htpasswd": {"realm": "torchdock", "path": str(place / "htpasswd")}}
        (place / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        with found.log.open("w") as log:
            words = [installed(), "serve", str(place / "config.yml")]
            children.append(subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
        until(lambda: answers(found.port), found.log.read_text)
        return found

    yield start
    for child in children:
        child.terminate()
        child.wait(30)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def small(clone: Path, engine: Engine, image: dict[str, Any]) -> Path:
    """A clone whose image is the base, two layers that do not compress, and the suite.

    Its lock has the base's packages alone. The large image is asked for, as the base is there with it.
    """
    layers, locks = clone / "docker/layers", clone / "docker/locks/debian"
    base = next(line for line in (clone / "docker/cuda.Dockerfile").read_text().splitlines() if "ARG BASE=" in line)
    text = DOCKERFILE.format(base=base.partition("=")[2], epoch=EPOCH)
    (clone / "docker/cuda.Dockerfile").write_text(text)
    (layers / "debian.sh").write_text(LAYER.format(unique=uuid.uuid4(), seed=1, words=LARGE // 4))
    (layers / "uv.sh").write_text(LAYER.format(unique=uuid.uuid4(), seed=2, words=MEDIUM // 4))
    (layers / "suite.sh").write_text(SUITE)
    for names in debian.REQUESTED.values():
        (clone / names).write_text("")
    for path in locks.rglob("*.txt"):
        lock = debian.parse(path.read_text(), path.name)
        alone = tuple(one for one in lock.packages if one.section == "base")
        path.write_text(replace(lock, packages=alone, requested=debian._digest([])).text())
    return clone


@dataclass
class Person:
    """Somebody at the small clone: `invoke`, and the logins of docker's client that are theirs."""

    invoke: Invoke
    clone: Path
    engine: Engine
    env: dict[str, str]

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.invoke(*words, "--variant", "cu130", cwd=self.clone, env={**self.env, **env})

    def good(self, *words: str, **env: str) -> dict[str, Any]:
        """The document of a task that ends well."""
        done = self.run(*words, "--json", **env)
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return {**document, "told": done.stderr}

    def build(self) -> dict[str, Any]:
        return self.good("build")

    def forget(self, built: dict[str, Any]) -> None:
        """The engine has the image no more, as a colleague's has not."""
        self.engine.client.images.remove(built["image"])
        assert self.engine.image(built["id"]) is None


@pytest.fixture
def anna(invoke: Invoke, small: Path, engine: Engine, tmp_path: Path) -> Person:
    """Somebody without logins."""
    (tmp_path / "docker").mkdir()
    return Person(invoke, small, engine, {"DOCKER_CONFIG": str(tmp_path / "docker"), "TORCHDOCK_REGISTRY": ""})


def names(engine: Engine, part: str) -> list[str]:
    """The names of images, digests too, with this in them."""
    rows = engine.client.api.images()
    return [name for row in rows for name in (*(row["RepoTags"] or ()), *(row["RepoDigests"] or ())) if part in name]


def edit(clone: Path) -> None:
    """Change the suite."""
    path = clone / "tests/container/test_data.py"
    path.write_text(f"{path.read_text()}# {uuid.uuid4()}\n")


# --- push and pull ---


def test_one_builds_and_the_team_pulls(anna: Person, serve: Serve, engine: Engine) -> None:
    server = serve()
    built = anna.build()
    pushed = anna.good("push", server.repository)
    assert (pushed["image"], pushed["id"], pushed["pushed"]) == (built["image"], built["id"], len(built["layers"]))
    digest = built["image"].rpartition(":")[2]
    assert pushed["reference"] == f"{server.repository}:cu130-{digest}-amd64"
    assert names(engine, server.repository) == []  # no second name that `clean` would not know

    anna.forget(built)
    team = {"TORCHDOCK_REGISTRY": server.repository}
    pulled = anna.good("build", **team)
    assert "Building" not in pulled["told"]
    assert (pulled["id"], pulled["layers"], pulled["built"]) == (built["id"], built["layers"], False)
    origin = f"{server.repository}@{pushed['digest']}"
    assert pulled["brought"] == origin and uses.brought(engine, built["image"]) == origin
    (record,) = CloneState(anna.clone).records()
    assert (record["image"], record["brought"]) == (built["image"], origin) and "steps" not in record
    assert names(engine, server.repository) == []

    anna.forget(built)
    pulled = anna.good("pull", origin)
    assert (pulled["image"], pulled["id"], pulled["brought"]) == (built["image"], built["id"], origin)
    assert names(engine, server.repository) == []
    looked_into = {"ancestor": built["id"]}
    assert engine.client.api.containers(all=True, filters=looked_into) == []

    # A change uploads the changed layers alone.
    whole = server.stored()
    assert whole > LARGE + MEDIUM
    edit(anna.clone)
    anna.build()
    changed = anna.good("push", server.repository)
    assert (changed["pushed"], changed["there"]) == (1, pushed["pushed"] - 1)
    assert server.stored() - whole < MB  # the suite, and the documents of both images


@pytest.mark.slow
def test_the_commands_of_a_dry_run_are_all_that_docker_is_asked(anna: Person, serve: Serve, engine: Engine) -> None:
    server = serve()
    built = anna.build()
    shown = anna.run("push", server.repository, "--dry-run").stdout.splitlines()
    name, cache = (f"{server.repository}:cu130-{tag}-amd64" for tag in (built["image"].rpartition(":")[2], "cache"))
    assert [line for line in shown if not line.startswith("docker buildx build ")] == [
        f"docker tag {built['image']} {name}",
        f"docker push {name}",
        f"docker push {cache}",
        f"docker image rm {name} {cache}",
    ]
    assert f" --tag {cache} " in shown[2] and " --cache-to type=inline " in shown[2]
    assert server.stored() == 0
    for command in shown:  # they are the ones that are run: a person who pastes them pushes the same
        subprocess.run(command, shell=True, check=True, capture_output=True, env={**os.environ, **anna.env})
    assert names(engine, server.repository) == []
    assert anna.good("push", server.repository)["pushed"] == 0
    assert anna.run("pull", server.repository, "--dry-run").stdout.splitlines()[-1] == f"docker pull {name}"


@pytest.mark.slow
def test_who_is_not_logged_in_is_told_how(anna: Person, serve: Serve, tmp_path: Path, engine: Engine) -> None:
    server = serve(logins=True)
    host = server.repository.partition("/")[0]
    built = anna.build()
    refused = anna.run("push", server.repository)
    assert refused.returncode == 1 and f"`docker login {host}`" in refused.stderr, refused
    assert "Traceback" not in refused.stderr and server.stored() == 0
    (tmp_path / "in").mkdir()
    login = ["docker", "login", host, "--username", "anna", "--password-stdin"]
    mine = {"DOCKER_CONFIG": str(tmp_path / "in")}
    subprocess.run(login, env={**os.environ, **mine}, input="secret", text=True, check=True, capture_output=True)
    anna.good("push", server.repository, **mine)
    anna.forget(built)
    refused = anna.run("pull", server.repository)
    assert refused.returncode == 1 and f"`docker login {host}`" in refused.stderr, refused
    assert engine.image(built["image"]) is None
    assert anna.good("pull", server.repository, **mine)["id"] == built["id"]
    anna.forget(built)
    # A build is not held up by a registry that refuses: it is said, and the image built.
    instead = anna.good("build", TORCHDOCK_REGISTRY=server.repository)
    assert instead["built"] and f"fallback: `docker pull` with {server.repository} failed" in instead["told"]
    command = (anna.clone / ".torchdock/logs/build-cu130.log").read_text().splitlines()[0]
    assert "--cache-from" not in command  # nor by its layers


@pytest.mark.slow
def test_what_is_not_this_locks_image_is_not_used(anna: Person, serve: Serve, engine: Engine, tmp_path: Path) -> None:
    server = serve()
    built = anna.build()
    reference = anna.good("push", server.repository)["reference"]
    edit(anna.clone)
    other = anna.build()  # the image of another tree under the first one's name
    subprocess.run(["docker", "tag", other["image"], reference], check=True)
    subprocess.run(["docker", "push", reference], check=True, capture_output=True)
    subprocess.run(["docker", "image", "rm", reference, other["image"], built["image"]], check=True)
    path = anna.clone / "tests/container/test_data.py"
    path.write_text(path.read_text().rpartition("# ")[0])
    refused = anna.run("pull", server.repository)
    assert refused.returncode == 1, refused
    assert (
        "is not what this clone's lock gives: tests/container/test_data.py differs from this clone's" in refused.stderr
    )
    assert engine.image(built["image"]) is None and engine.image(other["id"]) is None
    assert names(engine, server.repository) == []
    # By digest too, and in place of a build.
    instead = anna.good("build", TORCHDOCK_REGISTRY=server.repository)
    assert (instead["built"], instead["id"]) == (True, built["id"])
    assert "fallback: " in instead["told"] and "is not what this clone's lock gives" in instead["told"]


def test_an_image_that_nobody_pushed(anna: Person, serve: Serve, engine: Engine) -> None:
    server = serve()
    refused = anna.run("pull", server.repository)
    assert refused.returncode == 1 and "has no image of this tree yet (asked for cu130-" in refused.stderr, refused
    refused = anna.run("pull", f"{server.repository}@sha256:{'0' * 64}")
    assert refused.returncode == 1 and "is not there" in refused.stderr
    refused = anna.run("push", server.repository)
    assert refused.returncode == 2 and "is not here yet: `invoke build` first" in refused.stderr
    shown = anna.run("build", "--dry-run", TORCHDOCK_REGISTRY=server.repository)
    assert f"would be pulled in its place: {server.repository}:cu130-" in shown.stderr, shown
    assert f" --cache-from type=registry,ref={server.repository}:cu130-cache-amd64 " in shown.stdout
    unreachable = f"127.0.0.1:{free_port()}/team/torchdock"
    refused = anna.run("pull", unreachable)
    assert refused.returncode == 1 and "cannot be reached" in refused.stderr, refused


class Cut:
    """A way to a registry that breaks after so many bytes towards it, and stays broken until it is mended."""

    def __init__(self, target: int, limit: int) -> None:
        self.target, self.limit, self.passed = target, limit, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def broken(self) -> bool:
        return self.passed > self.limit

    def mend(self) -> None:
        with self.lock:
            self.passed, self.limit = 0, 1 << 60

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if self.broken:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._copy, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, False), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(65536):
                with self.lock:
                    self.passed += len(data) if counted else 0
                if self.broken:
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@pytest.mark.slow  # docker itself tries for 50 s
def test_a_push_that_broke_off_goes_on_where_it_was(anna: Person, serve: Serve, engine: Engine) -> None:
    server = serve()
    built = anna.build()
    layers = len(built["layers"])
    base = engine.image(built["base"])
    assert base is not None
    # The small layers come through, of the base (about 30 MB in gzip) a part.
    way = Cut(server.port, LARGE + MEDIUM + 12 * MB)
    there = f"127.0.0.1:{way.port}/team/torchdock"
    broken = anna.run("push", there)
    assert broken.returncode == 1, broken
    assert "the connection broke" in broken.stderr and "layers that have arrived are not carried again" in broken.stderr
    assert "the engine tries again" in broken.stdout
    assert names(engine, there) == []
    arrived = len(list(server.folder.glob("docker/registry/v2/repositories/team/torchdock/_layers/sha256/*")))
    assert 0 < arrived < layers
    way.mend()
    pushed = anna.good("push", there)
    assert (pushed["pushed"], pushed["there"]) == (layers - arrived, arrived)
    anna.forget(built)
    assert anna.good("pull", there)["id"] == built["id"]
    way.listener.close()


@pytest.fixture
def tiny_disk() -> Iterator[Callable[[int], Path]]:
    """Disks of so many bytes."""
    found: list[Path] = []

    def mount(size: int) -> Path:
        found.append(Path(tempfile.mkdtemp(prefix="torchdock-test-")))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", found[-1]], check=True)
        return found[-1]

    yield mount
    for path in found:
        subprocess.run(["umount", path], check=True)
        path.rmdir()


@pytest.mark.slow  # docker itself tries for 50 s
def test_a_registry_whose_disk_is_full(
    anna: Person, tiny_disk: Callable[[int], Path], serve: Serve, engine: Engine
) -> None:
    server = serve(tiny_disk(LARGE + MEDIUM))
    anna.build()
    refused = anna.run("push", server.repository)
    assert refused.returncode == 1, refused
    assert "The registry itself failed, as one does whose disk is full" in refused.stderr
    assert "Traceback" not in refused.stderr and names(engine, server.repository) == []


def test_a_push_that_is_interrupted_leaves_no_second_name(anna: Person, serve: Serve, engine: Engine) -> None:
    """The way to the registry lets nothing through: the push waits when Ctrl-C comes."""
    anna.build()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}/team/torchdock"
        child = subprocess.Popen(
            argv("push", where, "--variant", "cu130"), cwd=anna.clone, env={**os.environ, **anna.env},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        until(lambda: names(engine, where), "the name that is pushed")
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
    assert child.returncode == 130, told
    assert names(engine, where) == []


# --- layers for builds ---


@pytest.mark.slow
def test_a_build_on_another_engine_takes_its_layers_from_the_registry(
    anna: Person, serve: Serve, engine: Engine, second: Second  # noqa: F811
) -> None:  # fmt: skip
    """What each step makes differs from run to run here, so equal layers were taken and not made."""
    server = serve()
    for name in ("debian.sh", "uv.sh"):
        script = anna.clone / "docker/layers" / name
        script.write_text(script.read_text() + "cat /proc/sys/kernel/random/uuid >/opt/once-$(date +%N)\n")
    built = anna.build()
    assert anna.good("push", server.repository)["cache"] == f"{server.repository}:cu130-cache-amd64"
    saved = subprocess.run(["docker", "save", built["base"]], check=True, capture_output=True).stdout
    there = {"DOCKER_HOST": second.endpoint}
    subprocess.run(["docker", "load"], input=saved, env={**os.environ, **there}, check=True, capture_output=True)
    edit(anna.clone)
    before = len(server.carried())
    again = anna.good("build", "--cache-from", server.repository, **there)
    assert again["built"] and again["id"] != built["id"]
    assert again["layers"][:-1] == built["layers"][:-1]
    assert len(server.carried()) > before
    # As the team does: no option, and no image of this tree is there yet.
    edit(anna.clone)
    named = anna.good("build", TORCHDOCK_REGISTRY=server.repository, **there)
    assert named["layers"][:-1] == built["layers"][:-1]
    assert "has no image of this tree yet; building it" in named["told"]
    # What the second engine took from there is enough to push from there.
    assert anna.good("push", server.repository, **there)["pushed"] == 1
    alone = anna.good("build", "--no-cache", **there)
    assert alone["layers"][1:-1] != built["layers"][1:-1]  # the steps do differ from run to run


# --- files ---


def test_a_file_carries_an_image(anna: Person, engine: Engine, tmp_path: Path) -> None:
    built = anna.build()
    file = tmp_path / "carried.tar"
    saved = anna.good("save", str(file))
    assert (saved["image"], saved["id"], saved["bytes"]) == (built["image"], built["id"], file.stat().st_size)
    anna.forget(built)
    loaded = anna.good("load", str(file))
    assert (loaded["image"], loaded["id"], loaded["layers"]) == (built["image"], built["id"], built["layers"])
    assert loaded["brought"] == str(file) == uses.brought(engine, built["image"])
    # It is compared with a build of its own, not with itself.
    verified = anna.good("verify", built["image"])
    assert verified["equal"] and verified["second"].startswith("torchdock/verify:")
    assert f"came from {file}" in verified["told"] and verified["told"].count("Building torchdock/verify:") == 1


@pytest.mark.slow
def test_a_file_that_is_cut_short(anna: Person, engine: Engine, tmp_path: Path) -> None:
    built = anna.build()
    file = tmp_path / "carried.tar"
    anna.good("save", str(file))
    anna.forget(built)
    os.truncate(file, file.stat().st_size // 2)
    refused = anna.run("load", str(file))
    assert refused.returncode == 2 and "is cut short" in refused.stderr, refused
    assert "Traceback" not in refused.stderr
    assert engine.image(built["image"]) is None and engine.image(built["id"]) is None


@pytest.mark.slow
def test_a_file_reaches_an_engine_that_has_nothing(anna: Person, second: Second, tmp_path: Path) -> None:  # noqa: F811
    """And a damaged one is refused there, where no layer of it is known already."""
    built = anna.build()
    file, flipped = tmp_path / "carried.tar", tmp_path / "flipped.tar"
    anna.good("save", str(file))
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    flipped.write_bytes(whole)
    there = {"DOCKER_HOST": second.endpoint}
    refused = anna.run("load", str(flipped), **there)
    assert refused.returncode == 1 and "damaged on its way" in refused.stderr, refused
    assert "Traceback" not in refused.stderr and second.client.images.list(all=True) == []
    loaded = anna.good("load", str(file), **there)
    assert (loaded["id"], loaded["layers"]) == (built["id"], built["layers"])
    assert [image.tags for image in second.client.images.list()] == [[built["image"]]]
    assert "is there already; nothing to build" in anna.good("build", "--offline", **there)["told"]


@pytest.mark.slow
def test_a_file_with_another_image_moves_no_name(anna: Person, engine: Engine, tmp_path: Path) -> None:
    built = anna.build()
    file = tmp_path / "carried.tar"
    anna.good("save", str(file))
    # Over the same image it changes nothing.
    assert anna.good("load", str(file))["id"] == built["id"]
    # By the name of another tree.
    edit(anna.clone)
    refused = anna.run("load", str(file))
    assert refused.returncode == 2 and f"holds {built['image']}, and this tree's image is" in refused.stderr, refused
    # By this tree's name, and with another suite.
    other = anna.build()
    stranger = tmp_path / "stranger.tar"
    subprocess.run(["docker", "image", "rm", other["image"]], check=True, capture_output=True)
    subprocess.run(["docker", "tag", built["image"], other["image"]], check=True)
    subprocess.run(["docker", "save", "--output", stranger, other["image"]], check=True)
    subprocess.run(["docker", "image", "rm", other["image"]], check=True, capture_output=True)
    refused = anna.run("load", str(stranger))
    assert refused.returncode == 1 and "is not what this clone's lock gives" in refused.stderr, refused
    assert engine.image(other["image"]) is None and engine.image(built["id"]) is not None
    # And where this tree's own is here.
    anna.build()
    refused = anna.run("load", str(stranger))
    assert refused.returncode == 2 and "which would lose its name" in refused.stderr, refused
    has = engine.image(other["image"])
    assert has is not None and has.id == other["id"]


def test_a_full_disk_leaves_no_half_file(anna: Person, engine: Engine, tiny_disk: Callable[[int], Path]) -> None:
    built = anna.build()
    facts = engine.image(built["image"])
    assert facts is not None
    small, close = tiny_disk(MB), tiny_disk(facts.size + 10_000)  # a tar has more than the files' own bytes
    for folder, said in ((small, "Nothing was written"), (close, "no space left on device")):
        refused = anna.run("save", str(folder / "image.tar"))
        assert refused.returncode == 1 and said in refused.stderr, refused
        assert list(folder.iterdir()) == []


def test_an_interrupt_leaves_no_half_file(anna: Person, image: dict[str, Any], tmp_path: Path) -> None:
    """The large image: its file is written for many seconds."""
    file = tmp_path / "out" / "image.tar"
    file.parent.mkdir()
    file.write_text("what was there before")
    child = subprocess.Popen(
        argv("save", str(file), "--variant", "cu130"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[2], start_new_session=True,
    )  # fmt: skip
    until(lambda: len(list(file.parent.iterdir())) == 2, "the file that is written")
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 130, told
    assert [path.name for path in file.parent.iterdir()] == ["image.tar"]
    assert file.read_text() == "what was there before"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("push",), "Which repository?"),
        (("pull", "anna:hunter2@registry.example.org/team"), "is no repository of a registry"),
        (("save",), "Which file?"),
        (("load", "/no/such/file.tar"), "cannot be read"),
        (("save", "/no/such/folder/image.tar"), "/no/such/folder is no folder"),
        (("build", "--offline", "--cache-from", "registry.example.org/team/x"), "contradict each other"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else None,
)
def test_wrong_input_ends_with_2(invoke: Invoke, words: tuple[str, ...], said: str) -> None:
    done = invoke(*words, env={"TORCHDOCK_REGISTRY": ""})
    assert (done.returncode, done.stdout) == (2, ""), done
    assert said in done.stderr and "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr
