"""Lossy part of JPEG (ITU-T T.81) as batched torch: YCbCr, 4:2:0 chroma, 8×8 DCT, quantization.

Entropy coding is lossless and left out. The quality is per picture and may be fractional.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsr_edge.image.jpeg import LUMA_TABLE

LUMA = torch.tensor(LUMA_TABLE, dtype=torch.float32).reshape(8, 8)
# fmt: off
CHROMA = torch.full((8, 8), 99.0)  # T.81, table K.2
CHROMA[:4, :4] = torch.tensor([
    [17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])
# fmt: on
_TO_YCC = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def _dct() -> Tensor:
    n = torch.arange(8, dtype=torch.float32)
    d = torch.cos((2 * n[None, :] + 1) * n[:, None] * math.pi / 16) / 2
    d[0] /= math.sqrt(2)
    return d


def table_scale(quality: Tensor) -> Tensor:
    """libjpeg's factor on the quantization tables for a quality from 1 to 100."""
    return torch.where(quality < 50, 50 / quality.clamp_min(1), 2 - quality / 50)


def _code(plane: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    """Quantize the 8×8 DCT of `plane` [B, H, W], in about [-128, 127]; H and W multiples of 8."""
    b, h, w = plane.shape
    d = _dct().to(plane)
    q = (table.to(plane) * scale[:, None, None]).round().clamp(1, 255)[:, None, None]
    blocks = plane.reshape(b, h // 8, 8, w // 8, 8).transpose(2, 3)
    freq = d @ blocks @ d.T
    out = d.T @ ((freq / q).round() * q) @ d
    return out.transpose(2, 3).reshape(b, h, w)


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Compress and decompress `image` [B, 3, H, W] in [0, 1] at `quality` [B] from 1 to 100."""
    _, _, h, w = image.shape
    x = F.pad(image, (0, -w % 16, 0, -h % 16), mode="replicate") * 255
    ycc = torch.einsum("ij,bjhw->bihw", _TO_YCC.to(x), x)
    y, chroma = ycc[:, 0] - 128, F.avg_pool2d(ycc[:, 1:], 2)
    scale = table_scale(quality)
    y = _code(y, LUMA, scale) + 128
    cb, cr = (_code(chroma[:, i], CHROMA, scale) for i in (0, 1))
    # libjpeg's "fancy upsampling" is a triangle filter: bilinear.
    chroma = F.interpolate(torch.stack([cb, cr], 1), scale_factor=2, mode="bilinear")
    ycc = torch.cat([y[:, None], chroma], 1)
    rgb = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(_TO_YCC).to(x), ycc)
    return (rgb[:, :, :h, :w].round() / 255).clamp(0, 1)
