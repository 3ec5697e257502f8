"""The tokenizer of modality maps (Sec. 3.1), 256×256 → 16×16 tokens: a slim encoder, or a VQGAN.

The tokens that condition the diffusion are the discrete ones, after quantization (Fig. 4). The
paper's tokenizer is a pretrained VQGAN, here a `diffusers.VQModel`. `nano` has a slim encoder that
takes a quarter of its time: the first convolution reduces the map fourfold, where a VQGAN computes
at full size. It has no decoder, because it is not trained on pictures of the maps but on what a
token should tell (see `training.train_tokenizer`).
"""

from __future__ import annotations

from diffusers import VQModel
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.presets import TokenizerConfig


def build_vq(config: TokenizerConfig) -> VQModel:
    """The complete VQ autoencoder of a VQGAN; devices need only its encoder."""
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


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), without normalization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class UnitScale(nn.Module):
    """Scales each position's features to a mean square of 1.

    Without it the features grow while the codes follow them, until the quantized tokens tell
    nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(1, keepdim=True).clamp_min(1e-6).rsqrt()


class SlimVQ(nn.Module):
    """Encoder and codebook of the slim tokenizer, with the attributes of `VQModel` that we use."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths, blocks = config.block_out_channels, config.blocks
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=4)]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                layers.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
            layers += [ResidualBlock(width) for _ in range(count)]
        self.encoder = nn.Sequential(*layers, nn.SiLU())
        self.quant_conv = nn.Sequential(nn.Conv2d(widths[-1], config.width, 1), UnitScale())
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(config.codes, config.width)


def nearest_codes(features: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code for each row of `features` [N, width]; `codebook` [codes, width].

    It minimizes ‖f − c‖² = ‖f‖² − 2f·c + ‖c‖² without ‖f‖², which is the same for all codes. The
    rest is one linear layer, which every backend supports; some lack `cdist`.
    """
    return F.linear(features, -2 * codebook, codebook.square().sum(1)).argmin(1)


class Tokenizer(nn.Module):
    """Encoder and quantizer. Of a VQGAN it holds the complete `VQModel`, with the decoder, so that
    import, training and export share one state dict.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.vq: VQModel | SlimVQ = SlimVQ(config) if config.blocks else build_vq(config)

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
