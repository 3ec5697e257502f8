"""PNG and TIFF written by strips, as other libraries read them."""

from __future__ import annotations

import io
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmsr_edge.errors import Cancelled
from mmsr_edge.image import load_image
from mmsr_edge.image.metadata import Metadata
from mmsr_edge.image.writers import PngWriter, StripWriter, TiffWriter, open_writer

WRITERS = {".png": PngWriter, ".tif": TiffWriter}
EXIF_DIRECTORY, LENS, COPYRIGHT = 0x8769, 0xA434, 0x8298


def write(writer: StripWriter, values: np.ndarray, rows: int) -> None:
    for top in range(0, len(values), rows):
        writer.write(values[top : top + rows])
    writer.finish()


@given(
    st.sampled_from([".png", ".tif"]),
    st.integers(1, 150),
    st.integers(1, 40),
    st.integers(1, 4),
    st.sampled_from([8, 16]),
    st.integers(1, 70),
    st.booleans(),
)
def test_pixels_come_back(
    suffix: str, height: int, width: int, channels: int, bits: int, rows: int, smooth: bool
) -> None:
    shape = (height, width, channels)
    values = np.random.default_rng(0).integers(0, 1 << bits, shape).astype(f"u{bits // 8}")
    if smooth:  # smooth, for other filters
        y, x = np.mgrid[:height, :width]
        values = np.stack([x * 3 + y * 5] * channels, axis=-1).astype(values.dtype)
    file = io.BytesIO()
    write(WRITERS[suffix](file, (width, height), channels, bits), values, rows)
    if suffix == ".tif" and bits == 16 and channels == 2:
        return  # Pillow cannot read it; tifffile does, below
    with Image.open(io.BytesIO(file.getvalue())) as picture:
        assert picture.size == (width, height)
        shown = np.asarray(picture)
    if bits == 16 and channels > 1:  # Pillow keeps the upper byte
        shown, values = shown.astype(int), values >> 8
        if channels == 2:
            shown = shown[..., [0, 3]]
    np.testing.assert_array_equal(shown.reshape(shape), values)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_tiff_is_read_by_tifffile(channels: int, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 1 << 16, (150, 7, channels), np.uint16)
    with (tmp_path / "out.tif").open("wb") as file:
        write(TiffWriter(file, (7, 150), channels, 16), values, 40)
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "out.tif").reshape(values.shape), values
    )


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_go_round(suffix: str, channels: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (40, 30, channels), np.uint16)
    if channels == 4:
        values[..., 3] |= 1  # colours of transparent pixels are not kept
    path = tmp_path / f"out{suffix}"
    with open_writer(path, (30, 40), channels, 16, Metadata()) as writer:
        writer.write(values)
    loaded = load_image(path)
    assert loaded.bits == 16
    back = np.round((loaded.rgb.astype(np.float64) + 1) * 32767.5)
    np.testing.assert_array_equal(back, values[..., :3])
    if channels == 4:
        assert loaded.alpha is not None
        np.testing.assert_array_equal(np.round(loaded.alpha * 65535.0), values[..., 3])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_metadata_comes_back(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[COPYRIGHT] = "someone"
    exif[EXIF_DIRECTORY] = {LENS: "50 mm"}
    given_data = Metadata(b"a profile" * 50, exif.tobytes(), b"<x:xmpmeta/>")
    path = tmp_path / f"out{suffix}"
    with open_writer(path, (3, 200), 3, 8, given_data) as writer:
        writer.write(np.zeros((200, 3, 3), np.uint8))
    with Image.open(path) as picture:
        picture.load()
        assert picture.info["icc_profile"] == given_data.icc
        assert picture.info["xmp"] == given_data.xmp
        found = picture.getexif()
        assert found[COPYRIGHT] == "someone"
        assert found.get_ifd(EXIF_DIRECTORY)[LENS] == "50 mm"


def test_filters_make_a_photograph_small() -> None:
    photo = pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")
    values = np.asarray(Image.fromarray(photo[:200, :300]).resize((600, 400)))
    file, pillow = io.BytesIO(), io.BytesIO()
    write(PngWriter(file, (600, 400), 3, 8), values, 64)
    Image.fromarray(values).save(pillow, "PNG")
    assert len(file.getvalue()) < 1.1 * len(pillow.getvalue())
    assert len(file.getvalue()) < 0.9 * len(zlib.compress(values.tobytes()))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_memory_stays_below_that_of_the_picture(suffix: str, tmp_path: Path) -> None:
    strip = np.random.default_rng(0).integers(0, 256, (32, 500, 3), np.uint8)
    tracemalloc.start()
    try:
        with open_writer(tmp_path / f"o{suffix}", (500, 6400), 3, 8, Metadata()) as writer:
            for _ in range(200):
                writer.write(strip)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000 < 500 * 6400 * 3
    assert load_image(tmp_path / f"o{suffix}").size == (500, 6400)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_failed_write_leaves_no_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    strip = np.zeros((4, 5, 3), np.uint8)

    def attempt(error: Exception | None) -> None:
        with open_writer(path, (5, 9), 3, 8, Metadata()) as writer:
            writer.write(strip)
            if error:
                raise error

    with pytest.raises(Cancelled):
        attempt(Cancelled("by the test"))
    with pytest.raises((OSError, ValueError), match="rows were"):  # four of nine
        attempt(None)
    assert list(tmp_path.iterdir()) == []
