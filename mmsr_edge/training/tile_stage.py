"""What the stages on tiles start from: networks, encoded tiles, and the student's residuals."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsr_edge.models.decoder import SlimDecoder
from mmsr_edge.models.device import pick_device
from mmsr_edge.models.networks import build_component
from mmsr_edge.models.presets import preset
from mmsr_edge.training.data.tile_samples import TileSamples
from mmsr_edge.training.data.tiles import join_tiles, load_tiles
from mmsr_edge.training.denoiser import Denoiser
from mmsr_edge.training.run import RunConfig
from mmsr_edge.training.states import load_states, start_from, tokenizer_states
from mmsr_edge.training.student import begin, student_residuals


@dataclass(frozen=True)
class TileStage:
    """Networks and tiles of a stage, on its device."""

    denoiser: Denoiser
    """Text encoder, connector and UNet."""
    decoder: nn.Module
    """The decoder."""
    samples: TileSamples
    """The encoded tiles."""
    reference: Tensor
    """Residuals of the checkpoint's student for all tiles, [N, C, l, l], on the CPU."""


def add_tile_stage(parser: argparse.ArgumentParser) -> None:
    """Add the options that `open_tile_stage` reads."""
    add = parser.add_argument
    add("--tiles", type=Path, nargs="+", required=True, help="files from make_tiles")
    add("--checkpoint", type=Path, required=True, help="checkpoint or run to start from")
    add("--tokenizer", type=Path, required=True, help="run of train_tokenizer, or a checkpoint")
    add("--init", type=Path, help="run whose denoiser and decoder replace the checkpoint's")
    add("--encoded", type=Path, help="file that keeps the encoded tiles for the next session")
    add("--fold", action="store_true", help="start from a checkpoint whose context is a constant")


def open_tile_stage(args: argparse.Namespace, config: RunConfig, preset_name: str) -> TileStage:
    """Load the networks, and encode the tiles with them.

    Raises:
        OptionError: a folder is neither a run nor a checkpoint.
        BundleError: a checkpoint is damaged.
    """
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    states = {**load_states(args.checkpoint), **tokenizer_states(args.tokenizer)}
    networks = {
        name: build_component(name, preset_name)
        for name in ("hr_encoder", "lr_encoder", "tokenizer", "decoder")
    }
    fresh = start_from(networks, states)
    net = Denoiser(preset_name, states["tokenizer"]["vq.quantize.embedding.weight"])
    begin(net, states["denoiser"], preset_name, fold=args.fold)
    for network in (net, *networks.values()):
        network.to(device, memory_format=torch.channels_last)
    tiles = join_tiles([load_tiles(path) for path in args.tiles])
    text, g = preset(preset_name).text_spec(), torch.Generator().manual_seed(config.seed)
    samples = TileSamples(tiles, networks, text, net.residual_scale, g, args.encoded)
    reference = student_residuals(samples, net, preset_name, args.encoded)
    if args.init:
        found = {"denoiser": net, "decoder": networks["decoder"]}
        given = load_states(args.init)
        fresh = start_from({name: found[name] for name in found if name in given}, given)
    decoder = networks["decoder"]
    if any("refocus" in name for name in fresh):
        assert isinstance(decoder, SlimDecoder)
        decoder.begin_soft()
    return TileStage(net, decoder, samples, reference)
