"""The depth student: one picture → how near each pixel is, relative to the rest of the picture.

MobileNetV2 (Sandler et al. 2018) without its last stage, and a light decoder that climbs back over
skip connections. The picture is halved first: what it shows of depth is in its layout, and LR
pictures have no finer detail. There are no norms: MobileNetV2's are folded into its convolutions,
so that pretrained weights can be had from a quantized file, and int8 sees what was trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DepthConfig:
    """Sizes of the depth student."""

    stem: int = 32
    """Width of the first convolution, which halves."""
    stages: tuple[tuple[int, int, int, int], ...] = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    )  # fmt: skip
    """Inverted residuals: expansion, width, how many, stride of the first (their Table 2)."""
    decoder: tuple[int, ...] = (96, 64, 48, 24, 16)
    """Widths on the way up, from 1/32 of the halved picture to its full size."""
    squeeze: int = 2
    """The picture is averaged over squares of this side first."""


class SameConv(nn.Module):
    """Convolution and ReLU6, padded as TensorFlow's "SAME": by one less on top and left when it
    halves an even size, which the pretrained weights expect."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1,
                 act: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.pad = (0, 1, 0, 1) if stride == 2 else (0, 0, 0, 0)
        padding = 0 if stride == 2 else kernel // 2
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] → [B, c_out, H/stride, W/stride]."""
        x = self.conv(F.pad(x, self.pad) if any(self.pad) else x)
        return F.relu6(x) if self.act else x


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow without an activation (Sandler et al. 2018, Fig. 3)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.residual = stride == 1 and c_in == c_out
        self.layers = nn.Sequential(
            *([SameConv(c_in, hidden, 1)] if expansion > 1 else []),
            SameConv(hidden, hidden, 3, stride, hidden),
            SameConv(hidden, c_out, 1, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] → [B, c_out, H/stride, W/stride]."""
        return x + self.layers(x) if self.residual else self.layers(x)


class Rise(nn.Module):
    """Double the size, add what the encoder had there, filter."""

    def __init__(self, c_in: int, c_skip: int, c_out: int, separable: bool) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(c_in, c_out, 1)
        self.skip = nn.Conv2d(c_skip, c_out, 1)
        self.filter = nn.Sequential(
            *(
                [SameConv(c_out, c_out, 3, groups=c_out, act=False), SameConv(c_out, c_out, 1)]
                if separable
                else [SameConv(c_out, c_out, 3)]
            )
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x [B, c_in, H, W], skip [B, c_skip, 2H, 2W] → [B, c_out, 2H, 2W]."""
        up = F.interpolate(self.narrow(x), scale_factor=2, mode="bilinear", align_corners=False)
        return self.filter(F.relu6(up + self.skip(skip)))


class Depth(nn.Module):
    """The network; see the module's head."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.squeeze = config.squeeze
        self.stem = SameConv(3, config.stem, 3, 2)
        stages, c, skips = [], config.stem, []
        for expansion, width, count, stride in config.stages:
            if stride == 2:
                skips.append(c)
            blocks = [
                InvertedResidual(c if i == 0 else width, width, stride if i == 0 else 1, expansion)
                for i in range(count)
            ]
            stages.append(nn.Sequential(*blocks))
            c = width
        self.stages = nn.ModuleList(stages)
        self.strides = [stride for _, _, _, stride in config.stages]
        # What is near depends on the whole picture: its mean is told to every place.
        self.whole = nn.Conv2d(c, c, 1)
        self.detail = SameConv(3, config.decoder[-1], 3)
        widths = config.decoder
        narrow = [c, *widths[:-1]]
        self.rises = nn.ModuleList(
            Rise(c_in, c_skip, c_out, separable=i == len(widths) - 1)
            for i, (c_in, c_skip, c_out) in enumerate(
                zip(narrow, [*reversed(skips), widths[-1]], widths, strict=True)
            )
        )
        self.out = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Nearness of every pixel.

        Args:
            image: [B, 3, 256, 256], RGB in [-1, 1]: a whole picture squeezed to a square.

        Returns:
            [B, 1, 256, 256] in [0, 1], near = 1: the square root of inverse depth after that was
            scaled to the picture's own range; 0 is the sky or the farthest thing.
        """
        small = F.avg_pool2d(image, self.squeeze) if self.squeeze > 1 else image
        x = self.stem(small)
        skips = [self.detail(small)]
        for stage, stride in zip(self.stages, self.strides, strict=True):
            if stride == 2:
                skips.append(x)
            x = stage(x)
        x = F.relu6(x + self.whole(x.mean((2, 3), keepdim=True)))
        for rise, skip in zip(self.rises, reversed(skips), strict=True):
            x = rise(x, skip)
        x = self.out(x)
        if self.squeeze > 1:
            x = F.interpolate(
                x, scale_factor=self.squeeze, mode="bilinear", align_corners=False
            )
        return torch.sigmoid(x)

    def backbone(self) -> list[nn.Conv2d]:
        """The convolutions that MobileNetV2 has too, in its order."""
        return [m for part in (self.stem, self.stages) for m in part.modules()
                if isinstance(m, nn.Conv2d)]  # fmt: skip


def build_depth(config: DepthConfig) -> Depth:
    """The depth student with fresh weights."""
    return Depth(config)
