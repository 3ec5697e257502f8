"""Builds the networks of a preset, by component name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mmsr_edge.errors import OptionError
from mmsr_edge.models.autoencoder import FACTOR, SCALE, build_autoencoder
from mmsr_edge.models.caption import build_tagger
from mmsr_edge.models.connector import Connector
from mmsr_edge.models.degradation import build_degradation
from mmsr_edge.models.depth import build_depth
from mmsr_edge.models.diffusion_unet import DiffusionUNet
from mmsr_edge.models.presets import Preset, preset
from mmsr_edge.models.segmentation import build_segmentation
from mmsr_edge.models.text import TextEncoder
from mmsr_edge.models.tokenizer import Tokenizer
from mmsr_edge.models.unet import UNet
from mmsr_edge.sampler import make_schedule

__all__ = [
    "COMPONENTS",
    "MODALITY_NETWORKS",
    "PICTURE_NETWORKS",
    "build_component",
    "build_networks",
    "preset_components",
]

MODALITY_NETWORKS = ("depth", "segmentation", "captioner")
"""Networks that make a modality from the whole picture; some presets lack them."""

PICTURE_NETWORKS = (*MODALITY_NETWORKS, "degradation")
"""Networks that run before a picture's tiles; some presets lack them."""


def _picture(name: str, build: Callable[[Any], nn.Module]) -> Callable[[Preset], nn.Module]:
    def built(p: Preset) -> nn.Module:
        config = getattr(p, name)
        if config is None:
            raise OptionError(f"preset {p.name!r} has no {name!r} network")
        return build(config)

    return built


def _unet(p: Preset) -> nn.Module:
    return UNet(p.unet, p.autoencoder.channels, p.dim, p.tile * SCALE // FACTOR)


def _diffusion_unet(p: Preset) -> nn.Module:
    alphas = torch.from_numpy(make_schedule(p.sampler).alphas_cumprod).float()
    side = p.tile * SCALE // FACTOR
    return DiffusionUNet(p.unet, p.autoencoder.channels, p.dim, side, alphas)


def _autoencoder(name: str) -> Callable[[Preset], nn.Module]:
    return lambda p: build_autoencoder(p.autoencoder)[name]


_BUILDERS: dict[str, Callable[[Preset], nn.Module]] = {
    "depth": _picture("depth", build_depth),
    "segmentation": _picture("segmentation", build_segmentation),
    "captioner": _picture("captioner", build_tagger),
    "degradation": _picture("degradation", build_degradation),
    "hr_encoder": _autoencoder("hr_encoder"),
    "lr_encoder": _autoencoder("lr_encoder"),
    "tokenizer": lambda p: Tokenizer(p.tokenizer),
    "text_encoder": lambda p: TextEncoder(p.text, p.dim),
    "connector": lambda p: Connector(p.connector, p.dim, p.tokenizer.width, p.text.length),
    "unet": _unet,
    "diffusion_unet": _diffusion_unet,
    "decoder": _autoencoder("decoder"),
}

COMPONENTS = tuple(_BUILDERS)
"""All components of a checkpoint. A device bundle has no `hr_encoder`, and `diffusion_unet` is only
there where another UNet was distilled from it."""


def preset_components(p: Preset) -> tuple[str, ...]:
    """Names of the components that every checkpoint of a preset has."""
    absent = {n for n in PICTURE_NETWORKS if getattr(p, n) is None} | {"diffusion_unet"}
    return tuple(n for n in COMPONENTS if n not in absent)


def build_component(name: str, preset_name: str) -> nn.Module:
    """Build one network with fresh weights, in evaluation mode.

    Raises:
        OptionError: the component or the preset is unknown, or the preset lacks the component.
    """
    if name not in _BUILDERS:
        raise OptionError(f"unknown component {name!r}; there are {', '.join(COMPONENTS)}")
    return _BUILDERS[name](preset(preset_name)).eval()


def build_networks(preset_name: str) -> dict[str, nn.Module]:
    """Build the `preset_components` with fresh weights, in evaluation mode."""
    p = preset(preset_name)
    networks: dict[str, nn.Module] = dict(build_autoencoder(p.autoencoder))
    names = preset_components(p)
    for name in names:
        if name not in networks:
            networks[name] = _BUILDERS[name](p)
    return {name: networks[name].eval() for name in names}
