"""Train the segmentation network on DeepLab's classes and on materials.

    python -m mmsr_edge.training.teachers.labels --teacher regions --photos DIR --teachers DIR \\
        --out LABELS
    python -m mmsr_edge.training.teachers.materials --regions LABELS --out MATERIALS
    (look at MATERIALS/sheet.png and write MATERIALS/names.json)
    python -m mmsr_edge.training.train_segmentation --photos LABELS --materials MATERIALS \\
        --out RUN --minutes 30

Writes the names of the classes to `labels.json` in the run's folder.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mmsr_edge.bundle import MAP_SIDE
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.segmentation import Segmentation, SegmentationConfig, build_segmentation
from mmsr_edge.training.data.views import Views
from mmsr_edge.training.modality_networks import write_labels
from mmsr_edge.training.options import add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_run, start_from
from mmsr_edge.training.teachers.materials import LABEL_SIDE, class_names, region_labels

Array = NDArray[Any]


@dataclass(frozen=True)
class SegmentationStage:
    """Settings of this stage."""

    batch: int = 16
    """Views per step."""
    crop: int = 128
    """Smallest side in pixels of the squares that are cut out of the 256×256 views."""
    rare: float = 0.3
    """Exponent: the loss of a class is divided by this power of its share; 0: no weighting."""


def class_weights(labels: Array, classes: int, power: float) -> Array:
    """Weights of the classes, [classes], with mean 1 over all pixels; 0 for a class without pixels.

    Args:
        labels: classes of pixels, of any shape.
        classes: number of classes.
        power: see `SegmentationStage.rare`.
    """
    share = np.bincount(labels.ravel(), minlength=classes) / labels.size
    # The share is taken as at least a thousandth: a rarer class may be an error of the labels.
    weights = np.where(share > 0, np.maximum(share, 1e-3) ** -power, 0)
    return np.asarray(weights / (weights * share).sum(), np.float32)


def cut(images: Tensor, labels: Tensor, smallest: int) -> tuple[Tensor, Tensor]:
    """Cut the same random square out of pictures and labels, and resize it to full size.

    Half of the batches are mirrored.

    Args:
        images: [B, 3, 256, 256].
        labels: [B, 64, 64].
        smallest: smallest side of the square, in pixels of the pictures.

    Returns:
        Pictures [B, 3, 256, 256] and labels [B, 64, 64].
    """
    step = MAP_SIDE // LABEL_SIDE
    side = int(torch.randint(smallest // step, LABEL_SIDE + 1, ()))
    top, left = (int(torch.randint(LABEL_SIDE - side + 1, ())) for _ in range(2))
    part = images[:, :, top * step : (top + side) * step, left * step : (left + side) * step]
    images = F.interpolate(part, (MAP_SIDE, MAP_SIDE), mode="bilinear")
    labels = labels[:, top : top + side, left : left + side]
    small = F.interpolate(labels[:, None].float(), (LABEL_SIDE, LABEL_SIDE), mode="nearest")
    if torch.rand(()) < 0.5:
        images, small = images.flip(-1), small.flip(-1)
    return images, small[:, 0].long()


def train(
    arrays: tuple[Array, Array], run: Run, stage: SegmentationStage, device: torch.device
) -> None:
    """Run the stage on `arrays` (views, labels); `run.trained` holds `segmentation`."""
    network = run.trained["segmentation"]
    assert isinstance(network, Segmentation)
    views = Views(arrays[0], device, run.config.seed + run.step)
    labels = torch.from_numpy(arrays[1]).to(device)
    classes = network.head.out_channels
    weights = torch.from_numpy(class_weights(arrays[1], classes, stage.rare)).to(device)
    for _ in run:
        rows, images = views.batch(stage.batch)
        images, truth = cut(images, labels[rows], stage.crop)
        with autocast(device):
            logits = network.logits(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), truth, weights, label_smoothing=0.05)
        right = (logits.argmax(1) == truth).float().mean()
        run.update(loss, right=right)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--materials",
        type=Path,
        required=True,
        help="folder of teachers.materials, with names.json",
    )
    parser.add_argument("--trunk", type=Path, help="run of train_tagger to take the trunk from")
    add_run_options(
        parser, SegmentationStage(), steps=2000, learning_rate=2e-3, warmup=50, ema=0.995
    )
    args = parser.parse_args()
    config, stage = run_config(args, SegmentationStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    names = class_names(json.loads((args.materials / "names.json").read_text()))
    views, labels, _ = region_labels(args.photos, args.materials, held_out=False)
    network = build_segmentation(SegmentationConfig(len(names)))
    if args.trunk:
        tagger = load_run(args.trunk)["captioner"]
        trunk = {k.removeprefix("trunk."): v for k, v in tagger.items() if k.startswith("trunk.")}
        start_from({"trunk": network.trunk}, {"trunk": trunk})
    network = network.to(device, memory_format=torch.channels_last).train()
    run = Run(args.out, config, stage, {"segmentation": network})
    write_labels(args.out, "segmentation", names)
    train((views, labels), run, stage, device)


if __name__ == "__main__":
    main()
