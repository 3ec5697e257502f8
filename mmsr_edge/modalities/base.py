"""The base of the map modalities, and the interface through which a modality runs networks.

A modality runs the bundle's networks through `NetworkRun` alone and depends neither on the pipeline
nor on the options of a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from mmsr_edge.errors import MMSRError
from mmsr_edge.modalities.maps import MapSource, crop_map

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from mmsr_edge.bundle import Manifest
    from mmsr_edge.modalities.maps import Map
    from mmsr_edge.modalities.vocabulary import Vocabulary

    Array = npt.NDArray[Any]

__all__ = [
    "MapModality",
    "MapOption",
    "NetworkRun",
    "UnusableMapError",
    "run_on_picture",
    "squeeze_picture",
]

MapOption: TypeAlias = "str | Path | Image.Image | npt.NDArray[Any] | None"
"""A map: "auto" (made from the picture), None (absent), or the caller's path, image or array."""


class NetworkRun(Protocol):
    """One picture's run, as a modality uses it: the bundle's networks, timed for that picture."""

    @property
    def seconds(self) -> MutableMapping[str, float]:
        """Wall time by component, in seconds. Code that runs no network adds its own entry."""

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The caption decoder's vocabulary; None in a bundle without a caption decoder."""

    @property
    def map_side(self) -> int:
        """Side of the tokenizer's square input, in pixels. Maps are resized to it."""

    def run(self, component: str, **feeds: Array) -> dict[str, Array]:
        """Outputs by name of one component, called with `feeds` by name."""


class UnusableMapError(MMSRError):
    """A map carries no information; the modality is treated as absent."""


@dataclass(frozen=True)
class MapModality:
    """A modality that is a map, with the functions that read the caller's map or make one."""

    name: str
    """One of `mmsr_edge.bundle.MAPS`."""
    read: Callable[[MapSource], Map]
    """Reads the caller's map; raises `ImageError`."""
    make: Callable[[Array, NetworkRun], Map | None]
    """Makes the map of a picture [H, W, 3] in [-1, 1]. Returns None if the bundle has no network
    for it; raises `UnusableMapError` if the map carries no information."""
    resample: Image.Resampling
    """Interpolation with which the map is resized."""
    thin_lines: bool = False
    """Whether a larger map is shrunk so that its lines stay white; see `maps.shrink_lines`."""


def run_on_picture(rgb: Array, run: NetworkRun, component: str) -> Array | None:
    """First output of a modality network on the whole picture, squeezed to its square input.

    None if the bundle has no such network.
    """
    spec = run.manifest.components.get(component)
    if spec is None:
        return None
    image = squeeze_picture(rgb, spec.inputs[0].shape[-1])
    return run.run(component, image=image)[spec.outputs[0].name]


def squeeze_picture(rgb: Array, side: int) -> npt.NDArray[np.float32]:
    """A picture [H, W, 3] squeezed to a modality network's square input, [1, 3, side, side]."""
    return crop_map(rgb, (0, 0, rgb.shape[1], rgb.shape[0]), side)
