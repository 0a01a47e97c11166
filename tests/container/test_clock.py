"""the wall clock runs evenly, and agrees with the files'"""

import time
from pathlib import Path

import pytest
import torch

REMEDY = (
    "keep the host's clock in step (timedatectl set-ntp true, or the hypervisor's time service) and set it before work "
    "begins; a container cannot."
)
pytestmark = pytest.mark.quick


def test_the_clock_does_not_jump(clock, request):
    """From the first check to this one. After a jump, logs lie, builds and caches go by wrong times, TLS refuses."""
    clock.look(request.node.nodeid)
    assert not clock.jumps, f"{clock.told()}."


def test_files_get_the_time_of_the_clock(tmp_path):
    """A file's time is the kernel's clock: where it is another than this process's, something stands in between."""
    before = time.time()
    (tmp_path / "file").touch()
    written, after = (tmp_path / "file").stat().st_mtime, time.time()
    assert before - 2 <= written <= after + 2, f"the clock says {before:.0f}, a file written now {written:.0f}"


def test_the_clock_is_not_behind_the_environment():
    """A clock that was never set: every certificate, and all that is installed, seems to come from the future."""
    made = Path(torch.__file__).stat().st_mtime
    assert time.time() >= made, f"the clock says {time.ctime()}, and torch was installed {time.ctime(made)}"
