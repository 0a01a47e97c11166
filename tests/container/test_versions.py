"""what is installed is the lock, of one CUDA, without driver libraries"""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torchvision

from torchdock.inside import check, versions

REMEDY = "undo what pip or uv installed (a new container), or build the image again with its lock (invoke build)."
VARIANT = os.environ.get("TORCHDOCK_VARIANT", "")
pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def locked() -> dict[str, str]:
    """The pins of this variant, from the layers of its lock."""
    assert VARIANT, (
        "TORCHDOCK_VARIANT is not set. Remedy: run in torchdock's image, or name the variant to compare with."
    )
    folder = check.ROOT / "docker" / "locks" / VARIANT
    files = [file for layer in versions.LAYERS if (file := folder / f"{layer}.txt").is_file()]
    assert files, f"There is no lock for the variant {VARIANT}. Remedy: name a variant that has one, or invoke lock."
    return versions.pins("\n".join(file.read_text(encoding="utf-8") for file in files))


@pytest.fixture(scope="module")
def libraries() -> list[Path]:
    """Every shared library of this environment, and of the folders beside it that the loader may search."""
    listed = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    folders = {Path(path).resolve() for path in [sys.prefix, "/usr/local", "/usr/lib", "/usr/lib64", *listed]}
    return [Path(top) / name for root in folders for top, _, names in os.walk(root) for name in names if ".so" in name]


def test_installed_versions_equal_the_lock(locked):
    """What is proved here would be proved of other software than the lock names."""
    installed: dict[str, str] = {}
    for dist in metadata.distributions():
        # The first one on the path is imported: setuptools, once it is, adds its own copies of packages at the end.
        installed.setdefault(versions.normalise(dist.name), dist.version)
    assert not (found := versions.differences(locked, installed)), "; ".join(found)


def test_torch_is_the_locked_build(locked):
    """torch's own version names release and build: the lock's release, this variant's build."""
    release, _, build = str(torch.__version__).partition("+")
    assert release == locked["torch"].partition("+")[0]
    assert build == VARIANT


def test_cuda_is_the_variants():
    """Wheels of another CUDA need another driver."""
    assert torch.version.cuda == versions.cuda_of(VARIANT)


def test_torchvision_is_built_for_this_torch():
    """Of different builds, torchvision's operators do not load or compute wrongly."""
    cuda = torch.ops.torchvision._cuda_version()
    release = None if cuda < 0 else f"{cuda // 1000}.{cuda % 1000 // 10}"
    assert (release, torchvision.__version__.partition("+")[2]) == (torch.version.cuda, VARIANT)


def test_one_cuda_major_or_none():
    """Libraries of two CUDA majors in one process shadow each other; without CUDA they are gigabytes for nothing."""
    names = [dist.name for dist in metadata.distributions()]
    assert versions.cuda_majors(names) == {(torch.version.cuda or "").partition(".")[0]} - {""}
    packages = versions.cuda_packages(names)
    if torch.version.cuda is None:
        assert not packages, f"packages of CUDA beside a torch without it: {', '.join(packages)}"
    else:
        assert "triton" in packages and len(packages) > 10


@pytest.mark.parametrize("name", ["libcudnn.so", "libcublas.so", "libcudart.so", "libnccl.so"])
def test_one_copy(libraries, name):
    """A second copy mixes versions at load time and costs gigabytes."""
    copies = {path.resolve() for path in libraries if path.name.startswith(name)}
    assert len(copies) == (0 if torch.version.cuda is None else 1), sorted(map(str, copies))


def test_no_driver_library_in_the_environment(libraries):
    """The driver's libraries must come from the host that runs the driver, or they will not match it."""
    driver = ("libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so")
    own = [path for path in libraries if path.is_relative_to(Path(sys.prefix).resolve())]
    assert any(path.name.startswith("libtorch") for path in own), f"No torch below {sys.prefix}: the search is blind"
    assert not [str(path) for path in own if path.name.startswith(driver) and "stubs" not in path.parts]


def test_built_for_this_machine():
    """An emulated environment computes, slowly and not always rightly."""
    import sysconfig

    assert platform.machine() in sysconfig.get_platform()
