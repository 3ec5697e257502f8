"""Depth: near is white. From the caller's depth map, or by the bundle's depth network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmsr_edge.modalities.base import MapModality, UnusableMapError, run_on_picture
from mmsr_edge.modalities.maps import MapSource, read_grey, spread_grey

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmsr_edge.modalities.base import NetworkRun
    from mmsr_edge.modalities.maps import Map

    Array = npt.NDArray[Any]

__all__ = ["DEPTH", "depth_map", "make_depth", "spread_depth"]


def depth_map(depth: MapSource) -> Map:
    """The map of a depth estimate, near = 1 = white.

    Args:
        depth: grey, any size; only relative depth matters. 8- and 16-bit pixels are divided by
            their full range, floats in [0, 1] are used unchanged, and all other numbers are
            stretched so that the farthest becomes 0 and the nearest 1.

    Raises:
        ImageError: the depth is not one finite number per pixel.
    """
    grey, full = read_grey("depth", depth)
    if full:
        grey = grey / full
    elif grey.min() < 0 or grey.max() > 1:
        low, high = float(grey.min()), float(grey.max())
        grey = (grey - low) / (high - low) if high > low else np.zeros_like(grey)
    return spread_grey(grey)


def make_depth(rgb: Array, run: NetworkRun) -> Map | None:
    """The depth network's map of a picture [H, W, 3] in [-1, 1]; None without that network.

    Raises:
        UnusableMapError: the depth is not finite, or the same everywhere.
    """
    depth = run_on_picture(rgb, run, "depth")
    if depth is None:
        return None
    if not np.isfinite(depth).all():
        raise UnusableMapError("the network's depth is not finite")
    if np.ptp(depth) < 1 / 255:
        raise UnusableMapError("the network finds the same depth everywhere")
    return depth_map(spread_depth(depth[0, 0]))


def spread_depth(depth: Array) -> npt.NDArray[np.float32]:
    """A network's depth over the whole range: its farthest 2 % become 0, its median 0.5, its
    nearest 2 % become 1, linearly between them.

    Only the order of a network's depths is reliable. Most pictures fill a fifth of the range, at a
    place that differs from picture to picture; spread out, far and near mean the same in all.
    """
    low, middle, high = np.quantile(depth, (0.02, 0.5, 0.98))
    spread = np.interp(depth, (low, max(middle, low + 1e-6), max(high, middle + 2e-6)), (0, 0.5, 1))
    return spread.astype(np.float32)


DEPTH = MapModality("depth", depth_map, make_depth, Image.Resampling.BILINEAR)
"""Depth as a modality."""
