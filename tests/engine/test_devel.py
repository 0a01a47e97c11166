"""The devel image, built as a person builds it: a compiler for the variant's CUDA on top of the same environment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.conftest import ROOT, Invoke
from torchdock import container, devel, locks, sources, variants
from torchdock.container import Identity
from torchdock.engine import Engine
from torchdock.process import Completed, capture
from torchdock.state import CloneState

pytestmark = pytest.mark.slow

ADDED_BYTES = 290_000_000  # measured: 273 MB, of them nvcc and cicc 255
ANNA = Identity(uid=41234, gid=41234, groups=(), name="anna")


def build(invoke: Invoke, *options: str) -> dict[str, Any]:
    done = invoke("build", "--variant", "cu130", "--json", *options, timeout=3000)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture(scope="module")
def built(invoke: Invoke, engine: Engine) -> Iterator[dict[str, Any]]:
    """The devel image: the document of its build. Afterwards Anna's cache is removed."""
    yield build(invoke, "--devel")
    for volume in engine.client.volumes.list(filters={"name": f"torchdock-cache-{ANNA.uid}"}):
        volume.remove()


@pytest.fixture(scope="module")
def environment(invoke: Invoke) -> dict[str, Any]:
    """The same without the compiler."""
    return build(invoke)


def launch(engine: Engine, image: str, *command: str) -> Completed:
    """As torchdock launches: a user of the host, no capabilities, no new privileges. Removed at its end."""
    given, clone = sources.gather(), CloneState(ROOT).clone
    plan = container.plan(engine, image, ANNA, given, role="test", clone=clone, workspace=None, command=command)
    try:
        return capture(plan.argv, timeout=900)
    finally:
        engine.remove_container(plan.name)


def packages(engine: Engine, image: str) -> dict[str, str]:
    listed = "import importlib.metadata as m; print(*{f'{d.name}=={d.version}' for d in m.distributions()})"
    done = launch(engine, image, "python", "-c", listed)
    assert done.code == 0, done.err
    return {locks.canonicalize_name(name): version for name, version in (word.split("==") for word in done.out.split())}


def test_its_name_says_so(built: dict[str, Any]) -> None:
    assert built["image"].startswith("torchdock/cu130:")
    assert built["image"].endswith("-devel")
    assert built["target"] == "devel"


@pytest.mark.usefixtures("built")
def test_a_command_is_run_beside_the_compiler(invoke: Invoke) -> None:
    done = invoke("run", "--variant", "cu130", "--devel", "--", "sh", "-c", 'nvcc --version && echo "$CUDA_HOME"')
    assert done.returncode == 0, done.stderr
    assert "release 13.0" in done.stdout and done.stdout.endswith("/opt/cuda\n")


def test_it_proves_itself(engine: Engine, built: dict[str, Any]) -> None:
    """The whole suite and the compiler: an extension of C++ and CUDA is compiled and imported by an ordinary user."""
    done = launch(engine, built["image"], "python", "-m", "torchdock.inside.check", "--devel", "--json")
    assert done.code == 0, done.out + done.err
    summary = json.loads(done.out)
    assert (summary["failed"], summary["skipped"], summary["selection"]) == (0, 0, "default-devel")
    compiled = {check["id"] for check in summary["checks"] if check["outcome"] == "passed"}
    assert {"test_extension.py::test_load_inline", "test_extension.py::test_load"} <= compiled


def test_nvcc_is_of_the_variants_cuda_and_compiles_for_torchs_gpus(engine: Engine, built: dict[str, Any]) -> None:
    variant = variants.get(ROOT, "cu130")
    script = 'nvcc --version && echo "$CUDA_HOME" "$TORCH_CUDA_ARCH_LIST" && python -c "$1"'
    flags = "import torch; print(torch._C._cuda_getArchFlags())"
    done = launch(engine, built["image"], "sh", "-c", script, "sh", flags)
    assert done.code == 0, done.err
    assert f"release {variant.cuda}," in done.out
    *_, variables, torchs = done.out.strip().splitlines()
    home, listed = variables.split()
    assert home == "/opt/cuda"
    machine_code = {f"sm_{one.replace('.', '')}" for one in listed.split(";")}
    assert machine_code == {word for word in torchs.split() if word.startswith("sm_")}


def test_only_the_compiler_is_added(engine: Engine, environment: dict[str, Any], built: dict[str, Any]) -> None:
    """The same layers, and then its own: an environment that is proved is the one that extensions are built in."""
    variant = variants.get(ROOT, "cu130")
    own = locks.parse(devel.file(ROOT, variant).read_text(), "devel.txt")
    before, after = packages(engine, environment["image"]), packages(engine, built["image"])
    assert {name: version for name, version in after.items() if name not in before} == {
        name: pin.version for name, pin in own.items()
    }
    assert {name: version for name, version in after.items() if name in before} == before
    assert built["layers"][: len(environment["layers"]) - 1] == environment["layers"][:-1]  # the last one is the suite
    sizes = [engine.client.images.get(found["image"]).attrs["Size"] for found in (environment, built)]
    assert sizes[1] - sizes[0] <= ADDED_BYTES


def test_without_the_compiler_its_checks_fail_and_never_skip(engine: Engine, environment: dict[str, Any]) -> None:
    command = ["python", "-m", "torchdock.inside.check", "--devel", "--json", "-k", "extension"]
    done = launch(engine, environment["image"], *command)
    assert done.code == 1, done.out + done.err
    summary = json.loads(done.out)
    assert (summary["passed"], summary["skipped"]) == (0, 0)
    assert summary["failed"] > 0
    assert all("invoke build --devel" in check["message"] for check in summary["checks"])
