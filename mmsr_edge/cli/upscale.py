"""`mmsr-edge upscale`: upscale one picture or many."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmsr_edge.cli.arguments import (
    add_backend,
    add_dials,
    add_jobs,
    add_model,
    add_size,
    upscale_options,
)
from mmsr_edge.cli.many import default_target, is_job, run_jobs
from mmsr_edge.cli.output import OK, picture_bar, write_json
from mmsr_edge.errors import OutputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ["add_upscale"]


def add_upscale(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.set_defaults(run=_upscale)
    add = parser.add_argument
    add(
        "input", metavar="IN", nargs="+", help="a picture, or several pictures, folders or patterns"
    )
    add(
        "-o",
        "--output",
        metavar="OUT",
        help="result (default: IN_x4.png beside IN); for several inputs, a folder",
    )
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    add_size(parser)
    add_jobs(parser)
    add_model(parser)
    add_backend(parser)
    add_dials(parser)
    add("--save-maps", type=Path, metavar="DIR", help="also write the maps and tags that were used")
    add("-q", "--quiet", action="store_true", help="print errors only")


def _upscale(arguments: argparse.Namespace) -> int:
    from mmsr_edge.image import check_output, check_place, save_image
    from mmsr_edge.upscaler import Upscaler

    upscaler = Upscaler(
        arguments.model,
        arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        device=arguments.device,
        compile=arguments.compile,
    )
    if upscaler.choice and not arguments.quiet:
        print(f"mmsr-edge: {upscaler.choice}", file=sys.stderr)
    if is_job(arguments):
        with _cancel_on_interrupt() as cancel:
            return run_jobs(upscaler, arguments, upscale_options(arguments), cancel)
    arguments.input = source = Path(arguments.input[0])
    output = Path(arguments.output or default_target(upscaler, arguments, source))
    check_output(output, overwrite=arguments.overwrite)
    map_files = _map_files(arguments)
    for file in map_files.values():
        check_place(file, overwrite=arguments.overwrite)
    with _cancel_on_interrupt() as cancel, picture_bar(quiet=arguments.quiet) as progress:
        result = upscaler.upscale(
            source, **upscale_options(arguments), progress=progress, cancel=cancel, output=output
        )
    for name, file in map_files.items():
        if name == "tags":
            names = ("caption", "tags", "degradation")
            write_json({key: getattr(result, key) for key in names}, file)
        elif (picture := result.maps[name]) is not None:
            save_image(picture, file)
    if not arguments.quiet:
        for warning in result.warnings:
            print(f"mmsr-edge: warning: {warning}", file=sys.stderr)
        width, height = result.size
        seconds = result.timings["total"]
        print(f"{output}: {width}x{height}, {result.backend}, {seconds:.1f} s")
    return OK


def _map_files(arguments: argparse.Namespace) -> dict[str, Path]:
    """Paths of the maps and tags to save, by name; creates their folder."""
    from mmsr_edge.bundle import MAPS

    folder: Path | None = arguments.save_maps
    if folder is None:
        return {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {folder} cannot be created: {error}") from error
    stem = arguments.input.stem
    files = {name: folder / f"{stem}_{name}.png" for name in MAPS}
    return {**files, "tags": folder / f"{stem}_tags.json"}


@contextmanager
def _cancel_on_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that upscaling ends between two network calls.

    A second Ctrl-C interrupts at once.
    """
    cancel = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)
