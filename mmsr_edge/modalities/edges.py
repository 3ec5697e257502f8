"""Edges: white on black. From the caller's edge map, or Canny's edges of the picture."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmsr_edge.errors import ImageError
from mmsr_edge.modalities.base import MapModality, UnusableMapError
from mmsr_edge.modalities.canny import detect_edges
from mmsr_edge.modalities.maps import MapSource, black_and_white, read_grey, spread_grey

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmsr_edge.modalities.base import NetworkRun
    from mmsr_edge.modalities.maps import Map

    Array = npt.NDArray[Any]

__all__ = ["EDGES", "edge_map", "make_edges"]


def edge_map(edges: MapSource) -> Map:
    """The map of an edge picture, edge = 1 = white.

    Args:
        edges: grey, any size: bool, 0 and 1 of any type, floats in [0, 1], or the full 8- or
            16-bit range. `mmsr_edge.modalities.canny.canny` makes a bool array of this kind.

    Raises:
        ImageError: the edges are not one number per pixel in one of these ranges.
    """
    grey, full = read_grey("edges", edges)
    if grey.max() > 1 and full:
        grey = grey / full
    if grey.min() < 0 or grey.max() > 1:
        raise ImageError(
            f"edges range over [{grey.min():g}, {grey.max():g}]; they must be bool, numbers in "
            "[0, 1], or 8- or 16-bit pixels"
        )
    return spread_grey(grey)


def make_edges(rgb: Array, run: NetworkRun) -> Map:
    """The map of Canny's edges of a picture [H, W, 3] in [-1, 1].

    Raises:
        UnusableMapError: the picture has no edges.
    """
    began = time.perf_counter()
    # At the tokenizer's resolution, so that lines are as thin as in training.
    manifest = run.manifest
    edges = detect_edges(rgb, run.map_side / manifest.tile.size)
    run.seconds["edges"] += time.perf_counter() - began
    if not edges.any():
        raise UnusableMapError("Canny finds no edges in this picture")
    return black_and_white(edges)


EDGES = MapModality("edges", edge_map, make_edges, Image.Resampling.BILINEAR, thin_lines=True)
"""Edges as a modality."""
