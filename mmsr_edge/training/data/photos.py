"""Training crops from a folder of photographs in memory, drawn where gradients are strong.

The photos are held as uint8 on the training device, at full size and halved a few times. Crops at
full size are often smooth; those of downscaled photos have more detail, like the small pictures of
the test sets of super-resolution, in which noise must be distinguished from foliage.
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
"""Suffixes of the files that are read, in lower case."""

HALVINGS = 2
"""Downscaled copies of each photo in the stages that train on pictures, each half the last."""


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] as uint8, of the same shape; values beyond are clipped."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_picture(values: Tensor) -> Tensor:
    """uint8 pictures [B, C, h, w] as float32 in [-1, 1], channels last."""
    return (values.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Crop:
    """Place of a crop: a square of a photo."""

    photo: int
    """Index into `Photos.images`."""
    top: int
    """First row."""
    left: int
    """First column."""
    size: int
    """Side in pixels."""
    flip: bool
    """Whether it is mirrored left to right."""


def find_photos(folder: Path) -> list[Path]:
    """Paths of all pictures below `folder`, sorted.

    Raises:
        OptionError: there are none.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise OptionError(
            f"no photographs below {str(folder)!r}; give a folder with files of {sorted(SUFFIXES)}"
        )
    return found


def _load(path: Path, halvings: int) -> list[Tensor]:
    with Image.open(path) as file:
        image = file.convert("RGB")
    sizes = [image] + [image.reduce(2**n) for n in range(1, halvings + 1)]
    return [torch.from_numpy(np.array(i)).permute(2, 0, 1).contiguous() for i in sizes]


class Photos:
    """Draws square crops from the photographs of a folder.

    Args:
        folder: folder of the photographs, searched recursively.
        device: device that holds the photos and makes the crops.
        seed: seed of the draw of crops.
        candidates: crops drawn for each one taken; the one with the strongest gradients is taken.
        halvings: downscaled copies of each photo, at a half, a quarter, … of its size. With more
            than one, all copies are drawn equally often; otherwise in proportion to their side.

    Raises:
        OptionError: there are no photographs below `folder`.
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
        """Draw the place of the next crop, of `size` pixels a side."""
        return max((self._draw(size) for _ in range(self.candidates)), key=lambda c: c[0])[1]

    def take(self, crop: Crop) -> Tensor:
        """Pixels of a crop, uint8 [3, size, size]."""
        image = self.images[crop.photo]
        out = image[:, crop.top : crop.top + crop.size, crop.left : crop.left + crop.size]
        return out.flip(-1) if crop.flip else out

    def batch(self, count: int, size: int) -> tuple[Tensor, list[Crop]]:
        """`count` crops [count, 3, size, size], RGB in [-1, 1], and their places."""
        crops = [self.draw(size) for _ in range(count)]
        return torch.stack([self.take(c) for c in crops]).float() / 127.5 - 1, crops
