"""Table 2's throughput: what the UNet costs with the MMLC before it, and on the bare tokens.

    python benchmarks/connector.py --model weights/nano --out connector.csv

Both ways run side by side with the same weights, so the outputs of the second mean nothing: nano
has never been trained on the bare sequence. For Table 2's quality the preset `nano-bare` was,
beside nano and as long: the pictures are as good either way (TRAINING.md, twelfth session).
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

from mmsr_edge.files import write_csv
from mmsr_edge.models.checkpoint import open_checkpoint
from mmsr_edge.models.connector import MODALITIES, Connector
from mmsr_edge.models.unet import UNet


def ways(
    connector: Connector, unet: UNet, latent_size: int
) -> dict[str, tuple[int, Callable[[], Tensor]]]:
    """Length of the context and one UNet call of a tile, with the MMLC and without it."""
    maps, dim = connector.position.shape
    text = torch.randn(1, connector.lengths[0], dim)
    seen = [torch.randn(1, maps, dim - connector.pad) for _ in MODALITIES[1:]]
    present = torch.ones(1, len(MODALITIES))
    latent = torch.randn(1, unet.net.config.in_channels, latent_size, latent_size)
    t = torch.full((1,), 999.0)
    return {
        "with MMLC": (
            len(connector.latents),
            lambda: unet(latent, t, connector(text, *seen, present, present)),
        ),
        "without": (
            sum(connector.lengths),
            lambda: unet(latent, t, connector.tokens([text, *seen], present)),
        ),
    }


@torch.no_grad()
def compare(
    calls: dict[str, tuple[int, Callable[[], Tensor]]], repeats: int
) -> list[dict[str, object]]:
    """Context tokens, GFLOP and the median time of each way, taken in turns."""
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
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint (torch weights)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True, help="CSV")
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
