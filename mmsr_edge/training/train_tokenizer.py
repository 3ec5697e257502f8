"""Train the tokenizer of modality maps (Sec. 3.1) on what a token should tell.

    python -m mmsr_edge.training.train_tokenizer --tiles FILE --out RUN

Encoder and codebook are trained with the heads of `losses.tokens`, and with the commitment of
VQ-VAE (van den Oord et al. 2017). Codebooks of this width collapse if they are trained from the
start, so the first `warm` steps have no quantization. Then the codebook is set by k-means on the
encoder's features, and unused codes are regularly moved to current features. The heads are not
released.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.presets import preset
from mmsr_edge.models.tokenizer import Tokenizer, nearest_codes
from mmsr_edge.training.data.tiles import Tiles, join_tiles, load_tiles
from mmsr_edge.training.losses.tokens import TokenHeads, what_maps_tell
from mmsr_edge.training.options import PresetConfig, add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_states, start_from


@dataclass(frozen=True)
class TokenizerStage(PresetConfig):
    """Settings of this stage."""

    batch: int = 8
    """Tiles per step; each has three maps."""
    sharp: float = 0.4
    """Share of the maps that are made of the HR picture, each drawn on its own."""
    warm: int = 250
    """Number of first steps without quantization."""
    revive_every: int = 60
    """Steps between replacements of unused codes."""


Batch = tuple[Tensor, list[Tensor]]
"""Maps [3·B, 3, 256, 256] in [-1, 1], kind after kind, and what they tell."""


def draw_maps(tiles: Tiles, stage: TokenizerStage, g: torch.Generator) -> Batch:
    """Maps of randomly drawn, mirrored tiles."""
    rows = torch.randint(len(tiles), (stage.batch,), generator=g)
    sharp = (torch.rand((stage.batch, 3), generator=g) < stage.sharp).long()
    flip = bool(torch.rand((), generator=g) < 0.5)

    def turned(x: Tensor) -> Tensor:
        return x.flip(-1) if flip else x

    maps = turned(tiles.maps(rows, sharp)).transpose(0, 1).flatten(0, 1)
    planes = (tiles.depth, tiles.classes, tiles.edges)
    told = what_maps_tell(*(turned(p[rows, sharp[:, i]]) for i, p in enumerate(planes)))
    return maps.contiguous(memory_format=torch.channels_last), told


@torch.no_grad()
def place_codebook(tokenizer: Tokenizer, draw: Callable[[], Batch], seed: int) -> None:
    """Set the codes to the k-means centres of the encoder's features, over 12 batches."""
    codebook = tokenizer.vq.quantize.embedding.weight
    rows = torch.cat([tokenizer.features(draw()[0]).flatten(0, 1) for _ in range(12)])
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


def train(draw: Callable[[], Batch], run: Run, stage: TokenizerStage, device: torch.device) -> None:
    """Run the stage; `run.trained` holds `tokenizer` and `heads`."""
    tokenizer, heads = run.trained["tokenizer"], run.trained["heads"]
    assert isinstance(tokenizer, Tokenizer) and isinstance(heads, TokenHeads)
    vq = tokenizer.vq
    codebook = vq.quantize.embedding.weight
    counts = torch.zeros(len(codebook), device=device)
    for step in run:
        maps, told = draw()
        maps, told = maps.to(device), [t.to(device) for t in told]
        if step == stage.warm:
            place_codebook(tokenizer, draw, run.config.seed)
        with autocast(device):
            h = vq.quant_conv(vq.encoder(maps)).float()
            commitment = h.new_zeros(())
            quantized = h
            if step >= stage.warm:
                flat = h.permute(0, 2, 3, 1).flatten(0, 2)
                indices = nearest_codes(flat.detach(), codebook.detach())
                counts += torch.bincount(indices, minlength=len(codebook))
                codes = F.embedding(indices, codebook)
                codes = codes.reshape(h.shape[0], *h.shape[2:], -1).permute(0, 3, 1, 2)
                # VQ-VAE, Eq. 3: codes move to the features, and features, less, to the codes.
                commitment = (codes - h.detach()).square().mean() + 0.25 * (
                    codes.detach() - h
                ).square().mean()
                quantized = h + (codes - h).detach()
            losses, weights = heads.loss(quantized, told)
        dead = float((counts == 0).float().mean()) if step > stage.warm else 0.0
        alone = losses[0].detach()
        run.update(
            (losses * weights).sum() + commitment,
            depth=alone[0],
            classes=alone[1],
            edges=alone[2],
            commitment=commitment,
            unused=dead,
        )
        if step > stage.warm and step % stage.revive_every == 0 and run.done() < 0.8:
            revive(codebook, counts, flat.detach())
            counts.zero_()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tiles", type=Path, nargs="+", required=True, help="files from make_tiles"
    )
    parser.add_argument("--init", type=Path, help="run or checkpoint to start from")
    add_run_options(
        parser,
        TokenizerStage(),
        steps=2500,
        photos=False,
        learning_rate=1.5e-3,
        warmup=50,
        ema=0.99,
    )
    args = parser.parse_args()
    config, stage = run_config(args, TokenizerStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    p = preset(stage.preset)
    if not p.tokenizer.blocks or p.segmentation is None:
        raise OptionError(f"preset {p.name!r} has no slim tokenizer to train")
    networks: dict[str, nn.Module] = {
        "tokenizer": Tokenizer(p.tokenizer),
        "heads": TokenHeads(p.tokenizer.width, p.segmentation.classes),
    }
    if args.init:
        start_from({"tokenizer": networks["tokenizer"]}, load_states(args.init, ema=False))
    for network in networks.values():
        network.to(device, memory_format=torch.channels_last).train()
    run = Run(args.out, config, stage, networks)
    tiles = join_tiles([load_tiles(path) for path in args.tiles])
    g = torch.Generator().manual_seed(config.seed + run.step)
    train(lambda: draw_maps(tiles, stage, g), run, stage, device)


if __name__ == "__main__":
    main()
