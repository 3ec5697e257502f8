"""Comparison of Core ML packages with their networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.converters.components import component
from mmsr_edge.converters.mil import MILProgram
from mmsr_edge.models.checkpoint import Checkpoint, run_network
from mmsr_edge.models.signatures import draw_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

GATES = {"fp32": 60, "fp16": 40, "int8": 35}
"""Least PSNR in dB, by precision."""


def decibels(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """PSNR in dB with the reference's range as peak; −∞ if a value is not finite."""
    if not np.isfinite(value).all():
        return -np.inf
    mse = np.mean((reference.astype(np.float64) - value) ** 2)
    return float(20 * np.log10(np.ptp(reference)) - 10 * np.log10(max(mse, 1e-30)))


def feeds_of(opened: Checkpoint, name: str, seed: int = 9) -> dict[str, NDArray[Any]]:
    """Random inputs of a component."""
    return draw_inputs(name, opened.preset, np.random.default_rng(seed))


def worst(opened: Checkpoint, name: str, package: Path) -> float:
    """PSNR in dB of a package's worst float output against the network."""
    feeds = feeds_of(opened, name)
    reference = run_network(opened.networks[name], name, feeds)
    results = MILProgram.open(package).run(feeds)
    codes = component(name).codes
    same = slice(None) if codes is None else reference[codes] == results[codes]
    floats = [key for key, value in reference.items() if value.dtype.kind == "f"]
    return min(decibels(reference[key][same], results[key][same]) for key in floats)
