"""Modality maps and words for training crops, from the modality networks of the device.

The device runs the modality networks on the whole picture and cuts the maps of a tile out of their
output (Sec. 3). Training does the same with a window, a random part of the photograph around each
crop: the networks run on the window squeezed to a square, and the crop's maps are cut from their
output. Part of the windows have full quality, as in the paper's training; the others are degraded,
as on the device. Edges are Canny's, from the crop itself in the quality of its window.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.bundle import MAP_SIDE
from mmsr_edge.modalities.canny import detect_edges
from mmsr_edge.modalities.edges import edge_map
from mmsr_edge.modalities.segmentation import PALETTE
from mmsr_edge.modalities.tags import choose_tags, describe, write_prompt
from mmsr_edge.training.data.degradation import DegradeConfig, degrade
from mmsr_edge.training.data.photos import Crop, Photos

WIDEST = 4.0
"""Largest side of a window, relative to that of its crop."""
DEGRADED = 2 * MAP_SIDE
"""Side of a window before it is degraded by a factor of 4; the result is enlarged to `MAP_SIDE`."""


@dataclass(frozen=True)
class ModalityNetworks:
    """The modality networks, and the names of their classes and tags."""

    networks: dict[str, nn.Module]
    """The networks, by name in `models.networks.MODALITY_NETWORKS`."""
    labels: dict[str, tuple[str, ...]]
    """Names of classes and tags, by network."""


@dataclass(frozen=True)
class CropConditions:
    """Maps and words of a batch of crops."""

    maps: Tensor
    """[B, 3, 3, 256, 256] in [-1, 1]: crop, map, channel, row, column."""
    words: list[str]
    """Tags and computed words of each crop, as the device writes them into the prompt."""


def draw_window(crop: Crop, shape: tuple[int, int], rng: np.random.Generator) -> Crop:
    """A random square around a crop, 1 to `WIDEST` times its side, in a photo of `shape` [h, w]."""
    side = min(round(crop.size * rng.uniform(1, WIDEST)), *shape)
    top, left = (
        int(rng.integers(max(0, start + crop.size - side), min(start, length - side) + 1))
        for start, length in zip((crop.top, crop.left), shape, strict=True)
    )
    return Crop(crop.photo, top, left, side, flip=False)


def cut(map: NDArray[np.generic], crop: Crop, window: Crop, how: Image.Resampling) -> Image.Image:
    """The part of a window's map [MAP_SIDE, MAP_SIDE] under `crop`, at the same size.

    Mirrored if the crop is.
    """
    scale = MAP_SIDE / window.size
    left, top = (crop.left - window.left) * scale, (crop.top - window.top) * scale
    box = (left, top, left + crop.size * scale, top + crop.size * scale)
    part = Image.fromarray(map).resize((MAP_SIDE, MAP_SIDE), how, box=box)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else part


class MapMaker:
    """Makes the maps and words of training crops.

    Args:
        photos: source of the crops.
        modalities: the modality networks, on the photos' device.
        seed: seed of all random draws.
        sharp: share of the windows with full quality, in [0, 1].
    """

    def __init__(
        self, photos: Photos, modalities: ModalityNetworks, seed: int = 0, sharp: float = 0.5
    ) -> None:
        self.photos, self.networks, self.sharp = photos, modalities.networks, sharp
        self.tags = modalities.labels["captioner"]
        self.rng = np.random.default_rng(seed)
        self.g = torch.Generator(photos.device).manual_seed(seed)
        self.workers = ThreadPoolExecutor()

    @torch.no_grad()
    def __call__(self, crops: Sequence[Crop], hr: Tensor, lr: Tensor) -> CropConditions:
        """Maps and words of a batch of crops.

        Args:
            crops: places of the crops.
            hr: HR pixels of the crops, [B, 3, H, W] in [-1, 1].
            lr: LR pixels of the crops, [B, 3, H/4, W/4] in [-1, 1].
        """
        shapes = [tuple(self.photos.images[crop.photo].shape[1:]) for crop in crops]
        windows = [draw_window(c, s, self.rng) for c, s in zip(crops, shapes, strict=True)]
        sharp = self.rng.random(len(crops)) < self.sharp
        views = self._views(windows, sharp)
        depth = self.networks["depth"](views)[:, 0].float().cpu().numpy()
        classes = self.networks["segmentation"](views).to(torch.uint8).cpu().numpy()
        scores = self.networks["captioner"](views).float().cpu().numpy()
        pixels = views.permute(0, 2, 3, 1).cpu().numpy()
        fine, coarse = hr.cpu(), lr.cpu()
        pictures = [fine[i] if sharp[i] else coarse[i] for i in range(len(crops))]
        maps = self.workers.map(self._maps, crops, windows, depth, classes, pictures)
        return CropConditions(
            torch.stack(list(maps)).to(hr.device),
            [
                write_prompt(choose_tags(s, self.tags), describe(p, window.size / MAP_SIDE))
                for s, p, window in zip(scores, pixels, windows, strict=True)
            ],
        )

    def _views(self, windows: Sequence[Crop], sharp: NDArray[np.bool_]) -> Tensor:
        """The networks' input: windows [B, 3, MAP_SIDE, MAP_SIDE] in [-1, 1]."""
        views = []
        for window, fine in zip(windows, sharp, strict=True):
            part = self.photos.take(window)[None].float() / 127.5 - 1
            side = MAP_SIDE if fine else DEGRADED
            part = F.interpolate(part, (side, side), mode="bilinear", antialias=True)
            if not fine:
                part = F.interpolate(
                    degrade(part, DegradeConfig(), self.g), (MAP_SIDE, MAP_SIDE), mode="bilinear"
                )
            views.append(part)
        return torch.cat(views).clamp(-1, 1).contiguous(memory_format=torch.channels_last)

    def _maps(
        self,
        crop: Crop,
        window: Crop,
        depth: NDArray[np.float32],
        classes: NDArray[np.uint8],
        picture: Tensor,
    ) -> Tensor:
        near = np.asarray(cut(depth, crop, window, Image.Resampling.BILINEAR))
        colours = PALETTE[np.asarray(cut(classes, crop, window, Image.Resampling.NEAREST))]
        pixels = picture.permute(1, 2, 0).numpy()
        edges = edge_map(detect_edges(pixels, MAP_SIDE / len(pixels)))
        planes = [
            np.repeat(near[..., None] * 2 - 1, 3, axis=-1),
            colours.astype(np.float32) / 127.5 - 1,
            edges,
        ]
        return torch.from_numpy(np.stack(planes)).permute(0, 3, 1, 2).float()
