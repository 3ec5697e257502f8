"""Export settings by component: quantization, index outputs, and whether bundles contain it.

`mmsr_edge.models.signatures` has the inputs and outputs of each component.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsr_edge.converters.quantize import QuantConfig
from mmsr_edge.errors import OptionError


@dataclass(frozen=True)
class Component:
    """Export settings of one component."""

    quantization: QuantConfig | None = None
    """Recipe for int8 and int4; None: the component stays float."""
    codes: str | None = None
    """Name of the output with indices [1, n] that select the rows of the others, [1, n, ·]."""
    shipped: bool = True
    """Whether bundles contain it by default; otherwise it is exported on request only."""
    exact: tuple[str, ...] = ()
    """Operations that Core ML computes in float32 even at float16."""


# Float layers: the first and last, because no other layer averages out their quantization error;
# all that carry the timestep (TFMQ, arXiv 2311.16503); and attention's output projections, because
# their input ranges differ most between tokens. Norms, softmax and attention's own products have no
# weights and are never quantized (`QuantConfig`).
UNET_FLOAT = (
    r"\bconv_in$",
    r"\bconv_out$",
    r"\btime_embedding\b",
    r"\btime_emb_proj$",
    r"\bto_out\b",
)
ENCODER_FLOAT = (r"^quarter\.1$|\bconv_in$", r"^out$|\bconv_out$|\bquant_conv$")
# The decoder's fixed interpolations too: they carry the LR picture, and shares from 0 to 1.
DECODER_FLOAT = (
    r"^compact\.|^eighth\.0$|\bconv_in$|\bpost_quant_conv$",
    r"^(enlarged|spread_\w+|share_\w+|gate|dense\.(first|last|shown))$|\bconv_in$",
    r"^out\.0$|\bconv_out$",
)

# The modality networks are small and run once per picture. With int8 activations they miss their
# gates by far (depth 13 dB, segmentation 89 % equal classes) and are no faster.
WEIGHTS_ALONE = QuantConfig(activations="float")
# Float layers: the first, exported under the name of the BatchNorm folded into it, and `whole`,
# which passes global context to every pixel.
DEPTH_WEIGHTS = QuantConfig(activations="float", keep_float=(r"^down\.0\.0\.[01]$", r"^whole$"))

COMPONENTS: dict[str, Component] = {
    "depth": Component(quantization=DEPTH_WEIGHTS),
    "segmentation": Component(quantization=WEIGHTS_ALONE),
    "captioner": Component(quantization=WEIGHTS_ALONE),
    "degradation": Component(),
    "lr_encoder": Component(
        quantization=QuantConfig(keep_float=ENCODER_FLOAT, tool="onnxruntime"),
    ),
    "tokenizer": Component(
        codes="indices",
        exact=("linear", "reduce_argmin"),  # distances to the codes, which are close together
    ),
    "text_encoder": Component(),
    "connector": Component(),
    "unet": Component(quantization=QuantConfig(keep_float=UNET_FLOAT)),
    "diffusion_unet": Component(shipped=False),
    "decoder": Component(
        quantization=QuantConfig(keep_float=DECODER_FLOAT, tool="onnxruntime"),
    ),
    "hr_encoder": Component(shipped=False),
}
"""Settings by name, in the order of the pipeline."""


def component(name: str) -> Component:
    """Look up the settings of a component.

    Raises:
        OptionError: the name is unknown.
    """
    try:
        return COMPONENTS[name]
    except KeyError:
        raise OptionError(
            f"unknown component {name!r}; there are {', '.join(COMPONENTS)}"
        ) from None
