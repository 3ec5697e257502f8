"""The facade's modalities: maps, tags and words, made, given and switched off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import make_bundle
from photo_factory import photo, pixels

from mmsr_edge import BackendError, Upscaler
from mmsr_edge.bundle import MAPS
from mmsr_edge.modalities.canny import canny
from mmsr_edge.modalities.depth import spread_depth
from mmsr_edge.modalities.segmentation import SUBJECT, map_classes, palette_numbers

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    root = make_bundle(tmp_path_factory.mktemp("tiny"))
    return Upscaler(root, "onnxruntime", threads=1)


def test_edges_are_canny_and_missing_networks_give_no_warning(upscaler: Upscaler) -> None:
    picture = photo(50, 40)
    result = upscaler(picture)
    edges = result.maps["edges"]
    assert edges is not None
    found = canny(np.float32(picture / 127.5 - 1))
    assert 0 < found.mean() < 0.5
    np.testing.assert_array_equal(np.asarray(edges), found * 255)
    assert result.maps["depth"] is None
    assert result.maps["segmentation"] is None
    assert result.warnings == []


def test_a_flat_picture_has_no_edges_and_a_warning(upscaler: Upscaler) -> None:
    flat = np.full((40, 40, 3), 90, np.uint8)
    result = upscaler(flat)
    assert result.maps["edges"] is None
    assert result.warnings == ["edges is left out: Canny finds no edges in this picture"]
    np.testing.assert_array_equal(pixels(result), pixels(upscaler(flat, edges=None)))
    assert upscaler(flat, edges=None).warnings == []


def test_the_maps_of_a_result_can_be_given_back(upscaler: Upscaler) -> None:
    picture = photo(50, 40)
    first = upscaler(picture, depth=picture[..., 0])
    again = upscaler(picture, depth=first.maps["depth"], edges=first.maps["edges"])
    np.testing.assert_array_equal(pixels(first), pixels(again))


def test_a_finer_edge_map_keeps_its_lines(upscaler: Upscaler) -> None:
    """Lines of one pixel, in a map of eight times the picture's size. Depth is averaged."""
    picture = photo(40, 30)
    fine = np.zeros((320, 240), np.uint8)
    fine[100] = fine[:, 77] = 255
    result = upscaler(picture, edges=fine, depth=fine)
    edges, depth = result.maps["edges"], result.maps["depth"]
    assert edges is not None and depth is not None
    assert edges.size == depth.size == (30, 40)
    expected = np.zeros((40, 30), np.uint8)
    expected[100 // 8] = expected[:, 77 // 8] = 255
    np.testing.assert_array_equal(np.asarray(edges), expected)
    assert np.asarray(depth).max() < 128


@pytest.mark.parametrize("name", MAPS)
def test_every_map_and_its_temperature_change_the_result(upscaler: Upscaler, name: str) -> None:
    picture = photo(30, 30)
    given = {name: np.eye(30, dtype=np.uint8)}
    options = {**dict.fromkeys(MAPS), "color_fix": False}
    without = pixels(upscaler(picture, **options))
    plain = pixels(upscaler(picture, **{**options, **given}))
    weak = pixels(upscaler(picture, **{**options, **given}, temperature={name: 10}))
    assert (without != plain).any()
    assert (plain != weak).any()
    elsewhere = {other: 10.0 for other in MAPS if other != name}
    same = pixels(upscaler(picture, **{**options, **given}, temperature=elsewhere))
    np.testing.assert_array_equal(plain, same)


def test_depth_and_segmentation_come_from_the_bundles_networks(tmp_path: Path) -> None:
    upscaler = Upscaler(make_bundle(tmp_path, optional=True), "onnxruntime", threads=1)
    picture = photo(64, 32)  # squeezed to the networks' square
    result = upscaler(picture)
    assert result.calls["depth"] == result.calls["segmentation"] == 1
    depth, segmentation = result.maps["depth"], result.maps["segmentation"]
    assert depth is not None
    assert segmentation is not None
    assert depth.size == segmentation.size == (32, 32)
    small = picture.reshape(32, 2, 32, 3).mean(axis=1)
    spread = 255 * spread_depth(small.mean(axis=-1))
    assert np.abs(np.asarray(depth) - spread).mean() < 8
    pixels = np.asarray(segmentation, np.uint8)
    assert set(np.unique(map_classes(pixels))) == {0, 1, 2}
    numbers = set(np.unique(palette_numbers(pixels)))
    assert len(numbers - {0, 1, 2}) == 1 and numbers - {0, 1, 2} <= {SUBJECT + 1, SUBJECT + 2}

    switched_off = upscaler(picture, depth=None, segmentation=None)
    assert "depth" not in switched_off.calls
    flat = upscaler(np.full((40, 40, 3), 9, np.uint8), edges=None)
    assert flat.maps["depth"] is None
    assert flat.maps["segmentation"] is None
    assert flat.warnings == [
        "depth is left out: the network finds the same depth everywhere",
        "segmentation is left out: the network finds none of its classes",
    ]


def test_the_caption_is_the_text_encoders_prompt(upscaler: Upscaler) -> None:
    picture = np.full((20, 20, 3), 128, np.uint8)
    assert upscaler(picture, prompt="a disc").caption == "a disc, sharp"
    # Without a tagger: computed words only.
    assert upscaler(picture, prompt="auto").caption == "daylight, soft, grey, smooth, sharp"
    assert upscaler(picture).caption == "sharp"
    assert upscaler(picture, prompt=None).caption == ""


def test_tags_become_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = Upscaler(make_bundle(tmp_path, optional=True), "onnxruntime", threads=1)
    red = np.full((40, 300, 3), (220, 40, 40), np.uint8)
    result = upscaler(red, prompt="auto")
    assert result.calls["captioner"] == 1 and result.timings["words"] > 0
    means = red[0, 0] / 127.5 - 1
    sure = np.exp(4 * means) / np.exp(4 * means).sum()
    assert result.tags == {"tomato": pytest.approx(sure[0], abs=1e-4)}  # the others are unlikely
    assert result.caption == "tomato, daylight, soft, red, smooth, sharp"
    assert (pixels(result) == pixels(upscaler(red, prompt=result.caption[:-7]))).all()
    mine = upscaler(red, prompt="a fire engine")
    assert (mine.caption, mine.tags, mine.calls.get("captioner")) == (
        "a fire engine, sharp", {}, None
    )  # fmt: skip
    assert upscaler(red, prompt=None).calls.get("text_encoder") is None

    def fail(component: str, *rest: Any) -> Any:
        if component == "captioner":
            raise BackendError("out of luck")
        return run(component, *rest)

    run = upscaler.pipeline.run
    monkeypatch.setattr(upscaler.pipeline, "run", fail)
    result = upscaler(red, prompt="auto")
    assert result.caption == "daylight, soft, red, smooth, sharp"
    assert result.warnings[0] == "tags are left out: out of luck"
