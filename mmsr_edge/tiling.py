"""Tiling: a picture of any size as overlapping windows of one fixed size, and back again.

The size of the windows is data, `TileSpec` in a bundle's manifest. `plan_tiles` places them, and
`blend` joins their outputs, a row of windows at a time, so that no canvas is held whole. Positions
are on one grid for low-resolution pixels, latents and output pixels: `TilePlan.scaled` converts a
plan from one to the other.

The feathering weights of a plan are separable and sum to exactly one, so that no canvas of weights
is kept and a flat picture stays flat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.image.strips import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from mmsr_edge.bundle import TileSpec

    Array = npt.NDArray[Any]

__all__ = ["Tile", "TilePlan", "blend", "feather", "pad", "plan_tiles"]


@dataclass(frozen=True)
class Tile:
    """One window of a plan, in the plan's own pixels."""

    row: int
    """Index into `TilePlan.tops`."""
    column: int
    """Index into `TilePlan.lefts`."""
    top: int
    """First row of pixels."""
    left: int
    """First column of pixels."""
    size: int
    """Side in pixels."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), as in Pillow."""
        return self.left, self.top, self.left + self.size, self.top + self.size

    def of(self, picture: Array) -> Array:
        """View of the window in `picture` [height, width, ...]; smaller where the picture ends."""
        return picture[self.top : self.top + self.size, self.left : self.left + self.size]


@dataclass(frozen=True)
class TilePlan:
    """Positions of the windows: a grid of windows of full size that covers every pixel."""

    height: int
    """Height of the picture once padded (`pad`), at least `size`."""
    width: int
    """Width of the picture once padded, at least `size`."""
    size: int
    """Side of every window."""
    tops: tuple[int, ...]
    """First row of each row of windows, ascending from 0."""
    lefts: tuple[int, ...]
    """First column of each column of windows, ascending from 0."""

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def __iter__(self) -> Iterator[Tile]:
        """The windows, row by row."""
        for row, top in enumerate(self.tops):
            for column, left in enumerate(self.lefts):
                yield Tile(row, column, top, left, self.size)

    def scaled(self, factor: int | Fraction) -> TilePlan:
        """The same plan on a grid `factor` times as fine: 4 for output pixels, 1/2 for latents.

        Raises:
            ValueError: when a position would fall between two pixels.
        """

        def scale(length: int) -> int:
            result = Fraction(length) * factor
            if result.denominator != 1:
                raise ValueError(
                    f"{length} x {factor} is not a whole number: the tiles' multiple_of must be a "
                    f"multiple of {Fraction(factor).denominator}"
                )
            return int(result)

        return TilePlan(
            scale(self.height),
            scale(self.width),
            scale(self.size),
            tuple(map(scale, self.tops)),
            tuple(map(scale, self.lefts)),
        )

    @cached_property
    def row_weights(self) -> npt.NDArray[np.float32]:
        """`feather` of the rows of windows: [len(tops), size]."""
        return feather(self.tops, self.size)

    @cached_property
    def column_weights(self) -> npt.NDArray[np.float32]:
        """`feather` of the columns of windows: [len(lefts), size]."""
        return feather(self.lefts, self.size)


def plan_tiles(height: int, width: int, spec: TileSpec) -> TilePlan:
    """Place the fewest windows that cover a picture, spread evenly, with the overlap of `spec`.

    Args:
        height, width: sides of the picture, each at least 1. The plan's own height and width are
            rounded up to a multiple of `spec.multiple_of`, and at least `spec.size`.
        spec: size, least overlap and grid of the windows.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {width} x {height} pixels cannot be tiled")
    padded_height, tops = _spread(height, spec)
    padded_width, lefts = _spread(width, spec)
    return TilePlan(padded_height, padded_width, spec.size, tops, lefts)


def _spread(length: int, spec: TileSpec) -> tuple[int, tuple[int, ...]]:
    # Everything is counted in units of the grid. An even spread with a mean stride of at most
    # `stride` has, rounded down to the grid, no single stride above it.
    unit = spec.multiple_of
    size = spec.size // unit
    total = max(math.ceil(length / unit), size)
    stride = size - math.ceil(spec.overlap / unit)
    if stride < 1:
        raise ValueError(
            f"tiles of {spec.size} with an overlap of {spec.overlap} never advance on a grid of "
            f"{unit}: lower the overlap"
        )
    last = math.ceil((total - size) / stride)
    positions = [i * (total - size) // last for i in range(last + 1)] if last else [0]
    return total * unit, tuple(position * unit for position in positions)


def pad(picture: Array, height: int, width: int) -> Array:
    """Grow `picture` [h, w, ...] to [height, width, ...] downwards and to the right by reflection.

    The edge pixel itself is repeated, so that a picture and a map of it at another resolution are
    reflected about the same line, and a picture one pixel wide can be reflected too.
    """
    below, right = height - picture.shape[0], width - picture.shape[1]
    if below == right == 0:
        return picture
    margins = [(0, below), (0, right)] + [(0, 0)] * (picture.ndim - 2)
    return np.pad(picture, margins, mode="symmetric")


def feather(positions: tuple[int, ...], size: int) -> npt.NDArray[np.float32]:
    """Weights of windows along one axis: [len(positions), size], summing to one at every pixel.

    Across an overlap the weight passes from one window to the next along a raised cosine, which
    starts and ends level, so that the pixels next to a window's border, where a network has the
    least context, count least.
    """
    length = positions[-1] + size
    weights = np.ones((len(positions), size))
    for i in range(len(positions) - 1):
        shared = positions[i] + size - positions[i + 1]
        if shared > 0:
            phase = (np.arange(shared) + 0.5) / shared
            rise = np.sin(phase * (math.pi / 2)) ** 2
            weights[i + 1, :shared] *= rise
            weights[i, size - shared :] *= rise[::-1]
    # Two neighbours already sum to one; where three or more windows meet they do not.
    total = np.zeros(length)
    for position, weight in zip(positions, weights, strict=True):
        total[position : position + size] += weight
    weights /= np.stack([total[position : position + size] for position in positions])
    return weights.astype(np.float32)


def blend(
    plan: TilePlan, windows: Iterable[tuple[Tile, Array]], channels: int = 3
) -> Iterator[npt.NDArray[np.float32]]:
    """Join windows into a picture, in strips of whole rows as they are completed.

    Args:
        plan: positions of the windows.
        windows: each tile of `plan`, in its order, with its values [size, size, channels].
        channels: number of channels of the values.

    Yields:
        float32 [n, width, channels], from top to bottom: the weighted mean of the windows that
        cover a pixel.

    Raises:
        ValueError: a window has the wrong shape, or a tile is out of order or missing.
    """
    given = iter(windows)
    canvas = np.zeros((plan.size, plan.width, channels), np.float32)
    for row, top in enumerate(plan.tops):
        for column, left in enumerate(plan.lefts):
            expected = Tile(row, column, top, left, plan.size)
            tile, values = next(given, (None, canvas))
            if tile != expected:
                raise ValueError(f"got {tile or 'nothing'} instead of {expected}")
            target = canvas[:, left : left + plan.size]
            if values.shape != target.shape:
                raise ValueError(f"a tile of {values.shape} does not fit the plan's {target.shape}")
            weights = plan.row_weights[row][:, None] * plan.column_weights[column]
            target += values * weights[..., None]
        done = (plan.tops[row + 1] if row + 1 < len(plan.tops) else plan.height) - top
        for first in range(0, done, ROWS):
            yield canvas[first : min(first + ROWS, done)].copy()
        canvas[: plan.size - done] = canvas[done:]
        canvas[plan.size - done :] = 0
