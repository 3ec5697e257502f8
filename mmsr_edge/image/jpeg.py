"""JPEG's quantization tables: the quality that a file was written with.

A file keeps its tables but not its quality, and encoders differ in their tables. The quality here
is that of libjpeg whose table of luma is as coarse, taken as the sum of its 64 entries. The sum
does not depend on the entries' order, which is zigzag in files and row by row in T.81.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LUMA_TABLE", "jpeg_quality", "table_quality"]

# fmt: off
LUMA_TABLE = (  # ITU-T T.81, table K.1, row by row
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)
# fmt: on
"""Table of luma that libjpeg scales: its quality 50."""


def _coarseness(quality: int) -> int:
    """Sum of libjpeg's table of luma at a quality from 1 to 100."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(max((entry * percent + 50) // 100, 1), 255) for entry in LUMA_TABLE)


def table_quality(table: Sequence[int]) -> int:
    """libjpeg's quality, 1 to 100, whose table of luma is as coarse as `table`, 64 entries."""
    total = sum(table)
    return min(range(1, 101), key=lambda quality: abs(_coarseness(quality) - total))


def jpeg_quality(image: Any) -> int | None:
    """Quality of a JPEG file that Pillow has opened but not decoded; None for all others.

    A decoded image may have been changed in place since, and counts as no file.
    """
    tables: Mapping[int, Sequence[int]] | None = getattr(image, "quantization", None)
    if not tables or not getattr(image, "tile", None):
        return None
    return table_quality(tables[min(tables)])
