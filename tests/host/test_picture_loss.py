"""The picture loss and its discriminator: values and gradients of their terms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmsr_edge.errors import OptionError
from mmsr_edge.training.losses.discriminator import WIDTHS, Discriminator
from mmsr_edge.training.losses.perceptual import statistics, unit
from mmsr_edge.training.losses.picture import PictureLoss, PictureLossConfig, contrast, periodic


@dataclass(frozen=True)
class Weights(PictureLossConfig):
    l1_weight: float = 2.0
    grid_weight: float = 4.0
    alex_weight: float = 0.3
    vgg_weight: float = 0.5
    vgg_taps: int = 4
    vgg_crop: int = 32
    statistics_weight: float = 0.7


def features(seed: int, shift: float = 0.0) -> list[Tensor]:
    """Normalized feature maps of VGG's widths; `shift` is added before normalization."""
    g = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, c, 16 >> i, 16 >> i, generator=g) + shift for i, c in enumerate(WIDTHS)]
    return [F.normalize(m, dim=1).requires_grad_() for m in maps]


def test_generator_and_discriminator_have_separate_gradients() -> None:
    discriminator, fake, real = Discriminator(), features(0), features(1)
    discriminator.generator_loss(fake).backward()
    assert all(f.grad is not None and f.grad.any() for f in fake)
    assert all(p.grad is None for p in discriminator.parameters())
    for f in fake:
        f.grad = None
    discriminator.discriminator_loss(fake, real).backward()
    assert all(f.grad is None for f in (*fake, *real))
    assert all(p.grad is not None for p in discriminator.parameters())


def test_the_losses_are_the_hinge_loss() -> None:
    discriminator = Discriminator().eval()  # no power iteration of the spectral norm
    fake, real = features(0), features(1)
    one, other = discriminator(fake), discriminator(real)
    assert len(one) == len(WIDTHS)
    expected = [
        (1 + f).clamp_min(0).mean() + (1 - r).clamp_min(0).mean()
        for f, r in zip(one, other, strict=True)
    ]
    torch.testing.assert_close(discriminator.discriminator_loss(fake, real), sum(expected) / 4)
    torch.testing.assert_close(discriminator.generator_loss(fake), -sum(f.mean() for f in one) / 4)


def test_the_discriminator_learns_and_its_gradient_points_to_real_features() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator()
    optimizer = torch.optim.AdamW(discriminator.parameters(), 2e-3)
    for step in range(30):
        loss = discriminator.discriminator_loss(features(step), features(1000 + step, shift=1.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5
    fake = features(5000)
    before = discriminator.generator_loss(fake)
    before.backward()
    moved = [f.detach() - 0.5 * f.grad / f.grad.abs().max() for f in fake]
    # Real features are shifted to the positive side; the gradient points there.
    assert discriminator.generator_loss(moved).item() < before.item()
    assert sum((m - f).mean().item() for m, f in zip(moved, fake, strict=True)) > 0


def test_the_picture_loss_is_the_sum_of_its_parts(lpips_weights: Path) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator().eval()
    loss = PictureLoss(lpips_weights, Weights(vgg_crop=64), discriminator, 0.1)
    image = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    target = torch.rand(2, 3, 64, 64) * 2 - 1

    def terms() -> tuple[Tensor, ...]:
        t = loss(image, target, torch.Generator().manual_seed(3))
        torch.testing.assert_close(
            t.total(),
            sum(x.mean() for x in (t.l1, t.grid, t.perceptual, t.statistics))
            + (t.adversarial + t.discriminator),
        )
        return t.l1, t.grid, t.perceptual, t.statistics, t.adversarial, t.discriminator

    l1, grid, perceptual, moments, adversarial, discriminated = terms()
    torch.testing.assert_close(l1, 2 * (image - target).abs().mean((1, 2, 3)))
    torch.testing.assert_close(grid, 4 * periodic(image - target))
    assert perceptual.shape == (2,) and perceptual.min() > 0
    maps, aims = (loss.vgg.features(x) for x in (image, target))
    torch.testing.assert_close(moments, 0.7 * statistics([image, *maps], [target, *aims]))
    fake, real = unit(maps), unit(aims)
    torch.testing.assert_close(adversarial, 0.1 * discriminator.generator_loss(fake))
    torch.testing.assert_close(discriminated, discriminator.discriminator_loss(fake, real))
    discriminated.backward()
    assert image.grad is None


def wave(period: float, amplitude: float) -> Tensor:
    """[1, 3, 64, 128], periodic along the rows."""
    x = torch.arange(128) * (2 * torch.pi / period)
    return (amplitude * x.sin()).expand(1, 3, 64, 128)


def test_contrast_compares_the_strength_of_a_band_and_not_its_phase() -> None:
    strong, weak = wave(8, 0.4), wave(8, 0.3)
    assert contrast(strong, strong) == 0
    assert contrast(-strong, strong) < 1e-6  # shifted by half a period
    assert contrast(strong + 0.2, strong) < 1e-6  # brightness
    # Windows hold whole periods, so that the loss is proportional to the amplitude.
    nothing = contrast(torch.zeros_like(strong), strong)
    torch.testing.assert_close(contrast(weak, strong), nothing / 4, rtol=1e-3, atol=0)
    assert 0.1 < nothing / (0.4 / 2**0.5) < 2
    finest = contrast(wave(2, 0.4), strong * 0)
    assert finest < 0.01 * nothing


def test_contrast_is_local() -> None:
    strong = wave(8, 0.4)
    left = strong * (torch.arange(128) < 64)
    assert contrast(left.flip(-1), left) > 1.8 * contrast(0 * left, left) > 0


def test_the_gradient_of_contrast_raises_a_weak_amplitude() -> None:
    target, gain = wave(8, 0.4), torch.tensor(0.6, requires_grad=True)
    contrast(gain * target, target).sum().backward()
    assert gain.grad is not None and gain.grad < 0
    flat = torch.zeros_like(target, requires_grad=True)
    contrast(flat, target).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_statistics_are_means_variances_and_covariances() -> None:
    g = torch.Generator().manual_seed(2)
    a = [torch.rand(2, c, 9, 7, generator=g) for c in (3, 5)]
    b = [torch.rand(2, c, 9, 7, generator=g) + x for c, x in zip((3, 5), a, strict=True)]
    parts = []
    for one, two in zip(a, b, strict=True):
        for x, y in zip(one.flatten(0, 1), two.flatten(0, 1), strict=True):
            mx, my = x.mean().item(), y.mean().item()
            (vx, vxy), (_, vy) = np.cov(x.flatten(), y.flatten(), bias=True)
            parts.append(1 - mx * my / (mx**2 + my**2) - vxy / (vx + vy))
    # The first three channels of the one map and five of the other are the first picture's.
    first = [*parts[:3], *parts[6:11]], [*parts[3:6], *parts[11:]]
    expected = torch.tensor([np.mean(p) for p in first], dtype=torch.float32)
    torch.testing.assert_close(statistics(a, b, floor=1e-12), expected, rtol=1e-4, atol=0)
    assert statistics(a, a).abs().max() < 1e-6


def test_statistics_reward_texture_that_l1_penalizes() -> None:
    g = torch.Generator().manual_seed(4)
    texture, other = (torch.randn(1, 3, 64, 64, generator=g).abs() for _ in range(2))
    flat = torch.full_like(texture, texture.mean().item())
    assert (flat - texture).abs().mean() < (other - texture).abs().mean()
    maps = [F.relu(torch.randn(1, 8, 64, 64, generator=g)) * x.std() for x in (texture, other)]
    none = torch.zeros_like(maps[0])
    assert statistics([none], [maps[0]]) > 0.9
    assert statistics([maps[1]], [maps[0]]) < 0.6
    assert statistics([flat], [texture]) > 0.45


def test_a_discriminator_needs_the_first_four_maps_of_vgg(lpips_weights: Path) -> None:
    for weights in (Weights(vgg_taps=3), Weights(vgg_weight=0.0)):
        with pytest.raises(OptionError, match=r"adversarial_weight 0\.1 needs vgg_weight > 0"):
            PictureLoss(lpips_weights, weights, Discriminator(), 0.1)


def test_the_grid_loss_is_the_error_that_repeats_from_cell_to_cell() -> None:
    g = torch.Generator().manual_seed(0)
    cell = torch.randn(1, 3, 8, 8, generator=g)
    cell = cell - cell.mean((2, 3), keepdim=True)
    grid = cell.repeat(1, 1, 16, 16)
    torch.testing.assert_close(periodic(grid), cell.abs().mean((1, 2, 3)))
    assert periodic(torch.full((1, 3, 128, 128), 0.3)).item() < 1e-6  # a shift of colour
    noise = torch.randn(1, 3, 128, 128, generator=g) * cell.std()
    # Averaging sixteen cells leaves a quarter of the noise.
    assert periodic(noise).item() == pytest.approx(0.25 * periodic(grid).item(), rel=0.1)
    assert periodic(grid[..., :100, :70]).item() == pytest.approx(periodic(grid).item(), rel=1e-5)
