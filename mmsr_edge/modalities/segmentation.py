"""Segmentation: one colour per class. From the caller's classes or colours, or by a network.

The subject of a picture, the class that fills most of its middle, is drawn in the colours of the
classes 64 higher. A tile shows a part of the picture and cannot tell by itself what its subject is;
temperature uses it (see `training.data.dials`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmsr_edge.errors import ImageError
from mmsr_edge.image import load_image
from mmsr_edge.image.pixels import to_bytes
from mmsr_edge.modalities.base import MapModality, UnusableMapError, run_on_picture
from mmsr_edge.modalities.maps import MapSource, open_source, read_plane, signed

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmsr_edge.modalities.base import NetworkRun
    from mmsr_edge.modalities.maps import Map

    Array = npt.NDArray[Any]

__all__ = [
    "NO_CLASS",
    "PALETTE",
    "SEGMENTATION",
    "SUBJECT",
    "make_segmentation",
    "map_classes",
    "mark_subject",
    "palette_numbers",
    "segmentation_map",
]


def _voc_palette() -> npt.NDArray[np.uint8]:
    # The bits of the class number go to red, green and blue in turn, the highest colour bit first,
    # so that neighbouring classes have very different colours.
    classes = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= ((classes >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


PALETTE = _voc_palette()
"""Colour of each class, uint8 [256, 3], as in PASCAL VOC. Fixed: the weights depend on it."""
SUBJECT = 64
"""Added to the class of the picture's subject; the colour differs by 32 in red."""

NO_CLASS = len(PALETTE)
"""What `map_classes` gives for a colour that is not of the palette."""

_CODES = PALETTE.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
_BY_CODE = _CODES.argsort()


def segmentation_map(segmentation: MapSource) -> Map:
    """The map of a segmentation: each class in its colour of `PALETTE`.

    Args:
        segmentation: classes 0 … 255 as a 2-D integer array or grey picture, any size; or a
            colour picture (also one with a palette), whose colours are used unchanged.

    Raises:
        ImageError: the classes are not integers from 0 to 255.
    """
    source = open_source(segmentation)
    if isinstance(source, Image.Image):
        if source.mode not in {"1", "L", "I", "I;16", "I;16L", "I;16B"}:
            return load_image(source).rgb
        source = np.asarray(source)
    if source.ndim == 3 and source.shape[2] in {3, 4}:
        return load_image(source).rgb
    classes = read_plane("segmentation", source)
    if classes.dtype.kind not in "bui":
        raise ImageError(
            f"segmentation is of {classes.dtype}; classes must be integers, colours [H, W, 3]"
        )
    if int(classes.min()) < 0 or int(classes.max()) > 255:
        raise ImageError(
            f"segmentation has classes from {classes.min()} to {classes.max()}; "
            "they must be from 0 to 255"
        )
    return PALETTE[mark_subject(classes.astype(np.uint8))].astype(np.float32) / 127.5 - 1


def mark_subject(classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Classes [H, W] with `SUBJECT` added where the subject is; unchanged if there are 64 or more.

    The subject is the class with the largest area, weighted by a raised cosine in both directions:
    1 in the middle of the picture, 0 at its border. Class 0, "none", is never the subject.
    """
    if classes.max() >= SUBJECT or not classes.any():
        return classes
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in classes.shape)
    area = np.bincount(classes.ravel(), np.outer(rows, columns).ravel(), minlength=SUBJECT)
    subject = int(area[1:].argmax()) + 1
    marked: npt.NDArray[np.uint8] = classes + np.uint8(SUBJECT) * (classes == subject)
    return marked


def palette_numbers(whole: Map) -> npt.NDArray[np.intp]:
    """Number of each pixel's colour in `PALETTE`, [H', W']; `NO_CLASS` for other colours."""
    red, green, blue = np.moveaxis(to_bytes(signed(whole)).astype(np.int32), 2, 0)
    code = (red << 16) + (green << 8) + blue
    place = np.searchsorted(_CODES[_BY_CODE], code).clip(max=NO_CLASS - 1)
    numbers: npt.NDArray[np.intp] = _BY_CODE[place]
    return np.where(_CODES[numbers] == code, numbers, NO_CLASS)


def map_classes(whole: Map) -> npt.NDArray[np.intp]:
    """The class of each pixel of a segmentation map, [H', W']; `NO_CLASS` for other colours.

    The subject has its own class, without the mark, where one class alone is marked.
    """
    classes = palette_numbers(whole)
    marked = np.unique(classes[(classes >= SUBJECT) & (classes < NO_CLASS)])
    if len(marked) == 1 and marked[0] < 2 * SUBJECT:
        classes = np.where(classes == marked[0], classes - SUBJECT, classes)
    return classes


def make_segmentation(rgb: Array, run: NetworkRun) -> Map | None:
    """The segmentation network's map of a picture [H, W, 3] in [-1, 1]; None without that network.

    Raises:
        UnusableMapError: the network finds none of its classes.
    """
    classes = run_on_picture(rgb, run, "segmentation")
    if classes is None:
        return None
    if not classes.any():
        raise UnusableMapError("the network finds none of its classes")
    return segmentation_map(classes[0])


# Colours that stand for classes must not mix.
SEGMENTATION = MapModality(
    "segmentation", segmentation_map, make_segmentation, Image.Resampling.NEAREST
)
"""Segmentation as a modality."""
