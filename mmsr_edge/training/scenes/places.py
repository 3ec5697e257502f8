"""Places: rooms, streets, land, heaps of things, portraits. Each function draws a whole scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsr_edge.training.scenes.palette import Palette
from mmsr_edge.training.scenes.render import Camera, Light, Scene
from mmsr_edge.training.scenes.shapes import BOX, CYLINDER, ELLIPSOID, Shapes
from mmsr_edge.training.scenes.terrain import Terrain
from mmsr_edge.training.scenes.textures import Textures, spectral_noise
from mmsr_edge.training.scenes.things import Things

Array = NDArray[Any]
Rng = np.random.Generator


def _finish(
    rng: Rng, shapes: Shapes, terrain: Terrain | None, light: Light, camera: Camera, blur: float
) -> Scene:
    """The scene, with random exposure and white balance and, with chance `blur`, depth of field."""
    focus = None
    if rng.random() < blur:
        focus = (float(np.exp(rng.uniform(np.log(0.3), np.log(4)))), float(rng.uniform(2, 9)))
    balance = tuple(float(b) for b in rng.uniform(0.85, 1.15, 3))
    gain = float(np.exp(rng.normal(-0.1, 0.35)))
    return Scene(shapes, terrain, light, camera, focus, gain, (balance[0], balance[1], balance[2]))


def _tilt(rng: Rng, mean: float, spread: float) -> float:
    """A random pitch in radians: mostly near `mean` degrees, sometimes far up or down."""
    if rng.random() < 0.15:
        return float(np.radians(rng.uniform(-75, 50)))
    return float(np.radians(rng.normal(mean, spread)))


def _walls(shapes: Shapes, palette: Palette, w: float, d: float, h: float) -> None:
    """Add floor, ceiling and four walls around [-w, w] × [-d, d] × [0, h]."""
    t = 0.1
    shapes.add(BOX, (0, 0, -t), (w + t, d + t, t), palette.material("floor"))
    shapes.add(BOX, (0, 0, h + t), (w + t, d + t, t), palette.material("ceiling"))
    wall = palette.material("wall")
    for axis in (0, 1):
        for sign in (-1, 1):
            if palette.rng.random() < 0.25:
                wall = palette.material("wall")
            centre, half = np.array([0, 0, h / 2]), np.array([w, d, h / 2 + t])
            centre[axis], half[axis] = sign * ((w, d)[axis] + t), t
            shapes.add(BOX, centre.astype(np.float32), (half[0], half[1], half[2]), wall)


def room(textures: Textures, rng: Rng) -> Scene:
    """A furnished room, or a hall with pillars, seen from inside."""
    palette, shapes = Palette(textures, rng), Shapes()
    things = Things(shapes, palette)
    hall = rng.random() < 0.15
    w, d = rng.uniform(4, 12, 2) if hall else rng.uniform(1.2, 3.6, 2)
    h = float(rng.uniform(3, 8) if hall else rng.uniform(2.2, 3.1))
    _walls(shapes, palette, w, d, h)
    for _ in range(int(rng.integers(0, 9))):  # doors, windows, pictures, skirting on the walls
        axis, sign = int(rng.integers(2)), int(rng.choice([-1, 1]))
        along = (d, w)[axis]
        half = np.array([0.02, rng.uniform(0.15, 0.9), rng.uniform(0.15, 0.7)])
        z = rng.uniform(1.1, max(h - 0.7, 1.2))
        if rng.random() < 0.25:
            half, z = np.array([0.03, 0.45, 1.0]), 1.0
        if axis == 1:
            half[[0, 1]] = half[[1, 0]]
        centre = np.array([0.0, 0.0, z])
        centre[axis], centre[1 - axis] = sign * (w, d)[axis], rng.uniform(-0.8, 0.8) * along
        glow = 0.9 if rng.random() < 0.25 else 0.0
        size = (float(half[0]), float(half[1]), float(half[2]))
        picture = palette.picture(size, "photo", "photo", "plain", "sky", glow=glow)
        shapes.add(BOX, centre.astype(np.float32), size, picture)
    if hall:
        pillar = palette.material("wall")
        for x in np.arange(-w + 2, w, rng.uniform(2.5, 5)):
            for y in (-d * 0.5, d * 0.5):
                shapes.add(CYLINDER, (x, y, h / 2), (0.25, 0.25, h / 2), pillar)
    standing: list[Callable[..., None]] = [
        things.table, things.chair, things.sofa, things.shelf, things.cabinet, things.cabinet,
        things.floor_lamp, things.plant, things.shelf,
    ]  # fmt: skip
    stands: list[Array] = []
    for _ in range(int(rng.integers(3, 13))):
        thing = standing[int(rng.integers(len(standing)))]
        if rng.random() < 0.65:  # against a wall, facing the room
            axis, sign = int(rng.integers(2)), int(rng.choice([-1, 1]))
            at = np.array([rng.uniform(-0.9, 0.9) * w, rng.uniform(-0.9, 0.9) * d, 0])
            at[axis] = sign * ((w, d)[axis] - rng.uniform(0.25, 0.45))
            yaw = (np.pi if sign > 0 else 0.0) + axis * np.pi / 2
        else:
            at = np.array([rng.uniform(-0.7, 0.7) * w, rng.uniform(-0.7, 0.7) * d, 0])
            yaw = float(rng.uniform(0, 2 * np.pi))
        thing(at, yaw)
        stands.append(at)
    if rng.random() < 0.25:
        for _ in range(int(rng.integers(1, 4))):
            place = (rng.uniform(-0.8, 0.8) * w, rng.uniform(-0.8, 0.8) * d, 0.0)
            things.person(place, rng.uniform(0, 6.3))
    if rng.random() < 0.5:  # a rug
        rug = (rng.uniform(0.5, 1.3), rng.uniform(0.4, 1.0), 0.006)
        shapes.add(BOX, (rng.uniform(-0.3, 0.3) * w, 0, 0), rug, palette.material("cloth"))
    if rng.random() < 0.6:
        x, y = rng.uniform(-0.5, 0.5, 2) * (w, d)
        shade = palette.picture((1, 1, 1), "plain", glow=0.9)
        shapes.add(ELLIPSOID, (x, y, h - 0.3), (0.15, 0.15, 0.1), shade)
    eye = np.array([*(rng.uniform(-0.85, 0.85, 2) * (w, d)), rng.uniform(0.5, min(h - 0.3, 2.1))])
    # Photographs mostly show a room along its longer side, or a piece of furniture from near by.
    target = np.array([*(-eye[:2] * rng.uniform(0.2, 1.2) + rng.normal(0, 0.4, 2)), 0.0])
    pitch, width = _tilt(rng, -12, 13), (45.0, 85.0)
    if rng.random() < 0.4:
        target = stands[int(rng.integers(len(stands)))] + np.array([0, 0, rng.uniform(0.2, 0.9)])
        inwards = -target[:2] + rng.normal(0, 0.7, 2) * (w, d)
        inwards = inwards / (np.linalg.norm(inwards) + 1e-3) * rng.uniform(0.8, 2.6)
        eye[:2] = np.clip(target[:2] + inwards, (-0.92 * w, -0.92 * d), (0.92 * w, 0.92 * d))
        gap = float(np.linalg.norm(target[:2] - eye[:2])) + 0.1
        pitch = float(np.arctan2(target[2] - eye[2], gap) + rng.normal(0, 0.12))
        width = (45.0, 70.0)
    yaw = np.arctan2(*(target - eye)[1::-1]) + rng.normal(0, 0.25)
    camera = palette.camera(eye, float(yaw), pitch, width)
    lamp = np.array([*(rng.uniform(-0.6, 0.6, 2) * (w, d)), h - 0.15])
    return _finish(rng, shapes, None, palette.lamp(lamp, max(w, h)), camera, 0.1)


def street(textures: Textures, rng: Rng) -> Scene:
    """A street along x: road, pavements, houses on both sides or one, cars, people, trees."""
    palette, shapes = Palette(textures, rng), Shapes()
    things = Things(shapes, palette)
    road, footway = rng.uniform(2.5, 8), rng.uniform(1, 5)
    shapes.add(BOX, (0, 0, -1), (400, 400, 1), palette.material("road"))
    pavement = palette.material("road")
    for side in (-1, 1):
        shapes.add(BOX, (0, side * (road + footway), 0), (300, footway, 0.14), pavement)
        if rng.random() < 0.15:
            continue
        x = -20.0
        while x < 150:
            width, depth = rng.uniform(3, 12), rng.uniform(4, 10)
            height = rng.uniform(2, 6) if rng.random() < 0.5 else rng.uniform(5, 22)
            y = side * (road + 2 * footway + depth + rng.uniform(0, 2))
            facade = palette.material("facade")
            if rng.random() < 0.85:
                shapes.add(BOX, (x + width, y, height), (width, depth, height), facade)
                for _ in range(int(rng.integers(0, 4))):  # balconies, signs, awnings
                    offset = (x + width * rng.uniform(0.2, 1.8), y - side * (depth + 0.3),
                              rng.uniform(2, 2 * height))  # fmt: skip
                    half = (rng.uniform(0.3, 2), rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.6))
                    shapes.add(BOX, offset, half, palette.material("thing"))
            x += 2 * width + (rng.uniform(0, 8) if rng.random() < 0.4 else 0)
    for _ in range(int(rng.integers(0, 9))):
        lane = rng.choice([-1, 1]) * (road - 1.2 if rng.random() < 0.7 else road * 0.4)
        things.car((rng.uniform(3, 60), lane, 0), rng.choice([0, np.pi]) + rng.normal(0, 0.05))
    for _ in range(int(rng.integers(0, 9))):
        at = (rng.uniform(2, 30), rng.uniform(-1, 1) * (road + 2 * footway), 0.07)
        things.person(at, rng.uniform(0, 6.3))
    if rng.random() < 0.6:
        step, side = rng.uniform(6, 18), int(rng.choice([-1, 1]))
        metal, tall = palette.material("thing"), rng.uniform(2, 4)
        for x in np.arange(rng.uniform(2, 8), 90, step):
            if rng.random() < 0.5:
                things.tree((x, side * (road + footway), 0), 0.0, rng.uniform(3, 10))
            else:
                shapes.add(CYLINDER, (x, side * (road + 0.5), tall), (0.07, 0.07, tall), metal)
    high = rng.random() < 0.2
    z = float(rng.uniform(5, 25) if high else rng.uniform(0.8, 2.4))
    eye = (-rng.uniform(0, 4), rng.uniform(-0.9, 0.9) * (road + 1.5 * footway), z)
    yaw = float(rng.normal(0, 0.35) if rng.random() < 0.75 else rng.uniform(-1.4, 1.4))
    camera = palette.camera(eye, yaw, _tilt(rng, -18 if high else 2, 8))
    return _finish(rng, shapes, None, palette.daylight(3.0), camera, 0.1)


def land(textures: Textures, rng: Rng) -> Scene:
    """Hills or mountains, trees, rocks, houses, sometimes water, and a hazy distance."""
    palette, shapes = Palette(textures, rng), Shapes()
    things = Things(shapes, palette)
    cell = float(np.exp(rng.uniform(np.log(0.4), np.log(12))))
    relief = cell * np.exp(rng.uniform(np.log(0.4), np.log(14)))
    heights = spectral_noise(rng, 256, rng.uniform(1.4, 2.2)) * relief
    if rng.random() < 0.4:
        heights = -np.abs(heights)  # ridges
    terrain = Terrain(
        heights.astype(np.float32), cell, palette.material("earth"), palette.material("rock"),
        cell * rng.uniform(100, 400),
    )  # fmt: skip
    eye = np.array([*rng.uniform(0, 256 * cell, 2), 0.0])
    above = rng.uniform(1.2, 3) if rng.random() < 0.6 else relief * rng.uniform(0.5, 3) + 2
    ground = float(terrain.height(eye[:1], eye[1:2])[0])
    yaw = float(rng.uniform(0, 2 * np.pi))
    water = None
    if rng.random() < 0.3:
        water = float(np.quantile(heights, rng.uniform(0.1, 0.6)))
        sea = palette.material("road", 0.8)
        sea.tint[:] = np.array([0.25, 0.4, 0.5]) * rng.uniform(0.4, 1.5)
        shapes.add(BOX, (eye[0], eye[1], water - 1), (terrain.reach, terrain.reach, 1), sea)
    eye[2] = max(ground, -np.inf if water is None else water) + above

    def ahead(near: float, far: float) -> Array:
        """A random point of the ground in front of the camera, `near` to `far` metres away."""
        r = np.exp(rng.uniform(np.log(near), np.log(far)))
        a = yaw + rng.normal(0, 0.45)
        p = eye[:2] + r * np.array([np.cos(a), np.sin(a)])
        z = float(terrain.height(p[:1], p[1:])[0])
        return np.array([p[0], p[1], z if water is None else max(z, water - 0.5)], np.float32)

    reach = min(terrain.reach * 0.5, 250)
    for _ in range(int(rng.choice([0, 4, 12, 25]))):
        things.tree(ahead(4, reach), 0.0, rng.uniform(2, 9))
    for _ in range(int(rng.choice([0, 0, 5, 15]))):
        things.rock(ahead(2, reach * 0.5), rng.uniform(0.15, 2))
    for _ in range(int(rng.choice([0, 0, 1, 4]))):
        things.house(ahead(15, reach), rng.uniform(0, 6))
    for _ in range(int(rng.choice([0, 0, 1, 3]))):
        things.person(ahead(2, 20), rng.uniform(0, 6))
    camera = palette.camera(eye, yaw, _tilt(rng, -6, 8))
    light = palette.daylight(2.0, haze_chance=0.7)
    return _finish(rng, shapes, terrain, light, camera, 0.15)


def heap(textures: Textures, rng: Rng) -> Scene:
    """Things on a table or on the ground, close up, with walls or an open distance behind them."""
    palette, shapes = Palette(textures, rng), Shapes()
    things = Things(shapes, palette)
    scale = float(np.exp(rng.uniform(np.log(0.05), np.log(0.6))))
    role = str(rng.choice(["wood", "floor", "earth", "cloth"]))
    closed = rng.random() < 0.6
    wide = (6 if rng.random() < 0.5 else 200) * scale
    shapes.add(BOX, (0, 0, -scale), (wide, wide, scale), palette.material(role))
    if closed:
        r, h = scale * rng.uniform(4, 25), scale * rng.uniform(4, 15)
        shapes.add(BOX, (r, 0, h - 2 * scale), (scale, 3 * r, h), palette.material("wall"))
        shapes.add(BOX, (0, r * rng.choice([-1, 1]), h - 2 * scale), (3 * r, scale, h),
                   palette.material("wall"))  # fmt: skip
        if rng.random() < 0.4:
            shapes.add(BOX, (0, 0, -scale * 6), (300 * scale, 300 * scale, scale),
                       palette.material("floor"))  # fmt: skip
    spread = float(rng.uniform(1.0, 4.0)) * scale
    things.clutter((0, 0, 0), (spread, spread), int(rng.integers(1, 28)), scale)
    for _ in range(int(rng.integers(0, 4))):  # one on another
        below = shapes.items[-int(rng.integers(1, 3))]
        top = below.centre + np.array([0, 0, below.half[2]], np.float32)
        things.clutter(top, (0.1 * scale, 0.1 * scale), 1, scale * 0.8)
    if rng.random() < 0.25:
        m = palette.material("leaves")
        for _ in range(int(rng.integers(5, 30))):  # petals, leaves, grass
            half = scale * rng.uniform(0.1, 0.8, 3) * np.array([1, 0.15, 1])
            x, y, z = rng.normal(0, 1.2 * scale, 3) + np.array([0, 0, 1.2 * scale])
            spin = rng.uniform(0, 6)
            things.part(ELLIPSOID, (x, y, abs(z)), spin, (0, 0, 0), half, m, rng.uniform(-1, 1))
    distance = scale * rng.uniform(2.5, 9)
    pitch = float(-np.radians(rng.choice([rng.uniform(0, 25), rng.uniform(15, 60), 80])))
    eye = distance * np.array([-np.cos(pitch), 0, -np.sin(pitch)])
    eye += np.array([0, rng.normal(0, 0.2) * distance, scale * rng.uniform(0.3, 1)])
    yaw = float(np.arctan2(-eye[1], -eye[0]) + rng.normal(0, 0.12))
    camera = palette.camera(eye, yaw, pitch + float(rng.normal(0, 0.08)), (30, 70))
    if closed or rng.random() < 0.4:
        lamp = scale * np.array([rng.uniform(-6, 2), rng.uniform(-6, 6), rng.uniform(4, 15)])
        light = palette.lamp(lamp, 8 * scale, closed=False)
    else:
        light = palette.daylight(scale)
    scene = _finish(rng, shapes, None, light, camera, 0.0)
    if rng.random() < 0.35:
        scene.focus = (distance * float(rng.uniform(0.7, 1.3)), float(rng.uniform(2, 9)))
    return scene


def portrait(textures: Textures, rng: Rng) -> Scene:
    """One or two people or groups of things close to the camera, in a room, a street or on land."""
    scene = (room, street, land)[int(rng.integers(3))](textures, rng)
    things = Things(scene.shapes, Palette(textures, rng))
    forward, right, _ = scene.camera.axes()
    for _ in range(int(rng.integers(1, 3))):
        r = rng.uniform(0.8, 3)
        side = rng.normal(0, 0.35) * r * scene.camera.tangents[0]
        at = scene.camera.position + r * forward * [1, 1, 0] + side * right
        at[2] = scene.camera.position[2] - rng.uniform(1.2, 1.7)
        if rng.random() < 0.75:
            things.person(at, rng.uniform(0, 6.3))
        else:
            things.clutter(at + np.array([0, 0, 1]), (0.5, 0.5), int(rng.integers(1, 5)), 0.3)
    if rng.random() < 0.4:
        scene.focus = (float(rng.uniform(0.8, 3)), float(rng.uniform(2, 8)))
    return scene


PLACES: dict[str, tuple[Callable[[Textures, Rng], Scene], float]] = {
    "room": (room, 0.42),
    "street": (street, 0.14),
    "land": (land, 0.17),
    "heap": (heap, 0.17),
    "portrait": (portrait, 0.10),
}
"""Places, and their shares of the scenes."""


def draw_scene(textures: Textures, rng: Rng) -> Scene:
    """Draw a place by its share, and a scene of it."""
    shares = np.array([share for _, share in PLACES.values()])
    name = str(rng.choice(list(PLACES), p=shares / shares.sum()))
    return PLACES[name][0](textures, rng)
