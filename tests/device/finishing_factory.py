"""An upscaler whose networks repeat each pixel, so that the result is known, and its pictures."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import SCALE, make_bundle
from PIL import Image
from profile_factory import ADOBE, rgb_profile

from mmsr_edge import Upscaler
from mmsr_edge.pipeline import PictureRun, TileStep

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]

ADOBE_RGB = rgb_profile(ADOBE)


@contextmanager
def repeating_upscaler(folder: Path) -> Iterator[Upscaler]:
    """An upscaler with a bundle in `folder`, whose networks are replaced meanwhile."""

    def denoise(run: Any, lr: Array, maps: Any, noise: Array, dials: Any) -> Iterator[TileStep]:
        yield TileStep(0, 1, noise)

    def decode(run: Any, latent: Array, lr: Array, maps: Any) -> Array:
        return lr.repeat(SCALE, axis=2).repeat(SCALE, axis=3)  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PictureRun, "denoise", denoise)
        patch.setattr(PictureRun, "decode", decode)
        yield Upscaler(make_bundle(folder), "onnxruntime")


def pixels(picture: Image.Image) -> Array:
    """Grey levels in [0, 255], float64."""
    return np.asarray(picture, np.float64)


def repeated(picture: Array, scale: int = SCALE) -> Array:
    """The picture with each pixel repeated `scale` times along both sides."""
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def smooth(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth colours, [height, width, 3] from 38 to 218."""
    y, x = np.mgrid[:height, :width] / 40
    waves = [np.sin(5 * x + y), np.sin(2 * x - 4 * y + 1), np.cos(3 * x + 3 * y)]
    return np.round(128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)
