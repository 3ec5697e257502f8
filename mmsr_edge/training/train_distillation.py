r"""Distil a published super-resolution network into one step of E_lr, UNet and decoder.

    python -m mmsr_edge.training.train_distillation --photos DIR --lpips DIR --teacher DIR \
        --autoencoder RUN --tokenizer RUN --diffusion RUN --out RUN

    x̂ = D(E_lr(y) + s·ẑ_0),   ẑ_0 = −UNet(ε ⊕ E_lr(y), T, c∅),   x̂ ≈ teacher(y)

A noisy LR picture y does not determine its HR picture: losses against HR pictures stop falling
early and hide what can be learnt. The teacher's output is a function of y (see
`teachers.real_esrgan`). All modalities are absent: c∅ is the connector's output for four m∅. A
sample is therefore an LR picture, its HR picture and its teacher target, which are cheap to make
and can be cut and turned in many ways. `train_fine_tuning` continues with modalities and HR
pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.modalities.prompt import encode_prompt
from mmsr_edge.models.decoder import SlimDecoder
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.presets import preset
from mmsr_edge.sampler import timesteps
from mmsr_edge.training.data.distillation import DistillationConfig, DistillationPool
from mmsr_edge.training.denoiser import Denoiser, alphas, diffuse, to_start
from mmsr_edge.training.losses.picture import PictureLoss, TeacherLossConfig, contrast
from mmsr_edge.training.options import (
    PresetConfig,
    add_distillation,
    add_run_options,
    distillation_pool,
    run_config,
)
from mmsr_edge.training.run import Run
from mmsr_edge.training.stage_networks import (
    add_stage_networks,
    freeze_but_dense,
    load_stage_networks,
)
from mmsr_edge.training.states import load_run


@dataclass(frozen=True)
class DistillationStage(PresetConfig, DistillationConfig, TeacherLossConfig):
    """Settings of this stage."""

    reconstructed: float = 0.0
    """Share of the pieces that are also decoded from E_hr's latents, against the HR picture."""
    later: float = 0.0
    """Share of the pieces that take a second step, from the estimate of the first."""
    sampler_steps: int = 4
    """Steps of the longest trajectory from which the timesteps of those second steps are drawn."""
    start_noise: float = 0.0
    """Standard deviation of the noise that the first step starts from; 1: as in the diffusion."""
    vgg_weight: float = 0.0
    dense_alone: bool = False
    """Whether all is frozen but the decoder's residual dense network, for a model that shares the
    rest with another."""
    gate_weight: float = 0.0
    """Weight of the gate's cross-entropy, for decoders with a residual dense network: it is to be 0
    for pictures that are only downscaled, and 1 for others."""
    anchor_weight: float = 0.02
    """Weight of the anchor, the mean square of z_0, which E_lr leaves to the diffusion."""


RATES = {"join_dense": 4.0, "gate": 20.0}
"""Factors on the learning rate: what joins the dense network to the rest begins anew."""


def absent_context(net: Denoiser, preset_name: str, device: torch.device) -> Tensor:
    """c∅: the context [1, N, D] of four absent modalities."""
    ids = encode_prompt("", preset(preset_name).text_spec())
    text = net.text_encoder(torch.from_numpy(ids).to(device))
    side = 16
    zeros = torch.zeros(1, side * side, net.codebook.shape[1], device=device)
    absent = torch.zeros(1, 4, device=device)
    context: Tensor = net.connector(text, zeros, zeros, zeros, absent, torch.ones_like(absent))
    return context


def later_timesteps(count: int, longest: int, total: int, g: torch.Generator) -> Tensor:
    """`count` random timesteps other than the first, of trajectories of 2 to `longest` steps."""
    trajectories = [timesteps(total, n, "trailing")[1:] for n in range(2, longest + 1)]
    table = torch.from_numpy(np.concatenate(trajectories)).to(g.device)
    return table[torch.randint(len(table), (count,), generator=g, device=g.device)]


def gate_error(logits: Tensor, degraded: Tensor) -> Tensor:
    """Cross-entropy of the gate's logits [B, 1, h, w] with `degraded`, 0 or 1 by picture, [B]."""
    wanted = degraded[:, None, None, None].expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits.float(), wanted)


@torch.no_grad()
def residual_scale(
    pool: DistillationPool, hr_encoder: nn.Module, lr_encoder: nn.Module, batches: int = 6
) -> Tensor:
    """s: the standard deviation of z_hr − z_lr per channel, [C], over batches of 16 pieces."""
    parts = []
    for _ in range(batches):
        lr, hr, _ = pool.batch(16)
        with autocast(lr.device):
            parts.append((hr_encoder(hr) - lr_encoder(lr)).float())
    return torch.cat(parts).std((0, 2, 3))


def train(
    pool: DistillationPool, picture: PictureLoss, frozen: Mapping[str, nn.Module], run: Run,
    stage: DistillationStage, device: torch.device,
) -> None:  # fmt: skip
    """Run the stage.

    `run.trained` holds `decoder`, `lr_encoder` and `denoiser`, unless these two are `frozen`, and,
    with an adversarial loss, `discriminator`. `frozen` holds `hr_encoder`, whose latents are for
    the anchor and the reconstruction.
    """
    networks = {**frozen, **run.trained}
    hr_encoder, encoder, net, decoder = (
        networks[n] for n in ("hr_encoder", "lr_encoder", "denoiser", "decoder")
    )
    assert isinstance(net, Denoiser)
    with torch.no_grad():
        context = absent_context(net, stage.preset, device)
    scale = net.residual_scale[:, None, None]
    last = len(table := alphas(stage.preset, device)) - 1
    layout, later = torch.channels_last, round(stage.later * stage.batch)
    rebuilt = round(stage.reconstructed * stage.batch)
    draw = torch.Generator().manual_seed(run.step)  # on the CPU: no synchronization

    def unet(noisy: Tensor, z_lr: Tensor, t: Tensor) -> Tensor:
        latent = torch.cat([noisy, z_lr], 1).contiguous(memory_format=layout)
        v: Tensor = net.unet(latent, t, context.expand(len(t), -1, -1)).float()
        return v

    def at(t: Tensor) -> Tensor:
        return table[t.long()][:, None, None, None]

    logits: list[Tensor] = []
    if stage.gate_weight:
        decoder.gate.register_forward_hook(lambda _, __, out: logits.append(out))
    for _ in run:
        lr, hr, teacher_target, *_ = pool.batch(stage.batch)
        t = torch.full((len(lr),), float(last), device=device)
        with autocast(device):
            with torch.no_grad():
                z_hr = hr_encoder(hr).float()
            z_lr = encoder(lr).float()
            noise = torch.randn(z_lr.shape, generator=pool.g, device=device) * stage.start_noise
            if later:
                t[:later] = later_timesteps(later, stage.sampler_steps, last + 1, pool.g).float()
                v = unet(noise[:later], z_lr[:later], t.new_full((later,), last))
                estimate = to_start(noise[:later], v, table[last]).detach()
                noise[:later] = diffuse(estimate, at(t[:later]), noise[:later])[0]
            z_0 = to_start(noise, unet(noise, z_lr, t), at(t))
            latents = torch.cat([z_lr + scale * z_0, z_hr[:rebuilt]])
            image = decoder(latents.contiguous(memory_format=layout), torch.cat([lr, lr[:rebuilt]]))
            against_hr = float(torch.rand((), generator=draw)) < stage.alex_sees_hr
            originals = torch.cat([hr, hr[:rebuilt]])
            sharp = torch.cat([teacher_target, hr[:rebuilt]])
            terms = picture(image, originals if against_hr else sharp, pool.g, sharp)
        flatness = contrast(image, originals, stage.contrast_first)
        anchor = ((z_hr - z_lr) / scale).square().mean()
        gate = torch.zeros((), device=device)
        if stage.gate_weight:
            degraded = (sharp != originals).flatten(1).any(1).float()
            gate = gate_error(logits.pop(), degraded)
        run.update(
            terms.total()
            + stage.contrast_weight * flatness.mean()
            + stage.gate_weight * gate
            + stage.anchor_weight * anchor,
            l1=terms.l1[: len(lr)].mean(),
            grid=terms.grid.mean(),
            perceptual=terms.perceptual[: len(lr)].mean(),
            contrast=flatness[: len(lr)].mean(),
            adversarial=terms.adversarial,
            discriminator=terms.discriminator,
            hr_l1=F.l1_loss(image[: len(lr)].detach().float(), hr),
            known_l1=terms.l1[len(lr) :].mean() if rebuilt else 0.0,
            gate=gate,
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
        help="run of train_super_resolution to initialize the decoder from",
    )
    add_run_options(
        parser, DistillationStage(), steps=6000, learning_rate=5e-4, warmup=50, ema=0.998
    )
    args = parser.parse_args()
    config, stage = run_config(args, DistillationStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    loaded = load_stage_networks(args, stage.preset, device)
    networks, net, discriminator = loaded.networks, loaded.denoiser, loaded.discriminator
    if args.super_resolution:
        decoder = networks["decoder"]
        assert isinstance(decoder, SlimDecoder)
        begin = decoder.begin_at if decoder.dense is None else decoder.begin_dense
        begin(load_run(args.super_resolution)["super_resolution"])
    networks = {**networks, "denoiser": net}
    learning = ("decoder",) if stage.dense_alone else ("lr_encoder", "denoiser", "decoder")
    trained = {name: networks.pop(name).train() for name in learning}
    for module in (*networks.values(), net.text_encoder, net.connector):
        module.requires_grad_(False)
    if stage.adversarial_weight:
        trained["discriminator"] = discriminator
    if stage.dense_alone:
        freeze_but_dense(trained["decoder"])
    run = Run(args.out, config, stage, trained, RATES)
    pool = distillation_pool(args, stage, config.seed + run.step, device)
    if not net.residual_scale.any():  # a fresh denoiser
        encoders = ({**networks, **trained}[name] for name in ("hr_encoder", "lr_encoder"))
        net.residual_scale.copy_(residual_scale(pool, *encoders))
    picture = PictureLoss(
        args.lpips, stage, discriminator, stage.adversarial_weight, target_share=0.0
    ).to(device)
    train(pool, picture, networks, run, stage, device)


if __name__ == "__main__":
    main()
