"""The colour fix and the colour difference, the latter against scikit-image."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mmsr_edge.image import color
from mmsr_edge.image.blur import gaussian_blur


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, [height, width, 3] in [-0.8, 0.8]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [
        np.sin(a * x * 6 + b * y * 6 + c) for a, b, c in rng.uniform(-1, 1, (3, 3)) * [2, 2, 3]
    ]
    return (0.8 * np.stack(waves, axis=-1)).astype(np.float32)


def down(picture: np.ndarray, scale: int = 4) -> np.ndarray:
    h, w = picture.shape[0] // scale, picture.shape[1] // scale
    return picture.reshape(h, scale, w, scale, 3).mean(axis=(1, 3))


def detail(height: int, width: int) -> np.ndarray:
    """A fine checkerboard, which a low-pass filter removes."""
    y, x = np.mgrid[:height, :width]
    return (0.1 * (-1.0) ** (x + y)).astype(np.float32)[..., None]


def test_a_colour_cast_is_removed_and_detail_kept() -> None:
    clean = scene(160, 128)
    fine = detail(160, 128)
    cast = np.array([0.2, -0.1, 0.05], np.float32) + 0.1 * scene(960, 960, seed=1)[:160, :128]
    fixed = color.match_low_frequencies(clean + fine + cast, down(clean))
    assert np.abs(fixed - (clean + fine))[16:-16, 16:-16].max() < 0.01
    before, after = (color.delta_e00(down(p), down(clean)) for p in (clean + cast, fixed))
    assert before > 5
    assert after < 0.5


def test_a_faithful_output_is_left_as_it_is() -> None:
    clean = scene(64, 96)
    output = clean + detail(64, 96)
    np.testing.assert_allclose(
        color.match_low_frequencies(output, down(clean)), output, rtol=0, atol=1e-6
    )


def test_a_flat_picture_stays_flat_to_the_border() -> None:
    output = np.full((20, 28, 3), 0.5, np.float32)
    reference = np.full((5, 7, 3), -0.25, np.float32)
    fixed = color.match_low_frequencies(output, reference)
    assert fixed.dtype == np.float32
    np.testing.assert_allclose(fixed, -0.25, rtol=0, atol=1e-6)


def test_fine_structure_of_the_reference_does_not_pass() -> None:
    """Noise of the input must not come back through the colour fix."""
    noise = np.random.default_rng(0).standard_normal((64, 64, 3)).astype(np.float32) * 0.2
    fixed = color.match_low_frequencies(np.zeros((256, 256, 3), np.float32), noise)
    # White noise through a Gaussian keeps 1 / (2 sigma sqrt(pi)) of its deviation: 0.087 here.
    assert fixed.std() < 0.12 * noise.std()


def test_work_in_bands_equals_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    output = np.random.default_rng(0).uniform(-1, 1, (120, 88, 3)).astype(np.float32)
    reference = np.random.default_rng(1).uniform(-1, 1, (30, 22, 3)).astype(np.float32)
    whole = color.match_low_frequencies(output, reference)
    distance = color.delta_e00(output, whole)
    monkeypatch.setattr(color, "_BAND_PIXELS", 88 * 7)
    banded = color.match_low_frequencies(output, reference)
    np.testing.assert_allclose(banded, whole, rtol=0, atol=1e-6)
    assert color.delta_e00(output, whole) == pytest.approx(distance, rel=1e-9)


def test_in_place_needs_no_second_picture() -> None:
    """Memory beyond the two pictures grows with the input's size, not the output's."""
    output = np.zeros((2048, 2048, 3), np.float32)
    reference = scene(512, 512)
    expected = color.match_low_frequencies(output, reference)
    tracemalloc.start()
    result = color.match_low_frequencies(output, reference, out=output)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result is output
    np.testing.assert_array_equal(result, expected)
    assert peak < output.nbytes / 2


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(9, 8, 3\).*\(2, 2, 3\)"):
        color.match_low_frequencies(np.zeros((9, 8, 3)), np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="cannot be compared"):
        color.delta_e00(np.zeros((2, 2, 3)), np.zeros((2, 3, 3)))


def test_blur_agrees_with_scipy() -> None:
    filters = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    for shape in [(40, 33), (3, 50), (1, 1)]:
        for sigma in (0.6, 1.4, 5.0):
            picture = rng.uniform(-1, 1, (*shape, 2))
            expected = filters.gaussian_filter(picture, (sigma, sigma, 0), mode="reflect")
            np.testing.assert_allclose(gaussian_blur(picture, sigma), expected, rtol=0, atol=1e-6)
            np.testing.assert_allclose(
                gaussian_blur(picture[..., 0], sigma), expected[..., 0], rtol=0, atol=1e-6
            )
    np.testing.assert_array_equal(gaussian_blur(picture, 0), picture.astype(np.float32))


def test_colour_difference_agrees_with_scikit_image() -> None:
    reference = pytest.importorskip("skimage.color")
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 60, 70, 3))
    a[:4] = a[:4, :, :1]  # greys, whose hue is undefined
    b[2:6] = b[2:6, :, :1]
    a[10], b[11] = -1, 1
    lab_a, lab_b = reference.rgb2lab((a + 1) / 2), reference.rgb2lab((b + 1) / 2)
    np.testing.assert_allclose(color.srgb_to_lab(a), lab_a, rtol=0, atol=1e-6)
    expected = reference.deltaE_ciede2000(lab_a, lab_b)
    np.testing.assert_allclose(color.ciede2000(lab_a, lab_b), expected, rtol=0, atol=1e-6)
    assert color.delta_e00(a, b) == pytest.approx(expected.mean(), rel=1e-6)
    assert color.delta_e00(a, a) == 0


# Pairs from Table 1 of Sharma, Wu & Dalal (2005): blues, hues astride 0 and 180 degrees, greys.
SHARMA = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0011), 7.2195),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("lab_1", "lab_2", "expected"), SHARMA)
def test_colour_difference_of_the_published_pairs(
    lab_1: tuple[float, ...], lab_2: tuple[float, ...], expected: float
) -> None:
    assert color.ciede2000(np.array(lab_1), np.array(lab_2)) == pytest.approx(expected, abs=5e-5)
    assert color.ciede2000(np.array(lab_2), np.array(lab_1)) == pytest.approx(expected, abs=5e-5)
