"""The networks, in torch, for training, export and GPU hosts. Device code never imports them."""

from __future__ import annotations

from mmsr_edge.models.networks import (
    COMPONENTS,
    build_component,
    build_networks,
    preset_components,
)
from mmsr_edge.models.presets import PRESETS, Preset, preset

__all__ = [
    "COMPONENTS",
    "PRESETS",
    "Preset",
    "build_component",
    "build_networks",
    "preset",
    "preset_components",
]
