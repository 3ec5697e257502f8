"""Sizes of the networks: one dataclass per network, and the table of presets.

| preset      | description                                          | weights         |
|-------------|------------------------------------------------------|-----------------|
| `micro`     | for tests: builds and exports in seconds             | random          |
| `nano`      | ships in the wheel                                   | trained here    |
| `small`     | `nano`, with a small Real-ESRGAN in its decoder      | trained here    |
| `nano-bare` | `nano` without the MMLC, for comparison (Table 2)    | on demand       |
| `sd2`       | the paper's size (Sec. 4): Stable Diffusion 2, VQGAN | the user's own  |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mmsr_edge.bundle import ALIGNED, MAP_TOKENS, SamplerSpec, TextSpec
from mmsr_edge.errors import OptionError
from mmsr_edge.models.caption import TaggerConfig
from mmsr_edge.models.degradation import DegradationConfig
from mmsr_edge.models.depth import DepthConfig
from mmsr_edge.models.residual_dense import Tail
from mmsr_edge.models.segmentation import SegmentationConfig
from mmsr_edge.models.trunk import TrunkConfig


@dataclass(frozen=True)
class AutoencoderConfig:
    """The image autoencoder (f8) and the encoder that reads LR pixels."""

    kind: Literal["slim", "kl"]
    """`slim`: our light networks. `kl`: `diffusers.AutoencoderKL`, with LR pictures upsampled."""
    channels: int
    """C, channels of a latent."""
    width: int
    """Channels of the slim networks at an eighth of the HR size; half as many at a quarter."""
    encoder_blocks: tuple[int, int]
    """Residual blocks of the HR encoder at a quarter and at an eighth of the HR size."""
    lr_blocks: tuple[int, int]
    """Residual blocks of the LR encoder at a quarter (LR size) and at an eighth of the HR size."""
    decoder_blocks: tuple[int, int, int]
    """Residual blocks of the decoder at an eighth, a quarter and a half of the HR size."""
    compact_layers: int = 0
    """Middle convolutions of the decoder's compact super-resolution network; 0: no such network,
    and the decoder does not read the LR picture."""
    compact_width: int = 64
    """Channels of the compact super-resolution network."""
    dense_blocks: int = 0
    """Blocks of the residual dense network that the decoder has beside the compact one; 0: none."""
    dense_tail: Tail = "half"
    """Tail of the residual dense network."""
    dense_width: int = 64
    """Channels between the blocks of the residual dense network."""
    degradation: bool = False
    """Whether the super-resolution networks are told the levels of degradation."""
    aligned: int = 0
    """Channels of the maps on the latent's grid that these networks are shown; 0: none."""
    block_out_channels: tuple[int, ...] = ()
    """Channels of `AutoencoderKL` by level, for `kl` only."""


@dataclass(frozen=True)
class TokenizerConfig:
    """The VQ tokenizer of modality maps (Sec. 3.1): 256×256 → 16×16 tokens of width 256."""

    block_out_channels: tuple[int, ...]
    """Channels by level. VQGAN: from full size down, and five levels reduce 256 to 16. Slim: from a
    quarter of it down, three levels."""
    layers_per_block: int = 0
    """VQGAN's residual layers at each level."""
    blocks: tuple[int, ...] = ()
    """Residual blocks of the slim encoder by level; without, the tokenizer is a VQGAN."""
    codes: int = 1024
    """Entries of the codebook."""
    width: int = 256
    """Width of a token."""
    norm_groups: int = 32
    """Groups of its GroupNorms; must divide every number of channels."""
    attention: bool = False
    """Whether attention follows each residual layer at the smallest size, as in VQGAN."""


@dataclass(frozen=True)
class TextConfig:
    """The text encoder, a `transformers.CLIPTextModel`."""

    tokenizer: Literal["hashed-words", "clip-bpe"]
    """Method that turns a prompt into ids."""
    vocab_size: int
    """Number of ids."""
    layers: int
    """Transformer layers."""
    heads: int
    """Attention heads."""
    length: int = 77
    """Ids of a prompt, including padding."""


@dataclass(frozen=True)
class ConnectorConfig:
    """The Multimodal Latent Connector (Sec. 3.1)."""

    latents: int
    """N, learned latent tokens that the UNet attends to. 0: no MMLC; it attends to all M tokens."""
    heads: int
    """Attention heads."""
    blocks: int
    """Self-attention blocks after the cross-attention."""
    relative: bool = False
    """Whether the context is relative to that of four absent modalities; see `connector`."""


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser, a `diffusers.UNet2DConditionModel`."""

    block_out_channels: tuple[int, ...]
    """Channels by level, from the latent's size down."""
    attention: tuple[bool, ...]
    """Whether each level attends to the context."""
    layers_per_block: int
    """Residual layers at each level."""
    heads: tuple[int, ...]
    """Attention heads per level; `diffusers` calls their number `attention_head_dim`."""
    norm_groups: int = 32
    """Groups of its GroupNorms."""
    linear_projection: bool = True
    """Whether projections around attention are linear, as in SD2, not 1×1 convolutions."""
    positions: bool = False
    """Whether cross-attention's queries know their places; see `unet`."""
    aligned: int = 0
    """Channels of the maps on the latent's grid that `conv_in` reads too; 0: none."""


@dataclass(frozen=True)
class Preset:
    """All sizes of one model."""

    name: str
    """Key in `PRESETS`."""
    dim: int
    """D, width of text tokens, connector and context."""
    tile: int
    """Side of a tile at export, in LR pixels."""
    overlap: int
    """Smallest overlap of neighbouring tiles, in LR pixels."""
    residual: bool
    """Whether `(z_hr - lr_latent) / residual_scale` is diffused instead of `z_hr`; see
    `autoencoder.py`."""
    autoencoder: AutoencoderConfig
    """HR encoder, LR encoder and decoder."""
    tokenizer: TokenizerConfig
    """Tokenizer of modality maps."""
    text: TextConfig
    """Text encoder of prompts."""
    connector: ConnectorConfig
    """The MMLC."""
    unet: UNetConfig
    """The denoiser."""
    depth: DepthConfig | None
    """Depth network; None: converted from a published checkpoint instead."""
    segmentation: SegmentationConfig | None
    """Segmentation network; None as for `depth`."""
    captioner: TaggerConfig | None
    """Tagger; None as for `depth`."""
    degradation: DegradationConfig | None
    """Degradation estimator; None: the bundle has none, and its prompts no words for levels."""
    sampler: SamplerSpec
    """Noise schedule of training, and the sampling defaults."""
    positive: str = ""
    """Words added to every prompt."""
    negative: str = ""
    """Prompt that guidance pushes away from, unless the caller gives one."""

    @property
    def context_tokens(self) -> int:
        """Tokens of the context: N, or M = 77 + 3·256 without MMLC."""
        return self.connector.latents or self.text.length + 3 * MAP_TOKENS

    def text_spec(self) -> TextSpec:
        """The manifest's specification of prompts."""
        return TextSpec(
            self.text.tokenizer,
            self.text.vocab_size,
            self.text.length,
            self.positive,
            self.negative,
            degradation=self.degradation is not None,
        )


# Zero terminal SNR (Lin et al. 2023): sampling starts from pure noise, the last level of training.
ZERO_SNR = SamplerSpec(
    prediction_type="v_prediction", num_train_timesteps=1000,
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
    rescale_zero_snr=True, timestep_spacing="trailing",
    steps=50, guidance="m-cfg", guidance_scale=4.0,
)  # fmt: skip
# The schedule of Stable Diffusion 2 (512-pixel base), with the paper's steps and guidance (Sec. 4).
SD2 = SamplerSpec(
    prediction_type="epsilon", num_train_timesteps=1000,
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
    rescale_zero_snr=False, timestep_spacing="leading",
    steps=50, guidance="m-cfg", guidance_scale=4.0,
)  # fmt: skip
SHARP = "sharp detailed photo"
"""Caption of an ordinary target in training."""
BLURRY = "blurry noisy low quality photo"
"""Caption of a deliberately blurred target in training."""

MICRO_TRUNK = TrunkConfig(widths=(4, 4, 8), blocks=(0, 1, 0))
"""Trunk of the classifiers of preset `micro`."""

# fmt: off
PRESETS: dict[str, Preset] = {
    "micro": Preset(
        name="micro", dim=32, tile=32, overlap=8, residual=True,
        autoencoder=AutoencoderConfig(
            "slim", channels=4, width=16,
            encoder_blocks=(1, 1), lr_blocks=(1, 1), decoder_blocks=(1, 1, 1),
            compact_layers=2, compact_width=8, dense_blocks=1, dense_width=8,
            degradation=True, aligned=ALIGNED,
        ),
        tokenizer=TokenizerConfig((8, 8, 16), blocks=(1, 1, 1), codes=32),
        text=TextConfig("hashed-words", vocab_size=64, layers=1, heads=2),
        connector=ConnectorConfig(latents=16, heads=2, blocks=1, relative=True),
        unet=UNetConfig(
            (16, 32), attention=(False, True),
            layers_per_block=1, heads=(2, 4), norm_groups=4,
            positions=True, aligned=ALIGNED,
        ),
        depth=DepthConfig(widths=(4, 4, 8), blocks=(0, 1, 1), decoder=(8, 4)),
        segmentation=SegmentationConfig(classes=3, trunk=MICRO_TRUNK, width=4),
        captioner=TaggerConfig(tags=4, trunk=MICRO_TRUNK, width=8),
        degradation=DegradationConfig(fine=4, widths=(4, 8), blocks=(0, 1), heads=1, hidden=8),
        sampler=ZERO_SNR, positive=SHARP, negative=BLURRY,
    ),
    "nano": Preset(
        name="nano", dim=256, tile=128, overlap=16, residual=True,
        autoencoder=AutoencoderConfig(
            "slim", channels=16, width=128,
            encoder_blocks=(2, 3), lr_blocks=(2, 5), decoder_blocks=(4, 4, 2),
            compact_layers=32, degradation=True, aligned=ALIGNED,
        ),
        tokenizer=TokenizerConfig((32, 64, 128), blocks=(1, 2, 2)),
        text=TextConfig("hashed-words", vocab_size=4096, layers=2, heads=4),
        connector=ConnectorConfig(latents=128, heads=4, blocks=3, relative=True),
        unet=UNetConfig(
            (64, 128, 256, 256), attention=(False, True, True, False),
            layers_per_block=1, heads=(2, 4, 8, 8), positions=True, aligned=ALIGNED,
        ),
        depth=DepthConfig(),
        segmentation=SegmentationConfig(classes=35),
        captioner=TaggerConfig(tags=103),
        degradation=DegradationConfig(),
        sampler=ZERO_SNR, positive=SHARP, negative=BLURRY,
    ),
    "sd2": Preset(
        name="sd2", dim=1024, tile=128, overlap=16, residual=False,
        autoencoder=AutoencoderConfig(
            "kl", channels=4, width=512,
            encoder_blocks=(0, 0), lr_blocks=(0, 0), decoder_blocks=(0, 0, 0),
            block_out_channels=(128, 256, 512, 512),
        ),
        tokenizer=TokenizerConfig(
            (128, 128, 256, 256, 512), layers_per_block=2, attention=True
        ),
        text=TextConfig("clip-bpe", vocab_size=49408, layers=23, heads=16),
        connector=ConnectorConfig(latents=128, heads=8, blocks=4),
        unet=UNetConfig(
            (320, 640, 1280, 1280), attention=(True, True, True, False),
            layers_per_block=2, heads=(5, 10, 20, 20),
        ),
        depth=None, segmentation=None, captioner=None, degradation=None,
        sampler=SD2, positive=SHARP, negative=BLURRY,
    ),
}
# fmt: on
PRESETS["small"] = replace(
    PRESETS["nano"],
    name="small",
    autoencoder=replace(PRESETS["nano"].autoencoder, dense_blocks=6, dense_tail="full"),
)
PRESETS["nano-bare"] = replace(
    PRESETS["nano"], name="nano-bare", connector=ConnectorConfig(latents=0, heads=4, blocks=0)
)


def preset(name: str) -> Preset:
    """Look up a preset.

    Raises:
        OptionError: the name is not in the table.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise OptionError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}") from None
