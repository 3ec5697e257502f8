"""Arguments shared by commands, and the options of `Upscaler.upscale` made from them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmsr_edge.errors import OptionError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from mmsr_edge.config import UpscaleKeywords
    from mmsr_edge.modalities.spatial import DialOption

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
        "--model",
        default="nano",
        help="a shipped model, a bundle's folder, or auto: the best that is fast enough here "
        "(default: nano)",
    )


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the backend, its precision, threads and device."""
    add = parser.add_argument
    add("--backend", default="auto", help="openvino, onnxruntime, coreml or torch (default: auto)")
    add("--precision", default="auto", help="int4, int8, fp16 or fp32 (default: auto)")
    add(
        "--threads",
        type=int,
        metavar="N",
        help="threads per network call (default: the backend's choice)",
    )
    add_placement(parser)


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--compile`."""
    add = parser.add_argument
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help="device, by the backend's name for it: GPU, cuda:1, …",
    )
    add(
        "--compile",
        action="store_true",
        help="torch: compile the networks first; pays off over many steps",
    )


def add_size(parser: argparse.ArgumentParser) -> None:
    """Add the options for the result's size and bit depth, and for animations."""
    group = parser.add_argument_group("result")
    add = group.add_argument
    add(
        "--scale",
        type=float,
        metavar="X",
        help="factor from 1 to 8, e.g. 2.5 (default: the model's 4)",
    )
    add("--width", type=int, metavar="PX", help="width of the result, in place of --scale")
    add("--height", type=int, metavar="PX", help="height of the result, in place of --scale")
    add("--fit", help="with both: inside (default), or cover, which crops the excess")
    add("--bits", type=int, help="bits per channel of PNG and TIFF: 8 or 16 (default: the input's)")
    add("--first-frame", action="store_true", help="upscale an animation's first frame")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add the options for many pictures."""
    group = parser.add_argument_group("many pictures")
    add = group.add_argument
    add("-r", "--recursive", action="store_true", help="include subfolders")
    add(
        "--format",
        metavar="SUFFIX",
        help="format of the results: .png (default), .jpg, .webp, .avif, .tif, or same",
    )
    add("-j", "--jobs", type=int, default=1, metavar="N", help="pictures at a time (default: 1)")
    add("--dry-run", action="store_true", help="print what would be done, without doing it")
    add("--report", type=Path, metavar="FILE", help="write the outcome of each file, as JSON")


def add_dials(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model: sampler, guidance, prompt, maps, colours and memory."""
    add = parser.add_argument
    add("--steps", type=int, metavar="N", help="sampler steps (default: the model's)")
    add("--guidance", default="default", help="m-cfg, cfg, m0-cfg or none (default: the model's)")
    add(
        "--guidance-scale",
        metavar="W|NAME:VALUES|FILE",
        help="nano: from -1 (softer) to 1 (crisper) (default: the model's)",
    )
    add(
        "--strength",
        default="1",
        metavar="X|NAME:VALUES|FILE",
        help="factor on what the diffusion adds, 0 to 2 (default: 1), or a map of it: "
        "depth:FAR,NEAR, edges:FLAT,EDGE, segmentation:CLASS=X,other=X or a grey picture; so too "
        "for --guidance-scale",
    )
    add(
        "--prompt",
        default="",
        metavar="TEXT|none|auto",
        help="what the picture shows; auto: the tags found in it",
    )
    add("--negative-prompt", metavar="TEXT", help="text that guidance steers away from")
    add(
        "--temperature",
        action="append",
        default=[],
        metavar="[NAME=]T",
        help="0.4 (softer) to 10 (crisper), for all modalities or for text, depth, segmentation or "
        "edges; may be repeated",
    )
    add("--depth", default="auto", metavar="FILE|none", help="depth map, near = bright")
    add(
        "--segmentation",
        default="auto",
        metavar="FILE|none",
        help="map of class indices or colours",
    )
    add("--edges", default="auto", metavar="FILE|none|auto", help="edge map (default: Canny)")
    add(
        "--degradation",
        action="append",
        default=[],
        metavar="auto|none|NAME=L",
        help="levels from 0 to 1 of noise, blur or jpeg that the model is told; may be repeated "
        "(default: auto, estimated)",
    )
    add(
        "--denoise",
        type=float,
        metavar="D",
        help="noise to remove: 0 (keep the grain) to 1 (default: as estimated)",
    )
    add("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    add("--no-color-fix", action="store_true", help="keep the model's colours")
    add(
        "--fidelity",
        action="store_true",
        help="keep everything that the input shows, including its noise",
    )
    add("--max-memory", type=float, metavar="MB", help="refuse a picture that needs more memory")


def upscale_options(arguments: argparse.Namespace) -> UpscaleKeywords:
    """The options of `Upscaler.upscale`, from the command line."""
    return {
        "prompt": None if arguments.prompt == "none" else arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "steps": arguments.steps,
        "guidance": None if arguments.guidance == "none" else arguments.guidance,
        "guidance_scale": (
            None
            if arguments.guidance_scale is None
            else _dial("--guidance-scale", arguments.guidance_scale)
        ),
        "strength": _dial("--strength", arguments.strength),
        "temperature": _temperature(arguments.temperature),
        "depth": _map(arguments.depth),
        "segmentation": _map(arguments.segmentation),
        "edges": _map(arguments.edges),
        "degradation": _degradation(arguments.degradation),
        "denoise": arguments.denoise,
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


def _dial(flag: str, text: str) -> DialOption:
    """`1.5`, `depth:0.2,1`, `edges:1,1.5`, `segmentation:sky=0.4,3=1.5,other=1` or a file."""
    from mmsr_edge.bundle import MAPS

    with suppress(ValueError):
        return float(text)
    name, _, given = text.partition(":")
    if name not in MAPS:
        if not Path(text).exists():
            raise OptionError(
                f"{flag} is {text!r}; it must be a number, a modality with values, as in "
                "depth:0.2,1, or a picture, and there is no such file"
            )
        return Path(text)
    try:
        if name != "segmentation":
            return {name: tuple(float(number) for number in given.split(","))}
        values: dict[str | int, float] = {}
        for part in given.split(","):
            key, equals, number = part.rpartition("=")
            if not equals:
                raise ValueError
            values[int(key) if key.isdecimal() else key] = float(number)
    except ValueError:
        form = {
            "depth": "depth:FAR,NEAR, as in depth:0.2,1",
            "edges": "edges:FLAT,EDGE, as in edges:1,1.5",
            "segmentation": "segmentation:CLASS=VALUE,…, as in segmentation:sky=0.4,other=1",
        }
        raise OptionError(f"{flag} is {text!r}; it must be {form[name]}") from None
    return {name: values}


def _degradation(values: Sequence[str]) -> str | dict[str, float] | None:
    """`[]`, `["auto"]`, `["none"]` or `["noise=0.3", "blur=0"]`."""
    if len(values) == 1 and values[0] in ("auto", "none"):
        return None if values[0] == "none" else "auto"
    levels: dict[str, float] = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            if not equals:
                raise ValueError
            levels[name] = float(number)
        except ValueError:
            raise OptionError(
                f"--degradation is {value!r}; it must be auto, none or NAME=number, as in noise=0.3"
            ) from None
    return levels or "auto"


def _temperature(values: Sequence[str]) -> float | dict[str, float] | None:
    """`["2"]` or `["edges=2", "text=3"]`; a bare value is for the modalities not named."""
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
