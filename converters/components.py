"""The table of components: how each is quantized, and which are shipped.

What goes in and out of a component is `mmsr_edge.models.signatures`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsr_edge.converters.quantize import QuantConfig
from mmsr_edge.errors import OptionError


@dataclass(frozen=True)
class Component:
    """One network as converters see it."""

    quantization: QuantConfig | None = None
    """How to make it int8; None: it stays float."""
    codes: str | None = None
    """Output that holds indices [1, n], by which the others [1, n, ·] are looked up."""
    shipped: bool = True
    """Whether a bundle needs it; otherwise it is exported on request only."""
    exact: tuple[str, ...] = ()
    """Operations that Core ML computes in float32 also where float16 is asked for."""


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
    "depth": Component(quantization=DEPTH_WEIGHTS),
    "segmentation": Component(quantization=WEIGHTS_ALONE),
    "captioner": Component(quantization=WEIGHTS_ALONE),
    "lr_encoder": Component(
        quantization=QuantConfig(keep_float=ENCODER_FLOAT, tool="onnxruntime"),
    ),
    "tokenizer": Component(
        codes="indices",
        exact=("linear", "reduce_argmin"),  # distances to codes, which lie close together
    ),
    "text_encoder": Component(),
    "connector": Component(),
    "unet": Component(quantization=QuantConfig(keep_float=UNET_FLOAT)),
    "decoder": Component(
        quantization=QuantConfig(keep_float=DECODER_FLOAT, tool="onnxruntime"),
    ),
    "hr_encoder": Component(shipped=False),
}
"""Settings by name; the order is that of the pipeline."""


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
