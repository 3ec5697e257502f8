"""Pixels: conversion of Pillow's modes and numpy's types to the networks' RGB floats, and back.

RGB is float32 [H, W, 3] in [−1, 1]; opacity is kept apart, float32 [H, W] in [0, 1].
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from mmsr_edge.errors import ImageError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Floats = npt.NDArray[np.float32]

__all__ = ["Pixels", "from_array", "from_pil", "quantize", "to_bytes"]

_WIDE_GREYS = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_GREYS = {"1", "L", "LA", "La", *_WIDE_GREYS}
_NOT_RGB = {"CMYK", "LAB"}
_FULL_RANGE = {"bool": 1, "uint8": 255, "uint16": 65535}


class Pixels(NamedTuple):
    """The content of a picture, independent of how it was stored."""

    rgb: Floats
    """[H, W, 3] in [−1, 1]; three equal channels for a grey picture."""
    alpha: Floats | None
    """Opacity [H, W] in [0, 1]; None: the picture has no such channel."""
    icc: bytes | None
    """Colour profile of `rgb`, for RGB or for grey; None: sRGB."""
    grey: bool
    """Whether the picture has one colour channel; its profile, if any, is then for grey."""
    bits: int
    """Bits per channel that hold the picture without loss: 8 or 16."""


def from_pil(image: Image.Image, low: Image.Image | None = None) -> Pixels:
    """The pixels of a decoded image.

    CMYK with a CMYK profile, and Lab, are converted to sRGB by colour management.

    Args:
        image: a PIL image of any mode.
        low: lower bytes of 16-bit colours, where `image` holds the upper bytes only; None: the
            colours have 8 bits.

    Raises:
        ImageError: floats or 32-bit integers exceed the range of a picture.
    """
    icc: bytes | None = image.info.get("icc_profile")
    grey = image.mode in _GREYS and _space(icc) != b"RGB "
    if image.mode in _GREYS and _space(icc) not in {b"RGB ", b"GRAY"}:
        icc = None  # for another colour space
    if image.mode in _WIDE_GREYS:
        # Read as numbers, since Pillow clips these at 255 when it converts them to RGB.
        values = _unit(np.asarray(image), f"an image of mode {image.mode}")
        return Pixels(_signed(values[..., None]), None, icc, grey, 16)
    if low is not None:
        return _deep(image, low, icc)
    alpha = None
    if _has_alpha(image):
        image = image.convert("LA" if image.mode in _GREYS else "RGBA")
        *colours, opacity = image.split()
        alpha = np.asarray(opacity, np.float32) / np.float32(255)
        image = colours[0] if len(colours) == 1 else Image.merge("RGB", colours)
    image, icc = (image.convert("L"), icc) if grey else _as_rgb(image, icc)
    values = np.asarray(image).astype(np.float32)
    rgb = _signed((values[..., None] if grey else values) / np.float32(255))
    return Pixels(rgb if alpha is None else _fill_hidden(rgb, alpha), alpha, icc, grey, 8)


def _deep(image: Image.Image, low: Image.Image, icc: bytes | None) -> Pixels:
    """The pixels of a 16-bit RGB or RGBA image from its upper and lower bytes."""
    values = np.asarray(image).astype(np.float32) * np.float32(256)
    values += np.asarray(low)
    values /= np.float32(65535)
    icc = icc if _space(icc) == b"RGB " else None
    if values.shape[2] == 3:
        return Pixels(_signed(values), None, icc, False, 16)
    alpha = np.ascontiguousarray(values[..., 3])
    return Pixels(_fill_hidden(_signed(values[..., :3]), alpha), alpha, icc, False, 16)


def from_array(array: Array) -> Pixels:
    """The pixels of an array [H, W] or [H, W, 1 … 4].

    Two channels are grey and alpha, four are RGB and alpha. uint8 and uint16 are fractions of their
    full range; bool and floats in [0, 1] are taken as they are.

    Raises:
        ImageError: the array has any other shape, type or range.
    """
    planes = array[..., None] if array.ndim == 2 else array
    if planes.ndim != 3 or not 1 <= planes.shape[2] <= 4:
        raise ImageError(
            f"an array of shape {array.shape} is not a picture; it must be [height, width] or "
            "[height, width, channels] with 1 to 4 channels, the last one of 2 or 4 being alpha"
        )
    unit = _unit(planes, "an array")
    grey, bits = unit.shape[2] < 3, 8 if array.dtype.itemsize == 1 else 16
    if unit.shape[2] in {1, 3}:
        return Pixels(_signed(unit), None, None, grey, bits)
    alpha = np.ascontiguousarray(unit[..., -1])
    return Pixels(_fill_hidden(_signed(unit[..., :-1]), alpha), alpha, None, grey, bits)


def quantize(unit: Floats, bits: int) -> Array:
    """Floats in [0, 1], any shape, as the nearest uint8 or uint16; values outside are clipped."""
    full = (1 << bits) - 1
    numbers: Array = np.round(unit * np.float32(full)).clip(0, full).astype(f"u{bits // 8}")
    return numbers


def to_bytes(values: Floats) -> npt.NDArray[np.uint8]:
    """Floats in [−1, 1], any shape, as the nearest uint8; values outside are clipped."""
    result = np.empty(values.shape, np.uint8)
    # In bands, since intermediate floats would take more memory than the picture.
    for top in range(0, len(values), 64):
        band = slice(top, top + 64)
        result[band] = np.round((values[band] + 1) * 127.5).clip(0, 255)
    return result


def _unit(values: Array, what: str) -> Floats:
    """Numbers of any type as floats in [0, 1]."""
    kind = values.dtype.newbyteorder("=").name
    if kind == "int32" and values.min() >= 0 and values.max() <= 65535:
        kind = "uint16"  # mode I, in which older versions of Pillow return 16-bit grey
    if kind in _FULL_RANGE:
        return np.divide(values, _FULL_RANGE[kind], dtype=np.float32)
    if values.dtype.kind != "f":
        raise ImageError(f"{what} of {kind} cannot be read; use uint8, uint16 or floats in [0, 1]")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # refuses NaN too
        raise ImageError(f"{what} has floats in [{low:g}, {high:g}]; they must be in [0, 1]")
    return values.astype(np.float32)


def _signed(unit: Floats) -> Floats:
    """[H, W, 1 or 3] in [0, 1] to [H, W, 3] in [−1, 1]."""
    signed: Floats = unit * np.float32(2) - np.float32(1)
    return np.repeat(signed, 3, axis=2) if signed.shape[2] == 1 else signed


def _has_alpha(image: Image.Image) -> bool:
    if image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info:
        return True
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _space(icc: bytes | None) -> bytes | None:
    """The colour space of a profile, from its header."""
    return icc[16:20] if icc else None


def _as_rgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, bytes | None]:
    """The image in mode RGB, and its profile after the conversion; None is sRGB."""
    if _space(icc) == b"RGB " and image.mode not in _NOT_RGB:
        return image.convert("RGB"), icc
    if image.mode == "LAB" or (image.mode == "CMYK" and _space(icc) == b"CMYK"):
        managed = _managed(image, icc)
        if managed is not None:
            return managed, None
    return image.convert("RGB"), None


def _managed(image: Image.Image, icc: bytes | None) -> Image.Image | None:
    """The image in sRGB by colour management; None if that fails for CMYK.

    Raises:
        ImageError: a Lab image cannot be converted.
    """
    try:
        from PIL import ImageCms

        lab = image.mode == "LAB"
        source = ImageCms.createProfile("LAB") if lab else io.BytesIO(icc or b"")
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except Exception as error:  # ImportError, PyCMSError, and what broken profiles raise
        if image.mode == "LAB":
            raise ImageError(f"an image in Lab colours cannot be converted: {error}") from error
        return None


def _fill_hidden(rgb: Floats, alpha: Floats) -> Floats:
    """Give fully transparent pixels the colour of the visible ones nearby.

    The colour that a file holds for transparent pixels is arbitrary, most often black. Upscaled
    unchanged, it would bleed into the visible side of the edge as a dark fringe.
    """
    hidden = (alpha == 0)[..., None]
    if not hidden.any() or hidden.all():
        return rgb
    # A pyramid of sums weighted by opacity: each pixel takes the finest level that has a colour.
    colour, weight = rgb * alpha[..., None], alpha[..., None]
    levels = []
    while (weight == 0).any():
        levels.append((colour, weight))
        colour, weight = _halve(colour), _halve(weight)
    known = colour / weight
    for colour, weight in reversed(levels):
        height, width = weight.shape[:2]
        coarser = known.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        known = np.where(weight > 0, colour / np.where(weight > 0, weight, 1), coarser)
    return np.where(hidden, known, rgb)


def _halve(values: Floats) -> Floats:
    """Sums over blocks of 2 x 2; odd sides are padded with zeros."""
    height, width, channels = values.shape
    even = np.pad(values, [(0, height % 2), (0, width % 2), (0, 0)])
    blocks = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, channels)
    sums: Floats = blocks.sum(axis=(1, 3))
    return sums
