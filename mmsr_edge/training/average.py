r"""Average the weights of two runs, one initialized from the other or both from a third.

    python -m mmsr_edge.training.average --autoencoder RUN --tokenizer RUN \
        --diffusion RUN --other RUN --share 0.5 --out RUN

    θ = (1 − w)·θ_A + w·θ_B

The average is often better than either run (model soups, Wortsman et al. 2022): training steps
leave noise in the weights, and averaging reduces it.
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
    """(1 − share)·a + share·b for tensors that both have; the others are a's.

    Raises:
        OptionError: `share` is not in [0, 1], or a tensor has another shape in `a` than in `b`.
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
                    "in the other; give runs of the same networks"
                )
            if one.is_floating_point():
                out[name][key] = torch.lerp(one, two, share)
    return out


def _states(args: argparse.Namespace, preset_name: str, run: Path) -> States:
    """State dicts of a run's networks, extended to the preset's layers where it had fewer."""
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
    parser.add_argument("--share", type=float, default=0.5, help="weight of run B, w; default 0.5")
    parser.add_argument("--preset", default="nano", help="preset of the networks; default nano")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run to write")
    args = parser.parse_args()
    a, b = (_states(args, args.preset, run) for run in (args.diffusion, args.other))
    write_run(args.out, average(a, b, args.share))


if __name__ == "__main__":
    main()
