"""what is installed is the lock, of one CUDA, without driver libraries"""

import importlib
import os
import platform
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import torch

from torchdock.inside import check, passport, versions

REMEDY = "undo what pip or uv installed (a new container), or build the image again with its lock (invoke build)."
VARIANT = os.environ.get("TORCHDOCK_VARIANT", "")
pytestmark = pytest.mark.quick
image = pytest.mark.image


@pytest.fixture(scope="module")
def locked() -> dict[str, str]:
    """The pins of this variant, from the layers of its lock."""
    assert VARIANT, (
        "TORCHDOCK_VARIANT is not set. Remedy: run in torchdock's image, or name the variant to compare with."
    )
    found = versions.read(check.ROOT, VARIANT)
    assert found, f"There is no lock for the variant {VARIANT}. Remedy: name a variant that has one, or invoke lock."
    return found


@pytest.fixture(scope="module")
def libraries() -> list[Path]:
    """Every shared library of this environment, and of the folders beside it that the loader may search."""
    listed = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    folders = {Path(path).resolve() for path in [sys.prefix, "/usr/local", "/usr/lib", "/usr/lib64", *listed]}
    return [Path(top) / name for root in folders for top, _, names in os.walk(root) for name in names if ".so" in name]


def test_installed_versions_equal_the_lock(finding):
    """What is proved here would be proved of other software than the lock names: told outside of the image, too."""
    seen = passport.gather(check.ROOT)["lock"]
    if versions.in_image():
        assert seen and seen["variant"] == VARIANT, f"There is no lock for the variant {VARIANT}."
        assert not seen["differences"], "; ".join(seen["differences"])
    elif seen is None:
        said = "This tree has no lock that could be read: nothing was compared."
        finding("note", "versions", seen=said, meaning="The versions are anybody's.", remedy="restore docker/locks.")
    elif seen["differences"]:
        told = versions.told(versions.read(check.ROOT, seen["variant"]), versions.installed())
        meaning = "What is proved here is proved of these versions; with the lock's, numbers may be others."
        remedy = f"none, where they are meant; else torchdock's image, or docker/locks/{seen['variant']}."
        finding(
            "note", "versions", seen=f"Beside the lock of {seen['variant']}: {told}.", meaning=meaning, remedy=remedy
        )


@image
def test_pip_and_uv_leave_torch_and_cuda_as_locked(locked):
    """A package that needs another torch is refused, and no library of torch's is moved under it."""
    if not (named := os.environ.get("PIP_CONSTRAINT")):
        pytest.fail(
            "PIP_CONSTRAINT is not set. Remedy: run in torchdock's image, without a PIP_CONSTRAINT of your own."
        )
    assert os.environ.get("UV_CONSTRAINT") == named
    held = versions.pins(Path(named).read_text(encoding="utf-8"))
    wanted = {"torch", "torchvision", *versions.cuda_packages(locked)}
    assert held == {name: version for name, version in locked.items() if name in wanted}


@image
def test_what_is_built_here_is_built_with_this_torch(locked):
    """pip and uv build in a folder of their own: another torch there gives an extension that does not load here."""
    named = os.environ.get("PIP_BUILD_CONSTRAINT", "")
    assert named and os.environ.get("UV_BUILD_CONSTRAINT") == named
    line = Path(named).read_text(encoding="utf-8").strip()
    wheel = url2pathname(urlsplit(line.partition(" @ ")[2]).path)
    with zipfile.ZipFile(wheel) as archive:
        paths = [archive.read(name).decode().strip() for name in archive.namelist() if name.endswith(".pth")]
    assert Path(wheel).name == f"torch-{locked['torch']}-py3-none-any.whl"
    assert paths == [str(Path(torch.__file__).parents[1])]


@image
@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_what_was_built_for_another_torch_is_not_in_the_cache(locked, tool):
    """An extension that was built in another variant does not load here; /cache outlives both."""
    done = subprocess.run([tool, "cache", "dir"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"/cache/{tool}/{VARIANT}-torch-{locked['torch']}"


@image
@pytest.mark.parametrize("name", ["torch", "torchvision"])
def test_torch_is_the_locked_build(locked, name):
    """Its own version names release and build: the lock's release, this variant's build."""
    release, _, build = str(importlib.import_module(name).__version__).partition("+")
    assert release == locked[name].partition("+")[0]
    assert build == VARIANT


@image
def test_cuda_is_the_variants():
    """Wheels of another CUDA need another driver."""
    assert torch.version.cuda == versions.cuda_of(VARIANT)


def test_torchvision_is_built_for_this_torch():
    """Of different builds, torchvision's operators do not load or compute wrongly."""
    try:
        importlib.import_module("torchvision")
        cuda = torch.ops.torchvision._cuda_version()
    except ModuleNotFoundError:
        raise
    except Exception as error:
        pytest.fail(
            f"torchvision {metadata.version('torchvision')} does not load into torch {torch.__version__}: {error}"
        )
    release = None if cuda < 0 else f"{cuda // 1000}.{cuda % 1000 // 10}"
    assert release == torch.version.cuda, f"torchvision is built for CUDA {release}, torch for {torch.version.cuda}."


@image
def test_one_cuda_major_or_none():
    """Libraries of two CUDA majors in one process shadow each other; without CUDA they are gigabytes for nothing."""
    names = [dist.name for dist in metadata.distributions()]
    assert versions.cuda_majors(names) == {(torch.version.cuda or "").partition(".")[0]} - {""}
    packages = versions.cuda_packages(names)
    if torch.version.cuda is None:
        assert not packages, f"packages of CUDA beside a torch without it: {', '.join(packages)}"
    else:
        assert "triton" in packages and len(packages) > 10


@image
@pytest.mark.parametrize("name", ["libcudnn.so", "libcublas.so", "libcudart.so", "libnccl.so"])
def test_one_copy(libraries, name):
    """A second copy mixes versions at load time and costs gigabytes."""
    copies = {path.resolve() for path in libraries if path.name.startswith(name)}
    assert len(copies) == (0 if torch.version.cuda is None else 1), sorted(map(str, copies))


@image
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
