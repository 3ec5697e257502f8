"""Training tiles: cut like the device's, with maps and levels of the whole view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from mmsr_edge.modalities.segmentation import PALETTE, make_segmentation
from mmsr_edge.models.checkpoint import open_checkpoint
from mmsr_edge.training.data.degradation import bicubic_down
from mmsr_edge.training.data.tiles import (
    SCALE,
    Tiles,
    TilesConfig,
    TorchRun,
    draw_view,
    join_tiles,
    load_tiles,
    make_tiles,
)

CLEAN = TilesConfig(smallest=40, longest=72, per_view=3, clean=1.0)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture(scope="module")
def run(checkpoint: Path) -> TorchRun:
    opened = open_checkpoint(checkpoint)
    return TorchRun(opened.networks, opened.bundle.manifest, map_side=64)


def draw(photo: Image.Image, run: TorchRun, config: TilesConfig, seed: int = 0) -> Tiles:
    rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    return make_tiles(photo, 7, run, config, rng, g)


def test_views_have_sides_in_range_and_whole_latent_cells(photo: Image.Image) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        width, height = draw_view(photo, CLEAN, rng).size
        assert width % 8 == height % 8 == 0
        assert min(width, height) >= 40 * SCALE and max(width, height) <= 73 * SCALE


def test_a_tile_is_the_reduced_hr_tile_and_its_maps_lie_on_it(
    photo: Image.Image, run: TorchRun, tmp_path: Path
) -> None:
    tiles = draw(photo, run, CLEAN)
    assert tiles.hr.shape == (3, 3, 128, 128) and tiles.lr.shape == (3, 3, 32, 32)
    assert tiles.photo.tolist() == [7] * 3
    inner = slice(4, -4)  # the whole view was reduced, so a tile knows what lies beside it
    expected = bicubic_down(tiles.hr.float() / 255, SCALE) * 255
    off = (tiles.lr.float() - expected)[..., inner, inner].abs()
    assert off.max() <= 1.01
    assert (tiles.levels < 0.12).all()  # rounding to 8 bits

    maps = tiles.maps(torch.arange(3), torch.tensor([[0, 1, 0]] * 3))
    assert maps.shape == (3, 3, 3, 64, 64)
    assert maps.min() >= -1 and maps.max() <= 1
    # The colours are those of the stored classes of the HR picture.
    colours = ((maps[:, 1].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(colours, torch.from_numpy(PALETTE)[tiles.classes[:, 1].long()])

    path = tmp_path / "tiles.pt"
    join_tiles([tiles, draw(photo, run, CLEAN, 1)]).save(path)
    both = load_tiles(path)
    assert len(both) == 6 and both.words[:3] == tiles.words
    assert torch.equal(both.lr[:3], tiles.lr)
    assert torch.equal(draw(photo, run, CLEAN).hr, tiles.hr)  # the seed draws all


def test_maps_of_the_hr_picture_differ_from_those_of_a_degraded_one(
    photo: Image.Image, run: TorchRun
) -> None:
    strong = TilesConfig(smallest=40, longest=72, per_view=2, clean=0.0, noisy=1.0)
    tiles = draw(photo, run, strong)
    assert (tiles.levels[:, 0] > 0.3).all()
    assert torch.equal(tiles.levels[0], tiles.levels[1])  # of the view, not of the tile
    for planes in (tiles.depth, tiles.edges):
        assert not torch.equal(planes[:, 0], planes[:, 1])
    assert all(len(words) == 2 and all(words) for words in tiles.words)


def test_the_run_is_a_network_run(photo: Image.Image, run: TorchRun) -> None:
    pixels = np.asarray(photo.resize((60, 44)), np.float32) / 127.5 - 1
    found = make_segmentation(pixels, run)
    assert found is not None and found.shape[2] == 3
