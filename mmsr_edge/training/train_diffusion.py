r"""Train the denoiser, the connector and the text encoder together.

    python -m mmsr_edge.training.train_diffusion \
        --photos DIR --autoencoder RUN --tokenizer RUN --modalities RUN RUN RUN --out RUN

Classifier-free training as in Sec. 3.1: each modality, text included, is replaced by its m∅ with
p = 0.1. The target is v = √ᾱ·ε − √(1−ᾱ)·z_0 on a schedule rescaled to zero terminal SNR (Lin et al.
2023), so that training, like sampling, includes pure noise; z_0 is the residual of
`models/autoencoder.py`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.networks import build_component
from mmsr_edge.models.presets import preset
from mmsr_edge.models.tokenizer import Tokenizer
from mmsr_edge.training.data.samples import Encoder, Pool, SamplesConfig, draw_present
from mmsr_edge.training.denoiser import Denoiser, alphas, diffuse
from mmsr_edge.training.modality_networks import add_modality_networks, load_modality_networks
from mmsr_edge.training.options import PresetConfig, add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_states


@dataclass(frozen=True)
class DiffusionStage(PresetConfig, SamplesConfig):
    """Settings of this stage."""


@torch.no_grad()
def residual_scale(encoder: Encoder, batches: int = 6) -> Tensor:
    """s: the standard deviation of z_hr − z_lr per channel, [C], over batches of 16 crops."""
    parts = [encoder(16) for _ in range(batches)]
    return torch.cat([p.z_hr - p.z_lr for p in parts]).std((0, 2, 3))


def train(pool: Pool, run: Run, stage: DiffusionStage, device: torch.device) -> None:
    """Run the stage; `run.trained` holds `denoiser`."""
    net, g = run.trained["denoiser"], pool.encoder.g
    assert isinstance(net, Denoiser)
    table = alphas(stage.preset, device)
    for _ in run:
        batch = pool.batch(stage.batch)
        z0 = (batch.z_hr - batch.z_lr) / net.residual_scale[:, None, None]
        t = torch.randint(len(table), (stage.batch,), generator=g, device=device)
        a = table[t][:, None, None, None]
        noise = torch.randn(z0.shape, generator=g, device=device)
        noisy, v = diffuse(z0, a, noise)
        present = draw_present(batch.soft, stage.drop, g)
        with autocast(device):
            prediction = net(noisy, t.float(), batch, present)
        run.update((prediction.float() - v).square().mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--autoencoder", type=Path, required=True, help="run of train_autoencoder, or a checkpoint"
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="run of train_tokenizer, or a checkpoint"
    )
    add_modality_networks(parser)
    parser.add_argument(
        "--init", type=Path, help="run or checkpoint to start from; of a run, the averaged weights"
    )
    add_run_options(parser, DiffusionStage(), steps=3000, learning_rate=3e-4, warmup=100, ema=0.998)
    args = parser.parse_args()
    config, stage = run_config(args, DiffusionStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    states = {**load_states(args.autoencoder), **load_states(args.tokenizer, ema=False)}
    frozen = {}
    for name in ("hr_encoder", "lr_encoder", "tokenizer"):
        frozen[name] = build_component(name, stage.preset)
        frozen[name].load_state_dict(states[name])
        frozen[name].to(device, memory_format=torch.channels_last).requires_grad_(False)
    tokenizer = frozen["tokenizer"]
    assert isinstance(tokenizer, Tokenizer)
    net = Denoiser(stage.preset, tokenizer.vq.quantize.embedding.weight.detach())
    net.to(device, memory_format=torch.channels_last).train()
    if args.init:
        net.load_state_dict(load_states(args.init)["denoiser"])
    run = Run(args.out, config, stage, {"denoiser": net})
    text = preset(stage.preset).text_spec()
    modalities = load_modality_networks(args.modalities, stage.preset, device)
    seed = config.seed + run.step
    encoder = Encoder(
        args.photos, frozen, modalities, text, stage.crop, stage.negative, device, seed
    )
    if not net.residual_scale.any():
        net.residual_scale.copy_(residual_scale(encoder))
    train(Pool(encoder, stage.pool, stage.reuse), run, stage, device)


if __name__ == "__main__":
    main()
