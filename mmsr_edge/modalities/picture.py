"""Depth, segmentation and edge maps of one picture: from the caller, made here, or absent.

A modality that fails is replaced by m∅, as the authors did by hand for two flat pictures and a
pencil drawing (Sec. 4, evaluation details).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmsr_edge.errors import Cancelled, MMSRError
from mmsr_edge.modalities.depth import DEPTH
from mmsr_edge.modalities.edges import EDGES
from mmsr_edge.modalities.maps import crop_map, shrink_lines, signed
from mmsr_edge.modalities.segmentation import SEGMENTATION

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from mmsr_edge.modalities.base import MapModality, MapOption, NetworkRun
    from mmsr_edge.modalities.maps import Map

    Array = npt.NDArray[Any]

__all__ = ["MAP_MODALITIES", "PictureMap", "collect_maps"]

MAP_MODALITIES = (DEPTH, SEGMENTATION, EDGES)
"""The modalities that are maps, in the order of `mmsr_edge.bundle.MAPS`."""


@dataclass(frozen=True, eq=False)
class PictureMap:
    """A map of a whole picture."""

    values: Map
    """[H', W', 3], as in `modalities.maps`, at any resolution."""
    resample: Image.Resampling
    """Interpolation with which it is resized: colours that stand for classes must not mix."""

    def crop(
        self, box: tuple[int, int, int, int], size: int, extent: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """The part of the map that belongs to a tile: [1, 3, size, size].

        Args:
            box: the tile, (left, top, right, bottom) in the picture's pixels.
            size: side of the tokenizer's input.
            extent: (height, width) of the picture.
        """
        return crop_map(self.values, box, size, extent=extent, resample=self.resample)


def collect_maps(
    rgb: Array, options: Mapping[str, MapOption], run: NetworkRun, warnings: list[str]
) -> dict[str, PictureMap | None]:
    """The maps of a picture, by name; None where a modality is absent.

    Args:
        rgb: the picture, [H, W, 3] in [-1, 1].
        options: by map name: "auto", None, or the caller's map.
        run: runs the bundle's depth and segmentation networks.
        warnings: receives one sentence for each "auto" map that failed.

    Raises:
        ImageError: one of the caller's maps cannot be read.
    """
    maps: dict[str, PictureMap | None] = {}
    for modality in MAP_MODALITIES:
        name, given = modality.name, options[modality.name]
        values: Map | None = None
        if isinstance(given, str):  # "auto"
            try:
                values = modality.make(rgb, run)
            except Cancelled:
                raise
            except MMSRError as error:
                warnings.append(f"{name} is left out: {error}")
        elif given is not None:
            values = modality.read(given)
        if values is None:
            maps[name] = None
            continue
        maps[name] = PictureMap(_shrink(values, rgb, run, modality), modality.resample)
    return maps


def _shrink(values: Map, rgb: Array, run: NetworkRun, modality: MapModality) -> Map:
    """`values`, shrunk to the resolution at which the tokenizer reads them.

    A small picture is repeated by reflection to fill a tile, and so is its map; a large map would
    be repeated at its full size.
    """
    density = run.map_side / run.manifest.tile.size
    height, width = (
        min(have, math.ceil(side * density))
        for have, side in zip(values.shape[:2], rgb.shape[:2], strict=True)
    )
    if (height, width) == values.shape[:2]:
        return values
    if modality.thin_lines:
        return shrink_lines(values, height, width)
    planes = [
        Image.fromarray(np.ascontiguousarray(signed(values[..., c]))).resize(
            (width, height), modality.resample
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(plane, np.float32) for plane in planes], axis=-1)
