"""Throughput for the paper's Table 2: the UNet with the MMLC, and on the bare tokens.

    python benchmarks/connector.py --model weights/nano --out connector.csv

Both variants run with the same weights. nano was not trained on the bare tokens, so the outputs of
the second variant are meaningless. The preset `nano-bare` was trained on them, as long as nano: its
pictures are as good (docs/journal.md, session 12).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmsr_edge.bundle import MODALITIES
from mmsr_edge.files import write_csv
from mmsr_edge.models.checkpoint import open_checkpoint
from mmsr_edge.models.connector import Connector
from mmsr_edge.models.unet import UNet


def ways(
    connector: Connector, unet: UNet, latent_size: int
) -> dict[str, tuple[int, Callable[[], Tensor]]]:
    """Context length and a UNet call on one tile, with the MMLC and without it."""
    maps, dim = connector.position.shape
    text = torch.randn(1, connector.lengths[0], dim)
    tokens = [torch.randn(1, maps, dim - connector.pad) for _ in MODALITIES[1:]]
    present = torch.ones(1, len(MODALITIES))
    channels = unet.net.config.in_channels - unet.aligned
    latent = torch.randn(1, channels, latent_size, latent_size)
    t = torch.full((1,), 999.0)
    return {
        "with MMLC": (
            len(connector.latents),
            lambda: unet(latent, t, connector(text, *tokens, present, present)),
        ),
        "without": (
            sum(connector.lengths),
            lambda: unet(latent, t, connector.tokens([text, *tokens], present)),
        ),
    }


@torch.no_grad()
def compare(
    calls: dict[str, tuple[int, Callable[[], Tensor]]], repeats: int
) -> list[dict[str, object]]:
    """Measure context tokens, GFLOP and median time of each variant; calls alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _, call in calls.values():
        call()
    for _ in range(repeats):
        for name, (_, call) in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    rows: list[dict[str, object]] = []
    for name, (length, call) in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        rows.append(
            {
                "way": name,
                "context_tokens": length,
                "gflop": round(counter.get_total_flops() / 1e9, 2),
                "milliseconds": round(1000 * statistics.median(seconds[name]), 1),
            }
        )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.model)
    connector, unet = (checkpoint.networks[name] for name in ("connector", "unet"))
    assert isinstance(connector, Connector) and isinstance(unet, UNet)
    rows = compare(ways(connector, unet, int(unet.net.config.sample_size)), args.repeats)
    write_csv(args.out, rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
