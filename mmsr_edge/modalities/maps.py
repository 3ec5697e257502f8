"""Maps: depth, segmentation and edges as pictures that the tokenizer reads.

A map is float32 [H', W', 3] in [−1, 1] and covers the whole picture, at any resolution. A black and
white map may be uint8, which takes a quarter of the memory. `crop_map` cuts out a tile's part, so
that the map is made with the context of the whole picture. The caller may give a map as a path, a
PIL image or an array.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from mmsr_edge.bundle import MAP_SIDE
from mmsr_edge.errors import ImageError
from mmsr_edge.image import open_image
from mmsr_edge.image.pixels import to_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Map: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.uint8]

__all__ = [
    "MapSource",
    "black_and_white",
    "crop_map",
    "map_image",
    "open_source",
    "read_grey",
    "read_plane",
    "shrink_lines",
    "signed",
    "spread_grey",
]

MapSource: TypeAlias = "str | os.PathLike[str] | Image.Image | Array"


def black_and_white(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The uint8 map of a mask [H, W], true = 1 = white; it uses one byte per pixel."""
    return np.broadcast_to((mask.view(np.uint8) * np.uint8(255))[..., None], (*mask.shape, 3))


def signed(pixels: Map) -> npt.NDArray[np.float32]:
    """A map, or part of one, as float32 in [−1, 1]."""
    values: npt.NDArray[np.float32] = np.asarray(pixels, np.float32)
    return values / np.float32(127.5) - np.float32(1) if pixels.dtype == np.uint8 else values


def crop_map(
    whole: Map,
    box: tuple[float, float, float, float],
    size: int = MAP_SIDE,
    *,
    extent: tuple[int, int] | None = None,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> npt.NDArray[np.float32]:
    """Cut `box` out of a map and resize it: float32 [1, C, size, size], as the tokenizer's `map`.

    The resizing also reads pixels around the box, so that the maps of adjacent tiles match at their
    common edge. Where the box leaves the picture, the map is reflected about its edge, as
    `tiling.pad` does with the picture itself.

    Args:
        whole: a map, [H', W', C] with C = 3, or any other picture.
        box: (left, top, right, bottom).
        size: side of the result.
        extent: (height, width) of the picture; `box` is given in its pixels. None: the map's own
            size.
        resample: bilinear; nearest for colours that must not mix.

    Raises:
        ValueError: the box is empty.
    """
    height, width = whole.shape[:2]
    rows, columns = extent or (height, width)
    left, right = (x * width / columns for x in box[::2])
    top, bottom = (y * height / rows for y in box[1::2])
    if not (left < right and top < bottom):
        raise ValueError(f"box {box} is empty")
    ys, y0 = _reach(top, bottom, size, height)
    xs, x0 = _reach(left, right, size, width)
    grey = whole.strides[2] == 0  # one channel, repeated
    part = signed((whole[..., :1] if grey else whole)[ys[:, None], xs])
    inner = (left - x0, top - y0, right - x0, bottom - y0)
    planes = [
        Image.fromarray(np.ascontiguousarray(part[..., c])).resize((size, size), resample, inner)
        for c in range(part.shape[2])
    ]
    values = np.stack([np.asarray(plane, np.float32) for plane in planes])[None]
    return values.repeat(whole.shape[2], axis=1) if grey else values


def _reach(start: float, stop: float, size: int, length: int) -> tuple[npt.NDArray[np.intp], int]:
    """Reflected indices of the pixels that resizing [start, stop) reads, and the first index."""
    margin = max((stop - start) / size, 1.0) + 1
    first = math.floor(start - margin)
    indices = np.arange(first, math.ceil(stop + margin)) % (2 * length)
    return np.minimum(indices, 2 * length - 1 - indices), first


def map_image(whole: Map) -> Image.Image:
    """A map as an 8-bit picture, which can be viewed, or given as the map of another call.

    Grey if the map repeats one channel three times, else RGB.
    """
    pixels = whole[..., 0] if whole.strides[2] == 0 else whole
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else to_bytes(signed(pixels)))


def open_source(source: MapSource) -> Image.Image | Array:
    """Opens a path as an image; an image or an array is returned unchanged."""
    if isinstance(source, (str, Path, os.PathLike)):
        return open_image(source)
    return source


def read_plane(name: str, source: Array) -> Array:
    """An array [H, W] or [H, W, 1] as [H, W]; raises `ImageError` for other shapes."""
    plane = np.asarray(source)
    if plane.ndim == 3 and plane.shape[2] == 1:
        plane = plane[..., 0]
    if plane.ndim != 2 or plane.size == 0:
        raise ImageError(f"{name} has the shape {plane.shape}; it must be [height, width]")
    return plane


def read_grey(name: str, source: MapSource) -> tuple[npt.NDArray[np.float32], float | None]:
    """The source's values [H, W], and the full range of 8- and 16-bit types (else None)."""
    source = open_source(source)
    if isinstance(source, Image.Image) and source.mode not in {"I", "F", "I;16", "I;16L", "I;16B"}:
        source = source.convert("L")
    plane = read_plane(name, np.asarray(source))
    if plane.dtype.kind not in "buif":
        raise ImageError(f"{name} is of {plane.dtype}; it must be numbers")
    if not np.isfinite(plane).all():
        raise ImageError(f"{name} has values that are not finite; fill them in first")
    full = {"uint8": 255.0, "uint16": 65535.0}.get(plane.dtype.newbyteorder("=").name)
    return plane.astype(np.float32), full


def shrink_lines(values: Map, height: int, width: int) -> Map:
    """Shrink a grey map [H', W', 3] of white lines to [height, width, 3]: maxima of its blocks.

    Averages would turn lines of one pixel grey, the finer the map, the darker.
    """
    plane: Array = values[..., 0]
    for axis, size in enumerate((height, width)):
        starts = np.arange(size) * plane.shape[axis] // size
        plane = np.maximum.reduceat(plane, starts, axis=axis)
    return np.broadcast_to(plane[..., None], (*plane.shape, 3))


def spread_grey(grey: npt.NDArray[np.float32]) -> Map:
    """[H, W] in [0, 1] to [H, W, 3] in [−1, 1]; the three channels share one channel's memory."""
    values = grey * np.float32(2) - np.float32(1)
    return np.broadcast_to(values[..., None], (*grey.shape, 3))
