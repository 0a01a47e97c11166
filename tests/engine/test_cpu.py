"""The CPU image from an index on the loopback: small wheels in torch's place, everything else real.

PyTorch's own CPU index cannot be reached from everywhere; its routing, hash mode, layers and what must not be in the
image can be proved without it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import indexes
from tests.engine.conftest import ROOT, temporary_clone
from torchdock import locks, variants
from torchdock.engine import Engine
from torchdock.state import CloneState

CPU = variants.get(ROOT, "cpu")


@pytest.fixture(scope="module")
def index() -> Iterator[indexes.Index]:
    """``whl/cpu``, as the real one is laid out: `+cpu` wheels, and stale copies of torch's dependencies beside them."""
    with indexes.serve(token="anna:hunter2") as found:
        indexes.publish_stand_ins(found, "whl/cpu", CPU)
        indexes.publish_stale(found, "whl/cpu")
        yield found


@pytest.fixture(scope="module")
def env(index: indexes.Index) -> dict[str, str]:
    """The environment of a host with that index, which wants a token."""
    mirror = index.url("whl", credentials="anna:hunter2")
    return {**os.environ, "TORCHDOCK_TORCH_INDEX": mirror, "NO_PROXY": "127.0.0.1,localhost"}


def change(lock: Path, word: object) -> None:
    """The same lock in another text, so that no cached layer stands in for the answer of an index."""
    lock.write_text(f"{lock.read_text()}# {word}\n")


def invoke(clone: Path, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    python = [str(clone / ".venv/bin/python"), "-m", "invoke"]
    return subprocess.run([*python, *words], cwd=clone, env=env, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def clone(engine: Engine, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone with a lock of the CPU variant that was made for the stand-ins."""
    with temporary_clone(engine, tmp_path_factory.mktemp("cpu") / "clone") as target:
        shutil.rmtree(target / "docker/locks/cpu")
        done = invoke(target, env, "lock", "--variant", "cpu")
        assert done.returncode == 0, done.stderr
        change(target / "docker/locks/cpu/torch.txt", target)
        yield target


@pytest.fixture(scope="module")
def image(clone: Path, env: dict[str, str]) -> dict[str, Any]:
    """The CPU image: the document of `invoke build --cpu --json`."""
    done = invoke(clone, env, "build", "--cpu", "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_host_without_a_gpu_is_given_the_cpu_variant(clone: Path, env: dict[str, str]) -> None:
    done = invoke(clone, env, "build", "--dry-run", "--json")
    document = json.loads(done.stdout)
    from torchdock import gpus

    if not gpus.gather().gpus:
        assert document["variant"] == "cpu"
        assert f"{clone}/docker/cpu.Dockerfile" in document["argv"]
    assert "hunter2" not in done.stdout + done.stderr


def test_torch_comes_from_its_index_and_nothing_else_does(
    clone: Path, image: dict[str, Any], index: indexes.Index
) -> None:
    assert image["variant"] == "cpu"
    locked = locks.read(clone, "cpu")
    assert (locked["torch"].version, locked["torchvision"].version) == (CPU.torch, CPU.torchvision)
    for name, stale in indexes.STALE.items():
        assert locked[name].version != stale
    assert any(path.endswith(f"torch-{CPU.torch}-cp313-cp313-manylinux_2_28_x86_64.whl") for path in index.asked)
    assert not [path for path in index.asked if re.search(r"/(numpy|pillow|sympy)-[\d.]+-.*\.whl$", path)]


def test_what_is_installed_is_the_lock_and_there_is_no_cuda(clone: Path, image: dict[str, Any]) -> None:
    listing = ["docker", "run", "--rm", image["image"], "uv", "pip", "list", "--format", "json", "-q"]
    done = subprocess.run(listing, capture_output=True, text=True, check=True)
    installed = {one["name"].lower(): one["version"] for one in json.loads(done.stdout)}
    assert installed == {name: pin.version for name, pin in locks.read(clone, "cpu").items()}
    assert not [
        name for name in installed if name.startswith(("nvidia-", "cuda-", "triton")) and name != "nvidia-ml-py"
    ]
    look = "find / -xdev '(' -name 'libcu*.so*' -o -name 'libnv*.so*' -o -name 'libnccl*' -o -name nvcc ')'"
    found = subprocess.run(
        ["docker", "run", "--rm", image["image"], "sh", "-c", look], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [path for path in found if not re.search(r"/libcur(l|ses)", path)] == []


def test_the_layers_are_those_of_the_cuda_image_without_cuda(image: dict[str, Any], engine: Engine) -> None:
    steps = [one["CreatedBy"] for one in engine.client.images.get(image["image"]).history() if one["Size"]]
    scripts = [match[1] for step in reversed(steps) if (match := re.search(r"sh /run/(\S+\.sh(?: \w+)?)", step))]
    ours = ["debian.sh python", "wheels.sh torch", "wheels.sh tools", "merge.sh system"]
    assert [script for script in scripts if not script.startswith(("wheels.sh recent", "suite.sh"))] == ours
    config = engine.client.images.get(image["image"]).attrs["Config"]
    assert not [name for name in config["Env"] if "NVIDIA" in name or "CUDA" in name]
    assert "TORCHDOCK_VARIANT=cpu" in config["Env"]


def test_the_token_is_nowhere(clone: Path, image: dict[str, Any], engine: Engine) -> None:
    history = json.dumps(engine.client.images.get(image["image"]).history())
    kept = "".join(path.read_text() for path in (clone / ".torchdock").rglob("*") if path.is_file())
    locked = "".join(path.read_text() for path in (clone / "docker/locks").rglob("*.txt"))
    assert not [text for text in (history, kept, locked) if "hunter2" in text]


@pytest.fixture
def other(clone: Path, engine: Engine, tmp_path: Path) -> Iterator[Path]:
    """Another clone with the same lock."""
    with temporary_clone(engine, tmp_path / "clone") as target:
        shutil.copytree(clone / "docker/locks/cpu", target / "docker/locks/cpu", dirs_exist_ok=True)
        change(target / "docker/locks/cpu/torch.txt", tmp_path)
        yield target


def test_a_wheel_that_is_not_the_locked_one_is_refused_by_name(
    other: Path, env: dict[str, str], image: dict[str, Any]
) -> None:
    """The index gives other bytes under the same name: the build fails, and the image that is there stays."""
    with indexes.serve(token="anna:hunter2") as liar:
        for machine in ("x86_64", "aarch64"):
            tag = f"cp313-cp313-manylinux_2_28_{machine}"
            for name, version in (("torch", CPU.torch), ("torchvision", CPU.torchvision)):
                modules = {f"{name}/__init__.py": "print('not what was locked')\n"}
                file, content = indexes.stand_in_wheel(name, version, tag=tag, modules=modules)
                liar.publish("whl/cpu", file, content=content, metadata=indexes.metadata(name, version))
        mirror = liar.url("whl", credentials="anna:hunter2")
        done = invoke(other, {**env, "TORCHDOCK_TORCH_INDEX": mirror}, "build", "--cpu")
    assert done.returncode == 1, done.stderr
    assert re.search(r"torch(vision)?==", done.stderr) and "docker/locks" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert CloneState(other).records() == []


def test_credentials_may_be_in_netrc(
    other: Path, env: dict[str, str], index: indexes.Index, engine: Engine, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login anna password hunter2\n")
    netrc.chmod(0o600)
    given = {**env, "TORCHDOCK_TORCH_INDEX": index.url("whl"), "NETRC": str(netrc)}
    done = invoke(other, given, "build", "--cpu", "--json")
    assert done.returncode == 0, done.stderr
    name = json.loads(done.stdout)["image"]
    history = json.dumps(engine.client.images.get(name).history())
    assert "hunter2" not in history + done.stderr + (other / ".torchdock/logs/build-cpu.log").read_text()


def test_a_token_that_is_refused_fails_with_its_remedy(other: Path, env: dict[str, str], index: indexes.Index) -> None:
    mirror = index.url("whl", credentials="anna:hunter3")
    done = invoke(other, {**env, "TORCHDOCK_TORCH_INDEX": mirror}, "build", "--cpu")
    assert done.returncode == 1, done.stderr
    assert "renew the token" in done.stderr
    assert "hunter3" not in done.stdout + done.stderr
    assert CloneState(other).records() == []


def test_offline_builds_from_what_is_cached_and_says_what_is_missing(
    clone: Path, env: dict[str, str], image: dict[str, Any]
) -> None:
    again = invoke(clone, env, "build", "--cpu", "--offline", "--json")
    assert json.loads(again.stdout)["built"] is False
    suite = clone / "tests/container/test_tensors.py"
    suite.write_text(suite.read_text() + "\n")  # the last layer alone: all that is below it is cached
    built = invoke(clone, env, "build", "--cpu", "--offline", "--json")
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["built"] is True
    change(clone / "docker/locks/cpu/tools.txt", clone)
    missing = invoke(clone, env, "build", "--cpu", "--offline")
    assert missing.returncode == 1
    assert "offline: the layer tools is not in the build cache; it needs these wheels:" in missing.stderr
    assert "absl-py==" in missing.stderr and "invoke save" in missing.stderr
