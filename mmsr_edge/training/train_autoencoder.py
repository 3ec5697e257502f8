r"""Train the slim autoencoder and the LR encoder together.

    python -m mmsr_edge.training.train_autoencoder \
        --photos DIR --lpips DIR --out RUN --minutes 40

Two paths share the decoder D:

    x̂ = D(E(x) + n)     reconstruction; the noise n makes D robust to errors of the sampler
    ŷ = D(E_lr(y))      upscaled picture by regression

The loss is the picture loss of both (L1, grid, LPIPS, adversarial), the L2 distance of E_lr(y) from
E(x), which keeps the residual for the diffusion small, and a term that keeps latents at unit scale.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from mmsr_edge.models.autoencoder import build_autoencoder
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.presets import preset
from mmsr_edge.training.data.degradation import DegradeConfig, degrade
from mmsr_edge.training.data.photos import Photos
from mmsr_edge.training.losses.discriminator import Discriminator
from mmsr_edge.training.losses.picture import AdversarialConfig, PictureLoss, PictureLossConfig
from mmsr_edge.training.options import PresetConfig, add_lpips, add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_states, start_from


@dataclass(frozen=True)
class AutoencoderStage(PresetConfig, PictureLossConfig, AdversarialConfig):
    """Settings of this stage."""

    crop: int = 192
    """Side of a training crop in HR pixels."""
    batch: int = 8
    """Crops per step."""
    l1_weight: float = 3.0
    grid_weight: float = 5.0
    alex_weight: float = 0.3
    reconstructed: float = 1.0
    """Share of the batch that trains the reconstruction too; all of it trains the upscaling."""
    freeze_encoder: bool = False
    """Whether to freeze E, so that networks trained on its latents stay valid."""
    latent_weight: float = 0.05
    """Weight of ‖E_lr(y) − E(x)‖²."""
    scale_weight: float = 1e-3
    """Weight of the squared distance of the latents' mean square, per channel, from 1."""
    latent_noise: float = 0.05
    """Standard deviation of the noise on E(x) before decoding."""


def train(
    photos: Path, lpips: Path, run: Run, stage: AutoencoderStage, device: torch.device
) -> None:
    """Run the stage.

    `run.trained` holds `hr_encoder`, `lr_encoder`, `decoder` and, with an adversarial loss,
    `discriminator`.
    """
    data = Photos(photos, device, seed=run.config.seed + run.step)
    g = torch.Generator(device).manual_seed(run.config.seed + run.step)
    layout = torch.channels_last
    discriminator = run.trained.get("discriminator")
    assert discriminator is None or isinstance(discriminator, Discriminator)
    picture = PictureLoss(lpips, stage, discriminator, stage.adversarial_weight).to(device)
    encoder, lr_encoder, decoder = (run.trained[n] for n in ("hr_encoder", "lr_encoder", "decoder"))
    rebuilt = round(stage.reconstructed * stage.batch)
    for _ in run:
        hr, _ = data.batch(stage.batch, stage.crop)
        hr = hr.contiguous(memory_format=layout)
        lr = degrade(hr, DegradeConfig(), g).contiguous(memory_format=layout)
        with autocast(device):
            z, z_lr = encoder(hr), lr_encoder(lr)
            noise = torch.randn(z[:rebuilt].shape, generator=g, device=device) * stage.latent_noise
            out = decoder(torch.cat([z_lr, z[:rebuilt] + noise]), torch.cat([lr, lr[:rebuilt]]))
            terms = picture(out, torch.cat([hr, hr[:rebuilt]]), g)
        latent = F.mse_loss(z_lr.float(), z.float())
        scale = (z.float().square().mean((0, 2, 3)) - 1).square().mean()
        n = stage.batch
        run.update(
            terms.total() + stage.latent_weight * latent + stage.scale_weight * scale,
            l1_lr=terms.l1[:n].mean(),
            grid=terms.grid.mean(),
            perceptual_lr=terms.perceptual[:n].mean(),
            l1_hr=terms.l1[n:].mean(),
            perceptual_hr=terms.perceptual[n:].mean(),
            adversarial=terms.adversarial,
            discriminator=terms.discriminator,
            latent=latent,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_lpips(parser)
    add_run_options(parser, AutoencoderStage(), steps=20000)
    parser.add_argument(
        "--init", type=Path, help="run or checkpoint to start from; of a run, the averaged weights"
    )
    args = parser.parse_args()
    config, stage = run_config(args, AutoencoderStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    networks = build_autoencoder(preset(stage.preset).autoencoder)
    if stage.adversarial_weight:
        networks["discriminator"] = Discriminator()
    if args.init:
        start_from(networks, load_states(args.init))
    networks["hr_encoder"].requires_grad_(not stage.freeze_encoder)
    for module in networks.values():
        module.to(device, memory_format=torch.channels_last).train()
    train(args.photos, args.lpips, Run(args.out, config, stage, networks), stage, device)


if __name__ == "__main__":
    main()
