"""The table of components: what goes in, what comes out, what is quantized and what is shipped.

Value ranges of the inputs are those of the contract (pictures and maps RGB in [-1, 1]); the draws
below stand in for recorded inputs where there are none, and give every exporter its shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsr_edge.converters.quantize import QuantConfig
from mmsr_edge.errors import OptionError
from mmsr_edge.models.autoencoder import FACTOR, SCALE
from mmsr_edge.models.connector import MODALITIES
from mmsr_edge.models.presets import MAP_TOKENS, Preset

MAP_SIDE = 256
"""Side of a modality map."""

Array = NDArray[Any]
Draw = Callable[[Preset, np.random.Generator], Array]


@dataclass(frozen=True)
class Component:
    """One network as converters see it."""

    inputs: Mapping[str, Draw]
    """By name, in the order of the network's arguments: how to draw one."""
    outputs: tuple[str, ...]
    """Names, in the order of the network's results."""
    quantization: QuantConfig | None = None
    """How to make it int8; None: it stays float."""
    codes: str | None = None
    """Output that holds indices [1, n], for which the others [1, n, ·] are looked up."""
    shipped: bool = True
    """Whether a bundle needs it; otherwise it is exported on request only."""
    exact: tuple[str, ...] = ()
    """Operations that Core ML computes in float32 also where float16 is asked for."""
    sometimes: Mapping[str, Callable[[Preset], bool]] = field(default_factory=dict)
    """Inputs that not every preset's network takes, and whether one does."""

    def draw(self, preset: Preset, rng: np.random.Generator) -> dict[str, Array]:
        """One set of inputs, batch 1."""
        return {
            name: draw(preset, rng)
            for name, draw in self.inputs.items()
            if name not in self.sometimes or self.sometimes[name](preset)
        }


def _latent_side(p: Preset) -> int:
    return p.tile * SCALE // FACTOR


def _normal(*shape: Callable[[Preset], int] | int) -> Draw:
    def draw(p: Preset, rng: np.random.Generator) -> Array:
        sizes = (1, *(size if isinstance(size, int) else size(p) for size in shape))
        return rng.standard_normal(sizes, np.float32)

    return draw


def _picture(side: Callable[[Preset], int]) -> Draw:
    """Coloured noise: coarse blobs with fine detail on them, as pictures have both."""

    def draw(p: Preset, rng: np.random.Generator) -> Array:
        n = side(p)
        coarse = rng.uniform(-1, 1, (1, 3, n // 8 + 1, n // 8 + 1)).repeat(8, 2).repeat(8, 3)
        fine = rng.normal(0, 0.1, (1, 3, n, n))
        return (coarse[..., :n, :n] + fine).clip(-1, 1).astype(np.float32)

    return draw


def _ids(p: Preset, rng: np.random.Generator) -> Array:
    """Start, a few words, end, padding."""
    words = int(rng.integers(0, 12))
    ids = np.zeros((1, p.text.length), np.int64)
    ids[0, : words + 2] = [1, *rng.integers(3, p.text.vocab_size, words), 2]
    return ids


def _present(_: Preset, rng: np.random.Generator) -> Array:
    return (rng.random((1, len(MODALITIES))) < 0.7).astype(np.float32)


def _temperature(_: Preset, rng: np.random.Generator) -> Array:
    """Log-uniform over the allowed range (Sec. 3.2)."""
    return np.exp(rng.uniform(np.log(0.4), np.log(10), (1, len(MODALITIES)))).astype(np.float32)


def _timestep(p: Preset, rng: np.random.Generator) -> Array:
    return rng.integers(0, p.sampler.num_train_timesteps, 1).astype(np.float32)


def _channels(p: Preset) -> int:
    return p.autoencoder.channels


_latent = _normal(_channels, _latent_side, _latent_side)
_tokens = _normal(MAP_TOKENS, lambda p: p.tokenizer.width)

# In float: the layers that read and write latents and pixels, whose rounding nothing averages out;
# everything that carries the timestep (TFMQ, arXiv 2311.16503); attention's output projections,
# whose inputs' ranges differ most between tokens. Norms, softmax and attention's own products have
# no weights and are never quantized (`QuantConfig`).
UNET_FLOAT = (
    r"\bconv_in$",
    r"\bconv_out$",
    r"\btime_embedding\b",
    r"\btime_emb_proj$",
    r"\bto_out\b",
)
ENCODER_FLOAT = (r"^quarter\.1$|\bconv_in$", r"^out$|\bconv_out$|\bquant_conv$")
DECODER_FLOAT = (
    r"^compact\.|^eighth\.0$|\bconv_in$|\bpost_quant_conv$",
    r"^out\.0$|\bconv_out$",
)

# The small networks that see the whole picture run once for it. With int8 activations they fall far
# short of the gates (depth 13 dB, segmentation 89 % of its classes) and are no faster.
WEIGHTS_ALONE = QuantConfig(activations="float")
# In float: the layer that reads pixels, which goes by the name of the BatchNorm that was folded
# into it, and the one that tells every pixel of the whole picture.
DEPTH_WEIGHTS = QuantConfig(activations="float", keep_float=(r"^down\.0\.0\.[01]$", r"^whole$"))

COMPONENTS: dict[str, Component] = {
    "depth": Component(
        {"image": _picture(lambda _: MAP_SIDE)},
        ("depth",),
        quantization=DEPTH_WEIGHTS,
    ),
    "segmentation": Component(
        {"image": _picture(lambda _: MAP_SIDE)},
        ("classes",),
        quantization=WEIGHTS_ALONE,
    ),
    "captioner": Component(
        {"image": _picture(lambda _: MAP_SIDE)},
        ("scores",),
        quantization=WEIGHTS_ALONE,
    ),
    "lr_encoder": Component(
        {"lr": _picture(lambda p: p.tile)},
        ("lr_latent",),
        quantization=QuantConfig(keep_float=ENCODER_FLOAT, tool="onnxruntime"),
    ),
    "tokenizer": Component(
        {"map": _picture(lambda _: MAP_SIDE)},
        ("tokens", "indices"),
        codes="indices",
        exact=("linear", "reduce_argmin"),  # distances to codes, which lie close together
    ),
    "text_encoder": Component({"ids": _ids}, ("text",)),
    "connector": Component(
        {
            "text": _normal(lambda p: p.text.length, lambda p: p.dim),
            "depth_tokens": _tokens,
            "segmentation_tokens": _tokens,
            "edge_tokens": _tokens,
            "present": _present,
            "temperature": _temperature,
        },
        ("context",),
    ),
    "unet": Component(
        {
            "latent": _normal(lambda p: 2 * _channels(p), _latent_side, _latent_side),
            "timestep": _timestep,
            "context": _normal(lambda p: p.context_tokens, lambda p: p.dim),
        },
        ("prediction",),
        quantization=QuantConfig(keep_float=UNET_FLOAT),
    ),
    "decoder": Component(
        {"latent": _latent, "lr": _picture(lambda p: p.tile)},
        ("image",),
        quantization=QuantConfig(keep_float=DECODER_FLOAT, tool="onnxruntime"),
        sometimes={"lr": lambda p: p.autoencoder.compact_layers > 0},
    ),
    "hr_encoder": Component(
        {"image": _picture(lambda p: p.tile * SCALE)}, ("latent",), shipped=False
    ),
}
"""By name; the order is that of the pipeline."""


def component(name: str) -> Component:
    """Look up a component.

    Raises:
        OptionError: for a name that is not in the table.
    """
    try:
        return COMPONENTS[name]
    except KeyError:
        raise OptionError(
            f"unknown component {name!r}; there are {', '.join(COMPONENTS)}"
        ) from None
