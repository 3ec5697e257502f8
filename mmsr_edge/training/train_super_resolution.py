"""Distil the super-resolution network of the decoder alone: c(y) ≈ teacher(y).

    python -m mmsr_edge.training.train_super_resolution \\
        --photos DIR --lpips DIR --teacher DIR --out RUN [--blocks N]

Without `--blocks`, the network is the compact one of `nano`. It starts from Real-ESRGAN's compact
one for drawings (realesr-animevideov3), which handles noise and edges, and learns photographs from
the large one (x4plus), as in `train_distillation`. With `--blocks`, it is the one of `small`: the
teacher itself, without the blocks that matter least (see `teachers.pruning`). A step takes a
fraction of the time of `train_distillation`'s, because E_lr and the UNet are not run. Continue with
all networks by `train_distillation --super-resolution RUN`.

Targets that hold the teacher's features (`make_targets --int8`) are learnt too, as far as
`--features-weight` says: |f − f_teacher|, relative to the mean of |f_teacher|.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.residual_dense import TAILS, ResidualDenseNetwork
from mmsr_edge.models.super_resolution import SuperResolution
from mmsr_edge.training.data.distillation import DistillationConfig, DistillationPool
from mmsr_edge.training.losses.perceptual import LPIPS
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
from mmsr_edge.training.teachers.pruning import begin_pruned, rank_blocks
from mmsr_edge.training.teachers.real_esrgan import load_real_esrgan, load_realesr_animevideo

RATES = {".tail.": 4.0, ".last.": 4.0}
"""Factors on the learning rate: another tail than the teacher's begins anew."""
RANKED = 8
"""LR pictures on which the teacher's blocks are ranked."""


@dataclass(frozen=True)
class SuperResolutionStage(DistillationConfig, PictureLossConfig, AlexTargetConfig):
    """Settings of this stage."""

    teacher_crop: int = 192
    clean: float = 0.2
    grid_weight: float = 1.0
    vgg_taps: int = 4
    vgg_crop: int = 80
    blocks: int = 0
    """Blocks of the residual dense network; 0: the compact network."""
    tail: str = "half"
    """Tail of the residual dense network; see `models.residual_dense.Tail`."""
    features_weight: float = 0.0
    """Weight of the difference from the teacher's features, for targets that hold them."""


def train(
    pool: DistillationPool,
    picture: PictureLoss,
    run: Run,
    stage: SuperResolutionStage,
    device: torch.device,
) -> None:
    """Run the stage; `run.trained` holds `super_resolution`."""
    network = run.trained["super_resolution"]
    assert isinstance(network, SuperResolution)
    for _ in run:
        lr, hr, target, *known = pool.batch(stage.batch)
        with autocast(device):
            features = network.features(lr)
            image = network.picture(features, lr)
            against_hr = float(torch.rand((), generator=pool.g, device=device)) < stage.alex_sees_hr
            terms = picture(image, hr if against_hr else target, pool.g, target)
        loss, apart = terms.total(), torch.zeros((), device=device)
        if known and stage.features_weight:
            apart = (features.float() - known[0]).abs().mean() / known[0].abs().mean()
            loss = loss + stage.features_weight * apart
        run.update(
            loss,
            l1=terms.l1.mean(),
            grid=terms.grid.mean(),
            perceptual=terms.perceptual.mean(),
            features=apart,
            hr_l1=F.l1_loss(image.detach().float(), hr),
        )


def begin(
    args: argparse.Namespace, stage: SuperResolutionStage, device: torch.device
) -> SuperResolution:
    """The network, with the published weights that it starts from."""
    if not stage.blocks:
        return load_realesr_animevideo(args.teacher)  # its files are in the same folder
    network = ResidualDenseNetwork(stage.blocks, stage.tail)  # type: ignore[arg-type]
    if args.init:
        return network
    teacher = load_real_esrgan(args.teacher, torch.device("cpu"))
    pool = distillation_pool(args, stage, 0, torch.device("cpu"))
    order = rank_blocks(teacher, pool.batch(RANKED)[0], LPIPS(args.lpips))
    print(f"blocks of the teacher, those that matter most first: {order}", flush=True)
    begin_pruned(network, teacher, order)
    return network


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
    if stage.tail not in TAILS:
        parser.error(f"--tail {stage.tail!r} is unknown; choose {', '.join(TAILS)}")
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    network = begin(args, stage, device)
    if args.init:
        start_from({"super_resolution": network}, load_run(args.init))
    network.to(device, memory_format=torch.channels_last).train()
    run = Run(args.out, config, stage, {"super_resolution": network}, RATES if stage.blocks else {})
    pool = distillation_pool(args, stage, config.seed + run.step, device)
    picture = PictureLoss(args.lpips, stage, target_share=0.0).to(device)
    train(pool, picture, run, stage, device)


if __name__ == "__main__":
    main()
