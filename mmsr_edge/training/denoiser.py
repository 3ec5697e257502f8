"""Denoiser: the three networks that the diffusion stage trains, as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.networks import build_component
from mmsr_edge.models.presets import preset
from mmsr_edge.sampler import make_schedule
from mmsr_edge.training.data.samples import Samples


class Denoiser(nn.Module):
    """Text encoder, connector and UNet as one network, with one forward pass for training.

    Args:
        preset_name: preset of the networks.
        codebook: the tokenizer's codes, [codes, D].
    """

    def __init__(self, preset_name: str, codebook: Tensor) -> None:
        super().__init__()
        self.text_encoder = build_component("text_encoder", preset_name)
        self.connector = build_component("connector", preset_name)
        self.unet = build_component("unet", preset_name)
        self.register_buffer("codebook", codebook, persistent=False)
        self.register_buffer("residual_scale", torch.zeros(self.unet.net.config.out_channels))

    def forward(self, noisy: Tensor, t: Tensor, batch: Samples, present: Tensor) -> Tensor:
        """Predict v, [B, C, h, w].

        Args:
            noisy: z_t, [B, C, h, w].
            t: timesteps, [B].
            batch: the samples; `z_lr`, `ids` and `indices` are used.
            present: [B, 4], 1 for each modality given and 0 for each absent.
        """
        text = self.text_encoder(batch.ids)
        maps = [F.embedding(batch.indices[:, i], self.codebook) for i in range(3)]
        context = self.connector(text, *maps, present, torch.ones_like(present))
        latent = torch.cat([noisy, batch.z_lr], 1).contiguous(memory_format=torch.channels_last)
        return self.unet(latent, t, context)


def diffuse(z0: Tensor, a: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """z_t = √ᾱ·z_0 + √(1−ᾱ)·ε and its target v = √ᾱ·ε − √(1−ᾱ)·z_0; `a` is ᾱ_t, [B, 1, 1, 1]."""
    return a.sqrt() * z0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * z0


def to_start(noisy: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """Estimate of z_0 from a predicted v: ẑ_0 = √ᾱ·z_t − √(1−ᾱ)·v̂; `a` as in `diffuse`."""
    return a.sqrt() * noisy - (1 - a).sqrt() * v


def alphas(preset_name: str, device: torch.device) -> Tensor:
    """ᾱ_t of the preset's schedule, [T]."""
    table = make_schedule(preset(preset_name).sampler).alphas_cumprod
    return torch.from_numpy(table).to(device, torch.float32)
