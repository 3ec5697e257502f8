"""The denoiser: `diffusers.UNet2DConditionModel` over the noisy latent and the LR latent.

The LR latent is concatenated (InstructPix2Pix, Sec. 3.3), so `conv_in` has 2C input channels.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from mmsr_edge.errors import BundleError
from mmsr_edge.models.presets import UNetConfig


def build_unet(
    config: UNetConfig, channels: int, dim: int, latent_size: int
) -> UNet2DConditionModel:
    """Build a UNet for latents of `channels` (C) and a context of width `dim` (D)."""
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)]
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=2 * channels,
        out_channels=channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.heads,
        cross_attention_dim=dim,
        norm_num_groups=config.norm_groups,
        use_linear_projection=config.linear_projection,
    )


def widen_conv_in(state: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """State dict of a text-to-image UNet, with zero weights added for the LR latent's channels.

    The widened network gives the same output: it ignores the LR latent until it is trained.

    Args:
        state: state dict of a UNet with C or 2C input channels; it is not changed.
        channels: 2C, input channels of the result.

    Raises:
        BundleError: `conv_in` has neither C nor 2C input channels.
    """
    weight = state["conv_in.weight"]
    if weight.shape[1] == channels:
        return dict(state)
    if 2 * weight.shape[1] != channels:
        raise BundleError(
            f"conv_in has {weight.shape[1]} input channels; expected {channels // 2} or {channels}"
        )
    return {**state, "conv_in.weight": torch.cat([weight, torch.zeros_like(weight)], dim=1)}


class UNet(nn.Module):
    """The denoiser, with the inputs and output of component `unet`."""

    def __init__(self, config: UNetConfig, channels: int, dim: int, latent_size: int) -> None:
        super().__init__()
        self.net = build_unet(config, channels, dim, latent_size)

    def forward(self, latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Predict v, ε or z_0, as given by the manifest's `prediction_type`.

        Args:
            latent: [B, 2C, h, w], the noisy latent and the LR latent, concatenated.
            timestep: [B], 0 (clean) … 999 (noise).
            context: [B, N, D], from the connector.

        Returns:
            The prediction, [B, C, h, w].
        """
        return self.net(latent, timestep, encoder_hidden_states=context, return_dict=False)[0]
