"""The text encoder: a `transformers.CLIPTextModel`, ours in `nano` and SD2's in `sd2`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from mmsr_edge.models.presets import TextConfig

PAD, START, END = 0, 1, 2
"""Special ids of `hashed-words`; see `mmsr_edge.modalities.prompt`."""


class TextEncoder(nn.Module):
    """Prompt ids to one token of width D per position."""

    def __init__(self, config: TextConfig, dim: int) -> None:
        super().__init__()
        self.model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocab_size,
                hidden_size=dim,
                intermediate_size=4 * dim,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.length,
                hidden_act="gelu",
                pad_token_id=PAD,
                bos_token_id=START,
                eos_token_id=END,
                attn_implementation="eager",  # exports as plain matrix products
            )
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Encode `ids` [B, 77] (int64) to [B, 77, D]."""
        return self.model(input_ids=ids.to(torch.int64)).last_hidden_state
