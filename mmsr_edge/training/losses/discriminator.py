"""A small discriminator on VGG's features: a projected GAN (Sauer et al. 2021).

The perceptual loss has already computed the features of both pictures, so the discriminator costs
only a few convolutions. Because these features describe texture, it is useful after a hundred
steps; a discriminator on pixels takes many thousands.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

WIDTHS = (64, 128, 256, 512)
"""Channels of the discriminator's inputs, the first four of LPIPS's five VGG16 feature maps."""
WIDTH = 48
"""Channels of the layers inside a head."""


class Discriminator(nn.Module):
    """One convolutional head per feature map; each returns a map of logits, above 0 for real.

    Spectral normalization bounds its slope (Miyato et al. 2018).
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                # The first two maps have the picture's size and half of it; a stride saves time,
                # and no head needs every pixel.
                spectral_norm(nn.Conv2d(channels, WIDTH, 3, stride=2 if i < 2 else 1, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(WIDTH, 1, 3, padding=1)),
            )
            for i, channels in enumerate(WIDTHS)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logit maps of `features`, VGG16's feature maps [B, C, h, w] of unit length per pixel."""
        return [
            head(f * f.shape[1] ** 0.5)
            for head, f in zip(self.heads, features[: len(WIDTHS)], strict=True)
        ]

    def generator_loss(self, fake: Sequence[Tensor]) -> Tensor:
        """Adversarial loss −E[C(x̂)], mean over the heads; only the features get its gradient."""
        self.requires_grad_(False)
        try:
            logits = self(fake)
        finally:
            self.requires_grad_(True)
        return torch.stack([-v.float().mean() for v in logits]).mean()

    def discriminator_loss(self, fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """Hinge loss E[max(0, 1 + C(x̂))] + E[max(0, 1 − C(x))]; only the heads get its gradient."""
        logits = self(
            [torch.cat([f.detach(), r.detach()]) for f, r in zip(fake, real, strict=True)]
        )
        halves = [v.float().chunk(2) for v in logits]
        return torch.stack([F.relu(1 + f).mean() + F.relu(1 - r).mean() for f, r in halves]).mean()
