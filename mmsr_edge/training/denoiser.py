"""Denoiser: text encoder, connector and UNet as one module; and the formulas of the diffusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.diffusion_unet import DiffusionUNet
from mmsr_edge.models.networks import build_component
from mmsr_edge.models.presets import preset
from mmsr_edge.sampler import make_schedule


class Denoiser(nn.Module):
    """Text encoder, connector and UNet as one network, which stages save and load together.

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
        channels = self.unet.net.config.out_channels
        self.register_buffer("residual_scale", torch.zeros(channels))
        self.register_buffer("latent_scale", torch.zeros(channels))

    def separate(self, preset_name: str) -> None:
        """Make the UNet a diffusion's own (`models.diffusion_unet`), with its present weights.

        `residual_scale` and `latent_scale` must be set.
        """
        unet = build_component("diffusion_unet", preset_name).train(self.unet.training)
        unet.load_state_dict(self.unet.state_dict(), strict=False)
        assert isinstance(unet, DiffusionUNet)
        unet.relate(self.residual_scale, self.latent_scale)
        self.unet = unet.to(self.codebook.device, memory_format=torch.channels_last)

    def freeze_context(self, frozen: bool) -> None:
        """Freeze text encoder and connector, if `frozen`."""
        for network in (self.text_encoder, self.connector):
            network.requires_grad_(not frozen)

    def context(
        self, ids: Tensor, indices: Tensor, present: Tensor, temperature: Tensor | None = None
    ) -> Tensor:
        """The connector's context, [B, N, D].

        Args:
            ids: [B, 77], token ids of the prompts.
            indices: [B, 3, 256], token indices of depth, segmentation and edges.
            present: [B, 4], 1 for each modality given and 0 for each absent.
            temperature: [B, 4]; None: 1.
        """
        text = self.text_encoder(ids)
        maps = [F.embedding(indices[:, i].long(), self.codebook) for i in range(3)]
        if temperature is None:
            temperature = torch.ones_like(present)
        context: Tensor = self.connector(text, *maps, present, temperature)
        return context


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
