"""Pictures: reading and writing, with transparency, colour profile, EXIF and XMP."""

from __future__ import annotations

from mmsr_edge.image.load import (
    MAX_PIXELS,
    ImagePath,
    Picture,
    load_image,
    open_image,
    picture_size,
)
from mmsr_edge.image.save import (
    FORMATS,
    FileFormat,
    check_output,
    check_place,
    save_image,
    to_pil,
)

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "FileFormat",
    "ImagePath",
    "Picture",
    "check_output",
    "check_place",
    "load_image",
    "open_image",
    "picture_size",
    "save_image",
    "to_pil",
]
