"""Dials over the picture: strength and guidance scale as maps, where one number is not enough.

A caller gives a dial's map as numbers, as a picture, or by way of a modality: linear in depth, by
class of the segmentation, at edges and between them. It is made once for the whole picture, at most
as fine as the latent, and each tile cuts out its part as it does from the other maps, so that tiles
agree where they overlap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from mmsr_edge.bundle import MAPS
from mmsr_edge.checks import check_integer, check_names, check_number
from mmsr_edge.errors import OptionError
from mmsr_edge.modalities.maps import crop_map, read_grey, shrink_lines, signed
from mmsr_edge.modalities.segmentation import NO_CLASS, map_classes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from mmsr_edge.bundle import Manifest
    from mmsr_edge.modalities.maps import Map, MapSource
    from mmsr_edge.modalities.picture import PictureMap

    Array = npt.NDArray[Any]
    Plane = npt.NDArray[np.float32]

__all__ = [
    "DIALS",
    "GUIDANCE_SCALE",
    "OTHER",
    "STRENGTH",
    "Dial",
    "DialMap",
    "DialOption",
    "belongs_to_one_picture",
    "collect_dials",
]

DialOption: TypeAlias = "float | Path | Image.Image | npt.NDArray[Any] | Mapping[str, Any]"
"""A dial: a number, or a map over the picture: an array of numbers [H, W], a path, a grey picture,
or a mapping from a modality's name to its values."""

OTHER = "other"
"""Key of the classes that a segmentation's values do not name."""

_ENDS = {"depth": "(far, near)", "edges": "(flat, edge)"}
"""What the two values of a modality stand for."""


@dataclass(frozen=True, eq=False)
class DialMap:
    """A dial's values over a whole picture."""

    values: Plane
    """[H', W'], at most as fine as the latent's grid."""

    def crop(self, box: tuple[int, int, int, int], size: int, extent: tuple[int, int]) -> Plane:
        """The part of a tile on its latent's grid: [1, 1, size, size].

        Args:
            box: the tile, (left, top, right, bottom) in the picture's pixels.
            size: side of the tile's latent.
            extent: (height, width) of the picture.
        """
        return crop_map(self.values[..., None], box, size, extent=extent)


@dataclass(frozen=True)
class Dial:
    """An option that takes a number, or a map of such numbers over the picture."""

    name: str
    """Name of the option."""
    limits: tuple[float, float]
    """Least and greatest value."""
    shades: tuple[float, float]
    """Values of black and white, where the map is a picture."""
    neutral: float
    """Value without effect; that of classes which are not named."""

    # --- Checks, before the picture is known ------------------------------------------------------

    def check(self, value: object) -> None:
        """Check the form of a value and the range of all its numbers. Files are not opened.

        Raises:
            OptionError: quotes the number that is out of range, and the range.
        """
        if isinstance(value, Mapping):
            self._check_mapping(value)
        elif isinstance(value, np.ndarray) and value.ndim:
            self._plane(value)
        elif isinstance(value, str) or value is None:
            low, high = self.limits
            raise OptionError(
                f"{self.name} is {value!r}; it must be a number from {low:g} to {high:g}, or a "
                "map: an array of such numbers, a PIL image, a pathlib.Path to a picture, or a "
                "mapping such as {'depth': (far, near)}"
            )
        elif not isinstance(value, (Path, Image.Image)):
            check_number(self.name, value, self.limits)

    def check_classes(self, value: object, labels: Sequence[str], model: str) -> None:
        """Check that a segmentation's values name classes that there are.

        Args:
            value: a value that `check` accepts.
            labels: names of the classes by index; empty where the model has none.
            model: name of the model.

        Raises:
            OptionError: a name is unknown; the nearest is suggested.
        """
        if not isinstance(value, Mapping) or "segmentation" not in value:
            return
        names = [key for key in value["segmentation"] if isinstance(key, str) and key != OTHER]
        if names and not labels:
            raise OptionError(
                f"{self.name} names the class {names[0]!r}, but {model!r} has no names of classes; "
                "give their numbers"
            )
        check_names(f"class in {self.name}", dict.fromkeys(names), (*labels, OTHER))

    def _check_mapping(self, value: Mapping[Any, Any]) -> None:
        check_names(f"modality in {self.name}", value, MAPS)
        if len(value) != 1:
            raise OptionError(
                f"{self.name} names {' and '.join(value) or 'nothing'}; it must name one modality"
            )
        ((modality, given),) = value.items()
        where = f"{self.name}[{modality!r}]"
        if modality == "segmentation":
            if not isinstance(given, Mapping) or not given:
                raise OptionError(
                    f"{where} is {given!r}; it must be a mapping from classes, by name or number, "
                    f"or {OTHER!r}, to numbers"
                )
            for key, number in given.items():
                if not isinstance(key, str):
                    check_integer(f"class in {where}", key, 0, NO_CLASS - 1)
                check_number(f"{where}[{key!r}]", number, self.limits)
            return
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise OptionError(f"{where} is {given!r}; it must be two numbers, {_ENDS[modality]}")
        for place, number in enumerate(given):
            check_number(f"{where}[{place}]", number, self.limits)

    def _plane(self, value: Array) -> Plane:
        """An array of values [H, W] or [H, W, 1] as float32 [H, W].

        Raises:
            OptionError: the array has another form, or a number is out of range.
        """
        plane = value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value
        low, high = self.limits
        if plane.ndim != 2 or not plane.size or plane.dtype.kind not in "buif":
            raise OptionError(
                f"{self.name} is an array {list(value.shape)} of {value.dtype}; it must be "
                f"[height, width] numbers from {low:g} to {high:g}"
            )
        wrong = ~((plane >= low) & (plane <= high))  # NaN too
        if wrong.any():
            row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
            black, white = self.shades
            hint = f"; a PIL image has {black:g} for black and {white:g} for white"
            raise OptionError(
                f"{self.name} is {plane[row, column]} at row {row}, column {column}; it must be a "
                f"number from {low:g} to {high:g}{hint if plane.dtype.kind == 'u' else ''}"
            )
        return plane.astype(np.float32)

    # --- Maps -------------------------------------------------------------------------------------

    def make_map(
        self,
        value: Mapping[str, Any] | MapSource,
        maps: Mapping[str, PictureMap | None],
        grid: tuple[int, int],
        labels: Sequence[str] = (),
    ) -> DialMap:
        """The map that a value stands for.

        Args:
            value: an array, a path, a picture, or a mapping that `check` accepts.
            maps: the picture's maps by name; None: absent.
            grid: (height, width) of the picture's latent. Larger maps are averaged to it.
            labels: names of the segmentation's classes, by index.

        Raises:
            OptionError: the value follows a map that is absent, or a number is out of range.
            ImageError: the picture cannot be read.
        """
        if isinstance(value, Mapping):
            ((modality, given),) = value.items()
            whole = maps[modality]
            if whole is None:
                raise OptionError(
                    f"{self.name} follows {modality}, which is absent for this picture: give its "
                    f"map as the option {modality!r}, or choose another {self.name}"
                )
            if modality == "segmentation":
                table = self._table(given, labels)
                return DialMap(_average(table[map_classes(whole.values)], grid))
            low, high = given
            shares = (_edge_shares if modality == "edges" else _grey_shares)(whole.values, grid)
            return DialMap(np.float32(low) + np.float32(high - low) * shares)
        if isinstance(value, np.ndarray):
            return DialMap(_average(self._plane(value), grid))
        grey, full = read_grey(self.name, value)
        if full is None:  # pixels of 32 bits are the values themselves
            return DialMap(_average(self._plane(grey), grid))
        black, white = self.shades
        return DialMap(np.float32(black) + _average(grey * ((white - black) / full), grid))

    def _table(self, given: Mapping[str | int, float], labels: Sequence[str]) -> Plane:
        """Value of each class and, last, of colours that are no class's: [257]."""
        table = np.full(NO_CLASS + 1, given.get(OTHER, self.neutral), np.float32)
        for key, number in given.items():
            if key != OTHER:
                table[labels.index(key) if isinstance(key, str) else key] = number
        return table


STRENGTH = Dial("strength", limits=(0.0, 2.0), shades=(0.0, 2.0), neutral=1.0)
"""Strength λ: factor on what the diffusion adds to the LR latent."""

GUIDANCE_SCALE = Dial("guidance_scale", limits=(-1.0, 100.0), shades=(-1.0, 1.0), neutral=0.0)
"""Guidance scale w of Eq. 3-4. A picture's shades cover the part that one to four steps bear."""

DIALS = {dial.name: dial for dial in (STRENGTH, GUIDANCE_SCALE)}
"""Dials by name."""


def belongs_to_one_picture(value: object) -> bool:
    """Whether a dial's value is a map that cannot be used for another picture."""
    return isinstance(value, (Path, Image.Image, np.ndarray))


def collect_dials(
    values: Mapping[str, Any],
    maps: Mapping[str, PictureMap | None],
    extent: tuple[int, int],
    manifest: Manifest,
) -> dict[str, DialMap]:
    """The maps of a picture's dials, by name.

    Args:
        values: the dials that are maps, by name.
        maps: maps of the picture, from `collect_maps`.
        extent: (height, width) of the picture.
        manifest: the bundle's manifest, with the latent's grid and the names of classes.

    Raises:
        OptionError, ImageError: as `Dial.make_map`.
    """
    height, width = (math.ceil(side * manifest.scale / manifest.latent.factor) for side in extent)
    network = manifest.components.get("segmentation")
    labels = () if network is None else network.labels
    return {
        name: DIALS[name].make_map(value, maps, (height, width), labels)
        for name, value in values.items()
    }


def _average(plane: Array, grid: tuple[int, int]) -> Plane:
    """Means of `plane` [H, W] over equal parts: at most `grid` = (height, width) of them."""
    height, width = (min(sides) for sides in zip(plane.shape, grid, strict=True))
    image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    means: Plane = np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float32)
    return means


def _grey_shares(whole: Map, grid: tuple[int, int]) -> Plane:
    """A grey map as numbers in [0, 1], averaged to `grid`."""
    shares: Plane = (_average(signed(whole[..., 0]), grid) + np.float32(1)) / np.float32(2)
    return shares


def _edge_shares(whole: Map, grid: tuple[int, int]) -> Plane:
    """An edge map as numbers in [0, 1] on `grid`: edges count in full where they pass.

    A mean would depend on how thin lines are drawn. In the cells around, edges count half.
    """
    height, width = (min(sides) for sides in zip(whole.shape[:2], grid, strict=True))
    cells = (signed(shrink_lines(whole, height, width)[..., 0]) + np.float32(1)) / np.float32(2)
    beside = np.pad(cells, 1, mode="edge")
    beside = np.maximum(np.maximum(beside[:-2], beside[1:-1]), beside[2:])
    beside = np.maximum(np.maximum(beside[:, :-2], beside[:, 1:-1]), beside[:, 2:])
    shares: Plane = np.maximum(cells, beside / np.float32(2))
    return shares
