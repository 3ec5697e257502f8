"""Round trips: every kind of picture in, every format out, pixels and metadata kept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import SCALE
from finishing_factory import ADOBE_RGB, pixels, repeated, repeating_upscaler, smooth
from hypothesis import example, given, settings
from hypothesis import strategies as st
from picture_factory import COPYRIGHT, EXIF_DIRECTORY, LENS, ORIENTATION
from PIL import Image, PngImagePlugin, TiffImagePlugin

from mmsr_edge import OptionError, OutputError, Upscaler
from mmsr_edge.image import FORMATS, load_image
from mmsr_edge.image.color import block_means

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]

XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d" tiff:Make="me"/></x:xmpmeta>"""


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upscaler]:
    with repeating_upscaler(tmp_path_factory.mktemp("tiny") / "bundle") as made:
        yield made


LOSSY = {".jpg": 12, ".webp": 14, ".avif": 14}
"""Mean error of a lossy format, at most, in grey levels."""


def sources() -> dict[str, list[str]]:
    """Modes of the input files, by format."""
    return {
        ".png": ["1", "L", "LA", "P", "P+tRNS", "RGB", "RGBA", "I;16"],
        ".tif": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
        ".jpg": ["L", "RGB", "CMYK"],
        ".webp": ["RGB", "RGBA"],
        ".avif": ["RGB", "RGBA"],
    }


kinds = st.sampled_from([(suffix, mode) for suffix, modes in sources().items() for mode in modes])


def make(path: Path, mode: str, height: int, width: int, orientation: int) -> Image.Image:
    """Write a picture file with EXIF, XMP and profile; returns the picture upright."""
    rgb = Image.fromarray(smooth(height, width))
    if mode == "P+tRNS":
        picture = rgb.quantize(7)
        # The commonest colour: small pictures do not use all seven.
        picture.info["transparency"] = max(picture.getcolors())[1]
    elif mode == "I;16":
        picture = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    elif mode in {"LA", "RGBA"}:
        picture = rgb.convert(mode)
        picture.putalpha(Image.fromarray(smooth(width, height)[..., 0].T.clip(1, None)))
    else:
        picture = rgb.convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[COPYRIGHT] = "someone"
    exif[EXIF_DIRECTORY] = {LENS: "50 mm"}
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {"quality": 100}
    if path.suffix == ".tif":
        options = {}
    if "transparency" in picture.info:
        options["transparency"] = picture.info["transparency"]
    if mode in {"RGB", "RGBA", "P", "P+tRNS"}:
        options["icc_profile"] = ADOBE_RGB
    xmp = XMP % orientation
    if path.suffix == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif path.suffix == ".tif":
        exif[TiffImagePlugin.XMP] = xmp
    else:
        options["xmp"] = xmp
    picture.save(path, exif=exif.tobytes(), **options)
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turned = picture.transpose(back[orientation]) if orientation > 1 else picture
    if mode == "P+tRNS":
        turned.info["transparency"] = picture.info["transparency"]
    return turned


@settings(max_examples=60)
@given(
    kinds,
    st.sampled_from([".png", ".tif", ".jpg", ".webp", ".avif"]),
    st.integers(1, 8),
    st.integers(8, 40),
    st.integers(8, 40),
)
@example((".png", "P+tRNS"), ".jpg", 1, 8, 19)  # its palette has a colour that it does not use
def test_round_trips_between_all_formats(
    upscaler: Upscaler,
    kind: tuple[str, str],
    suffix: str,
    orientation: int,
    height: int,
    width: int,
) -> None:
    """Pixels, orientation, transparency, EXIF, XMP and profile, from any format to any other."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, f"in{kind[0]}"), Path(folder, f"out{suffix}")
        seen = make(source, kind[1], height, width, orientation)
        transparent = kind[1] in {"LA", "RGBA", "P+tRNS"}
        if transparent and suffix == ".jpg":
            with pytest.raises(OutputError, match="transparency"):
                upscaler(source, edges=None, output=target)
            assert not target.exists()
            return
        result = upscaler(source, edges=None, output=target)

        grey = kind[1] in {"1", "L", "LA", "I;16"}
        with Image.open(target) as written:
            written.load()
            assert written.size == result.size == (seen.width * SCALE, seen.height * SCALE)
            if suffix not in {".webp", ".avif"}:
                wanted = ("L" if grey else "RGB") + ("A" if transparent else "")
                assert written.mode == (
                    "I;16" if kind[1] == "I;16" and suffix != ".jpg" else wanted
                )
            found = written.getexif()
            assert found[COPYRIGHT] == "someone"
            assert found.get(ORIENTATION, 1) == 1
            assert found.get_ifd(EXIF_DIRECTORY)[LENS] == "50 mm"
            assert b"tiff:Orientation" not in written.info["xmp"]
            assert b'tiff:Make="me"' in written.info["xmp"]
            profiled = kind[1] in {"RGB", "RGBA", "P", "P+tRNS"}
            assert written.info.get("icc_profile") == (ADOBE_RGB if profiled else None)

        loaded = load_image(target)
        tolerance = 3 + LOSSY.get(kind[0], 0) * (kind[0] != ".webp") + LOSSY.get(suffix, 0)
        if kind[1] == "I;16":
            expected = np.repeat((np.asarray(seen) / 257)[..., None], 3, axis=2)
        elif transparent:
            rgba = np.asarray(seen.convert("RGBA"), float)
            assert loaded.alpha is not None
            # Opacity is interpolated, so only its block means are the input's.
            means = block_means(loaded.alpha[..., None] * 255, SCALE)[..., 0]
            if kind[1] != "P+tRNS":  # there it is 0 or 255, and overshoots
                assert np.abs(means - rgba[..., 3]).mean() < 3
            visible = repeated(rgba[..., 3]) > 0
            shown = (loaded.rgb.astype(np.float64) + 1) * 127.5
            assert np.abs(shown - repeated(rgba[..., :3]))[visible].mean() < tolerance
            return
        else:
            expected = np.asarray(seen.convert("RGB"), float)
        shown = (loaded.rgb.astype(np.float64) + 1) * 127.5
        assert np.abs(shown - repeated(expected)).mean() < tolerance


@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([".png", ".tif"]), st.booleans())
@settings(max_examples=30)
def test_sixteen_bits_go_through(
    upscaler: Upscaler, height: int, width: int, suffix: str, grey: bool
) -> None:
    """Nothing on the way has fewer bits, whatever the profile."""
    values = np.random.default_rng(0).integers(8000, 57000, (height, width, 3)).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, f"out{suffix}")
        upscaler(values[..., 0] if grey else values, edges=None, output=target)
        loaded = load_image(target)
    assert (loaded.bits, loaded.grey) == (16, grey)
    shown = np.round((loaded.rgb.astype(np.float64) + 1) * 32767.5)
    expected = repeated(values[..., :1].repeat(3, axis=2) if grey else values)
    assert np.abs(shown - expected).max() <= 1


def test_bits_can_be_chosen(upscaler: Upscaler, tmp_path: Path) -> None:
    picture = smooth(9, 9)
    for bits in (8, 16):
        upscaler(picture, output=tmp_path / "out.png", bits=bits)
        assert load_image(tmp_path / "out.png").bits == bits
    for output in (tmp_path / "out.jpg", None):
        with pytest.raises(OptionError, match=r"bits is 16, .* cannot hold; write a \.png"):
            upscaler(picture, output=output, bits=16)


def test_a_result_written_by_rows_has_its_image(upscaler: Upscaler, tmp_path: Path) -> None:
    picture = smooth(20, 30)
    for suffix in (".png", ".tif", ".jpg"):
        result = upscaler(picture, output=tmp_path / f"out{suffix}")
        assert (result.canvas is None) == (suffix != ".jpg")
        np.testing.assert_array_equal(pixels(result.image), pixels(upscaler(picture).image))


def test_the_formats_are_those_tried_here() -> None:
    assert {form.name for form in FORMATS.values()} == {"PNG", "JPEG", "WEBP", "AVIF", "TIFF"}
