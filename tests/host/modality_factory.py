"""Pictures for the conversion of published checkpoints, and the runtimes that read the files."""

from __future__ import annotations

import numpy as np
from PIL import Image

READERS = ("onnxruntime", "openvino")
"""Runtimes that the exported files are run with."""


def picture(seed: int) -> Image.Image:
    """Coloured blocks with noise, 256x256."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (16, 16, 3)).repeat(16, 0).repeat(16, 1)
    return Image.fromarray((blocks + rng.integers(-12, 13, blocks.shape)).clip(0, 255).astype("u1"))
