"""The denoiser: `diffusers.UNet2DConditionModel` over the noisy latent and the LR latent.

The LR latent is concatenated (InstructPix2Pix, Sec. 3.3), so `conv_in` has 2C input channels.

Two additions to the paper, both options of a preset:

- *positions*: cross-attention's queries know where in the tile they are. Context tokens come from
  places of the tile, and without positions the UNet finds them by content alone.
- *aligned*: the maps themselves, reduced to the latent's grid (`modalities.aligned`), enter
  `conv_in` as further channels, zero-initialised as the LR latent's are. Tokens tell what is where
  to 16 map pixels; edges from a better camera are finer than that.
"""

from __future__ import annotations

import math

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.errors import BundleError
from mmsr_edge.models.positions import sinusoids
from mmsr_edge.models.presets import UNetConfig


class PositionedAttention(nn.Module):
    """`diffusers` attention processor that adds positions to the queries.

    Args:
        side: side of the feature map in a whole tile, which the queries come from.
        width: its channels.
        cell: latent cells per feature, along a side.
    """

    def __init__(self, side: int, width: int, cell: int) -> None:
        super().__init__()
        line, zeros = sinusoids(side, width // 2), torch.zeros(side, width // 2)
        self.rows = nn.Parameter(torch.cat([line, zeros], dim=1))
        self.columns = nn.Parameter(torch.cat([zeros, line], dim=1))
        self.cell, self.corner = cell, (0, 0)

    def position(self, side: int | None = None) -> Tensor:
        """Positions of a part of the tile of `side` features, [side², width]; None: of all of it.

        `UNet.place` says where the part lies.
        """
        rows, columns = self.rows, self.columns
        if side is not None and side != len(rows):
            top, left = (n // self.cell for n in self.corner)
            rows, columns = rows[top : top + side], columns[left : left + side]
        return (rows[:, None] + columns).flatten(0, 1)

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        **_: object,
    ) -> Tensor:
        """Attend from `hidden_states` [B, h·w, width] to `encoder_hidden_states` [B, N, D]."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        side = math.isqrt(hidden_states.shape[1])
        q = split(attn.to_q(hidden_states + self.position(side)))
        k, v = (split(f(encoder_hidden_states)) for f in (attn.to_k, attn.to_v))
        out = F.scaled_dot_product_attention(q, k, v)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def add_positions(net: UNet2DConditionModel, latent_size: int) -> None:
    """Give positions to the queries of every cross-attention."""
    downs = len(net.config.block_out_channels) - 1
    processors = dict(net.attn_processors)
    for name in processors:
        if ".attn2." not in name:
            continue
        kind, index = name.split(".")[:2]  # "down_blocks", "1"; in the middle "mid_block", …
        level = downs
        if kind == "down_blocks":
            level = int(index)
        elif kind == "up_blocks":
            level = downs - int(index)
        width = net.config.block_out_channels[level]
        processors[name] = PositionedAttention(latent_size >> level, width, 1 << level)
    net.set_attn_processor(processors)


def build_unet(
    config: UNetConfig, channels: int, dim: int, latent_size: int
) -> UNet2DConditionModel:
    """Build a UNet for latents of `channels` (C) and a context of width `dim` (D)."""
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)]
    net = UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=2 * channels + config.aligned,
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
    if config.positions:
        add_positions(net, latent_size)
    return net


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
        self.aligned = config.aligned
        self.net = build_unet(config, channels, dim, latent_size)

    def place(self, top: int, left: int) -> None:
        """Say where in the tile the next latents lie, if they are parts of tiles: in training.

        Args:
            top, left: first row and column in latent cells, multiples of those per feature.
        """
        for module in self.modules():
            if isinstance(module, PositionedAttention):
                module.corner = (top, left)

    def forward(
        self, latent: Tensor, timestep: Tensor, context: Tensor, aligned: Tensor | None = None
    ) -> Tensor:
        """Predict v, ε or z_0, as given by the manifest's `prediction_type`.

        Args:
            latent: [B, 2C, h, w], the noisy latent and the LR latent, concatenated.
            timestep: [B], 0 (clean) … 999 (noise).
            context: [B, N, D], from the connector.
            aligned: [B, a, h, w], maps on the latent's grid, in UNets with `aligned` channels; None
                there: all maps are absent.

        Returns:
            The prediction, [B, C, h, w].
        """
        if self.aligned:
            if aligned is None:
                aligned = latent.new_zeros((len(latent), self.aligned, *latent.shape[2:]))
            latent = torch.cat([latent, aligned], 1).contiguous(memory_format=torch.channels_last)
        return self.net(latent, timestep, encoder_hidden_states=context, return_dict=False)[0]
