"""Train the tagger on what an ImageNet classifier says of photographs.

    python -m mmsr_edge.training.teachers.labels --teacher tags --photos DIR --teachers DIR --out LABELS
    python -m mmsr_edge.training.train_tagger --photos LABELS --out RUN --minutes 30

Distillation (Hinton et al. 2015): the targets are the teacher's probabilities, all of its classes
that hardly occur in the photographs being one, "something else". The teacher's last features are
learnt beside them, through a projection that is thrown away: they say more than the probabilities.
Writes `labels.json`, the names of the tags, into the run.
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
    """T at most: those with the most of the teacher's probability over all training views."""
    least: float = 5e-4
    """Share of the probability below which a tag is not kept."""
    batch: int = 24
    """Views a step."""
    features: float = 2.0
    """Weight of the teacher's features."""
    mix: float = 0.5
    """Share of the batches whose views are mixed: few photographs are soon known by heart."""
    crop: int = 160
    """Smallest side that a view is cut to, so that the student sees it shifted and enlarged."""


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def by_name(probabilities: Array, names: list[str]) -> tuple[Array, list[str]]:
    """Join classes that have the same name.

    Args:
        probabilities: [N, classes].
        names: of the classes.

    Returns:
        [N, names] and the names, each once, in the order of first appearance.
    """
    once = list(dict.fromkeys(names))
    joined = np.zeros((len(probabilities), len(once)), probabilities.dtype)
    for column, name in enumerate(names):
        joined[:, once.index(name)] += probabilities[:, column]
    return joined, once


def choose_tags(probabilities: Array, most: int, least: float) -> Array:
    """Classes to keep, in the teacher's order.

    Args:
        probabilities: [N, classes]; class 0 is the teacher's "none" and never kept.
        most: how many at most.
        least: mean probability below which a class is not kept.
    """
    mass = probabilities.mean(0)
    mass[0] = 0
    order = mass.argsort()[::-1][:most]
    return np.sort(order[mass[order] >= least])


def restrict(probabilities: Array, kept: Array) -> Array:
    """Probabilities [N, T + 1] of the kept classes and of everything else together."""
    inside = probabilities[:, kept]
    return np.concatenate([inside, 1 - inside.sum(1, keepdims=True)], 1).clip(0, 1)


def read_tagging(
    labels: Path, stage: TaggerStage, tags: Sequence[str] | None = None
) -> tuple[dict[str, Array], list[str]]:
    """Training `views`, `targets` [N, T + 1] and `features` [N, F], and the tags' names.

    Args:
        labels: what the teacher said.
        stage: how many tags to keep.
        tags: those to keep instead, of a run that goes on.
    """
    arrays, _ = read_labels(labels, held_out=False)
    everything = json.loads((labels / "names.json").read_text())
    probabilities, names = by_name(softmax(arrays.pop("logits").astype(np.float32)), everything)
    if tags:
        kept = np.array([names.index(tag) for tag in tags])
    else:
        kept = choose_tags(probabilities, stage.tags, stage.least)
    if not len(kept):
        raise OptionError(f"no tag has a share of {stage.least} of the labels; give a lower least")
    arrays["targets"] = restrict(probabilities, kept)
    # Unit length, so that the weight means the same for every teacher.
    arrays["features"] /= np.linalg.norm(arrays["features"], axis=1, keepdims=True) + 1e-6
    return arrays, [names[i] for i in kept]


def train(arrays: dict[str, Array], run: Run, stage: TaggerStage, device: torch.device) -> None:
    """Run the stage; `run.trained["captioner"]` and its `projection` learn."""
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
        truth, like = targets[rows], features[rows]
        if torch.rand(()) < stage.mix:
            # mixup (Zhang et al. 2018), each view with another of the batch.
            share = float(torch.rand(()))
            images, truth, like = (
                share * x + (1 - share) * x.roll(1, 0) for x in (images, truth, like)
            )
        with autocast(device):
            h = tagger.features(images.contiguous(memory_format=torch.channels_last))
            logits, seen = tagger.head(h), projection(h)
        divergence = (
            F.cross_entropy(logits.float(), truth) + torch.xlogy(truth, truth).sum(1).mean()
        )
        apart = 1 - F.cosine_similarity(seen.float(), like).mean()
        same = (logits.argmax(1) == truth.argmax(1)).float().mean()
        run.update(
            divergence + stage.features * apart, divergence=divergence, apart=apart, top1=same
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", type=Path, help="run whose weights to start from, all that fit")
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
