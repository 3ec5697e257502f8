"""Phases: an enlarged picture before its pixel shuffle.

Phases [B, C·s², h, w] hold the s × s pixels of each cell as channels, in the order of
`torch.nn.functional.pixel_shuffle`. What makes up the picture is added as phases, so that one pixel
shuffle serves all and nothing else runs at the HR size, where memory bounds the speed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def repeated(x: Tensor, scale: int) -> Tensor:
    """Nearest-neighbour enlargement as phases: [B, C, h, w] -> [B, C·scale², h, w]."""
    return x[:, :, None].expand(-1, -1, scale**2, -1, -1).flatten(1, 2)


def weighed(phases: Tensor, weights: Tensor) -> Tensor:
    """Phases [B, C·s², h, w] times the phases [B, s², h, w] of one channel."""
    return (phases.unflatten(1, (-1, weights.shape[1])) * weights[:, None]).flatten(1, 2)


class Bilinear(nn.Module):
    """Bilinear enlargement as phases, by a convolution with fixed weights.

    Equal to `torch.nn.functional.interpolate(mode="bilinear")` after the pixel shuffle.

    Args:
        channels: number of channels.
        scale: factor of the enlargement.
        finer: the phases are those of cells at `finer` times the size of the input; it divides the
            scale.
    """

    weight: Tensor

    def __init__(self, channels: int, scale: int, finer: int = 1) -> None:
        super().__init__()
        self.channels, self.finer = channels, finer
        offset = (torch.arange(scale) + 0.5) / scale - 0.5
        # Weights of the pixel before, the pixel itself and the pixel after, by phase.
        line = torch.stack([F.relu(-offset), 1 - offset.abs(), F.relu(offset)], dim=1)
        kernels = torch.einsum("ui,vj->uvij", line, line)
        part = scale // finer  # u = part of the cell · scale of the phases + phase
        kernels = kernels.reshape(finer, part, finer, part, 3, 3).permute(1, 3, 0, 2, 4, 5)
        weight = kernels.reshape(1, scale**2, 1, 3, 3).repeat(channels, 1, 1, 1, 1)
        self.register_buffer("weight", weight.flatten(0, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to phases [B, C·(scale/finer)², finer·h, finer·w]."""
        x = torch.cat([x[..., :1], x, x[..., -1:]], dim=3)  # beyond the border its pixels repeat
        x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], dim=2)
        phases = F.conv2d(x, self.weight, groups=self.channels)
        return phases if self.finer == 1 else F.pixel_shuffle(phases, self.finer)
