"""Pictures for tests: noise, transparency in every mode, EXIF."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms

ORIENTATION, COPYRIGHT, EXIF_DIRECTORY, LENS = 0x0112, 0x8298, 0x8769, 0xA434
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def signed(values: np.ndarray) -> np.ndarray:
    """Pixels in [0, 255] mapped to [-1, 1]."""
    return values.astype(np.float64) / 127.5 - 1


def exif_with(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[COPYRIGHT] = "someone"
    exif[EXIF_DIRECTORY] = {LENS: "50 mm", 0xA002: 6, 0xA003: 4}
    return exif.tobytes()


def with_alpha(mode: str) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A picture in `mode`, its colours where visible, and its opacity as uint8."""
    colours = np.full((8, 8, 3), 90, np.uint8)
    opacity = np.full((8, 8), 255, np.uint8)
    opacity[:4] = 0
    if mode == "RGB+tRNS":
        colours[:4] = (255, 0, 255)
        picture = Image.fromarray(colours)
        picture.info["transparency"] = (255, 0, 255)
    elif mode == "L+tRNS":
        colours[:4] = 7
        picture = Image.fromarray(colours[..., 0])
        picture.info["transparency"] = 7
    elif mode == "P+tRNS":
        picture = Image.fromarray((opacity // 255).astype(np.uint8))
        picture.putpalette([0, 0, 0, 90, 90, 90])
        picture.info["transparency"] = 0
    else:
        rgba = Image.fromarray(np.dstack([colours, opacity]))
        if mode == "PA":
            picture = rgba.getchannel(0).convert("P")
            picture.putalpha(rgba.getchannel(3))
        elif mode in {"LA", "La"}:
            picture = Image.merge("LA", (rgba.getchannel(0), rgba.getchannel(3))).convert(mode)
        else:
            picture = rgba.convert(mode)
    return picture, colours, opacity
