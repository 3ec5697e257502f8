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

__all__ = ["DEPTH", "depth_map", "make_depth"]


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
    return depth_map(depth[0, 0].clip(0, 1))


DEPTH = MapModality("depth", depth_map, make_depth, Image.Resampling.BILINEAR)
"""Depth as a modality."""
