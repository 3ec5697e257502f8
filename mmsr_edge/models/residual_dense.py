"""The residual-in-residual dense network: ESRGAN's (Wang et al. 2018), with any number of blocks.

With 23 blocks and tail `full` it is Real-ESRGAN x4plus (Wang et al. 2021). A block costs 11.8 GMAC
for a tile of 128 × 128 LR pixels, the tail 22 (`full`), 5.3 (`half`) or 2.9 (`slim`). Of the 23
blocks most can be left out, and what is left learns from the whole (`train_super_resolution`).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.super_resolution import SuperResolution

Tail = Literal["full", "half", "slim"]
"""Where the last convolutions run. `full`: x4plus's, two of them on 64 channels at the HR size.
`half`: two at half of the HR size, and a pixel shuffle. `slim`: one of them less."""

TAILS: tuple[Tail, ...] = get_args(Tail)
"""The tails by name."""
BLOCKS = 23
"""Blocks of Real-ESRGAN x4plus."""
_SLOPE = 0.2
"""Slope of the leaky ReLUs below 0."""
BETA = 0.2
"""β, the factor on residuals (ESRGAN, Sec. 3.1)."""


class Dense(nn.Module):
    """ESRGAN's residual dense block: five convolutions, each on the outputs of all before it.

    Args:
        width: channels of input and output.
        growth: channels that each of the first four convolutions adds.
    """

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width + i * growth, growth if i < 4 else width, 3, padding=1)
            for i in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] to the same shape."""
        features = x
        for conv in self.convs[:4]:
            features = torch.cat([features, F.leaky_relu(conv(features), _SLOPE)], 1)
        return x + BETA * self.convs[4](features)


class ResidualDenseNetwork(SuperResolution):
    """Blocks of three dense blocks each at the LR size, then ×2 twice.

    Args:
        blocks: number of blocks.
        tail: see `Tail`.
        width: channels between the blocks.
        growth: channels that a convolution in a dense block adds.
    """

    def __init__(
        self, blocks: int = BLOCKS, tail: Tail = "full", width: int = 64, growth: int = 32
    ) -> None:
        super().__init__(width)
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Dense(width, growth) for _ in range(3))) for _ in range(blocks)
        )
        self.body = nn.Conv2d(width, width, 3, padding=1)
        layers = {"full": 3, "half": 2, "slim": 1}[tail]
        self.tail = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(layers))
        self.full = tail == "full"
        self.last = nn.Conv2d(width, 3 if self.full else 12, 3, padding=1)

    def features(
        self, lr: Tensor, told: Tensor | None = None, shown: Tensor | None = None
    ) -> Tensor:
        """See `SuperResolution`."""
        x = first = self.first((lr + 1) / 2)
        given = self.given(told, shown)
        if given is not None:
            x = first = first + given[0]
        for block in self.blocks:
            x = x + BETA * block(x)
        x = first + self.body(x)
        return x if given is None else x * (1 + given[1])

    def phases(self, features: Tensor) -> Tensor:
        """What the tail draws of features [B, width, h, w], for pictures in [0, 1].

        Returns:
            Phases [B, 12, 2h, 2w]; see `phases`.
        """
        x = features
        doubled = 2 if self.full else 1
        for i, conv in enumerate(self.tail):
            x = F.interpolate(x, scale_factor=2.0) if i < doubled else x
            x = F.leaky_relu(conv(x), _SLOPE)
        drawn: Tensor = self.last(x)
        return F.pixel_unshuffle(drawn, 2) if self.full else drawn

    def picture(self, features: Tensor, lr: Tensor) -> Tensor:
        """See `SuperResolution`."""
        return F.pixel_shuffle(self.phases(features), 2) * 2 - 1
