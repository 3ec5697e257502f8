"""Strips: the same crop of a picture by several methods, side by side, with captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from lib.comparison import busiest

LINE = 14
"""Height of a caption in pixels."""

Cells = list[tuple[str, Image.Image]]
"""Captions and pictures of one row; the pictures have one size."""


def strip(
    rows: Sequence[Sequence[tuple[str, Image.Image]]], side: int = 160, *, moving: bool = False
) -> Image.Image:
    """Draw one row per picture, cropped where the first picture of the row has the most detail.

    Args:
        rows: (caption, picture) of each cell; the pictures of a row have one size.
        side: side of a crop in pixels.
        moving: whether to crop where the first and the last picture differ most instead. The
            pictures are shown as they are.
    """
    width = max(len(row) for row in rows) * side
    sheet = Image.new("RGB", (width, len(rows) * (side + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        shown = row[0][1]
        if moving:
            shown = ImageChops.difference(row[0][1].convert("RGB"), row[-1][1].convert("RGB"))
        top, left = busiest(np.asarray(shown), side)
        y = number * (side + LINE)
        for column, (caption, picture) in enumerate(row):
            sheet.paste(picture.crop((left, top, left + side, top + side)), (column * side, y))
            draw.text((column * side + 2, y + side + 1), caption, fill="black")
    return sheet
