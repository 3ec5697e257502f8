"""Levels of degradation: estimated, set, and told to the model in words and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import TILE, W, make_bundle
from photo_factory import photo, pixels
from PIL import Image

from mmsr_edge import OptionError, UpscaleOptions, Upscaler
from mmsr_edge.cli.arguments import upscale_options
from mmsr_edge.cli.main import _parser
from mmsr_edge.modalities.degradation import (
    WINDOWS,
    choose_windows,
    collect_levels,
    degradation_vector,
    degradation_words,
    jpeg_level,
    set_levels,
    share_to_keep,
)
from mmsr_edge.modalities.prompt import encode_prompt

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

RED = (220, 40, 100)
LEVELS = {"noise": 220 / 255, "blur": 40 / 255, "jpeg": 100 / 255}  # by the toy's estimator


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    root = make_bundle(tmp_path_factory.mktemp("told"), told=("words", "decoder"))
    return Upscaler(root, "onnxruntime", threads=1)


@pytest.fixture(scope="module")
def deaf(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    return Upscaler(make_bundle(tmp_path_factory.mktemp("deaf")), "onnxruntime", threads=1)


def test_words_and_numbers_of_levels() -> None:
    levels = {"jpeg": 0.2, "noise": 0.35}  # 9 × .35 = 3.15, 9 × .2 = 1.8
    assert degradation_words(levels) == "noise3, jpeg2"
    assert degradation_words({"noise": 0.0, "blur": 1.0, "jpeg": None}) == "noise0, blur9"
    assert degradation_words({}) == ""
    vector = degradation_vector(levels)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, [[0.35, 0, 0.2, 1, 0, 1, 0, 0]])
    assert not degradation_vector({"blur": None}).any()
    # Of noise with a level of .6, .3 is told: a quarter of its deviation.
    found = {"noise": 0.6, "blur": 0.5, "jpeg": 0.9}
    stay = degradation_vector({"noise": 0.3, "blur": 0.5, "jpeg": 0}, found)[0, 6:]
    assert stay == pytest.approx([0.75, 0])


@pytest.mark.parametrize("power", [1, 2])
def test_share_to_keep(power: int) -> None:
    for found in (0.1, 0.5, 1.0):
        shares = [share_to_keep(told, found, power) for told in (0.0, found / 2, found, 1.0)]
        assert shares[0] == 1 and 0 < shares[1] < 1 and shares[2] == 0
        assert shares[3] == (0 if found == 1 else -0.5)
        assert shares == sorted(shares, reverse=True)
    assert share_to_keep(None, 0.5, power) == share_to_keep(0.5, None, power) == 0


FOUND = {"noise": 0.5, "blur": 0.25, "jpeg": 0.75}
CLEAN = {"noise": 0.5, "blur": 0.25, "jpeg": 0.05}


@pytest.mark.parametrize(
    ("given", "denoise", "found", "told"),
    [
        ("auto", None, FOUND, FOUND),
        ("auto", 0.0, FOUND, {"noise": 0, "blur": 0.25, "jpeg": 0}),
        ("auto", 1, FOUND, {"noise": 1, "blur": 0.25, "jpeg": 1}),
        ("auto", 1.0, CLEAN, {"noise": 1, "blur": 0.25, "jpeg": 0.05}),  # not compressed
        ("auto", 0.5, {}, {"noise": 0.5}),  # the estimate failed
        ({"blur": 0}, None, FOUND, {"noise": 0.5, "blur": 0, "jpeg": 0.75}),
        ({"jpeg": 0.1}, 0.9, FOUND, {"noise": 0.9, "blur": 0.25, "jpeg": 0.1}),
        (None, None, FOUND, {}),
        (None, 0.3, FOUND, {"noise": 0.3}),
        ({"noise": 0, "blur": 1, "jpeg": 0.5}, None, FOUND, {"noise": 0, "blur": 1, "jpeg": 0.5}),
    ],
)
def test_levels_that_are_set_replace_those_that_are_found(
    given: Any, denoise: float | None, found: dict[str, float], told: dict[str, float]
) -> None:
    assert set_levels(given, denoise, found) == told


def test_windows_are_parts_of_the_detailed_half_at_full_size() -> None:
    rng = np.random.default_rng(0)
    height, width, side = 200, 330, 32
    rgb = rng.uniform(-0.1, 0.1, (height, width, 3)).astype(np.float32)
    rgb[:, :, 2] = np.arange(height * width).reshape(height, width) / 1e5  # blue: the place
    rgb[:, 160:, 1] *= 8  # the detail
    windows = choose_windows(rgb, side)
    assert len(windows) == WINDOWS and all(w.shape == (1, 3, side, side) for w in windows)
    places = [round(float(w[0, 2, 0, 0]) * 1e5) for w in windows]
    for place, window in zip(places, windows, strict=True):
        top, left = divmod(place, width)
        np.testing.assert_array_equal(
            window[0].transpose(1, 2, 0), rgb[top : top + side, left : left + side]
        )
        assert left > 160 - side
    assert len(set(places)) == WINDOWS
    for ours, again in zip(windows, choose_windows(rgb.copy(), side), strict=True):
        np.testing.assert_array_equal(ours, again)


@pytest.mark.parametrize(("shape", "count"), [((1, 1), 1), ((20, 50), 2), ((64, 64), 4)])
def test_small_pictures_have_few_windows_and_are_reflected(
    shape: tuple[int, int], count: int
) -> None:
    rgb = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    windows = choose_windows(rgb, 32)
    assert len(windows) == count
    if shape == (20, 50):
        first = next(w for w in windows if w[0, 0, 0, 0] == rgb[0, 0, 0])[0].transpose(1, 2, 0)
        np.testing.assert_array_equal(first[:20], rgb[:, :32])
        np.testing.assert_array_equal(first[20:], rgb[:-13:-1, :32])  # the last row repeated


def test_levels_are_medians_and_reach_words_decoder_and_result(upscaler: Upscaler) -> None:
    picture = np.full((3 * TILE, 3 * TILE, 3), RED, np.uint8)
    picture[:TILE, :TILE] = 255  # one window in eight does not matter
    result = upscaler(picture, prompt="a dog", edges=None)
    assert result.degradation == pytest.approx(LEVELS, abs=1e-5)
    assert result.caption == "a dog, noise8, blur1, jpeg4, sharp"
    assert 1 < result.calls["degradation"] <= WINDOWS
    tagged = upscaler(picture, prompt="auto", edges=None)
    assert tagged.caption.endswith("smooth, noise8, blur1, jpeg4, sharp")
    silent = upscaler(picture, degradation=None, edges=None)
    assert (silent.degradation, silent.caption) == ({}, "sharp")
    assert "degradation" not in silent.calls


def test_the_decoder_gets_levels_and_flags(upscaler: Upscaler) -> None:
    picture = photo(TILE, TILE)
    options: dict[str, Any] = {"prompt": None, "edges": None, "color_fix": False}
    silent = pixels(upscaler(picture, degradation=None, **options)).astype(float)
    levels = {"noise": 0.5, "blur": 0.0, "jpeg": 1.0}
    told = upscaler(picture, degradation=levels, **options)
    assert (told.degradation, told.caption) == (levels, "")  # text stays absent
    found = upscaler(picture, **options).degradation
    stay = [share_to_keep(levels[n], found[n], p) for n, p in (("noise", 2), ("blur", 1))]
    assert stay[1] == 1 and -0.5 <= stay[0] < 1
    shift = np.array([[0.5, 0, 1, 1, 1, 1, *stay]]) @ W["told"] * 127.5
    inside = (silent > 1) & (silent + shift < 254)
    off = np.abs(pixels(told) - silent - shift)[inside]
    assert inside.mean() > 0.5 and off.max() <= 1


def test_the_negative_prompt_has_the_same_words(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Array] = []
    run = upscaler.pipeline.run

    def spy(component: str, calls: Any, picture: Any) -> Any:
        seen.extend(call["ids"] for call in calls if component == "text_encoder")
        return run(component, calls, picture)

    monkeypatch.setattr(upscaler.pipeline, "run", spy)
    upscaler(photo(20, 20), guidance="m-cfg", degradation={"noise": 1, "blur": 0, "jpeg": 0})
    spec = upscaler.bundle.manifest.text
    for ids, text in zip(
        seen,
        ("noise9, blur0, jpeg0, sharp", "noise9, blur0, jpeg0, blurry, noisy"),
        strict=True,
    ):
        np.testing.assert_array_equal(ids, encode_prompt(text, spec))


def test_a_jpeg_files_tables_count_where_they_say_more(upscaler: Upscaler, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (40, 40), (0, 0, 0)).save(path, quality=10)
    assert upscaler(path).degradation["jpeg"] == pytest.approx(jpeg_level(10))
    Image.new("RGB", (40, 40), (0, 0, 255)).save(path, quality=95)
    assert upscaler(path).degradation["jpeg"] > 0.9 > jpeg_level(95)
    assert upscaler(path, denoise=0).degradation["jpeg"] == 0
    by_quality = [jpeg_level(quality) for quality in range(1, 101)]
    assert by_quality == sorted(by_quality, reverse=True)
    assert by_quality[0] <= 1 and by_quality[-1] >= 0


def test_a_failed_estimate_leaves_the_degradation_out(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = upscaler.pipeline.run

    def fail(component: str, calls: Any, picture: Any) -> Any:
        results = run(component, calls, picture)
        if component == "degradation":
            return [{"levels": result["levels"] * np.nan} for result in results]
        return results

    monkeypatch.setattr(upscaler.pipeline, "run", fail)
    result = upscaler(photo(20, 20))
    assert (result.degradation, result.caption) == ({}, "sharp")
    assert result.warnings[0] == (
        "degradation is left out: the estimated levels of degradation are not finite"
    )
    assert upscaler(photo(20, 20), denoise=0.5).degradation == {"noise": 0.5}


def test_a_model_that_cannot_be_told_refuses_the_dials(deaf: Upscaler, tmp_path: Path) -> None:
    picture = photo(20, 20)
    plain = deaf(picture)
    assert (plain.degradation, plain.caption) == ({}, "sharp")
    np.testing.assert_array_equal(pixels(plain), pixels(deaf(picture, degradation=None)))
    message = "denoise is 0.5, which would go unused: 'tiny' 1 was not trained with levels"
    with pytest.raises(OptionError, match=message):
        deaf(picture, denoise=0.5)
    with pytest.raises(OptionError, match=r"degradation is {'blur': 0}, which would go unused"):
        deaf(picture, degradation={"blur": 0})

    words = Upscaler(make_bundle(tmp_path, told=("words",)), "onnxruntime", threads=1)
    assert words(picture, denoise=1).degradation["noise"] == 1
    assert words(picture, prompt=None).degradation == {}
    with pytest.raises(OptionError, match=r"denoise is 1, .* prompt is None; give a prompt"):
        words(picture, prompt=None, denoise=1)


def test_two_levels_of_noise_are_refused() -> None:
    UpscaleOptions(denoise=0.5, degradation={"blur": 1})
    with pytest.raises(OptionError, match=r"denoise is 0.5 and degradation\['noise'\] is 1; give"):
        UpscaleOptions(denoise=0.5, degradation={"noise": 1})


@pytest.mark.parametrize(
    ("flags", "degradation", "denoise"),
    [
        ([], "auto", None),
        (["--degradation", "none", "--denoise", "0.25"], None, 0.25),
        (["--degradation", "auto"], "auto", None),
        (
            ["--degradation", "noise=0.3", "--degradation", "blur=0"],
            {"noise": 0.3, "blur": 0},
            None,
        ),
    ],
)
def test_the_command_line(flags: list[str], degradation: Any, denoise: float | None) -> None:
    options = upscale_options(_parser().parse_args(["upscale", "a.png", *flags]))
    assert (options["degradation"], options["denoise"]) == (degradation, denoise)


@pytest.mark.parametrize("values", [["0.3"], ["noise=much"], ["none", "blur=1"]])
def test_a_wrong_level_on_the_command_line(values: list[str]) -> None:
    flags = [word for value in values for word in ("--degradation", value)]
    arguments = _parser().parse_args(["upscale", "a.png", *flags])
    with pytest.raises(OptionError, match=r"--degradation is .* must be auto, none or NAME=number"):
        upscale_options(arguments)


def test_a_bundle_without_the_estimator_knows_no_level(deaf: Upscaler) -> None:
    class Run:
        manifest = deaf.bundle.manifest

    warnings: list[str] = []
    assert collect_levels(photo(9, 9) / 127.5 - 1, Run(), 50, warnings) == {}  # type: ignore[arg-type]
    assert warnings == []
