"""The shipped bundle at the release gates that a device can measure, on photographs of its own.

`release` measures all gates on the checkpoint. Here they hold for what ships: quantized, and on a
device's runtime.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

from mmsr_edge import Upscaler
from mmsr_edge.bundle import open_bundle
from mmsr_edge.models.checkpoint import load_network
from mmsr_edge.training.data.tiles import Tiles, TilesConfig, TorchRun, join_tiles, make_tiles
from mmsr_edge.training.gate_runs import device_gates
from mmsr_edge.training.gates import require

CHECKPOINT = Path(__file__).parents[2] / "weights" / "nano"


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    """28 tiles of seven photographs that nano was not trained on."""
    photos = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    photos += [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    photos.append(data.stereo_motorcycle()[0])
    names = ("depth", "segmentation", "captioner")
    manifest = open_bundle(CHECKPOINT).manifest
    run = TorchRun({name: load_network(CHECKPOINT, name)[0] for name in names}, manifest, 256)
    rng, g = np.random.default_rng(0), torch.Generator().manual_seed(0)
    config = TilesConfig(longest=170)  # hardly larger than the photographs are
    parts = [
        make_tiles(Image.fromarray(photo), number, run, config, rng, g)
        for number, photo in enumerate(photos)
    ]
    return join_tiles(parts)


def test_the_shipped_bundle_passes_the_gates(tiles: Tiles) -> None:
    require(device_gates(Upscaler("nano"), tiles))
