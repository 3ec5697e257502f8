"""Textures: pieces of photographs and generated patterns, in an atlas with mip levels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from mmsr_edge.training.data.photos import find_photos

Array = NDArray[Any]

SIDE = 128
"""Side of a texture in pixels."""


@dataclass(frozen=True, eq=False)
class Material:
    """Surface of a shape: a texture and how it is laid and lit."""

    texture: int
    """Index of the texture in the atlas."""
    size: Array
    """[3], metres that one copy of the texture spans along each of the shape's axes."""
    tint: Array
    """[3], factors on the texture, in linear light."""
    offset: Array
    """[2], place of the shape's centre in the texture, in copies."""
    gloss: float = 0.0
    """Strength of the highlight."""
    glow: float = 0.0
    """Share of the colour that needs no light, in [0, 1]."""


def spectral_noise(rng: np.random.Generator, side: int, slope: float) -> Array:
    """Periodic noise [side, side], amplitude ∝ frequency^−slope, mean 0, standard deviation 1."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    f[0, 0] = np.inf
    phase = np.exp(2j * np.pi * rng.random((side, side)))
    field = np.fft.ifft2(f ** (-slope) * phase).real
    return ((field - field.mean()) / field.std()).astype(np.float32)


def _colour(rng: np.random.Generator) -> Array:
    """A random colour [3] in linear light, mostly greyish, sometimes strong."""
    grey = rng.uniform(0.05, 0.85)
    return np.clip(
        grey * rng.uniform(0.6, 1.3, 3) ** rng.choice([0.3, 1.0, 3.0], p=[0.5, 0.35, 0.15]), 0.01, 1
    )


def _pattern(rng: np.random.Generator, kind: str) -> Array:
    """A random pattern of a kind of `PATTERNS`, [SIDE, SIDE, 3] in linear light."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    a, b = _colour(rng), _colour(rng)
    if kind == "plain":
        mix = 0.5 + 0.05 * spectral_noise(rng, SIDE, rng.uniform(0.5, 2))
    elif kind == "noise":
        mix = 0.5 + rng.uniform(0.1, 0.4) * spectral_noise(rng, SIDE, rng.uniform(0.5, 2))
    elif kind == "check":
        n = int(rng.integers(1, 5)) * 2
        mix = ((x * n).astype(int) + (y * n).astype(int)) % 2 * 1.0
    elif kind == "stripe":
        n = int(rng.integers(2, 12))
        mix = 0.5 + 0.5 * np.clip(np.sin(2 * np.pi * n * x) * rng.uniform(1, 6), -1, 1)
    elif kind == "brick":
        rows, line = int(rng.integers(2, 8)) * 2, rng.uniform(0.04, 0.12)
        v = y * rows
        u = x * rows / 2 + 0.5 * (v.astype(int) % 2)
        joint = (v % 1 < line) | (u % 1 < line / 2)
        tone = rng.uniform(0.6, 1, (rows + 1, rows + 1))[v.astype(int), u.astype(int)]
        mix = np.where(joint, 0, tone)
    elif kind == "plank":
        rows = int(rng.integers(3, 9))
        v = y * rows
        tone = rng.uniform(0.4, 1, rows)[v.astype(int)]
        grain = gaussian_filter(rng.standard_normal((SIDE, SIDE)), (0.6, 12), mode="wrap")
        mix = np.where(v % 1 < 0.05, 0, tone + 1.5 * grain)
        brown = np.array([0.45, 0.24, 0.1]) * rng.uniform(0.3, 1.6)
        a, b = brown * 0.3, brown
    elif kind == "window":  # a façade: dark panes in a wall
        n = int(rng.integers(2, 5))
        u, v = (x * n) % 1, (y * n) % 1
        w, h = rng.uniform(0.15, 0.35, 2)
        mix = ((np.abs(u - 0.5) < 0.5 - w) & (np.abs(v - 0.5) < 0.5 - h)) * 1.0
        b = _colour(rng) * 0.3
        tone = rng.uniform(0.3, 1.3, (n, n))[(y * n).astype(int), (x * n).astype(int)]
        return np.where(mix[..., None] > 0, b * tone[..., None], a)
    else:  # "books": upright spines of many colours
        edges = np.sort(rng.random(int(rng.integers(8, 22))))
        which = np.searchsorted(edges, x)
        colours = np.stack([_colour(rng) for _ in range(len(edges) + 1)])
        top = rng.uniform(0.6, 1, len(edges) + 1)[which]
        return np.where((1 - y < top)[..., None], colours[which], 0.02)
    mix = np.clip(mix, 0, 1)[..., None]
    fine = 1 + rng.uniform(0, 0.08) * rng.standard_normal((SIDE, SIDE, 1))
    return np.clip((a + (b - a) * mix) * fine, 0, 1)


PATTERNS = ("plain", "noise", "check", "stripe", "brick", "plank", "window", "books")
"""Kinds of generated patterns."""


class Textures:
    """An atlas of textures in linear light.

    Args:
        photos: folder of photographs; None: patterns alone.
        seed: seed of the draw of pieces and patterns.
        pieces: number of pieces per photograph.
        patterns: number of patterns of each kind.
    """

    def __init__(
        self, photos: Path | None, seed: int = 0, pieces: int = 3, patterns: int = 16
    ) -> None:
        rng = np.random.default_rng(seed)
        found: list[Array] = []
        self.groups: dict[str, list[int]] = {}

        def keep(group: str, texture: Array) -> None:
            self.groups.setdefault(group, []).append(len(found))
            found.append(texture.astype(np.float32))

        for kind in PATTERNS:
            for _ in range(patterns):
                keep(kind, _pattern(rng, kind))
        if photos is not None:
            for path in find_photos(photos):
                with Image.open(path) as file:
                    file.draft("RGB", (700, 700))
                    image = file.convert("RGB")
                for _ in range(pieces):
                    group, texture = _piece(rng, image)
                    for name in {group, "photo"}:  # every piece can serve as a poster
                        self.groups.setdefault(name, []).append(len(found))
                    found.append(texture)
        levels = [np.stack(found)]
        while levels[-1].shape[1] > 1:
            t = levels[-1]
            levels.append(
                (t[:, ::2, ::2] + t[:, 1::2, ::2] + t[:, ::2, 1::2] + t[:, 1::2, 1::2]) / 4
            )
        self.levels = [level.astype(np.float16) for level in levels]

    def draw(self, rng: np.random.Generator, *groups: str) -> int:
        """Index of a random texture of one of `groups`; of `noise` if none of them has textures."""
        have = [g for g in groups if self.groups.get(g)] or ["noise"]
        return int(rng.choice(self.groups[have[int(rng.integers(len(have)))]]))

    def look_up(self, texture: NDArray[np.int64], uv: Array, footprint: Array) -> Array:
        """Colours [n, 3] of textures at points `uv`; every second copy is mirrored.

        Args:
            texture: [n], indices of the textures.
            uv: [n, 2], points, in copies of the texture.
            footprint: [n], share of a copy that a pixel covers; chooses the mip level.
        """
        fold = 1 - np.abs(1 - np.mod(uv, 2))
        level = np.clip(np.log2(np.maximum(footprint * SIDE, 1e-6)), 0, len(self.levels) - 1)
        level = np.round(level).astype(int)
        out = np.empty((len(uv), 3), np.float32)
        for i in np.unique(level):
            at = level == i
            atlas = self.levels[i]
            side = atlas.shape[1]
            p = np.clip(fold[at] * side - 0.5, 0, side - 1)
            low = p.astype(int)
            high = np.minimum(low + 1, side - 1)
            w = p - low
            k = texture[at]
            wu, wv = w[:, :1], w[:, 1:]
            top = atlas[k, low[:, 1], low[:, 0]] * (1 - wu) + atlas[k, low[:, 1], high[:, 0]] * wu
            low_row = (
                atlas[k, high[:, 1], low[:, 0]] * (1 - wu) + atlas[k, high[:, 1], high[:, 0]] * wu
            )
            out[at] = top * (1 - wv) + low_row * wv
        return out


def _piece(rng: np.random.Generator, image: Image.Image) -> tuple[str, Array]:
    """Group and texture of a random square piece of a photograph.

    The group depends on place and colour: `sky` for smooth, bluish or bright pieces at the top,
    `leaves` for green, detailed ones, `ground` for detailed ones at the bottom, otherwise `photo`.
    """
    w, h = image.size
    side = int(rng.uniform(0.12, 0.7) * min(w, h))
    left, top = int(rng.integers(w - side + 1)), int(rng.integers(h - side + 1))
    piece = image.crop((left, top, left + side, top + side))
    rgb = np.asarray(piece.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
    busy = float(np.abs(np.diff(rgb, axis=0)).mean() + np.abs(np.diff(rgb, axis=1)).mean())
    red, green, blue = rgb.mean((0, 1))
    group = "photo"
    if top + side < 0.55 * h and busy < 0.025 and (blue > red or rgb.mean() > 0.6):
        group = "sky"
    elif green > 1.05 * red and green > 1.1 * blue and busy > 0.05:
        group = "leaves"
    elif top > 0.5 * h and busy > 0.03:
        group = "ground"
    return group, rgb**2.2
