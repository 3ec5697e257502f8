"""Reading pictures: every mode that Pillow reads, and damaged or unsuitable files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from picture_factory import (
    COPYRIGHT,
    EXIF_DIRECTORY,
    LENS,
    ORIENTATION,
    SRGB,
    exif_with,
    noise,
    signed,
    with_alpha,
)
from PIL import Image, ImageCms
from profile_factory import linear_grey_profile

from mmsr_edge import image
from mmsr_edge.errors import ImageError

# --- Reading: kinds of pixels ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "str", "pil", "array"])
def test_all_sources_of_rgb_agree(kind: str, tmp_path: Path) -> None:
    values = noise(5, 7, 3)
    picture = Image.fromarray(values)
    path = tmp_path / "in.png"
    picture.save(path)
    source = {"path": path, "str": str(path), "pil": picture, "array": values}[kind]
    loaded = image.load_image(source)
    assert loaded.rgb.dtype == np.float32
    assert loaded.size == (7, 5)
    np.testing.assert_allclose(loaded.rgb, signed(values), rtol=0, atol=1e-6)
    assert (loaded.alpha, loaded.icc, loaded.exif) == (None, None, None)
    assert not loaded.transparent


def test_range_is_met_exactly() -> None:
    loaded = image.load_image(np.array([[0, 255]], np.uint8))
    assert loaded.rgb.min() == -1
    assert loaded.rgb.max() == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV", "RGBX"])
def test_modes_without_alpha(mode: str, tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(24) * 5, np.arange(20) * 4).astype(np.uint8)
    rgb = Image.fromarray(np.stack([smooth, 255 - smooth, smooth // 2], axis=2))
    converted = rgb.convert(mode)
    expected = np.asarray(converted.convert("RGB"))
    np.testing.assert_allclose(image.load_image(converted).rgb, signed(expected), rtol=0, atol=1e-6)
    if mode in {"1", "L", "P"}:
        converted.save(tmp_path / "in.png")
        loaded = image.load_image(tmp_path / "in.png")
        np.testing.assert_allclose(loaded.rgb, signed(expected), rtol=0, atol=1e-6)
        assert loaded.alpha is None


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_not_cut_off(suffix: str, tmp_path: Path) -> None:
    values = np.array([[0, 256, 13107], [32768, 65534, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"in{suffix}")
    loaded = image.load_image(tmp_path / f"in{suffix}")
    expected = np.repeat(values[..., None] / 32767.5 - 1, 3, axis=2)
    np.testing.assert_allclose(loaded.rgb, expected, rtol=0, atol=1e-6)
    # Older versions of Pillow read such a file as int32.
    as_int = Image.fromarray(values.astype(np.int32))
    np.testing.assert_allclose(image.load_image(as_int).rgb, expected, rtol=0, atol=1e-6)


def test_16_bit_rgb_png(tmp_path: Path) -> None:
    values = np.array([[[0, 32768, 65535], [257, 514, 65278]]], np.uint16)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
        for tag, data in chunks
    )
    (tmp_path / "in.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    loaded = image.load_image(tmp_path / "in.png")
    assert loaded.bits == 16
    np.testing.assert_allclose(loaded.rgb, values / 32767.5 - 1, rtol=0, atol=1e-6)


def test_float_tiff(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.25, 1.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "in.tif")
    np.testing.assert_allclose(
        image.load_image(tmp_path / "in.tif").rgb[..., 0], values * 2 - 1, rtol=0, atol=1e-6
    )
    with pytest.raises(ImageError, match=r"mode F .*\[0, 300\]"):
        image.load_image(Image.fromarray(values * 300))
    with pytest.raises(ImageError, match=r"mode I .*int32"):
        image.load_image(Image.fromarray(np.array([[0, 70000]], np.int32)))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    values = np.full((16, 24, 3), (200, 40, 90), np.uint8)
    Image.fromarray(values).convert("CMYK").save(tmp_path / "in.jpg", quality=100)
    loaded = image.load_image(tmp_path / "in.jpg")
    np.testing.assert_allclose(loaded.rgb, signed(values), rtol=0, atol=0.03)
    # An RGB profile does not describe CMYK pixels, and is dropped.
    with Image.open(tmp_path / "in.jpg") as picture:
        picture.info["icc_profile"] = SRGB
        again = image.load_image(picture)
    assert again.icc is None
    np.testing.assert_array_equal(again.rgb, loaded.rgb)


def test_lab(tmp_path: Path) -> None:
    values = np.full((4, 4, 3), (200, 40, 90), np.uint8)
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(Image.fromarray(values), to_lab)
    lab.save(tmp_path / "in.tif")
    loaded = image.load_image(tmp_path / "in.tif")
    np.testing.assert_allclose(loaded.rgb, signed(values), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[True, False]]), [1, -1]),
        (np.array([[0.25, 1.0]]), [-0.5, 1]),
        (np.array([[[0.25], [1.0]]], np.float16), [-0.5, 1]),
        (np.array([[0, 65535]], np.uint16), [-1, 1]),
        (np.array([[0, 65535]], ">u2"), [-1, 1]),
        (np.array([[[255, 255], [0, 128]]], np.uint8), [1, -1]),
    ],
)
def test_grey_arrays(array: np.ndarray, expected: list[float]) -> None:
    rgb = image.load_image(array).rgb
    assert rgb.dtype == np.float32
    np.testing.assert_allclose(rgb[0], np.repeat(np.array(expected)[:, None], 3, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), r"shape \(5,\)"),
        (np.zeros((2, 3, 5)), r"shape \(2, 3, 5\)"),
        (np.zeros((1, 2, 3, 3)), r"shape \(1, 2, 3, 3\)"),
        (np.zeros((0, 4, 3)), "empty: 4 x 0"),
        (np.array([[-0.5, 1.0]]), r"\[-0\.5, 1\]"),
        (np.array([[0.0, 2.0]]), r"\[0, 2\]"),
        (np.array([[0.0, np.nan]]), "nan"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.zeros((2, 2), complex), "complex"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        image.load_image(array)


def test_other_types_are_refused() -> None:
    with pytest.raises(ImageError, match="list"):
        image.load_image([[1, 2], [3, 4]])  # type: ignore[arg-type]


# --- Reading: transparency -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA", "RGB+tRNS", "L+tRNS", "P+tRNS"])
def test_alpha_is_separate_and_hidden_colours_are_filled_from_nearby(mode: str) -> None:
    picture, _, opacity = with_alpha(mode)
    loaded = image.load_image(picture)
    assert loaded.alpha is not None
    assert loaded.transparent
    assert loaded.alpha.dtype == np.float32
    np.testing.assert_allclose(loaded.alpha, opacity / 255, rtol=0, atol=1e-6)
    # The hidden half was black or magenta, and would have bled into the visible half.
    np.testing.assert_allclose(loaded.rgb, signed(np.full((8, 8, 3), 90)), rtol=0, atol=1e-6)


def test_transparent_palette_file_keeps_its_alpha(tmp_path: Path) -> None:
    picture, _, opacity = with_alpha("P+tRNS")
    picture.save(tmp_path / "in.png", transparency=0)
    loaded = image.load_image(tmp_path / "in.png")
    assert loaded.alpha is not None
    np.testing.assert_array_equal(loaded.alpha * 255, opacity)


def test_visible_colours_are_untouched_however_faint() -> None:
    rgba = noise(9, 13, 4)
    rgba[..., 3].clip(1, 255, out=rgba[..., 3])
    rgba[2:5, 3:9, 3] = 0
    loaded = image.load_image(rgba)
    seen = rgba[..., 3] > 0
    np.testing.assert_allclose(loaded.rgb[seen], signed(rgba[..., :3])[seen], rtol=0, atol=1e-6)
    assert np.abs(loaded.rgb).max() <= 1
    assert image.load_image(Image.fromarray(rgba)).rgb.tobytes() == loaded.rgb.tobytes()


def test_a_wholly_transparent_picture_is_left_as_it_is() -> None:
    rgba = noise(4, 4, 4)
    rgba[..., 3] = 0
    np.testing.assert_allclose(image.load_image(rgba).rgb, signed(rgba[..., :3]), rtol=0, atol=1e-6)


# --- Reading: metadata -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_the_tag_gone(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = (250, 0, 0)
    upright[8:, :16] = (0, 250, 0)
    # Pixels as stored with each orientation.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 1)[:, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    if orientation == 7:
        stored = upright[::-1, ::-1].swapaxes(0, 1)
    path = tmp_path / f"in{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(
        path, exif=exif_with(orientation), quality=100, **options
    )
    loaded = image.load_image(path)
    assert loaded.size == (32, 16)
    blocks = loaded.rgb[4:16:8, 8:32:16]  # one pixel in each quarter
    np.testing.assert_allclose(blocks, signed(upright[4:16:8, 8:32:16]), rtol=0, atol=0.05)
    exif = Image.Exif()
    exif.load(loaded.exif or b"")
    assert ORIENTATION not in exif
    assert exif[COPYRIGHT] == "someone"
    assert exif.get_ifd(EXIF_DIRECTORY)[LENS] == "50 mm"
    # No tag that describes how a TIFF stored its pixels.
    assert set(exif) <= {COPYRIGHT, EXIF_DIRECTORY}


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_a_rotated_tiff_is_read_upright(mode: str, tmp_path: Path) -> None:
    """Pillow memory-maps some modes, and then swaps width and height."""
    stored = Image.fromarray(noise(5, 9, 3)).convert(mode)
    stored.save(tmp_path / "in.tif", exif=exif_with(6))
    expected = stored.transpose(Image.Transpose.ROTATE_270).convert("RGB")
    loaded = image.load_image(tmp_path / "in.tif")
    np.testing.assert_allclose(loaded.rgb, signed(np.asarray(expected)), rtol=0, atol=1e-6)


def test_the_callers_image_is_not_altered(tmp_path: Path) -> None:
    Image.fromarray(noise(4, 6, 3)).save(tmp_path / "in.jpg", exif=exif_with(6))
    with Image.open(tmp_path / "in.jpg") as picture:
        assert image.load_image(picture).size == (4, 6)
        assert picture.size == (6, 4)
        assert picture.getexif()[ORIENTATION] == 6
        assert image.load_image(picture).size == (4, 6)


def test_broken_exif_is_dropped(tmp_path: Path) -> None:
    values = noise(4, 6, 3)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", exif=b"Exif\0\0garbage, not a TIFF header")
    (tmp_path / "in.png").write_bytes(buffer.getvalue())
    loaded = image.load_image(tmp_path / "in.png")
    np.testing.assert_allclose(loaded.rgb, signed(values), rtol=0, atol=1e-6)
    assert loaded.exif is None


def test_profiles_of_rgb_and_of_grey_are_kept() -> None:
    rgb = Image.fromarray(noise(4, 4, 3))
    rgb.info["icc_profile"] = SRGB
    assert image.load_image(rgb).icc == SRGB
    palette = rgb.convert("P")
    palette.info["icc_profile"] = SRGB
    assert image.load_image(palette).icc == SRGB

    grey = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    grey.info["icc_profile"] = SRGB  # an RGB profile on a grey picture
    assert (image.load_image(grey).grey, image.load_image(grey).icc) == (False, SRGB)
    grey.info["icc_profile"] = linear_grey_profile()
    loaded = image.load_image(grey)
    assert (loaded.grey, loaded.icc) == (True, linear_grey_profile())
    np.testing.assert_allclose(loaded.rgb[0, 1], 128 / 127.5 - 1, rtol=0, atol=1e-6)
    grey.info["icc_profile"] = linear_grey_profile()[:60]
    np.testing.assert_allclose(image.load_image(grey).rgb[0, 1], 128 / 127.5 - 1, atol=1e-6)


# --- Reading: planted failures ---------------------------------------------------------------


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(buffer, "JPEG")
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def bad_checksum() -> bytes:
    data = bytearray(png())
    data[data.index(b"IDAT") + 100] ^= 0xFF
    return bytes(data)


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = png()
    start = data.index(b"IHDR")
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return data[:start] + b"IHDR" + header + crc + data[start + 21 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"in\.jpg is empty"),
        (b"GIF", "not a picture"),
        (b"# a text file\n" * 50, "not a picture"),
        (jpeg()[:40], r"in\.jpg"),
        (jpeg()[: len(jpeg()) // 2], "cannot be decoded.*truncated"),
        (png()[: len(png()) // 2], "cannot be decoded"),
        (bad_checksum(), "cannot be decoded"),
        (bomb(), r"over the limit of 64000000.*max_pixels"),
    ],
    ids=["empty", "stub", "text", "header", "half jpeg", "half png", "checksum", "bomb"],
)
def test_broken_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        image.load_image(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no file .*gone\.png"):
        image.load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        image.load_image(tmp_path)


def test_the_size_limit_is_named_and_can_be_raised(tmp_path: Path) -> None:
    values = noise(10, 12, 3)
    for source in (values, Image.fromarray(values)):
        with pytest.raises(ImageError, match=r"12 x 10 = 120 pixels.*119.*MAX_PIXELS"):
            image.load_image(source, max_pixels=119)
        assert image.load_image(source, max_pixels=120).size == (12, 10)


def frames(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)) for i in range(count)]


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_animations_are_refused_unless_the_first_frame_is_asked_for(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"in{suffix}"
    first, *others = frames(3)
    first.save(path, save_all=True, append_images=others)
    with pytest.raises(ImageError, match=r"3 frames or pages.*first_frame"):
        image.load_image(path)
    np.testing.assert_allclose(image.load_image(path, first_frame=True).rgb, -1, atol=0.02)
    with Image.open(path) as picture:
        picture.seek(2)
        loaded = image.load_image(picture, first_frame=True)
        np.testing.assert_allclose(loaded.rgb, -1, atol=0.02)
        assert picture.tell() == 2


def test_an_mpo_of_two_pictures_is_no_animation(tmp_path: Path) -> None:
    first, second = frames(2)
    first.save(tmp_path / "in.jpg", "MPO", save_all=True, append_images=[second])
    np.testing.assert_allclose(image.load_image(tmp_path / "in.jpg").rgb, -1, atol=0.02)
