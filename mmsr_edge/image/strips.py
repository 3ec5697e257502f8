"""Strips: a picture as runs of whole rows, from top to bottom, so that it is never held whole.

A strip is [n, W, C]; a picture is an iterator of strips. Operations that need neighbouring rows get
them from `Rows`.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Floats = npt.NDArray[np.float32]
    Strips = Iterator[Floats]
    Box = tuple[float, float, float, float]

__all__ = ["ROWS", "BicubicUpsampler", "Rows", "resize_strips", "windowed"]

ROWS = 64
"""Rows of a strip where the number is free: enough to keep overlaps cheap."""

PIXELS = 1 << 18
"""Pixels of a window, if they make more than `ROWS` rows: its overlap with the next is large. They
are those of one tile of nano, whose time matters most."""

_SUPPORT = {Image.Resampling.BICUBIC: 2.0, Image.Resampling.LANCZOS: 3.0}


class Rows:
    """Ranges of rows of a picture that comes in strips, taken from top to bottom."""

    def __init__(self, strips: Iterable[Floats]) -> None:
        self._strips = iter(strips)
        self._held: list[Floats] = []
        self._top = 0  # first row that is held
        self._bottom = 0

    def take(self, first: int, stop: int) -> Floats:
        """Rows [first, stop). Those above `first` are discarded.

        Raises:
            ValueError: a row was discarded before, or the picture ends before `stop`.
        """
        if first < self._top:
            raise ValueError(f"row {first} was discarded; the first one held is {self._top}")
        while self._bottom < stop:
            strip = next(self._strips, None)
            if strip is None:
                raise ValueError(f"the picture ends at row {self._bottom}, before {stop}")
            self._held.append(strip)
            self._bottom += len(strip)
        while self._held and self._top + len(self._held[0]) <= first:
            self._top += len(self._held.pop(0))
        # Joined anew every time, since a joined block would keep discarded rows in memory.
        whole = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        return whole[first - self._top : stop - self._top]


def windowed(
    strips: Iterable[Floats], height: int, halo: int, work: Callable[[Floats, int, int], Floats]
) -> Strips:
    """Apply `work` to overlapping windows of rows, and yield the middle part of each result.

    Args:
        strips: a picture of `height` rows.
        height: number of rows of the picture.
        halo: additional rows of a window on either side, except at the ends of the picture.
        work: function of a window and its rows `first` and `stop`; returns as many rows.
    """
    strips = iter(strips)
    start = next(strips)
    count = max(PIXELS // start.shape[1] // ROWS, 1) * ROWS  # whole pixels of the input
    rows = Rows(itertools.chain([start], strips))
    for top in range(0, height, count):
        bottom = min(top + count, height)
        first, stop = max(top - halo, 0), min(bottom + halo, height)
        yield work(rows.take(first, stop), first, stop)[top - first : bottom - first]


class BicubicUpsampler:
    """Bicubic enlargement of a picture, computed row range by row range and not kept."""

    def __init__(self, planes: Floats, shape: tuple[int, int]) -> None:
        """Prepare to enlarge `planes` [H, W, C] to `shape` (height, width)."""
        self._planes = _images(planes)
        self._shape = shape

    def rows(self, first: int, stop: int) -> Floats:
        """Rows [first, stop) of the enlargement: [n, width, C]."""
        width, height = self._planes[0].size
        step = height / self._shape[0]
        box = (0.0, first * step, float(width), min(stop * step, height))
        size = (self._shape[1], stop - first)
        return _resized(self._planes, size, Image.Resampling.BICUBIC, box)


def resize_strips(strips: Iterable[Floats], height: int, size: tuple[int, int], box: Box) -> Strips:
    """Resize a picture with Lanczos's filter of three lobes, which averages where it shrinks.

    Every row equals that of `PIL.Image.Image.resize` on the whole picture, up to float rounding.

    Args:
        strips: a picture of `height` rows.
        height: number of rows of the picture.
        size: (width, height) of the result.
        box: part of the picture that is used, (left, top, right, bottom) in its pixels.
    """
    left, upper, right, lower = box
    step = (lower - upper) / size[1]  # source rows to a row of the result
    reach = math.ceil(_SUPPORT[Image.Resampling.LANCZOS] * max(step, 1.0)) + 1
    rows = Rows(strips)
    count = max(int(ROWS / max(step, 0.25)), 1)
    for top in range(0, size[1], count):
        bottom = min(top + count, size[1])
        start, end = upper + top * step, min(upper + bottom * step, height)
        first, stop = max(math.floor(start) - reach, 0), min(math.ceil(end) + reach, height)
        planes = _images(rows.take(first, stop))
        inner = (left, start - first, right, end - first)
        yield _resized(planes, (size[0], bottom - top), Image.Resampling.LANCZOS, inner)
    for _ in strips:  # rows below the box are used up, so that their producer finishes its work
        pass


def _images(planes: Floats) -> list[Image.Image]:
    return [Image.fromarray(np.ascontiguousarray(planes[..., c])) for c in range(planes.shape[2])]


def _resized(
    planes: list[Image.Image], size: tuple[int, int], resample: Image.Resampling, box: Box
) -> Floats:
    result = np.empty((size[1], size[0], len(planes)), np.float32)
    for channel, plane in enumerate(planes):
        result[..., channel] = np.asarray(plane.resize(size, resample, box))
    return result
