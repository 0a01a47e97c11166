"""Faults of a host with GPUs, planted below Python one at a time: driver, CDI, engine, image, limits, files.

Doctor names each (the numbers are those of the list of failure modes), and of a healthy host it says nothing.
"""

from __future__ import annotations

import http.server
import json
import os
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import PYTHON, ROOT, base_of
from tests.engine.second import Second, load, second_engine, small_image
from tests.engine.test_identity import tools
from tests.fakes import GIB, FakeDriver, FakeGpu, new_uuid, write_program, write_runtime
from torchdock.engine import Engine

# NVML is found by LD_LIBRARY_PATH, which a process reads at its start; without the sources, which are slow to ask.
EXAMINE = """
import json, sys
from pathlib import Path
from torchdock import doctor, engine, sources, variants
from torchdock.state import CloneState
root, home, image, name, what = sys.argv[1:]
live, state, variant = engine.require(), CloneState(Path(home)), variants.get(Path(root), name)
if what == "disk":
    found = doctor.examine_disk(live, state, variant)
else:
    found = doctor.examine_gpus(live, state, variant, sources.gather(), of=image)
print(json.dumps([vars(one) for one in found]))
"""


@dataclass
class World:
    """A host with two GPUs that are not there, a workspace, and the image of its containers."""

    driver: FakeDriver
    workspace: Path
    image: str
    variant: str = "cu130"
    endpoint: str = ""
    what: str = "gpus"
    handed_over: bool = True
    before: Sequence[str] = ()
    python: Path = PYTHON

    def examine(self) -> dict[str, dict[str, Any]]:
        """What doctor finds that is not good, by subject; the driver is the fake one, which it always says."""
        words = [
            *self.before,
            str(self.python),
            "-c",
            EXAMINE,
            str(ROOT),
            str(self.workspace),
            self.image,
            self.variant,
            self.what,
        ]
        env = {**os.environ, **self.driver.environment, "PYTHONPATH": f"{ROOT}/src"}
        env |= {"DOCKER_HOST": self.endpoint} if self.endpoint else {}
        with ExitStack() as stack:
            if self.handed_over:
                stack.enter_context(self.driver.handed_over())
            done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = {one["subject"]: one for one in json.loads(done.stdout) if one["severity"] != "good"}
        assert all(one["seen"] and one["remedy"] for one in found.values())
        if "torch" in found and self.image.startswith("torchdock-test/small"):  # which has none
            assert "No module named 'torch'" in found.pop("torch")["seen"]
        return found


@pytest.fixture(scope="module")
def small(engine: Engine, image: dict[str, Any]) -> Iterator[str]:
    """The environment without torch: quick to look into."""
    with small_image(base_of(engine, image), image["image"]) as tag:
        yield tag


@pytest.fixture
def world(tmp_path: Path, small: str) -> World:
    """A healthy one."""
    folder, workspace = tmp_path / "driver", tmp_path / "work"
    folder.mkdir()
    workspace.mkdir()
    return World(FakeDriver(folder, [FakeGpu(new_uuid()), FakeGpu(new_uuid())]), workspace, small)


@pytest.mark.slow
def test_of_a_healthy_host_nothing_is_said(world: World, image: dict[str, Any]) -> None:
    """In the whole image, torch included; but for the driver being the fake one."""
    world.image = image["image"]
    assert list(world.examine()) == ["fake driver"]
    assert list(world.workspace.rglob("*doctor*")) == []


# --- what is planted: each changes one thing ---


def device_rules_lost(world: World) -> None:
    world.driver.behave(fail=["nvmlInit* 999"], where="inside")


def driver_updated(world: World) -> None:
    world.driver.behave(fail=["nvmlInit* 18"])


def driver_hangs(world: World) -> None:
    world.driver.behave(hang=["nvmlDeviceGetCount*"], where="host")


def no_way(world: World) -> None:
    world.handed_over = False


def specification_of_before(world: World) -> None:
    text = world.driver.specification()
    world.driver.specification = lambda **_: text.replace(  # type: ignore[method-assign]
        str(world.driver.library), f"{world.driver.library}.580.1"
    )


def moved_numbers(world: World) -> None:
    node = world.driver.folder / "node"
    os.mknod(node, 0o666 | 0o020000, os.makedev(1, 3))
    document = json.loads(world.driver.specification())
    entry = {"path": "/dev/torchdock-fake", "hostPath": str(node), "type": "c", "major": 1, "minor": 5}
    document["containerEdits"]["deviceNodes"] = [entry]
    world.driver.specification = lambda **_: json.dumps(document)  # type: ignore[method-assign]


def too_old(world: World) -> None:
    world.driver.behave(driver="470.0-fake")


def older_cuda(world: World) -> None:
    world.driver.behave(cuda="12020")
    world.variant = "cu128"


def no_code(world: World) -> None:
    world.driver.change(world.driver.gpus[0].uuid, capability="6.1")


def small_shm(world: World) -> None:
    (world.workspace / "torchdock.toml").write_text('shm_size = "64m"\n')


def by_index(world: World) -> None:
    (world.workspace / "torchdock.toml").write_text('environment = ["CUDA_VISIBLE_DEVICES=1"]\n')


def cut_without_instance(world: World) -> None:
    world.driver.change(world.driver.gpus[1].uuid, mig=True)


def one_too_many(world: World) -> None:
    document = json.loads(world.driver.specification())
    first, second = document["devices"]
    first["containerEdits"]["mounts"] += second["containerEdits"]["mounts"]
    world.driver.specification = lambda **_: json.dumps(document)  # type: ignore[method-assign]


def nothing(world: World) -> None:
    """The driver is the fake one as it is."""


def unified_memory(world: World) -> None:
    world.driver.behave(fail=["nvmlDeviceGetMemoryInfo* 3"])


def somebody_computes(world: World) -> None:
    world.driver.change(world.driver.gpus[0].uuid, processes=((os.getpid(), GIB),))


def somebody_who_is_gone(world: World) -> None:
    pid = subprocess.Popen(["true"])
    pid.wait()
    world.driver.change(world.driver.gpus[0].uuid, processes=((pid.pid, GIB),))


def an_editor_that_asks(world: World) -> None:
    folder = world.workspace / ".devcontainer"
    folder.mkdir()
    (folder / "devcontainer.json").write_text('{"hostRequirements": {"gpu": "optional"}}')


def somebody_elses_workspace(world: World) -> None:
    for path in (world.workspace / ".torchdock", world.workspace):
        path.mkdir(exist_ok=True)
        os.chown(path, 4321, 4321)


Plant = Callable[[World], None]
FAULTS: list[tuple[str, Plant, str, str, str]] = [
    # row, what is planted, subject, severity, words of what is seen
    ("1", device_rules_lost, "GPU access", "error", "it gives 999"),
    ("2", driver_updated, "driver", "error", "it was updated while it ran"),
    ("3", no_way, "passthrough", "error", "could not select device driver"),
    ("4", specification_of_before, "CDI specification", "error", "is not there: the driver was updated since"),
    ("4, numbers", moved_numbers, "CDI specification", "error", "is 1:3 now, and 1:5 in it"),
    ("6", too_old, "driver", "error", "driver 470.0-fake"),
    ("7", older_cuda, "CUDA of the driver", "note", "the driver knows CUDA 12.2, and cu128 is built with 12.8"),
    ("10", no_code, "GPU 0", "note", "FAKE H200"),
    ("13", small_shm, "shared memory", "error", "/dev/shm is 64 MiB"),
    ("17", by_index, "GPU order", "note", "CUDA_VISIBLE_DEVICES=1"),
    ("18", cut_without_instance, "MIG", "error", "has no instance"),
    ("19", one_too_many, "isolation", "error", "too"),
    ("20", nothing, "fake driver", "note", "nothing computes on it"),
    ("21", unified_memory, "memory of GPU 0", "note", "shares the host's memory"),
    ("26", an_editor_that_asks, "editor", "note", "looks for a runtime named nvidia"),
    ("27", somebody_elses_workspace, "launch", "error", "belongs to UID 4321"),
    ("36", somebody_computes, "use of GPU 0", "note", "in no container, computes on it without a lease"),
    ("37", somebody_who_is_gone, "orphan on GPU 0", "error", "which no process of this host has"),
    ("a driver that hangs", driver_hangs, "driver", "error", "gave no answer"),
]
QUICK = ("1",)


@pytest.mark.parametrize(
    ("plant", "subject", "severity", "seen"),
    [pytest.param(*fault[1:], id=fault[0], marks=[] if fault[0] in QUICK else [pytest.mark.slow]) for fault in FAULTS],
)
def test_a_planted_fault_is_named(plant: Plant, subject: str, severity: str, seen: str, world: World) -> None:
    plant(world)
    found = world.examine()
    assert subject in found, found
    assert found[subject]["severity"] == severity
    assert seen in found[subject]["seen"] + found[subject]["remedy"], found[subject]


# --- faults of an image ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "subject", "seen"),
    [
        pytest.param(
            "RUN touch /usr/lib/libcuda.so.1", "driver in the image", "/usr/lib/libcuda.so.1", id="2, in the image"
        ),
        pytest.param(
            "RUN sed -i 's/extrausers//' /etc/nsswitch.conf", "user", "UID 4321 has no entry", id="27, no name"
        ),
        pytest.param("RUN chmod 755 /home", "home", "cannot write /home/user4321", id="27, no home"),
    ],
)
def test_a_fault_of_the_image_is_named(
    lines: str, subject: str, seen: str, world: World, small: str, engine: Engine
) -> None:
    with derived(small, lines) as world.image, somebody(world, engine):
        found = world.examine()
    assert seen in found[subject]["seen"], found
    assert found[subject]["severity"] == "error"


@contextmanager
def derived(image: str, lines: str) -> Iterator[str]:
    """An image on another one."""
    tag = f"torchdock-test/small:derived-{os.getpid()}"
    text = f"FROM {image}\n{lines}\n"
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", tag, "-"], input=text, text=True, check=True, capture_output=True
    )
    try:
        yield tag
    finally:
        subprocess.run(["docker", "image", "rm", "--force", tag], check=True, capture_output=True)


@contextmanager
def somebody(world: World, engine: Engine) -> Iterator[None]:
    """Doctor is asked by a user who is not root."""
    if os.geteuid() != 0:
        pytest.skip("to become other users takes root")
    group = os.stat("/var/run/docker.sock").st_gid
    for path in (world.workspace, *world.workspace.parents):
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)
    os.chown(world.workspace, 4321, 4321)
    world.python = tools() / "bin/python"  # which every user may run
    world.before = ["setpriv", "--reuid=4321", "--regid=4321", f"--groups={group}", "env", "HOME=/nonexistent"]
    volumes = {volume.name for volume in engine.client.volumes.list()}
    yield
    for volume in engine.client.volumes.list(filters={"name": "torchdock-cache-4321"}):
        if volume.name not in volumes:
            volume.remove()


@pytest.mark.slow
def test_a_torchvision_of_another_build_is_named(world: World, image: dict[str, Any]) -> None:
    """Row 11: its library is not the one that this torch loads."""
    lines = "RUN for file in /opt/venv/lib/python3*/site-packages/torchvision/_C*.so; do : >$file; done"
    with derived(image["image"], lines) as world.image:
        found = world.examine()
    assert "nms" in found["torchvision"]["seen"]
    assert "of different builds" in found["torchvision"]["remedy"]


@pytest.mark.slow
def test_who_computes_in_a_container_is_named_by_it(world: World, small: str) -> None:
    """Row 22: in the container itself the driver's list is empty."""
    name = f"torchdock-test-computes-{os.getpid()}"
    run = ["docker", "run", "--rm", "--detach", "--name", name, "--entrypoint", "sleep", small, "600"]
    subprocess.run(run, check=True, capture_output=True)
    try:
        inspect = ["docker", "inspect", "--format", "{{.State.Pid}}", name]
        pid = int(subprocess.run(inspect, check=True, capture_output=True, text=True).stdout)
        world.driver.change(world.driver.gpus[0].uuid, processes=((pid, GIB),))
        found = world.examine()["use of GPU 0"]
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)
    assert f"PID {pid} of root, in container {name}, computes on it without a lease" in found["seen"]
    assert "within a container this process is not seen" in found["remedy"]


# --- faults of files that the engine reads ---


@pytest.mark.slow
def test_a_specification_that_cannot_be_read_is_named(world: World) -> None:
    """Row 24."""
    gone = world.driver.file.with_suffix(".yaml")
    gone.parent.mkdir(exist_ok=True)
    gone.symlink_to("nowhere")
    try:
        found = world.examine()["CDI file"]
    finally:
        gone.unlink()
    assert (found["severity"], f"{gone.name} cannot be read" in found["seen"]) == ("error", True)


@pytest.mark.slow
def test_a_specification_behind_another_is_named(world: World) -> None:
    """Row 4: what is in /var/run/cdi goes before."""
    old = Path("/etc/cdi") / world.driver.file.name
    made = not old.parent.exists()
    old.parent.mkdir(exist_ok=True)
    document = json.loads(world.driver.specification())
    document["devices"][0]["containerEdits"] = {"env": ["OLD=1"], "mounts": []}
    old.write_text(json.dumps(document))
    try:
        found = world.examine()["CDI override"]
    finally:
        old.unlink()
        if made:
            old.parent.rmdir()
    assert world.driver.gpus[0].uuid in found["seen"]


# --- faults of an engine ---


@pytest.mark.slow
def test_faults_of_an_engine_are_named(engine: Engine, world: World, small: str, tmp_path: Path) -> None:
    """Rows 14 (1024 open files), 19 (every container gets every GPU) and 40 (a full disk), by a second engine."""
    toolkit, data = tmp_path / "toolkit", tmp_path / "data"
    toolkit.mkdir()
    data.mkdir()
    world.driver.write_hook(toolkit / "hook")
    write_runtime(toolkit / "nvidia-container-runtime", toolkit / "hook")
    write_program(toolkit / "nothing", "exit 1")
    settings = {
        "features": {"cdi": True},
        "default-runtime": "nvidia",
        "runtimes": {"nvidia": {"path": str(toolkit / "nvidia-container-runtime")}},
    }
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", data], check=True)
    try:
        limit = ["prlimit", "--nofile=1024:1024"]
        with (
            derived(small, "ENV NVIDIA_VISIBLE_DEVICES=all") as image,
            second_engine(engine, settings=settings, before=limit, data=data) as second,
        ):
            load(second, image)
            found = on(second, world, image).examine()
            full = replace(on(second, world, image), what="disk").examine()
    finally:
        subprocess.run(["umount", "--recursive", data], check=True)
    assert "a container may open 1024 files" in found["open files"]["seen"]
    uuids = [gpu.uuid for gpu in world.driver.gpus]
    assert all(uuid in found["isolation"]["seen"] for uuid in uuids), found
    assert '"default-runtime": "nvidia"' in found["isolation"]["remedy"]
    assert full["free space"]["severity"] == "error"


def on(second: Second, world: World, image: str) -> World:
    """The same world by another engine."""
    return replace(world, endpoint=second.endpoint, image=image)


@pytest.mark.slow
def test_a_source_behind_a_private_ca_is_named(tmp_path: Path) -> None:
    """Row 34: an index whose certificate no authority of this host has signed."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *files]
    subprocess.run(request, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = "import json\nfrom torchdock import doctor, sources\n"
    program += "print(json.dumps(vars(doctor._reach_packages(sources.gather()))))"
    names = {"UV_DEFAULT_INDEX": f"https://127.0.0.1:{server.server_port}/simple", "NO_PROXY": "127.0.0.1"}
    env = {**os.environ, **names, "no_proxy": "127.0.0.1", "PYTHONPATH": f"{ROOT}/src"}
    try:
        done = subprocess.run([str(PYTHON), "-c", program], env=env, capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
    found = json.loads(done.stdout)
    assert (found["severity"], "signed by an authority" in found["seen"]) == ("error", True), found
    assert "SSL_CERT_FILE" in found["remedy"]
