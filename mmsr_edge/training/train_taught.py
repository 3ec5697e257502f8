r"""Learn one step from a published enlarger: E_lr, UNet and decoder give what the teacher gives.

    python -m mmsr_edge.training.train_taught --photos DIR --lpips DIR --teacher DIR \
        --autoencoder RUN --tokenizer RUN --diffusion RUN --out RUN

    x̂ = D(E_lr(y) + s·ẑ_0),   ẑ_0 = −UNet(ε ⊕ E_lr(y), T, c∅),   x̂ ≈ teacher(y)

What the HR picture was cannot be known from a noisy LR picture y: losses against it stop falling
early, and drown what can be learnt. The teacher's answer is a function of y, the same every time
(see `picture_teacher`). No modality is seen here: c∅ is what the connector makes of four m∅, so
that a sample is a crop, its degradation and the teacher's answer, which are cheap to make and may
be turned and cut in many ways. `train_finish` goes on with the modalities and the HR pictures.
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
from mmsr_edge.models.presets import preset
from mmsr_edge.sampler import timesteps
from mmsr_edge.training.denoiser import Denoiser, alphas, diffuse, to_start
from mmsr_edge.training.fake_int8 import round_layers, rounding
from mmsr_edge.training.options import add_run_options, run_config
from mmsr_edge.training.parts import add_parts, load_parts
from mmsr_edge.training.picture_loss import PictureLoss, contrast
from mmsr_edge.training.run import Run, autocast, load_run, pick_device
from mmsr_edge.training.taught import TaughtPool, add_taught, taught_pool


@dataclass(frozen=True)
class TaughtStage:
    """Settings of this stage."""

    preset: str = "nano"
    """Which networks."""
    taught_crop: int = 224
    """HR pixels of a side of what the teacher is shown."""
    crop: int = 128
    """HR pixels of a side of the pieces of it that are trained on."""
    batch: int = 8
    """Pieces a step."""
    pool: int = 4096
    """Taught pictures held."""
    reuse: float = 32.0
    """Pieces drawn of each; 1 where teaching is cheap."""
    reconstructed: float = 0.0
    """Share of pieces that are decoded once more from E_hr's latents, for the HR picture."""
    later: float = 0.0
    """Share of pieces that take a second step, from the first one's guess."""
    sampler_steps: int = 4
    """The longest sampler whose timesteps those take."""
    start_noise: float = 0.0
    """Standard deviation of what the one step starts from; 1: the diffusion's own start."""
    clean: float = 0.25
    """Share of pictures that are only downscaled."""
    noisy: float = 0.0
    """Share of the draws whose LR pictures are all as if taken in the dark."""
    alex_sees_hr: float = 0.0
    """Share of steps in which LPIPS-Alex compares with HR, for texture that the teacher leaves out.
    """
    l1_weight: float = 2.0
    """Weight of the mean absolute difference."""
    grid_weight: float = 2.0
    """Weight of what repeats in it from cell to cell."""
    alex_weight: float = 0.5
    """Weight of LPIPS-Alex, at a random phase."""
    vgg_weight: float = 0.0
    """Weight of LPIPS-VGG."""
    vgg_taps: int = 3
    """Feature maps of VGG that are compared."""
    vgg_crop: int = 96
    """Side of the piece of a picture that VGG sees."""
    statistics_weight: float = 0.0
    """Weight of how far the statistics of VGG's features are apart."""
    contrast_weight: float = 0.0
    """Weight of how far the contrast of a picture's bands is from the HR picture's."""
    contrast_first: int = 1
    """Its finest band; 0: periods of 2 to 4 pixels."""
    critic_weight: float = 0.0
    """Weight of the adversary, to whom the teacher's answers are real."""
    anchor_weight: float = 0.02
    """Weight of the mean square of z_0, what E_lr leaves to the diffusion."""
    int8: bool = False
    """Round the decoder's layers as the export will; a last stage, at a low learning rate."""
    int8_share: float = 1.0
    """Share of steps in which they are; in the others they compute as in float, so that the float
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
    walks = [timesteps(total, n, "trailing")[1:] for n in range(2, longest + 1)]
    table = torch.from_numpy(np.concatenate(walks)).to(g.device)
    return table[torch.randint(len(table), (count,), generator=g, device=g.device)]


def train(
    pool: TaughtPool, picture: PictureLoss, hr_encoder: nn.Module, run: Run,
    stage: TaughtStage, device: torch.device,
) -> None:  # fmt: skip
    """Run the stage; `run.trained` holds `lr_encoder`, `denoiser`, `decoder`, and a critic if any.

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
        rounding(decoder, float(torch.rand((), generator=draw)) < stage.int8_share)
        lr, hr, taught = pool.batch(stage.batch)
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
            model = torch.cat([taught, hr[:known]])
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
            critic=terms.critic,
            hr_l1=F.l1_loss(image[: len(lr)].detach().float(), hr),
            known_l1=terms.l1[len(lr) :].mean() if known else 0.0,
            anchor=anchor,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_parts(parser)
    add_taught(parser)
    parser.add_argument(
        "--compact", type=Path, help="run of train_compact, for a decoder that is to begin there"
    )
    add_run_options(parser, TaughtStage(), steps=6000, learning_rate=5e-4, warmup=50, ema=0.998)
    args = parser.parse_args()
    config, stage = run_config(args, TaughtStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    parts = load_parts(args, stage.preset, device)
    networks, net, critic = parts.networks, parts.denoiser, parts.critic
    if args.compact:
        decoder = networks["decoder"]
        assert isinstance(decoder, SlimDecoder)
        decoder.begin_at(load_run(args.compact)["compact"])
    if stage.int8:
        round_layers(networks["decoder"], DECODER_FLOAT)
    for kept in (networks["hr_encoder"], net.text_encoder, net.connector):
        kept.requires_grad_(False)
    trained = {
        "lr_encoder": networks.pop("lr_encoder").train(),
        "denoiser": net.train(),
        "decoder": networks.pop("decoder").train(),
    }
    if stage.critic_weight:
        trained["critic"] = critic
    run = Run(args.out, config, stage, trained)
    pool = taught_pool(args, stage, config.seed + run.step, device)
    picture = PictureLoss(args.lpips, stage, critic, target_share=0.0).to(device)
    train(pool, picture, networks["hr_encoder"], run, stage, device)


if __name__ == "__main__":
    main()
