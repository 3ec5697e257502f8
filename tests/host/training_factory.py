"""Photographs and tiles to train on, and the running of stages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from mmsr_edge.modalities.segmentation import SUBJECT
from mmsr_edge.training.data.tiles import Tiles

STAGES = "mmsr_edge.training"
COUNT, TILE = 6, 32
"""Number of tiles, and their side: that of preset `micro`."""


def save_photos(folder: Path) -> Path:
    """Save scikit-learn's two sample photographs, 640x427, into `folder`."""
    for name, pixels in zip("ab", load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def make_tiles(seed: int = 0) -> Tiles:
    """Tiles of preset `micro` with random pictures and maps in blocks."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int, top: int = 256) -> Tensor:
        return torch.randint(top, shape, generator=g, dtype=torch.uint8)

    def blocks(top: int) -> Tensor:
        return draw(COUNT, 2, 8, 8, top=top).repeat_interleave(32, 2).repeat_interleave(32, 3)

    return Tiles(
        hr=draw(COUNT, 3, 4 * TILE, 4 * TILE),
        lr=draw(COUNT, 3, TILE, TILE),
        depth=blocks(256),
        classes=blocks(3) + SUBJECT * blocks(2),
        edges=255 * blocks(2),
        levels=torch.rand(COUNT, 3, generator=g),
        photo=torch.arange(COUNT),
        words=[("cat, dark", "cat, dark, sharp")] * COUNT,
    )


def stage_command(stage: str, out: Path, *options: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        f"{STAGES}.{stage}",
        "--out",
        str(out),
        "--device",
        "cpu",
        *map(str, options),
    ]


def run_stage(stage: str, out: Path, *options: object) -> None:
    command = stage_command(stage, out, *options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
