"""The Multimodal Latent Connector, MMLC (Sec. 3.1), with its per-modality temperature (Sec. 3.2).

N learned latent tokens attend to the M = 77 + 3·256 tokens of text, depth, segmentation and
edges, then to each other. The UNet attends to the resulting N tokens, whichever modalities are
present. The cost of the cross-attention is linear in M: O(MN).

With `relative`, the context is relative to c∅, the latents' result for four absent modalities:

    context = f(m) − f(m∅)

so that absent modalities add exactly nothing to the UNet's cross-attention, whose values have no
bias. Without the difference the network can satisfy its loss with a constant context, which the
UNet turns into biases, and then has no gradient that would lead it back: nano 0.10.0 ended there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.bundle import MAP_TOKENS, MODALITIES
from mmsr_edge.models.positions import grid_sinusoids
from mmsr_edge.models.presets import ConnectorConfig


def attention(q: Tensor, k: Tensor, v: Tensor, delta: Tensor | float) -> Tensor:
    """softmax(QKᵀ / δ)·V (Eq. 5); q [B, h, N, d], k and v [B, h, M, d], δ a number or [B, 1, 1, M].

    With one δ per key, attention to one modality can be sharpened (δ < √d) or flattened (δ > √d).
    """
    return torch.softmax(q @ k.transpose(-1, -2) / delta, dim=-1) @ v


class Attention(nn.Module):
    """Multi-head attention with the temperature of Eq. 5."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.root_d = math.sqrt(dim // heads)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, tokens: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Attend from `x` [B, N, D] to `tokens` [B, M, D]; δ = temperature·√d_k."""

        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.to_q(x)), split(self.to_k(tokens)), split(self.to_v(tokens))
        out = attention(q, k, v, temperature * self.root_d)
        return self.to_out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block; attends to `tokens` if given, else to `x` itself."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, temperature: Tensor | float = 1.0
    ) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h if tokens is None else tokens, temperature)
        return x + self.mlp(self.norm2(x))


class Connector(nn.Module):
    """The MMLC.

    Args:
        config: sizes; `latents` 0 gives the network without MMLC that Table 2 compares with.
        dim: D, width of the text tokens, the latents and the context.
        token_width: width of map tokens, which are zero-padded to D (Sec. 3.1).
        text_length: number of text tokens.
    """

    def __init__(
        self, config: ConnectorConfig, dim: int, token_width: int, text_length: int = 77
    ) -> None:
        super().__init__()
        self.pad = dim - token_width
        self.lengths = (text_length, MAP_TOKENS, MAP_TOKENS, MAP_TOKENS)
        self.condenses, self.relative = config.latents > 0, config.relative
        if self.condenses:
            self.latents = nn.Parameter(torch.randn(config.latents, dim))
        # m∅ replaces every token of an absent modality; each modality has its own.
        self.m_absent = nn.Parameter(0.02 * torch.randn(len(MODALITIES), dim))
        # Attention ignores order. Maps share their position embeddings, so that depth and edges of
        # one place have the same position. (Text tokens already contain their positions.)
        # As large as the tokens: at 0.02 nothing was learnt of where something is.
        self.position = nn.Parameter(grid_sinusoids(math.isqrt(MAP_TOKENS), dim))
        self.modality = nn.Parameter(0.5 * torch.randn(len(MODALITIES), dim))
        self.norm = nn.LayerNorm(dim)
        self.register_buffer("fixed", None, persistent=False)
        if not self.condenses:
            return
        self.cross = Block(dim, config.heads)
        with torch.no_grad():  # logits of about 3, not 0.3: temperature scales nothing but them
            self.cross.attention.to_q.weight.mul_(3)
            self.cross.attention.to_k.weight.mul_(3)
        self.blocks = nn.ModuleList(Block(dim, config.heads) for _ in range(config.blocks))
        self.out = nn.LayerNorm(dim)

    def tokens(self, modalities: list[Tensor], present: Tensor) -> Tensor:
        """All tokens [B, M, D], with those of absent modalities replaced by m∅."""
        sequence = []
        for i, t in enumerate(modalities):
            if i > 0:
                t = (F.pad(t, (0, self.pad)) if self.pad else t) + self.position
            here = present[:, i, None, None] > 0.5
            t = torch.where(here, t, self.m_absent[i].expand_as(t)) + self.modality[i]
            sequence.append(t)
        return self.norm(torch.cat(sequence, dim=1))

    def forward(
        self,
        text: Tensor,
        depth_tokens: Tensor,
        segmentation_tokens: Tensor,
        edge_tokens: Tensor,
        present: Tensor,
        temperature: Tensor,
    ) -> Tensor:
        """Condense all modalities into the context that the UNet attends to.

        Args:
            text: [B, 77, D].
            depth_tokens, segmentation_tokens, edge_tokens: [B, 256, token_width].
            present: [B, 4], 1 where a modality is given, 0 where it is absent.
            temperature: [B, 4], factor on √d_k per modality, in [0.4, 10]; 1 is standard attention.

        Returns:
            context [B, N, D]; without latents the tokens themselves, [B, M, D], which do not
            depend on the temperature.
        """
        tokens = self.tokens([text, depth_tokens, segmentation_tokens, edge_tokens], present)
        if not self.condenses:
            return tokens
        per_key = [temperature[:, i, None].expand(-1, n) for i, n in enumerate(self.lengths)]
        context = self.condense(tokens, torch.cat(per_key, dim=1)[:, None, None])
        if not self.relative:
            return context
        return context - (self.absent() if self.fixed is None else self.fixed)

    def condense(self, tokens: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """f: the latents after attention to `tokens` [B, M, D] and to each other, [B, N, D]."""
        x = self.latents.expand(tokens.shape[0], -1, -1)
        x = self.cross(x, tokens, temperature)
        for block in self.blocks:
            x = block(x)
        return self.out(x)

    def absent(self) -> Tensor:
        """c∅ = f(m∅), [1, N, D]."""
        kinds = self.m_absent + self.modality
        tokens = torch.cat([kinds[i].expand(1, n, -1) for i, n in enumerate(self.lengths)], dim=1)
        return self.condense(self.norm(tokens))

    @torch.no_grad()
    def fix_absent(self) -> None:
        """Compute c∅ once; the weights must not change afterwards. Exported graphs hold it."""
        if self.relative:
            self.fixed = self.absent()
