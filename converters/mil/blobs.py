"""Weights file of an ML Program: MIL blob storage, version 2.

The file is little-endian. It has a header of 64 bytes (count and version, both uint32), then for
each blob a record, aligned to 64 bytes, and after it the data. The program refers to a blob by the
offset of its record. A record has 64 bytes: sentinel 0xDEADBEEF and element type (both uint32),
size in bytes and offset of the data (both uint64), and, for elements smaller than a byte, the
number of unused bits (uint64).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsr_edge.errors import BundleError

_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQQ32x")
_SENTINEL = 0xDEADBEEF
_VERSION = 2

ELEMENTS: dict[int, tuple[str, np.dtype[Any], int]] = {
    1: ("FLOAT16", np.dtype("<f2"), 16),
    2: ("FLOAT32", np.dtype("<f4"), 32),
    3: ("UINT8", np.dtype("<u1"), 8),
    4: ("INT8", np.dtype("<i1"), 8),
    6: ("INT16", np.dtype("<i2"), 16),
    7: ("UINT16", np.dtype("<u2"), 16),
    8: ("INT4", np.dtype("<i1"), 4),
    9: ("UINT1", np.dtype("<u1"), 1),
    10: ("UINT2", np.dtype("<u1"), 2),
    11: ("UINT4", np.dtype("<u1"), 4),
    12: ("UINT3", np.dtype("<u1"), 3),
    13: ("UINT6", np.dtype("<u1"), 6),
    14: ("INT32", np.dtype("<i4"), 32),
    15: ("UINT32", np.dtype("<u4"), 32),
}
"""Element types by their code in the file: MIL's name, numpy type, bits per element."""


class BlobFile:
    """A weights file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            BundleError: the file is too short, or of another version.
        """
        self.path = path
        self.size = path.stat().st_size
        if self.size < _HEADER.size:
            raise BundleError(f"{str(path)!r} has {self.size} bytes; a weights file has more")
        self._data: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
        _, version = _HEADER.unpack(self._data[: _HEADER.size].tobytes())
        if version != _VERSION:
            raise BundleError(f"{str(path)!r} is of version {version}; {_VERSION} is supported")

    def read(self, offset: int, element: str, count: int) -> NDArray[Any]:
        """Read one blob as a flat array; elements smaller than a byte are unpacked.

        Args:
            offset: offset of the blob's record in bytes.
            element: declared element type, by MIL's name.
            count: declared number of elements.

        Raises:
            BundleError: no such blob is at `offset`, or the file is truncated.
        """
        where = f"{str(self.path)!r}, blob at {offset}"
        if offset + _RECORD.size > self.size:
            raise BundleError(f"{where}: the file ends at {self.size}; export the package again")
        sentinel, code, size, begin, padding = _RECORD.unpack(
            self._data[offset : offset + _RECORD.size].tobytes()
        )
        if sentinel != _SENTINEL or code not in ELEMENTS:
            raise BundleError(f"{where}: no blob begins here; export the package again")
        name, dtype, bits = ELEMENTS[code]
        if name != element or size * 8 - padding != count * bits:
            raise BundleError(
                f"{where}: it holds {(size * 8 - padding) // bits} {name}, the program declares "
                f"{count} {element}; export the package again"
            )
        if begin + size > self.size:
            raise BundleError(
                f"{where}: its data end at {begin + size}, the file at {self.size}; "
                "export the package again"
            )
        raw = self._data[begin : begin + size]
        if bits >= 8:
            return raw.view(dtype)
        values = unpack_bits(raw, bits, count)
        return (values.astype(np.int8) ^ 8) - 8 if name == "INT4" else values


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Unpack elements of `bits` bits each; the least significant bits of a byte come first."""
    flat = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(flat, axis=1, bitorder="little")[:, 0]
