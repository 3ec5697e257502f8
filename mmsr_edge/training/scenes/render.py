"""Rendering of a scene to a picture and its depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mmsr_edge.training.scenes.shapes import Shapes, dot, local_normal, unit
from mmsr_edge.training.scenes.terrain import Terrain
from mmsr_edge.training.scenes.textures import Material, Textures

Array = NDArray[Any]

FAR = np.float32(1e5)
"""Distance in metres beyond which there is only sky."""


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera; its picture is squeezed to a square."""

    position: Array
    """[3], metres."""
    yaw: float
    """Radians from the x axis, anticlockwise from above."""
    pitch: float
    """Radians above the horizon."""
    roll: float
    """Radians about the optical axis."""
    tangents: tuple[float, float]
    """Tangents of half the horizontal and half the vertical field of view."""

    def axes(self) -> Array:
        """Unit vectors forward, right and up, the rows of [3, 3]."""
        (cy, sy), (cp, sp) = ((np.cos(a), np.sin(a)) for a in (self.yaw, self.pitch))
        forward = np.array([cy * cp, sy * cp, sp])
        right = np.array([sy, -cy, 0.0])
        up = np.cross(right, forward)
        c, s = np.cos(self.roll), np.sin(self.roll)
        return np.stack([forward, c * right + s * up, c * up - s * right]).astype(np.float32)

    def rays(self, side: int, jitter: np.random.Generator | None = None) -> tuple[Array, Array]:
        """Unit directions [side², 3] of the pixels' rays, and cosines to the optical axis [side²].

        Planar depth is the distance along a ray times its cosine. With `jitter`, rays go through
        random points of the pixels in place of the centres.
        """
        at = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
        x, y = np.meshgrid(at, -at)
        if jitter is not None:
            dx, dy = (jitter.random((2, side, side), np.float32) - 0.5) * 2 / side
            x, y = x + dx, y + dy
        forward, right, up = self.axes()
        u, v = x.reshape(-1, 1) * self.tangents[0], y.reshape(-1, 1) * self.tangents[1]
        d = forward + u * right + v * up
        cosine = 1 / np.sqrt(dot(d, d))
        return (d * cosine[:, None]).astype(np.float32), cosine.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Light:
    """Light of a scene: a lamp or the sun, ambient light, haze and sky."""

    position: Array
    """[3], metres, of the lamp or of the sun, a distant point."""
    colour: Array
    """[3], of the lamp or the sun, linear."""
    falloff: float
    """Distance in metres at which a lamp's light has halved; 0: the sun, without falloff."""
    above: Array
    """[3], ambient light from above, linear."""
    below: Array
    """[3], ambient light from below, linear."""
    occlusion: float
    """Distance in metres within which surfaces block ambient light."""
    fog: float
    """Distance in metres over which haze hides 63 %; 0: no haze."""
    haze: Array
    """[3], colour of the haze and of the sky at the horizon, linear."""
    zenith: Array
    """[3], colour of the sky at the zenith, linear."""
    sky: int
    """Index of the sky's texture; -1: none."""


@dataclass(eq=False)
class Scene:
    """A scene, with its camera and the settings of its development."""

    shapes: Shapes
    """The convex shapes."""
    terrain: Terrain | None
    """The land; None: there is none."""
    light: Light
    """The light."""
    camera: Camera
    """The camera."""
    focus: tuple[float, float] | None = None
    """Distance of focus in metres, and blur in pixels at infinity; None: everything is sharp."""
    gain: float = 1.0
    """Exposure: linear value of the picture's 92nd percentile."""
    balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """White balance: factors on R, G and B."""


@dataclass(frozen=True, eq=False)
class _Hits:
    """Hits of rays: arrays over the rays that hit something."""

    point: Array
    normal: Array
    local: Array  # metres, in the shape's own axes
    facing: Array  # normal in the shape's own axes
    material: NDArray[np.int64]


def cast(scene: Scene, direction: Array) -> tuple[Array, NDArray[np.int32]]:
    """Distance [R] along each ray from the camera, inf for the sky, and index [R] of the shape hit.

    Index -1 is the sky, -2 the land.
    """
    origin = scene.camera.position.astype(np.float32)
    limit = np.full(len(direction), FAR, np.float32)
    land = None
    if scene.terrain is not None:
        land = scene.terrain.hit(origin, direction)
        limit = np.minimum(limit, land)
    t, index = scene.shapes.hit(origin, direction, limit)
    if land is not None:
        index[(index < 0) & np.isfinite(land)] = -2
    return np.where(index == -1, np.inf, t), index


def _gather(scene: Scene, point: Array, index: NDArray[np.int32]) -> tuple[_Hits, list[Material]]:
    n = len(point)
    normal, local, facing = (np.zeros((n, 3), np.float32) for _ in range(3))
    material = np.zeros(n, np.int64)
    materials = [s.material for s in scene.shapes.items]
    for i in np.unique(index):
        at = index == i
        if i == -2:
            land = scene.terrain
            assert land is not None
            p = point[at]
            normal[at] = land.normal(p[:, 0], p[:, 1])
            local[at] = p
            facing[at] = np.array([0, 0, 1], np.float32)  # its texture is projected from above
            steep = normal[at][:, 2] < 0.8 + 0.05 * np.sin(p[:, 0] * 1.7)
            material[at] = len(materials) + steep
            continue
        shape = scene.shapes.items[i]
        p = (point[at] - shape.centre) @ (shape.rotation / shape.half)
        m = unit(local_normal(shape.kind, p) / shape.half)
        normal[at] = m @ shape.rotation.T
        local[at], facing[at], material[at] = p * shape.half, m, i
    if scene.terrain is not None:
        materials += [scene.terrain.material, scene.terrain.steep]
    return _Hits(point, normal, local, facing, material), materials


_PLANES = np.array([[1, 2], [0, 2], [0, 1]])
"""The two axes that a texture spans, for faces with a normal along x, y, z."""


def _albedo(
    textures: Textures, hits: _Hits, materials: list[Material], footprint: Array
) -> tuple[Array, Array, Array]:
    """Colour [n, 3], gloss [n] and glow [n] of the hits."""
    size = np.stack([m.size for m in materials])[hits.material]
    offset = np.stack([m.offset for m in materials])[hits.material]
    tint = np.stack([m.tint for m in materials])[hits.material]
    texture = np.array([m.texture for m in materials])[hits.material]
    gloss = np.array([m.gloss for m in materials], np.float32)[hits.material]
    glow = np.array([m.glow for m in materials], np.float32)[hits.material]
    axes = _PLANES[np.abs(hits.facing).argmax(-1)]
    q = np.take_along_axis(hits.local, axes, 1)
    s = np.take_along_axis(size, axes, 1)
    uv = q / s * np.array([1, -1], np.float32) + offset
    colour = textures.look_up(texture, uv, footprint / s.min(-1))
    return colour * tint, gloss, glow


def _shadow(scene: Scene, hits: _Hits) -> Array:
    """1 for hits that the light reaches, 0 in shadow, [n]; rays start at the light."""
    to = hits.point + 2e-3 * hits.normal - scene.light.position
    length = np.sqrt(dot(to, to))
    t, _ = scene.shapes.hit(scene.light.position, to / length[:, None], length)
    return (t >= length * (1 - 1e-5)).astype(np.float32)


def _openness(scene: Scene, point: Array, normal: Array, rng: np.random.Generator) -> Array:
    """Length of a random ray from each point, [n], relative to `occlusion`; 1 for no hit."""
    reach = scene.light.occlusion
    v = rng.standard_normal(point.shape, np.float32)
    v = unit(unit(v) + 1.02 * normal)  # cosine-distributed
    limit = np.full(len(v), reach, np.float32)
    t, _ = scene.shapes.hit(point + 0.01 * reach * normal, v, limit)
    return t / reach


def _sky(scene: Scene, textures: Textures, direction: Array) -> Array:
    if not len(direction):
        return np.zeros((0, 3), np.float32)
    up = np.clip(direction[:, 2:], 0, 1) ** 0.5
    colour = scene.light.haze * (1 - up) + scene.light.zenith * up
    if scene.light.sky >= 0:
        uv = np.stack([np.arctan2(direction[:, 1], direction[:, 0]), -2 * direction[:, 2]], -1)
        texture = np.full(len(uv), scene.light.sky)
        cloud = textures.look_up(texture, uv.astype(np.float32), np.full(len(uv), 1e-3))
        colour = colour * 0.3 + 0.7 * cloud * (colour.mean() / (cloud.mean() + 1e-3))
    return colour


def render(
    scene: Scene, textures: Textures, side: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Array]:
    """Render a scene.

    Returns:
        RGB [side, side, 3] and planar depth [side, side] in metres, inf for the sky.
    """
    direction, cosine = scene.camera.rays(side, rng)
    t, index = cast(scene, direction)
    (hit,) = (index != -1).nonzero()
    colour = np.empty((side * side, 3), np.float32)
    colour[index == -1] = _sky(scene, textures, direction[index == -1])
    light = scene.light
    if len(hit):
        point = scene.camera.position + t[hit, None].astype(np.float32) * direction[hit]
        hits, materials = _gather(scene, point, index[hit])
        slant = np.abs(dot(hits.normal, direction[hit]))
        footprint = t[hit] * 2 * scene.camera.tangents[0] / side / np.sqrt(slant + 0.05)
        albedo, gloss, glow = _albedo(textures, hits, materials, footprint)
        to = light.position - point
        distance = np.sqrt(dot(to, to))[:, None]
        to = to / distance
        lambert = np.clip(dot(hits.normal, to), 0, 1)[:, None]
        lit = _shadow(scene, hits)[:, None]
        fall = 1 / (1 + (distance / light.falloff) ** 2) if light.falloff else 1.0
        half = unit(to - direction[hit])
        shine = gloss[:, None] * np.clip(dot(hits.normal, half), 0, 1)[:, None] ** 30
        # One ray at every third pixel is noisy: average over neighbours.
        open_, weight = (np.zeros(side * side, np.float32) for _ in range(2))
        some = hit % 3 == (hit // side) % 3
        open_[hit[some]] = _openness(scene, point[some], hits.normal[some], rng)
        weight[hit[some]] = 1
        open_, weight = (
            gaussian_filter(a.reshape(side, side), side / 80).reshape(-1)[hit, None] + 1e-6
            for a in (open_, weight)
        )
        open_ = open_ / weight
        up = (hits.normal[:, 2:] + 1) / 2
        ambient = light.below * (1 - up) + light.above * up
        reflected = albedo * (ambient * open_ + light.colour * fall * lambert * lit)
        reflected = reflected + light.colour * fall * lit * shine
        colour[hit] = reflected * (1 - glow[:, None]) + albedo * glow[:, None]
    if light.fog:
        clear = np.exp(-np.minimum(t, FAR) / light.fog)[:, None]
        veiled = colour * clear + light.haze * (1 - clear)
        colour = np.where((index == -1)[:, None], colour, veiled)
    depth = (t * cosine).reshape(side, side)
    return _develop(scene, colour.reshape(side, side, 3), depth), depth


def _develop(scene: Scene, linear: Array, depth: Array) -> NDArray[np.uint8]:
    """Apply depth of field, exposure, white balance and gamma."""
    side = len(depth)
    if scene.focus is not None:
        sharp, most = scene.focus
        # Circle of confusion ∝ |1 − focus/z|.
        blur = most * np.abs(1 - sharp / np.maximum(depth, sharp / 8))
        stack = [linear] + [gaussian_filter(linear, (s, s, 0)) for s in (1.0, 2.0, 4.0, 8.0)]
        level = np.clip(np.log2(np.maximum(gaussian_filter(blur, 1.0), 0.25)) + 1, 0, 4)
        low = np.minimum(level.astype(int), 3)
        w = (level - low)[..., None]
        y, x = np.mgrid[:side, :side]
        levels = np.stack(stack)
        linear = levels[low, y, x] * (1 - w) + levels[low + 1, y, x] * w
    bright = float(np.percentile(linear.mean(-1), 92)) + 1e-3
    out = np.clip(linear * (scene.gain / bright) * np.array(scene.balance, np.float32), 0, None)
    out = out / (1 + 0.15 * out)  # a soft shoulder
    return (np.clip(out, 0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8)
