"""The quality of JPEG files, from their quantization tables."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from photo_factory import photo
from PIL import Image

from mmsr_edge.image import load_image
from mmsr_edge.image.jpeg import table_quality

if TYPE_CHECKING:
    from pathlib import Path


def saved(path: Path, **options: object) -> Path:
    Image.fromarray(photo(40, 48)).save(path, **options)
    return path


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 51, 75, 90, 95, 99, 100])
def test_a_files_quality_is_the_one_it_was_saved_with(tmp_path: Path, quality: int) -> None:
    path = saved(tmp_path / "a.jpg", quality=quality, subsampling=0)
    assert load_image(path).jpeg_quality == quality
    assert load_image(str(path)).jpeg_quality == quality
    assert load_image(Image.open(path)).jpeg_quality == quality


def test_other_tables_have_the_quality_of_the_table_as_coarse(tmp_path: Path) -> None:
    standard = Image.open(saved(tmp_path / "a.jpg", quality=60)).quantization[0]
    flat = [round(sum(standard) / 64)] * 64
    path = saved(tmp_path / "b.jpg", qtables=[flat, flat])
    assert abs(load_image(path).jpeg_quality - 60) <= 1
    assert table_quality([1] * 64) == 100 and table_quality([255] * 64) == 1


def test_pictures_that_are_no_jpeg_files_have_no_quality(tmp_path: Path) -> None:
    assert load_image(saved(tmp_path / "a.png")).jpeg_quality is None
    assert load_image(photo(8, 9)).jpeg_quality is None
    # Decoded in memory, it may have been changed since.
    image = Image.open(saved(tmp_path / "a.jpg", quality=50))
    image.thumbnail((20, 20))
    assert load_image(image).jpeg_quality is None
    assert load_image(Image.open(tmp_path / "a.jpg").convert("RGB")).jpeg_quality is None


def test_a_grey_and_a_turned_file_keep_their_quality(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = load_image(saved(tmp_path / "a.jpg", quality=30, exif=exif))
    assert (turned.jpeg_quality, turned.size) == (30, (40, 48))
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(buffer, "JPEG", quality=30)
    path = tmp_path / "grey.jpg"
    path.write_bytes(buffer.getvalue())
    assert load_image(path).jpeg_quality == 30
