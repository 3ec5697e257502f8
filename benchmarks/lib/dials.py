"""Dials: what the temperature of each map modality does to a picture (Fig. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from lib.comparison import Row
from lib.strips import Cells
from lib.variants import ALL
from mmsr_edge import Upscaler
from mmsr_edge.bundle import MAPS
from mmsr_edge.training.regions import (
    REGIONS,
    TEMPERATURES,
    DialEffect,
    mean_effect,
    measure_dial,
    split,
)

Effects = dict[str, list[DialEffect]]
"""Effects on the pictures of one set and degradation, by modality."""


def turn_dials(upscaler: Upscaler, lr: Image.Image) -> tuple[list[DialEffect], list[Cells]]:
    """Upscale a picture at every temperature of each modality.

    Returns:
        The effect of each modality whose map has both regions, and a row of pictures for each
        modality that is present, one per temperature.
    """
    neutral = upscaler(lr, **ALL)
    effects, rows = [], []
    for name in MAPS:
        whole = neutral.maps[name]
        if whole is None:
            continue
        results = [
            neutral if t == 1 else upscaler(lr, **ALL, temperature={name: t}) for t in TEMPERATURES
        ]
        cells = [
            (f"{name} {t:g}", result.image) for t, result in zip(TEMPERATURES, results, strict=True)
        ]
        rows.append(cells)
        regions = split(name, np.asarray(whole), neutral.image.size)
        if regions is not None:
            pictures = [np.asarray(picture) for _, picture in cells]
            effects.append(measure_dial(name, TEMPERATURES, pictures, regions))
    return effects, rows


def dial_rows(effect: DialEffect, **key: object) -> list[Row]:
    """Rows of one effect, by temperature: energy of detail and mean |Δ| of both regions."""
    regions = REGIONS[effect.modality]
    rows: list[Row] = []
    for column, t in enumerate(effect.temperatures):
        row: Row = {**key, "modality": effect.modality, "temperature": t}
        for i, region in enumerate(("moved", "other")):
            row[region] = regions[i]
            row[f"{region}_energy"] = round(effect.energy[i][column], 2)
            row[f"{region}_levels"] = round(effect.moves[i][column], 3)
        rows.append(row)
    return rows


def dial_summary(effects: Sequence[DialEffect], **key: object) -> Row:
    """One row for the mean of effects of one modality, from the lowest temperature to the highest.

    Its columns are those of the release gates.
    """
    mean = mean_effect(effects)
    mine, other = REGIONS[mean.modality]
    row: dict[str, Any] = {**key, "modality": mean.modality, "pictures": len(effects)}
    row |= {"moved": mine, "moved_percent": round(100 * mean.moved, 2)}
    row |= {"moved_levels": round(mean.levels, 3), "other": other}
    row |= {"other_percent": round(100 * mean.spilt, 2), "monotone": mean.backward == 0}
    return row | {
        f"energy at {t:g}": round(energy, 2)
        for t, energy in zip(mean.temperatures, mean.energy[0], strict=True)
    }
