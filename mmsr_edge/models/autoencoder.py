"""The image autoencoder and the LR encoder (Fig. 3): slim networks, or Stable Diffusion's.

All work at f8: an HR picture of 8n×8n pixels has an n×n latent. At a scale of 4 the LR picture has
twice the latent's size, so the slim LR encoder reads LR pixels directly. The paper's method
(upsample the picture, then encode it with the VAE) costs sixty times as much.

The slim LR encoder is trained together with the decoder, so that `decoder(lr_latent)` is the
upscaled picture that regression gives. With `Preset.residual` the diffusion models the remainder,
which regression cannot predict:

    z_0 = (z_hr - lr_latent) / residual_scale.

The mean of z_0 given the LR picture is near zero, so the output of an undertrained denoiser tends
to the regression result, not to noise.
"""

from __future__ import annotations

from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.decoder import FACTOR, SCALE, SlimDecoder
from mmsr_edge.models.presets import AutoencoderConfig
from mmsr_edge.models.slim import SlimEncoder

__all__ = ["FACTOR", "SCALE", "KLDecoder", "KLEncoder", "build_autoencoder"]


class KLEncoder(nn.Module):
    """Stable Diffusion's encoder: the posterior's mean, scaled to unit variance."""

    def __init__(self, vae: AutoencoderKL, *, upsample: int = 1) -> None:
        super().__init__()
        self.vae = vae
        self.upsample = upsample

    def forward(self, image: Tensor) -> Tensor:
        if self.upsample > 1:
            image = F.interpolate(image, scale_factor=self.upsample, mode="bilinear")
        return self.vae.encode(image).latent_dist.mode() * self.vae.config.scaling_factor


class KLDecoder(nn.Module):
    """Stable Diffusion's decoder."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent / self.vae.config.scaling_factor).sample


def build_autoencoder(config: AutoencoderConfig) -> dict[str, nn.Module]:
    """Build `hr_encoder`, `lr_encoder` and `decoder`, by name, with fresh weights."""
    if config.kind == "kl":
        vae = AutoencoderKL(
            block_out_channels=config.block_out_channels,
            down_block_types=("DownEncoderBlock2D",) * len(config.block_out_channels),
            up_block_types=("UpDecoderBlock2D",) * len(config.block_out_channels),
            layers_per_block=2,
            latent_channels=config.channels,
        )
        return {
            "hr_encoder": KLEncoder(vae),
            "lr_encoder": KLEncoder(vae, upsample=SCALE),
            "decoder": KLDecoder(vae),
        }
    return {
        "hr_encoder": SlimEncoder(config, fold=SCALE, blocks=config.encoder_blocks),
        "lr_encoder": SlimEncoder(config, fold=1, blocks=config.lr_blocks),
        "decoder": SlimDecoder(config),
    }
