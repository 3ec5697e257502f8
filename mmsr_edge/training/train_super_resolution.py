"""Distil the compact super-resolution network c of the decoder alone: c(y) ≈ teacher(y).

    python -m mmsr_edge.training.train_super_resolution \\
        --photos DIR --lpips DIR --teacher DIR --out RUN

The network starts from Real-ESRGAN's compact one for drawings (realesr-animevideov3), which handles
noise and edges, and learns photographs from the large one (x4plus), as in `train_distillation`. A
step takes a fraction of the time, because E_lr and the UNet are not run. Continue with all networks
by `train_distillation --super-resolution RUN`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.training.data.distillation import DistillationConfig, DistillationPool
from mmsr_edge.training.losses.picture import AlexTargetConfig, PictureLoss, PictureLossConfig
from mmsr_edge.training.options import (
    add_distillation,
    add_lpips,
    add_run_options,
    distillation_pool,
    run_config,
)
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_run, start_from
from mmsr_edge.training.teachers.real_esrgan import load_realesr_animevideo


@dataclass(frozen=True)
class SuperResolutionStage(DistillationConfig, PictureLossConfig, AlexTargetConfig):
    """Settings of this stage."""

    teacher_crop: int = 192
    clean: float = 0.2
    grid_weight: float = 1.0
    vgg_taps: int = 4
    vgg_crop: int = 80


def train(
    pool: DistillationPool,
    picture: PictureLoss,
    run: Run,
    stage: SuperResolutionStage,
    device: torch.device,
) -> None:
    """Run the stage; `run.trained` holds `super_resolution`."""
    network = run.trained["super_resolution"]
    for _ in run:
        lr, hr, target = pool.batch(stage.batch)
        with autocast(device):
            image = network(lr)
            against_hr = float(torch.rand((), generator=pool.g, device=device)) < stage.alex_sees_hr
            terms = picture(image, hr if against_hr else target, pool.g, target)
        run.update(
            terms.total(),
            l1=terms.l1.mean(),
            grid=terms.grid.mean(),
            perceptual=terms.perceptual.mean(),
            hr_l1=F.l1_loss(image.detach().float(), hr),
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_distillation(parser)
    add_lpips(parser)
    parser.add_argument(
        "--init", type=Path, help="run of this stage, to start from its averaged weights"
    )
    add_run_options(
        parser, SuperResolutionStage(), steps=6000, learning_rate=2e-4, warmup=50, ema=0.998
    )
    args = parser.parse_args()
    config, stage = run_config(args, SuperResolutionStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    network = load_realesr_animevideo(args.teacher)  # its files are in the same folder
    if args.init:
        start_from({"super_resolution": network}, load_run(args.init))
    network.to(device, memory_format=torch.channels_last).train()
    run = Run(args.out, config, stage, {"super_resolution": network})
    pool = distillation_pool(args, stage, config.seed + run.step, device)
    picture = PictureLoss(args.lpips, stage, target_share=0.0).to(device)
    train(pool, picture, run, stage, device)


if __name__ == "__main__":
    main()
