"""Quality and cost of autoencoder variants: the table for the choice of a preset's autoencoder.

    python benchmarks/pareto_autoencoder.py --photos DIR --test DIR --out pareto.csv

Every variant is trained from scratch in the same way: L1 of D(E(x)) alone, on the same crops in the
same order. Then it reconstructs whole pictures, and its decoder is quantized and timed in OpenVINO.
Short trainings rank architectures; the released one trains longer and with more losses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lib.comparison import read
from lib.metrics import psnr_y
from torch import nn
from tqdm import tqdm

from mmsr_edge.bundle import TensorSpec
from mmsr_edge.converters.quantize import QuantConfig, quantize
from mmsr_edge.converters.to_onnx import to_onnx
from mmsr_edge.files import write_csv
from mmsr_edge.models.autoencoder import build_autoencoder
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.presets import AutoencoderConfig, preset
from mmsr_edge.training.data.photos import Photos, find_photos

NANO = preset("nano").autoencoder
VARIANTS: dict[str, AutoencoderConfig] = {
    "nano": NANO,
    "x4 shuffle": replace(NANO, decoder_blocks=(4, 4, 0)),
    "half x1": replace(NANO, decoder_blocks=(4, 4, 1)),
    "half x4": replace(NANO, decoder_blocks=(4, 4, 4)),
    "width 96": replace(NANO, width=96),
    "width 192": replace(NANO, width=192),
    "8 channels": replace(NANO, channels=8),
    "32 channels": replace(NANO, channels=32),
}


def train(
    config: AutoencoderConfig, photos: Path, steps: int, device: torch.device
) -> tuple[nn.Module, nn.Module, float]:
    """Train on eight 128-pixel crops per step; returns encoder, decoder and seconds per step."""
    torch.manual_seed(0)
    data = Photos(photos, device, seed=0, halvings=0)
    networks = build_autoencoder(config)
    encoder, decoder = (
        networks[n].to(device, memory_format=torch.channels_last) for n in ("hr_encoder", "decoder")
    )
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    started = time.monotonic()
    for _ in tqdm(range(steps), leave=False):
        hr = data.batch(8, 128)[0].contiguous(memory_format=torch.channels_last)
        with autocast(device):
            loss = (decoder(encoder(hr)).float() - hr).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return encoder.cpu().eval(), decoder.cpu().eval(), (time.monotonic() - started) / steps


@torch.no_grad()
def measure(
    encoder: nn.Module, decoder: nn.Module, pictures: list[Path], threads: int
) -> dict[str, float]:
    """PSNR-Y in dB of reconstructions, and milliseconds of the int8 decoder per 512×512 tile."""
    values, latents = [], []
    for path in pictures:
        pixels = np.array(read(path))
        latent = encoder(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
        latents.append(latent[..., :64, :64].contiguous().numpy())
        out = ((decoder(latent)[0].clamp(-1, 1) + 1) * 127.5).round().byte()
        values.append(psnr_y(out.permute(1, 2, 0).numpy(), pixels))
    feeds = [{"latent": latent} for latent in latents]
    shapes = latents[0].shape, (1, 3, 512, 512)
    inputs, outputs = (
        (TensorSpec(name, shape, "float32"),)
        for name, shape in zip(("latent", "image"), shapes, strict=True)
    )
    graph = quantize(to_onnx(decoder, feeds[0], inputs, outputs), feeds, QuantConfig())
    import openvino

    core = openvino.Core()
    model = core.compile_model(
        core.read_model(graph.SerializeToString()), "CPU", {"INFERENCE_NUM_THREADS": threads}
    )
    times = []
    for _ in range(25):
        started = time.perf_counter()
        model(feeds[0])
        times.append(1000 * (time.perf_counter() - started))
    return {
        "psnr_y": round(statistics.mean(values), 2),
        "decoder_ms": round(statistics.median(times[5:]), 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="photographs to train on")
    parser.add_argument("--test", type=Path, required=True, help="folder of 512-pixel pictures")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    pictures = find_photos(args.test)
    rows = []
    for name in args.variants:
        config = VARIANTS[name]
        encoder, decoder, seconds = train(config, args.photos, args.steps, pick_device(args.device))
        size = sum(p.numel() for p in decoder.parameters())
        row = {
            "variant": name,
            "channels": config.channels,
            "width": config.width,
            "decoder_blocks": "-".join(map(str, config.decoder_blocks)),
            "decoder_parameters": size,
            **measure(encoder, decoder, pictures, args.threads),
            "seconds_a_step": round(seconds, 3),
        }
        rows.append(row)
        print(row, flush=True)
        write_csv(args.out, rows)


if __name__ == "__main__":
    main()
