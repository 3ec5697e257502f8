"""Image: pictures in and out of files, with nothing of theirs lost on the way.

`load_image` gives RGB as the networks want it and keeps apart what they know nothing of:
transparency, the colour profile, EXIF and XMP. `to_pil` puts these back onto a result, and
`save_image` writes it so that there is either the whole new file or everything is as it was.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError, features

from mmsr_edge.errors import ImageError, MMSRError, OutputError
from mmsr_edge.metadata import Metadata, enlarged, upright
from mmsr_edge.pixels import from_array, from_pil, to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "FileFormat",
    "Picture",
    "check_output",
    "check_place",
    "load_image",
    "open_image",
    "picture_size",
    "replacing",
    "save_image",
    "to_pil",
]

MAX_PIXELS = 64_000_000
"""Largest input, width x height. A small file can claim to be a huge picture (a decompression
bomb), and four times the side is sixteen times the memory."""

_ORIENTATION = 0x0112

ImagePath: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright, and what has to be given back with the result."""

    rgb: Floats
    """[H, W, 3] in [−1, 1], in the colour space of `icc`, or sRGB where that is None."""
    alpha: Floats | None = None
    """Opacity [H, W] in [0, 1], where the picture has such a channel."""
    icc: bytes | None = None
    """The colour profile: of RGB colours, or where `grey`, of grey."""
    exif: bytes | None = None
    """EXIF without the orientation tag, which has been applied."""
    xmp: bytes | None = None
    """The XMP packet, likewise."""
    grey: bool = False
    """Whether it came as one channel."""
    bits: int = 8
    """Bits a channel that it came with: 8 or 16."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.rgb.shape[1], self.rgb.shape[0]

    @property
    def transparent(self) -> bool:
        """Whether anything can be seen through."""
        return self.alpha is not None and bool((self.alpha < 1).any())

    def metadata(self, size: tuple[int, int]) -> Metadata:
        """What goes into the file of a result of (width, height)."""
        return Metadata(self.icc, enlarged(self.exif, size) if self.exif else None, self.xmp)


def load_image(
    source: ImagePath | Image.Image | npt.NDArray[Any],
    *,
    first_frame: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Picture:
    """Decode a picture of any kind: palette, grey, 16-bit grey, CMYK, Lab, with alpha or without.

    Args:
        source: a path, a PIL image (it is not altered), or an array [H, W] or [H, W, 1 … 4] of
            uint8, uint16, bool, or floats in [0, 1].
        first_frame: take the first frame of an animation or of a document of many pages.
        max_pixels: refuse pictures of more pixels.

    Raises:
        ImageError: when there is no such file, it is no picture, or it is damaged, animated, too
            large or empty; for arrays of another shape, type or range.
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
    image = open_image(source, first_frame=first_frame, max_pixels=max_pixels)
    low = None if isinstance(source, Image.Image) else _low_bytes(Path(source))
    found = Metadata.of(image.info)
    return Picture(**from_pil(image, low)._asdict(), exif=found.exif, xmp=found.xmp)


# Pillow counts frames in these, too, but the others are not a sequence: a phone's gain map or
# depth (MPO), layers (PSD).
_STILL = {"MPO", "PSD"}


def open_image(
    source: ImagePath | Image.Image, *, first_frame: bool = False, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a file, or copy a PIL image, and turn it upright; its mode stays as it is.

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
        ImageError: as `load_image` does, where the header tells.
    """
    with _opened(Path(path), max_pixels) as image:
        width, height = image.size
        _check_size(str(path), width, height, max_pixels)
        try:
            turned = image.getexif().get(_ORIENTATION, 1) in {5, 6, 7, 8}
        except Exception:  # damaged EXIF, which `load_image` does without
            turned = False
        if image.format == "TIFF":  # which Pillow turns by itself
            turned = False
        return (height, width) if turned else (width, height)


def _opened(path: Path, max_pixels: int) -> Image.Image:
    """The file, of which Pillow has read the header only."""
    try:
        with warnings.catch_warnings():
            # Our own limit is below the one at which Pillow warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}") from error
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        what = "is empty" if empty else "is not a picture in a format that Pillow knows"
        raise ImageError(f"{path} {what}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path} is over the limit of {max_pixels} pixels (max_pixels): {error}"
        ) from error
    except Exception as error:  # decoders raise almost anything on a damaged header
        raise ImageError(f"{path} cannot be opened: {error}") from error
    if image.format == "TIFF":
        # With a name to map into memory, Pillow (13.0) takes the sides of an upright TIFF for
        # those it is stored with, and scrambles it.
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
    except Exception as error:  # and on damaged pixels
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


# Pillow has no mode for colours of 16 bits, and keeps the upper bytes. Told that the file has the
# other byte order, it keeps the lower ones.
_OTHER_BYTES = {
    f"{kind};16{order}": f"{kind};16{other}"
    for kind in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}


def _low_bytes(path: Path) -> Image.Image | None:
    """The lower bytes of a file of 16-bit RGB or RGBA, upright; None for all others."""
    try:
        with _opened(path, MAX_PIXELS) as opened:
            # The name of how bytes are laid out, alone (PNG) or before more arguments (TIFF).
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
    except Exception:  # a file of another build than those known: eight bits it is
        return None


def to_pil(rgb: Floats, source: Picture | None = None) -> Image.Image:
    """A result as an 8-bit picture: mode RGB, or RGBA where the source has an alpha channel.

    Args:
        rgb: [H, W, 3] in [−1, 1]; what lies beyond is clipped.
        source: gives its alpha channel (resized, bicubic), and as `info` its profile of RGB
            colours, EXIF and XMP.
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
    """Pillow's name of it."""
    alpha: bool
    """Whether it holds transparency."""
    longest: int
    """Longest side, in pixels."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `PIL.Image.Image.save`."""
    grey: bool = True
    """Whether it holds one channel alone."""
    strips: bool = False
    """Whether it is written by rows, with 16 bits a channel where they are wanted."""
    bytes: float = math.inf
    """Most bytes of pixels."""


_JPEG = FileFormat("JPEG", False, 65_500, {"quality": 95, "subsampling": 0})
_JPEG_SEGMENT = {"exif": 65_533, "xmp": 65_502}
# Not compressed, so that strips have their places; these are numbers of 32 bits.
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
"""The formats that results are written in, by suffix. All keep colour profile, EXIF and XMP."""


def check_output(
    path: ImagePath,
    *,
    size: tuple[int, int] = (1, 1),
    transparent: bool = False,
    pixel_bytes: int = 3,
    overwrite: bool = True,
) -> FileFormat:
    """Find out before the work, rather than after it, that a result could not be written.

    Args:
        path: of the result.
        size: (width, height) of the result.
        transparent: whether some of it is.
        pixel_bytes: bytes of one pixel.
        overwrite: whether a file may already be there.

    Raises:
        OutputError: for an unknown suffix, a format that cannot hold such a picture, a missing or
            read-only folder, and a file that may not be replaced.
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
    """Find out whether a file could be put there.

    Args:
        path: of the file.
        overwrite: whether one may already be there.

    Raises:
        OutputError: for a missing or read-only folder, and a file that may not be replaced.
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


@contextmanager
def replacing(path: ImagePath) -> Iterator[BinaryIO]:
    """A file to fill, which takes the place of `path` in one step when the block is left.

    On failure nothing is left behind, and a file that was there before is untouched.

    Raises:
        OutputError: when it cannot be written.
    """
    # A link is followed: what it points to is replaced, not the link.
    target = Path(os.path.realpath(path))
    # In the same folder, since only within a file system is a rename one step.
    draft = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        # Ctrl-C, and what another part of the work has found wrong.
        if not isinstance(error, Exception) or isinstance(error, (MMSRError, MemoryError)):
            raise
        raise OutputError(f"{path} cannot be written: {error}") from error


def save_image(image: Image.Image, path: ImagePath) -> None:
    """Write a picture in the format that the suffix names, with its profile, EXIF and XMP.

    The file appears, or is replaced, in one step once it is complete. On failure nothing is left
    behind, and a file that was there before is untouched.

    Args:
        image: as `to_pil` gives it; profile, EXIF and XMP are taken from `info`.
        path: with a suffix of `FORMATS`.

    Raises:
        OutputError: when it cannot be written; as `check_output` does.
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
                said = f"{path}: the {name.upper()} is too long for JPEG and is left out"
                warnings.warn(said, stacklevel=2)
                del kept[name]
    with replacing(path) as file:
        image.save(file, form.name, **form.options, **kept)
