"""Finishing, from the networks' output to the result: colours, transparency, size, fidelity."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import SCALE
from finishing_factory import ADOBE_RGB, pixels, repeated, repeating_upscaler, smooth
from PIL import Image, ImageCms
from profile_factory import linear_grey_profile

from mmsr_edge import OptionError, Upscaler
from mmsr_edge.image.color import FIDELITY_PSNR, block_means, delta_e00
from mmsr_edge.pipeline import PictureRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upscaler]:
    with repeating_upscaler(tmp_path_factory.mktemp("tiny") / "bundle") as made:
        yield made


# --- Colours ------------------------------------------------------------------------------------


def test_the_networks_get_srgb_and_the_file_keeps_its_profile(
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
    assert np.abs(seen - pixels(picture)).max() > 5  # the conversion changes the pixels
    assert result.image.info["icc_profile"] == ADOBE_RGB
    np.testing.assert_allclose(pixels(result.image), repeated(pixels(picture)), atol=1)


def test_colours_beyond_srgb_survive(upscaler: Upscaler, tmp_path: Path) -> None:
    """Adobe RGB's purest green lies outside sRGB, in which the networks work."""
    green = np.zeros((16, 16, 3), np.uint8)
    green[:, 8:, 1] = 255
    Image.fromarray(green).save(tmp_path / "in.png", icc_profile=ADOBE_RGB)
    for color_fix in (True, False):
        result = upscaler(tmp_path / "in.png", color_fix=color_fix)
        far = pixels(result.image)[:, 44:]
        np.testing.assert_allclose(far, np.broadcast_to([0, 255, 0], far.shape), atol=2)


def test_grey_with_its_own_profile(upscaler: Upscaler, tmp_path: Path) -> None:
    icc = linear_grey_profile()
    grey = smooth(16, 16)[..., 0]
    Image.fromarray(grey).save(tmp_path / "in.png", icc_profile=icc)
    result = upscaler(tmp_path / "in.png", output=tmp_path / "out.png")
    assert (result.image.mode, result.image.info["icc_profile"]) == ("L", icc)
    np.testing.assert_allclose(pixels(result.image), repeated(grey.astype(float)), atol=1)
    # WebP has no grey: the result is sRGB, as bright as it was.
    result = upscaler(tmp_path / "in.png", output=tmp_path / "out.webp")
    assert result.image.mode == "RGB"
    assert "icc_profile" not in result.image.info
    light = 255 * np.where(
        grey / 255 <= 0.0031308, grey / 255 * 12.92, 1.055 * (grey / 255) ** (1 / 2.4) - 0.055
    )
    np.testing.assert_allclose(pixels(result.image)[..., 1], repeated(light), atol=1.5)


# --- Transparency -------------------------------------------------------------------------------


def over(rgba: Array, background: float) -> Array:
    """Composite [H, W, 4] in [0, 255] over a grey background."""
    opacity = rgba[..., 3:] / 255
    composite: Array = rgba[..., :3] * opacity + background * (1 - opacity)
    return composite


def bicubic(picture: Array) -> Array:
    height, width = picture.shape[:2]
    size = (width * SCALE, height * SCALE)
    planes = [
        Image.fromarray(picture[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        for c in range(picture.shape[2])
    ]
    return np.stack([np.asarray(plane, np.float64) for plane in planes], axis=-1)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_transparent_edges_have_no_fringe(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, background: float
) -> None:
    """A red disc whose faintest border pixels are green.

    With bicubic interpolation as the network, the result over any background is the bicubic
    enlargement of the input over that background.
    """

    def decode(run: Any, latent: Array, lr: Array, maps: Any) -> Array:
        return np.float32(bicubic(lr[0].transpose(1, 2, 0)).transpose(2, 0, 1)[None])

    monkeypatch.setattr(PictureRun, "decode", decode)
    y, x = np.mgrid[:32, :32]
    opacity = ((10 - np.hypot(x - 15.5, y - 15.5)) / 2).clip(0, 1)
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 220, np.round(opacity * 255)
    rgba[opacity < 0.02] = (0, 255, 0, 1)
    result = pixels(upscaler(rgba, color_fix=False, edges=None).image)
    expected = bicubic(over(rgba.astype(float), background)).clip(0, 255)
    difference = np.abs(over(result, background) - expected)
    # Bicubic overshoots zero and full opacity, and is clipped there.
    overshoot = bicubic(rgba[..., 3:].astype(float))[..., 0]
    assert difference[(overshoot > 0) & (overshoot < 255)].max() < 2.5
    assert difference.max() < 25


def test_uniform_opacity_leaves_colours_unchanged(upscaler: Upscaler) -> None:
    colours = smooth(30, 20)
    for opacity in (255, 128, 3):
        rgba = np.dstack([colours, np.full((30, 20), opacity, np.uint8)])
        result = pixels(upscaler(rgba).image)
        np.testing.assert_allclose(result[..., 3], opacity)
        np.testing.assert_allclose(result[..., :3], repeated(colours.astype(float)), atol=1)


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
    """Equal to resizing the result at the model's own factor in one step, opacity included."""
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
    ("options", "message"),
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
def test_invalid_sizes_are_refused(
    upscaler: Upscaler, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
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
def test_fidelity_keeps_the_low_frequencies_of_the_input(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """A network that shifts colours and invents detail keeps the detail and loses the shift."""
    invented = np.random.default_rng(1).uniform(-0.3, 0.3, (1, 3, 32 * SCALE, 32 * SCALE))

    def decode(run: Any, latent: Array, lr: Array, maps: Any) -> Array:
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
        detail = shown - repeated(block_means(shown, SCALE))
        assert detail.std() > 15
        plain = pixels(upscaler(picture).image)
        assert -10 * np.log10(np.mean(((block_means(plain, 4) - picture) / 255) ** 2)) < 45
    assert delta_e00(block_means(shown, SCALE) / 127.5 - 1, picture / 127.5 - 1) < 0.5


def test_missed_fidelity_is_a_warning(upscaler: Upscaler) -> None:
    assert upscaler(smooth(9, 9)).low_pass_psnr is None
    from mmsr_edge import upscaler as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FIDELITY_PSNR", 500)
        warning = upscaler(smooth(9, 9), fidelity=True).warnings[-1]
        assert "fidelity: the result's block means" in warning
