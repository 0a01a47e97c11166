"""The devel layer: what it asks for, what belongs to it, and that the Dockerfile says what the variants say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.unit.given import ROOT

from torchdock import devel, locks, variants
from torchdock.errors import InputError
from torchdock.locks import Pin

CU130 = variants.get(ROOT, "cu130")
PINS = locks.read(ROOT, "cu130")
DOCKERFILE = (ROOT / "docker" / "cuda.Dockerfile").read_text()
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # BuildKit's names and uname's


def pin(name: str, version: str) -> Pin:
    return Pin(name, version, f"{name}=={version} \\\n    --hash=sha256:{'0' * 64}\n")


def test_it_asks_for_the_compiler_and_for_the_variants_own_pins_as_they_are() -> None:
    given = {"torch": pin("torch", "2.14.1"), "cuda-toolkit": pin("cuda-toolkit", "13.0.3.0")}
    asked = devel.devel_requirements(CU130, given)
    assert asked == [
        "cuda-toolkit[cccl,nvcc,nvml,profiler]==13.0.*",
        "ninja",
        "cuda-toolkit==13.0.3.0",
        "torch==2.14.1",
    ]
    assert [str(Requirement(line)) for line in asked] == asked


@pytest.mark.parametrize("name", sorted(variants.read(ROOT)))
def test_a_variant_has_a_lock_of_it_exactly_where_there_are_wheels_of_nvcc(name: str) -> None:
    variant = variants.get(ROOT, name)
    assert devel.exists(variant) == (name == "cu130")
    assert devel.file(ROOT, variant).exists() == devel.exists(variant)
    if not devel.exists(variant):
        assert devel.devel_requirements(variant, PINS) == []


def test_a_later_cuda_has_it_too() -> None:
    assert devel.exists(replace(CU130, cuda="14.1"))


def test_what_is_added_is_what_the_other_layers_lack() -> None:
    given = {"torch": pin("torch", "2.14.1")}
    resolved = {**given, "nvidia-cuda-nvcc": pin("nvidia-cuda-nvcc", "13.0.88"), "ninja": pin("ninja", "1.13.2")}
    assert list(devel.added(CU130, given, resolved)) == ["nvidia-cuda-nvcc", "ninja"]


def test_a_package_of_another_layer_is_never_moved() -> None:
    given = {"torch": pin("torch", "2.14.1")}
    resolved = {"torch": pin("torch", "2.15.0"), "nvidia-cuda-nvcc": pin("nvidia-cuda-nvcc", "13.0.88")}
    with pytest.raises(InputError, match=r"would change torch.*`invoke lock --variant cu130`"):
        devel.added(CU130, given, resolved)


@pytest.mark.parametrize("version", ["13.2.1", ""])
def test_nvcc_of_another_cuda_is_refused(version: str) -> None:
    resolved = {"nvidia-cuda-nvcc": pin("nvidia-cuda-nvcc", version)} if version else {}
    with pytest.raises(InputError, match=rf"nvcc {version or 'none'}.*CUDA 13\.0.*variants\.toml"):
        devel.added(CU130, {}, resolved)


def test_the_committed_lock() -> None:
    path = devel.file(ROOT, CU130)
    text = path.read_text()
    pins = locks.parse(text, path.name)
    assert text == devel.text(CU130, pins)
    assert devel.added(CU130, PINS, PINS | pins) == pins, "a package of another layer"
    assert {"nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl"} < set(pins)
    said = locks.header(text)
    assert said is not None
    assert (said.variant, said.layer, said.architectures) == ("cu130", "devel", ("x86_64", "aarch64"))
    for found in pins.values():  # a wheel for each architecture
        assert found.text.count("--hash=sha256:") >= 2, found.name


def test_the_dockerfile_compiles_for_the_gpus_of_the_variant() -> None:
    pairs = re.findall(r'^FROM nvcc AS devel-(\S+)\nENV TORCH_CUDA_ARCH_LIST="(.*)"$', DOCKERFILE, re.MULTILINE)
    assert {MACHINES[name]: listed for name, listed in pairs} == {
        machine: devel.arch_list(CU130, machine) for machine in CU130.architectures
    }


def test_the_list_is_that_of_the_architecture() -> None:
    assert devel.arch_list(CU130, "x86_64") == "7.5;8.0;8.6;9.0;10.0;12.0"
    assert devel.arch_list(CU130, "aarch64") == "8.0;9.0;10.0;11.0;12.0"


def test_the_environment_knows_nothing_of_it() -> None:
    """The default image is the last stage, and neither its steps nor its pins have anything of the compiler."""
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert last.startswith("\nFROM configured AS environment\n")
    steps = [line for line in last.splitlines() if not line.startswith("#")]
    assert "devel" not in "\n".join(steps)
    assert "source=docker/locks/${VARIANT}," not in last, "the whole folder of locks, devel.txt among them"
    assert not set(locks.parse(devel.file(ROOT, CU130).read_text(), "devel.txt")) & set(PINS)


def locked(root: Path, text: str | None = None) -> Path:
    """A clone with the lock of cu130 alone, its devel.txt with this text."""
    folder = root / "docker" / "locks" / "cu130"
    folder.mkdir(parents=True)
    for name in locks.LAYERS:
        (folder / f"{name}.txt").write_text((locks.folder(ROOT, "cu130") / f"{name}.txt").read_text())
    if text is not None:
        (folder / "devel.txt").write_text(text)
    return root


def test_the_lock_of_this_clone_can_be_built() -> None:
    for architecture in CU130.architectures:
        devel.check(ROOT, CU130, architecture)


@pytest.mark.parametrize(("name", "why"), [("cu128", "begin with CUDA 13"), ("cpu", "for CPUs alone")])
def test_a_variant_without_a_compiler_is_refused_and_another_one_named(name: str, why: str) -> None:
    with pytest.raises(InputError, match=rf"{name} has no devel image.*{why}.*--variant cu130"):
        devel.check(ROOT, variants.get(ROOT, name), "x86_64")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (None, "is missing"),
        (("layer=devel", "layer=tools"), "is not the devel layer of cu130"),
        (("variant=cu130", "variant=cu132"), "is not the devel layer of cu130"),
        (("# torchdock:", "#"), "is not the devel layer of cu130"),
        (("architectures=x86_64,aarch64", "architectures=aarch64"), "is for aarch64, not x86_64"),
        (("ninja==", "numpy=="), "is older than the other layers, which have numpy"),
    ],
)
def test_a_lock_that_is_for_something_else_is_refused(
    tmp_path: Path, change: tuple[str, str] | None, problem: str
) -> None:
    text = devel.file(ROOT, CU130).read_text().replace(*change) if change else None
    with pytest.raises(InputError, match=rf"devel\.txt {problem}.*`invoke lock --variant cu130`"):
        devel.check(locked(tmp_path, text), CU130, "x86_64")
