"""The tokenizer of modality maps (Sec. 3.1): a `diffusers.VQModel`, 256×256 → 16×16 tokens.

The tokens that condition the diffusion are the discrete ones, after quantization (Fig. 4).
"""

from __future__ import annotations

from diffusers import VQModel
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.presets import TokenizerConfig


def build_vq(config: TokenizerConfig) -> VQModel:
    """The complete VQ autoencoder. Training needs its decoder; devices need only its encoder."""
    levels = len(config.block_out_channels) - 1
    attention = "Attn" if config.attention else ""
    return VQModel(
        block_out_channels=config.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels + (f"{attention}DownEncoderBlock2D",),
        up_block_types=(f"{attention}UpDecoderBlock2D",) + ("UpDecoderBlock2D",) * levels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        latent_channels=config.width,
        vq_embed_dim=config.width,
        num_vq_embeddings=config.codes,
    )


def nearest_codes(features: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code for each row of `features` [N, width]; `codebook` [codes, width].

    It minimizes ‖f − c‖² = ‖f‖² − 2f·c + ‖c‖² without ‖f‖², which is the same for all codes. The
    rest is one linear layer, which every backend supports; some lack `cdist`.
    """
    return F.linear(features, -2 * codebook, codebook.square().sum(1)).argmin(1)


class Tokenizer(nn.Module):
    """Encoder and quantizer of a VQ autoencoder.

    It holds the complete `VQModel`, so that training and export share one state dict.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.vq = build_vq(config)

    def features(self, map: Tensor) -> Tensor:
        """Continuous features [B, 16·16, width] of `map` [B, 3, 256, 256] in [-1, 1]."""
        h = self.vq.quant_conv(self.vq.encoder(map))
        return h.flatten(2).transpose(1, 2)

    def forward(self, map: Tensor) -> tuple[Tensor, Tensor]:
        """Tokenize `map` [B, 3, 256, 256], RGB in [-1, 1].

        Returns:
            tokens [B, 256, width], codebook rows in raster order, and their indices [B, 256].
        """
        features = self.features(map)
        codebook = self.vq.quantize.embedding.weight
        indices = nearest_codes(features.flatten(0, 1), codebook)
        tokens = F.embedding(indices, codebook)
        return tokens.reshape(features.shape), indices.reshape(features.shape[:2])
