r"""Attention in the layout of Apple's Neural Engine, for the export to Core ML.

After *Deploying Transformers on the Apple Neural Engine* (Apple 2022): tensors are [B, C, 1, S]
with the long axis last, projections are 1×1 convolutions, and the heads are split, so that the
weights of one head fit into the engine's near memory. For each head,

    A = softmax(Kᵀ·Q/√d) over the keys,  [1, S_k, S_q],      O = V·A,  [1, d, S_q]

This is the usual attention with another order of axes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.unet import PositionedAttention

__all__ = ["SplitAttention", "split_attention"]


def _project(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer as a 1×1 convolution: [B, C, 1, S] to [B, C', 1, S]."""
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)


class SplitAttention:
    """Processor of `diffusers.Attention` in transformer blocks; masks are not supported.

    Args:
        position: positions that are added to the queries' input, [S_q, C]; None: there are none.
    """

    def __init__(self, position: Tensor | None = None) -> None:
        self.position = position

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """Attend from [B, S_q, C] to [B, S_k, C_k], or to itself; returns [B, S_q, C]."""
        if attention_mask is not None:
            raise NotImplementedError("attention for the Neural Engine takes no mask")
        x = hidden_states.transpose(1, 2).unsqueeze(2)
        source = x if encoder_hidden_states is None else encoder_hidden_states
        if self.position is not None:
            x = x + self.position.T[:, None]
        if encoder_hidden_states is not None:
            source = source.transpose(1, 2).unsqueeze(2)
        size = attn.to_q.out_features // attn.heads
        query = (_project(attn.to_q, x) * attn.scale).split(size, 1)
        key, value = (_project(layer, source).split(size, 1) for layer in (attn.to_k, attn.to_v))
        heads = []
        for q, k, v in zip(query, key, value, strict=True):
            weights = torch.softmax(k.permute(0, 2, 3, 1) @ q.transpose(1, 2), 2)
            heads.append((v.transpose(1, 2) @ weights).transpose(1, 2))
        joined = _project(attn.to_out[0], torch.cat(heads, 1))
        return joined.squeeze(2).transpose(1, 2)


def _position(processor: object) -> Tensor | None:
    """Positions that a processor adds to the queries' input, for a whole tile."""
    if isinstance(processor, PositionedAttention):
        return processor.position().detach()
    return None


@contextlib.contextmanager
def split_attention(network: nn.Module) -> Iterator[int]:
    """Use `SplitAttention` in the network's transformer blocks; yields the number of layers."""
    found = [
        attention
        for block in network.modules()
        if isinstance(block, BasicTransformerBlock)
        for attention in (block.attn1, block.attn2)
        if attention is not None
    ]
    before = [attention.processor for attention in found]
    try:
        for attention in found:
            attention.set_processor(SplitAttention(_position(attention.processor)))
        yield len(found)
    finally:
        for attention, processor in zip(found, before, strict=True):
            attention.set_processor(processor)
