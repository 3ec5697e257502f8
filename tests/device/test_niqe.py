"""NIQE: its estimator on known distributions, and its scores of synthetic damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import gennorm
from sklearn.datasets import load_sample_image

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def niqe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return pytest.importorskip("lib.niqe")


@pytest.mark.parametrize(("shape", "scale"), [(0.7, 1.5), (1.0, 1.0), (2.0, 0.3), (4.0, 2.0)])
def test_parameters_of_a_known_distribution_are_estimated(
    niqe: Any, shape: float, scale: float
) -> None:
    values = gennorm.rvs(shape, scale=scale, size=200_000, random_state=0)
    alpha, low, high = niqe.fit_aggd(values)
    assert alpha == pytest.approx(shape, rel=0.05)
    assert (low, high) == pytest.approx((scale, scale), rel=0.07)


def test_left_and_right_spread_are_estimated_apart(niqe: Any) -> None:
    values = np.abs(gennorm.rvs(2.0, size=300_000, random_state=1))
    left = np.random.default_rng(0).random(values.size) < 0.25  # a side's weight goes with its β
    alpha, low, high = niqe.fit_aggd(np.where(left, -values, 3 * values))
    assert alpha == pytest.approx(2, rel=0.05)
    assert high / low == pytest.approx(3, rel=0.02)


def test_mscn_of_noise_is_gaussian_of_unit_spread(niqe: Any) -> None:
    noise = 128 + 40 * np.random.default_rng(0).standard_normal((256, 256))
    mscn, deviation = niqe.normalized(noise)
    assert niqe.fit_aggd(mscn)[0] > 1.8  # σ is that of 7×7 pixels: a little flatter than a Gaussian
    assert abs(mscn.mean()) < 0.02 and 30 < deviation.mean() < 40


def test_more_damage_scores_worse(niqe: Any) -> None:
    photos = [load_sample_image(f"{name}.jpg") for name in ("china", "flower")]
    good = niqe.fit(photos)
    china = photos[0].astype(np.float64)
    noise = np.random.default_rng(0).standard_normal(china.shape)

    def score(picture: Any) -> float:
        return float(niqe.niqe(np.clip(picture, 0, 255).astype(np.uint8), good))

    blurred = [score(gaussian_filter(china, (s, s, 0))) for s in (0, 1, 2, 4)]
    noisy = [score(china + s * noise) for s in (0, 10, 40)]
    assert blurred == sorted(blurred) and noisy == sorted(noisy)


def test_a_picture_without_patches_is_refused(niqe: Any) -> None:
    with pytest.raises(ValueError, match="needs two patches of 96"):
        niqe.features(np.zeros((100, 100, 3), np.uint8))
