"""Canny in numpy against scikit-image's."""

from __future__ import annotations

import numpy as np
import pytest

from mmsr_edge.modalities.canny import canny, detect_edges


def scene(size: int = 120, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """Grey shapes of several contrasts with some noise, in [0, 1]."""
    y, x = np.mgrid[:size, :size]
    picture = 0.2 + 0.3 * (np.hypot(x - 40, y - 50) < 25) + 0.004 * x
    picture += 0.2 * ((x > 70) & (y > 30) & (y < x)) + 0.15 * (np.sin(x / 9 + y / 5) > 0.9)
    picture += noise * np.random.default_rng(seed).standard_normal((size, size))
    return picture.clip(0, 1)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
@pytest.mark.parametrize(
    ("sigma", "low", "high"), [(1.4, 0.1, 0.2), (0.8, 0.05, 0.3), (2.5, 0, 0.1)]
)
def test_edges_agree_with_scikit_image(noise: float, sigma: float, low: float, high: float) -> None:
    feature = pytest.importorskip("skimage.feature")
    grey = scene(noise=noise)
    expected = feature.canny(
        grey, sigma=sigma, low_threshold=low, high_threshold=high, mode="reflect"
    )
    ours = canny(grey * 2 - 1, sigma, low, high) > 0
    # Equal but for ties, which float32 and float64 break differently; clean shapes have many.
    both, either = (ours & expected).sum(), (ours | expected).sum()
    assert either > 100
    assert both / either > (0.99 if noise else 0.95)


def test_colour_and_grey_agree() -> None:
    grey = scene() * 2 - 1
    np.testing.assert_array_equal(canny(np.repeat(grey[..., None], 3, 2)), canny(grey))


def test_a_step_gives_one_line() -> None:
    picture = np.full((20, 30), -0.5, np.float32)
    picture[:, 15:] = 0.5
    edges = canny(picture)
    assert edges.dtype == bool
    assert edges[:, 14:16].sum() in {18, 36}
    edges[:, 14:16] = 0
    assert not edges.any()


def test_weak_edges_count_only_where_they_reach_a_strong_one() -> None:
    picture = np.full((40, 60), -1.0, np.float32)
    picture[:, 30:] += 0.1 * np.linspace(1, 10, 40)[:, None]  # a step that grows downwards
    weak_alone = canny(picture, low=0.1, high=10)
    with_strong = canny(picture, low=0.1, high=0.6)
    strong_alone = canny(picture, low=0.6, high=0.6)
    assert not weak_alone.any()
    assert 0 < strong_alone.sum() < 0.5 * with_strong.sum()
    assert (with_strong >= strong_alone).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (2, 2), (3, 3, 3), (50, 1, 3)])
def test_small_and_flat_pictures_have_no_edges(shape: tuple[int, ...]) -> None:
    with np.errstate(all="raise"):
        edges = canny(np.full(shape, 0.3, np.float32), low=0)
    assert edges.shape == shape[:2]
    assert not edges.any()


def test_edges_of_a_picture_are_found_at_map_resolution() -> None:
    grey = scene(60, noise=0.0).astype(np.float32) * 2 - 1
    picture = np.repeat(grey[..., None], 3, axis=2)
    edges = detect_edges(picture, 2)
    assert edges.shape == (120, 120)
    assert set(np.unique(edges)) == {0, 1}
    assert detect_edges(picture[:7, :5], 2.5).shape == (18, 12)
    # The disc's outline, at twice its distance from the picture's corner.
    y, x = np.nonzero(edges)
    circle = np.abs(np.hypot(x + 0.5 - 81, y + 0.5 - 101) - 50) < 1.5
    assert circle.sum() > 60
