"""Tags: words that describe a picture, from the tagger or computed, joined to a prompt.

The paper's captions come from a vision-language model (Sec. 3). Here a small classifier gives the
most probable tags, as SeeSR's tagger does. Words for light, contrast, colours, texture and framing
are computed without a network. Training describes its crops with the same function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.errors import BundleError, ImageError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Tag", "choose_tags", "describe", "write_prompt"]

COLOURS = {
    "red": (220, 40, 40), "orange": (240, 150, 40), "yellow": (235, 220, 60),
    "green": (60, 150, 60), "blue": (60, 90, 200), "purple": (140, 60, 160),
    "pink": (240, 150, 180), "brown": (120, 80, 50), "white": (240, 240, 240),
    "grey": (128, 128, 128), "black": (20, 20, 20),
}  # fmt: skip
"""Colour words, and the 8-bit RGB value of each."""
DARK, BRIGHT = 85, 170
"""Mean 8-bit value below which a picture is dark, above which it is bright."""
SOFT, CONTRAST = 25, 65
"""Standard deviation of the 8-bit values below which contrast is soft, above which it is high."""
SMOOTH, FINE = 0.03, 0.12
"""Mean difference of adjacent pixels, with values in [-1, 1]: below SMOOTH a picture is smooth,
above FINE it has fine texture."""
GRID = 16
"""Side of the grid of mean colours from which light, contrast and colour words are computed."""


@dataclass(frozen=True)
class Tag:
    """Something that a picture shows."""

    name: str
    """Word or words for it."""
    score: float
    """Its probability."""


def choose_tags(
    scores: Array,
    names: Sequence[str],
    *,
    threshold: float = 0.25,
    most: int = 5,
    temperature: float = 1.0,
) -> list[Tag]:
    """The tags of a picture, the most probable first.

    Args:
        scores: the tagger's output, [T] or [1, T]: probabilities with a sum of at most 1.
        names: names of the T tags.
        threshold: probability below which a tag is left out.
        most: largest number of tags.
        temperature: τ; probabilities are raised to the power 1/τ and normalized. Below 1, the most
            probable tag gains.

    Raises:
        BundleError: the numbers of scores and names differ, or scores are not in [0, 1].
        OptionError: an option is outside its range.
    """
    p = np.asarray(scores, np.float64).reshape(-1)
    if len(p) != len(names):
        raise BundleError(f"the tagger gives {len(p)} scores for {len(names)} names")
    if not ((p >= 0) & (p <= 1 + 1e-4)).all():  # also rejects NaN
        raise BundleError("the tagger's scores are not all in [0, 1]; the file may be damaged")
    if not 0 <= threshold <= 1 or most < 0 or not (temperature > 0 and math.isfinite(temperature)):
        raise OptionError(
            f"threshold is {threshold}, most is {most}, temperature is {temperature}; they must "
            "be in [0, 1], at least 0, and finite and above 0, in this order"
        )
    if temperature != 1:
        # pᵢ ← pᵢ^(1/τ) / Σⱼ pⱼ^(1/τ); one j is "something else", with the rest of the probability.
        powers = np.append(p, max(1 - p.sum(), 0)) ** (1 / temperature)
        p = powers[:-1] / max(powers.sum(), np.finfo(np.float64).tiny)
    order = np.argsort(-p, kind="stable")[:most]
    return [Tag(names[i], float(p[i])) for i in order if p[i] > 0 and p[i] >= threshold]


def describe(picture: Array, step: float = 1.0) -> list[str]:
    """Words for light, contrast, colours, texture and framing, in this order.

    Args:
        picture: RGB [H, W, 3] in [-1, 1].
        step: pixels of the result per pixel of the picture, along a side: 4 for a picture that
            will be upscaled by 4. Texture is judged at the scale of the result.

    Raises:
        ImageError: the picture is empty, or is not [H, W, 3].
    """
    rgb = np.asarray(picture, np.float32)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ImageError(f"the picture has the shape {rgb.shape}; it must be [height, width, 3]")
    cells = (_means(rgb, GRID) + 1) * 127.5
    light, spread = cells.mean(), cells.mean(-1).std()  # colour alone is no contrast
    words = ["dark" if light < DARK else "bright" if light > BRIGHT else "daylight"]
    words += ["contrast"] if spread > CONTRAST else ["soft"] if spread < SOFT else []
    words += _colours(cells.reshape(-1, 3))
    # In a natural picture, values n pixels apart differ about √n times as much as adjacent ones.
    busy = float(np.abs(np.diff(rgb, axis=0)).mean()) / math.sqrt(step) if len(rgb) > 1 else 0.0
    words += ["fine", "texture"] if busy > FINE else ["smooth"] if busy < SMOOTH else []
    return words + _framing(rgb)


def _colours(pixels: Array) -> list[str]:
    """The two most frequent colour words of `pixels` [N, 3], 8-bit, or one if there is only one."""
    table = np.array(list(COLOURS.values()), np.float64)
    nearest = ((pixels[:, None] - table[None]) ** 2).sum(-1).argmin(1)
    counts = np.bincount(nearest, minlength=len(table))
    common = np.argsort(-counts, kind="stable")[:2]
    return [list(COLOURS)[i] for i in common if counts[i]]


def _framing(rgb: Array) -> list[str]:
    """["close-up"], ["landscape"] or [], from the picture's composition.

    A close-up is sharp in the middle and out of focus around it. A landscape has a plain, lighter
    upper third, and ground with texture below.
    """
    grey = rgb.mean(-1, keepdims=True)
    detail = np.zeros_like(grey)
    detail[1:, :] += np.abs(np.diff(grey, axis=0))
    detail[:, 1:] += np.abs(np.diff(grey, axis=1))
    sharp = _means(detail, 6)[..., 0]
    middle = sharp[2:4, 2:4].mean()
    border = np.concatenate([sharp[0], sharp[-1], sharp[1:-1, 0], sharp[1:-1, -1]]).mean()
    if middle > SMOOTH and border < 0.3 * middle:
        return ["close-up"]
    light = _means(grey, 6)[..., 0]
    lighter = light[:2].mean() - light[3:].mean() > 0.15
    if lighter and sharp[3:].mean() > SMOOTH and sharp[:2].mean() < 0.4 * sharp[3:].mean():
        return ["landscape"]
    return []


def _means(planes: Array, count: int) -> npt.NDArray[np.float64]:
    """[H, W, C] averaged over a grid: [count, count, C]. Adjoining cells may share pixels."""
    for axis in (0, 1):
        length = planes.shape[axis]
        edges = np.arange(count + 1) * length / count
        first, last = np.floor(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int)
        sums = np.cumsum(planes, axis=axis, dtype=np.float64)
        sums = np.insert(sums, 0, 0, axis=axis)
        width = (last - first).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        planes = (sums.take(last, axis) - sums.take(first, axis)) / width
    return planes


def write_prompt(tags: Sequence[Tag], words: Sequence[str]) -> str:
    """One line: the names of the tags, then the words, without repetition."""
    return ", ".join(dict.fromkeys([*(tag.name for tag in tags), *words]))
