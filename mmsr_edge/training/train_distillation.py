r"""Learn one step from a published enlarger: E_lr, UNet and decoder give what the teacher gives.

    python -m mmsr_edge.training.train_distillation --photos DIR --lpips DIR --teacher DIR \
        --autoencoder RUN --tokenizer RUN --diffusion RUN --out RUN

    x̂ = D(E_lr(y) + s·ẑ_0),   ẑ_0 = −UNet(ε ⊕ E_lr(y), T, c∅),   x̂ ≈ teacher(y)

What the HR picture was cannot be known from a noisy LR picture y: losses against it stop falling
early, and drown what can be learnt. The teacher's answer is a function of y, the same every time
(see `real_esrgan`). No modality is seen here: c∅ is what the connector makes of four m∅, so
that a sample is a crop, its degradation and the teacher's answer, which are cheap to make and may
be turned and cut in many ways. `train_fine_tuning` goes on with the modalities and the HR pictures.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.modalities.prompt import encode_prompt
from mmsr_edge.models.autoencoder import SlimDecoder
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.presets import preset
from mmsr_edge.sampler import timesteps
from mmsr_edge.training.data.distillation import DistillationConfig, DistillationPool
from mmsr_edge.training.denoiser import Denoiser, alphas, diffuse, to_start
from mmsr_edge.training.fake_quantization import fake_quantize_layers, set_fake_quantization
from mmsr_edge.training.losses.picture import (
    AdversarialConfig,
    AlexTargetConfig,
    ContrastConfig,
    PictureLoss,
    PictureLossConfig,
    contrast,
)
from mmsr_edge.training.options import (
    PresetConfig,
    add_distillation,
    add_run_options,
    distillation_pool,
    run_config,
)
from mmsr_edge.training.run import Run
from mmsr_edge.training.stage_networks import add_stage_networks, load_stage_networks
from mmsr_edge.training.states import load_run


@dataclass(frozen=True)
class DistillationStage(
    PresetConfig,
    DistillationConfig,
    PictureLossConfig,
    AdversarialConfig,
    AlexTargetConfig,
    ContrastConfig,
):
    """Settings of this stage."""

    reconstructed: float = 0.0
    """Share of pieces that are decoded once more from E_hr's latents, for the HR picture."""
    later: float = 0.0
    """Share of pieces that take a second step, from the first one's estimate."""
    sampler_steps: int = 4
    """The longest sampler whose timesteps those take."""
    start_noise: float = 0.0
    """Standard deviation of the noise that the one step starts from; 1: the diffusion's start."""
    vgg_weight: float = 0.0
    anchor_weight: float = 0.02
    """Weight of the mean square of z_0, what E_lr leaves to the diffusion."""
    quantization_aware: bool = False
    """Fake-quantize the decoder's layers as the export will; a last stage, at a low learning rate."""
    quantized_share: float = 1.0
    """Share of steps in which they are; in the others they compute in float, so that the float
    decoder stays as good, and near."""


DECODER_FLOAT = (
    "eighth.0",
    *(f"compact.body.{n}" for n in (0, 2, 4, 64)),
    "compact.out",
    "halved.0",
    "out.0",
)
"""The decoder's layers that are not rounded; `weights/nano.quantization.json` keeps them float."""


def absent_context(net: Denoiser, preset_name: str, device: torch.device) -> Tensor:
    """c∅: the context [1, N, D] of a picture of which no modality is known."""
    ids = encode_prompt("", preset(preset_name).text_spec())
    text = net.text_encoder(torch.from_numpy(ids).to(device))
    side = 16
    nothing = torch.zeros(1, side * side, net.codebook.shape[1], device=device)
    absent = torch.zeros(1, 4, device=device)
    context: Tensor = net.connector(
        text, nothing, nothing, nothing, absent, torch.ones_like(absent)
    )
    return context


def later_timesteps(count: int, longest: int, total: int, g: torch.Generator) -> Tensor:
    """`count` timesteps after the first, of samplers of 2 to `longest` steps, trailing spacing."""
    trajectories = [timesteps(total, n, "trailing")[1:] for n in range(2, longest + 1)]
    table = torch.from_numpy(np.concatenate(trajectories)).to(g.device)
    return table[torch.randint(len(table), (count,), generator=g, device=g.device)]


def train(
    pool: DistillationPool, picture: PictureLoss, hr_encoder: nn.Module, run: Run,
    stage: DistillationStage, device: torch.device,
) -> None:  # fmt: skip
    """Run the stage; `run.trained` holds `lr_encoder`, `denoiser`, `decoder` and `discriminator`, if any.

    E_hr only tells how much of a latent E_lr leaves to the diffusion.
    """
    encoder, net, decoder = (run.trained[n] for n in ("lr_encoder", "denoiser", "decoder"))
    assert isinstance(net, Denoiser)
    with torch.no_grad():
        context = absent_context(net, stage.preset, device)
    scale = net.residual_scale[:, None, None]
    last = len(table := alphas(stage.preset, device)) - 1
    fold, later = torch.channels_last, round(stage.later * stage.batch)
    known = round(stage.reconstructed * stage.batch)
    draw = torch.Generator().manual_seed(run.step)  # on the CPU, which need not wait for it

    def unet(noisy: Tensor, z_lr: Tensor, t: Tensor) -> Tensor:
        latent = torch.cat([noisy, z_lr], 1).contiguous(memory_format=fold)
        v: Tensor = net.unet(latent, t, context.expand(len(t), -1, -1)).float()
        return v

    def at(t: Tensor) -> Tensor:
        return table[t.long()][:, None, None, None]

    for _ in run:
        set_fake_quantization(
            decoder, float(torch.rand((), generator=draw)) < stage.quantized_share
        )
        lr, hr, teacher_target = pool.batch(stage.batch)
        t = torch.full((len(lr),), float(last), device=device)
        with autocast(device):
            with torch.no_grad():
                z_hr = hr_encoder(hr).float()
            z_lr = encoder(lr).float()
            noise = torch.randn(z_lr.shape, generator=pool.g, device=device) * stage.start_noise
            if later:
                t[:later] = later_timesteps(later, stage.sampler_steps, last + 1, pool.g).float()
                v = unet(noise[:later], z_lr[:later], t.new_full((later,), last))
                guess = to_start(noise[:later], v, table[last]).detach()
                noise[:later] = diffuse(guess, at(t[:later]), noise[:later])[0]
            z_0 = to_start(noise, unet(noise, z_lr, t), at(t))
            latents = torch.cat([z_lr + scale * z_0, z_hr[:known]])
            image = decoder(latents.contiguous(memory_format=fold), torch.cat([lr, lr[:known]]))
            textured = float(torch.rand((), generator=draw)) < stage.alex_sees_hr
            model = torch.cat([teacher_target, hr[:known]])
            target = torch.cat([hr, hr[:known]]) if textured else model
            terms = picture(image, target, pool.g, model)
        missing = contrast(image, torch.cat([hr, hr[:known]]), stage.contrast_first)
        anchor = ((z_hr - z_lr) / scale).square().mean()
        run.update(
            terms.total() + stage.contrast_weight * missing.mean() + stage.anchor_weight * anchor,
            l1=terms.l1[: len(lr)].mean(),
            grid=terms.grid.mean(),
            perceptual=terms.perceptual[: len(lr)].mean(),
            contrast=missing[: len(lr)].mean(),
            adversarial=terms.adversarial,
            discriminator=terms.discriminator,
            hr_l1=F.l1_loss(image[: len(lr)].detach().float(), hr),
            known_l1=terms.l1[len(lr) :].mean() if known else 0.0,
            anchor=anchor,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_stage_networks(parser)
    add_distillation(parser)
    parser.add_argument(
        "--super-resolution",
        type=Path,
        help="run of train_super_resolution, whose network the decoder starts from",
    )
    add_run_options(
        parser, DistillationStage(), steps=6000, learning_rate=5e-4, warmup=50, ema=0.998
    )
    args = parser.parse_args()
    config, stage = run_config(args, DistillationStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    parts = load_stage_networks(args, stage.preset, device)
    networks, net, discriminator = parts.networks, parts.denoiser, parts.discriminator
    if args.super_resolution:
        decoder = networks["decoder"]
        assert isinstance(decoder, SlimDecoder)
        decoder.begin_at(load_run(args.super_resolution)["super_resolution"])
    if stage.quantization_aware:
        fake_quantize_layers(networks["decoder"], DECODER_FLOAT)
    for kept in (networks["hr_encoder"], net.text_encoder, net.connector):
        kept.requires_grad_(False)
    trained = {
        "lr_encoder": networks.pop("lr_encoder").train(),
        "denoiser": net.train(),
        "decoder": networks.pop("decoder").train(),
    }
    if stage.adversarial_weight:
        trained["discriminator"] = discriminator
    run = Run(args.out, config, stage, trained)
    pool = distillation_pool(args, stage, config.seed + run.step, device)
    picture = PictureLoss(
        args.lpips, stage, discriminator, stage.adversarial_weight, target_share=0.0
    ).to(device)
    train(pool, picture, networks["hr_encoder"], run, stage, device)


if __name__ == "__main__":
    main()
