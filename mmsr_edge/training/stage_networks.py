"""Networks that the stages after the autoencoder start from."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mmsr_edge.models.decoder import SlimDecoder
from mmsr_edge.models.networks import build_component
from mmsr_edge.models.tokenizer import Tokenizer
from mmsr_edge.training.denoiser import Denoiser
from mmsr_edge.training.losses.discriminator import Discriminator
from mmsr_edge.training.options import add_lpips
from mmsr_edge.training.states import load_states, start_from


@dataclass(frozen=True)
class StageNetworks:
    """Networks that a stage after the diffusion starts from, on the device, in training mode."""

    networks: dict[str, nn.Module]
    """`hr_encoder`, `lr_encoder`, `tokenizer` and `decoder`, by name."""
    denoiser: Denoiser
    """Text encoder, connector and UNet."""
    discriminator: Discriminator
    """The discriminator; fresh weights if no run has one."""


def add_stage_networks(parser: argparse.ArgumentParser, *, lpips: bool = True) -> None:
    """Add the options that `load_stage_networks` reads, and `--lpips` unless it is not needed."""
    add = parser.add_argument
    add("--autoencoder", type=Path, required=True, help="run of train_autoencoder, or a checkpoint")
    add("--tokenizer", type=Path, help="run of train_tokenizer, or a checkpoint; fresh if left out")
    add(
        "--diffusion", type=Path,
        help="run or checkpoint with the denoiser to start from; fresh if left out",
    )  # fmt: skip
    if lpips:
        add_lpips(parser)


def grow_super_resolution(decoder: nn.Module, fresh: list[str]) -> None:
    """Initialize added layers of a compact super-resolution network so that they pass features on.

    Does nothing if the loaded weights had all layers, or none.

    Args:
        decoder: decoder of any preset.
        fresh: names of the tensors that were not loaded; see `states.start_from`.
    """
    layers = re.compile(r"decoder\.compact\.body\.(\d+)\.weight")
    missing = [int(found[1]) for name in fresh if (found := layers.fullmatch(name))]
    if missing and min(missing) > 0:
        assert isinstance(decoder, SlimDecoder) and decoder.compact is not None
        decoder.compact.pass_on(min(missing) // 2)


def freeze_but_dense(decoder: nn.Module) -> None:
    """Freeze a decoder but its residual dense network, and what joins that to the rest."""
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(name.startswith(("dense.", "join_dense.", "gate.")))


def load_stage_networks(
    args: argparse.Namespace, preset_name: str, device: torch.device
) -> StageNetworks:
    """Build the networks with the weights of the runs or checkpoints.

    If several have the same network, the one of the last of `--autoencoder`, `--tokenizer` and
    `--diffusion` is used.

    Raises:
        OptionError: a folder is neither a run nor a checkpoint.
        BundleError: a checkpoint is damaged.
    """
    states = {
        **load_states(args.autoencoder),
        **(load_states(args.tokenizer, ema=False) if args.tokenizer else {}),
        **(load_states(args.diffusion) if args.diffusion else {}),
    }
    networks: dict[str, nn.Module] = {
        name: build_component(name, preset_name)
        for name in ("hr_encoder", "lr_encoder", "tokenizer", "decoder")
    }
    discriminator = Discriminator()
    fresh = start_from({**networks, "discriminator": discriminator}, states)
    grow_super_resolution(networks["decoder"], fresh)
    tokenizer = networks["tokenizer"]
    assert isinstance(tokenizer, Tokenizer)
    net = Denoiser(preset_name, tokenizer.vq.quantize.embedding.weight.detach())
    # A preset without the MMLC leaves its weights out.
    own = net.state_dict()
    given = states.get("denoiser", own)
    net.load_state_dict({**own, **{k: v for k, v in given.items() if k in own}})
    for module in (*networks.values(), discriminator, net):
        module.to(device, memory_format=torch.channels_last)
    return StageNetworks(networks, net, discriminator)
