"""Tile plans and blending: properties that hold for every picture size."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_edge import tiling
from mmsr_edge.bundle import TileSpec

if TYPE_CHECKING:
    from collections.abc import Iterator


@st.composite
def specs(draw: st.DrawFn) -> TileSpec:
    unit = draw(st.sampled_from([1, 2, 4, 8]))
    size = unit * draw(st.integers(2, 24))
    # An overlap of half a tile or less, rounded up to the grid, leaves room to advance.
    return TileSpec(size, draw(st.integers(0, size // 2)), unit)


lengths = st.integers(1, 300)


@settings(max_examples=300, deadline=None)
@given(lengths, lengths, specs())
def test_a_plan_covers_the_picture_with_full_tiles_on_the_grid(
    height: int, width: int, spec: TileSpec
) -> None:
    plan = tiling.plan_tiles(height, width, spec)
    for padded, length, starts in (
        (plan.height, height, plan.tops),
        (plan.width, width, plan.lefts),
    ):
        assert padded >= max(length, spec.size)
        assert padded < max(length, spec.size) + spec.multiple_of
        assert all(value % spec.multiple_of == 0 for value in (padded, *starts))
        assert starts[0] == 0
        assert starts[-1] + spec.size == padded
        strides = np.diff(starts)
        assert (strides > 0).all()
        assert (spec.size - strides >= spec.overlap).all()


@settings(max_examples=200, deadline=None)
@given(lengths, specs())
def test_no_plan_has_a_tile_too_many(length: int, spec: TileSpec) -> None:
    starts = tiling.plan_tiles(length, 1, spec).tops
    unit = spec.multiple_of
    overlap = -(-spec.overlap // unit) * unit
    reach = spec.size + (len(starts) - 2) * (spec.size - overlap)
    assert len(starts) == 1 or reach < length


@settings(max_examples=200, deadline=None)
@given(lengths, lengths, specs())
def test_the_weights_sum_to_one_everywhere(height: int, width: int, spec: TileSpec) -> None:
    plan = tiling.plan_tiles(height, width, spec)
    for starts, length in ((plan.tops, plan.height), (plan.lefts, plan.width)):
        weights = tiling.feather(starts, plan.size)
        assert weights.min() >= 0
        total = np.zeros(length)
        for start, weight in zip(starts, weights, strict=True):
            total[start : start + plan.size] += weight
        np.testing.assert_allclose(total, 1, rtol=0, atol=3e-7)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 120),
    st.integers(1, 120),
    specs(),
    st.sampled_from([Fraction(1, 2), 1, 4]),
    st.floats(-1, 1, width=32),
)
def test_a_flat_picture_stays_flat(
    height: int, width: int, spec: TileSpec, factor: Fraction | int, value: float
) -> None:
    if spec.multiple_of % Fraction(factor).denominator:
        return
    plan = tiling.plan_tiles(height, width, spec).scaled(factor)
    window = np.full((plan.size, plan.size, 3), value, np.float32)
    joined = np.concatenate(list(tiling.blend(plan, ((tile, window) for tile in plan))))
    assert joined.shape == (plan.height, plan.width, 3)
    np.testing.assert_allclose(joined, value, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), specs(), st.integers(0, 9))
def test_tiles_of_a_picture_join_to_that_picture(
    height: int, width: int, spec: TileSpec, seed: int
) -> None:
    picture = np.random.default_rng(seed).uniform(-1, 1, (height, width, 2)).astype(np.float32)
    plan = tiling.plan_tiles(height, width, spec)
    padded = tiling.pad(picture, plan.height, plan.width)
    row = 0

    def windows() -> Iterator[tuple[tiling.Tile, np.ndarray]]:
        for tile in plan:
            assert row == (0 if tile.row == 0 else tile.top)  # finished rows have been yielded
            yield tile, tile.of(padded)

    strips = []
    for strip in tiling.blend(plan, windows(), channels=2):
        strips.append(strip)
        row += len(strip)
    joined = np.concatenate(strips)
    assert joined.dtype == np.float32
    assert joined.shape == padded.shape
    np.testing.assert_allclose(joined[:height, :width], picture, rtol=0, atol=1e-6)


def test_a_step_between_two_tiles_becomes_a_ramp() -> None:
    """Neighbouring pixels differ by at most the steepest step of the raised cosine."""
    plan = tiling.plan_tiles(32, 56, TileSpec(32, 8, 1))
    assert plan.lefts == (0, 24)
    windows = [(tile, np.full((32, 32, 1), float(tile.column), np.float32)) for tile in plan]
    (strip,) = tiling.blend(plan, windows, channels=1)
    row = strip[0, :, 0]
    assert (row[:24] == 0).all()
    assert (row[32:] == 1).all()
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() <= np.pi / 2 / 8 + 1e-6


def test_the_usual_plan() -> None:
    spec = TileSpec(128, 16, 2)
    assert len(tiling.plan_tiles(128, 128, spec)) == 1
    assert tiling.plan_tiles(1, 1, spec) == tiling.TilePlan(128, 128, 128, (0,), (0,))
    plan = tiling.plan_tiles(200, 301, spec)
    assert (plan.height, plan.width) == (200, 302)
    assert (plan.tops, plan.lefts) == ((0, 72), (0, 86, 174))
    assert [tile.box for tile in plan][-1] == (174, 72, 302, 200)
    latents = plan.scaled(Fraction(1, 2))
    assert (latents.size, latents.lefts) == (64, (0, 43, 87))
    assert plan.scaled(4).tops == (0, 288)


def test_padding_reflects_the_edge() -> None:
    row = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(tiling.pad(row, 1, 8), [[1, 2, 3, 3, 2, 1, 1, 2]])
    np.testing.assert_array_equal(tiling.pad(np.array([[7]]), 3, 3), np.full((3, 3), 7))
    assert tiling.pad(row, 1, 3) is row


def test_refusals() -> None:
    spec = TileSpec(8, 2, 1)
    plan = tiling.plan_tiles(8, 12, spec)
    first, second = plan
    window = np.zeros((8, 8, 3), np.float32)
    for windows, message in (
        ([(second, window)], r"got .*column=1, .* instead of Tile\(row=0, column=0"),
        ([(first, window), (first, window)], "got .*column=0, .* instead of .*column=1"),
        ([(first, window), (second, window[:, :7])], r"\(8, 7, 3\) does not fit"),
        ([(first, window)], "got nothing instead of .*column=1"),
    ):
        with pytest.raises(ValueError, match=message):
            list(tiling.blend(plan, windows))
    with pytest.raises(ValueError, match="multiple of 2"):
        tiling.plan_tiles(9, 9, spec).scaled(Fraction(1, 2))
    with pytest.raises(ValueError, match="0 x 5"):
        tiling.plan_tiles(5, 0, spec)
    with pytest.raises(ValueError, match="never advance"):
        tiling.plan_tiles(20, 20, TileSpec(8, 1, 8))
