"""The contract between components: their roles, names, and how their shapes agree.

A bundle that breaks it is refused when opened, rather than in the middle of a picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsr_edge.errors import BundleError

if TYPE_CHECKING:
    from mmsr_edge.manifest import Manifest, TensorSpec

REQUIRED = ("lr_encoder", "tokenizer", "text_encoder", "connector", "unet", "decoder")
"""Components without which there is no picture."""

OPTIONAL = ("depth", "segmentation", "captioner", "caption_decoder", "hr_encoder")
"""Components that a bundle may lack: the modality is absent, or comes from the caller."""

MODALITIES = ("text", "depth", "segmentation", "edges")
"""Order of the columns of `present` and `temperature`."""

# Shapes by symbol. t: tile side, c: latent channels, l: latent side, o: output side; s: side of a
# map, n: tokens to a map, w: their width, i: ids to a prompt, d: text width, m: learned latents,
# k: context width, q: tags; y: keys and values of all layers of a caption decoder, h: heads, e:
# their width, p: what it sees of the picture, r: what it remembers of the text, v: its vocabulary.
# The first four and `i` follow from the manifest, the others from first use.
_F, _I = "float32", "int64"
_CONTRACT: dict[str, tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]] = {
    "lr_encoder": ({"lr": ("1 3 t t", _F)}, {"lr_latent": ("1 c l l", _F)}),
    "tokenizer": ({"map": ("1 3 s s", _F)}, {"tokens": ("1 n w", _F), "indices": ("1 n", _I)}),
    "text_encoder": ({"ids": ("1 i", _I)}, {"text": ("1 i d", _F)}),
    "connector": (
        {
            "text": ("1 i d", _F),
            "depth_tokens": ("1 n w", _F),
            "segmentation_tokens": ("1 n w", _F),
            "edge_tokens": ("1 n w", _F),
            "present": ("1 4", _F),
            "temperature": ("1 4", _F),
        },
        {"context": ("1 m k", _F)},
    ),
    "unet": (
        {
            "latent": ("1 2c l l", _F),
            "timestep": ("1", _F),
            "context": ("1 m k", _F),
            "guidance": ("1", _F),
        },
        {"prediction": ("1 c l l", _F)},
    ),
    "decoder": (
        {"latent": ("1 c l l", _F), "lr": ("1 3 t t", _F)},
        {"image": ("1 3 o o", _F)},
    ),
    "hr_encoder": ({"image": ("1 3 o o", _F)}, {"latent": ("1 c l l", _F)}),
    "depth": ({"image": ("1 3 s s", _F)}, {"depth": ("1 1 s s", _F)}),
    "segmentation": ({"image": ("1 3 s s", _F)}, {"classes": ("1 s s", _I)}),
    "captioner": ({"image": ("1 3 s s", _F)}, {"scores": ("1 q", _F)}),
    "caption_decoder": (
        {
            "ids": ("1 1", _I),
            "position": ("1", _I),
            "states": ("1 y h p e", _F),
            "past": ("1 y h r e", _F),
        },
        {"logits": ("1 v", _F), "column": ("1 y h 1 e", _F)},
    ),
}
# A captioner that writes sentences: what it sees is read by a caption decoder.
_CAPTION_ENCODER = ({"image": ("1 3 s s", _F)}, {"states": ("1 y h p e", _F)})
# Inputs that are there only where w is one, and where the decoder looks at the LR picture too.
_MAY_LACK = {("unet", "guidance"), ("decoder", "lr")}


def check_components(manifest: Manifest) -> None:
    """Check that roles are known, none is missing, and the tensors fit together.

    Raises:
        BundleError: naming the component and tensor that do not.
    """
    components = manifest.components
    missing = [name for name in REQUIRED if name not in components]
    if missing:
        raise BundleError(f"components lack {', '.join(missing)}; export the bundle again")
    if "caption_decoder" in components and "captioner" not in components:
        raise BundleError("component 'caption_decoder' needs a 'captioner' to see the picture")
    side = manifest.tile.size * manifest.scale
    if manifest.scale < 1 or side % manifest.latent.factor:
        raise BundleError(
            f"output side {side} (tile size {manifest.tile.size} x scale {manifest.scale}) must be "
            f"a positive multiple of the latent factor {manifest.latent.factor}"
        )
    sizes = {
        "t": manifest.tile.size,
        "c": manifest.latent.channels,
        "2c": 2 * manifest.latent.channels,
        "l": side // manifest.latent.factor,
        "o": side,
        "i": manifest.text.length,
    }
    for name, component in components.items():
        if name not in REQUIRED + OPTIONAL:
            known = ", ".join(REQUIRED + OPTIONAL)
            raise BundleError(f"component {name!r} is unknown; the roles are {known}")
        if component.name != name:
            raise BundleError(f"component {name!r} calls itself {component.name!r}")
        inputs, outputs = _CONTRACT[name]
        if name == "captioner" and "caption_decoder" in components:
            inputs, outputs = _CAPTION_ENCODER
        _check_tensors(name, "input", component.inputs, inputs, sizes)
        _check_tensors(name, "output", component.outputs, outputs, sizes)
    tagger = components.get("captioner")
    if (
        tagger is not None
        and "caption_decoder" not in components
        and len(tagger.labels) != sizes["q"]
    ):
        raise BundleError(
            f"component 'captioner' has {len(tagger.labels)} labels for {sizes['q']} scores"
        )


def _check_tensors(
    component: str,
    kind: str,
    found: tuple[TensorSpec, ...],
    wanted: dict[str, tuple[str, str]],
    sizes: dict[str, int],
) -> None:
    names = {tensor.name for tensor in found}
    needed = {name for name in wanted if (component, name) not in _MAY_LACK}
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
