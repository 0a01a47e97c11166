"""Which GPUs a compiled file has code for: NVIDIA's fat binaries, read without NVIDIA's tools. Pure."""

from __future__ import annotations

import struct

# Regions and entries as nvcc writes them since CUDA 4; NVIDIA documents neither. Little-endian.
_REGION = struct.Struct("<IHHQ")  # magic, version, size of this header, size of the entries that follow
_MAGIC = 0xBA55ED50
_ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, size of this header, size of the payload, …, architecture
_KINDS = {1: "compute", 2: "sm"}  # PTX, machine code


def targets(data: bytes) -> set[str]:
    """Return what an object file or library has code for: {"sm_90", "compute_120"}; machine code and PTX, as nvcc says.

    Empty where there is none. Raises ValueError where a region is damaged or of a kind that this does not know.
    """
    found = set()
    mark = struct.pack("<I", _MAGIC)
    at = data.find(mark)
    while at >= 0:
        end = at + len(mark)
        if len(data) - at >= _REGION.size:
            _, version, header, size = _REGION.unpack_from(data, at)
            # The same four bytes may stand anywhere, in compressed code for one.
            if (version, header) == (1, _REGION.size) and size <= len(data) - at - header:
                end = at + header + size
                found |= _entries(data[at + header : end])
        at = data.find(mark, end)
    return found


def _entries(region: bytes) -> set[str]:
    found = set()
    at = 0
    while at < len(region):
        if len(region) - at < _ENTRY.size:
            raise ValueError(f"a fat binary ends in the middle of an entry, {len(region) - at} bytes before its end")
        kind, _, header, size, architecture = _ENTRY.unpack_from(region, at)
        if kind not in _KINDS or header < _ENTRY.size or header + size > len(region) - at:
            raise ValueError(f"a fat binary has an entry of the unknown kind {kind}, {header} + {size} bytes")
        found.add(f"{_KINDS[kind]}_{architecture}")
        at += header + size
    return found
