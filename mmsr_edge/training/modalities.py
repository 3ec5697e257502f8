"""The networks that look at pictures, as the other stages use them: trained earlier, and frozen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsr_edge.bundle import load_manifest
from mmsr_edge.errors import OptionError
from mmsr_edge.files import write_atomically
from mmsr_edge.models.components import build_component
from mmsr_edge.training.checkpoint import load_states

NETWORKS = ("depth", "segmentation", "captioner")
"""The networks that look at pictures."""


@dataclass(frozen=True)
class Modalities:
    """The networks, and what their numbers stand for."""

    networks: dict[str, nn.Module]
    """By name of `NETWORKS`."""
    labels: dict[str, tuple[str, ...]]
    """Names of classes and tags, of those networks that have them."""


def add_modalities(parser: argparse.ArgumentParser) -> None:
    """Add `--modalities`."""
    parser.add_argument(
        "--modalities",
        type=Path,
        nargs="+",
        required=True,
        help="runs of train_depth, train_segmentation and train_tagger, or a checkpoint",
    )


def load_labels(folder: Path) -> dict[str, tuple[str, ...]]:
    """Names of classes and tags, from a checkpoint's manifest or a run's `labels.json`."""
    if (folder / "manifest.json").exists():
        components = load_manifest(folder).components
        return {name: spec.labels for name, spec in components.items() if spec.labels}
    path = folder / "labels.json"
    if not path.exists():
        return {}
    return {name: tuple(names) for name, names in json.loads(path.read_text()).items()}


def write_labels(folder: Path, component: str, names: Sequence[str]) -> None:
    """Note in a run's folder what the classes or tags of its network are."""
    text = json.dumps({component: list(names)}, indent=1)
    write_atomically(folder / "labels.json", lambda path: path.write_text(text))


def read_modalities(
    folders: Sequence[Path],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, tuple[str, ...]]]:
    """State dicts and labels of what runs and checkpoints hold, by component."""
    states: dict[str, dict[str, Tensor]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for folder in folders:
        states |= load_states(folder)
        labels |= load_labels(folder)
    return states, labels


def load_modalities(folders: Sequence[Path], preset_name: str, device: torch.device) -> Modalities:
    """Load the networks from runs or a checkpoint.

    Raises:
        OptionError: a network is in none of the folders.
    """
    states, labels = read_modalities(folders)
    missing = [name for name in NETWORKS if name not in states]
    if missing:
        raise OptionError(
            f"--modalities {' '.join(map(str, folders))} lacks {', '.join(missing)}; give the runs "
            "of train_depth, train_segmentation and train_tagger, or a checkpoint that has them"
        )
    networks = {}
    for name in NETWORKS:
        networks[name] = build_component(name, preset_name)
        networks[name].load_state_dict(states[name])
        networks[name].to(device, memory_format=torch.channels_last).requires_grad_(False)
    return Modalities(networks, labels)
