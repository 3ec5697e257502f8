"""The trunk of the small classifiers: a narrow residual network (He et al. 2016, ResNet).

It begins with a stride of four. Convolutions are dense, not depthwise as in mobile networks: at
these sizes a CPU trains and runs them faster, although they need more multiplications. Every layer
is a convolution with a BatchNorm, which is folded into it, and a ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of the trunk."""

    widths: tuple[int, ...] = (24, 48, 96, 160)
    """Channels at a quarter, an eighth, … of the picture's side."""
    blocks: tuple[int, ...] = (1, 1, 2, 1)
    """Residual blocks at each of these sizes."""


def conv_norm(
    inputs: int,
    outputs: int,
    size: int = 1,
    stride: int = 1,
    *,
    relu: bool = True,
    momentum: float = 0.1,
) -> nn.Sequential:
    """Convolution without bias, BatchNorm with `momentum`, and ReLU unless `relu` is False."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs, momentum=momentum),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class Residual(nn.Module):
    """Two 3×3 convolutions with a skip connection, followed by a ReLU."""

    def __init__(self, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.first = conv_norm(width, width, 3, momentum=momentum)
        self.second = conv_norm(width, width, 3, relu=False, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, width, h, w] to the same shape."""
        return F.relu(x + self.second(self.first(x)))


class Trunk(nn.Module):
    """Features at a quarter, an eighth, … of the picture's side."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        inputs = 3
        for i, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            down = conv_norm(inputs, width, 3, 2) if i else conv_norm(inputs, width, 5, 4)
            self.stages.append(nn.Sequential(down, *(Residual(width) for _ in range(count))))
            inputs = width

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of `image` [B, 3, 256, 256], RGB in [-1, 1], by size, the finest first."""
        x, features = image, []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
