"""Ordinal accuracy: share of point pairs that a depth map orders correctly by depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float64]


def draw_pairs(
    depth: Map, ratio: float, count: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw random pairs of pixels with known depths that differ by more than `ratio`.

    Args:
        depth: depth [H, W] in any unit; 0 where unknown.
        ratio: least ratio of the larger to the smaller depth of a pair.
        count: number of pairs.
        seed: seed of the draw.

    Returns:
        Flat indices of the nearer and of the farther pixels, [count] each.

    Raises:
        ValueError: too few such pairs are found.
    """
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(depth > 0)
    flat = depth.ravel()
    near: list[NDArray[np.int64]] = []
    far: list[NDArray[np.int64]] = []
    for _ in range(1000 if known.size else 0):
        a, b = rng.choice(known, (2, count))
        a, b = np.where(flat[a] <= flat[b], a, b), np.where(flat[a] <= flat[b], b, a)
        clear = flat[b] > ratio * flat[a]
        near.append(a[clear])
        far.append(b[clear])
        if sum(map(len, near)) >= count:
            return np.concatenate(near)[:count], np.concatenate(far)[:count]
    raise ValueError(f"fewer than {count} pairs of points differ in depth by a factor of {ratio}")


def ordinal_accuracy(
    nearness: Map, near: NDArray[np.int64], far: NDArray[np.int64], ties: float | None = 0.5
) -> float:
    """Share of pairs that `nearness` orders correctly, in [0, 1].

    Args:
        nearness: map [H, W]; larger is nearer.
        near: flat indices of the nearer pixels.
        far: flat indices of the farther pixels.
        ties: score of a pair with equal values; 0.5 gives a constant map 0.5. None: such pairs are
            left out.

    Raises:
        ValueError: all pairs are ties, and ties are left out.
    """
    flat = nearness.ravel()
    difference = flat[near] - flat[far]
    if ties is None:
        difference = difference[difference != 0]
        if not len(difference):
            raise ValueError("the map has the same value at both points of every pair")
        return float((difference > 0).mean())
    return float(((difference > 0) + ties * (difference == 0)).mean())


def lower_is_nearer(height: int, width: int) -> Map:
    """Baseline map [height, width]: each row is nearer than the row above."""
    return np.repeat(np.arange(height, dtype=np.float64)[:, None], width, axis=1)
