"""Convex shapes, and their intersections with rays.

A shape is a unit shape (|x|, |y|, |z| ≤ 1) scaled by its half sizes, rotated and moved. Rays are
transformed into the frame of the unit shape, which does not change their parameter t.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsr_edge.training.scenes.textures import Material

Array = NDArray[Any]

BOX, ELLIPSOID, CYLINDER, ROOF = range(4)
"""Kinds of shape. A cylinder's axis is z; a roof is a prism with its ridge along x."""

ROOF_PLANES = np.array(
    [[1, 0, 0], [-1, 0, 0], [0, 0, -1], [0, 2, 1], [0, -2, 1]], np.float32
)  # n·p ≤ 1

EPSILON = 1e-4
"""Hits nearer than this along a ray do not count."""


def turn(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """Rotation matrix [3, 3]: roll about x, then pitch about y, then yaw about z, in radians."""
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, roll))
    z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return (z @ y @ x).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Shape:
    """One convex shape."""

    kind: int
    """`BOX`, `ELLIPSOID`, `CYLINDER` or `ROOF`."""
    centre: Array
    """[3], metres."""
    half: Array
    """[3], half sizes along its own axes, in metres."""
    rotation: Array
    """[3, 3], its axes in the columns."""
    material: Material
    """Material of its surface."""

    @property
    def radius(self) -> float:
        """Radius of the bounding sphere about the centre."""
        if self.kind == ELLIPSOID:
            return float(self.half.max())
        if self.kind == CYLINDER:
            return float(np.hypot(self.half[:2].max(), self.half[2]))
        return float(np.linalg.norm(self.half))


def dot(a: Array, b: Array) -> Array:
    """Dot products over the last axis; numpy's reductions are slow over three numbers."""
    return np.einsum("...i,...i->...", a, b)


def unit(a: Array) -> Array:
    """Vectors scaled to unit length, along the last axis."""
    return a / np.sqrt(dot(a, a) + 1e-20)[..., None]


def _roots(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Interval of t in which a·t² + 2b·t + c ≤ 0; (inf, -inf) if it is empty."""
    d = b * b - a * c
    ok = (d > 0) & (a > 1e-12)
    safe = np.where(ok, a, 1)
    root = np.sqrt(np.where(ok, d, 0))
    inside = (a <= 1e-12) & (c <= 0)  # parallel to a cylinder's axis, and inside
    far = np.float32(np.inf)
    t0 = np.where(ok, (-b - root) / safe, np.where(inside, -far, far))
    t1 = np.where(ok, (-b + root) / safe, np.where(inside, far, -far))
    return t0, t1


def _slabs(o: Array, d: Array) -> tuple[Array, Array]:
    """Interval of t in which every coordinate of `o + t·d` is in [-1, 1]."""
    inverse = 1 / np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
    low, high = (-1 - o) * inverse, (1 - o) * inverse
    enters, leaves = np.minimum(low, high), np.maximum(low, high)
    t0, t1 = enters[..., 0], leaves[..., 0]
    for i in range(1, o.shape[-1]):
        t0, t1 = np.maximum(t0, enters[..., i]), np.minimum(t1, leaves[..., i])
    return t0, t1


def enter(shape: Shape, origin: Array, direction: Array) -> Array:
    """t [R] at which rays enter `shape`; inf if they miss it or start inside."""
    to_local = shape.rotation / shape.half  # p' = Rᵀ(p − c) / half, as a row times this matrix
    o = (origin - shape.centre) @ to_local
    d = direction @ to_local
    if shape.kind == BOX:
        t0, t1 = _slabs(o, d)
    elif shape.kind == ELLIPSOID:
        t0, t1 = _roots(dot(d, d), dot(o, d), dot(o, o) - 1)
    elif shape.kind == CYLINDER:
        ox, dx = o[..., :2], d[..., :2]
        a, b = _roots(dot(dx, dx), dot(ox, dx), dot(ox, ox) - 1)
        s, e = _slabs(o[..., 2:], d[..., 2:])
        t0, t1 = np.maximum(a, s), np.minimum(b, e)
    else:
        speed = d @ ROOF_PLANES.T
        t = (1 - o @ ROOF_PLANES.T) / np.where(np.abs(speed) < 1e-9, np.float32(1e-9), speed)
        t0 = np.where(speed < 0, t, -np.inf).max(-1)
        t1 = np.where(speed > 0, t, np.inf).min(-1)
    return np.where((t0 < t1) & (t0 > EPSILON), t0, np.inf).astype(np.float32)


def local_normal(kind: int, p: Array) -> Array:
    """Outward normals [n, 3] of a unit shape at surface points `p` [n, 3], not normalized."""
    if kind == ELLIPSOID:
        return p
    if kind == ROOF:
        return ROOF_PLANES[(p @ ROOF_PLANES.T).argmax(-1)]
    n = np.zeros_like(p)
    if kind == CYLINDER:
        n[:, :2] = p[:, :2]
        cap = np.abs(p[:, 2]) > np.hypot(p[:, 0], p[:, 1])
        n[cap] = np.array([0, 0, 1], np.float32) * np.sign(p[cap, 2:])
        return n
    axis = np.abs(p).argmax(-1)
    rows = np.arange(len(p))
    n[rows, axis] = np.sign(p[rows, axis])
    return n


@dataclass(eq=False)
class Shapes:
    """The shapes of a scene."""

    items: list[Shape] = field(default_factory=list)
    """The shapes, in any order."""

    def add(
        self,
        kind: int,
        centre: tuple[float, float, float] | Array,
        half: tuple[float, float, float],
        material: Material,
        rotation: Array | None = None,
    ) -> None:
        """Add a shape; `half` are its half sizes along its own axes, at least 1e-4 m."""
        self.items.append(
            Shape(
                kind,
                np.asarray(centre, np.float32),
                np.maximum(np.asarray(half, np.float32), 1e-4),
                np.eye(3, dtype=np.float32) if rotation is None else rotation,
                material,
            )
        )

    def hit(self, origin: Array, direction: Array, limit: Array) -> tuple[Array, NDArray[np.int32]]:
        """Find the first shape that each ray enters.

        Args:
            origin: [3], common to all rays, or [R, 3].
            direction: [R, 3], of unit length.
            limit: [R], the largest t.

        Returns:
            t [R], `limit` for no hit, and index of the shape [R], -1 for no hit.
        """
        best = limit.astype(np.float32).copy()
        index = np.full(len(direction), -1, np.int32)
        common = origin.ndim == 1
        for i, shape in enumerate(self.items):
            # Most rays miss the bounding sphere: leave them out first.
            to = shape.centre - origin
            along = direction @ to if common else dot(direction, to)
            square = float(to @ to) if common else dot(to, to)
            r = shape.radius
            near = (square - along * along < r * r) & (along > -r) & (along - r < best)
            (rays,) = near.nonzero()
            if not len(rays):
                continue
            t = enter(shape, origin if common else origin[rays], direction[rays])
            nearer = t < best[rays]
            rays = rays[nearer]
            best[rays], index[rays] = t[nearer], i
        return best, index
