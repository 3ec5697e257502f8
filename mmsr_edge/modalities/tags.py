"""Tags: words for a picture, those of the tagger and those that can be computed, as a prompt.

The paper's captions come from a vision-language model (Sec. 3); here a small classifier names
what it is sure of, as SeeSR's tagger does. Light, contrast, colours, texture and framing need no
network. Training describes its crops with the same function, so that both say the same words.
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
"""Colour words and their 8-bit RGB."""
DARK, BRIGHT = 85, 170
"""Mean 8-bit value below which a picture is dark, above which it is bright."""
SOFT, CONTRAST = 25, 65
"""Standard deviation of the 8-bit values likewise."""
SMOOTH, FINE = 0.03, 0.12
"""Mean step from pixel to pixel in [-1, 1] below which a picture is smooth, above which fine."""
GRID = 16
"""Side of the grid of mean colours that light, contrast and colours are read from."""


@dataclass(frozen=True)
class Tag:
    """Something that a picture shows."""

    name: str
    """In words."""
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
        scores: the tagger's [T] or [1, T], probabilities that add up to at most 1.
        names: of the T tags.
        threshold: probability below which a tag is left out.
        most: how many at most.
        temperature: τ, raises the probabilities to 1/τ: below 1 the surest tag gains.

    Raises:
        BundleError: when scores and names do not fit, or scores are not in [0, 1].
        OptionError: for options outside their range.
    """
    p = np.asarray(scores, np.float64).reshape(-1)
    if len(p) != len(names):
        raise BundleError(f"the tagger gives {len(p)} scores for {len(names)} names")
    if not ((p >= 0) & (p <= 1 + 1e-4)).all():  # also false for what is not a number
        raise BundleError("the tagger's scores are not all in [0, 1]; the file may be damaged")
    if not 0 <= threshold <= 1 or most < 0 or not (temperature > 0 and math.isfinite(temperature)):
        raise OptionError(
            f"threshold is {threshold}, most is {most}, temperature is {temperature}; they must be "
            "in [0, 1], at least 0, and above 0"
        )
    if temperature != 1:
        # pᵢ ← pᵢ^(1/τ) / Σⱼ pⱼ^(1/τ); something else, with what is lacking to 1, is one of the j.
        everything = np.append(p, max(1 - p.sum(), 0)) ** (1 / temperature)
        p = everything[:-1] / max(everything.sum(), np.finfo(np.float64).tiny)
    order = np.argsort(-p, kind="stable")[:most]
    return [Tag(names[i], float(p[i])) for i in order if p[i] > 0 and p[i] >= threshold]


def describe(picture: Array, step: float = 1.0) -> list[str]:
    """Words for light, contrast, colours, texture and framing, in this order.

    Args:
        picture: RGB [H, W, 3] in [-1, 1].
        step: pixels of the result to a pixel of the picture, 4 for one that will be enlarged four
            times; what is fine texture there is coarser in the picture.

    Raises:
        ImageError: for a picture without pixels.
    """
    rgb = np.asarray(picture, np.float32)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ImageError(f"the picture has the shape {rgb.shape}; it must be [height, width, 3]")
    cells = (_means(rgb, GRID) + 1) * 127.5
    light, spread = cells.mean(), cells.mean(-1).std()  # colour alone is no contrast
    words = ["dark" if light < DARK else "bright" if light > BRIGHT else "daylight"]
    words += ["contrast"] if spread > CONTRAST else ["soft"] if spread < SOFT else []
    words += _colours(cells.reshape(-1, 3))
    # Over n pixels of a natural picture a value changes about √n times as much as over one.
    busy = float(np.abs(np.diff(rgb, axis=0)).mean()) / math.sqrt(step) if len(rgb) > 1 else 0.0
    words += ["fine", "texture"] if busy > FINE else ["smooth"] if busy < SMOOTH else []
    return words + _framing(rgb)


def _colours(pixels: Array) -> list[str]:
    """The two commonest colour words of `pixels` [N, 3], 8-bit, or the only one."""
    table = np.array(list(COLOURS.values()), np.float64)
    nearest = ((pixels[:, None] - table[None]) ** 2).sum(-1).argmin(1)
    counts = np.bincount(nearest, minlength=len(table))
    common = np.argsort(-counts, kind="stable")[:2]
    return [list(COLOURS)[i] for i in common if counts[i]]


def _framing(rgb: Array) -> list[str]:
    """Say "close-up" or "landscape" where the picture's composition does.

    A close-up is sharp in its middle and out of focus around. A landscape has a plain, lighter
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
    """[H, W, C] averaged over a grid: [count, count, C]. Cells share the pixels between them."""
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
    """One line: what is shown, then how it looks; no word twice."""
    return ", ".join(dict.fromkeys([*(tag.name for tag in tags), *words]))
