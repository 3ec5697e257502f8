"""Rendered scenes: depth against closed forms, textures, and the files written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mmsr_edge.errors import OptionError
from mmsr_edge.training.data.scene_data import Scenes
from mmsr_edge.training.scenes.make import make_scenes, render_scene
from mmsr_edge.training.scenes.places import PLACES
from mmsr_edge.training.scenes.render import Camera, Light, Scene, cast, render
from mmsr_edge.training.scenes.shapes import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    ROOF,
    Shape,
    Shapes,
    enter,
    local_normal,
    turn,
)
from mmsr_edge.training.scenes.terrain import Terrain
from mmsr_edge.training.scenes.textures import Material, Textures

GREY = Material(0, np.ones(3, np.float32), np.ones(3, np.float32), np.zeros(2, np.float32))
DAY = Light(
    np.array([0, 0, 5e3], np.float32), np.ones(3, np.float32), 0.0, np.full(3, 0.5, np.float32),
    np.full(3, 0.5, np.float32), 1.0, 0.0, np.ones(3, np.float32), np.ones(3, np.float32), -1,
)  # fmt: skip


@pytest.fixture(scope="module")
def textures() -> Textures:
    return Textures(None, patterns=2)


def camera(height: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Camera:
    """A camera that looks along x."""
    return Camera(np.array([0, 0, height], np.float32), 0.0, pitch, roll, (1.0, 0.75))


def planar_depth(scene: Scene, side: int) -> np.ndarray:
    direction, cosine = scene.camera.rays(side)
    t, _ = cast(scene, direction)
    return (t * cosine).reshape(side, side)


def test_a_wall_is_equally_deep_everywhere() -> None:
    shapes = Shapes()
    shapes.add(BOX, (6, 0, 0), (1, 50, 50), GREY)
    depth = planar_depth(Scene(shapes, None, DAY, camera(roll=0.3)), 24)
    np.testing.assert_allclose(depth, 5, rtol=1e-5)


@pytest.mark.parametrize("pitch", [0.0, -0.4, 0.3])
def test_the_ground_follows_the_cameras_height_and_pitch(pitch: float) -> None:
    shapes, h, side = Shapes(), 1.6, 32
    shapes.add(BOX, (0, 0, -1), (1e4, 1e4, 1), GREY)
    depth = planar_depth(Scene(shapes, None, DAY, camera(h, pitch)), side)
    # The ray at image height v goes down by (−sin p − v·cos p) per unit of planar depth.
    v = -((np.arange(side) + 0.5) / side * 2 - 1) * 0.75
    fall = -np.sin(pitch) - v * np.cos(pitch)
    for row in range(side):
        if fall[row] < 1e-3:
            assert np.isinf(depth[row]).all() or depth[row].min() > 500
        else:
            np.testing.assert_allclose(depth[row], h / fall[row], rtol=1e-4)


def test_depth_of_a_sphere() -> None:
    shapes = Shapes()
    shapes.add(ELLIPSOID, (4, 0, 0), (1, 1, 1), GREY)
    side = 65  # the middle pixel looks along the axis
    depth = planar_depth(Scene(shapes, None, DAY, camera()), side)
    assert depth[32, 32] == pytest.approx(3, rel=1e-5)
    # |t·d − c|² = 1 with d = (1, u, 0) and planar depth t: (1 + u²)t² − 8t + 15 = 0.
    u = 36.5 / side * 2 - 1
    root = (8 - np.sqrt(64 - 60 * (1 + u * u))) / 2 / (1 + u * u)
    assert depth[32, 36] == pytest.approx(root, rel=1e-4)
    assert np.isinf(depth[32, 48])  # u² = 0.24 leaves no root
    seen = np.isfinite(depth[32]).sum() / side  # half-width: tan(asin(1/4))
    assert seen == pytest.approx(np.tan(np.arcsin(0.25)), abs=1.5 / side)


def test_the_nearer_shape_hides_the_farther_in_any_order() -> None:
    for order in ((3.0, 7.0), (7.0, 3.0)):
        shapes = Shapes()
        for x in order:
            shapes.add(BOX, (x, 0, 0), (0.5, 0.5, 0.5), GREY, turn(0.0))
        scene = Scene(shapes, None, DAY, camera())
        _, index = cast(scene, scene.camera.rays(9)[0])
        assert shapes.items[index.reshape(9, 9)[4, 4]].centre[0] == 3


@pytest.mark.parametrize("kind", [BOX, ELLIPSOID, CYLINDER, ROOF])
def test_rays_stop_on_the_surface(kind: int) -> None:
    rng = np.random.default_rng(kind)
    rotation = turn(0.7, 0.3, -0.5)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    half = np.array([0.5, 1.0, 1.5], np.float32)
    if kind == CYLINDER:
        half[1] = half[0]
    shape = Shape(kind, np.array([5, 1, -1], np.float32), half, rotation, GREY)
    aim = shape.centre + rng.normal(0, 0.6, (4000, 3))
    d = (aim / np.linalg.norm(aim, axis=1, keepdims=True)).astype(np.float32)
    t = enter(shape, np.zeros(3, np.float32), d)
    hit = np.isfinite(t)
    assert 0.2 < hit.mean() < 1

    def level(p: np.ndarray) -> np.ndarray:
        """An implicit function of the unit shape: less than 1 inside, 1 on its surface."""
        return {
            BOX: np.abs(p).max(1),
            ELLIPSOID: np.linalg.norm(p, axis=1),
            CYLINDER: np.maximum(np.hypot(p[:, 0], p[:, 1]), np.abs(p[:, 2])),
            ROOF: np.maximum.reduce([np.abs(p[:, 0]), -p[:, 2], 2 * np.abs(p[:, 1]) + p[:, 2]]),
        }[kind]

    p = (t[hit, None] * d[hit] - shape.centre) @ rotation / half
    np.testing.assert_allclose(level(p), 1, atol=2e-4)
    normal = local_normal(kind, p) / half @ rotation.T
    assert ((normal * d[hit]).sum(1) < 1e-4).all()  # the near side faces the camera
    for missed in d[~hit][:200]:  # a ray that misses is outside at every point sampled
        q = (np.linspace(0, 12, 400)[:, None] * missed - shape.centre) @ rotation / half
        assert level(q).min() > 0.99


def test_rays_meet_the_terrain() -> None:
    slope = 0.05
    x = np.arange(256, dtype=np.float32)
    ramp = Terrain(np.tile(slope * x, (256, 1)), 1.0, GREY, GREY, 200.0)
    a = np.linspace(-1.2, -0.1, 12)
    d = np.stack([np.cos(a), np.zeros_like(a), np.sin(a)], 1).astype(np.float32)
    t = ramp.hit(np.array([5, 100, 5], np.float32), d)
    # 5 + t·dz = slope·(5 + t·dx)
    np.testing.assert_allclose(t, (5 - slope * 5) / (slope * d[:, 0] - d[:, 2]), rtol=2e-2)
    np.testing.assert_allclose(
        ramp.normal(np.array([20.3]), np.array([7.0]))[0],
        np.array([-slope, 0, 1]) / np.hypot(slope, 1), atol=1e-4,
    )  # fmt: skip
    up = np.array([[0, 0, 1]], np.float32)
    assert np.isinf(ramp.hit(np.array([5, 100, 50], np.float32), up)).all()


def test_a_shape_casts_a_shadow(textures: Textures) -> None:
    shapes = Shapes()
    shapes.add(BOX, (0, 0, -1), (50, 50, 1), GREY)
    shapes.add(BOX, (6, 1.5, 3), (1, 1, 0.1), GREY)  # hovers: its shadow lies under it
    down = Camera(np.array([6, 0, 2.5], np.float32), 0.0, -np.pi / 2 + 1e-3, 0.0, (1.0, 1.0))
    rgb, depth = render(Scene(shapes, None, DAY, down), textures, 64, np.random.default_rng(0))
    assert np.allclose(depth, 2.5, rtol=1e-2)
    left, right = rgb[24:40, 8:24].mean(), rgb[24:40, 40:60].mean()
    assert left < 0.75 * right  # y > 0 is on the left, looking along x


@pytest.mark.parametrize("name", PLACES)
def test_every_place_renders_the_same_from_the_same_seed(name: str, textures: Textures) -> None:
    draw, _ = PLACES[name]
    pictures = []
    for _ in range(2):
        rng = np.random.default_rng(5)
        pictures.append(render(draw(textures, rng), textures, 40, rng))
    (rgb, depth), (again, depth_again) = pictures
    assert rgb.shape == (40, 40, 3) and rgb.dtype == np.uint8
    assert not np.isnan(depth).any() and (depth > 0).all()
    assert (rgb == again).all() and (depth == depth_again).all()


def test_textures_come_from_photographs_and_shrink_with_distance(tmp_path: Path) -> None:
    Image.fromarray(load_sample_images().images[0]).save(tmp_path / "a.png")
    textures = Textures(tmp_path, patterns=1, pieces=2)
    assert len(textures.groups["photo"]) == 2
    i = textures.groups["photo"][0]
    uv = np.random.default_rng(0).random((3000, 2)).astype(np.float32) * 4
    index = np.full(3000, i)
    sharp = textures.look_up(index, uv, np.full(3000, 1e-3, np.float32))
    flat = textures.look_up(index, uv, np.full(3000, 1.0, np.float32))
    assert np.ptp(flat, axis=0).max() == 0  # reduced to one texel
    np.testing.assert_allclose(sharp.mean(0), flat[0], atol=0.03)


def test_files_hold_scenes_and_make_batches(
    tmp_path: Path, textures: Textures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsr_edge.training.scenes.make.FILE", 3)
    monkeypatch.setattr(Scenes, "HELD_OUT", 1)
    with pytest.raises(OptionError, match="render more"):
        Scenes(tmp_path, side=64)
    for i in range(2):
        scenes = [render_scene(textures, 3 * i + j, 24) for j in range(3)]
        rgb, inverse = (np.stack(c) for c in zip(*scenes, strict=True))
        np.savez(tmp_path / f"{i}.npz", rgb=rgb, inverse=inverse.astype(np.float16))
    data = Scenes(tmp_path, side=64)
    assert len(data.rgb) == 3 and Scenes.held_out_files(tmp_path) == [tmp_path / "0.npz"]
    image, inverse = data.batch(2)
    assert image.shape == (2, 3, 64, 64) and inverse.shape == (2, 1, 16, 16)
    assert image.abs().max() <= 1 and inverse.min() >= 0 and inverse.max() <= 1


@pytest.mark.slow
def test_make_resumes_and_leaves_whole_files(tmp_path: Path) -> None:
    make_scenes(None, tmp_path, 1, side=16, workers=1)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    with np.load(path) as file:
        assert file["rgb"].shape == (50, 16, 16, 3) and file["inverse"].max() == 1
    make_scenes(None, tmp_path, 1, side=16, workers=1)
    assert path.stat().st_mtime_ns == written and list(tmp_path.iterdir()) == [path]
