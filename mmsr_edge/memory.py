"""Memory: the peak that a picture takes beside the networks, estimated before the work.

The estimate counts the buffers that grow with the picture: bytes of arrays that exist at the same
time at the peak. `tests/device/test_memory.py` compares it with measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsr_edge.errors import OptionError
from mmsr_edge.image.color import HALO
from mmsr_edge.image.strips import ROWS

if TYPE_CHECKING:
    from mmsr_edge.bundle import Manifest
    from mmsr_edge.image.finishing import Finishing

__all__ = ["check_memory", "needed_mb"]

_FIXED = 12e6
"""Bytes that do not grow with the picture: tiles, tables, gaps of the allocator."""


def needed_mb(finishing: Finishing, manifest: Manifest, *, by_rows: bool) -> float:
    """Peak memory of a picture, networks excluded, in MB of 10⁶ bytes.

    Args:
        finishing: the work on the picture, with its input and target.
        manifest: the model's manifest.
        by_rows: whether the result is written to its file by rows; otherwise it is held whole.
    """
    width, height = finishing.picture.size
    wide = width * finishing.scale
    # Bytes per input pixel: RGB floats, edges at twice the size, and the edge map of the result.
    per_input = 12 + 4 + 4
    if finishing.picture.icc is not None:
        per_input += 24  # RGB in sRGB, and the colours that sRGB lacks
    if finishing.picture.alpha is not None:
        per_input += 4 + 28  # opacity; colours, product and opacity for enlargement
    fine: float = manifest.tile.size * finishing.scale * wide * 12  # a row of tiles
    window = (ROWS + 2 * HALO * finishing.scale) * wide * 12
    fine += 5 * window  # colour fix: rows held, joined, corrected, and on their way to the file
    channels = finishing.channels
    out_width, out_height = finishing.target.size
    if not finishing.target.is_whole(finishing.scale) or finishing.picture.alpha is not None:
        rows = ROWS * min(max(out_height / (height * finishing.scale), 1), 4)
        fine += 4 * rows * max(wide, out_width) * 4 * (channels + 1)
    latents = manifest.tile.size * manifest.scale // manifest.latent.factor
    noise = 2 * latents * wide / manifest.latent.factor * manifest.latent.channels * 4
    # Pillow holds four bytes per pixel, and an encoder takes as much again.
    whole = 0 if by_rows else (8 if channels > 2 else 2) * out_width * out_height
    # Canny, before the first tile, takes up to 40 bytes per input pixel, which is the peak of very
    # large inputs. A canvas may exist by then, but it is still empty.
    edges = 40 * width * height
    tiles = per_input * width * height + fine + noise + whole
    return (_FIXED + max(edges, tiles)) / 1e6


def check_memory(
    finishing: Finishing, manifest: Manifest, limit: float | None, *, by_rows: bool
) -> None:
    """Check that a picture is estimated to stay within `limit` MB; None: no limit.

    Raises:
        OptionError: the estimate exceeds `limit`. The message gives it and a remedy.
    """
    if limit is None:
        return
    needed = needed_mb(finishing, manifest, by_rows=by_rows)
    if needed <= limit:
        return
    advice = "crop the picture, or raise the limit"
    if not by_rows and needed_mb(finishing, manifest, by_rows=True) <= limit:
        advice = "write a .png or .tif, which is written by rows, or raise the limit"
    width, height = finishing.target.size
    raise OptionError(
        f"max_memory_mb is {limit:g}, but a result of {width} x {height} pixels needs "
        f"{needed:.0f} MB beside the networks; {advice}"
    )
