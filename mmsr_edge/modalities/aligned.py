"""Maps on the latent's grid: input `aligned` of UNets that have it, beside the tokens.

Tokens tell what is where to 16 map pixels; a latent cell covers k × k of them, 4 × 4 in nano. These
are the channels of a cell:

    0       depth: mean, in [-1, 1]
    1–3     segmentation: mean of each colour, in [-1, 1]
    4–19    edges: mean of each of the cell's 4 × 4 parts, in [0, 1], row by row

The channels of an absent map are 0. Training uses the same function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.bundle import ALIGNED, EDGE_PARTS
from mmsr_edge.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["align_maps"]


def align_maps(maps: Mapping[str, Array | None], size: int) -> npt.NDArray[np.float32]:
    """Reduce a tile's maps to its latent's grid: [B, `ALIGNED`, size, size].

    Args:
        maps: by name, [B, 3, s, s] in [-1, 1], as the tokenizer reads them; None or a missing name
            is an absent map. Without any, B is 1.
        size: side of the latent.

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
        aligned[:, 4:] = cells.reshape(batch, EDGE_PARTS**2, size, size)
    return aligned


def _means(planes: Array, size: int) -> Array:
    """Means of `planes` [B, C, s, s] over size × size equal parts."""
    side = planes.shape[-1]
    if side % size:
        raise BundleError(
            f"maps of {side} pixels a side have no {size} x {size} equal parts, to which 'aligned' "
            "reduces them; export the bundle again"
        )
    k = side // size
    means: Array = planes.reshape(*planes.shape[:2], size, k, size, k).mean(axis=(3, 5))
    return means
