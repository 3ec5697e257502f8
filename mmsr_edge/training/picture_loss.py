"""What a picture is trained on: L1 and LPIPS, over AlexNet and over the first layers of VGG."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from mmsr_edge.training.perceptual import LPIPS, shifted


class PictureWeights(Protocol):
    """The settings that a stage must have; 0 does without the network."""

    @property
    def alex_weight(self) -> float: ...
    @property
    def vgg_weight(self) -> float: ...
    @property
    def vgg_taps(self) -> int: ...
    @property
    def vgg_crop(self) -> int: ...


class PictureLoss(nn.Module):
    """L1 + α·LPIPS-Alex + β·LPIPS-VGG.

    AlexNet is cheap and is shown nearly all of the picture; VGG costs fifteen times as much and is
    shown a piece of it.

    Args:
        folder: of the LPIPS weights; see `perceptual`.
        weights: α, β and what VGG sees.
    """

    def __init__(self, folder: Path, weights: PictureWeights) -> None:
        super().__init__()
        self.weights = weights
        self.alex = LPIPS(folder, "alexnet") if weights.alex_weight else None
        self.vgg = LPIPS(folder, "vgg16", weights.vgg_taps) if weights.vgg_weight else None
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor, target: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """L1 [B] and the weighted perceptual terms [B] of `image` against `target`.

        Args:
            image, target: [B, 3, H, W] in [-1, 1].
            g: draws the pieces that are looked at.
        """
        perceptual = torch.zeros(len(image), device=image.device)
        if self.alex is not None:
            side = min(image.shape[-2:]) - 8
            perceptual = perceptual + self.weights.alex_weight * self.alex(
                *shifted(image, target, side, g)
            )
        if self.vgg is not None:
            piece = shifted(image, target, self.weights.vgg_crop, g)
            perceptual = perceptual + self.weights.vgg_weight * self.vgg(*piece)
        return (image.float() - target).abs().mean((1, 2, 3)), perceptual
