"""From a preset to the component networks, by the names that a bundle gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mmsr_edge.errors import OptionError
from mmsr_edge.models.autoencoder import FACTOR, SCALE, build_autoencoder
from mmsr_edge.models.caption import build_tagger
from mmsr_edge.models.connector import Connector
from mmsr_edge.models.depth import build_depth
from mmsr_edge.models.presets import Preset, preset
from mmsr_edge.models.segmentation import build_segmentation
from mmsr_edge.models.text import TextEncoder
from mmsr_edge.models.tokenizer import Tokenizer
from mmsr_edge.models.unet import UNet

COMPONENTS = (
    "depth",
    "segmentation",
    "captioner",
    "hr_encoder",
    "lr_encoder",
    "tokenizer",
    "text_encoder",
    "connector",
    "unet",
    "decoder",
)
"""All of a checkpoint; devices do without `hr_encoder`, and some presets lack the first three."""
LOOKERS: dict[str, Callable[[Any], nn.Module]] = {
    "depth": build_depth,
    "segmentation": build_segmentation,
    "captioner": build_tagger,
}
"""Those that look at the whole picture, and how each is built."""


def preset_components(p: Preset) -> tuple[str, ...]:
    """Names of the components that a preset has."""
    return tuple(n for n in COMPONENTS if n not in LOOKERS or getattr(p, n) is not None)


def _build(name: str, p: Preset) -> nn.Module:
    if name in ("hr_encoder", "lr_encoder", "decoder"):
        return build_autoencoder(p.autoencoder)[name]
    if name == "tokenizer":
        return Tokenizer(p.tokenizer)
    if name == "text_encoder":
        return TextEncoder(p.text, p.dim)
    if name == "connector":
        return Connector(p.connector, p.dim, p.tokenizer.width, p.text.length)
    if name == "unet":
        return UNet(p.unet, p.autoencoder.channels, p.dim, p.tile * SCALE // FACTOR)
    if name in LOOKERS:
        build, config = LOOKERS[name], getattr(p, name)
        if config is None:
            raise OptionError(f"preset {p.name!r} has no {name!r} of its own")
        return build(config)
    raise OptionError(f"unknown component {name!r}; there are {', '.join(COMPONENTS)}")


def build_component(name: str, preset_name: str) -> nn.Module:
    """Build one network with fresh weights, in evaluation mode.

    Raises:
        OptionError: for an unknown component or preset.
    """
    return _build(name, preset(preset_name)).eval()


def build_networks(preset_name: str) -> dict[str, nn.Module]:
    """Build every component of a preset."""
    p = preset(preset_name)
    networks: dict[str, nn.Module] = dict(build_autoencoder(p.autoencoder))
    names = preset_components(p)
    for name in names:
        if name not in networks:
            networks[name] = _build(name, p)
    return {name: networks[name].eval() for name in names}
