"""Memory: what a picture will take beside the networks, known before the work.

Counted are the buffers that grow with the picture; the figures are bytes of arrays that exist at
the same time at the worst moment. `tests/device/test_memory.py` holds them against measurement.
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
"""Of what does not grow with the picture: tiles, tables, the allocator's gaps."""


def needed_mb(finishing: Finishing, manifest: Manifest, *, by_rows: bool) -> float:
    """Megabytes (10⁶) that a picture takes at most, networks apart.

    Args:
        finishing: what is to be made.
        manifest: of the model.
        by_rows: whether the result goes into its file by rows, or is held whole.
    """
    width, height = finishing.picture.size
    wide = width * finishing.scale
    # The input as floats; edges at twice its size, as bytes, and as the result's map.
    per_input = 12 + 4 + 4
    if finishing.picture.icc is not None:
        per_input += 24  # in sRGB, and what sRGB lacks
    if finishing.picture.alpha is not None:
        per_input += 4 + 28  # opacity; colours, product and opacity to be enlarged
    fine: float = manifest.tile.size * finishing.scale * wide * 12  # a row of tiles, being joined
    window = (ROWS + 2 * HALO * finishing.scale) * wide * 12
    fine += 5 * window  # the colour fix: held, joined, fixed, and on the way to the file
    channels = finishing.channels
    out_width, out_height = finishing.target.size
    if not finishing.target.is_whole(finishing.scale) or finishing.picture.alpha is not None:
        rows = ROWS * min(max(out_height / (height * finishing.scale), 1), 4)
        fine += 4 * rows * max(wide, out_width) * 4 * (channels + 1)
    latents = manifest.tile.size * manifest.scale // manifest.latent.factor
    noise = 2 * latents * wide / manifest.latent.factor * manifest.latent.channels * 4
    # Pillow keeps four bytes a pixel, and encoders take as much again.
    whole = 0 if by_rows else (8 if channels > 2 else 2) * out_width * out_height
    # The tracing of edges, before the first tile, takes up to 40 bytes a pixel of the input; of a
    # very large one that is the most. A canvas may be there at the same time, but is empty then.
    edges = 40 * width * height
    tiles = per_input * width * height + fine + noise + whole
    return (_FIXED + max(edges, tiles)) / 1e6


def check_memory(
    finishing: Finishing, manifest: Manifest, limit: float | None, *, by_rows: bool
) -> None:
    """Refuse what would not stay within `limit` MB.

    Raises:
        OptionError: naming what it needs, and what would need less.
    """
    if limit is None:
        return
    needed = needed_mb(finishing, manifest, by_rows=by_rows)
    if needed <= limit:
        return
    advice = "crop the picture, or raise the limit"
    if not by_rows and needed_mb(finishing, manifest, by_rows=True) <= limit:
        advice = "write a .png or .tif, which goes by rows, or raise the limit"
    width, height = finishing.target.size
    raise OptionError(
        f"max_memory_mb is {limit:g}, but a result of {width} x {height} pixels needs "
        f"{needed:.0f} MB beside the networks; {advice}"
    )
