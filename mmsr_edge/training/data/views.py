"""Training batches of labelled views of photographs, degraded like the pictures on the device.

The teacher labelled the clean view; the student is mostly given a degraded one. Degrading costs as
much as a training step of a small network, so each view's last degraded copy is kept and sometimes
renewed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mmsr_edge.bundle import MAP_SIDE
from mmsr_edge.training.data.degradation import FIRST, SECOND, DegradeConfig, degrade

SIDES = (112, 128, 160, 192)
"""Sides of the LR picture that a view is reduced to and enlarged from, in pixels."""
AT_LR = DegradeConfig(
    scale=1,
    clean=0.1,
    first=replace(
        FIRST, blur_sigma=(0.1, 1.0), resize=(0.4, 1.2), gaussian=(1, 15), poisson=(0.05, 1.5)
    ),
    second=replace(SECOND, blur_sigma=(0.1, 0.8), resize=(0.5, 1.2)),
)
"""Degradation at the LR size, for a fraction of the cost at the HR size. Blurs are narrower, in LR
pixels, and the first round's noise is halved, as by a reduction."""


class Views:
    """Draws batches of views, clean or degraded.

    Args:
        views: uint8 [N, 256, 256, 3].
        device: device of the views and the batches.
        seed: seed of all random draws.
        renew: share of a batch that is degraded anew.
        clean: share of a batch that is clean.
    """

    def __init__(
        self,
        views: NDArray[Any],
        device: torch.device,
        seed: int = 0,
        renew: float = 0.5,
        clean: float = 0.2,
    ) -> None:
        self.views = torch.from_numpy(views).to(device)
        self.degraded = self.views.clone()
        self.g = torch.Generator(device).manual_seed(seed)
        self.device, self.renew, self.clean = device, renew, clean

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.g, device=self.device)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Indices of random views [count] and their pictures [count, 3, 256, 256] in [-1, 1]."""
        rows = torch.randint(len(self.views), (count,), generator=self.g, device=self.device)
        fresh = rows[: round(count * self.renew)]
        if len(fresh):
            self.degraded[fresh] = self._degrade(self.views[fresh])
        is_clean = (self._rand(count) < self.clean)[:, None, None, None]
        pixels = torch.where(is_clean, self.views[rows], self.degraded[rows])
        return rows, self._jitter(to_images(pixels))

    def _degrade(self, views: Tensor) -> Tensor:
        side = SIDES[int(self._rand() * len(SIDES))]
        small = F.interpolate(to_images(views), (side, side), mode="area")
        lr = degrade(small, AT_LR, self.g)
        return to_pixels(F.interpolate(lr, (MAP_SIDE, MAP_SIDE), mode="bilinear"))

    def _jitter(self, images: Tensor) -> Tensor:
        """Change exposure, contrast and white balance at random, per picture."""
        b = len(images)
        gain = 1 + 0.25 * (2 * self._rand(b, 1, 1, 1) - 1) + 0.1 * (2 * self._rand(b, 3, 1, 1) - 1)
        offset = 0.2 * (2 * self._rand(b, 1, 1, 1) - 1)
        return (images * gain + offset).clamp(-1, 1)


def to_images(pixels: Tensor) -> Tensor:
    """Views, uint8 [B, H, W, 3], as pictures [B, 3, H, W] in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] as views, uint8 [B, H, W, 3]."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
