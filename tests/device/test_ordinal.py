"""Ordinal accuracy of maps whose accuracy is known."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def ordinal(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = pytest.importorskip("lib.ordinal")
    assert isinstance(module, ModuleType)
    return module


@pytest.fixture
def depth() -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 4, (24, 32))


def test_the_truth_is_right_and_its_opposite_wrong(ordinal: ModuleType, depth: np.ndarray) -> None:
    near, far = ordinal.draw_pairs(depth, 1.05, 5000)
    assert ordinal.ordinal_accuracy(1 / depth, near, far) == 1
    assert ordinal.ordinal_accuracy(np.exp(-7 * depth), near, far) == 1  # only the order counts
    assert ordinal.ordinal_accuracy(depth, near, far) == 0


def test_a_constant_map_is_at_chance_and_refused_without_ties(
    ordinal: ModuleType, depth: np.ndarray
) -> None:
    near, far = ordinal.draw_pairs(depth, 1.05, 1000)
    assert ordinal.ordinal_accuracy(np.full_like(depth, 0.3), near, far) == 0.5
    with pytest.raises(ValueError, match="same value"):
        ordinal.ordinal_accuracy(np.full_like(depth, 0.3), near, far, ties=None)


def test_a_random_map_is_at_chance(ordinal: ModuleType, depth: np.ndarray) -> None:
    near, far = ordinal.draw_pairs(depth, 1.05, 20_000)
    noise = np.random.default_rng(1).random(depth.shape)
    assert ordinal.ordinal_accuracy(noise, near, far) == pytest.approx(0.5, abs=0.05)


def test_hand_made_pairs(ordinal: ModuleType) -> None:
    nearness = np.array([[0.9, 0.5, 0.5, 0.1]])
    near, far = np.array([0, 1, 3]), np.array([1, 2, 0])  # right, a tie, wrong
    assert ordinal.ordinal_accuracy(nearness, near, far) == pytest.approx(1.5 / 3)
    assert ordinal.ordinal_accuracy(nearness, near, far, ties=None) == pytest.approx(1 / 2)


def test_pairs_are_known_and_differ_enough(ordinal: ModuleType, depth: np.ndarray) -> None:
    depth[:12] = 0
    near, far = ordinal.draw_pairs(depth, 1.5, 3000, seed=3)
    flat = depth.ravel()
    assert len(near) == len(far) == 3000
    assert (flat[near] > 0).all() and (flat[far] > 1.5 * flat[near]).all()
    again, _ = ordinal.draw_pairs(depth, 1.5, 3000, seed=3)
    assert (near == again).all()


@pytest.mark.parametrize("map_", [np.full((4, 4), 2.0), np.zeros((4, 4))])
def test_a_flat_or_unknown_frame_has_no_pairs(ordinal: ModuleType, map_: np.ndarray) -> None:
    with pytest.raises(ValueError, match="fewer than 10 pairs"):
        ordinal.draw_pairs(map_, 1.05, 10)


def test_lower_is_nearer_orders_rows(ordinal: ModuleType) -> None:
    rule = ordinal.lower_is_nearer(10, 6)
    ramp = np.repeat(np.linspace(5, 1, 10)[:, None], 6, axis=1)  # nearer towards the bottom
    near, far = ordinal.draw_pairs(ramp, 1.01, 2000)
    assert ordinal.ordinal_accuracy(rule, near, far) == 1
    near, far = ordinal.draw_pairs(ramp[::-1].copy(), 1.01, 2000)
    assert ordinal.ordinal_accuracy(rule, near, far) == 0
