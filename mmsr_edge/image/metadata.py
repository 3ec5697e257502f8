"""Metadata: colour profile, EXIF and XMP of a picture, and their transfer to its enlargement."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Metadata", "enlarged", "upright"]

# Tags of the first EXIF directory that describe how pixels are stored. A TIFF has all of them, and
# none holds for the result. Orientation is among them, since it has been applied.
_STORAGE_TAGS = {
    *range(254, 260), *range(262, 270), 273, 274, *range(277, 282), 284, *range(288, 294), 297, 301,
    *range(317, 326), *range(330, 335), *range(336, 342), 347, *range(512, 533), 700, 33723, 34377,
    34675,
}  # fmt: skip
_XMP_ORIENTATION = re.compile(
    rb"""\s*tiff:Orientation\s*=\s*["'][0-9]["']|<tiff:Orientation>[0-9]</tiff:Orientation>"""
)
_EXIF_DIRECTORY = 0x8769
_WIDTH_TAG, _HEIGHT_TAG = 0xA002, 0xA003


@dataclass(frozen=True)
class Metadata:
    """Data that is stored in a file beside the pixels."""

    icc: bytes | None = None
    """Colour profile."""
    exif: bytes | None = None
    """EXIF, with or without the header "Exif\\0\\0"."""
    xmp: bytes | None = None
    """XMP packet."""

    @classmethod
    def of(cls, info: Mapping[Any, Any]) -> Metadata:
        """The metadata in `info` of a PIL image."""
        xmp = info.get("xmp")
        if isinstance(xmp, str):
            xmp = xmp.encode()
        return cls(info.get("icc_profile") or None, info.get("exif") or None, xmp or None)

    def options(self) -> dict[str, bytes]:
        """Keyword arguments of `PIL.Image.Image.save`, which are also keys of `info`."""
        given = {"icc_profile": self.icc, "exif": self.exif, "xmp": self.xmp}
        return {name: value for name, value in given.items() if value}


def upright(image: Image.Image) -> Image.Image:
    """A copy turned as its EXIF declares; `info` keeps EXIF without storage tags and thumbnail.

    EXIF that is too damaged to be read is dropped. An orientation in the XMP packet is removed.
    """
    kept: bytes | None = None
    try:
        turned = ImageOps.exif_transpose(image)
        exif = Image.Exif()
        exif.load(image.getexif().tobytes())
        for tag in _STORAGE_TAGS & set(exif):
            del exif[tag]
        kept = exif.tobytes() if len(exif) else None
    except Exception:
        turned = image.copy()
    # Viewers use the orientation in XMP where EXIF has none, so it is removed in any case.
    if xmp := Metadata.of(turned.info).xmp:
        turned.info["xmp"] = _XMP_ORIENTATION.sub(b"", xmp)
    turned.info.pop("exif", None)
    if kept is not None:
        turned.info["exif"] = kept
    return turned


def enlarged(exif: bytes, size: tuple[int, int]) -> bytes:
    """`exif` with its width and height, where it has them, replaced by `size` (width, height)."""
    whole = Image.Exif()
    whole.load(exif)
    details = whole.get_ifd(_EXIF_DIRECTORY)
    for tag, length in zip((_WIDTH_TAG, _HEIGHT_TAG), size, strict=True):
        if tag in details:
            details[tag] = length
    return whole.tobytes()
