"""What a modality is, and what it may ask of a picture's run.

A modality knows the bundle's networks through `NetworkRun` alone: neither the pipeline nor the
options of a call.
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
"""A map: "auto" (made from the picture), None (absent), or the caller's: path, image or array."""


class NetworkRun(Protocol):
    """A picture's run, as modalities see it: the bundle's networks, on the picture's clock."""

    @property
    def seconds(self) -> MutableMapping[str, float]:
        """Wall time by component, in seconds; what runs no network adds its own."""

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The caption decoder's vocabulary, in bundles that have one."""

    @property
    def map_side(self) -> int:
        """Side of the square that a map is resized to: the tokenizer's input."""

    def run(self, component: str, **feeds: Array) -> dict[str, Array]:
        """Call one component of the bundle."""


class UnusableMapError(MMSRError):
    """A map carries no information, so that the modality is absent instead."""


@dataclass(frozen=True)
class MapModality:
    """A modality that is a map: how the caller's map is read, and how one is made."""

    name: str
    """Name, one of `mmsr_edge.bundle.MAPS`."""
    read: Callable[[MapSource], Map]
    """The map of what the caller gives; raises `ImageError`."""
    make: Callable[[Array, NetworkRun], Map | None]
    """The map of a picture [H, W, 3] in [-1, 1]; None where the bundle has no network for it, and
    `UnusableMapError` where the map carries no information."""
    resample: Image.Resampling
    """How the map may be resized."""


def run_on_picture(rgb: Array, run: NetworkRun, component: str) -> Array | None:
    """The output of a network that sees the whole picture, squeezed to its input's square.

    None where the bundle has no such network.
    """
    spec = run.manifest.components.get(component)
    if spec is None:
        return None
    image = squeeze_picture(rgb, spec.inputs[0].shape[-1])
    return run.run(component, image=image)[spec.outputs[0].name]


def squeeze_picture(rgb: Array, side: int) -> npt.NDArray[np.float32]:
    """A picture [H, W, 3] squeezed to a square, as those networks take it: [1, 3, side, side]."""
    return crop_map(rgb, (0, 0, rgb.shape[1], rgb.shape[0]), side)
