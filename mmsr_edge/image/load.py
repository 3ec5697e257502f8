"""Loading: pictures from files, PIL images and arrays, with all their data.

`load_image` returns RGB as the networks take it and, separately, transparency, the colour profile,
EXIF and XMP.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmsr_edge.errors import ImageError
from mmsr_edge.image.jpeg import jpeg_quality
from mmsr_edge.image.metadata import Metadata, enlarged, upright
from mmsr_edge.image.pixels import from_array, from_pil

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

__all__ = ["MAX_PIXELS", "ImagePath", "Picture", "load_image", "open_image", "picture_size"]

MAX_PIXELS = 64_000_000
"""Largest input, in pixels (width x height). A small file can declare a huge picture (a
decompression bomb), and four times the side is sixteen times the memory."""

_ORIENTATION = 0x0112

ImagePath: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded, upright picture, and the data that its result takes over."""

    rgb: Floats
    """[H, W, 3] in [−1, 1], in the colour space of `icc`, or sRGB where that is None."""
    alpha: Floats | None = None
    """Opacity [H, W] in [0, 1]; None: the picture has no such channel."""
    icc: bytes | None = None
    """Colour profile for RGB or, where `grey`, for grey; None: sRGB."""
    exif: bytes | None = None
    """EXIF without the orientation tag, which has been applied."""
    xmp: bytes | None = None
    """XMP packet without the orientation, which has been applied."""
    grey: bool = False
    """Whether the input has one colour channel."""
    bits: int = 8
    """Bits per channel of the input: 8 or 16."""
    jpeg_quality: int | None = None
    """Quality of a JPEG file, 1 to 100, by its quantization tables; None: no JPEG file."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as in Pillow."""
        return self.rgb.shape[1], self.rgb.shape[0]

    @property
    def transparent(self) -> bool:
        """Whether any pixel is not fully opaque."""
        return self.alpha is not None and bool((self.alpha < 1).any())

    def metadata(self, size: tuple[int, int]) -> Metadata:
        """Metadata for the file of a result of `size` (width, height)."""
        return Metadata(self.icc, enlarged(self.exif, size) if self.exif else None, self.xmp)


def load_image(
    source: ImagePath | Image.Image | npt.NDArray[Any],
    *,
    first_frame: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Picture:
    """Decode a picture of any kind: palette, grey, 16-bit, CMYK or Lab, with or without alpha.

    Args:
        source: a path, a PIL image (it is not altered), or an array [H, W] or [H, W, 1 … 4] of
            uint8, uint16, bool, or floats in [0, 1].
        first_frame: use the first frame of an animation, or the first page of a document.
        max_pixels: largest number of pixels that is accepted.

    Raises:
        ImageError: the file does not exist or is not a picture; the picture is damaged, animated,
            too large or empty; or an array has another shape, type or range.
    """
    if isinstance(source, np.ndarray):
        if source.ndim >= 2:
            _check_size("the array", source.shape[1], source.shape[0], max_pixels)
        return Picture(**from_array(source)._asdict())
    if not isinstance(source, (str, os.PathLike, Image.Image)):
        raise ImageError(
            f"an image of type {type(source).__name__} cannot be read; "
            "pass a path, a PIL image or a numpy array"
        )
    quality = jpeg_quality(source)  # of a PIL image, before it is decoded
    image = open_image(source, first_frame=first_frame, max_pixels=max_pixels)
    low = None
    if not isinstance(source, Image.Image):
        low = _low_bytes(Path(source))
        with _opened(Path(source), max_pixels) as opened:
            quality = jpeg_quality(opened)
    found = Metadata.of(image.info)
    return Picture(
        **from_pil(image, low)._asdict(), exif=found.exif, xmp=found.xmp, jpeg_quality=quality
    )


# Pillow counts frames in these formats too, but they are not a sequence: a phone's gain map or
# depth map (MPO), layers (PSD).
_STILL = {"MPO", "PSD"}


def open_image(
    source: ImagePath | Image.Image, *, first_frame: bool = False, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a file, or copy a PIL image, and turn it upright; its mode is unchanged.

    Raises:
        ImageError: as `load_image` does.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the image", first_frame, max_pixels)
    path = Path(source)
    with _opened(path, max_pixels) as opened:
        return _decode(opened, str(path), first_frame, max_pixels)


def picture_size(path: ImagePath, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of a file once it is upright, from its header alone.

    Raises:
        ImageError: as `load_image` does, as far as the header shows.
    """
    with _opened(Path(path), max_pixels) as image:
        width, height = image.size
        _check_size(str(path), width, height, max_pixels)
        try:
            turned = image.getexif().get(_ORIENTATION, 1) in {5, 6, 7, 8}
        except Exception:  # damaged EXIF, which `load_image` ignores
            turned = False
        if image.format == "TIFF":  # Pillow turns it when it opens it
            turned = False
        return (height, width) if turned else (width, height)


def _opened(path: Path, max_pixels: int) -> Image.Image:
    """The opened file; Pillow has read its header only."""
    try:
        with warnings.catch_warnings():
            # Our own limit is below the one at which Pillow warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}") from error
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        what = "is empty" if empty else "is not a picture in a format that Pillow reads"
        raise ImageError(f"{path} {what}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path} is over the limit of {max_pixels} pixels (max_pixels): {error}"
        ) from error
    except Exception as error:  # decoders raise almost anything on a damaged header
        raise ImageError(f"{path} cannot be opened: {error}") from error
    if image.format == "TIFF":
        # With a file name, Pillow (13.0) maps the file into memory, mistakes the sides of the
        # upright TIFF for the stored ones, and scrambles the pixels.
        image.filename = ""
    return image


def _decode(image: Image.Image, name: str, first_frame: bool, max_pixels: int) -> Image.Image:
    _check_size(name, *image.size, max_pixels)
    try:
        frames = 1 if image.format in _STILL else int(getattr(image, "n_frames", 1))
        if frames == 1 or first_frame:
            shown = image.tell()
            if frames > 1:
                image.seek(0)
            image.load()
            turned = upright(image)
            if frames > 1:
                image.seek(shown)
            return turned
    except Exception as error:  # decoders raise almost anything on damaged pixels
        raise ImageError(f"{name} cannot be decoded: {error}") from error
    raise ImageError(
        f"{name} has {frames} frames or pages; pass one of them, or first_frame=True for the first"
    )


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height} pixels, over the limit of "
            f"{max_pixels} (max_pixels, mmsr_edge.image.MAX_PIXELS); crop it, or raise the limit"
        )


# Pillow has no mode for 16-bit colours and keeps the upper bytes. With the opposite byte order
# declared, it keeps the lower ones.
_OTHER_BYTES = {
    f"{kind};16{order}": f"{kind};16{other}"
    for kind in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}


def _low_bytes(path: Path) -> Image.Image | None:
    """The lower bytes of a 16-bit RGB or RGBA file, upright; None for all other files."""
    try:
        with _opened(path, MAX_PIXELS) as opened:
            # The raw mode is the only argument (PNG) or the first of several (TIFF).
            layouts = {
                tile.args if isinstance(tile.args, str) else tile.args[0] for tile in opened.tile
            }
            other = _OTHER_BYTES.get(layouts.pop()) if len(layouts) == 1 else None
            if other is None or "transparency" in opened.info:
                return None
            opened.tile = [
                tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:]))
                for tile in opened.tile
            ]
            opened.load()
            return upright(opened)
    except Exception:  # unexpected structure of the file: the upper eight bits are used alone
        return None
