"""From the networks' rows to the file's: every kind of picture in, every format out.

The networks are replaced by one that repeats each pixel, so that what should come out is known.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import SCALE, make_bundle
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin
from profile_factory import ADOBE, linear_grey_profile, rgb_profile

from mmsr_edge import OptionError, OutputError, Upscaler
from mmsr_edge.image import FORMATS, load_image
from mmsr_edge.image.color import FIDELITY_PSNR, block_means, delta_e00
from mmsr_edge.pipeline import PictureRun, TileStep

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]

ORIENTATION, COPYRIGHT, EXIF_DIRECTORY, LENS = 0x0112, 0x8298, 0x8769, 0xA434
ADOBE_RGB = rgb_profile(ADOBE)
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d" tiff:Make="me"/></x:xmpmeta>"""


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upscaler]:
    def denoise(run: Any, lr: Array, maps: Any, noise: Array) -> Iterator[TileStep]:
        yield TileStep(0, 1, noise)

    def decode(run: Any, latent: Array, lr: Array) -> Array:
        return lr.repeat(SCALE, axis=2).repeat(SCALE, axis=3)  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PictureRun, "denoise", denoise)
        patch.setattr(PictureRun, "decode", decode)
        yield Upscaler(make_bundle(tmp_path_factory.mktemp("tiny")), "onnxruntime")


def pixels(picture: Image.Image) -> Array:
    return np.asarray(picture, np.float64)


def larger(picture: Array, scale: int = SCALE) -> Array:
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def smooth(height: int, width: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width] / 40
    waves = [np.sin(5 * x + y), np.sin(2 * x - 4 * y + 1), np.cos(3 * x + 3 * y)]
    return np.round(128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


# --- Round trips --------------------------------------------------------------------------------

# How a file of each format can be made, and what comes of it: mode of the result, and how far
# apart values may be. `None` is where the format does not hold such pictures.
LOSSY = {".jpg": 12, ".webp": 14, ".avif": 14}


def sources() -> dict[str, list[str]]:
    return {
        ".png": ["1", "L", "LA", "P", "P+tRNS", "RGB", "RGBA", "I;16"],
        ".tif": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
        ".jpg": ["L", "RGB", "CMYK"],
        ".webp": ["RGB", "RGBA"],
        ".avif": ["RGB", "RGBA"],
    }


kinds = st.sampled_from([(suffix, mode) for suffix, modes in sources().items() for mode in modes])


def make(path: Path, mode: str, height: int, width: int, orientation: int) -> Image.Image:
    """A picture file with everything in it; gives it as it should be seen."""
    rgb = Image.fromarray(smooth(height, width))
    if mode == "P+tRNS":
        picture = rgb.quantize(7)
        # The commonest colour: of seven, small pictures do not use all.
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
def test_what_goes_in_comes_out(
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
            inside = larger(rgba[..., 3])
            # Opacity is enlarged smoothly, so only its means are the input's.
            means = block_means(loaded.alpha[..., None] * 255, SCALE)[..., 0]
            if kind[1] != "P+tRNS":  # whose opacity is all or nothing, and swings over
                assert np.abs(means - rgba[..., 3]).mean() < 3
            expected = rgba[..., :3]
            visible = inside > 250
            if visible.any() and (inside > 250).all():
                shown = (loaded.rgb + 1) * 127.5
                assert np.abs(shown - larger(expected))[visible].mean() < tolerance
            return
        else:
            expected = np.asarray(seen.convert("RGB"), float)
        shown = (loaded.rgb.astype(np.float64) + 1) * 127.5
        assert np.abs(shown - larger(expected)).mean() < tolerance


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
    expected = larger(values[..., :1].repeat(3, axis=2) if grey else values)
    assert np.abs(shown - expected).max() <= 1


def test_bits_can_be_chosen(upscaler: Upscaler, tmp_path: Path) -> None:
    picture = smooth(9, 9)
    for bits in (8, 16):
        upscaler(picture, output=tmp_path / "out.png", bits=bits)
        assert load_image(tmp_path / "out.png").bits == bits
    for output in (tmp_path / "out.jpg", None):
        with pytest.raises(OptionError, match=r"bits is 16, .* cannot hold; write a \.png"):
            upscaler(picture, output=output, bits=16)


def test_a_result_written_by_rows_can_be_looked_at(upscaler: Upscaler, tmp_path: Path) -> None:
    picture = smooth(20, 30)
    for suffix in (".png", ".tif", ".jpg"):
        result = upscaler(picture, output=tmp_path / f"out{suffix}")
        assert (result.canvas is None) == (suffix != ".jpg")
        np.testing.assert_array_equal(pixels(result.image), pixels(upscaler(picture).image))


# --- Colours ------------------------------------------------------------------------------------


def test_the_networks_see_srgb_and_the_file_keeps_its_profile(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[Array] = []
    original = PictureRun.denoise

    def denoise(run: PictureRun, lr: Array, *rest: Any) -> Any:
        shown.append(lr)
        return original(run, lr, *rest)

    monkeypatch.setattr(PictureRun, "denoise", denoise)
    picture = Image.fromarray(smooth(32, 32) // 3 + 90)  # within sRGB
    picture.save(tmp_path / "in.png", icc_profile=ADOBE_RGB)
    result = upscaler(tmp_path / "in.png", output=tmp_path / "out.png", color_fix=False)
    managed = ImageCms.profileToProfile(
        picture, io.BytesIO(ADOBE_RGB), ImageCms.createProfile("sRGB")
    )
    assert managed is not None
    seen = (shown[0][0].transpose(1, 2, 0) + 1) * 127.5
    assert np.abs(seen - pixels(managed)).max() < 2
    assert np.abs(seen - pixels(picture)).max() > 5  # it makes a difference
    assert result.image.info["icc_profile"] == ADOBE_RGB
    np.testing.assert_allclose(pixels(result.image), larger(pixels(picture)), atol=1)


def test_colours_beyond_srgb_survive(upscaler: Upscaler, tmp_path: Path) -> None:
    """The purest green of Adobe RGB is none that the networks ever see."""
    green = np.zeros((16, 16, 3), np.uint8)
    green[:, 8:, 1] = 255
    Image.fromarray(green).save(tmp_path / "in.png", icc_profile=ADOBE_RGB)
    for color_fix in (True, False):
        result = upscaler(tmp_path / "in.png", color_fix=color_fix)
        far = pixels(result.image)[:, 44:]
        np.testing.assert_allclose(far, np.broadcast_to([0, 255, 0], far.shape), atol=2)


def test_grey_with_a_profile_of_its_own(upscaler: Upscaler, tmp_path: Path) -> None:
    icc = linear_grey_profile()
    grey = smooth(16, 16)[..., 0]
    Image.fromarray(grey).save(tmp_path / "in.png", icc_profile=icc)
    result = upscaler(tmp_path / "in.png", output=tmp_path / "out.png")
    assert (result.image.mode, result.image.info["icc_profile"]) == ("L", icc)
    np.testing.assert_allclose(pixels(result.image), larger(grey.astype(float)), atol=1)
    # WebP has no grey: the result is sRGB, as bright as it was.
    result = upscaler(tmp_path / "in.png", output=tmp_path / "out.webp")
    assert result.image.mode == "RGB"
    assert "icc_profile" not in result.image.info
    light = 255 * np.where(
        grey / 255 <= 0.0031308, grey / 255 * 12.92, 1.055 * (grey / 255) ** (1 / 2.4) - 0.055
    )
    np.testing.assert_allclose(pixels(result.image)[..., 1], larger(light), atol=1.5)


# --- Transparency -------------------------------------------------------------------------------


def over(rgba: Array, background: float) -> Array:
    """[H, W, 4] in 0 … 255 on a plain ground."""
    opacity = rgba[..., 3:] / 255
    composite: Array = rgba[..., :3] * opacity + background * (1 - opacity)
    return composite


def enlarged(picture: Array) -> Array:
    height, width = picture.shape[:2]
    size = (width * SCALE, height * SCALE)
    planes = [
        Image.fromarray(picture[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        for c in range(picture.shape[2])
    ]
    return np.stack([np.asarray(plane, np.float64) for plane in planes], axis=-1)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_edges_of_what_is_seen_have_no_fringe(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, background: float
) -> None:
    """A red disc, of which the faintest pixels around it are green by accident.

    With a network that is bicubic interpolation, the picture on any ground is the bicubic
    enlargement of the small picture on that ground.
    """

    def decode(run: Any, latent: Array, lr: Array) -> Array:
        return np.float32(enlarged(lr[0].transpose(1, 2, 0)).transpose(2, 0, 1)[None])

    monkeypatch.setattr(PictureRun, "decode", decode)
    y, x = np.mgrid[:32, :32]
    opacity = ((10 - np.hypot(x - 15.5, y - 15.5)) / 2).clip(0, 1)
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 220, np.round(opacity * 255)
    rgba[opacity < 0.02] = (0, 255, 0, 1)
    result = pixels(upscaler(rgba, color_fix=False, edges=None).image)
    expected = enlarged(over(rgba.astype(float), background)).clip(0, 255)
    difference = np.abs(over(result, background) - expected)
    # Where bicubic swings beyond no or full opacity, it is cut off.
    swing = enlarged(rgba[..., 3:].astype(float))[..., 0]
    assert difference[(swing > 0) & (swing < 255)].max() < 2.5
    assert difference.max() < 25


def test_opaque_pictures_and_uniform_glass_are_left_alone(upscaler: Upscaler) -> None:
    colours = smooth(30, 20)
    for opacity in (255, 128, 3):
        rgba = np.dstack([colours, np.full((30, 20), opacity, np.uint8)])
        result = pixels(upscaler(rgba).image)
        np.testing.assert_allclose(result[..., 3], opacity)
        np.testing.assert_allclose(result[..., :3], larger(colours.astype(float)), atol=1)


# --- Size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (120, 80)),
        ({"scale": 1}, (30, 20)),
        ({"scale": 2.5}, (75, 50)),
        ({"scale": 8}, (240, 160)),
        ({"scale": 1.01}, (30, 20)),
        ({"width": 100}, (100, 67)),
        ({"height": 100}, (150, 100)),
        ({"width": 100, "height": 100}, (100, 67)),
        ({"width": 100, "height": 100, "fit": "inside"}, (100, 67)),
        ({"width": 100, "height": 100, "fit": "cover"}, (100, 100)),
        ({"width": 31, "height": 160, "fit": "cover"}, (31, 160)),
    ],
    ids=str,
)
def test_any_target(upscaler: Upscaler, options: dict[str, Any], size: tuple[int, int]) -> None:
    """The same as resizing the result of the model's own factor at once, opacity and all."""
    picture = np.dstack([smooth(20, 30), smooth(20, 30)[..., 0] // 4 + 150])
    for source in (picture[..., :3], picture, picture[..., 0]):
        result = upscaler(source, edges=None, **options)
        assert result.size == result.image.size == size
        whole = pixels(upscaler(source, edges=None).image)
        whole = whole[..., None] if whole.ndim == 2 else whole
        scale = max(size[0] / 30, size[1] / 20)
        left, upper = (max(0, (30 - size[0] / scale) / 2), max(0, (20 - size[1] / scale) / 2))
        if options.get("fit") != "cover":
            left = upper = 0
        box = (left * 4, upper * 4, (30 - left) * 4, (20 - upper) * 4)
        weight = whole[..., 3:] / 255 if whole.shape[2] == 4 else 1.0
        product = np.dstack([whole[..., :3] * weight, whole[..., 3:]])
        planes = [
            Image.fromarray(np.float32(product[..., c])).resize(size, Image.Resampling.LANCZOS, box)
            for c in range(product.shape[2])
        ]
        expected = np.stack([np.asarray(plane, np.float64) for plane in planes], axis=-1)
        if whole.shape[2] == 4:
            expected[..., :3] /= expected[..., 3:] / 255
        shown = pixels(result.image)
        np.testing.assert_allclose(
            shown[..., None] if shown.ndim == 2 else shown, expected.clip(0, 255), atol=2.6
        )


def test_a_flat_picture_is_flat_at_any_size(upscaler: Upscaler) -> None:
    flat = np.full((21, 13, 4), (200, 90, 10, 77), np.uint8)
    for options in ({"scale": 1.3}, {"scale": 5.7}, {"width": 20, "height": 50, "fit": "cover"}):
        result = pixels(upscaler(flat, edges=None, **options).image)
        np.testing.assert_allclose(result, np.broadcast_to(flat[0, 0], result.shape), atol=0.51)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": 9}, "scale is 9; it must be a number from 1 to 8"),
        ({"scale": 0.5}, "scale is 0.5"),
        ({"scale": True}, "scale is True"),
        ({"width": 10}, r"width=10 is 0\.333 times the picture's 30 x 20 pixels"),
        ({"height": 500}, "height=500 is 25 times"),
        ({"width": 100, "height": 10}, r"width=100 and height=10 is 0\.5 times"),
        ({"width": 0}, "width is 0; it must be an integer from 1"),
        ({"width": 9.5}, r"width is 9\.5"),
        ({"scale": 2, "width": 100}, "scale is 2 and width is 100; give one of the two"),
        ({"fit": "cover"}, "fit is 'cover', which needs both width and height"),
        ({"width": 60, "fit": "inside"}, "needs both"),
        ({"width": 60, "height": 40, "fit": "fill"}, "fit is 'fill'; it must be 'inside' or"),
        ({"bits": 12}, "bits is 12; it must be 8, 16 or None"),
        ({"fidelity": True, "color_fix": False}, "fidelity keeps the colours"),
        ({"fidelity": 1}, "fidelity is 1; it must be True or False"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be(upscaler: Upscaler, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        upscaler(smooth(20, 30), **options)


def test_the_first_frame_of_an_animation(upscaler: Upscaler, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="2 frames or pages"):
        upscaler(tmp_path / "in.gif")
    result = upscaler(tmp_path / "in.gif", first_frame=True)
    np.testing.assert_allclose(pixels(result.image)[0, 0], [255, 0, 0], atol=1)


# --- Fidelity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["smooth", "noise", "extremes"])
def test_fidelity_keeps_what_the_input_shows(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """Of a network that shifts colours and invents detail, the detail stays and the shift not."""
    invented = np.random.default_rng(1).uniform(-0.3, 0.3, (1, 3, 32 * SCALE, 32 * SCALE))

    def decode(run: Any, latent: Array, lr: Array) -> Array:
        made = lr.repeat(SCALE, axis=2).repeat(SCALE, axis=3) * 0.7 + 0.2 + invented
        return np.float32(made).clip(-1, 1)

    monkeypatch.setattr(PictureRun, "decode", decode)
    rng = np.random.default_rng(0)
    picture = {
        "smooth": smooth(70, 50),
        "noise": rng.integers(60, 196, (70, 50, 3)).astype(np.uint8),
        "extremes": (rng.integers(0, 2, (70, 50, 3)) * 255).astype(np.uint8),
    }[kind]
    result = upscaler(picture, fidelity=True, output=tmp_path / "out.png")
    shown = pixels(result.image)
    error = (block_means(shown, SCALE) - picture) / 255
    assert -10 * np.log10(np.mean(error**2) + 1e-9) > FIDELITY_PSNR
    assert result.low_pass_psnr is not None
    assert result.low_pass_psnr > FIDELITY_PSNR
    assert not any("fidelity" in warning for warning in result.warnings)
    if kind == "smooth":
        detail = shown - larger(block_means(shown, SCALE))
        assert detail.std() > 15
        plain = pixels(upscaler(picture).image)
        assert -10 * np.log10(np.mean(((block_means(plain, 4) - picture) / 255) ** 2)) < 45
    assert delta_e00(block_means(shown, SCALE) / 127.5 - 1, picture / 127.5 - 1) < 0.5


def test_fidelity_says_when_it_could_not(upscaler: Upscaler) -> None:
    assert upscaler(smooth(9, 9)).low_pass_psnr is None
    from mmsr_edge import upscaler as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FIDELITY_PSNR", 500)
        assert (
            "fidelity: the result's low-pass" in upscaler(smooth(9, 9), fidelity=True).warnings[-1]
        )


def test_every_format_is_tried() -> None:
    assert {form.name for form in FORMATS.values()} == {"PNG", "JPEG", "WEBP", "AVIF", "TIFF"}
