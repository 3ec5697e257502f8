"""Image: pictures in and out of files, with nothing of theirs lost on the way.

`load_image` gives RGB as the networks want it and keeps apart what they know nothing of:
transparency, the colour profile, EXIF. `to_pil` puts these back onto a result, and `save_image`
writes it so that there is either the whole new file or everything is as it was.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmsr_edge.errors import ImageError, OutputError
from mmsr_edge.pixels import from_array, from_pil, to_bytes

if TYPE_CHECKING:
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
    "save_image",
    "to_pil",
]

MAX_PIXELS = 64_000_000
"""Largest input, width x height. A small file can claim to be a huge picture (a decompression
bomb), and four times the side is sixteen times the memory."""

ImagePath: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright, and what has to be given back with the result."""

    rgb: Floats
    """[H, W, 3] in [−1, 1], in the colour space of `icc`, or sRGB where that is None."""
    alpha: Floats | None = None
    """Opacity [H, W] in [0, 1], where the picture has such a channel."""
    icc: bytes | None = None
    """The RGB colour profile."""
    exif: bytes | None = None
    """EXIF without the orientation tag, which has been applied."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.rgb.shape[1], self.rgb.shape[0]

    @property
    def transparent(self) -> bool:
        """Whether anything can be seen through."""
        return self.alpha is not None and bool((self.alpha < 1).any())


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
        return Picture(*from_array(source))
    if not isinstance(source, (str, os.PathLike, Image.Image)):
        raise ImageError(
            f"an image of type {type(source).__name__} cannot be read; "
            "pass a path, a PIL image or a numpy array"
        )
    image = open_image(source, first_frame=first_frame, max_pixels=max_pixels)
    return Picture(*from_pil(image), image.info.get("exif"))


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
    try:
        with warnings.catch_warnings():
            # Our own limit is below the one at which Pillow warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}") from error
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        what = "is empty" if empty else "is not a picture in a format that Pillow knows"
        raise ImageError(f"{path} {what}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large: {error}; see PIL.Image.MAX_IMAGE_PIXELS") from error
    except Exception as error:  # decoders raise almost anything on a damaged header
        raise ImageError(f"{path} cannot be opened: {error}") from error
    with opened:
        return _decode(opened, str(path), first_frame, max_pixels)


def _decode(image: Image.Image, name: str, first_frame: bool, max_pixels: int) -> Image.Image:
    _check_size(name, *image.size, max_pixels)
    try:
        frames = 1 if image.format in _STILL else int(getattr(image, "n_frames", 1))
        if frames == 1 or first_frame:
            shown = image.tell()
            if frames > 1:
                image.seek(0)
            image.load()
            upright = _upright(image)
            if frames > 1:
                image.seek(shown)
            return upright
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


# Tags of the first EXIF directory that tell how pixels are stored. In a TIFF all of them are
# there, and none is true of the result; orientation is one, for it has been applied.
_STORAGE_TAGS = {
    *range(254, 260), *range(262, 270), 273, 274, *range(277, 282), 284, *range(288, 294), 297, 301,
    *range(317, 326), *range(330, 335), *range(336, 342), 347, *range(512, 533), 700, 33723, 34377,
    34675,
}  # fmt: skip
_EXIF_DIRECTORY = 0x8769
_WIDTH_TAG, _HEIGHT_TAG = 0xA002, 0xA003


def _upright(image: Image.Image) -> Image.Image:
    """A copy turned as its EXIF says, without the EXIF's storage tags and thumbnail.

    EXIF too damaged to be read is dropped: it is no reason to refuse a picture.
    """
    kept: bytes | None = None
    try:
        upright = ImageOps.exif_transpose(image)
        exif = Image.Exif()
        exif.load(image.getexif().tobytes())
        for tag in _STORAGE_TAGS & set(exif):
            del exif[tag]
        kept = exif.tobytes() if len(exif) else None
    except Exception:
        upright = image.copy()
    upright.info.pop("exif", None)
    if kept is not None:
        upright.info["exif"] = kept
    return upright


def to_pil(rgb: Floats, source: Picture | None = None) -> Image.Image:
    """A result as an 8-bit picture: mode RGB, or RGBA where the source has an alpha channel.

    Args:
        rgb: [H, W, 3] in [−1, 1]; what lies beyond is clipped.
        source: gives its alpha channel (resized, bicubic), colour profile and EXIF, the latter two
            as `info["icc_profile"]` and `info["exif"]`.
    """
    image = Image.fromarray(to_bytes(rgb))
    if source is None:
        return image
    if source.alpha is not None:
        alpha = Image.fromarray(source.alpha).resize(image.size, Image.Resampling.BICUBIC)
        image.putalpha(Image.fromarray(to_bytes(np.asarray(alpha) * 2 - 1)))
    if source.icc is not None:
        image.info["icc_profile"] = source.icc
    if source.exif is not None:
        exif = Image.Exif()
        exif.load(source.exif)
        details = exif.get_ifd(_EXIF_DIRECTORY)
        for tag, length in zip((_WIDTH_TAG, _HEIGHT_TAG), image.size, strict=True):
            if tag in details:
                details[tag] = length
        image.info["exif"] = exif.tobytes()
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


_JPEG = FileFormat("JPEG", False, 65_500, {"quality": 95, "subsampling": 0})
_JPEG_EXIF_LIMIT = 65_533  # a JPEG segment
_TIFF = FileFormat("TIFF", True, 2**31 - 1)  # not compressed: Pillow then fails on EXIF
FORMATS = {
    ".png": FileFormat("PNG", True, 2**31 - 1),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": FileFormat("WEBP", True, 16_383, {"quality": 95}),
    ".tif": _TIFF,
    ".tiff": _TIFF,
}
"""The formats that results are written in, by suffix. All keep colour profile and EXIF."""


def check_output(
    path: ImagePath,
    *,
    size: tuple[int, int] = (1, 1),
    transparent: bool = False,
    overwrite: bool = True,
) -> FileFormat:
    """Find out before the work, rather than after it, that a result could not be written.

    Args:
        path: of the result.
        size: (width, height) of the result.
        transparent: whether some of it is.
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
    if transparent and not form.alpha:
        raise OutputError(
            f"{target}: {form.name} cannot hold transparency; use .png, .webp or .tif"
        )
    if max(size) > form.longest:
        raise OutputError(
            f"{target}: {size[0]} x {size[1]} pixels are more than the {form.longest} a side that "
            f"{form.name} can hold; use .png or .tif"
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


def save_image(image: Image.Image, path: ImagePath) -> None:
    """Write a picture in the format that the suffix names, with its colour profile and EXIF.

    The file appears, or is replaced, in one step once it is complete. On failure nothing is left
    behind, and a file that was there before is untouched.

    Args:
        image: as `to_pil` gives it; profile and EXIF are taken from `info`.
        path: with a suffix of `FORMATS`.

    Raises:
        OutputError: when it cannot be written; as `check_output` does.
    """
    opaque = image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255)
    form = check_output(path, size=image.size, transparent=image.mode == "RGBA" and not opaque)
    if opaque and not form.alpha:
        image = image.convert("RGB")
    # A link is followed: what it points to is replaced, not the link.
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{secrets.token_hex(8)}.part")
    kept = {key: image.info[key] for key in ("icc_profile", "exif") if image.info.get(key)}
    if form is _JPEG and len(kept.get("exif", b"")) > _JPEG_EXIF_LIMIT:
        warnings.warn(f"{path}: the EXIF is too long for JPEG and is left out", stacklevel=2)
        del kept["exif"]
    try:
        # In the same folder, since only within a file system is a rename one step.
        with draft.open("xb") as file:
            image.save(file, form.name, **form.options, **kept)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        raise OutputError(f"{path} cannot be written: {error}") from error
