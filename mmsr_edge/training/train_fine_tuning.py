r"""Fine-tune denoiser and decoder together, with modalities and losses on pictures.

    python -m mmsr_edge.training.train_fine_tuning --photos DIR --lpips DIR \
        --autoencoder RUN --tokenizer RUN --diffusion RUN --modalities RUN RUN RUN --out RUN

Trained on v alone, one step from pure noise predicts the mean of all HR pictures that fit the LR
picture, which is blurred. This stage trains the denoiser and the decoder, with E_hr frozen, on

    z_t = √ᾱ·z_0 + √(1−ᾱ)·ε,  v̂ = UNet(z_t),  ẑ_0 = √ᾱ·z_t − √(1−ᾱ)·v̂,  x̂ = D(E_lr(y) + s·ẑ_0)

with the picture loss of x̂ against the HR picture and, with `--teacher`, against Real-ESRGAN
x4plus's output for y (see `teachers.real_esrgan`). With an `anchor_weight` above 0, E_lr is trained
too, and the loss includes the anchor, `anchor_weight` times the mean square of z_0; without it
nothing keeps z_0 small, and v diverges. Trajectories of few steps start without noise
(`start_noise` 0; noise that one step did not remove became streaks). Most t are the first of a
trajectory, T − 1; the others are the later timesteps of a trajectory of `sampler_steps`, which
start from the estimate of the first step. Further samples train the diffusion's own loss, so that
sampling in many steps stays possible, and some train the reconstruction D(E(x)).
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.presets import preset
from mmsr_edge.sampler import timesteps
from mmsr_edge.training.data.photos import to_picture
from mmsr_edge.training.data.samples import Encoder, Pool, Samples, SamplesConfig, draw_present
from mmsr_edge.training.denoiser import Denoiser, alphas, diffuse, to_start
from mmsr_edge.training.losses.picture import PictureLoss, TeacherLossConfig, contrast
from mmsr_edge.training.modality_networks import add_modality_networks, load_modality_networks
from mmsr_edge.training.options import PresetConfig, add_run_options, add_teacher, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.stage_networks import add_stage_networks, load_stage_networks
from mmsr_edge.training.states import load_states
from mmsr_edge.training.teachers.real_esrgan import load_real_esrgan


@dataclass(frozen=True)
class FineTuningStage(PresetConfig, SamplesConfig, TeacherLossConfig):
    """Settings of this stage. `batch` counts the samples with losses on pictures."""

    crop: int = 192
    batch: int = 8
    diffused: int = 2
    """Further samples per step, for the diffusion's loss on v; 0: none."""
    reconstructed: int = 2
    """Samples of `batch`, the first, that train the reconstruction too."""
    start_noise: float = 0.0
    """Standard deviation of the noise that few steps start from; 1: as in the diffusion."""
    later: float = 0.25
    """Share of `batch` that trains a later step, from the estimate of the first."""
    sampler_steps: int = 4
    """Steps of the trajectory from which the timesteps of those later steps are drawn."""
    absent: float = 0.0
    """Share of the samples with all four modalities absent."""
    sharp_maps: float = 0.5
    """Share of the samples with maps and words from the HR picture; the others have them, as on the
    device, from the LR picture."""
    negative: float = 0.05
    noisy: float = 0.0
    """Share of the samples with strongly noisy LR pictures."""
    l1_weight: float = 1.5
    target_share: float = 0.5
    """Share of L1 that compares with the HR picture if there is a teacher (in the steps of
    `alex_sees_hr`); the rest compares with the teacher target."""
    grid_weight: float = 5.0
    alex_weight: float = 0.6
    alex_sees_hr: float = 1.0
    vgg_taps: int = 5
    vgg_crop: int = 128
    adversarial_weight: float = 0.03
    latent_noise: float = 0.05
    """Standard deviation of the noise on E(x) before decoding."""
    context_alone: bool = False
    """Whether to train only the parameters that carry the modalities; see `carries_context`."""
    anchor_weight: float = 0.0
    """Weight of the anchor, the mean square of z_0; 0 freezes E_lr."""

    @property
    def later_rows(self) -> int:
        """Number of samples of `batch`, the first, that train a later step."""
        return round(self.later * self.batch)


def draw_timesteps(stage: FineTuningStage, total: int, g: torch.Generator) -> Tensor:
    """Timesteps [batch + diffused]: a trajectory's for the pictures, any of `total` after them."""
    # Trailing spacing (Lin et al. 2023, Table 2), as the bundle samples.
    table = torch.from_numpy(timesteps(total, stage.sampler_steps, "trailing")).to(g.device)
    rows = torch.randint(1, stage.sampler_steps, (stage.batch,), generator=g, device=g.device)
    rows[stage.later_rows :] = 0
    anywhere = torch.randint(total, (stage.diffused,), generator=g, device=g.device)
    return torch.cat([table[rows], anywhere])


def encode_lr(encoder: nn.Module | None, batch: Samples, scale: Tensor) -> tuple[Samples, Tensor]:
    """Encode the LR pictures anew, and compute the anchor, the mean square of (z_hr − z_lr) / s.

    Args:
        encoder: E_lr in training; None: E_lr is frozen, `batch` is returned as it is, and the
            anchor is 0.
        batch: samples, with z_lr of the frozen E_lr.
        scale: s, standard deviation of the residual, [C, 1, 1].

    Returns:
        The samples with z_lr of the current E_lr, and the anchor.
    """
    if encoder is None:
        return batch, torch.zeros((), device=batch.z_lr.device)
    z_lr = encoder(to_picture(batch.lr)).float()
    return replace(batch, z_lr=z_lr), ((batch.z_hr - z_lr) / scale).square().mean()


def loss_targets(batch: Samples, n: int, rebuilt: int) -> tuple[Tensor, Tensor | None]:
    """HR pictures and teacher targets (None without a teacher) of `n` pictures and reconstructions.

    The target of the `rebuilt` reconstructions, which come last, is the HR picture in both.
    """
    again = to_picture(batch.target[:rebuilt])
    target = torch.cat([to_picture(batch.target[:n]), again])
    if batch.teacher_target is None:
        return target, None
    return target, torch.cat([to_picture(batch.teacher_target[:n]), again])


def first_estimate(
    net: Denoiser, batch: Samples, noise: Tensor, present: Tensor, table: Tensor, rows: int
) -> Tensor:
    """ẑ_0 of the first `rows` samples after the first step, [rows, C, h, w], without gradient.

    The later steps of a trajectory start from this estimate, with the same noise (DDIM with η = 0).
    A denoiser trained on the true z_0 alone relies too much on its own estimate.

    Args:
        net: the denoiser.
        batch: the samples.
        noise: noise at the start, [B, C, h, w].
        present: [B, 4], 1 for each modality given and 0 for each absent.
        table: ᾱ_t, [T].
        rows: number of samples.
    """
    # Detached at the end, not under no_grad: the FLOP counter hooks into the gradients.
    last = torch.full((rows,), len(table) - 1, device=noise.device)
    a = table[last][:, None, None, None]
    with autocast(noise.device):
        v = net(noise[:rows], last.float(), batch[:rows], present[:rows]).float()
    return to_start(noise[:rows], v, a).detach()


def train(
    pool: Pool, picture: PictureLoss, run: Run, stage: FineTuningStage, device: torch.device
) -> None:
    """Run the stage.

    `run.trained` holds `denoiser`, `decoder`, with an adversarial loss `discriminator`, and with an
    anchor `lr_encoder`.
    """
    net, g = run.trained["denoiser"], pool.encoder.g
    assert isinstance(net, Denoiser)
    decoder = run.trained["decoder"]
    table = alphas(stage.preset, device)
    scale = net.residual_scale[:, None, None]
    n, rebuilt, layout = stage.batch, stage.reconstructed, torch.channels_last
    draw = torch.Generator().manual_seed(run.step)  # on the CPU: no synchronization
    for _ in run:
        batch = pool.batch(n + stage.diffused)
        t = draw_timesteps(stage, len(table), g)
        a = table[t][:, None, None, None]
        noise = torch.randn(batch.z_hr.shape, generator=g, device=device)
        noise[:n] *= stage.start_noise
        present = draw_present(batch.soft, stage.drop, g, absent=stage.absent)
        target, teacher_target = loss_targets(batch, n, rebuilt)
        with autocast(device):
            batch, anchor = encode_lr(run.trained.get("lr_encoder"), batch, scale)
        z0 = (batch.z_hr - batch.z_lr.detach()) / scale
        if later := stage.later_rows:
            z0[:later] = first_estimate(net, batch, noise, present, table, later)
        noisy, v = diffuse(z0, a, noise)
        with autocast(device):
            prediction = net(noisy, t.float(), batch, present).float()
            start = to_start(noisy, prediction, a)[:n]
            extra = torch.randn(batch.z_hr[:rebuilt].shape, generator=g, device=device)
            latents = torch.cat(
                [batch.z_lr[:n] + scale * start, batch.z_hr[:rebuilt] + stage.latent_noise * extra]
            )
            lr = to_picture(torch.cat([batch.lr[:n], batch.lr[:rebuilt]]))
            image = decoder(latents.contiguous(memory_format=layout), lr)
            against_hr = (
                teacher_target is None or float(torch.rand((), generator=draw)) < stage.alex_sees_hr
            )
            terms = picture(image, target if against_hr else teacher_target, g, teacher_target)
        flatness = contrast(image[:n], target[:n], stage.contrast_first).mean()
        diffusion = (prediction - v)[n:].square().sum() / max(v[n:].numel(), 1)
        run.update(
            terms.total()
            + diffusion
            + stage.contrast_weight * flatness
            + stage.anchor_weight * anchor,
            l1=terms.l1[:n].mean(),
            grid=terms.grid.mean(),
            perceptual=terms.perceptual[:n].mean(),
            contrast=flatness,
            statistics=terms.statistics[:n].mean(),
            reconstruction=(terms.l1 + terms.perceptual)[n:].sum() / max(rebuilt, 1),
            adversarial=terms.adversarial,
            discriminator=terms.discriminator,
            diffusion=diffusion,
            anchor=anchor,
        )


def carries_context(name: str) -> bool:
    """Whether a parameter of the denoiser, by its name, carries the modalities.

    Those of the text encoder, of the connector and of the UNet's attention to the context do;
    `diffusers` calls the cross-attention of a transformer block `attn2`.
    """
    return name.startswith(("text_encoder.", "connector.")) or ".attn2." in name


def take_context(net: Denoiser, states: dict[str, Tensor]) -> None:
    """Load into `net` the parameters that carry the context, from another denoiser's state dict."""
    net.load_state_dict({k: v for k, v in states.items() if carries_context(k)}, strict=False)


def keep_all_but_context(net: Denoiser, decoder: nn.Module) -> None:
    """Freeze the decoder and all parameters of `net` but those that carry the context."""
    decoder.requires_grad_(False)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(carries_context(name))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_stage_networks(parser)
    add_modality_networks(parser)
    add_teacher(parser, required=False)
    parser.add_argument(
        "--context", type=Path, help="run or checkpoint to take the context's parameters from"
    )
    add_run_options(parser, FineTuningStage(), steps=3000, learning_rate=1e-4, warmup=50, ema=0.998)
    args = parser.parse_args()
    config, stage = run_config(args, FineTuningStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    loaded = load_stage_networks(args, stage.preset, device)
    networks, net, discriminator = loaded.networks, loaded.denoiser, loaded.discriminator
    decoder = networks.pop("decoder")
    if args.context:
        take_context(net, load_states(args.context)["denoiser"])
    for frozen in networks.values():
        frozen.requires_grad_(False)
    if stage.context_alone:
        keep_all_but_context(net, decoder)
    trained = {"denoiser": net.train(), "decoder": decoder.train()}
    if stage.adversarial_weight:
        trained["discriminator"] = discriminator
    if stage.anchor_weight:
        trained["lr_encoder"] = copy.deepcopy(networks["lr_encoder"]).requires_grad_(True).train()
    run = Run(args.out, config, stage, trained)
    text = preset(stage.preset).text_spec()
    modalities = load_modality_networks(args.modalities, stage.preset, device)
    encoder = Encoder(
        args.photos,
        networks,
        modalities,
        text,
        stage.crop,
        stage.negative,
        device,
        config.seed + run.step,
        load_real_esrgan(args.teacher, device) if args.teacher else None,
        stage.noisy,
        stage.sharp_maps,
    )
    picture = PictureLoss(
        args.lpips, stage, discriminator, stage.adversarial_weight, stage.target_share
    ).to(device)
    train(Pool(encoder, stage.pool, stage.reuse), picture, run, stage, device)


if __name__ == "__main__":
    main()
