"""Dials' values: what is refused, and the maps that they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsr_edge.cli.arguments import add_dials, add_jobs, add_size, upscale_options
from mmsr_edge.config import UpscaleOptions
from mmsr_edge.errors import ImageError, OptionError
from mmsr_edge.modalities.depth import DEPTH, depth_map
from mmsr_edge.modalities.edges import EDGES, edge_map
from mmsr_edge.modalities.maps import black_and_white
from mmsr_edge.modalities.picture import PictureMap
from mmsr_edge.modalities.segmentation import (
    NO_CLASS,
    PALETTE,
    SEGMENTATION,
    map_classes,
    segmentation_map,
)
from mmsr_edge.modalities.spatial import GUIDANCE_SCALE, STRENGTH, DialMap

GRID = (4, 6)
"""Height and width of the latent of a picture of 8 × 12 pixels."""
LABELS = ("none", "tree", "sky")


def maps_of(**given: Any) -> dict[str, PictureMap | None]:
    """The maps of a picture; those not given are absent."""
    modalities = {modality.name: modality for modality in (DEPTH, SEGMENTATION, EDGES)}
    return {
        name: PictureMap(given[name], modality.resample) if name in given else None
        for name, modality in modalities.items()
    }


def values(value: Any, dial: Any = STRENGTH, **given: Any) -> np.ndarray:
    """Values of the map that `value` stands for, on the latent's grid."""
    dial.check(value)
    return dial.make_map(value, maps_of(**given), GRID, LABELS).values


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2.5, "strength is 2.5; it must be a number from 0 to 2"),
        (-0.1, "strength is -0.1; it must be a number from 0 to 2"),
        (float("nan"), "strength is nan; it must be a number from 0 to 2"),
        (True, "strength is True; it must be a number from 0 to 2"),
        (None, "strength is None; it must be a number from 0 to 2, or a map"),
        ("map.png", "strength is 'map.png'; it must be a number from 0 to 2, or a map: an array"),
        (np.zeros((2, 2, 3)), "strength is an array [2, 2, 3] of float64; it must be [height"),
        (np.zeros((0, 4)), "strength is an array [0, 4] of float64"),
        (np.zeros((2, 2), complex), "strength is an array [2, 2] of complex128"),
        (np.array([[1, 1], [1, 2.5]]), "strength is 2.5 at row 1, column 1; it must be a number"),
        (np.array([[1, np.nan]]), "strength is nan at row 0, column 1; it must be a number from 0"),
        (np.full((2, 2), 255, np.uint8), "a PIL image has 0 for black and 2 for white"),
        ({"dept": (0, 1)}, "unknown modality in strength 'dept'; did you mean 'depth'?"),
        ({"text": (0, 1)}, "Choose from depth, segmentation, edges"),
        ({}, "strength names nothing; it must name one modality"),
        ({"depth": (0, 1), "edges": (0, 1)}, "strength names depth and edges; it must name one"),
        ({"depth": 1}, "strength['depth'] is 1; it must be two numbers, (far, near)"),
        (
            {"edges": (1, 1, 1)},
            "strength['edges'] is (1, 1, 1); it must be two numbers, (flat, edge)",
        ),
        ({"depth": (0, 3)}, "strength['depth'][1] is 3; it must be a number from 0 to 2"),
        ({"depth": ("0", 1)}, "strength['depth'][0] is '0'; it must be a number from 0 to 2"),
        ({"segmentation": (0, 1)}, "strength['segmentation'] is (0, 1); it must be a mapping from"),
        ({"segmentation": {}}, "strength['segmentation'] is {}; it must be a mapping from classes"),
        ({"segmentation": {"sky": 3}}, "strength['segmentation']['sky'] is 3; it must be a number"),
        ({"segmentation": {256: 1}}, "is 256; it must be an integer from 0 to 255"),
        ({"segmentation": {1.5: 1}}, "is 1.5; it must be an integer from 0 to 255"),
    ],
)
def test_a_wrong_value_is_quoted_with_the_range(value: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        UpscaleOptions(strength=value)
    assert message in str(caught.value)


def test_the_range_is_the_dials_own() -> None:
    UpscaleOptions(guidance_scale=np.array([[-1.0, 100.0]]))
    UpscaleOptions(
        strength=np.array([[0, 2]], np.uint8), guidance_scale={"depth": [-1, np.int8(9)]}
    )
    with pytest.raises(OptionError, match=r"guidance_scale is -2.0 at row 0.* from -1 to 100$"):
        UpscaleOptions(guidance_scale=np.array([[-2.0]]))
    with pytest.raises(OptionError, match=r"guidance_scale\['depth'\]\[0\] is -2;.*-1 to 100"):
        UpscaleOptions(guidance_scale={"depth": (-2, 0)})


def test_names_of_classes_are_those_of_the_model() -> None:
    STRENGTH.check_classes({"segmentation": {"sky": 1, 7: 0, "other": 1}}, LABELS, "tiny")
    STRENGTH.check_classes({"segmentation": {7: 0, "other": 1}}, (), "tiny")
    STRENGTH.check_classes(1.5, (), "tiny")
    with pytest.raises(OptionError, match=r"unknown class in strength 'skye'; did you mean 'sky'"):
        STRENGTH.check_classes({"segmentation": {"skye": 1}}, LABELS, "tiny")
    with pytest.raises(OptionError, match="'tiny' has no names of classes; give their numbers"):
        STRENGTH.check_classes({"segmentation": {"sky": 1}}, (), "tiny")


@pytest.mark.parametrize(
    "value", [{"depth": (0, 1)}, {"edges": (0, 1)}, {"segmentation": {"other": 1}}]
)
def test_a_map_that_is_absent_cannot_be_followed(value: Any) -> None:
    (name,) = value
    with pytest.raises(OptionError, match=f"guidance_scale follows {name}, which is absent"):
        values(value, GUIDANCE_SCALE)


# --- Maps -----------------------------------------------------------------------------------------


def test_an_array_holds_the_values_and_is_averaged_to_the_latents_grid() -> None:
    exact = np.random.default_rng(0).uniform(0, 2, GRID)
    np.testing.assert_allclose(values(exact), exact, atol=1e-6)
    fine = np.random.default_rng(1).uniform(0, 2, (12, 12))
    expected = fine.reshape(4, 3, 6, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(values(fine), expected, atol=1e-6)
    np.testing.assert_allclose(values(fine[..., None]), expected, atol=1e-6)
    assert values(np.array([[0.0, 2.0]])).shape == (1, 2)  # tiles interpolate
    np.testing.assert_array_equal(values(np.eye(4, 6, dtype=bool)), np.eye(4, 6))


def test_a_pictures_grey_is_spread_over_the_range(tmp_path: Path) -> None:
    ramp = np.array([[0, 51, 102, 153, 204, 255]] * 4, np.uint8)
    image = Image.fromarray(ramp)
    for given in (image, image.convert("RGB"), Image.fromarray(ramp.astype(np.uint16) * 257)):
        np.testing.assert_allclose(values(given), ramp / 127.5, atol=1e-6)
        np.testing.assert_allclose(values(given, GUIDANCE_SCALE), ramp / 127.5 - 1, atol=1e-6)
    image.save(tmp_path / "a.png")
    np.testing.assert_allclose(values(tmp_path / "a.png"), ramp / 127.5, atol=1e-6)
    floats = Image.fromarray(np.full(GRID, 1.5, np.float32))  # the values themselves
    floats.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(values(tmp_path / "a.tif"), 1.5)
    with pytest.raises(OptionError, match=r"strength is 3\.0 at row 0"):
        values(Image.fromarray(np.full(GRID, 3, np.float32)))
    with pytest.raises(ImageError, match=r"no file .*missing\.png"):
        values(tmp_path / "missing.png")


def test_depth_is_followed_from_far_to_near() -> None:
    depth = np.random.default_rng(0).uniform(0, 1, (8, 12))
    mean = depth.reshape(4, 2, 6, 2).mean(axis=(1, 3))
    followed = values({"depth": (1.5, 0.5)}, depth=depth_map(depth))
    np.testing.assert_allclose(followed, 1.5 - mean, atol=1e-6)
    assert followed.dtype == np.float32


def test_classes_are_followed_by_name_and_by_number() -> None:
    classes = np.random.default_rng(0).integers(0, 4, (8, 12))
    table = np.array([1.0, 0.25, 2.0, 0.5])  # none is not named, and is neutral
    mean = table[classes].reshape(4, 2, 6, 2).mean(axis=(1, 3))
    given = {"segmentation": {"tree": 0.25, "sky": 2, 3: 0.5}}
    np.testing.assert_allclose(
        values(given, segmentation=segmentation_map(classes)), mean, atol=1e-6
    )
    given = {"segmentation": {"none": 1, np.int64(1): 0.25, "sky": 2, "other": 0.5}}
    np.testing.assert_allclose(
        values(given, segmentation=segmentation_map(classes)), mean, atol=1e-6
    )
    unnamed = values(
        {"segmentation": {"sky": 1}}, GUIDANCE_SCALE, segmentation=segmentation_map(0 * classes)
    )
    assert not unnamed.any()


def test_classes_are_read_back_from_colours() -> None:
    classes = np.arange(256).reshape(16, 16)
    np.testing.assert_array_equal(map_classes(segmentation_map(classes)), classes)
    foreign = np.array([[[1, 2, 3], [255, 255, 255], [0, 0, 0]]], np.uint8)
    assert not (foreign[0, :2, None] == PALETTE).all(axis=-1).any()
    assert map_classes(foreign.astype(np.float32) / 127.5 - 1).tolist() == [[NO_CLASS, NO_CLASS, 0]]
    whole = segmentation_map(foreign.repeat(8, axis=0))
    followed = values({"segmentation": {0: 0, "other": 2}}, segmentation=whole)
    np.testing.assert_array_equal(followed, [[2, 2, 0]] * 4)


def test_edges_count_in_full_where_they_pass_and_half_around() -> None:
    """Each cell is the maximum of 4 × 4 pixels; its eight neighbours have half of it."""
    mask = np.zeros((16, 24), bool)
    mask[6, 9] = True  # in cell (1, 2)
    expected = np.full(GRID, 1.0)
    expected[0:3, 1:4] = 1.25
    expected[1, 2] = 1.5
    for whole in (black_and_white(mask), edge_map(mask)):
        np.testing.assert_array_equal(values({"edges": (1, 1.5)}, edges=whole), expected)
    faint = edge_map(mask * 0.5)
    np.testing.assert_array_equal(values({"edges": (1, 1.5)}, edges=faint), 1 + (expected - 1) / 2)
    coarse = edge_map(np.eye(2))
    np.testing.assert_array_equal(values({"edges": (0, 2)}, edges=coarse), [[2, 1], [1, 2]])


def test_tiles_agree_where_they_overlap() -> None:
    """A picture of 45 × 61 pixels, in whose latent a cell has two of them."""
    whole = DialMap(np.random.default_rng(0).uniform(0, 2, (23, 31)).astype(np.float32))
    left = whole.crop((0, 8, 32, 40), 16, (45, 61))
    right = whole.crop((22, 8, 54, 40), 16, (45, 61))
    below = whole.crop((0, 14, 32, 46), 16, (45, 61))  # beyond the picture's end
    assert left.shape == (1, 1, 16, 16)
    np.testing.assert_allclose(left[..., 11:], right[..., :5], atol=1e-5)
    np.testing.assert_allclose(left[..., 3:, :], below[..., :-3, :], atol=1e-5)
    assert left.min() >= 0 and left.max() <= 2
    even = whole.crop((10, 4, 26, 20), 8, (46, 62))  # cells on the grid are not resampled
    np.testing.assert_allclose(even[0, 0], whole.values[2:10, 5:13], atol=1e-6)


# --- The command line -----------------------------------------------------------------------------


def parsed(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    for add in (add_dials, add_jobs, add_size):
        add(parser)
    return dict(upscale_options(parser.parse_args(arguments)))


@pytest.mark.parametrize("flag", ["--strength", "--guidance-scale"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5", 1.5),
        ("-0.5", -0.5),
        ("depth:0.2,1.0", {"depth": (0.2, 1.0)}),
        ("edges:-1,0.5", {"edges": (-1.0, 0.5)}),
        (
            "segmentation:sky=0.4,potted plant=1,3=1.5,other=1",
            {"segmentation": {"sky": 0.4, "potted plant": 1.0, 3: 1.5, "other": 1.0}},
        ),
    ],
)
def test_a_dial_on_the_command_line(flag: str, text: str, value: Any) -> None:
    assert parsed(flag, text)[flag[2:].replace("-", "_")] == value


def test_a_dials_picture_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new("L", (4, 4)).save(path)
    assert parsed("--strength", str(path))["strength"] == path
    assert parsed()["strength"] == 1.0
    assert parsed()["guidance_scale"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strong", "--strength is 'strong'; it must be a number, a modality with values"),
        ("dept:0.2,1", "there is no such file"),
        ("depth:near", "--strength is 'depth:near'; it must be depth:FAR,NEAR, as in depth:0.2,1"),
        ("edges:", "it must be edges:FLAT,EDGE"),
        ("segmentation:0.4,1", "it must be segmentation:CLASS=VALUE,…"),
        ("segmentation:sky=low", "it must be segmentation:CLASS=VALUE,…"),
    ],
)
def test_a_mistyped_dial_is_quoted_with_the_form(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parsed("--strength", text)
    assert message in str(caught.value)
