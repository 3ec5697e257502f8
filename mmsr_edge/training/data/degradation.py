"""Second-order degradation after Real-ESRGAN (Wang et al. 2021), as batched torch on any device.

HR → [blur → resize → noise → JPEG] twice; the second JPEG comes before or after a resize to LR with
a sinc filter. Kernel, noise and JPEG quality are drawn per picture, the resize factor per batch. A
share of the pictures is clean: only downscaled, bicubic, as pictures of good cameras are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsr_edge.training.data.jpeg import jpeg


@dataclass(frozen=True)
class StageConfig:
    """Ranges of one round of degradation; the defaults are Real-ESRGAN's first round."""

    blur_probability: float = 1.0
    """Chance of a blur, per picture."""
    blur_sigma: tuple[float, float] = (0.2, 3.0)
    """Range of the Gaussian kernel's standard deviations, in pixels of the round's input."""
    resize: tuple[float, float] = (0.15, 1.5)
    """Range of the resize factor, relative to the HR size (first round) or the LR size (second)."""
    resize_up_down_keep: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Chances of enlarging, shrinking and keeping the size."""
    gaussian: tuple[float, float] = (1.0, 30.0)
    """Range of the standard deviation of Gaussian noise, in 1/255."""
    poisson: tuple[float, float] = (0.05, 3.0)
    """Range of the scale s of Poisson noise; its variance is s²·value/255 for values in [0, 1]."""
    jpeg: tuple[float, float] = (30.0, 95.0)
    """Range of the JPEG quality, 1 to 100."""


FIRST = StageConfig()
SECOND = StageConfig(
    blur_probability=0.8,
    blur_sigma=(0.2, 1.5),
    resize=(0.3, 1.2),
    resize_up_down_keep=(0.3, 0.4, 0.3),
    gaussian=(1.0, 25.0),
    poisson=(0.05, 2.5),
)


@dataclass(frozen=True)
class DegradeConfig:
    """Settings of the whole degradation."""

    scale: int = 4
    """HR pixels per LR pixel, along a side."""
    clean: float = 0.25
    """Share of pictures that are clean: only downscaled, bicubic."""
    grey_noise: float = 0.4
    """Chance that the noise is the same in R, G and B, per picture."""
    sinc: float = 0.8
    """Chance of the sinc filter at the end, per picture."""
    first: StageConfig = FIRST
    """Ranges of the first round."""
    second: StageConfig = SECOND
    """Ranges of the second round."""


NOISY = DegradeConfig(
    clean=0.0,
    sinc=0.3,
    second=replace(
        SECOND, resize=(0.6, 1.2), gaussian=(8.0, 35.0), poisson=(0.8, 3.5), jpeg=(50.0, 95.0)
    ),
)
"""Degradation of strongly noisy pictures. With Real-ESRGAN's own ranges, one picture in fifty is as
noisy at the end. Noise beside fine edges is easily mistaken for detail."""


def _uniform(n: int, low: float, high: float, g: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(n, generator=g, device=device) * (high - low) + low


def gaussian_kernels(sigma_x: Tensor, sigma_y: Tensor, angle: Tensor, size: int = 21) -> Tensor:
    """Anisotropic Gaussian kernels [B, size, size] that sum to 1.

    `sigma_x` and `sigma_y` [B] are in pixels, `angle` [B] in radians.
    """
    r = torch.arange(size, device=angle.device, dtype=torch.float32) - size // 2
    y, x = torch.meshgrid(r, r, indexing="ij")
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    u, v = cos * x + sin * y, cos * y - sin * x
    k = torch.exp(-0.5 * ((u / sigma_x[:, None, None]) ** 2 + (v / sigma_y[:, None, None]) ** 2))
    return k / k.sum((1, 2), keepdim=True)


def sinc_kernels(cutoff: Tensor, size: int = 21) -> Tensor:
    """Circular low-pass kernels [B, size, size] that sum to 1.

    `cutoff` [B] is in radians per pixel, at most π.

    The 2-D sinc ω/(2πr)·J₁(ωr), which rings and overshoots as simple sharpening does.
    """
    r = torch.arange(size, device=cutoff.device, dtype=torch.float32) - size // 2
    radius = torch.sqrt(r[:, None] ** 2 + r[None, :] ** 2)
    omega = cutoff[:, None, None]
    safe = radius.clamp_min(1e-6)
    k = omega * torch.special.bessel_j1(omega * safe) / (2 * math.pi * safe)
    k = torch.where(radius < 1e-6, omega**2 / (4 * math.pi), k)
    return k / k.sum((1, 2), keepdim=True)


def pulse(kernel: Tensor) -> Tensor:
    """The identity kernel, of the shape [size, size] of `kernel`."""
    out = torch.zeros_like(kernel)
    out[len(out) // 2, len(out) // 2] = 1
    return out


def filter_each(image: Tensor, kernels: Tensor) -> Tensor:
    """Correlate picture b of [B, C, H, W] with kernel b of [B, k, k], edges reflected.

    Computed by Fourier transform, which takes a fraction of a convolution's time at k = 21.
    """
    h, w = image.shape[-2:]
    pad = kernels.shape[-1] // 2
    mode = "reflect" if min(h, w) > pad else "replicate"
    x = F.pad(image, (pad,) * 4, mode=mode)
    size = x.shape[-2:]
    spectrum = torch.fft.rfft2(x) * torch.fft.rfft2(kernels, s=size).conj()[:, None]
    return torch.fft.irfft2(spectrum, s=size)[..., :h, :w]


def _resize(image: Tensor, size: tuple[int, int], g: torch.Generator) -> Tensor:
    mode = ("area", "bilinear", "bicubic")[int(torch.randint(3, (), generator=g, device=g.device))]
    if mode == "area":
        return F.interpolate(image, size, mode="area")
    return F.interpolate(image, size, mode=mode, antialias=bool(size[0] < image.shape[-2]))


def bicubic_down(image: Tensor, scale: int) -> Tensor:
    """Clean LR picture [B, C, H/scale, W/scale] in [0, 1]: antialiased bicubic, as in Pillow."""
    size = (image.shape[-2] // scale, image.shape[-1] // scale)
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)


def _noise(image: Tensor, stage: StageConfig, grey: float, g: torch.Generator) -> Tensor:
    b, c, h, w = image.shape
    device = image.device
    draw = torch.randn(image.shape, generator=g, device=device)
    same = torch.randn((b, 1, h, w), generator=g, device=device).expand(b, c, h, w)
    is_grey = (torch.rand(b, generator=g, device=device) < grey)[:, None, None, None]
    draw = torch.where(is_grey, same, draw)
    # Poisson noise of scale s has variance s²·image/255 in the picture's units. At these counts it
    # is nearly a Gaussian of that variance, which torch draws on every device.
    gaussian = _uniform(b, *stage.gaussian, g, device)[:, None, None, None] / 255
    scale = _uniform(b, *stage.poisson, g, device)[:, None, None, None]
    shot = scale * (image.clamp(0, 1) / 255).sqrt()
    is_shot = (torch.rand(b, generator=g, device=device) < 0.5)[:, None, None, None]
    return (image + draw * torch.where(is_shot, shot, gaussian)).clamp(0, 1)


def _stage(
    image: Tensor, hr: tuple[int, int], stage: StageConfig, grey: float, g: torch.Generator
) -> Tensor:
    """One round without its JPEG: blur, resize to a drawn factor of `hr` (height, width), noise."""
    b, device = image.shape[0], image.device
    low, high = stage.blur_sigma
    sx = _uniform(b, low, high, g, device)
    isotropic = torch.rand(b, generator=g, device=device) < 0.5
    sy = torch.where(isotropic, sx, _uniform(b, low, high, g, device))
    kernels = gaussian_kernels(sx, sy, _uniform(b, 0, math.pi, g, device))
    blur = torch.rand(b, generator=g, device=device) < stage.blur_probability
    image = torch.where(blur[:, None, None, None], filter_each(image, kernels), image)

    kind, u = torch.rand(2, generator=g, device=device).tolist()
    up, down, _ = stage.resize_up_down_keep
    factor = 1.0
    if kind < up:
        factor = 1 + u * (stage.resize[1] - 1)
    elif kind < up + down:
        factor = stage.resize[0] + u * (1 - stage.resize[0])
    image = _resize(image, (max(8, round(hr[0] * factor)), max(8, round(hr[1] * factor))), g)
    return _noise(image, stage, grey, g)


def draw_config(base: DegradeConfig, noisy: float, g: torch.Generator) -> DegradeConfig:
    """`NOISY` with the chance `noisy`, else `base`."""
    strong = float(torch.rand((), generator=g, device=g.device)) < noisy
    return NOISY if strong else base


def degrade(hr: Tensor, config: DegradeConfig, g: torch.Generator) -> Tensor:
    """Draw an LR picture for each HR picture.

    Args:
        hr: [B, 3, H, W], RGB in [-1, 1]; H and W are multiples of `config.scale`.
        config: ranges of the degradation.
        g: generator on `hr`'s device; the same state gives the same pictures.

    Returns:
        [B, 3, H/scale, W/scale], RGB in [-1, 1], quantized to 8 bits.
    """
    x = (hr.float() + 1) / 2
    b, _, h, w = x.shape
    size = (h // config.scale, w // config.scale)
    device = x.device
    clean = bicubic_down(x, config.scale)

    y = _stage(x, (h, w), config.first, config.grey_noise, g)
    y = jpeg(y, _uniform(b, *config.first.jpeg, g, device))
    # The second JPEG is the one below; a third would remove most of the noise.
    y = _stage(y, size, config.second, config.grey_noise, g)
    sinc = sinc_kernels(_uniform(b, math.pi / 3, math.pi, g, device))
    without = torch.rand(b, generator=g, device=device) >= config.sinc
    sinc = torch.where(without[:, None, None], pulse(sinc[0]), sinc)
    quality = _uniform(b, *config.second.jpeg, g, device)
    if float(torch.rand((), generator=g, device=device)) < 0.5:
        y = jpeg(filter_each(_resize(y, size, g), sinc), quality)
    else:
        y = filter_each(_resize(jpeg(y, quality), size, g), sinc)

    keep = (torch.rand(b, generator=g, device=device) < config.clean)[:, None, None, None]
    lr = torch.where(keep, clean, y.clamp(0, 1))
    return (lr * 255).round() / 127.5 - 1


NOISE_TOP = 40.0
"""Standard deviation of noise, in 1/255, at which the level of noise is 1."""


_LAPLACIAN = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])


def measure_degradation(lr: Tensor, clean: Tensor) -> Tensor:
    """Levels of noise, blur and JPEG of LR pictures whose clean version is known, [B, 3] in [0, 1].

    With Δ the discrete Laplacian, Δy = g·Δx + n by least squares over the picture, x the clean
    picture and y the LR picture:

        blur  = 1 − g               share of the fine detail that is gone
        noise = √(σ(n) / σ_top)     σ of n as white noise; the root makes small levels tell apart
        jpeg  = √(b / b_top)        b: how much larger steps of y − x are at borders of 8 × 8 blocks

    Args:
        lr: [B, 3, h, w] in [-1, 1].
        clean: the HR pictures only downscaled, [B, 3, h, w] in [-1, 1].
    """
    luma = torch.tensor([0.299, 0.587, 0.114], device=lr.device)[:, None, None]
    y, x = ((p * luma).sum(1, keepdim=True) * 127.5 for p in (lr, clean))
    kernel = _LAPLACIAN.to(lr.device)
    dy, dx = (F.conv2d(p, kernel) for p in (y, x))
    gain = (dy * dx).mean((1, 2, 3)) / dx.square().mean((1, 2, 3)).clamp_min(1e-3)
    rest = dy - gain[:, None, None, None] * dx
    sigma = rest.std((1, 2, 3)) / 20**0.5  # a Laplacian of white noise has 20 times its variance
    blocks = _blockiness(y - x)
    levels = [(sigma / NOISE_TOP).sqrt(), 1 - gain, (blocks / 4).sqrt()]
    return torch.stack(levels, dim=1).clamp(0, 1)


def split_error(lr: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """What was done to LR pictures: the part that is a blur, and the rest (noise and JPEG).

    The blur is the least-squares fit of lr − clean by Δ(clean) and ΔΔ(clean), by picture.

    Args:
        lr, clean: as for `measure_degradation`.

    Returns:
        Two pictures, each [B, 3, h, w], whose sum is lr − clean.
    """
    basis, error = [laplacian(clean)], lr - clean
    basis.append(laplacian(basis[0]))
    columns = torch.stack([b.flatten(1) for b in basis], dim=2)
    gram = columns.transpose(1, 2) @ columns
    gram = gram + 1e-3 * torch.eye(2, device=lr.device)
    weights = torch.linalg.solve(gram, columns.transpose(1, 2) @ error.flatten(1)[..., None])
    blur = (columns @ weights)[..., 0].reshape(error.shape)
    return blur, error - blur


def laplacian(picture: Tensor) -> Tensor:
    """Δ of each channel of `picture` [B, C, h, w]; beyond the borders it is mirrored."""
    planes = F.pad(picture.flatten(0, 1)[:, None], (1,) * 4, mode="reflect")
    return F.conv2d(planes, _LAPLACIAN.to(picture.device)).reshape(picture.shape)


def _blockiness(error: Tensor) -> Tensor:
    """Mean step of `error` [B, 1, h, w] at borders of 8 × 8 blocks, less that elsewhere, [B]."""
    total = torch.zeros(len(error), device=error.device)
    for step in (error.diff(dim=-1).abs().mean((1, 2)), error.diff(dim=-2).abs().mean((1, 3))):
        at = torch.arange(step.shape[-1], device=error.device) % 8 == 7
        total = total + (step[:, at].mean(1) - step[:, ~at].mean(1)).clamp_min(0) / 2
    return total
