"""Which GPUs a compiled file has code for, read out of its bytes."""

import struct

import pytest

from torchdock.inside import fatbin

PTX, MACHINE_CODE = 1, 2
MAGIC = struct.pack("<I", 0xBA55ED50)


def entry(kind: int, architecture: int, payload: bytes = b"\0" * 24, header: int = 64) -> bytes:
    return struct.pack("<HHIQ12xI", kind, 257, header, len(payload), architecture).ljust(header, b"\0") + payload


def region(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


def test_machine_code_and_ptx_of_all_regions() -> None:
    first = region(entry(MACHINE_CODE, 75), entry(MACHINE_CODE, 120), entry(PTX, 120))
    data = b"\x7fELF" + b"x" * 13 + first + b"between" + region(entry(MACHINE_CODE, 90, header=104)) + b"behind"
    assert fatbin.targets(data) == {"sm_75", "sm_120", "compute_120", "sm_90"}


def test_no_code_for_gpus() -> None:
    assert fatbin.targets(b"") == set()
    assert fatbin.targets(b"\x7fELF" + b"\0" * 100) == set()
    assert fatbin.targets(region()) == set()


def test_the_magic_alone_is_no_region() -> None:
    """It may stand in compressed code or at the very end of a file."""
    inside = region(entry(MACHINE_CODE, 80, MAGIC + struct.pack("<HHQ", 1, 16, 0) + b"\0" * 8))
    assert fatbin.targets(inside) == {"sm_80"}
    assert fatbin.targets(MAGIC) == set()
    assert fatbin.targets(MAGIC + struct.pack("<HHQ", 7, 16, 8) + b"\0" * 8) == set()
    assert fatbin.targets(MAGIC + struct.pack("<HHQ", 1, 16, 1 << 40)) == set()


@pytest.mark.parametrize(
    "damaged",
    [
        region(entry(9, 80)),
        region(b"\0" * 8),
        region(entry(MACHINE_CODE, 80)[:-1]),
        region(entry(MACHINE_CODE, 80, header=64)[:4] + struct.pack("<I", 0) + b"\0" * 80),
    ],
    ids=["unknown kind", "too short", "cut off", "no header"],
)
def test_what_cannot_be_read_is_an_error(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="fat binary"):
        fatbin.targets(damaged)
