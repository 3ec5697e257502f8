"""Train the depth network on rendered scenes.

    python -m mmsr_edge.training.scenes.make --photos DIR --out SCENES
    python -m mmsr_edge.training.train_depth --scenes SCENES --out RUN --minutes 30

No measured depth and no other network's weights are used.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from mmsr_edge.models.depth import Depth, DepthConfig, build_depth
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.training.data.scene_data import Scenes, scene_batches
from mmsr_edge.training.losses.depth import DepthWeights, depth_loss
from mmsr_edge.training.options import add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_run, start_from


@dataclass(frozen=True)
class DepthStage:
    """Settings of this stage."""

    scenes: str = "scenes"
    """Folder of rendered scenes."""
    start: str = ""
    """Folder of a run to start from, such as one on smaller pictures; empty: random weights."""
    batch: int = 16
    """Pictures per step."""
    side: int = 256
    """Side of the pictures in pixels, a multiple of 64; the network is convolutional, and smaller
    pictures are cheaper."""


def train(run: Run, stage: DepthStage, device: torch.device) -> None:
    """Run the stage; `run.trained` holds `depth`."""
    scenes = Scenes(Path(stage.scenes), run.config.seed + run.step, stage.side)
    batches = scene_batches(scenes, stage.batch)
    network = run.trained["depth"]
    assert isinstance(network, Depth)
    weights = DepthWeights()
    for _ in run:
        image, inverse = (part.to(device) for part in next(batches))
        image = image.contiguous(memory_format=torch.channels_last)
        with autocast(device):
            out = network.coarse(image)
        loss, terms = depth_loss(out.float().sigmoid(), inverse, weights)
        run.update(loss, **terms)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_options(
        parser, DepthStage(), steps=4000, photos=False, learning_rate=2e-3, warmup=50, ema=0.995
    )
    args = parser.parse_args()
    config, stage = run_config(args, DepthStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    network = build_depth(DepthConfig()).to(device, memory_format=torch.channels_last)
    if stage.start:
        start_from({"depth": network}, load_run(Path(stage.start)))
    train(Run(args.out, config, stage, {"depth": network.train()}), stage, device)


if __name__ == "__main__":
    main()
