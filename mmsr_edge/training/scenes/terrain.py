"""A height field, and its intersections with rays, by marching and bisection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsr_edge.training.scenes.shapes import unit
from mmsr_edge.training.scenes.textures import Material

Array = NDArray[Any]

STEPS = 72
"""Samples along a ray before bisection."""


@dataclass(frozen=True, eq=False)
class Terrain:
    """Land as heights on a square grid that repeats."""

    heights: Array
    """[n, n], metres."""
    cell: float
    """Metres between neighbouring heights."""
    material: Material
    """Material of flat ground."""
    steep: Material
    """Material of slopes."""
    reach: float
    """Distance in metres at which the land ends and the sky begins."""

    def height(self, x: Array, y: Array) -> Array:
        """Heights at points of the plane, bilinear; `x`, `y` and the result have the same shape."""
        n = len(self.heights)
        u, v = x / self.cell, y / self.cell
        i, j = np.floor(u), np.floor(v)
        fu, fv = u - i, v - j
        i0, j0 = i.astype(np.int64) % n, j.astype(np.int64) % n
        i1, j1 = (i0 + 1) % n, (j0 + 1) % n
        h = self.heights
        near = h[j0, i0] * (1 - fu) + h[j0, i1] * fu
        far = h[j1, i0] * (1 - fu) + h[j1, i1] * fu
        return near * (1 - fv) + far * fv

    def normal(self, x: Array, y: Array) -> Array:
        """Unit normals [n, 3] at points of the plane [n], by central differences over a cell."""
        e = self.cell / 2
        dx = (self.height(x + e, y) - self.height(x - e, y)) / (2 * e)
        dy = (self.height(x, y + e) - self.height(x, y - e)) / (2 * e)
        n = np.stack([-dx, -dy, np.ones_like(dx)], -1)
        return unit(n)

    def hit(self, origin: Array, direction: Array) -> Array:
        """t [R] at which rays from the point `origin` meet the land; inf if they do not."""
        start = self.cell / 8
        ts = np.geomspace(start, self.reach, STEPS).astype(np.float32)
        found = np.full(len(direction), np.inf, np.float32)
        low = np.zeros(len(direction), np.float32)
        open_rays = np.arange(len(direction))
        top = float(self.heights.max())
        for i, t in enumerate(ts):
            p = origin + t * direction[open_rays]
            below = p[:, 2] < self.height(p[:, 0], p[:, 1])
            found[open_rays[below]] = t
            low[open_rays[below]] = ts[i - 1] if i else 0
            leaves = (p[:, 2] > top) & (direction[open_rays, 2] >= 0)
            open_rays = open_rays[~(below | leaves)]
            if not len(open_rays):
                break
        (rays,) = np.isfinite(found).nonzero()
        near, far = low[rays], found[rays]
        for _ in range(7):
            middle = (near + far) / 2
            p = origin + middle[:, None] * direction[rays]
            below = p[:, 2] < self.height(p[:, 0], p[:, 1])
            near, far = np.where(below, near, middle), np.where(below, middle, far)
        found[rays] = (near + far) / 2
        return found
