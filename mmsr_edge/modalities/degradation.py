"""Degradation: levels of noise, blur and JPEG of a picture, and how the model is told them.

A tile of the LR picture does not tell grain from texture, or a soft lens from a soft thing. The
whole picture does, and its file may, so the levels are estimated once for the picture. They reach
the model as words of its prompt and, in bundles whose decoder has that input, as numbers.

A level is a number from 0, none, to 1; `training.data.degradation.measure_degradation` defines it.
A level that is missing is unknown. Training writes its words with `degradation_words`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.bundle import LEVELS
from mmsr_edge.errors import BackendError, Cancelled, MMSRError
from mmsr_edge.tiling import pad

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from mmsr_edge.modalities.base import NetworkRun

    Array = npt.NDArray[Any]

__all__ = [
    "STEPS",
    "WINDOWS",
    "collect_levels",
    "degradation_vector",
    "degradation_words",
    "estimate_degradation",
    "jpeg_level",
    "set_levels",
    "share_to_keep",
]

WINDOWS = 8
"""Most windows of a picture that the degradation estimator sees."""
STEPS = 9
"""Highest digit of a word: levels are said in steps of 1/9."""

_SPOTS = 8  # places along a side from which the windows are chosen

# Mean level of JPEG by quality: `measure_degradation` of 109 clean LR tiles of 128 x 128 that
# `training.data.jpeg` compressed. From tile to tile the levels of one quality differ by about 0.2.
_QUALITIES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
_JPEG_LEVELS = (0.99, 0.98, 0.89, 0.58, 0.44, 0.34, 0.28, 0.22, 0.17, 0.11, 0.04, 0.01, 0.0)


def jpeg_level(quality: float) -> float:
    """Level of JPEG that compression at a quality from 1 to 100 leads to, on average."""
    return float(np.interp(quality, _QUALITIES, _JPEG_LEVELS))


def estimate_degradation(
    rgb: Array, run: NetworkRun, jpeg_quality: float | None = None
) -> dict[str, float]:
    """Levels of a picture by name; empty without the bundle's degradation estimator.

    They are the medians over up to `WINDOWS` windows of the picture at full size. A file's tables
    tell of its last compression only, and the estimator sees only what is left of the others, so
    the higher of the two levels of JPEG counts.

    Args:
        rgb: the picture, [H, W, 3] in [-1, 1].
        run: runs the bundle's degradation estimator.
        jpeg_quality: quality of the picture's file, 1 to 100, by its quantization tables; None: it
            is not a JPEG file.

    Raises:
        BackendError: the estimate is not finite.
    """
    spec = run.manifest.components.get("degradation")
    if spec is None:
        return {}
    windows = choose_windows(rgb, spec.inputs[0].shape[-1])
    found = np.stack([run.run("degradation", image=window)["levels"][0] for window in windows])
    if not np.isfinite(found).all():
        raise BackendError("the estimated levels of degradation are not finite")
    medians = np.median(found, axis=0).clip(0, 1)
    levels = {name: float(level) for name, level in zip(LEVELS, medians, strict=True)}
    if jpeg_quality is not None:
        levels["jpeg"] = max(levels["jpeg"], jpeg_level(jpeg_quality))
    return levels


def choose_windows(rgb: Array, side: int) -> list[npt.NDArray[np.float32]]:
    """Up to `WINDOWS` windows [1, 3, side, side] of a picture [H, W, 3], at full size.

    Places are spread evenly over the picture, and sorted by the strength of their gradients; every
    n-th of the more detailed half is taken. Flat windows tell nothing of blur.
    """
    padded = pad(rgb, max(rgb.shape[0], side), max(rgb.shape[1], side))
    tops, lefts = (_spots(length, side) for length in padded.shape[:2])
    places = [(top, left) for top in tops for left in lefts]
    parts = [padded[top : top + side, left : left + side] for top, left in places]
    order = np.argsort([_strength(part) for part in parts], kind="stable")[::-1]
    reach = max(len(parts) // 2, min(len(parts), WINDOWS))
    chosen = np.linspace(0, reach - 1, min(reach, WINDOWS)).round().astype(int)
    return [
        np.ascontiguousarray(parts[order[i]].transpose(2, 0, 1)[None], np.float32) for i in chosen
    ]


def _spots(length: int, side: int) -> list[int]:
    count = min(-(-length // side), _SPOTS)
    return [int(spot) for spot in np.linspace(0, length - side, count).round()]


def _strength(part: Array) -> float:
    """Mean difference of adjacent pixels of the green channel, which carries most of the luma."""
    green = part[..., 1]
    return float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean())


def collect_levels(
    rgb: Array, run: NetworkRun, jpeg_quality: float | None, warnings: list[str]
) -> dict[str, float]:
    """`estimate_degradation`; `warnings` receives one sentence if the network failed."""
    try:
        return estimate_degradation(rgb, run, jpeg_quality)
    except Cancelled:
        raise
    except MMSRError as error:
        warnings.append(f"degradation is left out: {error}")
        return {}


def set_levels(
    given: str | Mapping[str, float] | None, denoise: float | None, found: Mapping[str, float]
) -> dict[str, float]:
    """The levels that the model is told, by name; those that are missing are unknown.

    Args:
        given: the option `degradation`.
        denoise: the option `denoise`: replaces the level of noise and, where the level of JPEG was
            estimated and its word is not "jpeg0", that of JPEG.
        found: the estimated levels.
    """
    own = {} if given is None or isinstance(given, str) else dict(given)
    levels = {} if given is None else dict(found)
    if denoise is not None:
        if _digit(levels.get("jpeg", 0.0)) > 0:
            levels["jpeg"] = denoise
        levels["noise"] = denoise
    levels.update(own)
    return {name: float(levels[name]) for name in LEVELS if name in levels}


def _digit(level: float) -> int:
    return round(STEPS * level)


def degradation_words(levels: Mapping[str, float | None]) -> str:
    """The known levels as words: "noise3, blur7, jpeg2". The digit is the level in ninths."""
    known = ((name, levels.get(name)) for name in LEVELS)
    return ", ".join(f"{name}{_digit(level)}" for name, level in known if level is not None)


def degradation_vector(
    levels: Mapping[str, float | None], found: Mapping[str, float] | None = None
) -> npt.NDArray[np.float32]:
    """The decoder's `degradation`, [1, 8].

    Levels, 0 where unknown; 1 for each known one; and the shares of noise and blur that are to stay
    (`share_to_keep`).

    Args:
        levels: the levels that the model is told, by name.
        found: the estimated levels, by name; None: there are none.
    """
    known = [levels.get(name) for name in LEVELS]
    values = [0.0 if level is None else level for level in known]
    flags = [float(level is not None) for level in known]
    found = found or {}
    # A level of noise is the root of a deviation.
    stay = [
        share_to_keep(levels.get(name), found.get(name), power)
        for name, power in (("noise", 2), ("blur", 1))
    ]
    return np.array([values + flags + stay], np.float32)


def share_to_keep(told: float | None, found: float | None, power: int) -> float:
    """Share of a degradation that is to stay, in [-0.5, 1].

    It is 0 if what was told is what was found, or one of them is unknown; 1 if there is said to be
    none; negative if there is said to be more, down to -0.5 at a level of 1.

    Args:
        told, found: levels.
        power: power of the level that is an amplitude.
    """
    if told is None or found is None:
        return 0.0
    if told < found:
        return float(1 - (told / found) ** power)
    return 0.0 if told == found else float(-0.5 * (told - found) / (1 - found))
