"""Random materials by role, random cameras and random lights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsr_edge.training.scenes.render import Camera, Light
from mmsr_edge.training.scenes.textures import Material, Textures

Array = NDArray[Any]

ROLES: dict[str, tuple[tuple[str, ...], tuple[float, float]]] = {
    "wall": (("plain", "plain", "plain", "noise", "brick", "stripe", "photo"), (0.8, 3.0)),
    "floor": (
        ("plank", "plank", "check", "plain", "noise", "ground", "brick", "photo"),
        (0.5, 2.5),
    ),
    "ceiling": (("plain", "plain", "plain", "noise", "plank", "check"), (0.8, 3.0)),
    "wood": (("plank", "plain", "plain", "noise", "photo"), (0.3, 1.5)),
    "cloth": (("plain", "plain", "noise", "stripe", "check", "photo"), (0.2, 1.2)),
    "thing": (("plain", "plain", "noise", "stripe", "check", "photo", "photo"), (0.05, 0.8)),
    "facade": (("window", "window", "brick", "plain", "photo"), (4.0, 14.0)),
    "road": (("noise", "noise", "plain", "ground", "brick"), (1.0, 8.0)),
    "earth": (("ground", "ground", "noise", "leaves", "photo"), (1.0, 10.0)),
    "rock": (("noise", "ground", "photo", "photo"), (0.5, 6.0)),
    "leaves": (("leaves", "leaves", "noise", "ground"), (0.3, 3.0)),
    "bark": (("plank", "noise", "photo", "plain"), (0.2, 1.5)),
    "skin": (("plain", "noise"), (0.3, 1.0)),
    "books": (("books", "books", "photo"), (0.3, 0.9)),
}
"""Roles of materials: groups that the texture is drawn from, and the range of metres it spans."""


class Palette:
    """Draws materials, cameras and lights for one scene.

    Args:
        textures: the textures.
        rng: random numbers of the scene.
    """

    def __init__(self, textures: Textures, rng: np.random.Generator) -> None:
        self.textures, self.rng = textures, rng

    def material(self, role: str, gloss: float = 0.0) -> Material:
        """A random material for `role`, a key of `ROLES`; a quarter have a random gloss."""
        groups, (low, high) = ROLES[role]
        rng = self.rng
        tint = rng.uniform(0.5, 1.2) * rng.uniform(0.75, 1.25, 3)
        if role == "leaves":
            tint = tint * np.array([0.7, 1.0, 0.45])
        if role == "skin":
            tint = np.array([1.0, 0.7, 0.5]) * rng.uniform(0.4, 1.6)
        size = np.exp(rng.uniform(np.log(low), np.log(high)))
        if rng.random() < 0.25:
            gloss = float(rng.uniform(0, 0.6))
        return Material(
            self.textures.draw(rng, *groups),
            np.full(3, size, np.float32),
            tint.astype(np.float32),
            rng.random(2).astype(np.float32),
            gloss,
        )

    def picture(
        self, half: tuple[float, float, float], *groups: str, glow: float = 0.0
    ) -> Material:
        """A material with one copy of a texture on each face of a shape, for posters and screens.

        Args:
            half: half sizes of the shape.
            groups: groups of textures to draw from; `photo` if none are given.
            glow: share of the colour that needs no light.
        """
        rng = self.rng
        return Material(
            self.textures.draw(rng, *(groups or ("photo",))),
            2 * np.asarray(half, np.float32) + 1e-3,
            np.full(3, rng.uniform(0.5, 1.3), np.float32),
            np.full(2, 0.5, np.float32),
            float(rng.choice([0, 0.3])),
            glow,
        )

    def lamp(self, position: Array, reach: float, closed: bool = True) -> Light:
        """A lamp, indoors (`closed`) or under the sky; `reach` is the place's size in metres."""
        rng = self.rng
        warm = np.array([1.0, rng.uniform(0.7, 1.05), rng.uniform(0.45, 1.15)])
        base = rng.uniform(0.15, 0.9)
        grey = np.full(3, rng.uniform(0.02, 0.2))
        return Light(
            position=position.astype(np.float32),
            colour=(warm * rng.uniform(0.5, 2.5)).astype(np.float32),
            falloff=float(reach * rng.uniform(0.6, 2.5)),
            above=(base * rng.uniform(0.8, 1.2, 3)).astype(np.float32),
            below=(base * rng.uniform(0.3, 1.0) * rng.uniform(0.8, 1.2, 3)).astype(np.float32),
            occlusion=float(reach * rng.uniform(0.1, 0.4)),
            fog=0.0,
            haze=grey.astype(np.float32),
            zenith=grey.astype(np.float32),
            sky=-1 if closed else self.textures.draw(rng, "photo", "sky"),
        )

    def daylight(self, scale: float, haze_chance: float = 0.4) -> Light:
        """Sun and sky; `scale` is the distance in metres within which surfaces shade each other."""
        rng = self.rng
        azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 1.3)
        sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height),
                        np.sin(height)])  # fmt: skip
        strength = rng.choice([0.0, 1.0, 1.0, 2.0]) * rng.uniform(0.6, 1.4)
        low = 1 - min(height, 0.6) / 0.6  # a low sun is red
        blue = np.array([0.45, 0.65, 1.0])
        kind = rng.random()
        haze = np.array([0.75, 0.82, 0.9]) if kind < 0.6 else rng.uniform(0.4, 0.95, 3)
        zenith = blue * rng.uniform(0.3, 0.8) if kind < 0.7 else haze * rng.uniform(0.5, 1)
        base = rng.uniform(0.3, 0.9)
        return Light(
            position=(sun * 1e3).astype(np.float32),
            colour=(strength * np.array([1.0, 0.95 - 0.3 * low, 0.85 - 0.5 * low])).astype(
                np.float32
            ),
            falloff=0.0,
            above=(base * (0.5 + 0.5 * blue)).astype(np.float32),
            below=np.full(3, base * rng.uniform(0.2, 0.7), np.float32),
            occlusion=scale,
            fog=float(scale * np.exp(rng.uniform(2.5, 6))) if rng.random() < haze_chance else 0.0,
            haze=haze.astype(np.float32),
            zenith=zenith.astype(np.float32),
            sky=self.textures.draw(rng, "sky") if rng.random() < 0.4 else -1,
        )

    def camera(
        self,
        position: tuple[float, float, float] | Array,
        yaw: float,
        pitch: float,
        width: tuple[float, float] = (42, 85),
    ) -> Camera:
        """A camera with a random field of view, aspect ratio and slight roll.

        Args:
            position: [3], metres.
            yaw: radians; see `Camera`.
            pitch: radians above the horizon.
            width: range of the horizontal field of view in degrees.
        """
        rng = self.rng
        tangent = np.tan(np.radians(rng.uniform(*width)) / 2)
        aspect = rng.choice([4 / 3, 4 / 3, 3 / 2, 16 / 9, 1.0, 3 / 4, 2 / 3])
        if aspect < 1:
            tangent *= 0.75
        roll = np.radians(rng.normal(0, 2 if rng.random() < 0.8 else 12))
        return Camera(
            np.asarray(position, np.float32), yaw, pitch, float(roll), (tangent, tangent / aspect)
        )
