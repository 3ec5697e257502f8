"""A small discriminator over VGG's features: a projected GAN (Sauer et al. 2021).

The perceptual loss has computed the features of both pictures already, so the discriminator costs a
few convolutions; and as it starts from features that see texture, it is of use after a hundred steps,
where one that starts from pixels takes many thousands.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

WIDTHS = (64, 128, 256, 512)
"""Channels of the VGG16 feature maps that are judged: the first four of LPIPS's five."""
WIDTH = 48
"""Feature maps of a head."""


class Discriminator(nn.Module):
    """One convolutional head per feature map; each gives a map of logits, real above zero.

    Spectral norms bound its slope (Miyato et al. 2018).
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                # The first two maps are at the picture's size and at half of it: dear, and no
                # head needs every pixel.
                spectral_norm(nn.Conv2d(channels, WIDTH, 3, stride=2 if i < 2 else 1, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(WIDTH, 1, 3, padding=1)),
            )
            for i, channels in enumerate(WIDTHS)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logit maps of `features`, feature maps of unit length per pixel, as LPIPS makes them."""
        return [
            head(f * f.shape[1] ** 0.5)
            for head, f in zip(self.heads, features[: len(WIDTHS)], strict=True)
        ]

    def generator_loss(self, fake: Sequence[Tensor]) -> Tensor:
        """−E[C(x̂)], mean over the heads; its gradient goes to the picture, not to the heads."""
        self.requires_grad_(False)
        try:
            logits = self(fake)
        finally:
            self.requires_grad_(True)
        return torch.stack([-v.float().mean() for v in logits]).mean()

    def discriminator_loss(self, fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """E[max(0, 1 + C(x̂))] + E[max(0, 1 − C(x))]; its gradient goes to the heads alone."""
        logits = self(
            [torch.cat([f.detach(), r.detach()]) for f, r in zip(fake, real, strict=True)]
        )
        halves = [v.float().chunk(2) for v in logits]
        return torch.stack([F.relu(1 + f).mean() + F.relu(1 - r).mean() for f, r in halves]).mean()
