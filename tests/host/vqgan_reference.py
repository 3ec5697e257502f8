"""The VQGAN of taming-transformers (Esser et al. 2021, `ddconfig` of f16-1024), rewritten.

Layers have the names of the published checkpoints. It shares no code with `diffusers` or ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class Res(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(before), _norm(after)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attn(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (getattr(self, name)(h).flatten(2) for name in "qkv")
        weights = torch.einsum("bcq,bck->bqk", q, k).mul(x.shape[1] ** -0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("bqk,bck->bcq", weights, v).view_as(x))


def _middle(width: int) -> nn.Module:
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = Res(width, width), Attn(width), Res(width, width)
    return mid


def _level(before: int, after: int, count: int, attention: bool) -> nn.Module:
    level = nn.Module()
    level.block = nn.ModuleList(Res(before if i == 0 else after, after) for i in range(count))
    level.attn = nn.ModuleList(Attn(after) for _ in range(count if attention else 0))
    return level


def _run_level(level: nn.Module, h: Tensor) -> Tensor:
    for i, block in enumerate(level.block):
        h = block(h)
        if level.attn:
            h = level.attn[i](h)
    return h


class Encoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, z: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        before = (widths[0], *widths)
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            level = _level(before[i], width, blocks, last)
            if not last:
                level.downsample = nn.Module()
                level.downsample.conv = nn.Conv2d(width, width, 3, stride=2)
            self.down.append(level)
        self.mid = _middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = _run_level(level, h)
            if hasattr(level, "downsample"):
                h = level.downsample.conv(F.pad(h, (0, 1, 0, 1)))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, z: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(z, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1])
        levels = []
        before = (*widths[1:], widths[-1])
        for i, width in enumerate(widths):
            level = _level(before[i], width, blocks + 1, i == len(widths) - 1)
            if i:
                level.upsample = nn.Module()
                level.upsample.conv = nn.Conv2d(width, width, 3, padding=1)
            levels.append(level)
        self.up = nn.ModuleList(levels)  # from full size to the smallest; run in reverse
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        for level in reversed(self.up):
            h = _run_level(level, h)
            if hasattr(level, "upsample"):
                h = level.upsample.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))


class VQGAN(nn.Module):
    """The network of the checkpoints, with the discriminator's part (`loss`)."""

    def __init__(self, widths: tuple[int, ...], blocks: int, width: int, codes: int) -> None:
        super().__init__()
        self.encoder = Encoder(widths, blocks, width)
        self.decoder = Decoder(widths, blocks, width)
        self.loss = nn.Conv2d(3, 8, 4)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, width)
        self.quant_conv = nn.Conv2d(width, width, 1)
        self.post_quant_conv = nn.Conv2d(width, width, 1)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features before quantization, the codes nearest them, and their indices."""
        features = self.quant_conv(self.encoder(x)).flatten(2).transpose(1, 2)
        indices = torch.cdist(features, self.quantize.embedding.weight[None]).argmin(-1)
        return features, self.quantize.embedding(indices), indices

    def decode(self, z: Tensor) -> Tensor:
        """Decode quantized features [B, width, h, w] to a map."""
        return self.decoder(self.post_quant_conv(z))
