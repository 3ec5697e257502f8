"""Modality maps and words for training crops, from the networks that the device will run.

The device looks at a whole picture and cuts a tile's maps out of what it sees (Sec. 3). So does
training: around each crop lies a window, a random part of the photograph; the networks see the
window squeezed to a square, and the crop's maps are cut from theirs. A share of the windows is seen
at full quality, as the paper's training does, and the rest degraded, as they will be on the device;
the edges, Canny's, come from the crop itself at either quality.
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
"""Largest side of a window in sides of its crop."""
DEGRADED = 2 * MAP_SIDE
"""Side of a window when it is degraded by a factor of four; the networks see the result doubled."""


@dataclass(frozen=True)
class ModalityNetworks:
    """The networks, and what their numbers stand for."""

    networks: dict[str, nn.Module]
    """By name of `models.networks.MODALITY_NETWORKS`."""
    labels: dict[str, tuple[str, ...]]
    """Names of classes and tags, of those networks that have them."""


@dataclass(frozen=True)
class Seen:
    """What is known of a batch of crops besides their pixels."""

    maps: Tensor
    """[B, 3, 3, 256, 256] in [-1, 1]: crop, map, channel, row, column."""
    words: list[str]
    """Tags and computed words, as the device writes them."""


def draw_window(crop: Crop, shape: tuple[int, int], rng: np.random.Generator) -> Crop:
    """A square of 1 to `WIDEST` times the crop's side around it, within a photo of `shape`."""
    side = min(round(crop.size * rng.uniform(1, WIDEST)), *shape)
    top, left = (
        int(rng.integers(max(0, start + crop.size - side), min(start, length - side) + 1))
        for start, length in zip((crop.top, crop.left), shape, strict=True)
    )
    return Crop(crop.photo, top, left, side, flip=False)


def cut(map: NDArray[np.generic], crop: Crop, window: Crop, how: Image.Resampling) -> Image.Image:
    """The part of a window's map [MAP_SIDE, MAP_SIDE] under `crop`, at the same size, mirrored with it."""
    scale = MAP_SIDE / window.size
    left, top = (crop.left - window.left) * scale, (crop.top - window.top) * scale
    box = (left, top, left + crop.size * scale, top + crop.size * scale)
    part = Image.fromarray(map).resize((MAP_SIDE, MAP_SIDE), how, box=box)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else part


class MapMaker:
    """Makes the maps and words of crops.

    Args:
        photos: where the crops come from.
        modalities: the networks that look at them, on the photos' device.
        seed: of everything random.
        sharp: share of the windows that are seen at full quality.
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
    def __call__(self, crops: Sequence[Crop], hr: Tensor, lr: Tensor) -> Seen:
        """Look at a batch of crops.

        Args:
            crops: where they were taken.
            hr: their pixels [B, 3, H, W] in [-1, 1].
            lr: the degraded ones [B, 3, H/4, W/4].
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
        seen = [fine[i] if sharp[i] else coarse[i] for i in range(len(crops))]
        maps = self.workers.map(self._maps, crops, windows, depth, classes, seen)
        return Seen(
            torch.stack(list(maps)).to(hr.device),
            [
                write_prompt(choose_tags(s, self.tags), describe(p, window.size / MAP_SIDE))
                for s, p, window in zip(scores, pixels, windows, strict=True)
            ],
        )

    def _views(self, windows: Sequence[Crop], sharp: NDArray[np.bool_]) -> Tensor:
        """Windows as the networks see them, [B, 3, MAP_SIDE, MAP_SIDE] in [-1, 1]."""
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
        seen: Tensor,
    ) -> Tensor:
        near = np.asarray(cut(depth, crop, window, Image.Resampling.BILINEAR))
        colours = PALETTE[np.asarray(cut(classes, crop, window, Image.Resampling.NEAREST))]
        pixels = seen.permute(1, 2, 0).numpy()
        edges = edge_map(detect_edges(pixels, MAP_SIDE / len(pixels)))
        planes = [
            np.repeat(near[..., None] * 2 - 1, 3, axis=-1),
            colours.astype(np.float32) / 127.5 - 1,
            edges,
        ]
        return torch.from_numpy(np.stack(planes)).permute(0, 3, 1, 2).float()
