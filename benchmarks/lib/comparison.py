"""Comparison of methods on test sets: pairs of pictures, bicubic, and means of measured rows.

A test set is a folder with `hr/` and one folder per degradation (`lr_…`); files of the same name
belong together.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lib.metrics import Picture, measured

Row = dict[str, object]
"""A row of a table, by column."""
Method = Callable[[Image.Image], Image.Image]


def bicubic(lr: Image.Image) -> Image.Image:
    """Enlarge a picture ×4 by bicubic interpolation."""
    return lr.resize((lr.width * 4, lr.height * 4), Image.Resampling.BICUBIC)


def pairs(root: Path) -> list[tuple[str, Path, Path]]:
    """(degradation, LR path, HR path) of every pair of a test set."""
    found = [
        (folder.name, lr, root / "hr" / lr.name)
        for folder in sorted(root.glob("lr_*"))
        for lr in sorted(folder.iterdir())
        if (root / "hr" / lr.name).exists()
    ]
    if not found:
        raise SystemExit(
            f"{root}: no test set; expected hr/ and lr_…/ with files of the same names"
        )
    return found


def read(path: Path) -> Image.Image:
    """Read a picture as RGB."""
    with Image.open(path) as file:
        return file.convert("RGB")


def summarize(rows: list[Row]) -> list[Row]:
    """Means over the pictures of each set, degradation and method; seconds as a median."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["degradation"], row["method"]), []).append(row)
    out = []
    for (name, degradation, method), group in groups.items():
        line: Row = {"set": name, "degradation": degradation, "method": method}
        for column in measured(group[0]):
            line[column] = round(statistics.fmean(float(str(r[column])) for r in group), 4)
        line["seconds"] = round(statistics.median(float(str(r["seconds"])) for r in group), 3)
        out.append(line)
    return out


def busiest(picture: Picture, side: int) -> tuple[int, int]:
    """Corner (top, left) of the square of `side` pixels with the most detail."""
    energy = np.abs(np.diff(picture[..., 1].astype(np.int32), axis=1))
    height, width = picture.shape[:2]
    tops = range(0, max(1, height - side + 1), side // 2)
    lefts = range(0, max(1, width - side + 1), side // 2)
    corners = [(top, left) for top in tops for left in lefts]
    return max(corners, key=lambda c: int(energy[c[0] : c[0] + side, c[1] : c[1] + side].sum()))
