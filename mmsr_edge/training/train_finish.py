r"""Finish the model through its decoder: what few steps give is judged as a picture.

    python -m mmsr_edge.training.train_finish --photos DIR --lpips DIR \
        --autoencoder RUN --tokenizer RUN --diffusion RUN --modalities RUN RUN RUN --out RUN

Trained on v alone, one step from pure noise gives the mean of all that the LR picture could have
been: a blur. Here the denoiser and the decoder learn together, the HR encoder being kept, from

    z_t = √ᾱ·z_0 + √(1−ᾱ)·ε,  v̂ = UNet(z_t),  ẑ_0 = √ᾱ·z_t − √(1−ᾱ)·v̂,  x̂ = D(E_lr(y) + s·ẑ_0)

with the picture loss on x̂, against the HR picture and, where `--teacher` is given, against what
Real-ESRGAN x4plus makes of y (see `picture_teacher`). E_lr learns too where `anchor_weight` is not
0: that times the mean square of z_0, what it leaves to the diffusion, is added to the loss. Without
it nothing keeps z_0 small, and v diverges. Few steps start without noise (`start_noise` 0: what one
step could not remove of it was streaks), and most t are the last one, all that one step sees; the
rest are the other timesteps of a sampler of `sampler_steps`, which start from what the first step
gave. On a part of each batch the diffusion's own loss goes on, so that sampling in many steps stays
possible, and on another the reconstruction D(E(x)).
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsr_edge.models.presets import preset
from mmsr_edge.sampler import timesteps
from mmsr_edge.training.checkpoint import load_states
from mmsr_edge.training.data import to_picture
from mmsr_edge.training.denoiser import Denoiser, alphas, diffuse, to_start
from mmsr_edge.training.modalities import add_modalities, load_modalities
from mmsr_edge.training.options import add_run_options, run_config
from mmsr_edge.training.parts import add_parts, load_parts
from mmsr_edge.training.picture_loss import PictureLoss, contrast
from mmsr_edge.training.picture_teacher import load_picture_teacher
from mmsr_edge.training.run import Run, autocast, pick_device
from mmsr_edge.training.samples import Encoder, Pool, Samples, draw_present


@dataclass(frozen=True)
class FinishStage:
    """Settings of this stage."""

    preset: str = "nano"
    """Which networks."""
    crop: int = 192
    """HR pixels of a training crop's side."""
    batch: int = 8
    """Samples a step that are judged as pictures."""
    diffused: int = 2
    """Samples a step, besides, on which the diffusion's loss goes on; 0: it does not."""
    reconstructed: int = 2
    """Of `batch`, those whose reconstruction is trained too."""
    start_noise: float = 0.0
    """Standard deviation of what a few steps start from; 1: the diffusion's own start."""
    later: float = 0.25
    """Share of `batch` that starts after the first step."""
    sampler_steps: int = 4
    """The sampler whose timesteps those are."""
    pool: int = 2048
    """Encoded samples held."""
    reuse: float = 6.0
    """Times a sample is used; 1 where encoding is cheap."""
    drop: float = 0.1
    """p, chance that a modality is replaced by m∅, each on its own."""
    absent: float = 0.0
    """Share of the samples of which no modality at all is known."""
    sharp_maps: float = 0.5
    """Share of the samples whose maps and words are the HR picture's; the others have, as on the
    device, the LR picture's."""
    negative: float = 0.05
    """Share of targets blurred on purpose, with a prompt that says so."""
    noisy: float = 0.0
    """Share of the samples whose LR pictures are as if taken in the dark."""
    l1_weight: float = 1.5
    """Weight of the mean absolute difference."""
    target_share: float = 0.5
    """Share of it that compares with HR where there is a teacher; the rest with the teacher."""
    grid_weight: float = 5.0
    """Weight of what repeats in it from cell to cell."""
    alex_weight: float = 0.6
    """Weight of LPIPS-Alex, at a random phase."""
    alex_sees_hr: float = 1.0
    """Share of steps in which it compares with HR; in the others with the teacher, if any."""
    vgg_weight: float = 0.5
    """Weight of LPIPS-VGG."""
    vgg_taps: int = 5
    """Feature maps of VGG that are compared."""
    vgg_crop: int = 128
    """Side of the piece of a picture that VGG and the critic see."""
    statistics_weight: float = 0.0
    """Weight of how far the statistics of VGG's features are apart."""
    contrast_weight: float = 0.0
    """Weight of how far the contrast of a picture's bands is from the HR picture's."""
    contrast_first: int = 1
    """Its finest band; 0: periods of 2 to 4 pixels."""
    critic_weight: float = 0.03
    """Weight of the adversary."""
    latent_noise: float = 0.05
    """Standard deviation of the noise on E(x) before decoding."""
    context_alone: bool = False
    """Only what carries the modalities learns; what was taught without them stays as it is."""
    anchor_weight: float = 0.0
    """Weight of what E_lr leaves to the diffusion; 0 keeps E_lr as it is."""

    @property
    def later_rows(self) -> int:
        """How many of `batch`, its first, start after the first step."""
        return round(self.later * self.batch)


def draw_timesteps(stage: FinishStage, total: int, g: torch.Generator) -> Tensor:
    """Timesteps [batch + diffused]: the sampler's for the pictures, any for the diffusion."""
    # Trailing spacing (Lin et al. 2023, Table 2), as the bundle samples.
    table = torch.from_numpy(timesteps(total, stage.sampler_steps, "trailing")).to(g.device)
    rows = torch.randint(1, stage.sampler_steps, (stage.batch,), generator=g, device=g.device)
    rows[stage.later_rows :] = 0
    anywhere = torch.randint(total, (stage.diffused,), generator=g, device=g.device)
    return torch.cat([table[rows], anywhere])


def encode_lr(encoder: nn.Module | None, batch: Samples, scale: Tensor) -> tuple[Samples, Tensor]:
    """The batch with z_lr as E_lr gives it now, and the mean square of z_0 = (z_hr − z_lr)/s.

    Args:
        encoder: E_lr as it learns; None: it does not, and the mean square is not wanted.
        batch: with z_lr as the frozen E_lr gave it.
        scale: s, standard deviation of the residual, [C, 1, 1].
    """
    if encoder is None:
        return batch, torch.zeros((), device=batch.z_lr.device)
    z_lr = encoder(to_picture(batch.lr)).float()
    return replace(batch, z_lr=z_lr), ((batch.z_hr - z_lr) / scale).square().mean()


def aims(batch: Samples, n: int, kept: int) -> tuple[Tensor, Tensor | None]:
    """What `n` pictures and `kept` reconstructions are judged by: HR, and a teacher's if any.

    A reconstruction sees the HR picture itself, so the teacher has no say in it.
    """

    again = to_picture(batch.target[:kept])
    target = torch.cat([to_picture(batch.target[:n]), again])
    if batch.taught is None:
        return target, None
    return target, torch.cat([to_picture(batch.taught[:n]), again])


def first_guess(
    net: Denoiser, batch: Samples, noise: Tensor, present: Tensor, table: Tensor, rows: int
) -> Tensor:
    """ẑ_0 of the first `rows` samples, in one step from the start, [rows, C, h, w].

    The later steps of a sampler start from it, with the same noise (DDIM with η = 0), not from
    z_0: a denoiser that was trained on z_0 alone trusts what it gave itself too much.
    """
    # Cut off at the end, not under no_grad: the counter of FLOP hooks into the gradients.
    last = torch.full((rows,), len(table) - 1, device=noise.device)
    a = table[last][:, None, None, None]
    with autocast(noise.device):
        v = net(noise[:rows], last.float(), batch[:rows], present[:rows]).float()
    return to_start(noise[:rows], v, a).detach()


def train(
    pool: Pool, picture: PictureLoss, run: Run, stage: FinishStage, device: torch.device
) -> None:
    """Run the stage; `run.trained` holds `denoiser`, `decoder`, `critic`, and E_lr if it learns."""
    net, g = run.trained["denoiser"], pool.encoder.g
    assert isinstance(net, Denoiser)
    decoder = run.trained["decoder"]
    table = alphas(stage.preset, device)
    scale = net.residual_scale[:, None, None]
    n, kept, fold = stage.batch, stage.reconstructed, torch.channels_last
    draw = torch.Generator().manual_seed(run.step)  # on the CPU, which need not wait for it
    for _ in run:
        batch = pool.batch(n + stage.diffused)
        t = draw_timesteps(stage, len(table), g)
        a = table[t][:, None, None, None]
        noise = torch.randn(batch.z_hr.shape, generator=g, device=device)
        noise[:n] *= stage.start_noise
        present = draw_present(batch.soft, stage.drop, g, absent=stage.absent)
        target, taught = aims(batch, n, kept)
        with autocast(device):
            batch, anchor = encode_lr(run.trained.get("lr_encoder"), batch, scale)
        z0 = (batch.z_hr - batch.z_lr.detach()) / scale
        if later := stage.later_rows:
            z0[:later] = first_guess(net, batch, noise, present, table, later)
        noisy, v = diffuse(z0, a, noise)
        with autocast(device):
            prediction = net(noisy, t.float(), batch, present).float()
            start = to_start(noisy, prediction, a)[:n]
            blur = torch.randn(batch.z_hr[:kept].shape, generator=g, device=device)
            latents = torch.cat(
                [batch.z_lr[:n] + scale * start, batch.z_hr[:kept] + stage.latent_noise * blur]
            )
            lr = to_picture(torch.cat([batch.lr[:n], batch.lr[:kept]]))
            image = decoder(latents.contiguous(memory_format=fold), lr)
            textured = taught is None or float(torch.rand((), generator=draw)) < stage.alex_sees_hr
            terms = picture(image, target if textured else taught, g, taught)
        missing = contrast(image[:n], target[:n], stage.contrast_first).mean()
        diffusion = (prediction - v)[n:].square().sum() / max(v[n:].numel(), 1)
        run.update(
            terms.total()
            + diffusion
            + stage.contrast_weight * missing
            + stage.anchor_weight * anchor,
            l1=terms.l1[:n].mean(),
            grid=terms.grid.mean(),
            perceptual=terms.perceptual[:n].mean(),
            contrast=missing,
            statistics=terms.statistics[:n].mean(),
            reconstruction=(terms.l1 + terms.perceptual)[n:].sum() / max(kept, 1),
            adversarial=terms.adversarial,
            critic=terms.critic,
            diffusion=diffusion,
            anchor=anchor,
        )


def carries_context(name: str) -> bool:
    """Whether a denoiser's parameter is one of what carries the modalities.

    Those are the text encoder, the connector and the UNet's attention to the context; `diffusers`
    calls a transformer block's cross-attention `attn2`.
    """
    return name.startswith(("text_encoder.", "connector.")) or ".attn2." in name


def take_context(net: Denoiser, states: dict[str, Tensor]) -> None:
    """Give `net` what carries the context in another denoiser's state dict."""
    net.load_state_dict({k: v for k, v in states.items() if carries_context(k)}, strict=False)


def keep_all_but_context(net: Denoiser, decoder: nn.Module) -> None:
    """Freeze all but what carries the context."""
    decoder.requires_grad_(False)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(carries_context(name))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_parts(parser)
    add_modalities(parser)
    parser.add_argument("--teacher", type=Path, help="folder with realesrgan-x4plus.param and .bin")
    parser.add_argument(
        "--context", type=Path, help="run or checkpoint whose way with the modalities to begin with"
    )
    add_run_options(parser, FinishStage(), steps=3000, learning_rate=1e-4, warmup=50, ema=0.998)
    args = parser.parse_args()
    config, stage = run_config(args, FinishStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    parts = load_parts(args, stage.preset, device)
    networks, net, critic = parts.networks, parts.denoiser, parts.critic
    decoder = networks.pop("decoder")
    if args.context:
        take_context(net, load_states(args.context)["denoiser"])
    for frozen in networks.values():
        frozen.requires_grad_(False)
    if stage.context_alone:
        keep_all_but_context(net, decoder)
    trained = {"denoiser": net.train(), "decoder": decoder.train()}
    if stage.critic_weight:
        trained["critic"] = critic
    if stage.anchor_weight:
        trained["lr_encoder"] = copy.deepcopy(networks["lr_encoder"]).requires_grad_(True).train()
    run = Run(args.out, config, stage, trained)
    text = preset(stage.preset).text_spec()
    seen = load_modalities(args.modalities, stage.preset, device)
    encoder = Encoder(
        args.photos,
        networks,
        seen,
        text,
        stage.crop,
        stage.negative,
        device,
        config.seed + run.step,
        load_picture_teacher(args.teacher, device) if args.teacher else None,
        stage.noisy,
        stage.sharp_maps,
    )
    picture = PictureLoss(args.lpips, stage, critic, stage.target_share).to(device)
    train(Pool(encoder, stage.pool, stage.reuse), picture, run, stage, device)


if __name__ == "__main__":
    main()
