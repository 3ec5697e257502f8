"""Photographs as training crops: a folder in memory, crops drawn where there is something to see.

Photos stay uint8, on the training device, at full size and halved some times: at full size many are
smooth, and a crop of a shrunk photo is a sharper lesson. Test sets of super-resolution are small
pictures full of detail; the noise on them has to be told from foliage, which smooth crops don't
teach.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmsr_edge.errors import OptionError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}

HALVINGS = 2
"""Smaller copies of each photo for pictures that are judged by eye: at full size most is smooth."""


def to_bytes(pictures: Tensor) -> Tensor:
    """[-1, 1] to uint8."""
    return ((pictures + 1) * 127.5).round().to(torch.uint8)


def to_picture(values: Tensor) -> Tensor:
    """uint8 [B, C, h, w] to float32 in [-1, 1], channels last."""
    return (values.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Crop:
    """Where a crop was taken."""

    photo: int
    """Index into `Photos.images`."""
    top: int
    """First row."""
    left: int
    """First column."""
    size: int
    """Side in pixels."""
    flip: bool
    """Mirrored left to right."""


def find_photos(folder: Path) -> list[Path]:
    """All pictures below `folder`, sorted.

    Raises:
        OptionError: when there are none.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise OptionError(f"no photographs below {str(folder)!r}; looked for {sorted(SUFFIXES)}")
    return found


def _load(path: Path, halvings: int) -> list[Tensor]:
    with Image.open(path) as file:
        image = file.convert("RGB")
    sizes = [image] + [image.reduce(2**n) for n in range(1, halvings + 1)]
    return [torch.from_numpy(np.array(i)).permute(2, 0, 1).contiguous() for i in sizes]


class Photos:
    """Draws square crops from all photographs of a folder.

    Args:
        folder: searched recursively.
        device: where the photos are kept and the crops are made.
        seed: of the draw of crops.
        candidates: crops compared for each one taken; the one with the strongest gradients wins.
        halvings: copies of each photo that are kept too, at a half of its size, a quarter, …; with
            more than one, all sizes are drawn equally often, else by their side.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        seed: int = 0,
        candidates: int = 3,
        halvings: int = 1,
    ) -> None:
        paths = find_photos(folder)
        with ThreadPoolExecutor(4) as pool:
            loaded = list(pool.map(lambda p: _load(p, halvings), paths))
        self.images = [t.to(device) for group in loaded for t in group]
        self.paths = [p for p, group in zip(paths, loaded, strict=True) for _ in group]
        self.device = device
        self.candidates = candidates
        self.rng = np.random.default_rng(seed)
        area = np.array([i.shape[1] * i.shape[2] for i in self.images], dtype=np.float64)
        side = np.sqrt(area) if halvings <= 1 else np.ones_like(area)
        self.weights = side / side.sum()

    def _draw(self, size: int) -> tuple[float, Crop]:
        while True:
            index = int(self.rng.choice(len(self.images), p=self.weights))
            _, h, w = self.images[index].shape
            if min(h, w) >= size:
                break
        top, left = (int(self.rng.integers(n - size + 1)) for n in (h, w))
        crop = Crop(index, top, left, size, bool(self.rng.random() < 0.5))
        grey = self.images[index][1, top : top + size : 2, left : left + size : 2].float()
        return float(grey.diff(dim=0).abs().mean() + grey.diff(dim=1).abs().mean()), crop

    def draw(self, size: int) -> Crop:
        """Choose where the next crop is taken."""
        return max((self._draw(size) for _ in range(self.candidates)), key=lambda c: c[0])[1]

    def take(self, crop: Crop) -> Tensor:
        """The pixels of a crop: uint8 [3, size, size]."""
        image = self.images[crop.photo]
        out = image[:, crop.top : crop.top + crop.size, crop.left : crop.left + crop.size]
        return out.flip(-1) if crop.flip else out

    def batch(self, count: int, size: int) -> tuple[Tensor, list[Crop]]:
        """`count` crops as [count, 3, size, size], RGB in [-1, 1], and where they come from."""
        crops = [self.draw(size) for _ in range(count)]
        return torch.stack([self.take(c) for c in crops]).float() / 127.5 - 1, crops
