"""Maps on the latent's grid: input `aligned` of UNets and decoders that have it.

Tokens tell what is where to 16 map pixels; a latent cell covers k × k of them, 4 × 4 in nano. These
are the channels of a cell:

    0       depth: mean, in [-1, 1]
    1–3     segmentation: mean of each colour, in [-1, 1]
    4–19    edges: mean of each of the cell's 4 × 4 parts, in [0, 1], row by row
    20–22   dials of depth, segmentation and edges: p(τ) · area

The channels of an absent map are 0. A dial's area is 1 where the temperature of its map acts:

    depth          what is far: 1 up to a depth of 0.3, 0 from 0.5
    segmentation   all but the subject and the cells around it
    edges          all but edges and the cells around them

and p(τ) = −ln τ / ln 2.5 below τ = 1, −½ · ln τ / ln 10 above: 1 at 0.4, 0 at 1, −½ at 10. Training
uses the same function, and the target 1 − p(τ) · area as the gain of the residual.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.bundle import ALIGNED, EDGE_PARTS, MAPS
from mmsr_edge.errors import BundleError
from mmsr_edge.modalities.segmentation import NO_CLASS, SUBJECT, palette_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["FAR", "NEAR", "align_maps", "pull"]

FAR, NEAR = 0.3, 0.5
"""Depths up to which a place is all far, and from which it is not far at all."""


def pull(temperature: float) -> float:
    """p(τ), how much a dial weakens the residual: 1 at τ = 0.4, 0 at 1, −½ at 10."""
    log = math.log(temperature)
    return -log / math.log(2.5) if log < 0 else -0.5 * log / math.log(10)


def align_maps(
    maps: Mapping[str, Array | None], size: int, temperature: Mapping[str, float] | None = None
) -> npt.NDArray[np.float32]:
    """Reduce a tile's maps to its latent's grid: [B, `ALIGNED`, size, size].

    Args:
        maps: by name, [B, 3, s, s] in [-1, 1], as the tokenizer reads them; None or a missing name
            is an absent map. Without any, B is 1.
        size: side of the latent.
        temperature: τ by map; None, or a missing name, is 1.

    Raises:
        BundleError: s is not a multiple of 4 × `size`.
    """
    given = {name: whole for name, whole in maps.items() if whole is not None}
    batch = next((len(whole) for whole in given.values()), 1)
    aligned = np.zeros((batch, ALIGNED, size, size), np.float32)
    if "depth" in given:
        aligned[:, :1] = _means(given["depth"][:, :1], size)
    if "segmentation" in given:
        aligned[:, 1:4] = _means(given["segmentation"], size)
    if "edges" in given:
        parts = (_means(given["edges"][:, :1], EDGE_PARTS * size) + 1) / 2
        cells = parts.reshape(batch, size, EDGE_PARTS, size, EDGE_PARTS).transpose(0, 2, 4, 1, 3)
        aligned[:, 4 : 4 + EDGE_PARTS**2] = cells.reshape(batch, EDGE_PARTS**2, size, size)
    for channel, name in enumerate(MAPS, start=4 + EDGE_PARTS**2):
        p = pull((temperature or {}).get(name, 1.0))
        if p and name in given:
            aligned[:, channel] = p * _AREAS[name](given[name], size)
    return aligned


def _far(depth: Array, size: int) -> Array:
    near = (_means(depth[:, :1], size)[:, 0] + 1) / 2
    far: Array = ((NEAR - near) / (NEAR - FAR)).clip(0, 1)
    return far


def _rest(segmentation: Array, size: int) -> Array:
    numbers = np.stack([palette_numbers(colours.transpose(1, 2, 0)) for colours in segmentation])
    return _apart((numbers >= SUBJECT) & (numbers < NO_CLASS), size)


def _flat(edges: Array, size: int) -> Array:
    return _apart(edges[:, 0] > -0.5, size)


def _apart(marks: Array, size: int) -> Array:
    """1 where neither a cell nor its neighbours are marked, 0 elsewhere: [B, size, size].

    Args:
        marks: bool, [B, s, s].
        size: cells along a side.
    """
    k = marks.shape[-1] // size
    cells = marks.reshape(len(marks), size, k, size, k).any((2, 4))
    wide = np.pad(cells, ((0, 0), (1, 1), (1, 1)))
    shifted = [wide[:, a : a + size, b : b + size] for a in range(3) for b in range(3)]
    apart: Array = 1 - np.any(shifted, axis=0).astype(np.float32)
    return apart


_AREAS = {"depth": _far, "segmentation": _rest, "edges": _flat}


def _means(planes: Array, size: int) -> Array:
    """Means of `planes` [B, C, s, s] over size × size equal parts."""
    side = planes.shape[-1]
    if side % size:
        raise BundleError(
            f"maps of {side} pixels a side have no {size} x {size} equal parts, to which 'aligned' "
            "reduces them; export the bundle again"
        )
    # Sums of slices: numpy's mean over two short axes takes six times as long.
    k = side // size
    rows = planes[:, :, ::k].astype(np.float32)
    for first in range(1, k):
        rows += planes[:, :, first::k]
    means: Array = rows[..., ::k].copy()
    for first in range(1, k):
        means += rows[..., first::k]
    means /= k**2
    return means
