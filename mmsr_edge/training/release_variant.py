r"""Make a checkpoint that differs from another in its decoder alone.

    python -m mmsr_edge.training.release_variant --base weights/nano --preset small --decoder RUN \
        --tiles FILE --version 0.1.0 --out weights/small \
        --initialized-from "Real-ESRGAN x4plus" BSD-3-Clause "the decoder's residual dense network"

All other networks, the sampler and the provenance are those of `--base`, which must lie beside
`--out`: their files stay there. With the same folder for both, the decoder of `--base` is replaced.
The release gates are measured as in `release`. The decoder's weights are the run's moving averages,
in fp16.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from mmsr_edge.bundle import open_bundle
from mmsr_edge.errors import OptionError
from mmsr_edge.models.checkpoint import write_variant
from mmsr_edge.models.networks import build_component
from mmsr_edge.training.data.tiles import load_tiles
from mmsr_edge.training.release import UNGATED, release, require_tiles, with_ancestors
from mmsr_edge.training.states import load_states


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--base", type=Path, required=True, help="checkpoint beside --out, or at it")
    add("--preset", default="small", help="preset of the decoder; default small")
    add("--decoder", type=Path, required=True, help="run that trained the decoder")
    add("--tiles", type=Path, help=f"tiles for the gates; needed but for {', '.join(UNGATED)}")
    add("--version", required=True, help="version of the weights")
    add("--out", type=Path, required=True, help="folder of the checkpoint")
    add(
        "--initialized-from", nargs=3, action="append", default=[],
        metavar=("NAME", "LICENCE", "WHAT"),
        help="published network that the decoder was initialized from; repeatable",
    )  # fmt: skip
    args = parser.parse_args()
    require_tiles(args.tiles, args.preset)
    if args.base.resolve().parent != args.out.resolve().parent:
        raise OptionError(f"--base {str(args.base)!r} must lie beside {str(args.out)!r}")
    base = open_bundle(args.base)
    decoder = build_component("decoder", args.preset)
    decoder.load_state_dict(load_states(args.decoder)["decoder"])
    write = partial(
        write_variant,
        base,
        {"decoder": decoder},
        preset_name=args.preset,
        version=args.version,
        provenance=with_ancestors(base.manifest.provenance, args.initialized_from),
    )
    release(write, args.out, None if args.tiles is None else load_tiles(args.tiles))


if __name__ == "__main__":
    main()
