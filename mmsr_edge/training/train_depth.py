"""Train the depth student on rendered scenes.

    python -m mmsr_edge.training.scenes.make --photos DIR --out SCENES
    python -m mmsr_edge.training.train_depth --photos DIR --scenes SCENES --out RUN \\
        --backbone mobilenet_v2_1.0_224_quant.tflite --minutes 30

No photograph with known depth is seen. The encoder may start from an ImageNet classifier, which
has seen what photographs look like and knows nothing of depth.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from mmsr_edge.models.depth import DepthConfig, build_depth
from mmsr_edge.training.backbone import load_backbone
from mmsr_edge.training.depth_loss import DepthWeights, depth_loss
from mmsr_edge.training.options import add_run_options, run_config
from mmsr_edge.training.run import Run, autocast, pick_device
from mmsr_edge.training.scene_data import Scenes


@dataclass(frozen=True)
class DepthStage:
    """Settings of this stage."""

    scenes: str = "scenes"
    """Folder of rendered scenes."""
    backbone: str = ""
    """File with MobileNetV2's weights, to start from; empty: fresh weights."""
    batch: int = 16
    """Pictures a step."""


def train(run: Run, stage: DepthStage, device: torch.device) -> None:
    """Run the stage; `run.trained["depth"]` learns."""
    scenes = Scenes(Path(stage.scenes), device, run.config.seed + run.step)
    network = run.trained["depth"]
    weights = DepthWeights()
    for _ in run:
        image, inverse = scenes.batch(stage.batch)
        image = image.contiguous(memory_format=torch.channels_last)
        with autocast(device):
            out = network(image)
        loss, terms = depth_loss(F.avg_pool2d(out.float(), 2), inverse, weights)
        run.update(loss, **terms)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_options(parser, DepthStage(), steps=2500, learning_rate=6e-4, warmup=100, ema=0.995)
    args = parser.parse_args()
    config, stage = run_config(args, DepthStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    network = build_depth(DepthConfig()).to(device, memory_format=torch.channels_last)
    if stage.backbone and not (args.out / "state.pt").exists():
        load_backbone(network.backbone(), Path(stage.backbone))
    train(Run(args.out, config, stage, {"depth": network.train()}), stage, device)


if __name__ == "__main__":
    main()
