"""Photographs to train on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images


def save_photos(folder: Path) -> Path:
    """Save scikit-learn's two sample photographs, 640x427, into `folder`."""
    for name, pixels in zip("ab", load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder
