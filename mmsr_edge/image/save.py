"""Saving: file formats, what each can hold, and writing of pictures in one step.

`to_pil` adds the input's transparency, profile, EXIF and XMP to a result. `save_image` writes it:
either the new file is complete, or nothing has changed.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin, features

from mmsr_edge.errors import OutputError
from mmsr_edge.files import replacing
from mmsr_edge.image.metadata import Metadata
from mmsr_edge.image.pixels import to_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmsr_edge.image.load import ImagePath, Picture

    Floats = npt.NDArray[np.float32]

__all__ = ["FORMATS", "FileFormat", "check_output", "check_place", "save_image", "to_pil"]


def to_pil(rgb: Floats, source: Picture | None = None) -> Image.Image:
    """A result as an 8-bit picture: mode RGB, or RGBA where the source has an alpha channel.

    Args:
        rgb: [H, W, 3] in [−1, 1]; values outside are clipped.
        source: the input. Its alpha channel is resized (bicubic); its RGB profile, EXIF and XMP go
            into `info`. None: there is nothing to add.
    """
    image = Image.fromarray(to_bytes(rgb))
    if source is None:
        return image
    if source.alpha is not None:
        alpha = Image.fromarray(source.alpha).resize(image.size, Image.Resampling.BICUBIC)
        image.putalpha(Image.fromarray(to_bytes(np.asarray(alpha) * 2 - 1)))
    image.info.update(source.metadata(image.size).options())
    if source.grey:
        image.info.pop("icc_profile", None)
    return image


@dataclass(frozen=True)
class FileFormat:
    """What a file format can hold, and how it is written."""

    name: str
    """Pillow's name of the format."""
    alpha: bool
    """Whether it holds transparency."""
    longest: int
    """Longest side, in pixels."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `PIL.Image.Image.save`."""
    grey: bool = True
    """Whether it can hold a single colour channel."""
    strips: bool = False
    """Whether it is written by rows and can hold 16 bits per channel."""
    bytes: float = math.inf
    """Largest size of the pixels, in bytes."""


_JPEG = FileFormat("JPEG", False, 65_500, {"quality": 95, "subsampling": 0})
_JPEG_SEGMENT = {"exif": 65_533, "xmp": 65_502}
# Uncompressed, so that the offsets of strips are known in advance; offsets have 32 bits.
_TIFF = FileFormat("TIFF", True, 2**31 - 1, strips=True, bytes=2**32 - 2**26)
FORMATS = {
    ".png": FileFormat("PNG", True, 2**31 - 1, strips=True),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": FileFormat("WEBP", True, 16_383, {"quality": 95}, grey=False),
    ".avif": FileFormat("AVIF", True, 65_535, {"quality": 90, "subsampling": "4:4:4"}, grey=False),
    ".tif": _TIFF,
    ".tiff": _TIFF,
}
"""The formats of results, by suffix. All keep colour profile, EXIF and XMP."""


def check_output(
    path: ImagePath,
    *,
    size: tuple[int, int] = (1, 1),
    transparent: bool = False,
    pixel_bytes: int = 3,
    overwrite: bool = True,
) -> FileFormat:
    """Check, before the work, that a result can be written, and return its format.

    Args:
        path: file of the result.
        size: (width, height) of the result.
        transparent: whether any pixel of the result is not fully opaque.
        pixel_bytes: bytes of one pixel.
        overwrite: whether an existing file may be replaced.

    Raises:
        OutputError: the suffix is unknown, the format cannot hold such a picture, the folder is
            missing or read-only, or the file may not be replaced.
    """
    target = Path(path)
    form = FORMATS.get(target.suffix.lower())
    if form is None:
        raise OutputError(
            f"{target} has the suffix {target.suffix!r}; it must be one of {', '.join(FORMATS)}"
        )
    if form.name == "AVIF" and not features.check("avif"):
        raise OutputError(f"{target}: this build of Pillow has no AVIF; use .png, .webp or .tif")
    if transparent and not form.alpha:
        raise OutputError(
            f"{target}: {form.name} cannot hold transparency; use .png, .webp, .avif or .tif"
        )
    if max(size) > form.longest:
        raise OutputError(
            f"{target}: {size[0]} x {size[1]} pixels are more than the {form.longest} a side that "
            f"{form.name} can hold; use .png or .tif"
        )
    if size[0] * size[1] * pixel_bytes > form.bytes:
        raise OutputError(
            f"{target}: {size[0]} x {size[1]} pixels of {pixel_bytes} bytes are more than the "
            f"{form.bytes / 1e9:.1f} GB that {form.name} can hold; use .png"
        )
    check_place(target, overwrite=overwrite)
    return form


def check_place(path: ImagePath, *, overwrite: bool = True) -> None:
    """Check that a file can be written.

    Args:
        path: path of the file.
        overwrite: whether an existing file may be replaced.

    Raises:
        OutputError: the folder is missing or read-only, or the file may not be replaced.
    """
    target = Path(path)
    try:
        _check_place(target, overwrite)
    except PermissionError as error:  # a folder above may not be entered
        raise OutputError(f"{target} cannot be written: {error.strerror}") from None


def _check_place(target: Path, overwrite: bool) -> None:
    folder = Path(os.path.realpath(target)).parent
    if not folder.is_dir():
        raise OutputError(f"{target}: there is no folder {folder}; make it first")
    if target.is_dir():
        raise OutputError(f"{target} is a folder; name a file")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; name another file, or allow overwriting")
    for place in (folder, target):
        if place.exists() and not _writable(place):
            raise OutputError(f"{target} cannot be written: {place} is read-only")


def _writable(place: Path) -> bool:
    return os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def save_image(image: Image.Image, path: ImagePath) -> None:
    """Write a picture in the format that the suffix names, with its profile, EXIF and XMP.

    The file appears, or is replaced, in one step once it is complete. On failure nothing is left
    behind, and an existing file is untouched.

    Args:
        image: a PIL image, such as from `to_pil`; profile, EXIF and XMP are taken from `info`.
        path: path with a suffix of `FORMATS`.

    Raises:
        OutputError: the file cannot be written, or as `check_output`.
    """
    alpha = image.getchannel("A") if image.mode in {"LA", "RGBA"} else None
    opaque = alpha is not None and alpha.getextrema() == (255, 255)
    form = check_output(path, size=image.size, transparent=alpha is not None and not opaque)
    if opaque and not form.alpha:
        image = image.convert(image.mode.removesuffix("A"))
    kept: dict[str, Any] = Metadata.of(image.info).options()
    if form.name == "PNG" and "xmp" in kept:
        kept["pnginfo"] = PngImagePlugin.PngInfo()
        kept["pnginfo"].add_itxt("XML:com.adobe.xmp", kept.pop("xmp").decode(errors="replace"))
    if form.name == "TIFF" and "xmp" in kept:
        exif = Image.Exif()
        exif.load(kept.get("exif", b""))
        exif[TiffImagePlugin.XMP] = kept.pop("xmp")
        kept["exif"] = exif.tobytes()
    if form is _JPEG:
        for name, limit in _JPEG_SEGMENT.items():
            if len(kept.get(name, b"")) > limit:
                message = f"{path}: the {name.upper()} is too long for JPEG and is left out"
                warnings.warn(message, stacklevel=2)
                del kept[name]
    with replacing(path) as file:
        image.save(file, form.name, **form.options, **kept)
