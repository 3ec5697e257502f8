"""Train the VQ tokenizer of modality maps (Sec. 3.1).

    python -m mmsr_edge.training.train_tokenizer --photos DIR --modalities RUN RUN RUN --out RUN

A vector-quantized autoencoder (van den Oord et al. 2017). Codebooks of this width collapse if they
are trained from the start, so the first `warm` steps have no quantization. Then the codebook is set
by k-means on the encoder's features, and unused codes are regularly moved to current features.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from mmsr_edge.bundle import MAP_SIDE
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.presets import preset
from mmsr_edge.models.tokenizer import Tokenizer, nearest_codes
from mmsr_edge.training.data.degradation import DegradeConfig, degrade
from mmsr_edge.training.data.maps import MapMaker, ModalityNetworks
from mmsr_edge.training.data.photos import Photos
from mmsr_edge.training.modality_networks import (
    add_modality_networks,
    load_modality_networks,
)
from mmsr_edge.training.options import PresetConfig, add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_states, start_from


@dataclass(frozen=True)
class TokenizerStage(PresetConfig):
    """Settings of this stage."""

    crop: int = 256
    """Side in HR pixels of the crops that maps are made of."""
    side: int = 128
    """Side in pixels of the piece of a 256×256 map that is trained on."""
    batch: int = 4
    """Crops per step; each has three maps."""
    warm: int = 120
    """Number of first steps without quantization."""
    revive_every: int = 50
    """Steps between replacements of unused codes."""


def map_batches(
    photos: Photos, modalities: ModalityNetworks, stage: TokenizerStage, seed: int
) -> Iterator[Tensor]:
    """Endless batches of pieces of depth, segmentation and edge maps, [3·batch, 3, side, side]."""
    maker = MapMaker(photos, modalities, seed)
    g = torch.Generator(photos.device).manual_seed(seed)
    while True:
        hr, crops = photos.batch(stage.batch, stage.crop)
        lr = degrade(hr, DegradeConfig(), g)
        maps = maker(crops, hr, lr).maps.flatten(0, 1)
        top, left = (int(torch.randint(MAP_SIDE - stage.side + 1, ())) for _ in range(2))
        yield maps[:, :, top : top + stage.side, left : left + stage.side]


@torch.no_grad()
def place_codebook(tokenizer: Tokenizer, batches: Iterator[Tensor], seed: int) -> None:
    """Set the codes to the k-means centres of the encoder's features, over 24 batches."""
    codebook = tokenizer.vq.quantize.embedding.weight
    rows = torch.cat([tokenizer.features(next(batches)).flatten(0, 1) for _ in range(24)])
    means = MiniBatchKMeans(len(codebook), batch_size=4096, n_init=1, random_state=seed)
    codebook.copy_(torch.from_numpy(means.fit(rows.float().cpu().numpy()).cluster_centers_))


@torch.no_grad()
def revive(codebook: Tensor, counts: Tensor, features: Tensor) -> int:
    """Set unused codes to features drawn at random; returns the number of these codes.

    Args:
        codebook: [codes, D], changed in place.
        counts: uses of each code, [codes].
        features: [N, D].
    """
    dead = (counts == 0).nonzero().flatten()
    drawn = features[torch.randint(len(features), (len(dead),), device=features.device)]
    codebook[dead] = drawn.to(codebook.dtype)
    return len(dead)


def train(batches: Iterator[Tensor], run: Run, stage: TokenizerStage, device: torch.device) -> None:
    """Run the stage; `run.trained` holds `tokenizer`."""
    tokenizer = run.trained["tokenizer"]
    assert isinstance(tokenizer, Tokenizer)
    vq = tokenizer.vq
    codebook = vq.quantize.embedding.weight
    counts = torch.zeros(len(codebook), device=device)
    for step in run:
        maps = next(batches).contiguous(memory_format=torch.channels_last)
        if step == stage.warm:
            place_codebook(tokenizer, batches, run.config.seed)
        with autocast(device):
            h = vq.quant_conv(vq.encoder(maps)).float()
            commitment = h.new_zeros(())
            quantized = h
            if step >= stage.warm:
                flat = h.permute(0, 2, 3, 1).flatten(0, 2)
                indices = nearest_codes(flat.detach(), codebook.detach())
                counts += torch.bincount(indices, minlength=len(codebook))
                codes = torch.nn.functional.embedding(indices, codebook)
                codes = codes.reshape(h.shape[0], *h.shape[2:], -1).permute(0, 3, 1, 2)
                # VQ-VAE, Eq. 3: codes move to the features, and features, less, to the codes.
                commitment = (codes - h.detach()).square().mean() + 0.25 * (
                    codes.detach() - h
                ).square().mean()
                quantized = h + (codes - h).detach()
            out = vq.decoder(vq.post_quant_conv(quantized))
        reconstruction = (out.float() - maps).abs().mean()
        dead = float((counts == 0).float().mean()) if step > stage.warm else 0.0
        run.update(
            reconstruction + commitment, l1=reconstruction, commitment=commitment, unused=dead
        )
        if step > stage.warm and step % stage.revive_every == 0 and step < 0.8 * run.config.steps:
            revive(codebook, counts, flat.detach())
            counts.zero_()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_modality_networks(parser)
    parser.add_argument("--init", type=Path, help="run or checkpoint to start from")
    add_run_options(parser, TokenizerStage(), steps=600, learning_rate=5e-4, warmup=50, ema=0.99)
    args = parser.parse_args()
    config, stage = run_config(args, TokenizerStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    network = Tokenizer(preset(stage.preset).tokenizer).to(
        device, memory_format=torch.channels_last
    )
    if args.init:
        start_from({"tokenizer": network}, load_states(args.init, ema=False))
    run = Run(args.out, config, stage, {"tokenizer": network.train()})
    seed = config.seed + run.step
    photos = Photos(args.photos, device, seed=seed)
    modalities = load_modality_networks(args.modalities, stage.preset, device)
    train(map_batches(photos, modalities, stage, seed), run, stage, device)


if __name__ == "__main__":
    main()
