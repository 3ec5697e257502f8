"""Regions of a picture that a modality's dial moves, and those that it leaves alone (Fig. 9).

The release gates and `benchmarks/ablation.py dials` measure the same thing with this module: the
energy of detail in both regions at several temperatures, and how far the regions move. It is numpy
alone, so that a device can measure it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mmsr_edge.modalities.segmentation import NO_CLASS, SUBJECT, palette_numbers

Mask = NDArray[np.bool_]
Picture = NDArray[np.uint8]

TEMPERATURES = (0.4, 0.7, 1.0, 3.0, 10.0)
"""Temperatures τ at which dials are measured, over the paper's range."""
REGIONS = {
    "depth": ("far half", "near half"),
    "segmentation": ("rest", "subject"),
    "edges": ("flat parts", "edges"),
}
"""By modality: the region that its dial moves, and the one that it leaves alone; see
`training.data.dials`."""
REACH = 2
"""Pixels around an edge that belong to it."""
LEAST = 0.1
"""Least share of the picture that a region must have to be measured."""
_LUMA = np.array([0.299, 0.587, 0.114])


def split(
    modality: str, whole: NDArray[Any], size: tuple[int, int], middle: float | None = None
) -> tuple[Mask, Mask] | None:
    """Masks [height, width] of a modality's two regions, or None where the map has only one.

    Args:
        modality: a key of `REGIONS`.
        whole: the picture's map at any resolution: depth or edges [H, W], near and edge = bright;
            segmentation in colours [H, W, 3], with the subject marked.
        size: (width, height) of the picture.
        middle: depth that divides far from near, of a part of a picture; None: the map's median.
    """
    if modality == "segmentation":
        numbers = _resized(palette_numbers(np.asarray(whole, np.uint8)), size)
        moved = (numbers < SUBJECT) | (numbers == NO_CLASS)
    elif modality == "depth":
        depth = _resized(whole, size, Image.Resampling.BILINEAR)
        moved = _lower_half(depth) if middle is None else depth < middle
    else:
        moved = ~widened(_resized(whole, size) > np.max(whole) / 2)
    share = moved.mean()
    return (moved, ~moved) if LEAST <= share <= 1 - LEAST else None


def widened(mask: Mask, reach: int = REACH) -> Mask:
    """The pixels of a mask and those up to `reach` away, in a square."""
    spread = Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * reach + 1))
    return np.asarray(spread) > 0


def _resized(
    plane: NDArray[Any], size: tuple[int, int], how: Image.Resampling = Image.Resampling.NEAREST
) -> NDArray[Any]:
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, how))


def _lower_half(depth: NDArray[Any]) -> Mask:
    """Pixels beyond the median; of many equal values, with or without them, as halves better."""
    middle = np.median(depth)
    return min((depth < middle, depth <= middle), key=lambda far: abs(far.mean() - 0.5))


def laplacian_energy(picture: Picture) -> NDArray[np.float64]:
    """(Δ luma)² per pixel [H, W], in squared grey levels; edge pixels are repeated outwards."""
    y = np.pad(picture @ _LUMA, 1, mode="edge")
    around = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:]
    return np.square(around - 4 * y[1:-1, 1:-1])


@dataclass(frozen=True)
class DialEffect:
    """What the temperatures of one modality do to the two regions of a picture, or of several."""

    modality: str
    """A key of `REGIONS`."""
    temperatures: tuple[float, ...]
    """The temperatures τ, in ascending order."""
    energy: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean energy of the Laplacian by temperature, of the moved region and of the other."""
    moves: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean |Δ| against the first temperature, in grey levels, likewise."""

    @property
    def moved(self) -> float:
        """Change of the moved region's energy from the first τ to the last, 0 to 1.

        As a share of the larger energy, so that it is not flattered.
        """
        first, last = self.energy[0][0], self.energy[0][-1]
        return 1 - min(first, last) / max(first, last, 1e-9)

    @property
    def spilt(self) -> float:
        """Change of the other region's energy, as a share of the smaller energy."""
        first, last = self.energy[1][0], self.energy[1][-1]
        return max(first, last) / max(min(first, last), 1e-9) - 1

    @property
    def levels(self) -> float:
        """Mean |Δ| of the moved region from the first τ to the last, in grey levels."""
        return self.moves[0][-1]

    @property
    def backward(self) -> int:
        """Steps of τ at which the moved region's energy does not go the way that it goes in all."""
        steps = np.diff(self.energy[0])
        direction = np.sign(self.energy[0][-1] - self.energy[0][0]) or 1.0
        return int((steps * direction <= 0).sum())


def measure_dial(
    modality: str,
    temperatures: Sequence[float],
    pictures: Sequence[Picture],
    regions: tuple[Mask, Mask],
) -> DialEffect:
    """Effect of a modality's temperature on one picture.

    Args:
        modality: a key of `REGIONS`.
        temperatures: the temperatures, in ascending order.
        pictures: the picture at each of them, [H, W, 3].
        regions: masks from `split`.
    """
    first = pictures[0].astype(np.int16)
    shifts = [np.abs(p - first).mean(-1) for p in pictures]
    energies = [laplacian_energy(p) for p in pictures]

    def by_region(planes: list[NDArray[Any]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        moved, kept = (tuple(float(p[mask].mean()) for p in planes) for mask in regions)
        return moved, kept

    return DialEffect(modality, tuple(temperatures), by_region(energies), by_region(shifts))


def mean_effect(effects: Sequence[DialEffect]) -> DialEffect:
    """Mean of the effects on several pictures."""

    def mean(of: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        moved, kept = np.mean([getattr(e, of) for e in effects], axis=0).tolist()
        return tuple(moved), tuple(kept)

    return DialEffect(effects[0].modality, effects[0].temperatures, mean("energy"), mean("moves"))
