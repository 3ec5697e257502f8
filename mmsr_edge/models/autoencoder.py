"""The image autoencoder and the LR encoder (Fig. 3): slim networks, or Stable Diffusion's.

All work at f8: an HR picture of 8n×8n pixels has an n×n latent. At a scale of 4 the LR picture has
twice the latent's size, so the slim LR encoder reads LR pixels directly. The paper's method
(upsample the picture, then encode it with the VAE) costs sixty times as much.

The slim LR encoder is trained together with the decoder, so that `decoder(lr_latent)` is the
upscaled picture that regression gives. With `Preset.residual` the diffusion models the remainder,
which regression cannot predict:

    z_0 = (z_hr - lr_latent) / residual_scale.

The mean of z_0 given the LR picture is near zero, so the output of an undertrained denoiser tends
to the regression result, not to noise. There are no normalization layers: their statistics differ
between tiles, and they quantize badly.
"""

from __future__ import annotations

import copy

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.bundle import EDGE_PARTS, MAPS
from mmsr_edge.errors import OptionError
from mmsr_edge.models.presets import AutoencoderConfig
from mmsr_edge.models.super_resolution import CompactSuperResolution, EdgeDetail

FACTOR = 8
"""HR pixels per latent cell, along a side."""
SCALE = 4
"""HR pixels per LR pixel, along a side."""
DEGRADATION = 8
"""Numbers that tell the decoder the degradation; see `SlimDecoder.forward`. The last two are the
shares of noise and of blur that are to stay."""


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), after EDSR."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


def _blocks(count: int, width: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(count)))


class SlimEncoder(nn.Module):
    """Pixels to latent. Pixel-unshuffling by `fold` first gives a quarter of the HR size.

    `fold=4` is for HR pictures, `fold=1` for LR pictures.
    """

    def __init__(self, config: AutoencoderConfig, *, fold: int, blocks: tuple[int, int]) -> None:
        super().__init__()
        half = config.width // 2
        self.quarter = nn.Sequential(
            nn.PixelUnshuffle(fold),
            nn.Conv2d(3 * fold**2, half, 3, padding=1),
            _blocks(blocks[0], half),
        )
        self.eighth = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * half, config.width, 3, padding=1),
            _blocks(blocks[1], config.width),
        )
        self.out = nn.Conv2d(config.width, config.channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Encode `image` [B, 3, ·, ·], RGB in [-1, 1], to a latent [B, C, ·, ·] of unit scale."""
        return self.out(self.eighth(self.quarter(image)))


def _up(width: int, out: int, factor: int) -> nn.Sequential:
    conv = nn.Conv2d(width, out * factor**2, 3, padding=1)
    return nn.Sequential(conv, nn.PixelShuffle(factor))


class SlimDecoder(nn.Module):
    """Latent to pixels, through an eighth, a quarter and a half of the HR size.

    No convolution runs at full size, where it costs most. Without blocks at a half, one ×4 pixel
    shuffle follows the quarter. A latent cell has 16 numbers, for the 12 of its four LR pixels and
    for the HR detail. With `compact_layers`, the decoder also reads the LR picture y, through a
    compact super-resolution network c, which leaves the latent's 16 numbers to the detail:

        D(z, y) = c(y) + T(eighth(z) + join(features of c)),

    where T is the rest of the decoder. With `aligned` maps (`modalities.aligned`), c is shown their
    edges e, and detail along them is added (`EdgeDetail`); shown depth and segmentation too, it
    made worse pictures (see the journal). There are dials too. They move the picture between a
    softer and a crisper one, by two convolutions R that learnt what softening changes, beside the
    LR picture upsampled; a = 1 − Π(1 − dial) is 0 at τ = 1:

        D(z, y, maps, dials) = D(z, y) + (1 − a) · U(features of c, e)
                               + a · (R(features of c) + R(features of T) + up(y)).

    Here up(y) is bilinear less nearest-neighbour interpolation; the latter is part of c(y).

    Whoever says that there is less noise or blur than there is wants the rest of it kept. With
    `degradation`, the shares ν and β of it are added back, as a convolution learnt to find it:

        D(z, y, …, ν, β) = D(z, y, …) + ν · N(y, features of c) + β · B(y, features of c).

    More noise than there is (ν < 0) softens the picture, as a dial of −ν does.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width, (eighth, quarter, half) = config.width, config.decoder_blocks
        self.eighth = nn.Sequential(
            nn.Conv2d(config.channels, width, 3, padding=1),
            _blocks(eighth, width),
            *_up(width, width // 2, 2),
        )
        self.compact: CompactSuperResolution | None = None
        if config.compact_layers:
            self.compact = CompactSuperResolution(
                config.compact_layers, config.compact_width, SCALE
            )
            self.join = nn.Conv2d(config.compact_width, width // 2, 1)
            if config.degradation:
                self.compact.tell(DEGRADATION - 2)
                self.kept = nn.Conv2d(config.compact_width + 3, 2 * 3 * SCALE**2, 3, padding=1)
                nn.init.zeros_(self.kept.weight)
                nn.init.zeros_(self.kept.bias)
            if config.aligned:
                self.compact.show(EDGE_PARTS**2)
                self.detail = EdgeDetail(config.compact_width, EDGE_PARTS**2, SCALE)
        self.quarter = _blocks(quarter, width // 2)
        self.halved = nn.Sequential()
        if half:
            self.halved = nn.Sequential(*_up(width // 2, width // 4, 2), _blocks(half, width // 4))
        self.out = _up(width // 4, 3, 2) if half else _up(width // 2, 3, 4)
        if self.compact is not None and config.aligned:
            self.refocus = nn.ModuleList([copy.deepcopy(conv) for conv in self._last()])
            self.begin_soft()

    def forward(
        self,
        latent: Tensor,
        lr: Tensor | None = None,
        degradation: Tensor | None = None,
        aligned: Tensor | None = None,
    ) -> Tensor:
        """Decode `latent` [B, C, h, w] to RGB [B, 3, 8h, 8w], about [-1, 1], not clipped.

        Args:
            latent: [B, C, h, w].
            lr: the LR picture [B, 3, 2h, 2w], RGB in [-1, 1]; required with `compact_layers`.
            degradation: [B, 8], levels of noise, blur and JPEG in [0, 1], 0 where unknown; 1 or 0
                for each that is known or not; and ν and β in [-1, 1]. None: nothing is known.
            aligned: maps and dials on the latent's grid, [B, a, h, w] (`modalities.aligned`);
                None: none is given.
        """
        x = self.eighth(latent)
        if self.compact is None:
            plain: Tensor = self.out(self.halved(self.quarter(x)))
            return plain
        assert lr is not None, "this decoder requires the LR picture"
        edges = dials = None
        if aligned is not None:
            _, edges, dials = aligned.split([4, EDGE_PARTS**2, len(MAPS)], dim=1)
        told = stay = None
        if degradation is not None:
            told, stay = degradation.split([DEGRADATION - 2, 2], dim=1)
            stay = stay[..., None, None]
        features = self.compact.features(lr, told, edges)
        hidden = self.halved(self.quarter(x + self.join(features)))
        image: Tensor = self.out(hidden) + self.compact.picture(features, lr)
        if stay is not None:
            noise, blur = self.kept(torch.cat([features, lr], dim=1)).chunk(2, dim=1)
            noise_share, blur_share = stay.split(1, dim=1)
            kept = F.relu(noise_share) * noise + blur_share * blur
            image = image + F.pixel_shuffle(kept, SCALE)
        if edges is None or dials is None:
            return image
        softness = self._softness(dials, stay)
        detail = self.detail(features, edges)
        return image + (1 - softness) * detail + softness * self._soften(features, hidden, lr)

    def _softness(self, dials: Tensor, stay: Tensor | None) -> Tensor:
        """a, [B, 1, 8h, 8w], of dials [B, 3, h, w] and, as far as ν < 0, of `stay` [B, 2, 1, 1]."""
        of_depth, of_segmentation, of_edges = (1 - dials).split(1, dim=1)
        crisp = of_depth * of_segmentation * of_edges
        if stay is not None:
            crisp = crisp * (1 - F.relu(-stay[:, :1]))
        return F.interpolate(1 - crisp, scale_factor=float(FACTOR), mode="bilinear")

    def _soften(self, features: Tensor, hidden: Tensor, lr: Tensor) -> Tensor:
        """What softening changes in the picture, [B, 3, 8h, 8w]."""
        of_compact, of_tail = self.refocus
        changed = F.pixel_shuffle(of_compact(features), SCALE) + self.out[1](of_tail(hidden))
        scale = float(SCALE)
        upsampled = F.interpolate(lr, scale_factor=scale, mode="bilinear")
        return changed + upsampled - F.interpolate(lr, scale_factor=scale, mode="nearest")

    def _last(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The last convolutions, whose results make up the picture."""
        assert self.compact is not None and isinstance(self.out[0], nn.Conv2d)
        return self.compact.out, self.out[0]

    @torch.no_grad()
    def begin_soft(self) -> None:
        """Take the LR picture, upsampled, for the soft picture: all other detail goes."""
        for soft, conv in zip(self.refocus, self._last(), strict=True):
            assert isinstance(soft, nn.Conv2d) and soft.bias is not None and conv.bias is not None
            soft.weight.copy_(-conv.weight)
            soft.bias.copy_(-conv.bias)

    def begin_at(self, compact: dict[str, Tensor]) -> None:
        """Load a compact super-resolution network's weights; the latent then contributes zero.

        Args:
            compact: state dict of a `CompactSuperResolution`.

        Raises:
            OptionError: this decoder has no such network, or one of another size.
        """
        if self.compact is None:
            raise OptionError("this preset's decoder has no super-resolution network")
        own = self.compact.state_dict()
        extra = {k: v for k, v in own.items() if k.startswith(("told.", "shown."))}
        try:
            self.compact.load_state_dict({**extra, **compact})
        except RuntimeError as error:
            raise OptionError(
                f"the compact super-resolution network does not fit this preset: {error}"
            ) from None
        nn.init.zeros_(self.join.weight)
        for parameter in self.out[0].parameters():
            nn.init.zeros_(parameter)
        if hasattr(self, "refocus"):
            self.begin_soft()


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
