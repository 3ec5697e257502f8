r"""The diffusion's UNet where a student has another: it models z_hr / σ, given z_lr.

Most of z_hr is known before the first step, because z_lr is an input, and z_hr = z_lr + s·r. A UNet
that has to copy z_lr from its input to its output does so with an error larger than s·r̂ itself
(measured: see the journal). Here the known part takes no part in it. With m = z_lr / σ and
k = s / σ, what is left of z_t is a noisy residual,

    z_t − √ᾱ·m = √ᾱ·k·r + √(1−ᾱ)·ε = n·(α'·r + σ'·ε),   n² = ᾱ·k² + 1 − ᾱ,

with α' = √ᾱ·k / n and σ' = √(1−ᾱ) / n, so that α'² + σ'² = 1. The network F predicts its velocity
v' = α'·ε − σ'·r (as EDM's preconditioning, Karras et al. 2022, with c_skip and c_out for the
deviation k), and the prediction of the component follows from it:

    v̂ = √ᾱ·ε̂ − √(1−ᾱ)·ẑ_0 = −√(1−ᾱ)·m + √(ᾱ(1−ᾱ))·(1 − k²)/n² · (z_t − √ᾱ·m) + k/n · F.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmsr_edge.models.presets import UNetConfig
from mmsr_edge.models.unet import UNet


class DiffusionUNet(UNet):
    """A UNet with the inputs and output of component `diffusion_unet`.

    Args:
        config, channels, dim, latent_size: as for `UNet`.
        alphas: ᾱ_t of the schedule, [T].
    """

    alphas: Tensor
    ratio: Tensor
    sigma: Tensor

    def __init__(
        self, config: UNetConfig, channels: int, dim: int, latent_size: int, alphas: Tensor
    ) -> None:
        super().__init__(config, channels, dim, latent_size)
        self.register_buffer("alphas", alphas, persistent=False)
        self.register_buffer("ratio", torch.ones(channels, 1, 1))
        self.register_buffer("sigma", torch.ones(channels, 1, 1))

    def relate(self, residual_scale: Tensor, latent_scale: Tensor) -> None:
        """Set s and σ by channel, [C] each; k is their ratio."""
        self.ratio.copy_((residual_scale / latent_scale)[:, None, None])
        self.sigma.copy_(latent_scale[:, None, None])

    def weight(self, timestep: Tensor) -> Tensor:
        """k / n, by which an error of F appears in the prediction, [B, C, 1, 1].

        Args:
            timestep: [B].
        """
        a = self.alphas[timestep.long()][:, None, None, None]
        return self.ratio / (a * self.ratio.square() + 1 - a).sqrt()

    def forward(
        self, latent: Tensor, timestep: Tensor, context: Tensor, aligned: Tensor | None = None
    ) -> Tensor:
        """Predict v of z_hr / σ; the arguments are those of `UNet`."""
        noisy, z_lr = latent.chunk(2, dim=1)
        a = self.alphas[timestep.long()][:, None, None, None]
        known = z_lr / self.sigma
        n = (a * self.ratio.square() + 1 - a).sqrt()
        rest = (noisy - a.sqrt() * known) / n
        inner = super().forward(torch.cat([rest, z_lr], 1), timestep, context, aligned)
        kept = (a * (1 - a)).sqrt() * (1 - self.ratio.square()) / n * rest
        return kept - (1 - a).sqrt() * known + self.ratio / n * inner
