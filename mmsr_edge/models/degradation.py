"""The degradation estimator: levels of noise, blur and JPEG of a piece of an LR picture.

A small residual network looks at a square of the picture at full size: noise, blur and the borders
of JPEG's blocks are lost when a picture is shrunk. Its features are pooled in two ways: as their
mean, and by learned attention, since noise shows where a picture is flat and blur where it is not.
For JPEG, steps between pixels that stand out from the next ones are folded to the period of its
blocks: what is larger at one phase of eight than at the others lies on a grid.
`modalities/degradation.py` runs the network on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmsr_edge.models.trunk import Residual, conv_norm

PERIOD = 8
"""Side of JPEG's blocks in pixels."""
MOMENTUM = 0.05
"""Momentum of the BatchNorms."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in luma (ITU-R BT.601)."""
STEP = 640.0
"""Factor on steps of luma in [-1, 1]. The root of a grey level's, √(640 / 127.5), is about 2, as
large as the other features, so that the head learns of them as fast."""


@dataclass(frozen=True)
class DegradationConfig:
    """Sizes of the degradation estimator."""

    fine: int = 16
    """Channels at full size."""
    widths: tuple[int, ...] = (24, 32, 48)
    """Channels at a half, a quarter, … of the side."""
    blocks: tuple[int, ...] = (0, 1, 1)
    """Residual blocks at each of these sizes."""
    heads: int = 2
    """Heads of the attention that pools the coarsest features."""
    hidden: int = 48
    """Width of the hidden layer before the levels."""


class DegradationEstimator(nn.Module):
    """The degradation estimator, as the module's docstring describes it."""

    def __init__(self, config: DegradationConfig) -> None:
        super().__init__()
        self.fine = conv_norm(3, config.fine, 3, momentum=MOMENTUM)
        inputs = (config.fine, *config.widths[:-1])
        self.coarse = nn.Sequential(
            *(
                nn.Sequential(
                    conv_norm(i, o, 3, 2, momentum=MOMENTUM),
                    *(Residual(o, MOMENTUM) for _ in range(count)),
                )
                for i, o, count in zip(inputs, config.widths, config.blocks, strict=True)
            )
        )
        last = config.widths[-1]
        self.attention = nn.Conv2d(last, config.heads, 1)
        self.register_buffer("luma", torch.tensor(LUMA).reshape(1, 3, 1, 1), persistent=False)
        pooled = config.fine + (1 + config.heads) * last + 4
        self.head = nn.Sequential(
            nn.Linear(pooled, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 3)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Levels of noise, blur and JPEG.

        Args:
            image: [B, 3, t, t], RGB in [-1, 1]: a square of the picture at full size; t is a
                multiple of 8.

        Returns:
            [B, 3] in [0, 1], as `training.data.degradation.measure_degradation` defines them.
        """
        fine = self.fine(image)
        coarse = self.coarse(fine)
        pooled = [fine.mean((2, 3)), coarse.mean((2, 3)), _steps((image * self.luma).sum(1))]
        weights = self.attention(coarse).flatten(2).softmax(2)
        pooled.append((weights @ coarse.flatten(2).transpose(1, 2)).flatten(1))
        return self.head(torch.cat(pooled, dim=1)).sigmoid()


def _steps(luma: Tensor) -> Tensor:
    """How steps between pixels of `luma` [B, t, t] stand out: √ of what the grid adds, and of all.

    Returns:
        [B, 4]: both, across columns and across rows.
    """
    found = []
    for picture in (luma, luma.transpose(1, 2)):
        step = picture[:, :, 1:] - picture[:, :, :-1]
        # An edge or a slope has other steps beside it; the border of two blocks has none.
        alone = step[:, :, 1:-1] - (step[:, :, :-2] + step[:, :, 2:]) / 2
        profile = STEP * alone.abs().mean(1)
        found += [grid(profile), profile.mean(1)]
    return torch.stack(found, dim=1).clamp_min(1e-6).sqrt()


def grid(profile: Tensor) -> Tensor:
    """How far a profile [B, n] exceeds itself at one phase of the blocks' period, [B].

    The last n mod 8 entries are left out.
    """
    whole = profile.shape[1] // PERIOD
    phases = profile[:, : whole * PERIOD].reshape(-1, whole, PERIOD).mean(1)
    return (phases.amax(1) - phases.mean(1)) * (PERIOD / (PERIOD - 1))


def build_degradation(config: DegradationConfig) -> DegradationEstimator:
    """Build the network with fresh weights."""
    return DegradationEstimator(config)
