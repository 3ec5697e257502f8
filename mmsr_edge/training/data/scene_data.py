"""Training batches of rendered scenes: cropped, recoloured and degraded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from mmsr_edge.errors import OptionError
from mmsr_edge.training.data.degradation import filter_each, gaussian_kernels
from mmsr_edge.training.data.jpeg import jpeg


def recolour(image: Tensor, g: torch.Generator) -> Tensor:
    """Change gamma, saturation, contrast, colour cast and brightness at random, per picture.

    Args:
        image: [B, 3, H, W] in [0, 1].
        g: generator on its device.

    Returns:
        [B, 3, H, W] in [0, 1]; a tenth of the pictures is grey.
    """
    b = image.shape[0]

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        u = torch.rand((b, channels, 1, 1), generator=g, device=image.device)
        return low + (high - low) * u

    image = image.clamp(1e-4, 1) ** draw(-0.5, 0.5).exp()
    grey = image.mean(1, keepdim=True)
    saturation = draw(0.2, 1.3) * (draw(0, 1) > 0.1)
    image = grey + saturation * (image - grey)
    image = image * draw(0.7, 1.25) * draw(0.88, 1.12, 3) + draw(-0.08, 0.12)
    return image.clamp(0, 1)


def spoil(image: Tensor, side: int, g: torch.Generator) -> Tensor:
    """Degrade pictures: shrink, blur, add noise, compress, and resize to `side`.

    Two fifths of the batches, and a fifth of the pictures in the others, are only resized.

    Args:
        image: [B, 3, H, W] in [0, 1].
        side: side of the result in pixels.
        g: generator on its device.

    Returns:
        [B, 3, side, side] in [0, 1].
    """
    b, device = image.shape[0], image.device

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(b, generator=g, device=device)

    if (
        torch.rand((), generator=g, device=device) < 0.4
    ):  # for the whole batch, which saves its degradation
        return F.interpolate(image, (side, side), mode="bilinear", antialias=True)
    lr = 16 * int(torch.randint(5, 13, (), generator=g, device=device))  # 80 … 192
    small = F.interpolate(image, (lr, lr), mode="bilinear", antialias=True)
    kernels = gaussian_kernels(draw(0.2, 1.6), draw(0.2, 1.6), draw(0, math.pi), size=7)
    bad = filter_each(small, kernels)
    noise = torch.randn(small.shape, generator=g, device=device)
    bad = bad + noise * (draw(0, 1) ** 2 * 25 / 255)[:, None, None, None]
    bad = jpeg(bad.clamp(0, 1), draw(30, 95))
    keep = (torch.rand(b, generator=g, device=device) < 0.2)[:, None, None, None]
    small = torch.where(keep, small, bad)
    return F.interpolate(small, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


class Scenes:
    """Draws training batches from the files that `scenes.make` wrote.

    Args:
        folder: folder of the files.
        seed: seed of all random draws.
        side: side of the pictures in a batch, in pixels.

    Raises:
        OptionError: there are no files beside the held-out ones.
    """

    HELD_OUT = 2
    """Number of files, the first, that are held out of training."""
    CELL = 4
    """Pixels of a picture per cell of its depth map, along a side. The network's output before its
    last enlargement has the same factor."""

    def __init__(self, folder: Path, seed: int = 0, side: int = 256) -> None:
        files = sorted(folder.glob("*.npz"))[self.HELD_OUT :]
        if not files:
            raise OptionError(
                f"no more than {self.HELD_OUT} files of scenes in {str(folder)!r}, which are held "
                "out; render more with mmsr_edge.training.scenes.make"
            )
        loaded = [self.load(path) for path in files]
        self.rgb, self.inverse = (torch.cat(column) for column in zip(*loaded, strict=True))
        self.seed, self.side = seed, side
        self.g = torch.Generator().manual_seed(seed)

    @classmethod
    def held_out_files(cls, folder: Path) -> list[Path]:
        """The files that are held out of training."""
        return sorted(folder.glob("*.npz"))[: cls.HELD_OUT]

    @staticmethod
    def load(path: Path) -> tuple[Tensor, Tensor]:
        """Pictures, uint8 [n, 3, S, S], and inverse depth, float16 [n, 1, S, S], of one file."""
        with np.load(path) as file:
            rgb, inverse = file["rgb"], file["inverse"]
        return torch.from_numpy(rgb).permute(0, 3, 1, 2), torch.from_numpy(inverse)[:, None]

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Pictures [count, 3, S, S] in [-1, 1], inverse depth [count, 1, S/4, S/4]; S is `side`."""
        n, _, side, _ = self.rgb.shape
        rgbs, inverses = [], []
        for _ in range(count):
            u = torch.rand(6, generator=self.g).tolist()
            size = [max(8, round(side * (1 - 0.45 * u[0] * v))) for v in (1, 0.7 + 0.3 * u[1])]
            top, left = (int(v * (side - s + 1)) for v, s in zip(u[2:4], size, strict=True))
            k = int(u[4] * n)
            cut = (k, slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
            rgb, inverse = self.rgb[cut], self.inverse[cut]
            if u[5] < 0.5:
                rgb, inverse = rgb.flip(-1), inverse.flip(-1)
            rgbs.append(F.interpolate(rgb[None].float() / 255, (160, 160)))
            cells = (self.side // self.CELL, self.side // self.CELL)
            inverses.append(F.interpolate(inverse[None].float(), cells, mode="area"))
        image = spoil(recolour(torch.cat(rgbs), self.g), self.side, self.g)
        return image * 2 - 1, torch.cat(inverses)


class _Batches(IterableDataset):
    def __init__(self, scenes: Scenes, count: int) -> None:
        self.scenes, self.count = scenes, count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.scenes.batch(self.count)


def scene_batches(scenes: Scenes, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of `count` (see `Scenes.batch`), made by a second process."""
    return iter(DataLoader(_Batches(scenes, count), batch_size=None, num_workers=1))
