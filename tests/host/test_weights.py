"""The released checkpoint at full precision: the effect of its dials, without quantization."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from mmsr_edge import Upscaler

CHECKPOINT = Path(__file__).parents[2] / "weights" / "nano"


@pytest.fixture(scope="module")
def torch_nano() -> Upscaler:
    return Upscaler(CHECKPOINT, "torch")


@pytest.fixture
def small() -> Image.Image:
    """A noisy quarter of a photograph that nano was not trained on: one tile."""
    photo = Image.fromarray(load_sample_image("china.jpg")[:384, 200:584])
    reduced = np.asarray(photo.resize((96, 96), Image.Resampling.BICUBIC))
    noisy = reduced + np.random.default_rng(0).normal(0, 10, reduced.shape)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def upscale(upscaler: Upscaler, small: Image.Image, file: Path, **options: Any) -> NDArray[Any]:
    """The result in grey levels from 0 to 255, rounded to 1/257."""
    upscaler.upscale(small, prompt="auto", bits=16, output=file, **options)
    return tifffile.imread(file).astype(np.float64) / 257


def test_guidance_goes_from_soft_to_crisp(
    torch_nano: Upscaler, small: Image.Image, tmp_path: Path
) -> None:
    pictures = [
        upscale(torch_nano, small, tmp_path / "out.tif", guidance_scale=w)
        for w in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ]
    sharpness = [float(np.abs(np.diff(picture, axis=1)).mean()) for picture in pictures]
    # At release, 1.015, 1.011, 1.008 and 1.006 times the sharpness before.
    assert all(b > 1.004 * a for a, b in itertools.pairwise(sharpness)), sharpness
    plain = upscale(torch_nano, small, tmp_path / "out.tif")
    np.testing.assert_array_equal(pictures[2], plain)
