"""Modality maps for training crops, and prompts that say what can be computed.

Edges are Canny's, on the HR crop as in the paper (Sec. 3), or half of the time on the LR crop, as
they will be on the device.

Depth and segmentation are *stand-ins* here: no network that predicts them is at hand yet. Regions
(Felzenszwalb and Huttenlocher 2004) are clustered by colour and texture over all photographs into
classes, and a region is as near as its lowest point is low in the picture, the classic cue of
ground contact. They have the form of the real maps (flat regions with the picture's borders, a
ramp towards the horizon), which is what the tokenizer and the connector learn to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab
from skimage.segmentation import felzenszwalb
from sklearn.cluster import KMeans
from torch import Tensor

from mmsr_edge.modalities import caption
from mmsr_edge.modalities.edges import detect_edges
from mmsr_edge.modalities.maps import PALETTE, edge_map
from mmsr_edge.training.data import Crop, Photos

SIDE = 256
"""Side of a map."""
CLASSES = 20
"""Region clusters, numbered from 1: 0 is no class, as in PASCAL VOC."""
WORKING_SIDE = 384
"""Longer side of the picture on which regions are found."""


@dataclass(frozen=True)
class PhotoMaps:
    """Whole-picture stand-in maps of one photograph."""

    classes: NDArray[np.uint8]
    """[h, w] class per pixel."""
    nearness: NDArray[np.float32]
    """[h, w] in [0, 1], near = 1."""


def _regions(photo: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """Region labels [h, w], a feature row per region, and nearness [h, w]."""
    image = Image.fromarray(photo.permute(1, 2, 0).cpu().numpy())
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
    rgb = np.asarray(image)
    labels = felzenszwalb(rgb, scale=300, sigma=0.8, min_size=120)
    lab = rgb2lab(rgb)
    texture = np.abs(np.diff(lab[..., 0], axis=1, append=lab[:, -1:, 0]))
    rows = np.linspace(0, 1, labels.shape[0])[:, None] * np.ones_like(labels, dtype=np.float64)
    counts = np.bincount(labels.ravel())

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(labels.ravel(), values.ravel()) / counts

    features = np.stack(
        [*(mean(lab[..., i]) for i in range(3)), 4 * mean(texture), 40 * mean(rows)], 1
    )
    lowest = np.zeros(len(counts))
    np.maximum.at(lowest, labels.ravel(), rows.ravel())
    nearness = 0.7 * lowest[labels] + 0.3 * rows
    return labels, features, nearness.astype(np.float32)


def photo_maps(photos: Photos, seed: int = 0) -> dict[str, PhotoMaps]:
    """Stand-in maps for each photograph, by its path; its shrunk copy shares them."""
    first = {str(p): i for i, p in reversed(list(enumerate(photos.paths)))}
    found = {path: _regions(photos.images[i]) for path, i in first.items()}
    everything = np.concatenate([features for _, features, _ in found.values()])
    clusters = KMeans(CLASSES, n_init=2, random_state=seed).fit(everything)
    return {
        path: PhotoMaps((clusters.predict(features)[labels] + 1).astype(np.uint8), nearness)
        for path, (labels, features, nearness) in found.items()
    }


def _cut(
    map: NDArray[np.generic], crop: Crop, shape: tuple[int, int], how: Image.Resampling
) -> Image.Image:
    """The part of a whole-picture map under `crop` of a picture of `shape`, SIDE×SIDE."""
    y, x = (m / p for m, p in zip(map.shape, shape, strict=True))
    box = (crop.left * x, crop.top * y, (crop.left + crop.size) * x, (crop.top + crop.size) * y)
    cut = Image.fromarray(map).resize((SIDE, SIDE), how, box=box)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else cut


class MapMaker:
    """Makes the maps of crops.

    Args:
        photos: where the crops come from.
        seed: of the choice between HR and LR edges.
    """

    def __init__(self, photos: Photos, seed: int = 0) -> None:
        self.photos = photos
        self.maps = photo_maps(photos)
        self.rng = np.random.default_rng(seed)
        self.workers = ThreadPoolExecutor()

    def __call__(self, crops: Sequence[Crop], hr: Tensor, lr: Tensor) -> Tensor:
        """Depth, segmentation and edge maps of a batch of crops.

        Args:
            crops: where they were taken.
            hr: their pixels [B, 3, H, W] in [-1, 1].
            lr: the degraded ones [B, 3, H/4, W/4].

        Returns:
            [B, 3, 3, 256, 256] in [-1, 1]: crop, map, channel, row, column; on `hr`'s device.
        """
        from_hr = self.rng.random(len(crops)) < 0.5
        sharp, coarse = hr.cpu(), lr.cpu()
        seen = [sharp[i] if from_hr[i] else coarse[i] for i in range(len(crops))]
        return torch.stack(list(self.workers.map(self._one, crops, seen))).to(hr.device)

    def _one(self, crop: Crop, seen: Tensor) -> Tensor:
        whole = self.maps[str(self.photos.paths[crop.photo])]
        _, h, w = self.photos.images[crop.photo].shape
        depth = np.asarray(_cut(whole.nearness, crop, (h, w), Image.Resampling.BILINEAR))
        classes = np.asarray(_cut(whole.classes, crop, (h, w), Image.Resampling.NEAREST))
        pixels = seen.permute(1, 2, 0).numpy()
        edges = edge_map(detect_edges(pixels, SIDE / len(pixels)))
        colours = PALETTE[classes].astype(np.float32) / 127.5 - 1
        planes = [np.repeat(depth[..., None] * 2 - 1, 3, axis=-1), colours, edges]
        return torch.from_numpy(np.stack(planes)).permute(0, 3, 1, 2).float()


def describe(hr: Tensor) -> str:
    """The words that a device finds for `hr` [3, H, W] in [-1, 1]."""
    return " ".join(caption.describe(hr.permute(1, 2, 0).float().cpu().numpy()))
