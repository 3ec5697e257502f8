"""Loss of a picture: L1, grid, LPIPS on AlexNet and VGG16, statistics, adversarial and contrast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError
from mmsr_edge.training.losses.discriminator import WIDTHS, Discriminator
from mmsr_edge.training.losses.perceptual import LPIPS, shifted, statistics, unit


@dataclass(frozen=True)
class PictureLossConfig:
    """Weights of the terms of `PictureLoss`. A feature network with weight 0 is not loaded."""

    l1_weight: float = 2.0
    """Weight of the mean absolute difference."""
    grid_weight: float = 2.0
    """Weight of the error that repeats from latent cell to latent cell; see `periodic`."""
    alex_weight: float = 0.5
    """Weight of LPIPS on AlexNet, at a random phase; see `shifted`."""
    vgg_weight: float = 0.5
    """Weight of LPIPS on VGG16; the statistics and the adversarial loss need it above 0."""
    vgg_taps: int = 3
    """Number of VGG16 feature maps that are compared, 1 to 5; the adversarial loss needs 4."""
    vgg_crop: int = 96
    """Side in HR pixels of the piece of a picture that VGG16 is given; at most the picture's."""
    statistics_weight: float = 0.0
    """Weight of the distance between the statistics of VGG16's features; see `statistics`."""


@dataclass(frozen=True)
class AdversarialConfig:
    """Setting of the stages that can train with a discriminator."""

    adversarial_weight: float = 0.0
    """Weight of the adversarial loss; with 0 no discriminator is trained."""


@dataclass(frozen=True)
class AlexTargetConfig:
    """Setting of the stages that have teacher targets beside HR pictures."""

    alex_sees_hr: float = 0.0
    """Share of steps in which the terms that are not tied to the teacher target (LPIPS on AlexNet,
    grid, statistics) compare with the HR picture, for texture that the teacher leaves out. In the
    other steps they compare with the teacher target too."""


@dataclass(frozen=True)
class ContrastConfig:
    """Settings of the stages that train on `contrast`."""

    contrast_weight: float = 0.0
    """Weight of the contrast loss, always against the HR picture; see `contrast`."""
    contrast_first: int = 1
    """k of the finest band, 0 to 3; band 0 has periods of 2 to 4 pixels, band 1 of 4 to 8."""


@dataclass(frozen=True)
class TeacherLossConfig(PictureLossConfig, AdversarialConfig, AlexTargetConfig, ContrastConfig):
    """Settings of stages whose pictures are compared with a teacher's target and the HR picture."""


@dataclass(frozen=True)
class PictureTerms:
    """Terms of `PictureLoss`, weighted; `total` is the loss."""

    l1: Tensor
    """[B], mean absolute difference."""
    grid: Tensor
    """[B], grid loss; see `periodic`."""
    perceptual: Tensor
    """[B], sum of the LPIPS terms."""
    statistics: Tensor
    """[B], distance between the statistics of VGG16's features."""
    adversarial: Tensor
    """Scalar, adversarial loss of the pictures."""
    discriminator: Tensor
    """Scalar, loss of the discriminator, unweighted; it trains the discriminator alone."""

    def total(self) -> Tensor:
        """The loss: the sum of all terms, averaged over the batch."""
        pictures = self.l1 + self.grid + self.perceptual + self.statistics
        return pictures.mean() + self.adversarial + self.discriminator


def periodic(error: Tensor, period: int = 8, cells: int = 4) -> Tensor:
    """Grid loss: the mean absolute error that repeats from latent cell to latent cell, [B].

    A decoder that shuffles channels into pixels leaves a faint grid: the same error in every cell.
    It is visible, but too small to matter to L1 or to classifiers' features. The mean over `cells`²
    neighbouring cells, position by position, keeps the error that repeats and averages out the
    rest. The neighbourhood's mean error is subtracted, because it is not a grid.

    Args:
        error: [B, 3, H, W]; rows and columns beyond the last whole neighbourhood are left out.
        period: side of a cell in pixels, the decoder's factor.
        cells: side of a neighbourhood in cells.
    """
    side = period * cells
    b, c, h, w = error.shape
    rows, columns = h // side, w // side
    whole = error[..., : rows * side, : columns * side]
    split = whole.reshape(b, c, rows, cells, period, columns, cells, period)
    repeated = split.mean((3, 6))  # [B, 3, rows, period, columns, period]
    return (repeated - repeated.mean((3, 5), keepdim=True)).abs().mean((1, 2, 3, 4, 5))


def contrast(
    image: Tensor, target: Tensor, first: int = 1, last: int = 3, window: int = 32
) -> Tensor:
    """Contrast loss: difference of the rms of Laplacian bands, by band and window, [B].

    L1 is least if uncertain detail is drawn too faint, and LPIPS normalizes features before it
    compares them, so neither penalizes a picture that is slightly too flat. With the bands of a
    Laplacian pyramid (Burt & Adelson 1983), B_k = x_k − up(x_{k+1}), an octave each, the loss is

        Σ_k mean over windows of |rms(B_k(image)) − rms(B_k(target))|

    and does not depend on where in its window detail lies.

    Args:
        image: [B, 3, H, W].
        target: picture to compare with, [B, 3, H, W].
        first: k of the finest band; B_0 has periods of 2 to 4 pixels, B_1 of 4 to 8.
        last: k of the coarsest band.
        window: side of a window in pixels, a multiple of 2^(last + 1).
    """
    total = torch.zeros(len(image), device=image.device)
    fine = F.avg_pool2d(torch.cat([image.float(), target.float()]), 1 << first)
    for k in range(first, last + 1):
        coarse = F.avg_pool2d(fine, 2)
        band = fine - F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear")
        energy = F.avg_pool2d(band.square(), window >> k)
        rms = energy.clamp_min(1e-8).sqrt()
        a, b = rms.chunk(2)
        total = total + (a - b).abs().mean((1, 2, 3))
        fine = coarse
    return total


class PictureLoss(nn.Module):
    """Weighted L1, grid loss, LPIPS on AlexNet and VGG16, statistics and adversarial loss.

    AlexNet is cheap and is given nearly the whole picture; VGG16 costs fifteen times as much and is
    given a piece. The statistics and the discriminator use VGG16's features of that piece.

    Args:
        folder: folder of the LPIPS weights; see `perceptual`.
        config: weights of the terms, and size of VGG16's piece.
        discriminator: the discriminator; without one there is no adversarial loss.
        adversarial_weight: weight of the adversarial loss.
        target_share: share of L1, in [0, 1], that compares with `target` if there is a teacher
            target; the rest compares with the teacher target.

    Raises:
        OptionError: an adversarial loss without the four VGG16 feature maps that it needs, or the
            LPIPS weights cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        config: PictureLossConfig,
        discriminator: Discriminator | None = None,
        adversarial_weight: float = 0.0,
        target_share: float = 0.5,
    ) -> None:
        super().__init__()
        if adversarial_weight and (not config.vgg_weight or config.vgg_taps < len(WIDTHS)):
            raise OptionError(
                f"adversarial_weight {adversarial_weight:g} needs vgg_weight > 0 and vgg_taps >= "
                f"{len(WIDTHS)}, not {config.vgg_weight:g} and {config.vgg_taps}"
            )
        self.config, self.target_share = config, target_share
        self.adversarial_weight = adversarial_weight
        self.alex = LPIPS(folder, "alexnet") if config.alex_weight else None
        self.vgg = LPIPS(folder, "vgg16", config.vgg_taps) if config.vgg_weight else None
        self.to(memory_format=torch.channels_last)
        # In a list: the discriminator is the run's network, not a submodule of the loss.
        self._discriminator = [discriminator] if discriminator and adversarial_weight else []

    def forward(
        self,
        image: Tensor,
        target: Tensor,
        g: torch.Generator,
        teacher_target: Tensor | None = None,
    ) -> PictureTerms:
        """Compare `image` with `target`, both [B, 3, H, W] in [-1, 1].

        Args:
            image: picture to train.
            target: picture to compare with.
            g: generator of the pieces for LPIPS.
            teacher_target: teacher target, [B, 3, H, W]. LPIPS on VGG16 and the discriminator
                compare with it alone, and L1 with both. The other terms compare with `target`.
        """
        perceptual = character = torch.zeros(len(image), device=image.device)
        adversarial = discriminator = torch.zeros((), device=image.device)
        if self.alex is not None:
            side = min(image.shape[-2:]) - 8
            perceptual = perceptual + self.config.alex_weight * self.alex(
                *shifted([image, target], side, g)
            )
        if self.vgg is not None:
            sharp = target if teacher_target is None else teacher_target
            piece, target_piece, sharp_piece = shifted(
                [image, target, sharp], self.config.vgg_crop, g
            )
            maps = self.vgg.features(piece)
            with torch.no_grad():
                known = self.vgg.features(sharp_piece)
            fake, real = unit(maps), unit(known)
            perceptual = perceptual + self.config.vgg_weight * self.vgg.compare(fake, real)
            if self.config.statistics_weight:
                if teacher_target is not None:
                    with torch.no_grad():
                        known = self.vgg.features(target_piece)
                distance = statistics([piece, *maps], [target_piece, *known])
                character = self.config.statistics_weight * distance
            for network in self._discriminator:
                adversarial = self.adversarial_weight * network.generator_loss(fake)
                discriminator = network.discriminator_loss(fake, real)
        error = image.float() - target
        absolute = error.abs()
        if teacher_target is not None:
            absolute = absolute.lerp((image.float() - teacher_target).abs(), 1 - self.target_share)
        l1 = self.config.l1_weight * absolute.mean((1, 2, 3))
        grid = self.config.grid_weight * periodic(error)
        return PictureTerms(l1, grid, perceptual, character, adversarial, discriminator)
