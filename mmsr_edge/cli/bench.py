"""`mmsr-edge bench`: measure the speed on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmsr_edge.cli.arguments import add_model, add_placement
from mmsr_edge.cli.output import FAILED, OK, write_json
from mmsr_edge.errors import OutputError
from mmsr_edge.files import write_csv

if TYPE_CHECKING:
    import argparse

__all__ = ["add_bench"]


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.set_defaults(run=_bench)
    add = parser.add_argument
    add("--image", metavar="FILE", help="picture to upscale (default: synthetic, 128x128)")
    add_model(parser)
    add("--backend", action="append", metavar="NAME", help="may be repeated (default: all usable)")
    add("--precision", action="append", metavar="P", help="may be repeated (default: auto)")
    add(
        "--steps",
        action="append",
        type=int,
        metavar="N",
        help="may be repeated (default: the model's)",
    )
    add(
        "--threads",
        type=int,
        metavar="N",
        help="threads per network call (default: the backend's choice)",
    )
    add_placement(parser)
    add("--repeats", type=int, default=7, metavar="N", help="timed pictures (default: 7)")
    add("-o", "--out", type=Path, metavar="DIR", help="also write bench.csv, .json and .png there")


def _bench(arguments: argparse.Namespace) -> int:
    from mmsr_edge.benchmark import Configuration, as_text, benchmark, grid, report, table_rows
    from mmsr_edge.benchmark.chart import write_chart
    from mmsr_edge.bundle import open_bundle
    from mmsr_edge.image import load_image
    from mmsr_edge.runtimes.registry import backend_named, list_backends

    bundle = open_bundle(arguments.model)  # errors come before minutes of measuring
    if arguments.image is not None:
        load_image(arguments.image)
    for name in arguments.backend or ():
        if name != "auto":
            backend_named(name)
    usable = [status.name for status in list_backends(bundle) if status.usable]
    base = Configuration(
        model=arguments.model,
        threads=arguments.threads,
        repeats=arguments.repeats,
        picture=arguments.image,
        device=arguments.device,
        compile=arguments.compile,
    )
    chosen = arguments.backend or usable or ["auto"]
    out: Path | None = arguments.out
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"folder {out} cannot be created: {error}") from error
    measured, refused = benchmark(
        list(grid(base, chosen, arguments.precision or ["auto"], arguments.steps or [None])),
        lambda name: print(f"measuring {name} …", file=sys.stderr),
    )
    print(as_text(measured, refused))
    if out is not None:
        write_json(report(measured, refused), out / "bench.json")
        write_csv(out / "bench.csv", table_rows(measured))
        write_chart(out / "bench.png", measured)
    return OK if measured else FAILED
