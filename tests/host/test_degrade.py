"""The degradation, against Pillow's JPEG and closed forms."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import j1
from sklearn.datasets import load_sample_image
from torch import Tensor

from mmsr_edge.training.data.degradation import (
    NOISY,
    DegradeConfig,
    bicubic_down,
    degrade,
    filter_each,
    gaussian_kernels,
    measure_degradation,
    pulse,
    sinc_kernels,
)
from mmsr_edge.training.data.jpeg import jpeg, table_scale


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """[1, 3, 192, 256] in [0, 1]."""
    pixels = load_sample_image("china.jpg")[100:292, 200:456]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


@pytest.mark.parametrize("quality", [15, 30, 50, 75, 95])
def test_jpeg_agrees_with_pillow(photo: Tensor, quality: int) -> None:
    pixels = (photo[0].permute(1, 2, 0) * 255).byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)[None] / 255
    ours = jpeg(photo, torch.tensor([float(quality)]))
    # Much nearer to libjpeg's picture than either is to the original.
    assert psnr(ours, expected) > 38
    assert psnr(ours, expected) > psnr(ours, photo) + 6
    assert psnr(ours, photo) == pytest.approx(psnr(expected, photo), abs=0.3)


def test_jpeg_takes_a_quality_per_picture_and_any_size(photo: Tensor) -> None:
    odd = photo[:, :, :37, :51]
    both = jpeg(torch.cat([odd, odd]), torch.tensor([10.0, 90.0]))
    assert both.shape == (2, 3, 37, 51)
    assert psnr(both[1:], odd) > psnr(both[:1], odd) + 5
    torch.testing.assert_close(both[1:], jpeg(odd, torch.tensor([90.0])))


def test_table_scale_agrees_with_libjpeg() -> None:
    expected = [5000 / 25 / 100, 1.0, (200 - 2 * 90) / 100]
    assert table_scale(torch.tensor([25.0, 50.0, 90.0])).tolist() == pytest.approx(expected)


def test_gaussian_kernels_have_the_spread_they_are_asked_for() -> None:
    angle = torch.tensor([0.0, math.pi / 2])
    k = gaussian_kernels(torch.tensor([1.5, 1.5]), torch.tensor([2.5, 2.5]), angle, size=31)
    assert k.sum((1, 2)).tolist() == pytest.approx([1, 1])
    r = torch.arange(31) - 15.0
    spread_x = [float((k[i].sum(0) * r**2).sum().sqrt()) for i in (0, 1)]
    assert spread_x == pytest.approx([1.5, 2.5], rel=0.02)  # turned by 90°, x and y change places


def test_sinc_kernels_follow_the_bessel_formula() -> None:
    k = sinc_kernels(torch.tensor([2.0]), size=7)[0].numpy()
    r = np.hypot(*np.meshgrid(np.arange(7) - 3, np.arange(7) - 3))
    with np.errstate(invalid="ignore"):
        expected = np.where(r == 0, 4 / (4 * np.pi), 2.0 * j1(2.0 * r) / (2 * np.pi * r))
    np.testing.assert_allclose(k, expected / expected.sum(), rtol=1e-4, atol=1e-6)


def test_each_picture_has_its_own_kernel(photo: Tensor) -> None:
    delta = torch.zeros(2, 21, 21)
    delta[0, 10, 10] = 1
    delta[1, 10, 11] = 1
    out = filter_each(torch.cat([photo, photo]), delta)
    torch.testing.assert_close(out[:1], photo)
    torch.testing.assert_close(out[1:, :, :, :-1], photo[:, :, :, 1:])


def test_clean_pictures_agree_with_pillows_bicubic(photo: Tensor) -> None:
    out = degrade(photo * 2 - 1, DegradeConfig(clean=1.0), torch.Generator().manual_seed(0))
    image = Image.fromarray((photo[0].permute(1, 2, 0) * 255).round().byte().numpy())
    expected = np.asarray(image.resize((64, 48), Image.Resampling.BICUBIC))
    difference = np.abs((out[0].permute(1, 2, 0).numpy() + 1) * 127.5 - expected)
    assert difference.max() <= 1.01
    torch.testing.assert_close(bicubic_down(photo, 4), (out + 1) / 2, atol=0.5 / 255 + 1e-6, rtol=0)


def test_degraded_pictures_differ_by_draw_and_repeat_by_seed(photo: Tensor) -> None:
    def draw(seed: int) -> Tensor:
        return degrade(photo * 2 - 1, DegradeConfig(clean=0.0), torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    clean = bicubic_down(photo, 4)
    quality = [psnr((draw(s) + 1) / 2, clean) for s in range(8)]
    assert all(12 < q < 40 for q in quality) and max(quality) - min(quality) > 1
    levels = (draw(3) + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)


def detail(pictures: Tensor) -> float:
    """Mean absolute second difference of luma along both axes: noise, where a picture is flat."""
    y = pictures.mean(1)
    return float(y.diff(n=2, dim=1).diff(n=2, dim=2).abs().mean())


def test_noise_is_strongest_without_the_sinc_filter() -> None:
    """Detail of a degraded flat picture is noise and blocks, and grows in the order listed."""
    flat = torch.zeros(24, 3, 128, 128)
    made = [
        detail(degrade(flat, config, torch.Generator().manual_seed(0)))
        for config in (
            DegradeConfig(clean=0, sinc=1),
            DegradeConfig(clean=0),
            DegradeConfig(clean=0, sinc=0),
            NOISY,
        )
    ]
    assert made == sorted(made)
    assert made[2] > 1.1 * made[0] and made[3] > 1.5 * made[1]
    kernels = pulse(torch.zeros(21, 21)).expand(24, 21, 21)
    torch.testing.assert_close(filter_each(flat + 0.3, kernels), flat + 0.3)


def levels(lr: Tensor, clean: Tensor) -> list[float]:
    """Levels of noise, blur and JPEG; pictures in [0, 1]."""
    return [float(level) for level in measure_degradation(lr * 2 - 1, clean * 2 - 1)[0]]


def test_levels_of_a_clean_picture_are_zero(photo: Tensor) -> None:
    assert levels(photo, photo) == pytest.approx([0, 0, 0], abs=0.01)


@pytest.mark.parametrize("sigma", [2.0, 10.0, 30.0])
def test_level_of_noise_is_the_root_of_its_deviation(photo: Tensor, sigma: float) -> None:
    g = torch.Generator().manual_seed(0)
    grey = torch.randn(photo[:, :1].shape, generator=g) * sigma / 255
    noise, blur, jpeg_level = levels(photo + grey, photo)
    assert noise == pytest.approx(math.sqrt(sigma / 40), rel=0.02)
    assert blur == pytest.approx(0, abs=0.03)
    assert jpeg_level == pytest.approx(0, abs=0.2)  # √: a step of .16 grey levels by chance


def test_level_of_blur_is_the_detail_that_is_gone(photo: Tensor) -> None:
    sigma = torch.tensor([0.6, 1.2])
    kernels = gaussian_kernels(sigma, sigma, torch.zeros(2))
    blurred = filter_each(photo.expand(2, -1, -1, -1), kernels)
    soft, softer = (levels(blurred[i : i + 1], photo) for i in (0, 1))
    # The regression of the Laplacian's spectrum, weighted by the picture's own, computed apart.
    luma = (photo[0] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    fy, fx = (torch.fft.fftfreq(n) * 2 * math.pi for n in luma.shape)
    laplacian = 2 * fy.cos()[:, None] + 2 * fx.cos() - 4
    power = (laplacian * torch.fft.fft2(luma).abs()).square()
    for measured, spread in ((soft, 0.6), (softer, 1.2)):
        passed = torch.exp(-0.5 * spread**2 * (fy.square()[:, None] + fx.square()))
        expected = 1 - float((power * passed).sum() / power.sum())
        assert measured[1] == pytest.approx(expected, abs=0.05)
    noisy = (
        blurred[1:] + torch.randn(photo.shape, generator=torch.Generator().manual_seed(0)) * 0.04
    )
    assert levels(noisy, photo)[1] == pytest.approx(softer[1], abs=0.05)  # noise hides no blur


def test_level_of_jpeg_is_the_root_of_the_step_between_blocks(photo: Tensor) -> None:
    row = torch.arange(192)[:, None] // 8
    column = torch.arange(256) // 8
    for step in (0.25, 1.0):  # grey levels between neighbouring blocks
        board = ((row + column) % 2) * step / 255
        assert levels(photo * 0.5 + board, photo * 0.5)[2] == pytest.approx(
            math.sqrt(step / 4), rel=0.03
        )
    by_quality = [
        levels(jpeg(photo, torch.tensor([quality])), photo)[2]
        for quality in (95.0, 75.0, 50.0, 20.0)
    ]
    assert by_quality == sorted(by_quality) and by_quality[-1] > 2 * by_quality[0]
