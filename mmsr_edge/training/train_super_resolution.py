"""Distil the super-resolution network of the decoder alone: c(y) ≈ teacher(y).

    python -m mmsr_edge.training.train_super_resolution \\
        --photos DIR --lpips DIR --teacher DIR --out RUN [--blocks N]

Without `--blocks`, the network is the compact one of `nano`. It starts from Real-ESRGAN's compact
one for drawings (realesr-animevideov3), which handles noise and edges, and learns photographs from
the large one (x4plus), as in `train_distillation`. With `--blocks`, it is a residual dense network,
as `small` has: with `--start x4plus-anime` Real-ESRGAN's of six blocks for drawings, and with
`--start x4plus` the teacher itself without the blocks that matter least (see `teachers.pruning`). A
step takes a fraction of the time of `train_distillation`'s, because E_lr and the UNet are not run.
Continue with all networks by `train_distillation --super-resolution RUN`.

Targets that hold the teacher's features (`make_targets --int8`) are learnt too, as far as
`--features-weight` says: |f − f_teacher|, relative to the mean of |f_teacher|.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.residual_dense import BLOCKS, TAILS, ResidualDenseNetwork
from mmsr_edge.models.super_resolution import SuperResolution
from mmsr_edge.training.data.distillation import DistillationConfig, DistillationPool
from mmsr_edge.training.losses.discriminator import Discriminator
from mmsr_edge.training.losses.perceptual import LPIPS
from mmsr_edge.training.losses.picture import PictureLoss, TeacherLossConfig, contrast
from mmsr_edge.training.options import (
    add_distillation,
    add_lpips,
    add_run_options,
    distillation_pool,
    run_config,
)
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_run, start_from
from mmsr_edge.training.teachers.pruning import begin_pruned, fit_tail, rank_blocks
from mmsr_edge.training.teachers.real_esrgan import (
    ANIME_BLOCKS,
    load_anime,
    load_real_esrgan,
    load_realesr_animevideo,
)

STARTS = {"x4plus": BLOCKS, "x4plus-anime": ANIME_BLOCKS}
"""Published networks that a residual dense network can start from, and their blocks."""

RATES = {".tail.": 4.0, ".last.": 4.0}
"""Factors on the learning rate of another tail than the teacher's, which begins anew."""
RANKED = 8
"""LR pictures on which the teacher's blocks are ranked."""
FIT_SECONDS = 120.0
"""Time for which another tail is fitted to the teacher's pictures alone."""


@dataclass(frozen=True)
class SuperResolutionStage(DistillationConfig, TeacherLossConfig):
    """Settings of this stage."""

    teacher_crop: int = 192
    clean: float = 0.2
    grid_weight: float = 1.0
    vgg_taps: int = 4
    vgg_crop: int = 80
    blocks: int = 0
    """Blocks of the residual dense network; 0: the compact network."""
    tail: str = "full"
    """Tail of the residual dense network; see `models.residual_dense.Tail`."""
    start: str = "x4plus-anime"
    """Published network that the residual dense network starts from: `x4plus`, pruned, or
    `x4plus-anime`, which has six blocks."""
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
        flatness = contrast(image, hr, stage.contrast_first).mean()
        loss = terms.total() + stage.contrast_weight * flatness
        apart = torch.zeros((), device=device)
        if known and stage.features_weight:
            apart = (features.float() - known[0]).abs().mean() / known[0].abs().mean()
            loss = loss + stage.features_weight * apart
        run.update(
            loss,
            l1=terms.l1.mean(),
            grid=terms.grid.mean(),
            perceptual=terms.perceptual.mean(),
            features=apart,
            contrast=flatness,
            adversarial=terms.adversarial,
            discriminator=terms.discriminator,
            hr_l1=F.l1_loss(image.detach().float(), hr),
        )


def begin(
    folder: Path,
    stage: SuperResolutionStage,
    pool: DistillationPool,
    lpips: Path,
    *,
    loaded: bool,
) -> SuperResolution:
    """The network, with the published weights that it starts from.

    Args:
        folder: folder with the weights of Real-ESRGAN.
        stage: the stage.
        pool: LR pictures to rank blocks on, and targets to fit another tail to.
        lpips: folder with the feature networks.
        loaded: whether a run's weights replace them at once: no minutes are spent on them then.

    Raises:
        OptionError: the weights cannot be read; or another tail is to be fitted, and the targets
            hold no features.
    """
    if not stage.blocks:
        return load_realesr_animevideo(folder)
    network = ResidualDenseNetwork(stage.blocks, stage.tail)  # type: ignore[arg-type]
    if loaded:
        return network
    if stage.start == "x4plus-anime":
        published, order = load_anime(folder), list(range(ANIME_BLOCKS))
    else:
        published = load_real_esrgan(folder, torch.device("cpu"))
        order = rank_blocks(published, pool.batch(RANKED)[0].cpu(), LPIPS(lpips))
        print(f"blocks of the teacher, those that matter most first: {order}", flush=True)
    begin_pruned(network, published, order)
    if stage.tail != "full":
        if len(pool.held) < 4:
            raise OptionError(
                f"tail {stage.tail!r} is fitted to the teacher's features, which the targets lack; "
                "give --targets of make_targets --int8, or --tail full"
            )
        fit_tail(network, pool, FIT_SECONDS)
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
    for name, value, known in (("tail", stage.tail, TAILS), ("start", stage.start, STARTS)):
        if value not in known:
            parser.error(f"--{name} {value!r} is unknown; choose {', '.join(known)}")
    if stage.blocks > (most := STARTS[stage.start]):
        parser.error(f"--blocks {stage.blocks}: {stage.start} has {most}")
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    pool = distillation_pool(args, stage, config.seed, device)
    loaded = bool(args.init) or (args.out / "state.pt").exists()
    network = begin(args.teacher, stage, pool, args.lpips, loaded=loaded)
    if args.init:
        start_from({"super_resolution": network}, load_run(args.init))
    network.to(device, memory_format=torch.channels_last).train()
    rates = RATES if stage.blocks and stage.tail != "full" else {}
    trained: dict[str, nn.Module] = {"super_resolution": network}
    discriminator = Discriminator().to(device) if stage.adversarial_weight else None
    if discriminator is not None:
        trained["discriminator"] = discriminator
    run = Run(args.out, config, stage, trained, rates)
    pool.g.manual_seed(config.seed + run.step)
    picture = PictureLoss(
        args.lpips, stage, discriminator, stage.adversarial_weight, target_share=0.0
    ).to(device)
    train(pool, picture, run, stage, device)


if __name__ == "__main__":
    main()
