r"""The average of two runs' weights, where one began with the other's or both with a third's.

    python -m mmsr_edge.training.average --autoencoder RUN --tokenizer RUN \
        --diffusion RUN --other RUN --share 0.5 --out RUN

    θ = (1 − w)·θ_A + w·θ_B

It is often better than either (model soups, Wortsman et al. 2022): every step leaves noise in the
weights, of which an average has less.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor

from mmsr_edge.errors import OptionError
from mmsr_edge.training.stage_networks import add_stage_networks, load_stage_networks
from mmsr_edge.training.states import write_run

States = dict[str, dict[str, Tensor]]
"""State dicts by network."""


def average(a: States, b: States, share: float) -> States:
    """(1 − share)·a + share·b of what both have; the rest is a's.

    Raises:
        OptionError: tensors of one name have different shapes, or `share` is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise OptionError(f"share {share:g} must be in [0, 1]")
    out: States = {}
    for name, network in a.items():
        out[name] = dict(network)
        for key in network.keys() & b.get(name, {}).keys():
            one, two = network[key], b[name][key]
            if one.shape != two.shape:
                raise OptionError(
                    f"{name}.{key} has shape {list(one.shape)} in one run and {list(two.shape)} "
                    "in the other: only runs of the same networks can be averaged"
                )
            if one.is_floating_point():
                out[name][key] = torch.lerp(one, two, share)
    return out


def _states(args: argparse.Namespace, preset_name: str, run: Path) -> States:
    """A run's networks, grown to today's size where they had fewer layers."""
    args = copy.copy(args)
    args.diffusion = run
    stage_networks = load_stage_networks(args, preset_name, torch.device("cpu"))
    networks = {**stage_networks.networks, "denoiser": stage_networks.denoiser}
    return {name: network.state_dict() for name, network in networks.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_stage_networks(parser, lpips=False)
    parser.add_argument("--other", type=Path, required=True, help="run or checkpoint B")
    parser.add_argument("--share", type=float, default=0.5, help="w; default 0.5")
    parser.add_argument("--preset", default="nano", help="which networks; default nano")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder, to be written")
    args = parser.parse_args()
    a, b = (_states(args, args.preset, run) for run in (args.diffusion, args.other))
    write_run(args.out, average(a, b, args.share))


if __name__ == "__main__":
    main()
