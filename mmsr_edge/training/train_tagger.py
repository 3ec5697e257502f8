"""Distil the tagger from an ImageNet classifier.

    python -m mmsr_edge.training.teachers.labels --teacher tags --photos DIR --teachers DIR \\
        --out LABELS
    python -m mmsr_edge.training.train_tagger --photos LABELS --out RUN --minutes 30

The targets are the teacher's probabilities (Hinton et al. 2015); classes that hardly occur in the
photographs are joined as one, "something else". The teacher's last features, which carry more than
its probabilities, are targets too, through a projection that is discarded. Writes the names of the
tags to `labels.json` in the run's folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError
from mmsr_edge.models.caption import Tagger, TaggerConfig, build_tagger
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.training.data.views import Views
from mmsr_edge.training.modality_networks import load_labels, write_labels
from mmsr_edge.training.options import add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_run, start_from
from mmsr_edge.training.teachers.labels import read_labels

Array = NDArray[Any]


@dataclass(frozen=True)
class TaggerStage:
    """Settings of this stage."""

    tags: int = 240
    """Largest number of tags, T: those of the greatest mean probability over all training views."""
    least: float = 5e-4
    """Least mean probability of a tag, in [0, 1]."""
    batch: int = 24
    """Views per step."""
    features: float = 2.0
    """Weight of the distance of the features from the teacher's."""
    mix: float = 0.5
    """Share of the batches with mixup of the views, against overfitting to few photographs."""
    crop: int = 160
    """Smallest side in pixels, a multiple of 8, of the squares that are cut out of the views."""


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def by_name(probabilities: Array, names: list[str]) -> tuple[Array, list[str]]:
    """Join classes of the same name by adding their probabilities.

    Args:
        probabilities: [N, classes].
        names: names of the classes.

    Returns:
        Probabilities [N, names] and the different names, in the order of first appearance.
    """
    once = list(dict.fromkeys(names))
    joined = np.zeros((len(probabilities), len(once)), probabilities.dtype)
    for column, name in enumerate(names):
        joined[:, once.index(name)] += probabilities[:, column]
    return joined, once


def choose_tags(probabilities: Array, most: int, least: float) -> Array:
    """Indices of the classes to keep as tags, in ascending order.

    Args:
        probabilities: [N, classes]; class 0, the teacher's "none", is never kept.
        most: largest number of classes.
        least: least mean probability of a class.
    """
    mass = probabilities.mean(0)
    mass[0] = 0
    order = mass.argsort()[::-1][:most]
    return np.sort(order[mass[order] >= least])


def restrict(probabilities: Array, kept: Array) -> Array:
    """Probabilities [N, T + 1] of the kept classes and, last, of all others together."""
    inside = probabilities[:, kept]
    return np.concatenate([inside, 1 - inside.sum(1, keepdims=True)], 1).clip(0, 1)


def read_tagging(
    labels: Path, stage: TaggerStage, tags: Sequence[str] | None = None
) -> tuple[dict[str, Array], list[str]]:
    """Training data of the tagger, and the names of the tags.

    Args:
        labels: folder that `teachers.labels` wrote.
        stage: number of tags and their least probability.
        tags: names of the tags of a run that is resumed; None: they are chosen.

    Returns:
        Arrays `views` [N, 256, 256, 3], `targets` [N, T + 1] and `features` [N, F] of unit length,
        and the names of the tags.

    Raises:
        OptionError: there are no labels, or no class is probable enough.
    """
    arrays, _ = read_labels(labels, held_out=False)
    everything = json.loads((labels / "names.json").read_text())
    probabilities, names = by_name(softmax(arrays.pop("logits").astype(np.float32)), everything)
    if tags:
        kept = np.array([names.index(tag) for tag in tags])
    else:
        kept = choose_tags(probabilities, stage.tags, stage.least)
    if not len(kept):
        raise OptionError(
            f"no tag has a mean probability of {stage.least} or more; give a lower least"
        )
    arrays["targets"] = restrict(probabilities, kept)
    # At unit length the weight has the same meaning for every teacher.
    arrays["features"] /= np.linalg.norm(arrays["features"], axis=1, keepdims=True) + 1e-6
    return arrays, [names[i] for i in kept]


def train(arrays: dict[str, Array], run: Run, stage: TaggerStage, device: torch.device) -> None:
    """Run the stage; `run.trained` holds `captioner` and `projection`."""
    views = Views(arrays["views"], device, run.config.seed + run.step)
    targets, features = (torch.from_numpy(arrays[k]).to(device) for k in ("targets", "features"))
    tagger, projection = run.trained["captioner"], run.trained["projection"]
    assert isinstance(tagger, Tagger)
    for _ in run:
        rows, images = views.batch(stage.batch)
        side = int(torch.randint(stage.crop // 8, images.shape[-1] // 8 + 1, ())) * 8
        top, left = (int(torch.randint(images.shape[-1] - side + 1, ())) for _ in range(2))
        images = images[:, :, top : top + side, left : left + side]
        if torch.rand(()) < 0.5:
            images = images.flip(-1)
        truth, teacher_features = targets[rows], features[rows]
        if torch.rand(()) < stage.mix:
            # Mixup (Zhang et al. 2018): each view with the one before it in the batch.
            share = float(torch.rand(()))
            images, truth, teacher_features = (
                share * x + (1 - share) * x.roll(1, 0) for x in (images, truth, teacher_features)
            )
        with autocast(device):
            h = tagger.features(images.contiguous(memory_format=torch.channels_last))
            logits, student_features = tagger.head(h), projection(h)
        divergence = (
            F.cross_entropy(logits.float(), truth) + torch.xlogy(truth, truth).sum(1).mean()
        )
        distance = 1 - F.cosine_similarity(student_features.float(), teacher_features).mean()
        agreement = (logits.argmax(1) == truth.argmax(1)).float().mean()
        run.update(
            divergence + stage.features * distance,
            divergence=divergence,
            apart=distance,
            top1=agreement,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--start", type=Path, help="run to start from; tensors of another shape stay fresh"
    )
    add_run_options(parser, TaggerStage(), steps=2000, learning_rate=2e-3, warmup=50, ema=0.995)
    args = parser.parse_args()
    config, stage = run_config(args, TaggerStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    before = load_labels(args.out).get("captioner")
    arrays, names = read_tagging(args.photos, stage, before)
    tagger = build_tagger(TaggerConfig(len(names))).to(device, memory_format=torch.channels_last)
    projection = nn.Linear(tagger.head.in_features, arrays["features"].shape[1]).to(device)
    networks = {"captioner": tagger.train(), "projection": projection}
    if args.start:
        start_from(networks, load_run(args.start))
    run = Run(args.out, config, stage, networks)
    write_labels(args.out, "captioner", names)
    train(arrays, run, stage, device)


if __name__ == "__main__":
    main()
