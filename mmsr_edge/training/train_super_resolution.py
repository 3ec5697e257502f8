"""Teach the decoder's compact enlarger c alone: c(y) ≈ teacher(y).

    python -m mmsr_edge.training.train_super_resolution --photos DIR --lpips DIR --teacher DIR --out RUN

It starts from Real-ESRGAN's compact network for drawings, which knows noise and edges, and learns
photographs from the large one (x4plus), as `train_distillation` does: but a step takes a fraction of the
time, for neither E_lr nor the UNet is run. `train_distillation --super-resolution RUN` goes on with all of them.
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
            textured = float(torch.rand((), generator=pool.g, device=device)) < stage.alex_sees_hr
            terms = picture(image, hr if textured else target, pool.g, target)
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
    parser.add_argument(
        "--lpips", type=Path, required=True, help="folder with alexnet.ckpt, vgg16.ckpt"
    )
    parser.add_argument("--init", type=Path, help="another run, to start from its averaged weights")
    add_run_options(
        parser, SuperResolutionStage(), steps=6000, learning_rate=2e-4, warmup=50, ema=0.998
    )
    args = parser.parse_args()
    config, stage = run_config(args, SuperResolutionStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    network = load_realesr_animevideo(args.teacher)  # the same folder has realesr-animevideov3-x4
    if args.init:
        start_from({"super_resolution": network}, load_run(args.init))
    network.to(device, memory_format=torch.channels_last).train()
    run = Run(args.out, config, stage, {"super_resolution": network})
    pool = distillation_pool(args, stage, config.seed + run.step, device)
    picture = PictureLoss(args.lpips, stage, target_share=0.0).to(device)
    train(pool, picture, run, stage, device)


if __name__ == "__main__":
    main()
