"""Maps in all forms that a caller may give, and their crops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from mmsr_edge import tiling
from mmsr_edge.errors import ImageError
from mmsr_edge.modalities import maps
from mmsr_edge.modalities.depth import depth_map
from mmsr_edge.modalities.edges import edge_map
from mmsr_edge.modalities.segmentation import PALETTE, segmentation_map

if TYPE_CHECKING:
    from pathlib import Path


def grey_of(whole: np.ndarray) -> np.ndarray:
    """The one channel of a grey map, in [0, 1]."""
    assert whole.dtype == np.float32
    assert whole.shape[2] == 3
    assert (whole[..., :1] == whole).all()
    return (whole[..., 0] + 1) / 2


def test_the_palette_is_that_of_pascal_voc() -> None:
    assert PALETTE.dtype == np.uint8
    assert len(np.unique(PALETTE, axis=0)) == 256
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    for index, colour in known.items():
        assert tuple(PALETTE[index]) == colour


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (np.array([[0.0, 0.25], [0.5, 0.75]]), [[0, 0.25], [0.5, 0.75]]),
        (np.array([[0, 255], [51, 102]], np.uint8), [[0, 1], [0.2, 0.4]]),
        (np.array([[0, 65535], [13107, 0]], np.uint16), [[0, 1], [0.2, 0]]),
        (np.array([[10.0, 20.0], [12.5, 10.0]]), [[0, 1], [0.25, 0]]),  # any unit
        (np.array([[-1, 3]]), [[0, 1]]),
        (np.array([[7.0, 7.0]]), [[0, 0]]),
        (np.array([[[0.5]]]), [[0.5]]),
        (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("RGB"), [[0, 1]]),
        (Image.fromarray(np.array([[0, 65535]], np.uint16)), [[0, 1]]),
    ],
)
def test_depth(depth: object, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(grey_of(depth_map(depth)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "edges",
    [
        np.array([[True, False]]),
        np.array([[1.0, 0.0]], np.float32),
        np.array([[1, 0]], np.uint8),
        np.array([[255, 0]], np.uint8),
        np.array([[1, 0]]),
        Image.fromarray(np.array([[255, 0]], np.uint8)),
        Image.fromarray(np.array([[255, 0]], np.uint8)).convert("1"),
    ],
)
def test_edges(edges: object) -> None:
    np.testing.assert_array_equal(grey_of(edge_map(edges)), [[1, 0]])


def test_segmentation_by_class_and_by_colour(tmp_path: Path) -> None:
    classes = np.array([[0, 1, 255], [15, 15, 20]])
    expected = PALETTE[classes] / 127.5 - 1
    colours = Image.fromarray(PALETTE[classes])
    indexed = Image.fromarray(classes.astype(np.uint8))
    with_palette = Image.fromarray(classes.astype(np.uint8))
    with_palette.putpalette(PALETTE.tobytes())
    path = tmp_path / "classes.png"
    with_palette.save(path)
    for given in (classes, classes.astype(np.uint8), colours, np.asarray(colours), indexed, path):
        whole = segmentation_map(given)
        assert whole.dtype == np.float32
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-6)
    assert with_palette.mode == "P"
    np.testing.assert_allclose(segmentation_map(with_palette), expected, rtol=0, atol=1e-6)


def test_a_map_given_back_is_the_same_map() -> None:
    rng = np.random.default_rng(0)
    depth = depth_map(rng.integers(0, 256, (9, 7), np.uint8))
    classes = segmentation_map(rng.integers(0, 256, (9, 7)))
    edges = edge_map(rng.integers(0, 2, (9, 7)))
    for whole, read in (
        (depth, depth_map),
        (classes, segmentation_map),
        (edges, edge_map),
    ):
        image = maps.map_image(whole)
        assert image.mode == ("RGB" if whole is classes else "L")
        np.testing.assert_allclose(read(image), whole, rtol=0, atol=1e-6)


def test_a_map_of_bytes_equals_the_map_of_floats() -> None:
    mask = np.random.default_rng(0).random((40, 30)) < 0.1
    small, large = maps.black_and_white(mask), edge_map(mask)
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(maps.signed(small), large)
    box = (3.5, -2.0, 21.0, 17.0)
    np.testing.assert_array_equal(maps.crop_map(small, box, 16), maps.crop_map(large, box, 16))
    assert maps.map_image(small).tobytes() == maps.map_image(large).tobytes()


def test_refusals_quote_the_value(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"depth has the shape \(2, 2, 3\)"):
        depth_map(np.zeros((2, 2, 3)))
    with pytest.raises(ImageError, match=r"depth has the shape \(0, 4\)"):
        depth_map(np.zeros((0, 4)))
    with pytest.raises(ImageError, match="not finite"):
        depth_map(np.array([[0.0, np.nan]]))
    with pytest.raises(ImageError, match="complex"):
        depth_map(np.zeros((2, 2), complex))
    with pytest.raises(ImageError, match=r"\[-1, 1\]"):
        edge_map(np.array([[-1.0, 1.0]]))
    with pytest.raises(ImageError, match="from 0 to 256"):
        segmentation_map(np.array([[0, 256]]))
    with pytest.raises(ImageError, match="float64"):
        segmentation_map(np.array([[0.0, 1.0]]))
    with pytest.raises(ImageError, match=r"no file .*missing\.png"):
        depth_map(tmp_path / "missing.png")


def test_a_crop_at_full_size_is_the_map_itself() -> None:
    whole = np.random.default_rng(0).uniform(-1, 1, (70, 90, 3)).astype(np.float32)
    crop = maps.crop_map(whole, (20, 5, 84, 69), size=64)
    assert crop.shape == (1, 3, 64, 64)
    assert crop.dtype == np.float32
    assert crop.flags.c_contiguous
    np.testing.assert_allclose(crop[0].transpose(1, 2, 0), whole[5:69, 20:84], rtol=0, atol=1e-6)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.NEAREST])
@pytest.mark.parametrize("scale", [0.5, 2, 3])
def test_crops_are_windows_of_the_whole_map_resized(
    scale: float, resample: Image.Resampling
) -> None:
    """Cutting then resizing equals resizing then cutting, so that maps have no seams."""
    side = round(24 / scale)
    whole = np.random.default_rng(0).uniform(-1, 1, (96, 96, 3)).astype(np.float32)
    framed = np.pad(whole, [(12, 12), (12, 12), (0, 0)], mode="symmetric")
    size = [round(120 * scale)] * 2
    planes = [Image.fromarray(framed[..., c].copy()).resize(size, resample) for c in range(3)]
    resized = np.stack([np.asarray(plane) for plane in planes])
    for left in (0, 24, 96 - side):
        crop = maps.crop_map(whole, (left, 12, left + side, 12 + side), 24, resample=resample)
        x, y = round((left + 12) * scale), round(24 * scale)
        np.testing.assert_allclose(crop[0], resized[:, y : y + 24, x : x + 24], rtol=0, atol=1e-5)


def test_boxes_may_be_in_the_pixels_of_another_picture() -> None:
    whole = np.random.default_rng(0).uniform(-1, 1, (40, 60, 3)).astype(np.float32)
    own = maps.crop_map(whole, (30, 10, 50, 30), 16)
    np.testing.assert_allclose(
        maps.crop_map(whole, (15, 2.5, 25, 7.5), 16, extent=(10, 30)), own, rtol=0, atol=1e-6
    )
    with pytest.raises(ValueError, match="empty"):
        maps.crop_map(whole, (5, 5, 5, 9))


def test_outside_the_picture_a_map_is_reflected_as_the_picture_is() -> None:
    """A map twice as fine as the picture and the picture itself, padded from 5 x 7 to 32 x 32."""
    picture = np.random.default_rng(0).uniform(-1, 1, (5, 7, 3)).astype(np.float32)
    whole = picture.repeat(2, axis=0).repeat(2, axis=1)
    padded = tiling.pad(picture, 32, 32).repeat(2, axis=0).repeat(2, axis=1)
    crop = maps.crop_map(whole, (0, 0, 32, 32), 64, extent=(5, 7))
    np.testing.assert_allclose(crop[0].transpose(1, 2, 0), padded, rtol=0, atol=1e-6)


def test_lines_stay_white_when_a_finer_map_is_shrunk() -> None:
    """Each pixel of the result is the maximum of its block; a mean would make the line grey."""
    mask = np.zeros((12, 20), bool)
    mask[5] = True
    mask[:, 13] = True
    for fine in (maps.black_and_white(mask), edge_map(mask)):
        small = maps.shrink_lines(fine, 4, 5)
        assert small.shape == (4, 5, 3)
        assert small.dtype == fine.dtype
        assert small.strides[2] == 0  # one channel's memory, as before
        expected = mask.reshape(4, 3, 5, 4).max(axis=(1, 3))
        np.testing.assert_array_equal(maps.signed(small)[..., 0], expected * 2.0 - 1)


@pytest.mark.parametrize("size", [(7, 20), (12, 20), (12, 3), (1, 1)])
def test_no_line_is_lost_at_sizes_that_do_not_divide(size: tuple[int, int]) -> None:
    for row in range(12):
        mask = np.zeros((12, 20), bool)
        mask[row] = True
        small = maps.signed(maps.shrink_lines(maps.black_and_white(mask), *size))[..., 0]
        assert (small.max(axis=0) == 1).all()
        assert small.shape == size
