"""Strips: work by rows equals work on the whole picture."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmsr_edge.image import strips
from mmsr_edge.image.strips import BicubicUpsampler, Rows, resize_strips, windowed

if TYPE_CHECKING:
    from collections.abc import Iterator


def cut(picture: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    return (picture[top : top + rows] for top in range(0, len(picture), rows))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def resized(
    picture: np.ndarray,
    size: tuple[int, int],
    resample: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    planes = [Image.fromarray(picture[..., c].copy()) for c in range(picture.shape[2])]
    return np.stack([np.asarray(plane.resize(size, resample, box)) for plane in planes], axis=-1)


sizes = st.integers(1, 90)


@given(sizes, sizes, sizes, sizes, st.integers(1, 40), st.integers(1, 30), st.integers(1, 3))
def test_resizing_by_strips_equals_resizing_at_once(
    height: int, width: int, high: int, wide: int, rows: int, at_once: int, channels: int
) -> None:
    picture = noise(height, width, channels)
    box = (0.0, 0.0, float(width), float(height))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "ROWS", at_once)
        result = np.concatenate(list(resize_strips(cut(picture, rows), height, (wide, high), box)))
    expected = resized(picture, (wide, high), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)


def test_resizing_a_box_consumes_the_whole_picture() -> None:
    picture, box = noise(60, 40, 3), (3.25, 10.5, 37.0, 41.75)
    came: list[int] = []

    def counted() -> Iterator[np.ndarray]:
        for strip in cut(picture, 7):
            came.append(len(strip))
            yield strip

    result = np.concatenate(list(resize_strips(counted(), 60, (55, 20), box)))
    expected = resized(picture, (55, 20), Image.Resampling.LANCZOS, box)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)
    assert sum(came) == 60


@given(sizes, sizes, st.integers(1, 8), st.integers(1, 40))
def test_upsampling_by_strips_equals_upsampling_at_once(
    height: int, width: int, scale: int, rows: int
) -> None:
    picture = noise(height, width, 2)
    shape = (height * scale, width * scale)
    larger = BicubicUpsampler(picture, shape)
    parts = [larger.rows(top, min(top + rows, shape[0])) for top in range(0, shape[0], rows)]
    expected = resized(picture, shape[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=0, atol=1e-5)


def test_windows_have_a_halo_and_end_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "ROWS", 5)
    monkeypatch.setattr(strips, "PIXELS", 30)  # ten rows of three pixels
    picture = noise(35, 3, 1)
    seen = []

    def work(window: np.ndarray, first: int, stop: int) -> np.ndarray:
        np.testing.assert_array_equal(window, picture[first:stop])
        seen.append((first, stop))
        return window * 2

    result = np.concatenate(list(windowed(cut(picture, 4), 35, 3, work)))
    np.testing.assert_array_equal(result, picture * 2)
    assert seen == [(0, 13), (7, 23), (17, 33), (27, 35)]


def test_used_rows_are_released() -> None:
    picture = noise(50_000, 10, 1)
    rows = Rows(np.array(picture[top : top + 10]) for top in range(0, 50_000, 10))
    tracemalloc.start()
    try:
        for top in range(0, 49_980, 10):
            rows.take(top, top + 25)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="row 0 was discarded"):
        rows.take(0, 5)
    with pytest.raises(ValueError, match="ends at row 50000, before 50001"):
        rows.take(49_990, 50_001)
