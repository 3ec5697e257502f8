"""Teach the decoder's compact enlarger c alone: c(y) ≈ teacher(y).

    python -m mmsr_edge.training.train_compact --photos DIR --lpips DIR --teacher DIR --out RUN

It starts from Real-ESRGAN's compact network for drawings, which knows noise and edges, and learns
photographs from the large one (x4plus), as `train_taught` does: but a step takes a fraction of the
time, for neither E_lr nor the UNet is run. `train_taught --compact RUN` goes on with all of them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from mmsr_edge.training.options import add_run_options, run_config
from mmsr_edge.training.picture_loss import PictureLoss
from mmsr_edge.training.picture_teacher import load_compact
from mmsr_edge.training.run import Run, autocast, load_run, pick_device, start_from
from mmsr_edge.training.taught import TaughtPool, add_taught, taught_pool


@dataclass(frozen=True)
class CompactStage:
    """Settings of this stage; see `TaughtStage` for those of the same names."""

    taught_crop: int = 192
    """HR pixels of a side of what the teacher is shown."""
    crop: int = 128
    """HR pixels of a side of the pieces of it that are trained on."""
    batch: int = 8
    """Pieces a step."""
    pool: int = 4096
    """Taught pictures held."""
    reuse: float = 32.0
    """Pieces drawn of each; `inf`: none is made beside those of `--taught`."""
    clean: float = 0.2
    """Share of pictures that are only downscaled."""
    noisy: float = 0.0
    """Share of the draws whose LR pictures are all as if taken in the dark."""
    alex_sees_hr: float = 0.0
    """Share of steps in which LPIPS-Alex compares with HR."""
    l1_weight: float = 2.0
    """Weight of the mean absolute difference."""
    grid_weight: float = 1.0
    """Weight of what repeats in it from cell to cell."""
    alex_weight: float = 0.5
    """Weight of LPIPS-Alex, at a random phase."""
    vgg_weight: float = 0.5
    """Weight of LPIPS-VGG."""
    vgg_taps: int = 4
    """Feature maps of VGG that are compared."""
    vgg_crop: int = 80
    """Side of the piece of a picture that VGG sees."""
    statistics_weight: float = 0.0
    """Weight of how far the statistics of VGG's features are apart."""

    @property
    def critic_weight(self) -> float:
        """There is no adversary here."""
        return 0.0


def train(
    pool: TaughtPool, picture: PictureLoss, run: Run, stage: CompactStage, device: torch.device
) -> None:
    """Run the stage; `run.trained` holds `compact`."""
    compact = run.trained["compact"]
    for _ in run:
        lr, hr, taught = pool.batch(stage.batch)
        with autocast(device):
            image = compact(lr)
            textured = float(torch.rand((), generator=pool.g, device=device)) < stage.alex_sees_hr
            terms = picture(image, hr if textured else taught, pool.g, taught)
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
    add_taught(parser)
    parser.add_argument(
        "--lpips", type=Path, required=True, help="folder with alexnet.ckpt, vgg16.ckpt"
    )
    parser.add_argument("--init", type=Path, help="another run, to start from its averaged weights")
    add_run_options(parser, CompactStage(), steps=6000, learning_rate=2e-4, warmup=50, ema=0.998)
    args = parser.parse_args()
    config, stage = run_config(args, CompactStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    compact = load_compact(args.teacher)  # the same folder has realesr-animevideov3-x4
    if args.init:
        start_from({"compact": compact}, load_run(args.init))
    compact.to(device, memory_format=torch.channels_last).train()
    run = Run(args.out, config, stage, {"compact": compact})
    pool = taught_pool(args, stage, config.seed + run.step, device)
    picture = PictureLoss(args.lpips, stage, target_share=0.0).to(device)
    train(pool, picture, run, stage, device)


if __name__ == "__main__":
    main()
