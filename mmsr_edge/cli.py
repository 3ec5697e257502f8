"""The command line: `mmsr-edge upscale`, `mmsr-edge info`, `mmsr-edge bench`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsr_edge import __version__
from mmsr_edge.cli_bench import add_bench, add_placement
from mmsr_edge.cli_jobs import (
    CANCELLED,
    FAILED,
    OK,
    add_jobs,
    add_size,
    default_target,
    is_job,
    run_jobs,
    write_json,
)
from mmsr_edge.errors import Cancelled, MMSRError, OptionError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mmsr_edge.bundle import Bundle
    from mmsr_edge.upscaler import Progress

__all__ = ["main"]

USAGE = 2

_EPILOG = """\
exit codes:
  0    done
  1    it, or one of several files, could not be done: the message on stderr says why
  2    wrong usage: an unknown option, or a value outside its range
  130  cancelled with Ctrl-C; no unfinished file is left behind
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: arguments without the program's name; None: those of the process.
    """
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except (Cancelled, KeyboardInterrupt):
        print("mmsr-edge: cancelled", file=sys.stderr)
        return CANCELLED
    except MMSRError as error:
        print(f"mmsr-edge: {error}", file=sys.stderr)
        return USAGE if isinstance(error, OptionError) else FAILED


def _parser() -> argparse.ArgumentParser:
    form: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "epilog": _EPILOG,
    }
    parser = argparse.ArgumentParser(
        prog="mmsr-edge", description="Multimodal diffusion super-resolution on the device.", **form
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_upscale(commands.add_parser("upscale", help="enlarge a picture, or many", **form))
    _add_info(commands.add_parser("info", help="show the model and the backends", **form))
    add_bench(commands.add_parser("bench", help="measure how fast it is here", **form))
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="nano", help="a shipped model or a bundle's folder (default: nano)"
    )


def _add_upscale(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_upscale)
    add = parser.add_argument
    add("input", metavar="IN", nargs="+", help="the picture; or several, folders, patterns")
    add("-o", "--output", metavar="OUT", help="default: IN_x4.png, beside IN; of several, a folder")
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    add_size(parser)
    add_jobs(parser)
    _add_model(parser)
    add("--backend", default="auto", help="openvino, onnxruntime, coreml or torch (default: auto)")
    add("--precision", default="auto", help="int4, int8, fp16 or fp32 (default: auto)")
    add("--threads", type=int, metavar="N", help="default: the backend's choice")
    add_placement(parser)
    add("--steps", type=int, metavar="N", help="sampler steps (default: the model's)")
    add("--guidance", default="default", help="m-cfg, cfg, m0-cfg or none (default: the model's)")
    add(
        "--guidance-scale",
        type=float,
        metavar="W",
        help="of nano: above 0, up to 1, crisper; below, down to -1, softer (default: the model's)",
    )
    add(
        "--prompt",
        default="",
        metavar="TEXT|none|auto",
        help="what the picture shows; auto: the tags found in it",
    )
    add("--negative-prompt", metavar="TEXT", help="what to steer away from, with guidance")
    add(
        "--temperature",
        action="append",
        default=[],
        metavar="[NAME=]T",
        help="0.4 (strong) to 10 (weak), for all modalities or for text, depth, segmentation or "
        "edges; may be repeated",
    )
    add("--depth", default="auto", metavar="FILE|none", help="depth map, near = bright")
    add("--segmentation", default="auto", metavar="FILE|none", help="class indices or colours")
    add("--edges", default="auto", metavar="FILE|none|auto", help="edge map (default: Canny)")
    add("--seed", type=int, default=0, help="same seed, same picture (default: 0)")
    add("--no-color-fix", action="store_true", help="keep the colours the model gives")
    add("--fidelity", action="store_true", help="change nothing that the input shows")
    add("--max-memory", type=float, metavar="MB", help="refuse what would take more")
    add("--save-maps", type=Path, metavar="DIR", help="also write the maps and tags that were used")
    add("-q", "--quiet", action="store_true", help="print errors only")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_info)
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="for programs")


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
    if is_job(arguments):
        with _cancel_on_interrupt() as cancel:
            return run_jobs(upscaler, arguments, _options(arguments), cancel)
    arguments.input = source = Path(arguments.input[0])
    output = Path(arguments.output or default_target(upscaler, arguments, source))
    check_output(output, overwrite=arguments.overwrite)
    map_files = _map_files(arguments)
    for file in map_files.values():
        check_place(file, overwrite=arguments.overwrite)
    with _cancel_on_interrupt() as cancel, _bar(quiet=arguments.quiet) as progress:
        result = upscaler.upscale(
            source, **_options(arguments), progress=progress, cancel=cancel, output=output
        )
    for name, file in map_files.items():
        if name == "tags":
            write_json({"caption": result.caption, "tags": result.tags}, file)
        elif (picture := result.maps[name]) is not None:
            save_image(picture, file)
    if not arguments.quiet:
        for warning in result.warnings:
            print(f"mmsr-edge: warning: {warning}", file=sys.stderr)
        width, height = result.size
        seconds = result.timings["total"]
        print(f"{output}: {width}x{height}, {result.backend}, {seconds:.1f} s")
    return OK


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `Upscaler.upscale` that the command line names."""
    return {
        "prompt": None if arguments.prompt == "none" else arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "steps": arguments.steps,
        "guidance": None if arguments.guidance == "none" else arguments.guidance,
        "guidance_scale": arguments.guidance_scale,
        "temperature": _temperature(arguments.temperature),
        "depth": _map(arguments.depth),
        "segmentation": _map(arguments.segmentation),
        "edges": _map(arguments.edges),
        "seed": arguments.seed,
        "color_fix": not arguments.no_color_fix,
        "fidelity": arguments.fidelity,
        "scale": arguments.scale,
        "width": arguments.width,
        "height": arguments.height,
        "fit": arguments.fit,
        "bits": arguments.bits,
        "first_frame": arguments.first_frame,
        "max_memory_mb": arguments.max_memory,
    }


def _map_files(arguments: argparse.Namespace) -> dict[str, Path]:
    """Where to write the maps, in a folder that there is now."""
    from mmsr_edge.config import MAPS

    folder: Path | None = arguments.save_maps
    if folder is None:
        return {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {folder} cannot be made: {error}") from error
    stem = arguments.input.stem
    files = {name: folder / f"{stem}_{name}.png" for name in MAPS}
    return {**files, "tags": folder / f"{stem}_tags.json"}


def _map(value: str) -> str | Path | None:
    if value == "auto":
        return value
    return None if value == "none" else Path(value)


def _temperature(values: Sequence[str]) -> float | dict[str, float] | None:
    """`2` or `edges=2 text=3`; a value alone is for the modalities that are not named."""
    from mmsr_edge.bundle import MODALITIES

    everywhere: float | None = None
    named: dict[str, float] = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            if equals:
                named[name] = float(number)
            else:
                everywhere = float(number)
        except ValueError:
            raise OptionError(
                f"--temperature is {value!r}; it must be a number or NAME=number, as in edges=2"
            ) from None
    if not named or everywhere is None:
        return named or everywhere
    return {**dict.fromkeys(MODALITIES, everywhere), **named}


@contextmanager
def _cancel_on_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that work ends between two network calls.

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


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    from tqdm import tqdm

    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=1.0, bar_format=form, disable=True if quiet else None) as bar:

        def show(progress: Progress) -> None:
            tiles = f" tile {progress.tile}/{progress.tiles}" if progress.tiles > 1 else ""
            bar.set_description_str(f"{progress.stage}{tiles}", refresh=False)
            bar.n = progress.fraction  # set, not summed up, so that it ends at 1 exactly
            bar.update(0)

        yield show


def _info(arguments: argparse.Namespace) -> int:
    report = _report(arguments.model)
    print(json.dumps(report, indent=2) if arguments.json else _as_text(report))
    for error in report["errors"]:
        print(f"mmsr-edge: {error}", file=sys.stderr)
    return FAILED if report["errors"] else OK


def _report(model: str) -> dict[str, Any]:
    """All there is to say; what cannot be said is under "errors"."""
    from mmsr_edge.bundle import open_bundle
    from mmsr_edge.runtimes.registry import BACKENDS, select_backend

    errors: list[str] = []
    bundle: Bundle | None = None
    chosen: str | None = None
    try:
        bundle = open_bundle(model)
    except MMSRError as error:
        errors.append(str(error))
    try:
        chosen = select_backend("auto", bundle).backend.name
    except MMSRError as error:
        errors.append(str(error))
    backends = {}
    for backend in BACKENDS:
        # What the bundle lacks is known without importing anything: ask that first.
        reason = (backend.serves(bundle) if bundle else None) or backend.available()
        backends[backend.name] = {
            "usable": reason is None,
            "reason": reason,
            "chosen": backend.name == chosen,
        }
    return {
        "version": __version__,
        "model": _describe(bundle) if bundle else None,
        "backends": backends,
        "errors": errors,
    }


def _describe(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    components = {
        name: [
            {
                "format": artifact.format,
                "precision": artifact.precision,
                "backends": list(artifact.backends),
                "bytes": sum(file.bytes for file in artifact.files),
                "files": {file.path: file.sha256 for file in artifact.files},
            }
            for artifact in component.artifacts
        ]
        for name, component in manifest.components.items()
    }
    # A file may serve two artifacts.
    files = {
        file.path: file.bytes
        for component in manifest.components.values()
        for artifact in component.artifacts
        for file in artifact.files
    }
    sampler = manifest.sampler
    return {
        "name": manifest.name,
        "version": manifest.version,
        "preset": manifest.preset,
        "folder": str(bundle.root),
        "scale": manifest.scale,
        "tile": manifest.tile.size,
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "baked_guidance": sampler.baked_guidance,
        "licence": manifest.provenance.licence,
        "files": len(files),
        "bytes": sum(files.values()),
        "verified": True,  # or the bundle would not have opened
        "components": components,
    }


def _as_text(report: dict[str, Any]) -> str:
    lines = [f"mmsr-edge {report['version']}"]
    model = report["model"]
    if model:
        guidance = model["guidance"] or "none"
        if model["baked_guidance"] is not None:
            guidance = f"baked in at w = {model['baked_guidance']:g}"
        side = model["tile"]
        lines += [
            "",
            f"model     {model['name']} {model['version']} ({model['licence']})",
            f"folder    {model['folder']}",
            f"files     {model['files']}, {_size(model['bytes'])}, SHA-256 verified",
            f"tile      {side}x{side} -> {side * model['scale']}x{side * model['scale']}",
            f"sampler   steps: {model['steps']}, guidance: {guidance}",
            "",
            "components",
        ]
        for name, artifacts in model["components"].items():
            forms = ", ".join(
                f"{form['format']} {form['precision']} "
                f"({', '.join([_size(form['bytes']), *form['backends']])})"
                for form in artifacts
            )
            lines.append(f"  {name:<13} {forms}")
    lines += ["", "backends"]
    for name, backend in report["backends"].items():
        state = "chosen by auto" if backend["chosen"] else backend["reason"] or "usable"
        lines.append(f"  {name:<13} {state}")
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


if __name__ == "__main__":
    sys.exit(main())
