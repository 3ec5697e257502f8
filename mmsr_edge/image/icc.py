"""ICC: conversion of a picture's own colour space to sRGB, which the networks take, and back.

Pillow's LittleCMS converts at eight bits and clips colours that the other space lacks. A profile
made of tone curves and a matrix, as those of cameras, phones and screens are, is a few lines of
arithmetic (ICC.1:2010, F.3), and is done here in floats.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Floats = npt.NDArray[np.float32]

__all__ = ["Profile", "parse_profile"]

_SRGB = np.array(
    [
        [0.436066, 0.385147, 0.143066],
        [0.222488, 0.716873, 0.060608],
        [0.013916, 0.097076, 0.714096],
    ]
)
"""Linear sRGB to XYZ under D50, the profile connection space: columns are red, green and blue."""
_GRID = np.linspace(0, 1, 4096)
_BAND = 64  # rows at a time: the arithmetic is in double precision


@dataclass(frozen=True, eq=False)
class Profile:
    """A colour space given by tone curves and a matrix, or grey by one curve."""

    curves: tuple[Array, ...]
    """Light [4096] at equidistant values from 0 to 1, strictly ascending: for R, G, B, or grey."""
    matrix: Array
    """Light to XYZ under D50, [3, 3]; for grey, that of sRGB."""

    def to_srgb(self, rgb: Floats) -> Floats:
        """Convert colours [H, W, 3] in [−1, 1] of this space to sRGB, clipped to its gamut."""
        to = np.linalg.inv(_SRGB) @ self.matrix
        result = np.empty_like(rgb)
        for top in range(0, len(rgb), _BAND):
            unit = rgb[top : top + _BAND].astype(np.float64) * 0.5 + 0.5
            planes = [np.interp(unit[..., c], _GRID, self._curve(c)) for c in range(3)]
            linear = (np.stack(planes, axis=-1) @ to.T).clip(0, 1)
            # IEC 61966-2-1
            low = linear * 12.92
            unit = np.where(linear <= 0.0031308, low, 1.055 * linear ** (1 / 2.4) - 0.055)
            result[top : top + _BAND] = unit * 2 - 1
        return result

    def from_srgb(self, rgb: Floats) -> Floats:
        """Convert sRGB colours [H, W, 3] in [−1, 1] to this space, clipped to its gamut."""
        to = np.linalg.inv(self.matrix) @ _SRGB
        result = np.empty_like(rgb)
        for top in range(0, len(rgb), _BAND):
            unit = (rgb[top : top + _BAND].astype(np.float64) * 0.5 + 0.5).clip(0, 1)
            linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
            light = linear @ to.T
            for c in range(3):
                plane = np.interp(light[..., c], self._curve(c), _GRID)
                result[top : top + _BAND, :, c] = plane * 2 - 1
        return result

    def _curve(self, channel: int) -> Array:
        return self.curves[min(channel, len(self.curves) - 1)]


def parse_profile(icc: bytes | None) -> Profile | None:
    """The profile, where colours must be converted and can be.

    None: there is no profile, it is sRGB's own, it is damaged, or it is a table of colours, as for
    printers and scanners; the networks then take the numbers as they are.
    """
    try:
        profile = _parse(icc) if icc else None
        if profile is None:
            return None
        ramp = np.linspace(-1, 1, 9, dtype=np.float32)
        cube = np.stack(np.meshgrid(ramp, ramp, ramp), axis=-1).reshape(27, 27, 3)
        shown, back = profile.to_srgb(cube), profile.from_srgb(cube)
    except (struct.error, ValueError, IndexError, KeyError, np.linalg.LinAlgError):
        return None
    if not (np.isfinite(shown).all() and np.isfinite(back).all()):
        return None
    if len(profile.curves) == 1:
        cube, shown = cube[..., :1].repeat(3, axis=2), profile.to_srgb(cube[..., :1].repeat(3, 2))
    return profile if np.abs(shown - cube).max() > 2 / 255 else None


def _parse(icc: bytes) -> Profile | None:
    count = struct.unpack_from(">I", icc, 128)[0]
    entries = [struct.unpack_from(">4sII", icc, 132 + 12 * i) for i in range(min(count, 100))]
    tags = {name: icc[offset : offset + size] for name, offset, size in entries}
    space, connection = icc[16:20], icc[20:24]
    if space == b"GRAY" and connection in {b"XYZ ", b"Lab "}:
        return Profile((_tone(tags[b"kTRC"]),), _SRGB)
    if space != b"RGB " or connection != b"XYZ " or b"A2B0" in tags:
        return None
    columns = [struct.unpack_from(">3i", tags[name], 8) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
    curves = tuple(_tone(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC"))
    return Profile(curves, np.array(columns, np.float64).T / 65536)


def _tone(tag: bytes) -> Array:
    """Light at the values of `_GRID` (ICC.1:2010, 10.5 and 10.15)."""
    x = _GRID
    if tag[:4] == b"curv":
        count = struct.unpack_from(">I", tag, 8)[0]
        if count == 0:
            y = x
        elif count == 1:
            y = x ** (struct.unpack_from(">H", tag, 12)[0] / 256)
        else:
            table = np.frombuffer(tag, ">u2", count, 12) / 65535
            y = np.interp(x, np.linspace(0, 1, count), table)
    elif tag[:4] == b"para":
        kind = struct.unpack_from(">H", tag, 8)[0]
        number = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}[kind]
        given = [value / 65536 for value in struct.unpack_from(f">{number}i", tag, 12)]
        g, a, b, c, d, e, f = given + [0.0] * (7 - number)
        if kind == 0:
            y = x**g
        else:
            power = np.maximum(a * x + b, 0) ** g
            if kind <= 2:  # Y = (aX + b)^g + c for X ≥ −b/a, else c
                y = np.where(a * x + b >= 0, power, 0) + (c if kind == 2 else 0)
            else:  # Y = (aX + b)^g + e for X ≥ d, else cX + f
                y = np.where(x >= d, power + e, c * x + f)
    else:
        raise ValueError(f"tone curve of type {tag[:4]!r}")
    # Strictly ascending, so that the curve can be inverted.
    return np.maximum.accumulate(y.clip(0, 1)) + _GRID * 1e-9
