"""The depth network, a student: nearness of each pixel, relative to the rest of the picture.

The picture is halved first: depth follows from the layout, and LR pictures have no finer detail. A
small residual encoder reduces it to a thirty-second, and a light decoder restores the size through
skip connections. The layers are 3×3 convolutions with batch norm, which is folded into them, and
ReLU: every runtime supports them, and they quantize well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.trunk import Residual, conv_norm


@dataclass(frozen=True)
class DepthConfig:
    """Sizes of the depth student."""

    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    """Channels at 1/2, 1/4, … of the squeezed picture's side."""
    blocks: tuple[int, ...] = (0, 1, 1, 2, 2)
    """Residual blocks at each of these sizes."""
    decoder: tuple[int, ...] = (96, 64, 32, 24)
    """Channels of the decoder, from the second smallest size to the largest."""
    squeeze: int = 2
    """Side of the squares, in pixels, over which the picture is averaged first."""


MOMENTUM = 0.05
"""Momentum of the BatchNorms."""


def _conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return conv_norm(c_in, c_out, kernel, stride, relu=False, momentum=MOMENTUM)


def _residual(width: int) -> Residual:
    """A residual block that is initialized as the identity."""
    block = Residual(width, MOMENTUM)
    nn.init.zeros_(block.second[1].weight)
    return block


class Rise(nn.Module):
    """Double the size, add the encoder's features of that size, and filter."""

    def __init__(self, c_in: int, c_skip: int, c_out: int) -> None:
        super().__init__()
        self.narrow = _conv(c_in, c_out, 1)
        self.skip = _conv(c_skip, c_out, 1)
        self.filter = _conv(c_out, c_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x [B, c_in, H, W], skip [B, c_skip, 2H, 2W] → [B, c_out, 2H, 2W]."""
        up = F.interpolate(self.narrow(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return F.relu(self.filter(F.relu(up + self.skip(skip))))


class Depth(nn.Module):
    """The depth network, as the module's docstring describes it."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.squeeze = config.squeeze
        inputs = (3, *config.widths[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(_conv(i, o, stride=2), nn.ReLU(), *(_residual(o) for _ in range(n)))
            for i, o, n in zip(inputs, config.widths, config.blocks, strict=True)
        )
        # Nearness depends on the whole picture: its mean features are added at every position.
        self.whole = nn.Conv2d(config.widths[-1], config.widths[-1], 1)
        below = (config.widths[-1], *config.decoder[:-1])
        beside = reversed(config.widths[:-1])
        self.up = nn.ModuleList(
            Rise(i, s, o) for i, s, o in zip(below, beside, config.decoder, strict=True)
        )
        self.out = nn.Conv2d(config.decoder[-1], 1, 1)

    def coarse(self, image: Tensor) -> Tensor:
        """Logits of nearness before upsampling: [B, 1, H/(2·squeeze), W/(2·squeeze)]."""
        x = F.avg_pool2d(image, self.squeeze) if self.squeeze > 1 else image
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        x = F.relu(x + self.whole(x.mean((2, 3), keepdim=True)))
        for rise, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = rise(x, skip)
        return self.out(x)

    def forward(self, image: Tensor) -> Tensor:
        """Nearness of every pixel.

        Args:
            image: [B, 3, 256, 256], RGB in [-1, 1]: a whole picture squeezed to a square.

        Returns:
            [B, 1, 256, 256] in [0, 1], near = 1: the square root of the inverse depth, which is
            first scaled to the picture's own range. 0 is the sky or the farthest object.
        """
        factor = 2.0 * self.squeeze
        x = F.interpolate(
            self.coarse(image), scale_factor=factor, mode="bilinear", align_corners=False
        )
        return torch.sigmoid(x)


def build_depth(config: DepthConfig) -> Depth:
    """Build the network with fresh weights."""
    return Depth(config)
