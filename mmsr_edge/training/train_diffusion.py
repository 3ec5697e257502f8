r"""Train the denoiser, the connector and the text encoder together.

    python -m mmsr_edge.training.train_diffusion \
        --photos DIR --autoencoder RUN --tokenizer RUN --out RUN

Classifier-free training as in Sec. 3.1: each modality is replaced by its m∅ with p = 0.1, the text
too. The target is v = √ᾱ·ε − √(1−ᾱ)·z_0 on a schedule rescaled to zero terminal SNR (Lin et al.
2023), so that sampling starts from pure noise as training did; z_0 is the residual of
`models/autoencoder.py`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.components import build_component
from mmsr_edge.models.presets import preset
from mmsr_edge.models.tokenizer import Tokenizer
from mmsr_edge.sampler import make_schedule
from mmsr_edge.training.options import add_run_options, run_config
from mmsr_edge.training.picture_loss import PictureLoss
from mmsr_edge.training.run import Run, autocast, load_run, pick_device
from mmsr_edge.training.samples import Encoder, Pool, Samples


@dataclass(frozen=True)
class DiffusionStage:
    """Settings of this stage."""

    preset: str = "nano"
    """Which networks."""
    crop: int = 256
    """HR pixels of a training crop's side; its latent has an eighth."""
    batch: int = 16
    """Samples a step."""
    pool: int = 2048
    """Encoded samples held."""
    reuse: float = 6.0
    """Times a sample is used; 1 where encoding is cheap."""
    drop: float = 0.1
    """p, chance that a modality is replaced by m∅, each on its own."""
    negative: float = 0.12
    """Share of targets blurred on purpose, with a prompt that says so."""
    one_step: float = 0.0
    """Share of a batch that starts at pure noise, is decoded after one step, and is compared as a
    picture: what the sampler gives in one step is then more than the mean of all possibilities."""
    picture_weight: float = 1.0
    """Weight of that comparison."""
    alex_weight: float = 0.3
    """In it, weight of LPIPS-Alex."""
    vgg_weight: float = 0.5
    """In it, weight of LPIPS-VGG."""
    vgg_taps: int = 3
    """Feature maps of VGG that are compared: 5 where there is a GPU."""
    vgg_crop: int = 96
    """Side of the piece of a picture that VGG sees."""


@torch.no_grad()
def residual_scale(encoder: Encoder, batches: int = 6) -> Tensor:
    """Standard deviation of z_hr − z_lr per channel, [C]."""
    parts = [encoder(16) for _ in range(batches)]
    return torch.cat([p.z_hr - p.z_lr for p in parts]).std((0, 2, 3))


class Denoiser(nn.Module):
    """Text encoder, connector and UNet as one network, for one forward pass of training."""

    def __init__(self, preset_name: str, codebook: Tensor) -> None:
        super().__init__()
        self.text_encoder = build_component("text_encoder", preset_name)
        self.connector = build_component("connector", preset_name)
        self.unet = build_component("unet", preset_name)
        self.register_buffer("codebook", codebook, persistent=False)
        self.register_buffer("residual_scale", torch.zeros(self.unet.net.config.out_channels))

    def forward(self, noisy: Tensor, t: Tensor, batch: Samples, present: Tensor) -> Tensor:
        """Predict v [B, C, h, w]; `present` [B, 4]."""
        text = self.text_encoder(batch.ids)
        maps = [F.embedding(batch.indices[:, i], self.codebook) for i in range(3)]
        context = self.connector(text, *maps, present, torch.ones_like(present))
        latent = torch.cat([noisy, batch.z_lr], 1).contiguous(memory_format=torch.channels_last)
        return self.unet(latent, t, context)


class OneStep(nn.Module):
    """The loss of a picture made in one step from pure noise, through the frozen decoder."""

    def __init__(self, decoder: nn.Module, loss: PictureLoss) -> None:
        super().__init__()
        self.decoder, self.loss = decoder, loss

    def forward(self, latent: Tensor, target: Tensor, g: torch.Generator) -> Tensor:
        """Mean over the batch; `latent` [B, C, h, w], `target` [B, 3, 8h, 8w] uint8."""
        image = self.decoder(latent.contiguous(memory_format=torch.channels_last))
        l1, perceptual = self.loss(image, target.float() / 127.5 - 1, g)
        return (l1 + perceptual).mean()


def train(
    pool: Pool, run: Run, stage: DiffusionStage, device: torch.device, one_step: OneStep | None
) -> None:
    """Run the stage; `run.trained["denoiser"]` learns."""
    net = run.trained["denoiser"]
    first = round(stage.one_step * stage.batch) if one_step is not None else 0
    g = pool.encoder.g
    alphas = torch.from_numpy(make_schedule(preset(stage.preset).sampler).alphas_cumprod).to(
        device, torch.float32
    )
    for _ in run:
        batch = pool.batch(stage.batch)
        z0 = (batch.z_hr - batch.z_lr) / net.residual_scale[:, None, None]
        t = torch.randint(len(alphas), (stage.batch,), generator=g, device=device)
        t[:first] = len(alphas) - 1
        a = alphas[t][:, None, None, None]
        noise = torch.randn(z0.shape, generator=g, device=device)
        noisy = a.sqrt() * z0 + (1 - a).sqrt() * noise
        v = a.sqrt() * noise - (1 - a).sqrt() * z0
        present = (torch.rand((stage.batch, 4), generator=g, device=device) >= stage.drop).float()
        with autocast(device):
            prediction = net(noisy, t.float(), batch, present)
        loss = (prediction.float() - v)[first:].square().mean()
        logged = {"diffusion": loss}
        if one_step is not None:
            # z_0 = √ᾱ·z_t − √(1−ᾱ)·v
            start = (a.sqrt() * noisy - (1 - a).sqrt() * prediction.float())[:first]
            latent = batch.z_lr[:first] + net.residual_scale[:, None, None] * start
            with autocast(device):
                logged["picture"] = one_step(latent, batch.target[:first], g)
            loss = loss + stage.picture_weight * logged["picture"]
        run.update(loss, **logged)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--autoencoder", type=Path, required=True, help="run of train_autoencoder")
    parser.add_argument("--tokenizer", type=Path, required=True, help="run of train_tokenizer")
    parser.add_argument("--init", type=Path, help="another run, to start from its averaged weights")
    parser.add_argument("--lpips", type=Path, help="alexnet.ckpt, vgg16.ckpt; for --one-step")
    add_run_options(parser, DiffusionStage(), steps=3000, learning_rate=3e-4, warmup=100, ema=0.998)
    args = parser.parse_args()
    config, stage = run_config(args, DiffusionStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    frozen = {}
    for name, state in {
        **load_run(args.autoencoder),
        **load_run(args.tokenizer, ema=False),
    }.items():
        frozen[name] = build_component(name, stage.preset)
        frozen[name].load_state_dict(state)
        frozen[name].to(device, memory_format=torch.channels_last).requires_grad_(False)
    tokenizer = frozen["tokenizer"]
    assert isinstance(tokenizer, Tokenizer)
    if stage.one_step and args.lpips is None:
        parser.error("--one-step needs --lpips")
    one_step = None
    if stage.one_step:
        one_step = OneStep(frozen["decoder"], PictureLoss(args.lpips, stage)).to(device)
    net = Denoiser(stage.preset, tokenizer.vq.quantize.embedding.weight.detach())
    net.to(device, memory_format=torch.channels_last).train()
    if args.init:
        net.load_state_dict(load_run(args.init)["denoiser"])
    run = Run(args.out, config, stage, {"denoiser": net})
    text = preset(stage.preset).text_spec()
    encoder = Encoder(
        args.photos, frozen, text, stage.crop, stage.negative, device, config.seed + run.step
    )
    if not net.residual_scale.any():
        net.residual_scale.copy_(residual_scale(encoder))
    train(Pool(encoder, stage.pool, stage.reuse), run, stage, device, one_step)


if __name__ == "__main__":
    main()
