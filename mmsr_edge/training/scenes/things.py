"""Things that stand in scenes: furniture, people, trees, cars, clutter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmsr_edge.training.scenes.palette import Palette
from mmsr_edge.training.scenes.shapes import BOX, CYLINDER, ELLIPSOID, ROOF, Shapes, turn
from mmsr_edge.training.scenes.textures import Material

Point: TypeAlias = Sequence[float] | NDArray[Any]


class Things:
    """Adds things to a scene, each at a point of the floor and turned by a yaw in radians.

    Args:
        shapes: the scene's shapes, added to in place.
        palette: source of the materials and of the scene's random numbers.
    """

    def __init__(self, shapes: Shapes, palette: Palette) -> None:
        self.shapes, self.palette, self.rng = shapes, palette, palette.rng

    def part(
        self,
        kind: int,
        at: Point,
        yaw: float,
        offset: Point,
        half: Point,
        material: Material,
        tilt: float = 0.0,
        roll: float = 0.0,
    ) -> None:
        """Add a shape at `offset` in the axes of a thing at `at`, turned by `yaw`.

        Args:
            kind: kind of shape; see `shapes`.
            at: place of the thing, [3].
            yaw: radians about z.
            offset: centre of the shape in the axes of the thing, [3].
            half: half sizes of the shape, [3].
            material: its material.
            tilt: radians about the shape's y axis.
            roll: radians about its x axis.
        """
        centre = np.asarray(at, np.float32) + turn(yaw) @ np.asarray(offset, np.float32)
        x, y, z = half
        self.shapes.add(kind, centre, (x, y, z), material, turn(yaw, tilt, roll))

    def clutter(self, at: Point, spread: tuple[float, float], count: int, size: float) -> None:
        """Boxes, balls and bottles on a surface at `at`.

        Args:
            at: centre, [3].
            spread: half sizes of the area along x and y.
            count: number of things.
            size: their typical size in metres.
        """
        rng = self.rng
        for _ in range(count):
            s = size * rng.uniform(0.4, 1.3)
            half = s * rng.uniform(0.3, 1.0, 3)
            kind = int(rng.choice([BOX, BOX, ELLIPSOID, CYLINDER, CYLINDER]))
            if kind != BOX:
                half[1] = half[0]
            x, y = rng.uniform(-1, 1, 2) * spread
            material = self.palette.material("thing")
            if kind == BOX and rng.random() < 0.3:
                material = self.palette.picture((half[0], half[1], half[2]))
            tilt = rng.uniform(-0.5, 0.5) if rng.random() < 0.2 else 0.0
            offset = (x, y, half[2])
            self.part(kind, at, rng.uniform(0, 6.3), (0, 0, 0), half, material, tilt)
            self.shapes.items[-1].centre[:] = np.asarray(at) + np.asarray(offset)

    def table(self, at: Point, yaw: float) -> None:
        """A table: top, four legs, and things on it."""
        rng, m = self.rng, self.palette.material("wood")
        w, d, h = rng.uniform(0.3, 1.0), rng.uniform(0.25, 0.5), rng.uniform(0.35, 0.9)
        self.part(BOX, at, yaw, (0, 0, h), (w, d, 0.02), m)
        leg = rng.uniform(0.015, 0.04)
        kind = int(rng.choice([BOX, CYLINDER]))
        for sx in (-1, 1):
            for sy in (-1, 1):
                offset = (sx * (w - leg), sy * (d - leg), h / 2)
                self.part(kind, at, yaw, offset, (leg, leg, h / 2), m)
        top = (at[0], at[1], at[2] + h + 0.02)
        self.clutter(top, (w * 0.6, d * 0.6), int(rng.integers(0, 7)), 0.12)

    def chair(self, at: Point, yaw: float) -> None:
        """A chair: seat, back and legs."""
        rng, m = self.rng, self.palette.material("wood")
        w, h = rng.uniform(0.19, 0.26), rng.uniform(0.4, 0.5)
        self.part(BOX, at, yaw, (0, 0, h), (w, w, rng.uniform(0.02, 0.06)), m)
        self.part(BOX, at, yaw, (-w, 0, h + 0.28), (0.025, w, 0.26), m, tilt=-0.12)
        for sx in (-1, 1):
            for sy in (-1, 1):
                self.part(BOX, at, yaw, (sx * w * 0.9, sy * w * 0.9, h / 2), (0.02, 0.02, h / 2), m)

    def sofa(self, at: Point, yaw: float) -> None:
        """A sofa: seat, back, arms and cushions; or a bed, without back and arms."""
        rng, m = self.rng, self.palette.material("cloth")
        w, d, h = rng.uniform(0.4, 1.1), rng.uniform(0.38, 0.5), rng.uniform(0.18, 0.25)
        self.part(BOX, at, yaw, (0, 0, h), (d, w, h), m)
        if rng.random() < 0.8:
            self.part(BOX, at, yaw, (-d * 0.85, 0, 2 * h + 0.2), (0.12, w, 0.22), m, tilt=-0.1)
            for s in (-1, 1):
                self.part(BOX, at, yaw, (0, s * (w + 0.08), h + 0.1), (d, 0.08, h + 0.1), m)
        for _ in range(int(rng.integers(0, 4))):
            offset = (rng.uniform(-0.5, 0.2) * d, rng.uniform(-0.8, 0.8) * w, 2 * h + 0.14)
            half = (0.08, 0.2, 0.18)
            kind = int(rng.choice([BOX, ELLIPSOID]))
            self.part(kind, at, yaw, offset, half, self.palette.material("cloth"), tilt=-0.4)

    def shelf(self, at: Point, yaw: float) -> None:
        """A shelf: boards with rows of books and things; its back is towards -x."""
        rng, m = self.rng, self.palette.material("wood")
        w, d, h = rng.uniform(0.3, 0.9), rng.uniform(0.12, 0.22), rng.uniform(0.4, 1.1)
        self.part(BOX, at, yaw, (-d, 0, h), (0.01, w, h), m)
        for s in (-1, 1):
            self.part(BOX, at, yaw, (0, s * w, h), (d, 0.015, h), m)
        rows = int(rng.integers(2, 6))
        gap = 2 * h / rows
        for i in range(rows + 1):
            self.part(BOX, at, yaw, (0, 0, i * gap), (d, w, 0.012), m)
            if i == rows or rng.random() < 0.2:
                continue
            if rng.random() < 0.6:
                half = (d * rng.uniform(0.5, 0.9), w * rng.uniform(0.4, 0.95), gap * 0.36)
                books = self.palette.picture(half, "books", "books", "photo")
                self.part(BOX, at, yaw, (-d * 0.1, 0, i * gap + half[2]), half, books)
            else:
                base = np.asarray(at) + np.array([0, 0, i * gap + 0.012])
                self.clutter(base, (d * 0.4, d * 0.4), int(rng.integers(1, 3)), gap * 0.3)

    def cabinet(self, at: Point, yaw: float) -> None:
        """A cabinet: a box with thin plates as doors, and things on it."""
        rng, m = self.rng, self.palette.material("wood")
        w, d = rng.uniform(0.25, 0.9), rng.uniform(0.2, 0.35)
        h = rng.choice([rng.uniform(0.2, 0.5), rng.uniform(0.8, 1.1)])
        self.part(BOX, at, yaw, (0, 0, h), (d, w, h), m)
        doors = int(rng.integers(1, 4))
        front = m if rng.random() < 0.6 else self.palette.material("wood")
        for i in range(doors):
            y = (2 * (i + 0.5) / doors - 1) * w
            self.part(BOX, at, yaw, (d, y, h), (0.012, w / doors - 0.012, h * 0.93), front)
        top = (at[0], at[1], at[2] + 2 * h)
        if rng.random() < 0.3:  # a screen
            half = (0.02, w * 0.8, w * 0.45)
            screen = self.palette.picture(half, "photo", "plain", glow=float(rng.choice([0, 0.8])))
            self.part(BOX, at, yaw, (0, 0, 2 * h + half[2] + 0.05), half, screen)
        self.clutter(top, (d * 0.5, w * 0.5), int(rng.integers(0, 5)), 0.12)

    def floor_lamp(self, at: Point, yaw: float) -> None:
        """A floor lamp: a pole and a shade."""
        rng = self.rng
        h = rng.uniform(0.5, 0.9)
        self.part(CYLINDER, at, yaw, (0, 0, h), (0.015, 0.015, h), self.palette.material("thing"))
        shade = self.palette.picture((1, 1, 1), "plain", glow=float(rng.choice([0, 0.9])))
        self.part(CYLINDER, at, yaw, (0, 0, 2 * h), (0.18, 0.18, 0.13), shade)

    def plant(self, at: Point, yaw: float) -> None:
        """A plant: a pot and leaves."""
        rng, m = self.rng, self.palette.material("leaves")
        self.part(
            CYLINDER, at, yaw, (0, 0, 0.15), (0.14, 0.14, 0.15), self.palette.material("thing")
        )
        for _ in range(int(rng.integers(4, 12))):
            half = rng.uniform(0.03, 0.22, 3) * np.array([1, 0.4, 1])
            offset = rng.normal(0, 0.16, 3) + np.array([0, 0, rng.uniform(0.4, 1.1)])
            self.part(ELLIPSOID, at, rng.uniform(0, 6), offset, half, m, rng.uniform(-1, 1))

    def person(self, at: Point, yaw: float) -> None:
        """A standing person of random height: legs, trunk, arms and head."""
        rng, p = self.rng, self.palette
        s = rng.uniform(0.75, 1.1)
        skin, top, trousers = p.material("skin"), p.material("cloth"), p.material("cloth")
        for side in (-1, 1):
            sway = rng.normal(0, 0.15)
            leg = (sway * 0.3, side * 0.1 * s, 0.43 * s)
            self.part(CYLINDER, at, yaw, leg, (0.08 * s, 0.08 * s, 0.43 * s), trousers, tilt=sway)
            arm = (0.05, side * 0.26 * s, 1.12 * s)
            self.part(ELLIPSOID, at, yaw, arm, (0.06 * s, 0.07 * s, 0.32 * s), top,
                      tilt=rng.normal(0, 0.4), roll=side * 0.15)  # fmt: skip
        self.part(ELLIPSOID, at, yaw, (0, 0, 1.15 * s), (0.14 * s, 0.22 * s, 0.36 * s), top)
        self.part(CYLINDER, at, yaw, (0, 0, 1.48 * s), (0.05 * s, 0.05 * s, 0.07 * s), skin)
        self.part(ELLIPSOID, at, yaw, (0, 0, 1.64 * s), (0.1 * s, 0.085 * s, 0.13 * s), skin)
        hair = (-0.02 * s, 0, 1.69 * s)
        self.part(ELLIPSOID, at, yaw, hair, (0.1 * s, 0.1 * s, 0.11 * s), p.material("bark"))

    def tree(self, at: Point, yaw: float, height: float) -> None:
        """A tree of `height` metres: a trunk, and a crown of clumps or of a conifer's tiers."""
        rng = self.rng
        bark, leaves = self.palette.material("bark"), self.palette.material("leaves")
        r = height * rng.uniform(0.015, 0.04)
        self.part(CYLINDER, at, yaw, (0, 0, height * 0.3), (r, r, height * 0.32), bark)
        if rng.random() < 0.4:
            tiers = int(rng.integers(3, 6))
            for i in range(tiers):
                w = height * 0.2 * (1 - i / (tiers + 0.5))
                z = height * (0.3 + 0.65 * i / tiers)
                self.part(ELLIPSOID, at, yaw, (0, 0, z), (w, w, height * 0.16), leaves)
            return
        for _ in range(int(rng.integers(4, 10))):
            half = height * rng.uniform(0.07, 0.2, 3)
            offset = rng.normal(0, height * 0.13, 3) + np.array([0, 0, height * 0.72])
            self.part(ELLIPSOID, at, rng.uniform(0, 6), offset, half, leaves, rng.uniform(-1, 1))

    def car(self, at: Point, yaw: float) -> None:
        """A car: body, cabin and wheels."""
        rng, p = self.rng, self.palette
        paint, glass, tyre = p.material("skin", 0.5), p.material("skin", 0.6), p.material("thing")
        paint.tint[:] = rng.uniform(0.05, 1.2, 3)
        glass.tint[:], tyre.tint[:] = 0.08, 0.08
        length, high = rng.uniform(1.8, 2.6), rng.uniform(0.25, 0.5)
        self.part(BOX, at, yaw, (0, 0, 0.3 + high), (length, 0.85, high), paint)
        roof = rng.uniform(0.2, 0.5)
        cabin = (-0.2, 0, 0.3 + 2 * high + roof * 0.9)
        self.part(BOX, at, yaw, cabin, (length * 0.55, 0.75, roof), glass)
        lid = (-0.2, 0, 0.3 + 2 * high + 2 * roof)
        self.part(BOX, at, yaw, lid, (length * 0.5, 0.72, 0.05), paint)
        for sx in (-0.6, 0.6):
            for sy in (-0.8, 0.8):
                half = (0.32, 0.32, 0.1)
                self.part(CYLINDER, at, yaw, (sx * length, sy, 0.32), half, tyre, roll=np.pi / 2)

    def house(self, at: Point, yaw: float) -> None:
        """A house: walls and a roof."""
        rng, p = self.rng, self.palette
        w, d, h = rng.uniform(2, 8), rng.uniform(2, 6), rng.uniform(1.2, 5)
        self.part(BOX, at, yaw, (0, 0, h), (w, d, h), p.material("facade"))
        rise = rng.uniform(0.5, 2.0)
        half = (w * 1.05, d * 1.1, rise)
        self.part(ROOF, at, yaw, (0, 0, 2 * h + rise), half, p.material("rock"))

    def rock(self, at: Point, size: float) -> None:
        """A rock of about `size` metres: one to three overlapping bodies."""
        rng, m = self.rng, self.palette.material("rock")
        for _ in range(int(rng.integers(1, 4))):
            half = size * rng.uniform(0.4, 1.0, 3)
            offset = rng.normal(0, 0.4 * size, 3) * np.array([1, 1, 0.3])
            kind = int(rng.choice([ELLIPSOID, ELLIPSOID, BOX]))
            self.part(kind, at, rng.uniform(0, 6), offset, half, m, *rng.uniform(-0.6, 0.6, 2))
