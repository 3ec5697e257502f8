"""The loss of a picture: L1, LPIPS over AlexNet and VGG, and an adversarial term."""

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
    """Weights of the terms of `PictureLoss`; a network whose weight is 0 is not loaded."""

    l1_weight: float = 2.0
    """Weight of the mean absolute difference."""
    grid_weight: float = 2.0
    """Weight of the part of it that repeats from latent cell to latent cell; see `periodic`."""
    alex_weight: float = 0.5
    """Weight of LPIPS-Alex, at a random phase."""
    vgg_weight: float = 0.5
    """Weight of LPIPS-VGG."""
    vgg_taps: int = 3
    """Feature maps of VGG that are compared; 5 where there is a GPU."""
    vgg_crop: int = 96
    """Side in HR pixels of the piece of a picture that VGG sees."""
    statistics_weight: float = 0.0
    """Weight of the distance between the statistics of VGG's features."""


@dataclass(frozen=True)
class AdversarialConfig:
    """Setting of stages that have a discriminator."""

    adversarial_weight: float = 0.0
    """Weight of the adversarial loss; 0: there is no discriminator."""


@dataclass(frozen=True)
class AlexTargetConfig:
    """Setting of stages that have a teacher's target beside the HR picture."""

    alex_sees_hr: float = 0.0
    """Share of steps in which LPIPS-Alex compares with the HR picture, for texture that the teacher
    leaves out; in the others it compares with the teacher's target."""


@dataclass(frozen=True)
class ContrastConfig:
    """Settings of stages that train on `contrast`."""

    contrast_weight: float = 0.0
    """Weight of the distance between the contrast of a picture's bands and the HR picture's."""
    contrast_first: int = 1
    """Finest band; 0: periods of 2 to 4 pixels."""


@dataclass(frozen=True)
class PictureTerms:
    """What `PictureLoss` gives; all of it is added up to train on."""

    l1: Tensor
    """[B], weighted mean absolute difference."""
    grid: Tensor
    """[B], weighted periodic difference; see `periodic`."""
    perceptual: Tensor
    """[B], weighted LPIPS terms."""
    statistics: Tensor
    """[B], weighted distance of the statistics of VGG's features."""
    adversarial: Tensor
    """Scalar, weighted: how far the pictures are from convincing the discriminator."""
    discriminator: Tensor
    """Scalar: how far the discriminator is from telling them apart. It trains the discriminator alone."""

    def total(self) -> Tensor:
        """The sum of the batch's means."""
        pictures = self.l1 + self.grid + self.perceptual + self.statistics
        return pictures.mean() + self.adversarial + self.discriminator


def periodic(error: Tensor, period: int = 8, cells: int = 4) -> Tensor:
    """How far an error repeats itself from one latent cell to the next, [B].

    A decoder that shuffles channels into pixels leaves a faint grid: the same error in every cell,
    too small for L1 to mind and to the taste of classifiers' features, but the eye sees it. The
    mean over `cells`² neighbouring cells, place by place, keeps what repeats and averages out the
    rest; an error of the whole neighbourhood's mean is no grid.

    Args:
        error: [B, 3, H, W]; rows and columns beyond the last whole neighbourhood are left out.
        period: side of a cell in pixels; the decoder's factor.
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
    """How far the contrast of pictures is from what it should be, by band and place, [B].

    L1 is least where detail in doubt is drawn fainter than it is, and LPIPS brings features to one
    length before it compares them: neither minds a picture that is all a little too flat. Of the
    bands of a Laplacian pyramid (Burt & Adelson 1983), B_k = x_k - up(x_{k+1}), each an octave,

        Σ_k mean over windows of |rms(B_k(image)) - rms(B_k(target))|

    in which detail may lie anywhere in its window.

    Args:
        image: [B, 3, H, W]; its gradient is that of its contrast alone.
        target: what it should be like, [B, 3, H, W].
        first: k of the finest band; B_0 has periods of 2 to 4 pixels, B_1 of 4 to 8.
        last: k of the coarsest.
        window: side of a window in pixels; a multiple of 2^(last + 1).
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
    """Weighted sum of L1, its periodic part, LPIPS-Alex, LPIPS-VGG, statistics and an adversarial term.

    AlexNet is cheap and is shown nearly all of the picture; VGG costs fifteen times as much and is
    shown a piece of it; the statistics are those of its features, and the discriminator judges them.

    Args:
        folder: of the LPIPS weights; see `perceptual`.
        config: weights of the terms, and what VGG sees.
        discriminator: learns to tell pictures apart; needed where `adversarial_weight` is not 0.
        adversarial_weight: weight of the adversarial loss.
        target_share: share of L1 that compares with `target` where there is a teacher's target; the
            rest compares with the teacher's.

    Raises:
        OptionError: an adversarial loss without the four VGG feature maps that it is computed on.
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
            g: draws the pieces that LPIPS sees.
            teacher_target: [B, 3, H, W], a teacher's target: LPIPS-VGG and the discriminator
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
            piece, near, model = shifted([image, target, sharp], self.config.vgg_crop, g)
            maps = self.vgg.features(piece)
            with torch.no_grad():
                known = self.vgg.features(model)
            fake, real = unit(maps), unit(known)
            perceptual = perceptual + self.config.vgg_weight * self.vgg.compare(fake, real)
            if self.config.statistics_weight:
                if teacher_target is not None:
                    with torch.no_grad():
                        known = self.vgg.features(near)
                told = statistics([piece, *maps], [near, *known])
                character = self.config.statistics_weight * told
            for network in self._discriminator:
                adversarial = self.adversarial_weight * network.generator_loss(fake)
                discriminator = network.discriminator_loss(fake, real)
        error = image.float() - target
        missed = error.abs()
        if teacher_target is not None:
            missed = missed.lerp((image.float() - teacher_target).abs(), 1 - self.target_share)
        l1 = self.config.l1_weight * missed.mean((1, 2, 3))
        grid = self.config.grid_weight * periodic(error)
        return PictureTerms(l1, grid, perceptual, character, adversarial, discriminator)
