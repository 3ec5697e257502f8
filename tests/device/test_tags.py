"""Tags and words of a picture: order, thresholds, and synthetic pictures of known attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mmsr_edge.errors import BundleError, ImageError, MMSRError, OptionError
from mmsr_edge.modalities.tags import COLOURS, Tag, choose_tags, describe, write_prompt

if TYPE_CHECKING:
    import numpy.typing as npt

NAMES = ["alp", "daisy", "pier", "barn"]
SCORES = np.array([[0.05, 0.5, 0.1, 0.2]], np.float32)


def flat(*rgb: int, size: tuple[int, int] = (40, 56)) -> npt.NDArray[np.float32]:
    picture = np.empty((*size, 3), np.float32)
    picture[:] = np.array(rgb, np.float32) / 127.5 - 1
    return picture


def names(tags: list[Tag]) -> list[str]:
    return [tag.name for tag in tags]


def test_tags_are_sorted_by_score_down_to_the_threshold() -> None:
    tags = choose_tags(SCORES, NAMES, threshold=0.09)
    assert names(tags) == ["daisy", "barn", "pier"]
    assert [tag.score for tag in tags] == pytest.approx([0.5, 0.2, 0.1])
    assert names(choose_tags(SCORES, NAMES, threshold=0.2 - 1e-6)) == ["daisy", "barn"]
    assert names(choose_tags(SCORES, NAMES, threshold=0.0, most=1)) == ["daisy"]
    assert choose_tags(SCORES, NAMES, most=0) == []
    assert choose_tags(SCORES, NAMES, threshold=0.6) == []
    # Equal scores keep the order of the names, and a score of 0 is no tag.
    assert names(choose_tags(np.array([0.3, 0.0, 0.3]), NAMES[:3], threshold=0)) == ["alp", "pier"]


def test_temperature_is_a_power_of_the_probabilities() -> None:
    whole = np.array([0.05, 0.5, 0.1, 0.2, 0.15])  # the last: something else
    for temperature in (0.5, 2.0):
        p = whole ** (1 / temperature)
        expected = sorted(p[:4] / p.sum(), reverse=True)
        tags = choose_tags(SCORES, NAMES, threshold=0, temperature=temperature)
        assert [tag.score for tag in tags] == pytest.approx(expected)
    sharp = choose_tags(SCORES, NAMES, threshold=0, temperature=0.01)
    assert sharp[0].name == "daisy" and sharp[0].score == pytest.approx(1)
    assert choose_tags(np.zeros(4), NAMES, threshold=0, temperature=0.01) == []


@pytest.mark.parametrize(
    ("scores", "kind", "message"),
    [
        (np.zeros(3), BundleError, "3 scores for 4 names"),
        (np.array([0, 0, 0, np.nan]), BundleError, r"not all in \[0, 1\]"),
        (np.array([0, 0, 0, 1.5]), BundleError, r"not all in \[0, 1\]"),
    ],
)
def test_scores_that_do_not_fit(scores: Any, kind: type[MMSRError], message: str) -> None:
    with pytest.raises(kind, match=message):
        choose_tags(scores, NAMES)


@pytest.mark.parametrize(
    "options", [{"threshold": 1.5}, {"threshold": -0.1}, {"most": -1}, {"temperature": 0.0}]
)
def test_options_outside_their_range(options: dict[str, Any]) -> None:
    (value,) = options.values()
    with pytest.raises(OptionError, match=str(value)):
        choose_tags(SCORES, NAMES, **options)


@pytest.mark.parametrize("colour", list(COLOURS))
def test_a_flat_picture_has_one_colour(colour: str) -> None:
    words = describe(flat(*COLOURS[colour]))
    assert colour in words and not (set(COLOURS) - {colour}) & set(words)
    assert words[-1] == "smooth"


@pytest.mark.parametrize(
    ("value", "light"), [(0, "dark"), (84, "dark"), (86, "daylight"), (169, "daylight"),
                         (171, "bright"), (255, "bright")],
)  # fmt: skip
def test_light_is_the_mean(value: int, light: str) -> None:
    assert describe(flat(value, value, value))[0] == light


def test_a_flat_grey_picture() -> None:
    assert describe(flat(128, 128, 128)) == ["daylight", "soft", "grey", "smooth"]


def test_the_larger_colour_comes_first() -> None:
    picture = flat(*COLOURS["green"])
    picture[:10] = flat(*COLOURS["blue"])[:10]
    words = describe(picture)
    assert words.index("green") < words.index("blue")


def test_contrast_and_texture() -> None:
    board = np.indices((64, 64)).sum(0) % 2  # alternating pixels: pure texture
    fine = np.repeat((board * 2.0 - 1)[..., None], 3, -1)
    assert {"fine", "texture", "soft"} <= set(describe(fine))
    halves = flat(0, 0, 0, size=(64, 64))
    halves[:, 32:] = 1
    assert "contrast" in describe(halves) and "smooth" in describe(halves)


def test_texture_is_measured_at_the_given_step() -> None:
    rng = np.random.default_rng(0)
    picture = rng.uniform(-0.2, 0.2, (64, 64, 3))  # mean step: 0.4/3 = 0.133 of [-1, 1]
    assert "fine" in describe(picture)
    assert "fine" not in describe(picture, step=4)


def test_a_close_up_is_sharp_only_in_its_middle() -> None:
    rng = np.random.default_rng(0)
    picture = flat(128, 128, 128, size=(96, 96))
    picture[32:64, 32:64] = rng.uniform(-1, 1, (32, 32, 1))
    assert describe(picture)[-1] == "close-up"
    everywhere = rng.uniform(-1, 1, (96, 96, 3))
    assert "close-up" not in describe(everywhere)


def test_a_landscape_is_bright_and_smooth_above_dark_and_rough() -> None:
    rng = np.random.default_rng(0)
    picture = flat(200, 220, 240, size=(96, 128))
    picture[40:] = rng.uniform(-1, 0.2, (56, 128, 1))
    assert describe(picture)[-1] == "landscape"
    assert "landscape" not in describe(picture[::-1])


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5), (17, 16)])
def test_tiny_pictures_have_the_same_words(size: tuple[int, int]) -> None:
    assert describe(flat(220, 40, 40, size=size)) == describe(flat(220, 40, 40))


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 5), (5, 5, 4)])
def test_arrays_that_are_no_pictures(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="must be"):
        describe(np.zeros(shape, np.float32))


def test_a_prompt_repeats_no_word() -> None:
    tags = [Tag("daisy", 0.5), Tag("orange", 0.2)]
    assert write_prompt(tags, ["bright", "orange", "smooth"]) == "daisy, orange, bright, smooth"
    assert write_prompt([], []) == ""
