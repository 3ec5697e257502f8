"""Colour profiles: against LittleCMS at 8 bits, and round trips at 16."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from profile_factory import ADOBE, PROPHOTO, curve, linear_grey_profile, parametric, rgb_profile

from mmsr_edge.image.icc import parse_profile

TONES = {
    "straight": curve(),
    "gamma": curve(563),
    "table": curve(*(round(65535 * (i / 30) ** 1.9) for i in range(31))),
    "para 0": parametric(0, 1.8),
    "para 1": parametric(1, 2.2, 1.1, -0.1),
    "para 3": parametric(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
    "para 4": parametric(4, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045, 0, 0),
}
COLOURS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def signed(values: np.ndarray) -> np.ndarray:
    return (values / 127.5 - 1).astype(np.float32)


@pytest.mark.parametrize("tone", TONES)
@pytest.mark.parametrize("colorants", [ADOBE, PROPHOTO], ids=["adobe", "prophoto"])
def test_conversion_to_srgb_agrees_with_littlecms(tone: str, colorants: tuple) -> None:
    icc = rgb_profile(colorants, TONES[tone])
    expected = ImageCms.profileToProfile(
        Image.fromarray(COLOURS), io.BytesIO(icc), ImageCms.createProfile("sRGB")
    )
    profile = parse_profile(icc)
    assert profile is not None
    seen = profile.to_srgb(signed(COLOURS))
    # LittleCMS uses tables of 16 bits, which are coarse in dark tones.
    difference = np.abs(seen - signed(np.asarray(expected))) * 127.5
    assert np.quantile(difference, 0.99) < 1
    assert difference.max() < 3


@pytest.mark.parametrize("tone", TONES)
def test_round_trip(tone: str) -> None:
    """Colours within sRGB return to within two steps of 16 bits; those beyond are clipped."""
    profile = parse_profile(rgb_profile(ADOBE, TONES[tone]))
    assert profile is not None
    inside = np.random.default_rng(0).uniform(-0.9, 0.9, (150, 9, 3)).astype(np.float32)
    own = profile.from_srgb(inside)
    np.testing.assert_allclose(profile.to_srgb(own), inside, rtol=0, atol=2 / 65535)
    green = np.array([[[-1, 1, -1]]], np.float32)
    np.testing.assert_allclose(profile.to_srgb(green), [[[-1, 1, -1]]], atol=1e-3)
    assert profile.from_srgb(profile.to_srgb(green))[0, 0, 0] > -0.5  # clipped to a paler green


def test_grey() -> None:
    profile = parse_profile(linear_grey_profile())
    assert profile is not None
    grey = np.full((1, 1, 3), 128 / 127.5 - 1, np.float32)
    seen = profile.to_srgb(grey)
    np.testing.assert_allclose(seen, 188 / 127.5 - 1, atol=0.01)  # half the light
    np.testing.assert_allclose(profile.from_srgb(seen), grey, atol=1e-5)


def test_profiles_that_are_not_converted() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    good = rgb_profile()
    assert parse_profile(good) is not None
    table = rgb_profile(A2B0=b"mft2" + bytes(60))  # a lookup table, which takes precedence
    flat = rgb_profile(tuple([ADOBE[0]] * 3))  # singular: no inverse
    unknown = rgb_profile(tone=b"weird tag")
    for icc in (None, b"", srgb, good[:140], b"not a profile" * 30, table, flat, unknown):
        assert parse_profile(icc) is None
    assert parse_profile(linear_grey_profile(TONES["para 3"])) is None  # sRGB's own tone curve
