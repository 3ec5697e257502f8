"""NIQE, a quality measure without a reference (Mittal et al. 2013); lower is better.

NIQE is the distance of the statistics of a picture's patches from those of good photographs. The
model of good photographs is fitted here to a folder of photographs instead of the published set,
so that values are comparable with each other, but not with those of papers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import gamma

from lib.metrics import luma
from mmsr_edge.jobs.tasks import SUFFIXES

Array = NDArray[np.float64]

PATCH = 96
"""Side of a patch in pixels; half as long at the second scale."""
SHARP = 0.75
"""Least sharpness of a patch in the model, as a share of the photograph's sharpest patch."""
_SHAPES = np.arange(0.2, 10, 0.001)
# ρ(α) = Γ(2/α)² / (Γ(1/α)·Γ(3/α)): the ratio of moments that determines the shape α.
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


@dataclass(frozen=True)
class Statistics:
    """A multivariate Gaussian of patch features."""

    mean: Array
    """Mean [36]."""
    covariance: Array
    """Covariance [36, 36]."""


def normalized(grey: Array) -> tuple[Array, Array]:
    """MSCN coefficients (I − μ) / (σ + 1) of luma in [0, 255], and σ; both [H, W].

    μ and σ are local, under a Gaussian of 7×7 pixels with a standard deviation of 7/6.
    """
    options = {"sigma": 7 / 6, "radius": 3, "mode": "nearest"}
    mean = gaussian_filter(grey, **options)
    deviation = np.sqrt(np.abs(gaussian_filter(grey**2, **options) - mean**2))
    return (grey - mean) / (deviation + 1), deviation


def fit_aggd(values: Array) -> tuple[float, float, float]:
    """Fit an asymmetric generalized Gaussian by its moments: shape α, left and right scale β.

    Lasmar, Stitou and Berthoumieu 2009; α = 2 is a Gaussian and β = σ·√2, α = 1 a Laplacian.
    """
    left, right = values[values < 0], values[values > 0]
    low = np.sqrt(np.mean(left**2)) if left.size else 0.0
    high = np.sqrt(np.mean(right**2)) if right.size else 0.0
    square = np.mean(values**2)
    if not (low and high and square):
        return 10.0, 0.0, 0.0
    g = low / high
    ratio = np.mean(np.abs(values)) ** 2 / square
    target = ratio * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    shape = float(_SHAPES[np.argmin((_RATIOS - target) ** 2)])
    unit = float(np.sqrt(gamma(1 / shape) / gamma(3 / shape)))
    return shape, low * unit, high * unit


def patch_features(mscn: Array) -> list[float]:
    """18 features of one patch: of its values, and of the products of neighbouring values."""
    shape, low, high = fit_aggd(mscn)
    features = [shape, (low + high) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, low, high = fit_aggd(mscn * np.roll(mscn, shift, (0, 1)))
        mean = (high - low) * float(gamma(2 / shape) / gamma(1 / shape))
        features += [shape, mean, low, high]
    return features


def features(picture: NDArray[np.uint8]) -> tuple[Array, Array]:
    """36 features of each patch of an RGB picture [H, W, 3], and each patch's sharpness.

    Raises:
        ValueError: the picture has fewer than two patches.
    """
    grey = luma(picture)
    rows, columns = grey.shape[0] // PATCH, grey.shape[1] // PATCH
    if rows * columns < 2:
        raise ValueError(f"NIQE needs two patches of {PATCH}; the picture is {picture.shape}")
    grey = grey[: rows * PATCH, : columns * PATCH]
    half = Image.fromarray(grey.astype(np.float32)).resize(
        (grey.shape[1] // 2, grey.shape[0] // 2), Image.Resampling.BICUBIC
    )
    found, sharpness = [], []
    scales = [normalized(grey), normalized(np.asarray(half, np.float64))]
    for row in range(rows):
        for column in range(columns):
            values: list[float] = []
            for (mscn, deviation), side in zip(scales, (PATCH, PATCH // 2), strict=True):
                at = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
                values += patch_features(mscn[at])
                if side == PATCH:
                    sharpness.append(float(deviation[at].mean()))
            found.append(values)
    return np.array(found), np.array(sharpness)


def fit(pictures: Iterable[NDArray[np.uint8]]) -> Statistics:
    """Fit the model of good photographs to their sharp patches."""
    kept = []
    for picture in pictures:
        rows, sharpness = features(picture)
        kept.append(rows[sharpness > SHARP * sharpness.max()])
    together = np.concatenate(kept)
    return Statistics(together.mean(0), np.cov(together, rowvar=False))


def fit_folder(folder: Path, count: int = 60, side: int = 960) -> Statistics:
    """Fit the model to about `count` photographs of a folder, to the middle `side`² pixels."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"{folder}: no photographs")
    chosen = paths[:: max(1, len(paths) // count)][:count]

    def middle(path: Path) -> NDArray[np.uint8]:
        with Image.open(path) as file:
            photo = file.convert("RGB")
        left, top = (max(0, (n - side) // 2) for n in photo.size)
        return np.asarray(photo.crop((left, top, min(photo.width, left + side),
                                      min(photo.height, top + side))))  # fmt: skip

    return fit(middle(path) for path in chosen)


def niqe(picture: NDArray[np.uint8], good: Statistics) -> float:
    """√((μ₁ − μ₂)ᵀ ((Σ₁ + Σ₂) / 2)⁺ (μ₁ − μ₂)) of a picture [H, W, 3] and the model."""
    rows, _ = features(picture)
    apart = rows.mean(0) - good.mean
    pooled = (np.cov(rows, rowvar=False) + good.covariance) / 2
    # The form is not negative; rounding may make it so where the two models are almost equal.
    return float(np.sqrt(max(apart @ np.linalg.pinv(pooled) @ apart, 0.0)))
