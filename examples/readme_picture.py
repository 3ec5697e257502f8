"""Make the README's pictures: docs/sample.jpg and docs/before_after.png.

    pip install scikit-learn && python examples/readme_picture.py docs

The photograph is scikit-learn's `china.jpg` (CC BY 2.0; credit in the README), reduced to a
quarter with a little noise and saved as JPEG, like a thumbnail or a picture of an old phone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from mmsr_edge import Upscaler

SCALE = 4
NOISE = 6.0
"""Standard deviation of the noise, in 1/255."""
QUALITY = 70
"""Quality of the JPEG."""
BOX = (40, 20, 376, 424)
"""Part of the upscaled picture that the README shows: left, top, right, bottom, in pixels."""


def sample() -> Image.Image:
    """Make the low-resolution picture."""
    photo = Image.fromarray(load_sample_image("china.jpg"))
    photo = photo.crop((0, 0, photo.width // SCALE * SCALE, photo.height // SCALE * SCALE))
    small = np.asarray(
        photo.resize((photo.width // SCALE, photo.height // SCALE), Image.Resampling.LANCZOS)
    )
    noise = np.random.default_rng(0).normal(0, NOISE, small.shape)
    return Image.fromarray((small + noise).round().clip(0, 255).astype(np.uint8))


def main() -> None:
    """Write both pictures into the folder given as argument."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sample.jpg"
    sample().save(path, quality=QUALITY)
    with Image.open(path) as small:
        size = (small.width * SCALE, small.height * SCALE)
        before = small.convert("RGB").resize(size, Image.Resampling.BICUBIC).crop(BOX)
    after = Upscaler().upscale(path).image.crop(BOX)
    pair = Image.new("RGB", (before.width + after.width + 8, before.height), "white")
    pair.paste(before, (0, 0))
    pair.paste(after, (before.width + 8, 0))
    pair.save(folder / "before_after.png", optimize=True)


if __name__ == "__main__":
    main()
