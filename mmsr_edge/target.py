"""Target: the size of the result, from a factor or from pixels, with the picture's own shape.

The networks enlarge by one factor only. Their result is then resized once, by Lanczos's filter,
whether it is to be larger or smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsr_edge.errors import OptionError

if TYPE_CHECKING:
    from mmsr_edge.config import UpscaleOptions

__all__ = ["FITS", "SCALE_RANGE", "Target", "resolve_target"]

SCALE_RANGE = (1.0, 8.0)
"""Factors that a result may be of."""
FITS = ("inside", "cover")
"""How a picture meets a box of another shape: all of it within, or all of the box full."""


@dataclass(frozen=True)
class Target:
    """The size of a result, and what part of the picture it shows."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    source: tuple[int, int]
    """(width, height) of the input."""
    box: tuple[float, float, float, float]
    """(left, top, right, bottom) of what is shown, in the input's pixels."""

    def is_whole(self, scale: int) -> bool:
        """Whether it is just `scale` times the input, with nothing to resize."""
        width, height = self.source
        return self.size == (width * scale, height * scale) and self.box == (0, 0, width, height)


def resolve_target(options: UpscaleOptions, source: tuple[int, int], native: int) -> Target:
    """What size the options come to.

    Args:
        options: `scale`, or `width`, `height` or both of them with `fit`, or none of these.
        source: (width, height) of the input.
        native: factor of the networks, and the default.

    Raises:
        OptionError: when the factor that results is outside `SCALE_RANGE`.
    """
    width, height = source
    whole = (0.0, 0.0, float(width), float(height))
    wide, high = options.width, options.height
    if wide is None and high is None:
        factor = float(native if options.scale is None else options.scale)
        return Target((_pixels(width * factor), _pixels(height * factor)), source, whole)
    factors = [w / side for w, side in ((wide, width), (high, height)) if w is not None]
    factor = max(factors) if options.fit == "cover" else min(factors)
    # A pixel more or less is rounding, not another factor.
    low, top = SCALE_RANGE
    if not low * 0.999 <= factor <= top * 1.001:
        asked = " and ".join(
            f"{name}={value}" for name, value in (("width", wide), ("height", high)) if value
        )
        raise OptionError(
            f"{asked} is {factor:.3g} times the picture's {width} x {height} pixels; "
            f"the factor must be from {low:g} to {top:g}"
        )
    if wide is not None and high is not None and options.fit == "cover":
        # The middle of the picture, in the shape of the box.
        left, upper = (width - wide / factor) / 2, (height - high / factor) / 2
        left, upper = max(left, 0.0), max(upper, 0.0)
        return Target((wide, high), source, (left, upper, width - left, height - upper))
    size = (
        min(_pixels(width * factor), wide or math.inf),
        min(_pixels(height * factor), high or math.inf),
    )
    return Target((int(size[0]), int(size[1])), source, whole)


def _pixels(length: float) -> int:
    return max(math.floor(length + 0.5), 1)
