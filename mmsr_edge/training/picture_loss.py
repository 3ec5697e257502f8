"""What a picture is trained on: L1, LPIPS over AlexNet and VGG, and an adversary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError
from mmsr_edge.training.critic import WIDTHS, Critic
from mmsr_edge.training.perceptual import LPIPS, shifted, statistics, unit


class PictureWeights(Protocol):
    """The settings that a stage must have; a weight of 0 does without the network."""

    @property
    def l1_weight(self) -> float: ...
    @property
    def grid_weight(self) -> float: ...
    @property
    def alex_weight(self) -> float: ...
    @property
    def vgg_weight(self) -> float: ...
    @property
    def vgg_taps(self) -> int: ...
    @property
    def vgg_crop(self) -> int: ...
    @property
    def statistics_weight(self) -> float: ...
    @property
    def critic_weight(self) -> float: ...


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
    """Scalar, weighted: how far the pictures are from convincing the critic."""
    critic: Tensor
    """Scalar: how far the critic is from telling them apart. It trains the critic alone."""

    def total(self) -> Tensor:
        """The sum of the batch's means."""
        pictures = self.l1 + self.grid + self.perceptual + self.statistics
        return pictures.mean() + self.adversarial + self.critic


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
    """Weighted sum of L1, its periodic part, LPIPS-Alex, LPIPS-VGG, statistics and an adversary.

    AlexNet is cheap and is shown nearly all of the picture; VGG costs fifteen times as much and is
    shown a piece of it; the statistics are those of its features, and the critic judges them.

    Args:
        folder: of the LPIPS weights; see `perceptual`.
        weights: of the terms, and what VGG sees.
        critic: learns to tell pictures apart; needed where its weight is not 0.
        target_share: of L1 where there is a teacher; the rest compares with the teacher's answer.

    Raises:
        OptionError: the critic is asked for without the four VGG feature maps that it judges.
    """

    def __init__(
        self,
        folder: Path,
        weights: PictureWeights,
        critic: Critic | None = None,
        target_share: float = 0.5,
    ) -> None:
        super().__init__()
        if weights.critic_weight and (not weights.vgg_weight or weights.vgg_taps < len(WIDTHS)):
            raise OptionError(
                f"critic_weight {weights.critic_weight:g} needs vgg_weight > 0 and vgg_taps >= "
                f"{len(WIDTHS)}, not {weights.vgg_weight:g} and {weights.vgg_taps}"
            )
        self.weights, self.target_share = weights, target_share
        self.alex = LPIPS(folder, "alexnet") if weights.alex_weight else None
        self.vgg = LPIPS(folder, "vgg16", weights.vgg_taps) if weights.vgg_weight else None
        self.to(memory_format=torch.channels_last)
        self._critic = [critic] if critic is not None and weights.critic_weight else []

    def forward(
        self, image: Tensor, target: Tensor, g: torch.Generator, taught: Tensor | None = None
    ) -> PictureTerms:
        """Compare `image` with `target`, both [B, 3, H, W] in [-1, 1].

        Args:
            g: draws the pieces that are looked at.
            taught: [B, 3, H, W], a teacher's answer: LPIPS-VGG and the critic compare with it
                alone, and L1 with both. The others see `target`.
        """
        perceptual = character = torch.zeros(len(image), device=image.device)
        adversarial = critic = torch.zeros((), device=image.device)
        if self.alex is not None:
            side = min(image.shape[-2:]) - 8
            perceptual = perceptual + self.weights.alex_weight * self.alex(
                *shifted([image, target], side, g)
            )
        if self.vgg is not None:
            sharp = target if taught is None else taught
            piece, near, model = shifted([image, target, sharp], self.weights.vgg_crop, g)
            maps = self.vgg.features(piece)
            with torch.no_grad():
                known = self.vgg.features(model)
            fake, real = unit(maps), unit(known)
            perceptual = perceptual + self.weights.vgg_weight * self.vgg.compare(fake, real)
            if self.weights.statistics_weight:
                if taught is not None:
                    with torch.no_grad():
                        known = self.vgg.features(near)
                told = statistics([piece, *maps], [near, *known])
                character = self.weights.statistics_weight * told
            for judge in self._critic:  # a list: the critic is the run's network, not a part of us
                adversarial = self.weights.critic_weight * judge.generator_loss(fake)
                critic = judge.critic_loss(fake, real)
        error = image.float() - target
        missed = error.abs()
        if taught is not None:
            missed = missed.lerp((image.float() - taught).abs(), 1 - self.target_share)
        l1 = self.weights.l1_weight * missed.mean((1, 2, 3))
        grid = self.weights.grid_weight * periodic(error)
        return PictureTerms(l1, grid, perceptual, character, adversarial, critic)
