"""Regions: the parts of a picture that a dial moves, and the measure of what it does to them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import laplace

from mmsr_edge.modalities.segmentation import PALETTE, SUBJECT
from mmsr_edge.training.regions import (
    REGIONS,
    TEMPERATURES,
    Mask,
    laplacian_energy,
    mean_effect,
    measure_dial,
    split,
    widened,
)

SIZE = (64, 48)
"""(width, height) of the pictures."""


def halves() -> tuple[Mask, Mask]:
    moved = np.zeros(SIZE[::-1], bool)
    moved[:, :32] = True
    return moved, ~moved


def textured(left: float, right: float, seed: int = 0) -> NDArray[np.uint8]:
    """Noise around grey, of one amplitude in the left half and another in the right."""
    noise = np.random.default_rng(seed).uniform(-1, 1, (48, 64, 1)) * np.ones(3)
    noise[:, :32] *= left
    noise[:, 32:] *= right
    return (128 + noise).round().astype(np.uint8)


def test_far_is_beyond_the_median_depth() -> None:
    depth = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (24, 1))
    regions = split("depth", depth, SIZE)
    assert regions is not None
    far, near = regions
    assert far[:, :30].all() and near[:, 34:].all() and (far ^ near).all()
    # Most of a picture may be equally far: the sky belongs to the far half as a whole.
    sky = np.where(np.arange(32) < 20, 0, np.arange(32)).astype(np.float32) * np.ones((24, 1))
    regions = split("depth", sky, SIZE)
    assert regions is not None and regions[0].mean() == pytest.approx(20 / 32, abs=0.03)
    assert split("depth", np.full((24, 32), 7.0), SIZE) is None
    # Of a part of a picture, what is far in the picture is far.
    regions = split("depth", depth, SIZE, middle=0.75 * 255)
    assert regions is not None and regions[0].mean() == pytest.approx(0.75, abs=0.03)
    assert split("depth", depth / 4, SIZE, middle=127.5) is None


def test_the_subject_is_where_it_is_marked() -> None:
    classes = np.full((24, 32), 5)
    classes[:, 8:16] = 3
    assert split("segmentation", PALETTE[classes], SIZE) is None  # no subject in this part
    classes[:, 8:16] += SUBJECT
    regions = split("segmentation", PALETTE[classes], SIZE)
    assert regions is not None
    rest, subject = regions
    assert subject[:, 16:32].all() and subject.mean() == 0.25 and (rest ^ subject).all()


def test_edges_reach_two_pixels() -> None:
    edges = np.zeros((48, 64), bool)
    edges[[10, 30], 5:60] = True
    regions = split("edges", edges, SIZE)
    assert regions is not None
    _, near = regions
    assert near[8:13, 3:62].all() and near.sum() == 2 * 5 * 59
    assert split("edges", np.zeros((48, 64), bool), SIZE) is None
    assert np.array_equal(widened(edges, 1)[:, 30], np.isin(np.arange(48), (9, 10, 11, 29, 30, 31)))


def test_energy_is_that_of_scipys_laplacian() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    luma = picture.astype(float) @ [0.299, 0.587, 0.114]
    expected = laplace(luma, mode="nearest") ** 2
    np.testing.assert_allclose(laplacian_energy(picture), expected, rtol=1e-9, atol=1e-6)


def test_a_dial_that_moves_its_half_alone() -> None:
    pictures = [textured(a, 40) for a in (10, 20, 30, 40, 50)]
    effect = measure_dial("depth", TEMPERATURES, pictures, halves())
    assert effect.moved == pytest.approx(1 - (10 / 50) ** 2, abs=0.05)
    assert effect.spilt < 0.05 and effect.backward == 0
    assert effect.levels == pytest.approx(40 / 2, abs=2)  # mean |u| of uniform noise is 1/2
    assert set(REGIONS) == {"depth", "segmentation", "edges"}


@pytest.mark.parametrize(
    ("amplitudes", "backward"),
    [((10, 20, 30, 40, 50), 0), ((50, 40, 30, 20, 10), 0), ((10, 30, 20, 40, 50), 1),
     ((10, 20, 20, 20, 50), 2), ((20, 20, 20, 20, 20), 4)],
)  # fmt: skip
def test_every_step_must_go_the_same_way(amplitudes: tuple[float, ...], backward: int) -> None:
    pictures = [textured(a, 40) for a in amplitudes]
    assert measure_dial("depth", TEMPERATURES, pictures, halves()).backward == backward


def test_a_dial_that_moves_everything_spills() -> None:
    pictures = [textured(a, a) for a in (10, 20, 30, 40, 50)]
    effect = measure_dial("depth", TEMPERATURES, pictures, halves())
    assert effect.spilt > 10


def test_the_mean_of_effects_is_that_of_their_numbers() -> None:
    first = [textured(a, 40) for a in (10, 20, 30, 40, 50)]
    second = [textured(30, 40)] * 5
    effects = [measure_dial("depth", TEMPERATURES, p, halves()) for p in (first, second)]
    mean = mean_effect(effects)
    assert mean.energy[0][4] == pytest.approx(
        (effects[0].energy[0][4] + effects[1].energy[0][4]) / 2
    )
    assert mean.levels == pytest.approx(effects[0].levels / 2)
