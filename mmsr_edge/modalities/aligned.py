"""Maps on the latent's grid: input `aligned` of UNets that have it, beside the tokens.

A latent cell covers k×k map pixels. Its channels, in [-1, 1] or [0, 1], are 0 for an absent map:

    0       depth: mean, in [-1, 1]
    1–3     segmentation: mean of the colours, in [-1, 1]
    4–19    edges: share of each of its 4×4 parts, in [0, 1], in raster order
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["CHANNELS", "align_maps"]

PARTS = 4
"""Parts of a cell along a side that tell of its edges."""
CHANNELS = 4 + PARTS**2
"""a, number of channels."""


def align_maps(maps: Mapping[str, Array | None], size: int) -> npt.NDArray[np.float32]:
    """Reduce maps to the latent's grid: [B, `CHANNELS`, size, size].

    Args:
        maps: by name, [B, 3, s, s] in [-1, 1], as the tokenizer reads them; None or a missing name
            is an absent map. At least one is needed.
        size: side of the latent.

    Raises:
        BundleError: s is not a multiple of 4 × `size`.
    """
    given = {name: m for name, m in maps.items() if m is not None}
    batch, _, side, _ = next(iter(given.values())).shape
    if side % (PARTS * size):
        raise BundleError(f"maps of side {side} cannot be aligned with a latent of side {size}")
    aligned = np.zeros((batch, CHANNELS, size, size), np.float32)

    def means(planes: Array, parts: int) -> Array:
        k = side // parts
        return planes.reshape(*planes.shape[:2], parts, k, parts, k).mean((3, 5))

    if "depth" in given:
        aligned[:, :1] = means(given["depth"][:, :1], size)
    if "segmentation" in given:
        aligned[:, 1:4] = means(given["segmentation"], size)
    if "edges" in given:
        parts = (means(given["edges"][:, :1], PARTS * size) + 1) / 2
        cells = parts.reshape(batch, size, PARTS, size, PARTS).transpose(0, 2, 4, 1, 3)
        aligned[:, 4:] = cells.reshape(batch, PARTS**2, size, size)
    return aligned
