"""Initial values of learned positions: sines and cosines, so that near places begin alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(count: int, width: int) -> Tensor:
    """Positions along a line, [count, width], width even, with a mean square of ½.

    Half a period to a quarter of `count` periods fit into the line.
    """
    place = (torch.arange(count) + 0.5) / count
    periods = torch.logspace(math.log2(0.5), math.log2(count / 4), width // 2, base=2)
    angle = 2 * math.pi * place[:, None] * periods
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def grid_sinusoids(side: int, width: int) -> Tensor:
    """Positions in a square, [side², width] in raster order: rows, then columns."""
    line = sinusoids(side, width // 2)
    rows, columns = line.repeat_interleave(side, dim=0), line.repeat(side, 1)
    return torch.cat([rows, columns], dim=1)
