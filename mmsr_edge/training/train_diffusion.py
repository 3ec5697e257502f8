r"""Train the denoiser, with modalities, on the diffusion's loss.

    python -m mmsr_edge.training.train_diffusion --tiles FILE … --checkpoint DIR --tokenizer RUN \
        --out RUN

Classifier-free training as in Sec. 3.1: each modality, text included, is replaced by its m∅ with
p = 0.1. The loss is that of v = √ᾱ·ε − √(1−ᾱ)·z_0 on a schedule rescaled to zero terminal SNR (Lin
et al. 2023), so that training, like sampling, includes pure noise.

The student gives a residual r̂ = (z − z_lr) / s. The diffusion models the latent itself, as the
paper does: z_hr = z_lr + s·r, and not the residual, of which the LR picture tells nothing once E_lr
is trained well; at the last timestep there would be nothing to predict. The target lies between the
student's latent and the HR picture's:

    z_0 = (z_lr + s·(r̂ + ρ·(r − r̂))) / σ

The loss is that of the part that z_lr does not tell, v' of `models.diffusion_unet`.

r̂ is a function of the LR picture, r − r̂ is what the LR picture does not determine. At ρ = 1 a
small denoiser draws much of that part as noise; ρ is how much of it is asked for.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from mmsr_edge.models.device import autocast
from mmsr_edge.training.data.tile_samples import ConditionsConfig, TileSamples
from mmsr_edge.training.denoiser import Denoiser, alphas, diffuse
from mmsr_edge.training.options import PresetConfig, add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.student import RATES, draw_place
from mmsr_edge.training.tile_stage import add_tile_stage, open_tile_stage


@dataclass(frozen=True)
class DiffusionStage(PresetConfig, ConditionsConfig):
    """Settings of this stage."""

    batch: int = 8
    """Parts of tiles per step; of whole tiles there are a quarter as many."""
    window: int = 32
    """Side in latent cells of these parts."""
    whole: float = 0.15
    """Share of the steps with whole tiles."""
    share: float = 0.3
    """ρ, share of what the LR picture does not determine."""
    full: float = 0.15
    """Share of the samples with ρ = 1, which keep the denoiser true to HR pictures."""
    full_below: float = 0.5
    """The same at timesteps below `clear`."""
    clear: int = 400
    """Timestep below which the noisy latent itself shows much of what is asked for."""
    soft: float = 0.85
    """Factor on the target under the negative prompt."""
    context_alone: bool = False
    """Whether text encoder and connector are frozen, to be shared with the student."""


def latent_scale(samples: TileSamples, residual_scale: Tensor, count: int = 400) -> Tensor:
    """σ: the root mean square of z_hr per channel, [C], over the first `count` tiles."""
    z_lr, residual = samples.latents(torch.arange(min(count, len(samples.z_lr))))
    z_hr = z_lr + residual_scale[:, None, None] * residual
    return z_hr.square().mean((0, 2, 3)).sqrt()


def train(samples: TileSamples, reference: Tensor, run: Run, stage: DiffusionStage) -> None:
    """Run the stage; `run.trained` holds `denoiser`, `reference` the student's residuals."""
    net, g = run.trained["denoiser"], samples.g
    assert isinstance(net, Denoiser)
    table = alphas(stage.preset, samples.device)
    scale, sigma = net.residual_scale[:, None, None], net.latent_scale[:, None, None]
    for _ in run:
        place = draw_place(samples.size, min(stage.window, samples.size), stage.whole, g)
        count = max(1, stage.batch // 4) if place.side > stage.window else stage.batch
        rows = samples.rows(count, stage.clean)
        given = samples.conditions(rows, stage)
        z_lr, residual, student = (
            place.of(samples.take(x, rows)) for x in (samples.z_lr, samples.residual, reference)
        )
        t = torch.randint(len(table), (count,), generator=g)
        chance = torch.where(t < stage.clear, stage.full_below, stage.full)
        true = torch.rand(count, generator=g) < chance
        rho = torch.where(true, 1.0, stage.share)[:, None, None, None].to(samples.device)
        wanted = student + rho * (residual - student)
        wanted[given.negative] *= stage.soft
        z0 = (z_lr + scale * wanted) / sigma
        t = t.to(samples.device)
        a = table[t][:, None, None, None]
        noise = torch.randn(z0.shape, generator=g).to(samples.device)
        noisy, v = diffuse(z0, a, noise)
        with autocast(z0.device):
            context = net.context(given.ids, given.indices, given.present)
            latent = torch.cat([noisy, z_lr], 1).contiguous(memory_format=torch.channels_last)
            net.unet.place(place.top, place.left)
            prediction = net.unet(
                latent, t.float(), context, place.of(given.with_dials(None))
            ).float()
        difference = (prediction - v).square()
        error = (difference / net.unet.weight(t).square()).mean((1, 2, 3))
        share = (difference.mean((1, 2, 3)) / v.square().mean((1, 2, 3))).detach()
        early, middle = t >= 667, (t >= 333) & (t < 667)
        run.update(
            error.mean(),
            share=share.mean(),
            noisy=(share * early).sum() / early.sum().clamp_min(1),
            half=(share * middle).sum() / middle.sum().clamp_min(1),
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_tile_stage(parser)
    add_run_options(
        parser, DiffusionStage(), steps=20000, photos=False, learning_rate=2e-4, warmup=100,
        epsilon=1e-12,
    )  # fmt: skip
    args = parser.parse_args()
    config, stage = run_config(args, DiffusionStage)
    opened = open_tile_stage(args, config, stage.preset)
    net, samples = opened.denoiser, opened.samples
    net.freeze_context(stage.context_alone)
    net.latent_scale.copy_(latent_scale(samples, net.residual_scale))
    net.separate(stage.preset)
    run = Run(args.out, config, stage, {"denoiser": net.train()}, RATES)
    samples.g.manual_seed(config.seed + run.step)
    train(samples, opened.reference, run, stage)


if __name__ == "__main__":
    main()
