"""Reconstruction of each modality's maps from discrete and from continuous tokens (Fig. 4).

    python benchmarks/tokenizer_report.py --checkpoint DIR --pictures DIR --out OUT

Discrete tokens are vectors of the codebook, the connector's input. Continuous tokens are the
encoder's features before quantization. Writes `tokenizer.csv`, and `maps.png` with the rows map,
discrete and continuous for each modality.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mmsr_edge.bundle import MAPS
from mmsr_edge.files import write_csv
from mmsr_edge.models.checkpoint import open_checkpoint
from mmsr_edge.models.tokenizer import Tokenizer
from mmsr_edge.training.data.degradation import DegradeConfig, degrade
from mmsr_edge.training.data.maps import MapMaker
from mmsr_edge.training.data.photos import Photos
from mmsr_edge.training.modality_networks import load_modality_networks


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [B, 3, 256, 256] from discrete and from continuous tokens, and the indices [B, 256]."""
    vq = tokenizer.vq
    tokens, indices = tokenizer(maps)
    side = int(tokens.shape[1] ** 0.5)
    discrete = tokens.transpose(1, 2).unflatten(2, (side, side))
    continuous = vq.quant_conv(vq.encoder(maps))
    out = [vq.decoder(vq.post_quant_conv(h)).clamp(-1, 1) for h in (discrete, continuous)]
    return out[0], out[1], indices


def perplexity(indices: Tensor, codes: int) -> float:
    """Exponential of the entropy of the code frequencies: the effective number of codes."""
    share = torch.bincount(indices.flatten(), minlength=codes).double()
    share = share[share > 0] / share.sum()
    return float(torch.exp(-(share * share.log()).sum()))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="such as weights/nano")
    parser.add_argument("--pictures", type=Path, required=True, help="held-out photographs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=96, help="crops, drawn from all pictures")
    parser.add_argument("--crop", type=int, default=256, help="side of a crop, in HR pixels")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(args.checkpoint)
    tokenizer = checkpoint.networks["tokenizer"]
    assert isinstance(tokenizer, Tokenizer)
    codes = len(tokenizer.vq.quantize.embedding.weight)

    photos = Photos(args.pictures, torch.device("cpu"), halvings=0)
    hr, crops = photos.batch(args.count, args.crop)
    lr = degrade(hr, DegradeConfig(), torch.Generator().manual_seed(0))
    modalities = load_modality_networks(
        [args.checkpoint], checkpoint.bundle.manifest.preset, hr.device
    )
    maps = MapMaker(photos, modalities)(crops, hr, lr).maps  # [B, 3 modalities, 3, 256, 256]
    rows, strips = [], []
    for i, modality in enumerate(MAPS):
        parts = [reconstruct(tokenizer, m) for m in maps[:, i].split(16)]
        discrete, continuous, indices = (torch.cat(column) for column in zip(*parts, strict=True))
        row: dict[str, object] = {"modality": modality}
        for name, out in (("discrete", discrete), ("continuous", continuous)):
            error = out - maps[:, i]
            row[f"{name}_l1"] = round(error.abs().mean().item(), 4)
            row[f"{name}_psnr"] = round(10 * math.log10(4 / error.square().mean().item()), 2)
        row |= {"codes_used": indices.unique().numel(), "codes": codes}
        row["perplexity"] = round(perplexity(indices, codes), 1)
        rows.append(row)
        print(row)
        strips.append(
            torch.cat([torch.cat(list(m[:6]), 2) for m in (maps[:, i], discrete, continuous)], 1)
        )
    write_csv(args.out / "tokenizer.csv", rows)
    picture = ((torch.cat(strips, 1).permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    Image.fromarray(picture).save(args.out / "maps.png")


if __name__ == "__main__":
    main()
