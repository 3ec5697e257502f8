"""Picture maps: depth, segmentation and edges of one picture: the caller's, made here, or absent.

A modality that fails is replaced by m∅, as the authors did by hand for two flat pictures and a
pencil drawing (Sec. 4, evaluation details).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmsr_edge.config import MAPS
from mmsr_edge.errors import Cancelled, MMSRError
from mmsr_edge.modalities.edges import detect_edges
from mmsr_edge.modalities.maps import (
    black_and_white,
    crop_map,
    depth_map,
    edge_map,
    segmentation_map,
    signed,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmsr_edge.config import UpscaleOptions
    from mmsr_edge.modalities.maps import Map
    from mmsr_edge.pipeline import PictureRun

    Array = npt.NDArray[Any]

__all__ = ["PictureMap", "collect_maps", "see_whole", "whole_picture"]


@dataclass(frozen=True, eq=False)
class PictureMap:
    """A map of a whole picture."""

    values: Map
    """[H', W', 3] as `maps` has it, at a resolution of its own."""
    resample: Image.Resampling
    """How it may be resized: colours that stand for classes must not mix."""

    def crop(
        self, box: tuple[int, int, int, int], size: int, extent: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """What a tile sees of it: [1, 3, size, size].

        Args:
            box: the tile, (left, top, right, bottom) in the picture's pixels.
            size: the tokenizer's side.
            extent: (height, width) of the picture.
        """
        return crop_map(self.values, box, size, extent=extent, resample=self.resample)


class _UnusableMapError(MMSRError):
    """What was found says nothing."""


def collect_maps(
    rgb: Array, options: UpscaleOptions, run: PictureRun, warnings: list[str]
) -> dict[str, PictureMap | None]:
    """The maps of a picture by name of `MAPS`; None where a modality is absent.

    Args:
        rgb: the picture, [H, W, 3] in [-1, 1].
        options: what the caller wants for each map.
        run: runs the bundle's depth and segmentation networks.
        warnings: gets a sentence for every "auto" that failed.

    Raises:
        ImageError: for a map of the caller's that cannot be read.
    """
    read = {"depth": depth_map, "segmentation": segmentation_map, "edges": edge_map}
    make = {"depth": _depth, "segmentation": _segmentation, "edges": _edges}
    maps: dict[str, PictureMap | None] = {}
    for name in MAPS:
        given = getattr(options, name)
        values: Map | None = None
        if isinstance(given, str):  # "auto"
            try:
                values = make[name](rgb, run)
            except Cancelled:
                raise
            except MMSRError as error:
                warnings.append(f"{name} is left out: {error}")
        elif given is not None:
            values = read[name](given)
        if values is None:
            maps[name] = None
            continue
        nearest = name == "segmentation"
        resample = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        maps[name] = PictureMap(_no_finer(values, rgb, run, resample), resample)
    return maps


def _edges(rgb: Array, run: PictureRun) -> Map:
    began = time.perf_counter()
    # At the tokenizer's resolution, so that lines are as thin as they were in training.
    manifest = run.pipeline.manifest
    edges = detect_edges(rgb, run.pipeline.map_side / manifest.tile.size)
    run.seconds["edges"] += time.perf_counter() - began
    if not edges.any():
        raise _UnusableMapError("Canny finds none in this picture")
    return black_and_white(edges)


def _depth(rgb: Array, run: PictureRun) -> Map | None:
    depth = see_whole(rgb, run, "depth")
    if depth is None:
        return None
    if not np.isfinite(depth).all():
        raise _UnusableMapError("the network's depth is not finite")
    if np.ptp(depth) < 1 / 255:
        raise _UnusableMapError("the network finds the same depth everywhere")
    return depth_map(depth[0, 0].clip(0, 1))


def _segmentation(rgb: Array, run: PictureRun) -> Map | None:
    classes = see_whole(rgb, run, "segmentation")
    if classes is None:
        return None
    if not classes.any():
        raise _UnusableMapError("the network finds nothing that it knows")
    return segmentation_map(classes[0])


def see_whole(rgb: Array, run: PictureRun, component: str) -> Array | None:
    """The output of a network that sees the whole picture, squeezed to its input's square.

    None where the bundle has no such network.
    """
    spec = run.pipeline.manifest.components.get(component)
    if spec is None:
        return None
    image = whole_picture(rgb, spec.inputs[0].shape[-1])
    return run.run(component, image=image)[spec.outputs[0].name]


def whole_picture(rgb: Array, side: int) -> npt.NDArray[np.float32]:
    """A picture [H, W, 3] squeezed to a square, as those networks take it: [1, 3, side, side]."""
    return crop_map(rgb, (0, 0, rgb.shape[1], rgb.shape[0]), side)


def _no_finer(values: Map, rgb: Array, run: PictureRun, resample: Image.Resampling) -> Map:
    """`values`, shrunk to what the tokenizer can see of them.

    A small picture is reflected many times over to fill a tile, and a large map of it would be too.
    """
    density = run.pipeline.map_side / run.pipeline.manifest.tile.size
    height, width = (
        min(have, math.ceil(side * density))
        for have, side in zip(values.shape[:2], rgb.shape[:2], strict=True)
    )
    if (height, width) == values.shape[:2]:
        return values
    planes = [
        Image.fromarray(np.ascontiguousarray(signed(values[..., c]))).resize(
            (width, height), resample
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(plane, np.float32) for plane in planes], axis=-1)
