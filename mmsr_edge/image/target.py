"""Target: the size of the result, from a factor or from pixels, in the picture's aspect ratio.

The networks enlarge by one factor only. Their result is then resized once, with Lanczos's filter,
to a larger or a smaller size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmsr_edge.errors import OptionError

__all__ = ["FITS", "SCALE_RANGE", "Target", "resolve_target"]

SCALE_RANGE = (1.0, 8.0)
"""Allowed factors from the input's side to the result's."""
FITS = ("inside", "cover")
"""Ways to fit a picture to a box: the whole picture inside it, or the whole box covered."""


@dataclass(frozen=True)
class Target:
    """The size of a result, and the part of the picture that it shows."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    source: tuple[int, int]
    """(width, height) of the input."""
    box: tuple[float, float, float, float]
    """(left, top, right, bottom) of the part that is shown, in the input's pixels."""

    def is_whole(self, scale: int) -> bool:
        """Whether the result is the whole input at `scale`, so that nothing is resized."""
        width, height = self.source
        return self.size == (width * scale, height * scale) and self.box == (0, 0, width, height)


def resolve_target(
    source: tuple[int, int],
    native: int,
    *,
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    fit: str | None = None,
) -> Target:
    """The size of a result: from a factor, from one or both sides, or from the networks' factor.

    Args:
        source: (width, height) of the input in pixels.
        native: factor of the networks, which is the default.
        scale: factor; not together with `width` or `height`.
        width, height: sides of the result in pixels.
        fit: one of `FITS`, with both `width` and `height`; None: "inside".

    Raises:
        OptionError: the factor that `width` and `height` imply is outside `SCALE_RANGE`.
    """
    columns, rows = source
    whole = (0.0, 0.0, float(columns), float(rows))
    if width is None and height is None:
        factor = float(native if scale is None else scale)
        return Target((_pixels(columns * factor), _pixels(rows * factor)), source, whole)
    factors = [w / side for w, side in ((width, columns), (height, rows)) if w is not None]
    factor = max(factors) if fit == "cover" else min(factors)
    # A tolerance of 0.1 %, since sides are whole pixels.
    low, top = SCALE_RANGE
    if not low * 0.999 <= factor <= top * 1.001:
        asked = " and ".join(
            f"{name}={value}" for name, value in (("width", width), ("height", height)) if value
        )
        raise OptionError(
            f"{asked} is {factor:.3g} times the picture's {columns} x {rows} pixels; "
            f"the factor must be from {low:g} to {top:g}"
        )
    if width is not None and height is not None and fit == "cover":
        # The middle of the picture, in the aspect ratio of the box.
        left, upper = (columns - width / factor) / 2, (rows - height / factor) / 2
        left, upper = max(left, 0.0), max(upper, 0.0)
        return Target((width, height), source, (left, upper, columns - left, rows - upper))
    size = (
        min(_pixels(columns * factor), width or math.inf),
        min(_pixels(rows * factor), height or math.inf),
    )
    return Target((int(size[0]), int(size[1])), source, whole)


def _pixels(length: float) -> int:
    return max(math.floor(length + 0.5), 1)
