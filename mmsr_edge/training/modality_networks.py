"""Trained modality networks, frozen, for the stages that need maps and words."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsr_edge.bundle import MANIFEST_NAME, load_manifest
from mmsr_edge.errors import OptionError
from mmsr_edge.files import write_text
from mmsr_edge.models.networks import MODALITY_NETWORKS, build_component
from mmsr_edge.training.states import load_states


@dataclass(frozen=True)
class ModalityNetworks:
    """The modality networks, and the names of their classes and tags."""

    networks: dict[str, nn.Module]
    """The networks, by name in `models.networks.MODALITY_NETWORKS`."""
    labels: dict[str, tuple[str, ...]]
    """Names of classes and tags, by network."""


def add_modality_networks(parser: argparse.ArgumentParser) -> None:
    """Add `--modalities`."""
    parser.add_argument(
        "--modalities",
        type=Path,
        nargs="+",
        required=True,
        help="runs of train_depth, train_segmentation, train_tagger and, for a release, "
        "train_degradation; or a checkpoint",
    )


def load_labels(folder: Path) -> dict[str, tuple[str, ...]]:
    """Names of classes and tags, by component.

    They come from a checkpoint's manifest or a run's `labels.json`; empty if a run has none.
    """
    if (folder / MANIFEST_NAME).exists():
        components = load_manifest(folder).components
        return {name: spec.labels for name, spec in components.items() if spec.labels}
    path = folder / "labels.json"
    if not path.exists():
        return {}
    return {name: tuple(names) for name, names in json.loads(path.read_text()).items()}


def write_labels(folder: Path, component: str, names: Sequence[str]) -> None:
    """Write the names of a network's classes or tags to `labels.json` in its run's folder."""
    text = json.dumps({component: list(names)}, indent=1)
    write_text(folder / "labels.json", text)


def read_modality_networks(
    folders: Sequence[Path],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, tuple[str, ...]]]:
    """State dicts and labels by component, from several runs or checkpoints; later ones win."""
    states: dict[str, dict[str, Tensor]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for folder in folders:
        states |= load_states(folder)
        labels |= load_labels(folder)
    return states, labels


def load_modality_networks(
    folders: Sequence[Path], preset_name: str, device: torch.device
) -> ModalityNetworks:
    """Load the modality networks from runs or a checkpoint, frozen, on `device`.

    Raises:
        OptionError: a modality network is in none of the folders.
    """
    states, labels = read_modality_networks(folders)
    missing = [name for name in MODALITY_NETWORKS if name not in states]
    if missing:
        raise OptionError(
            f"--modalities {' '.join(map(str, folders))} lacks {', '.join(missing)}; give the runs "
            "of train_depth, train_segmentation and train_tagger, or a checkpoint that has them"
        )
    networks = {}
    for name in MODALITY_NETWORKS:
        networks[name] = build_component(name, preset_name)
        networks[name].load_state_dict(states[name])
        networks[name].to(device, memory_format=torch.channels_last).requires_grad_(False)
    return ModalityNetworks(networks, labels)
