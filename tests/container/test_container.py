"""user, HOME, caches, CPUs, shared memory, open files, privileges, text"""

import getpass
import locale
import os
import pwd
import resource
import stat
import tempfile
from pathlib import Path

import pytest
import torch

from torchdock.inside import machine

REMEDY = "launch with torchdock (invoke run, invoke up), which sets this, or set it in docker run as named."
pytestmark = pytest.mark.quick

CACHES = {  # as torch and triton choose where nothing is set
    "TORCH_HOME": lambda: Path(torch.hub.get_dir()).parent,
    "TORCHINDUCTOR_CACHE_DIR": lambda: Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}",
    "TRITON_CACHE_DIR": lambda: Path.home() / ".triton",
}


def test_user_has_a_name(monkeypatch):
    """getpass, ssh, git and torch's caches ask for the user's name: a bare UID gives KeyError."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert getpass.getuser() == pwd.getpwuid(os.getuid()).pw_name != ""


def test_home_is_writable():
    """Tools write below HOME; / or a folder of somebody else's is none."""
    home = Path(os.environ["HOME"])
    assert home.is_dir() and home.parts[1:], f"HOME is {home}. Remedy: keep the image's entrypoint, or set HOME."
    with tempfile.NamedTemporaryFile(dir=home) as file:
        assert os.fstat(file.fileno()).st_uid == os.geteuid()


@pytest.mark.image
def test_workspace_is_writable():
    """Checkpoints and logs go there: found out at the end of an epoch, it costs the epoch."""
    workspace = Path("/workspace")
    if not workspace.is_mount():  # `invoke test` mounts none
        return
    try:
        with tempfile.NamedTemporaryFile(dir=workspace) as file:
            owner = Path(file.name).stat().st_uid
    except OSError as error:
        pytest.fail(
            f"/workspace: {error.strerror}. Remedy: `-w` a folder of your own, open it to UID {os.geteuid()} "
            "(sudo chown), and mount it without :ro."
        )
    assert owner == os.geteuid(), f"what UID {os.geteuid()} writes to /workspace belongs to UID {owner}"


@pytest.mark.parametrize("variable", CACHES)
def test_cache_is_writable_and_executable(variable):
    """Downloads and compiled kernels go there: without it, each process starts from nothing or fails."""
    folder = Path(os.environ.get(variable) or CACHES[variable]())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            noexec = os.statvfs(folder).f_flag & os.ST_NOEXEC
    except OSError as error:
        pytest.fail(
            f"{variable}: {folder}: {error.strerror}. Remedy: mount a volume there that this user may write to."
        )
    loads_code = variable != "TORCH_HOME"
    assert not (noexec and loads_code), (
        f"{folder} is mounted noexec: no compiled kernel loads. Remedy: mount it without noexec."
    )


def test_threads_are_not_above_the_cpus():
    """More threads than the CPU quota grants wait for each other: slower, not faster."""
    allowed, threads = machine.threads_allowed(), torch.get_num_threads()
    assert threads <= allowed, f"{threads} threads on {allowed} CPUs. Remedy: set OMP_NUM_THREADS={allowed}."
    if asked := os.environ.get("OMP_NUM_THREADS"):
        assert int(asked) <= allowed, f"OMP_NUM_THREADS={asked} on {allowed} CPUs. Remedy: set it to {allowed}."


def test_shared_memory():
    """DataLoader workers and NCCL hand data over through /dev/shm; Docker's 64 MB end them with a bus error."""
    shm = os.statvfs("/dev/shm")
    size = shm.f_blocks * shm.f_frsize
    assert size >= 2**30, f"/dev/shm has {size // 2**20} MiB, 1 GiB is the least. Remedy: launch with --shm-size=2g."
    assert stat.S_IMODE(Path("/dev/shm").stat().st_mode) & 0o1777 == 0o1777, "/dev/shm is not writable to all"


def test_open_files():
    """Each worker and each shared tensor takes descriptors: 1,024 are gone in one large DataLoader."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == resource.RLIM_INFINITY or soft >= 4096, (
        f"{soft} open files are allowed (the hard limit is {hard}). Remedy: launch with --ulimit nofile=65536:65536, "
        "or as much as the engine can give."
    )


def test_text_is_utf8(tmp_path):
    """In the POSIX locale, a file name or a label with an umlaut ends a training run."""
    assert locale.getpreferredencoding(False).upper().replace("-", "") == "UTF8", "Remedy: set LANG=C.UTF-8."
    file = tmp_path / "größe-数据.txt"
    file.write_text("Ünïcödé ✓")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes().decode("utf-8") == "Ünïcödé ✓"


@pytest.mark.launched
def test_no_capabilities():
    """torchdock launches with --cap-drop ALL: training needs none."""
    assert int(machine.status()["CapEff"], 16) == 0


@pytest.mark.launched
def test_no_new_privileges():
    """torchdock launches with --security-opt no-new-privileges: no setuid program gives any back."""
    assert machine.status()["NoNewPrivs"] == "1"
