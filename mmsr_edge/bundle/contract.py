"""The contract between components: roles, names of tensors, and how their shapes agree.

A bundle that breaks the contract is refused when it is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mmsr_edge.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmsr_edge.bundle.specs import ComponentSpec, LatentSpec, TensorSpec, TextSpec, TileSpec

__all__ = [
    "ALIGNED",
    "CONTRACT",
    "EDGE_PARTS",
    "LEVELS",
    "MAPS",
    "MAP_SIDE",
    "MAP_TOKENS",
    "MODALITIES",
    "OPTIONAL",
    "REQUIRED",
    "TOKEN_INPUTS",
    "UNETS",
    "Signature",
    "check_components",
]

REQUIRED = ("lr_encoder", "tokenizer", "text_encoder", "connector", "unet", "decoder")
"""Components that every bundle must have."""

OPTIONAL = (
    "depth",
    "segmentation",
    "captioner",
    "caption_decoder",
    "degradation",
    "hr_encoder",
    "diffusion_unet",
)
"""Components that a bundle may lack. A modality without its network is absent, or the caller's, and
so are the levels of degradation."""

UNETS = ("unet", "diffusion_unet")
"""Roles of UNets: the only one or the distilled student, and the diffusion that it was distilled
from. `Manifest.unets` says which serves how many steps."""

MODALITIES = ("text", "depth", "segmentation", "edges")
"""Modalities, in the order of the columns of `present` and `temperature`."""

MAPS = MODALITIES[1:]
"""The modalities that are pictures."""

TOKEN_INPUTS = {
    "depth": "depth_tokens",
    "segmentation": "segmentation_tokens",
    "edges": "edge_tokens",
}
"""The connector's input for the tokens of each map."""

LEVELS = ("noise", "blur", "jpeg")
"""What a picture is degraded by, in the order of the columns of `levels` and `degradation`. A level
is a number from 0, none, to 1."""

MAP_SIDE = 256
"""Side in pixels of the maps that the trained networks take (Sec. 3.1)."""

MAP_TOKENS = 256
"""Tokens of one map: 16 × 16 (Sec. 3.1)."""

EDGE_PARTS = 4
"""Parts along a side of a latent cell, whose edges the UNet's input `aligned` tells apart."""

ALIGNED = 4 + EDGE_PARTS**2 + len(MAPS)
"""a, channels of `aligned`: one of depth, three of segmentation, one of edges for each part, and
for each map one of where its temperature acts."""

_FLOAT, _INT = "float32", "int64"


class Signature(NamedTuple):
    """Inputs and outputs of a component by name, in order: the symbols of the shape, and the dtype.

    Symbols: t tile side, c latent channels, l latent side, o output side; s map side, n tokens of a
    map, w their width, i ids of a prompt, d text width, m learned latents, k context width, q tags.
    Symbols of a caption decoder: y keys and values of all layers, h heads, e their width,
    p positions of the picture, r positions of the text that are kept, v vocabulary.
    The manifest gives the sizes of t, c, l, o and i. Every other symbol takes the size of its first
    use in the bundle.
    """

    inputs: dict[str, tuple[str, str]]
    """Inputs, in the order of the network's arguments."""
    outputs: dict[str, tuple[str, str]]
    """Outputs, in the order of the network's results."""


_UNET = Signature(
    {
        "latent": ("1 2c l l", _FLOAT),
        "timestep": ("1", _FLOAT),
        "context": ("1 m k", _FLOAT),
        "aligned": (f"1 {ALIGNED} l l", _FLOAT),
        "guidance": ("1", _FLOAT),
    },
    {"prediction": ("1 c l l", _FLOAT)},
)

CONTRACT: dict[str, Signature] = {
    "lr_encoder": Signature(
        {"lr": ("1 3 t t", _FLOAT)},
        {"lr_latent": ("1 c l l", _FLOAT)},
    ),
    "tokenizer": Signature(
        {"map": ("1 3 s s", _FLOAT)},
        {"tokens": ("1 n w", _FLOAT), "indices": ("1 n", _INT)},
    ),
    "text_encoder": Signature(
        {"ids": ("1 i", _INT)},
        {"text": ("1 i d", _FLOAT)},
    ),
    "connector": Signature(
        {
            "text": ("1 i d", _FLOAT),
            **dict.fromkeys(TOKEN_INPUTS.values(), ("1 n w", _FLOAT)),
            "present": ("1 4", _FLOAT),
            "temperature": ("1 4", _FLOAT),
        },
        {"context": ("1 m k", _FLOAT)},
    ),
    **dict.fromkeys(UNETS, _UNET),
    "decoder": Signature(
        {
            "latent": ("1 c l l", _FLOAT),
            "lr": ("1 3 t t", _FLOAT),
            "degradation": ("1 8", _FLOAT),
            "aligned": (f"1 {ALIGNED} l l", _FLOAT),
        },
        {"image": ("1 3 o o", _FLOAT)},
    ),
    "degradation": Signature(
        {"image": ("1 3 t t", _FLOAT)},
        {"levels": ("1 3", _FLOAT)},
    ),
    "hr_encoder": Signature(
        {"image": ("1 3 o o", _FLOAT)},
        {"latent": ("1 c l l", _FLOAT)},
    ),
    "depth": Signature(
        {"image": ("1 3 s s", _FLOAT)},
        {"depth": ("1 1 s s", _FLOAT)},
    ),
    "segmentation": Signature(
        {"image": ("1 3 s s", _FLOAT)},
        {"classes": ("1 s s", _INT)},
    ),
    "captioner": Signature(
        {"image": ("1 3 s s", _FLOAT)},
        {"scores": ("1 q", _FLOAT)},
    ),
    "caption_decoder": Signature(
        {
            "ids": ("1 1", _INT),
            "position": ("1", _INT),
            "states": ("1 y h p e", _FLOAT),
            "past": ("1 y h r e", _FLOAT),
        },
        {"logits": ("1 v", _FLOAT), "column": ("1 y h 1 e", _FLOAT)},
    ),
}
"""The tensors of every component, by role."""

# A captioner that writes sentences: a caption decoder reads its states of the picture.
_CAPTION_ENCODER = Signature({"image": ("1 3 s s", _FLOAT)}, {"states": ("1 y h p e", _FLOAT)})
# Inputs that a network may lack: the UNets' aligned maps and guidance scale, and the decoder's LR
# picture, levels of degradation and aligned maps.
_OPTIONAL_INPUTS = {
    *((unet, name) for unet in UNETS for name in ("aligned", "guidance")),
    *(("decoder", name) for name in ("lr", "degradation", "aligned")),
}


def check_components(
    components: Mapping[str, ComponentSpec],
    *,
    scale: int,
    tile: TileSpec,
    latent: LatentSpec,
    text: TextSpec,
) -> None:
    """Check that the roles are known and complete, and that the tensors fit together.

    Args:
        components: networks by role.
        scale, tile, latent, text: the manifest's fields of these names.

    Raises:
        BundleError: the contract is broken; the message names the component and tensor.
    """
    missing = [name for name in REQUIRED if name not in components]
    if missing:
        raise BundleError(f"components lack {', '.join(missing)}; export the bundle again")
    if "caption_decoder" in components and "captioner" not in components:
        raise BundleError("component 'caption_decoder' needs a 'captioner' that reads the picture")
    side = tile.size * scale
    if scale < 1 or side % latent.factor:
        raise BundleError(
            f"output side {side} (tile size {tile.size} x scale {scale}) must be "
            f"a positive multiple of the latent factor {latent.factor}"
        )
    sizes = {
        "t": tile.size,
        "c": latent.channels,
        "2c": 2 * latent.channels,
        "l": side // latent.factor,
        "o": side,
        "i": text.length,
    }
    for name, component in components.items():
        if name not in REQUIRED + OPTIONAL:
            known = ", ".join(REQUIRED + OPTIONAL)
            raise BundleError(f"component {name!r} is unknown; the roles are {known}")
        if component.name != name:
            raise BundleError(f"component {name!r} has the name {component.name!r}")
        inputs, outputs = CONTRACT[name]
        if name == "captioner" and "caption_decoder" in components:
            inputs, outputs = _CAPTION_ENCODER
        _check_tensors(name, "input", component.inputs, inputs, sizes)
        _check_tensors(name, "output", component.outputs, outputs, sizes)
    _check_aligned(components, sizes)
    tagger = components.get("captioner")
    if (
        tagger is not None
        and "caption_decoder" not in components
        and len(tagger.labels) != sizes["q"]
    ):
        raise BundleError(
            f"component 'captioner' has {len(tagger.labels)} labels for {sizes['q']} scores"
        )


def _check_aligned(components: Mapping[str, ComponentSpec], sizes: dict[str, int]) -> None:
    """Check that maps can be reduced to a latent cell's parts where `aligned` is taken."""
    parts = EDGE_PARTS * sizes["l"]
    for name in (*UNETS, "decoder"):
        if name in components and components[name].takes("aligned") and sizes["s"] % parts:
            raise BundleError(
                f"component {name!r} takes 'aligned' maps, with {EDGE_PARTS} x {EDGE_PARTS} parts "
                f"to each of {sizes['l']} x {sizes['l']} latent cells, but the tokenizer's maps "
                f"have {sizes['s']} pixels a side; they need a multiple of {parts}"
            )


def _check_tensors(
    component: str,
    kind: str,
    found: tuple[TensorSpec, ...],
    wanted: dict[str, tuple[str, str]],
    sizes: dict[str, int],
) -> None:
    names = {tensor.name for tensor in found}
    needed = {name for name in wanted if (component, name) not in _OPTIONAL_INPUTS}
    if not needed <= names <= set(wanted):
        raise BundleError(
            f"component {component!r} has {kind}s {sorted(names)}, expected {sorted(needed)}"
        )
    for tensor in found:
        symbols, dtype = wanted[tensor.name][0].split(), wanted[tensor.name][1]
        if len(tensor.shape) == len(symbols):
            expected = tuple(
                int(symbol) if symbol.isdecimal() else sizes.setdefault(symbol, size)
                for symbol, size in zip(symbols, tensor.shape, strict=True)
            )
            if tensor.shape == expected and tensor.dtype == dtype:
                continue
        form = ", ".join(str(sizes.get(symbol, symbol)) for symbol in symbols)
        raise BundleError(
            f"component {component!r}: {kind} {tensor.name!r} is {tensor.dtype} "
            f"{list(tensor.shape)}, expected {dtype} [{form}]"
        )
