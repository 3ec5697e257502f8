"""The model that "auto" takes: the best shipped one that is fast enough on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmsr_edge.bundle import best_shipped

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

__all__ = ["AUTO_SECONDS", "choose_model", "timing_tile"]

AUTO_SECONDS = 0.5
"""Most seconds that a tile of the model that "auto" takes may take, of 512 x 512 output pixels."""


def choose_model(open_model: Callable[[str], None], tile_seconds: Callable[[], float]) -> str:
    """Open the shipped models, the best first, until one is fast enough; the last is taken anyway.

    Args:
        open_model: opens the model of a name.
        tile_seconds: time of a tile of the model that was opened last.

    Returns:
        Which model was taken, and why.
    """
    names, measured = best_shipped(), []
    for name in names:
        open_model(name)
        measured.append(f"{name} takes {(seconds := tile_seconds()):.2f} s a tile here")
        if seconds <= AUTO_SECONDS:
            break
    return f"{'; '.join(measured)}; {name} is taken (limit {AUTO_SECONDS:g} s)"


def timing_tile(side: int) -> npt.NDArray[np.uint8]:
    """The picture of one tile that models are timed with, [side, side, 3]."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
