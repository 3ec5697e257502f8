"""Arguments that commands share, and the options of a call that they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmsr_edge.errors import OptionError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from mmsr_edge.config import UpscaleKeywords

__all__ = [
    "add_backend",
    "add_dials",
    "add_jobs",
    "add_model",
    "add_placement",
    "add_size",
    "upscale_options",
]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    parser.add_argument(
        "--model", default="nano", help="a shipped model or a bundle's folder (default: nano)"
    )


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the backend, for commands that use one."""
    add = parser.add_argument
    add("--backend", default="auto", help="openvino, onnxruntime, coreml or torch (default: auto)")
    add("--precision", default="auto", help="int4, int8, fp16 or fp32 (default: auto)")
    add("--threads", type=int, metavar="N", help="default: the backend's choice")
    add_placement(parser)


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where networks run, and how."""
    add = parser.add_argument
    add("--device", default="auto", metavar="NAME", help="as the backend calls it: GPU, cuda:1, …")
    add("--compile", action="store_true", help="torch: compile first; pays over many steps")


def add_size(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the result is to be."""
    group = parser.add_argument_group("result")
    add = group.add_argument
    add("--scale", type=float, metavar="X", help="1 to 8, fractions too (default: the model's 4)")
    add("--width", type=int, metavar="PX", help="width of the result, in place of --scale")
    add("--height", type=int, metavar="PX", help="height of the result, in place of --scale")
    add("--fit", help="with both: inside (default), or cover and cut off what sticks out")
    add("--bits", type=int, help="8 or 16 a channel, in PNG and TIFF (default: the input's)")
    add("--first-frame", action="store_true", help="of an animation, rather than refuse it")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add the options that are for many pictures."""
    group = parser.add_argument_group("many pictures")
    add = group.add_argument
    add("-r", "--recursive", action="store_true", help="look into folders in folders, too")
    add("--format", metavar="SUFFIX", help=".png (default), .jpg, .webp, .avif, .tif, or same")
    add("-j", "--jobs", type=int, default=1, metavar="N", help="pictures at a time (default: 1)")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--report", type=Path, metavar="FILE", help="write what became of each file, as JSON")


def add_dials(parser: argparse.ArgumentParser) -> None:
    """Add the options that steer the model: sampler, prompt, maps and what is kept of the input."""
    add = parser.add_argument
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


def upscale_options(arguments: argparse.Namespace) -> UpscaleKeywords:
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
