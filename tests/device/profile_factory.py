"""The smallest valid colour profiles, to read and to compare with LittleCMS."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

D50 = (0.9642, 1.0, 0.8249)
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""XYZ of red, green and blue of Adobe RGB (1998) under D50."""
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491))


def curve(*values: int) -> bytes:
    """A tone curve: a straight line without values, a gamma in 1/256 with one, else a table."""
    return b"curv\0\0\0\0" + struct.pack(f">I{len(values)}H", len(values), *values)


def parametric(kind: int, *parameters: float) -> bytes:
    """A parametric tone curve."""
    fixed = [round(value * 65536) for value in parameters]
    return b"para\0\0\0\0" + struct.pack(f">HH{len(fixed)}i", kind, 0, *fixed)


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content + b"\0" * (-len(content) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    header = struct.pack(
        ">I4sI4s4s4s", 128 + len(body), b"\0" * 4, 0x02400000, b"mntr", space, b"XYZ "
    )
    header += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28 + _xyz(D50)[8:]
    return header.ljust(128, b"\0") + body


def rgb_profile(
    colorants: Sequence[Sequence[float]] = ADOBE, tone: bytes = curve(563), **extra: bytes
) -> bytes:
    """An RGB profile of tone curve and matrix; 563 is the gamma of Adobe RGB."""
    tags = {b"wtpt": _xyz(D50)}
    tags |= {
        name: _xyz(xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), tone)
    return _profile(b"RGB ", tags | {name.encode(): value for name, value in extra.items()})


def linear_grey_profile(tone: bytes = curve()) -> bytes:
    """A grey profile: proportional to light, or with another tone curve."""
    return _profile(b"GRAY", {b"wtpt": _xyz(D50), b"kTRC": tone})
