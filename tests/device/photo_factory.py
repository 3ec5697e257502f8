"""A small picture with smooth shading and a few edges, and the pixels of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge import Result

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]


def photo(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth shading and a disc, [height, width, 3]: edges, but not everywhere."""
    y, x = np.mgrid[:height, :width] / max(height, width, 2)
    shades = np.stack([x, y, 0.5 + 0.4 * np.sin(7 * (x + y))], axis=-1)
    shades[(x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.04] = (0.9, 0.2, 0.1)
    return np.round(shades.clip(0, 1) * 255).astype(np.uint8)


def pixels(result: Result) -> Array:
    """Values of the result's picture."""
    return np.asarray(result.image)
