"""What ``--profile debug`` needs inside: processes that may be attached to, and root that is given nothing more.

The profile's capabilities open the engine's filter of system calls for a user who holds none of them. As UID 0 a
process would hold them, and could trace other users' processes and count on the whole machine: they are laid down
before the command begins, and no-new-privileges keeps it from having them again.

    python -I tracing.py COMMAND …        becomes the command, without capabilities
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import NoReturn

_PR_SET_PTRACER = 0x59616D61  # prctl(2)
_ANYBODY = ctypes.c_ulong(-1)
_VERSION_3 = 0x20080522  # capset(2)


@cache  # a start-up file of a venv is read twice
def consent() -> None:
    """Let debuggers attach to this process and to those that it forks; called at the start of every Python here.

    Only where Yama asks for it (kernel.yama.ptrace_scope is 1), and only to processes of the same user.
    """
    _consent()
    os.register_at_fork(after_in_child=_consent)


def _consent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)  # without Yama: EINVAL, and nothing to consent to


def lay_down() -> None:
    """Give up every capability of this process.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def main(argv: list[str]) -> NoReturn:
    """See the module's text."""
    lay_down()
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1:])
