"""Training tiles with maps, words and levels of degradation, made as the device makes them.

A view is a part of a photograph at a drawn size: an HR picture, its LR picture by `degrade`, and
the maps and words of the whole picture by the functions of `mmsr_edge.modalities`. Tiles are cut
out of it as the pipeline cuts them, so that maps have the device's geometry: depth and segmentation
see the whole picture, and a map pixel is half an LR pixel (`tile` LR pixels to 256). Each tile has
its maps twice, made of the LR picture, as on the device, and of the HR picture, as a caller's
better map.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mmsr_edge.bundle import MAP_SIDE, MAPS, Manifest
from mmsr_edge.modalities.canny import detect_edges
from mmsr_edge.modalities.picture import PictureMap, collect_maps
from mmsr_edge.modalities.segmentation import PALETTE, palette_numbers
from mmsr_edge.modalities.words import collect_words
from mmsr_edge.training.data.degradation import (
    NOISY,
    DegradeConfig,
    bicubic_down,
    degrade,
    measure_degradation,
)
from mmsr_edge.training.data.photos import to_bytes

SCALE = 4
"""HR pixels per LR pixel, along a side."""


@dataclass(frozen=True)
class TilesConfig:
    """Settings of the draw of views and tiles."""

    smallest: int = 136
    """Least shorter side of a view, in LR pixels; at least that of a tile."""
    longest: int = 420
    """Greatest longer side of a view, in LR pixels."""
    native: float = 0.25
    """Share of the views at about the photograph's own resolution, with HR pictures less sharp than
    those of photographs that are shrunk."""
    per_view: int = 4
    """Tiles cut out of a view."""
    clean: float = 0.25
    """Share of the views whose LR picture is only downscaled."""
    noisy: float = 0.25
    """Share of the views with strong noise; the others have Real-ESRGAN's degradation."""


class TorchRun:
    """Runs modality networks for the functions of `mmsr_edge.modalities` (a `NetworkRun`).

    Args:
        networks: `depth`, `segmentation` and `captioner`, by name.
        manifest: manifest of their checkpoint, with the names of classes and tags.
        map_side: side of a tile's maps in pixels.
    """

    vocabulary = None

    def __init__(
        self, networks: dict[str, nn.Module], manifest: Manifest, map_side: int = MAP_SIDE
    ) -> None:
        self.networks, self.manifest, self.map_side = networks, manifest, map_side
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    @torch.no_grad()
    def run(self, component: str, **feeds: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Outputs by name of one network."""
        network = self.networks[component]
        device = next(network.parameters()).device
        out = network(
            *(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in feeds.values())
        )
        name = self.manifest.components[component].outputs[0].name
        return {name: out.cpu().numpy()}


@dataclass
class Tiles:
    """Tiles in memory, one row each; pictures and maps are uint8."""

    hr: Tensor
    """[N, 3, 4t, 4t], HR tiles."""
    lr: Tensor
    """[N, 3, t, t], LR tiles."""
    depth: Tensor
    """[N, 2, s, s], depth maps of the LR picture and of the HR picture."""
    classes: Tensor
    """[N, 2, s, s], class of each pixel, likewise."""
    edges: Tensor
    """[N, 2, s, s], edges, 0 to 255, likewise."""
    levels: Tensor
    """[N, 3] float32, levels of noise, blur and JPEG, 0 to 1; see `measure_degradation`."""
    photo: Tensor
    """[N], number of the photograph."""
    words: list[tuple[str, str]]
    """Words of each tile's picture, from the LR picture and from the HR picture."""

    def __len__(self) -> int:
        return len(self.hr)

    def maps(self, rows: Tensor, sharp: Tensor) -> Tensor:
        """Maps as the tokenizer reads them, [B, 3, 3, s, s] in [-1, 1].

        Args:
            rows: rows of the tiles, [B].
            sharp: [B, 3], 1 for a map of the HR picture, 0 for one of the LR picture.
        """
        depth = self.depth[rows, sharp[:, 0]].float()[:, None].expand(-1, 3, -1, -1)
        palette = torch.from_numpy(PALETTE)
        colours = palette[self.classes[rows, sharp[:, 1]].long()].permute(0, 3, 1, 2).float()
        edges = self.edges[rows, sharp[:, 2]].float()[:, None].expand(-1, 3, -1, -1)
        return torch.stack([depth, colours, edges], dim=1) / 127.5 - 1

    def save(self, path: Path) -> None:
        """Write the tiles; `load_tiles` reads them."""
        torch.save(vars(self), path)


def load_tiles(path: Path) -> Tiles:
    """Read what `Tiles.save` wrote."""
    return Tiles(**torch.load(path, map_location="cpu", weights_only=True))


def join_tiles(parts: list[Tiles]) -> Tiles:
    """Concatenate tiles."""
    columns: dict[str, Any] = {}
    for name, first in vars(parts[0]).items():
        values = [getattr(part, name) for part in parts]
        joined = torch.cat(values) if isinstance(first, Tensor) else [w for v in values for w in v]
        columns[name] = joined
    return Tiles(**columns)


def draw_view(image: Image.Image, config: TilesConfig, rng: np.random.Generator) -> Image.Image:
    """A random part of a photograph at a random size: the HR picture of a view.

    Its sides are multiples of 8.
    """
    side = np.exp(rng.uniform(np.log(config.smallest), np.log(config.longest)))
    part = rng.uniform(0.4, 1.0)
    if rng.random() < config.native:
        part = min(1.0, SCALE * side / (rng.uniform(0.7, 1.4) * max(image.size)))
    width, height = (max(1, int(n * part)) for n in image.size)
    left, top = (
        int(rng.integers(n - m + 1)) for n, m in zip(image.size, (width, height), strict=True)
    )
    factor = SCALE * side / max(width, height)
    least = SCALE * config.smallest
    new_width, new_height = (max(least, int(n * factor) // 8 * 8) for n in (width, height))
    box = (left, top, left + width, top + height)
    return image.resize((new_width, new_height), Image.Resampling.BICUBIC, box=box)


def make_tiles(
    image: Image.Image,
    photo: int,
    run: TorchRun,
    config: TilesConfig,
    rng: np.random.Generator,
    g: torch.Generator,
) -> Tiles:
    """The tiles of one view of a photograph."""
    hr_picture = np.asarray(draw_view(image, config, rng))
    hr = torch.from_numpy(hr_picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    kind = rng.random()
    clean = bicubic_down((hr + 1) / 2, SCALE)
    if kind < config.clean:
        lr = (clean * 255).round() / 127.5 - 1
    else:
        strong = kind < config.clean + config.noisy
        lr = degrade(hr, NOISY if strong else DegradeConfig(clean=0.0), g)
    levels = measure_degradation(lr, clean * 2 - 1)
    maps, words = zip(*(_conditions(picture, lr, run, rng) for picture in (lr, hr)), strict=True)
    tile, side = run.manifest.tile.size, run.map_side
    height, width = lr.shape[-2:]
    rows = []
    for _ in range(config.per_view):
        top, left = _detailed(clean, tile, rng)
        box = (left, top, left + tile, top + tile)
        cut = [
            {
                name: m.crop(box, side, (height, width))[0, 0] if m else None
                for name, m in of.items()
            }
            for of in maps
        ]
        planes = {name: torch.stack([_bytes(c[name], side) for c in cut]) for name in MAPS}
        classes = torch.stack(
            [_classes(of["segmentation"], box, side, (height, width)) for of in maps]
        )
        down = slice(top, top + tile), slice(left, left + tile)
        up = tuple(slice(s.start * SCALE, s.stop * SCALE) for s in down)
        rows.append(
            Tiles(
                to_bytes(hr[:, :, up[0], up[1]]), to_bytes(lr[:, :, down[0], down[1]]),
                planes["depth"][None], classes[None], planes["edges"][None],
                levels, torch.tensor([photo]), [words],
            )
        )  # fmt: skip
    return join_tiles(rows)


def _detailed(picture: Tensor, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of the square of `side` with the strongest gradients, of three drawn ones."""
    best = (-1.0, 0, 0)
    for _ in range(3):
        top, left = (int(rng.integers(n - side + 1)) for n in picture.shape[-2:])
        grey = picture[0, 1, top : top + side, left : left + side]
        strength = float(grey.diff(dim=0).abs().mean() + grey.diff(dim=1).abs().mean())
        best = max(best, (strength, top, left))
    return best[1:]


def _conditions(
    picture: Tensor, lr: Tensor, run: TorchRun, rng: np.random.Generator
) -> tuple[dict[str, PictureMap | None], str]:
    """Maps and words of a picture, LR or HR, for the LR picture."""
    pixels, low = (x[0].permute(1, 2, 0).numpy() for x in (picture, lr))
    options: dict[str, Any] = dict.fromkeys(MAPS, "auto")
    if picture is not lr:  # a caller's maps: of the HR picture, edges at one of a few scales
        own = collect_maps(pixels, {**options, "edges": None}, run, [])
        options = {
            "depth": None if own["depth"] is None else own["depth"].values[..., 0] / 2 + 0.5,
            "segmentation": None,
            "edges": detect_edges(pixels, float(rng.choice([0.5, 1.0]))),
        }
        maps = collect_maps(low, options, run, [])
        maps["segmentation"] = own["segmentation"]
    else:
        maps = collect_maps(low, options, run, [])
    return maps, collect_words(pixels, run, [])[0]


def _bytes(plane: NDArray[Any] | None, side: int) -> Tensor:
    if plane is None:
        return torch.zeros(side, side, dtype=torch.uint8)
    return torch.from_numpy(((plane + 1) * 127.5).round().clip(0, 255).astype(np.uint8))


def _classes(
    map: PictureMap | None, box: tuple[int, int, int, int], side: int, extent: tuple[int, int]
) -> Tensor:
    """Classes under a tile, [s, s], with `SUBJECT` added where the subject is."""
    if map is None:
        return torch.zeros(side, side, dtype=torch.uint8)
    pixels = map.crop(box, side, extent)[0].transpose(1, 2, 0)
    return torch.from_numpy(palette_numbers(pixels).astype(np.uint8))
