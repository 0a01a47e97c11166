"""each file that the packages brought is there, whole, and each library of torch and CUDA loads"""

import csv
import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

REMEDY = "leave the folders of the environment as they were made: a new container, or invoke build."

# Of hosts with a GPU or a fast network alone; what needs them is loaded there alone.
OF_THE_HOST = (
    *("libcuda.so", "libnvidia-", "libmlx5.so", "libibverbs.so", "librdmacm.so"),
    *("libfabric.so", "libucs.so", "libucp.so", "libmpi.so", "libpmix.so", "liboshmem.so", "libhwloc.so"),
)
# What people compute with; and without NVIDIA's profilers, which load for seconds and compute nothing.
PACKAGES, PROFILERS = ("torch", "torchvision", "numpy", "pillow", "nvidia-"), ("nvperf", "cupti", "pcsamplingutil")

LOAD = """
import ctypes, json, os, sys
import torch
failed = {}
for path in json.load(sys.stdin):
    try:
        ctypes.CDLL(path, os.RTLD_LAZY | os.RTLD_LOCAL)
    except OSError as error:
        failed[path] = str(error)
json.dump(failed, sys.stdout)
"""


@pytest.fixture(autouse=True)
def equal_seeds():
    """None are needed: what is examined here may keep torch from being imported."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, tuple[str, int | None]]:
    """Every file that a package recorded: {path: (package, bytes, or None where it recorded none)}."""
    found = {}
    # Without the copies that setuptools adds to the path once it is imported: their programs are left out there.
    for dist in metadata.distributions(path=[path for path in sys.path if not path.endswith("_vendor")]):
        name, folder = dist.name, str(dist.locate_file(""))
        for row in csv.reader((dist.read_text("RECORD") or "").splitlines()):
            path = os.path.normpath(os.path.join(folder, row[0]))
            found[path] = (name, int(row[2]) if len(row) > 2 and row[2] else None)
    return found


def python(program: str, stdin: str = "") -> str:
    """What a new Python prints; its own last words become the failure."""
    done = subprocess.run([sys.executable, "-c", program], input=stdin, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
    return done.stdout


def test_torch_can_be_imported():
    """Whatever else fails follows from it: a library that is not found, or belongs to another build."""
    assert python("import torch; print(torch.ones(2).sum().item())").strip() == "2.0"


def test_no_file_is_missing_or_cut_short(recorded):
    """A file that was removed, hidden by a mount or cut short on a full disk fails when it is needed, in hours."""
    assert len(recorded) > 1000, "no package recorded its files: nothing could be examined"
    lost = []
    for path, (package, size) in recorded.items():
        try:
            now = os.stat(path).st_size
        except OSError as error:
            lost.append(f"{os.path.relpath(path, sys.prefix)} of {package}: {error.strerror}")
            continue
        if size is not None and now != size and not path.endswith("RECORD"):
            lost.append(f"{os.path.relpath(path, sys.prefix)} of {package} has {now} bytes, recorded {size}")
    assert not lost, f"{len(lost)} files: {'; '.join(sorted(lost)[:5])}"


def test_each_library_loads(recorded):
    """torch loads most of them when they are first used: a missing one ends a run in its first epoch, or its last."""
    paths = [path for path, (package, _) in recorded.items() if package.lower().startswith(PACKAGES)]
    wanted = [path for path in paths if ".so" in os.path.basename(path) and not any(word in path for word in PROFILERS)]
    assert len(wanted) > 5
    failed = json.loads(python(LOAD, json.dumps(sorted(wanted))))
    broken = [error for error in failed.values() if not error.startswith(OF_THE_HOST)]
    assert not broken, f"{len(broken)} of {len(wanted)} libraries: {'; '.join(broken[:5])}"
