"""Variants of a picture's modalities: its own, better ones, another picture's, and none.

"Better" maps are made of the HR picture by the same bundle, and edges as a caller has them, by
Canny on the HR picture. A modality that is of use must help when it is right, and harm when it is
another picture's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lib.paired import Contrast
from mmsr_edge import UpscaleOptions, Upscaler
from mmsr_edge.bundle import LEVELS, MAPS, Manifest
from mmsr_edge.modalities.canny import canny
from mmsr_edge.modalities.maps import map_image
from mmsr_edge.modalities.picture import collect_maps
from mmsr_edge.modalities.words import collect_words
from mmsr_edge.settings import resolve

Options = Mapping[str, Any]
"""Keyword arguments of `Upscaler.upscale`."""

TEXT_AND_MAPS = {"text": "prompt", "depth": "depth", "segmentation": "segmentation",
                 "edges": "edges"}  # fmt: skip
"""Options of `Upscaler.upscale`, by the modality's name in the model."""
ALL: Options = {"prompt": "auto"}
"""All modalities on, made of the LR picture; the maps are on by default."""

NO_DEGRADATION = dict.fromkeys(LEVELS, 0.0)
"""Levels that say that a picture was only downscaled."""

CONTRASTS: tuple[Contrast, ...] = (
    ("all", "none"),
    ("all", "no maps"),
    ("all", "without text"),
    ("all", "words of another"),
    ("HR maps", "no maps"),
    ("HR maps", "all"),
    ("HR maps", "HR maps of another"),
    ("HR edges", "all"),
    *((f"HR {name}", f"HR {name} of another") for name in MAPS),
    ("right degradation", "wrong degradation"),
    ("right degradation", "no degradation"),
    ("clean degradation", "right degradation"),
    ("estimated degradation", "no degradation"),
)
"""Variants of `modalities` that answer a question when they are compared."""


@dataclass(frozen=True)
class Known:
    """What is known of a picture besides its LR pixels."""

    words: str
    """Words found in the LR picture, as a prompt."""
    maps: dict[str, Image.Image | None]
    """Maps of the HR picture, by name; None: it could not be made."""
    levels: dict[str, float] | None
    """Levels of noise, blur and JPEG, measured with the HR picture; None: not measured."""


def know(upscaler: Upscaler, lr: Image.Image, hr: Image.Image) -> Known:
    """Find out what is known of a picture."""
    manifest = upscaler.bundle.manifest
    run = upscaler.pipeline.start(resolve(UpscaleOptions(), manifest))
    small, large = (np.asarray(picture, np.float32) / 127.5 - 1 for picture in (lr, hr))
    words, _ = collect_words(small, run, [])
    made = collect_maps(large, {**dict.fromkeys(MAPS, "auto"), "edges": None}, run, [])
    maps = {name: map_image(whole.values) if whole else None for name, whole in made.items()}
    edges = canny(large)
    if edges.any():
        maps["edges"] = Image.fromarray(edges.astype(np.uint8) * np.uint8(255))
    return Known(words, maps, measure_levels(lr, hr) if takes_degradation(manifest) else None)


def takes_degradation(manifest: Manifest) -> bool:
    """Whether a model reads how noisy, blurred and compressed the picture is."""
    return resolve(UpscaleOptions(), manifest).told


def measure_levels(lr: Image.Image, hr: Image.Image) -> dict[str, float] | None:
    """Levels of noise, blur and JPEG of an LR picture, 0 to 1; None without torch."""
    try:
        import torch

        from mmsr_edge.training.data.degradation import bicubic_down, measure_degradation
    except ImportError:
        return None
    low, high = (
        torch.from_numpy(np.asarray(p, np.float32)).permute(2, 0, 1)[None] / 255 for p in (lr, hr)
    )
    clean = bicubic_down(high, hr.width // lr.width)
    levels = measure_degradation(low * 2 - 1, clean * 2 - 1)[0].tolist()
    return dict(zip(LEVELS, map(float, levels), strict=True))


def modalities(own: Known, another: Known, *, degradation: bool = False) -> dict[str, Options]:
    """Options of the variants of Fig. 8, and of those that show whether a modality is read.

    Args:
        own: what is known of the picture.
        another: what is known of another picture.
        degradation: whether the model reads the degradation.
    """
    nothing: dict[str, Any] = dict.fromkeys(TEXT_AND_MAPS.values())
    if degradation:
        nothing["degradation"] = None
    variants: dict[str, Options] = {
        "all": ALL, "none": nothing, "no maps": {**ALL, **dict.fromkeys(MAPS)}
    }  # fmt: skip
    for name, option in TEXT_AND_MAPS.items():
        variants[f"{name} alone"] = {**nothing, option: "auto"}
    for name, option in TEXT_AND_MAPS.items():
        variants[f"without {name}"] = {**ALL, option: None}
    variants["words of another"] = {"prompt": another.words or None}
    variants["HR maps"] = {**ALL, **own.maps}
    variants["HR maps of another"] = {**ALL, **another.maps}
    for name in MAPS:
        variants[f"HR {name}"] = {**ALL, name: own.maps[name]}
        variants[f"HR {name} of another"] = {**ALL, name: another.maps[name]}
    if degradation:
        levels: dict[str, Any] = {"estimated": "auto", "no": None, "clean": NO_DEGRADATION}
        if own.levels is not None:
            wrong = {name: (level + 0.5) % 1.0 for name, level in own.levels.items()}
            levels |= {"right": own.levels, "wrong": wrong}
        for name, given in levels.items():
            variants[f"{name} degradation"] = {**ALL, "degradation": given}
    return variants


def guidance(steps: int, weights: Sequence[float]) -> dict[str, Options]:
    """Options of the variants of Table 3: kinds of guidance at each w."""
    variants: dict[str, Options] = {"none": {"steps": steps, "guidance": None}}
    for kind in ("cfg", "m0-cfg", "m-cfg"):
        for w in weights:
            options = {"steps": steps, "guidance": kind, "guidance_scale": w}
            variants[f"{kind} w={w:g}"] = options
    return variants


def steps(counts: Sequence[int]) -> dict[str, Options]:
    """Options by length of the trajectory, without guidance, and the paper's own setting."""
    variants: dict[str, Options] = {f"{n} steps": {"steps": n, "guidance": None} for n in counts}
    full = {"steps": max(counts), "guidance": "m-cfg", "guidance_scale": 4.0}
    return {**variants, f"{max(counts)} steps, m-cfg w=4": full}
