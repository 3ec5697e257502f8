"""Metrics of the package `pyiqa`, where it is installed, with a reference and without.

It is in none of our extras: it needs torchvision and downloads the weights of most metrics.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PREFIX = "pyiqa_"
"""Prefix of the columns: some metrics share a name with ours, but have other weights."""

Picture = NDArray[np.uint8]
Measure = Callable[[Picture, Picture], float]


def installed() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("pyiqa") is not None


def fid(pictures: Path, references: Path) -> float:
    """Fréchet distance of the Inception features of two folders' pictures; lower is better."""
    pyiqa = importlib.import_module("pyiqa")
    return float(pyiqa.create_metric("fid")(str(pictures), str(references)))


def load_metrics(names: Sequence[str]) -> dict[str, Measure]:
    """Load metrics of a picture and its reference, both uint8 [H, W, 3], by column name.

    Raises:
        SystemExit: the package is not installed, or a metric is unknown.
    """
    if not names:
        return {}
    try:
        pyiqa = importlib.import_module("pyiqa")
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name!r} is not installed; try: pip install pyiqa") from None
    known = pyiqa.list_models()
    for name in names:
        if name not in known:
            raise SystemExit(f"pyiqa has no metric {name!r}; it has {', '.join(sorted(known))}")
    return {f"{PREFIX}{name}": _measure(pyiqa.create_metric(name)) for name in names}


def _measure(metric: Callable[..., object]) -> Measure:
    import torch

    def tensor(picture: Picture) -> torch.Tensor:
        return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255

    alone = getattr(metric, "metric_mode", "FR") == "NR"

    def measure(picture: Picture, reference: Picture) -> float:
        pictures = [picture] if alone else [picture, reference]
        with torch.inference_mode():
            return float(metric(*map(tensor, pictures)))  # type: ignore[arg-type]

    return measure
