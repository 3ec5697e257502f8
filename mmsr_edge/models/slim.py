"""Blocks of the slim networks, and the encoders of HR and LR pictures.

There are no normalization layers: their statistics differ between tiles, and they quantize badly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.presets import AutoencoderConfig


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), after EDSR."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


def residual_blocks(count: int, width: int) -> nn.Sequential:
    """`count` blocks of `width` channels."""
    return nn.Sequential(*(ResidualBlock(width) for _ in range(count)))


def upscaled(width: int, out: int, factor: int) -> nn.Sequential:
    """A convolution from `width` to `out` channels, at `factor` times the size."""
    conv = nn.Conv2d(width, out * factor**2, 3, padding=1)
    return nn.Sequential(conv, nn.PixelShuffle(factor))


class SlimEncoder(nn.Module):
    """Pixels to latent. Pixel-unshuffling by `fold` first gives a quarter of the HR size.

    `fold=4` is for HR pictures, `fold=1` for LR pictures.
    """

    def __init__(self, config: AutoencoderConfig, *, fold: int, blocks: tuple[int, int]) -> None:
        super().__init__()
        half = config.width // 2
        self.quarter = nn.Sequential(
            nn.PixelUnshuffle(fold),
            nn.Conv2d(3 * fold**2, half, 3, padding=1),
            residual_blocks(blocks[0], half),
        )
        self.eighth = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * half, config.width, 3, padding=1),
            residual_blocks(blocks[1], config.width),
        )
        self.out = nn.Conv2d(config.width, config.channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Encode `image` [B, 3, ·, ·], RGB in [-1, 1], to a latent [B, C, ·, ·] of unit scale."""
        return self.out(self.eighth(self.quarter(image)))
