"""Config: the options of one upscale call, each checked for itself.

`settings.resolve` fills in from a bundle's manifest what the caller left open, and checks what only
a manifest can tell.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from PIL import Image

from mmsr_edge.bundle import MAPS, MODALITIES
from mmsr_edge.errors import OptionError
from mmsr_edge.image.target import FITS, SCALE_RANGE, Target, resolve_target
from mmsr_edge.sampler import GUIDANCE

if TYPE_CHECKING:
    from mmsr_edge.modalities.base import MapOption

__all__ = [
    "GUIDANCE_SCALE_RANGE",
    "SEED_RANGE",
    "TEMPERATURE_RANGE",
    "UpscaleKeywords",
    "UpscaleOptions",
]

TEMPERATURE_RANGE = (0.4, 10.0)
"""Multiples of √d_k; the range in which the paper finds good pictures (Sec. 3.2)."""
GUIDANCE_SCALE_RANGE = (-1.0, 100.0)
"""w of Eq. 3-4; the paper uses 4 and examines up to 14."""
SEED_RANGE = (0, 2**64 - 1)
"""Keys of the Philox generator that draws the noise."""
MEMORY_RANGE = (1.0, 1e9)
"""Limits that can be set, in MB."""

_MAP_RANGE = '"auto", None, or a map: a pathlib.Path, a PIL image or an array'


class UpscaleKeywords(TypedDict, total=False):
    """The options of one call as keyword arguments: the fields of `UpscaleOptions`."""

    prompt: str | None
    negative_prompt: str | None
    steps: int | None
    guidance: str | None
    guidance_scale: float | None
    temperature: float | Mapping[str, float] | None
    depth: MapOption
    segmentation: MapOption
    edges: MapOption
    seed: int
    color_fix: bool
    fidelity: bool
    scale: float | None
    width: int | None
    height: int | None
    fit: str | None
    bits: int | None
    first_frame: bool
    max_memory_mb: float | None


def option(default: Any, flag: str, *, values: str, example: Any, unit: str = "") -> Any:
    """A field of `UpscaleOptions`, with what the documentation says of it beside its docstring.

    Args:
        default: its default.
        flag: its flag on the command line.
        values: the values that it may have.
        example: one of them.
        unit: of the values, where they have one.
    """
    about = {"flag": flag, "range": values, "example": example, "unit": unit}
    return field(default=default, metadata=about)


def _interval(limits: tuple[float, float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"


@dataclass(frozen=True, eq=False, kw_only=True)
class UpscaleOptions:
    """The options of `Upscaler.upscale`.

    Raises:
        OptionError: for a value of the wrong type or outside its range, quoting both.
    """

    prompt: str | None = option(
        "", "--prompt", values='text, "auto" or None', example="a brick wall"
    )
    """What the picture shows, in words. "auto": tags found in it; None: the text is absent."""
    negative_prompt: str | None = option(
        None, "--negative-prompt", values="text or None", example="blurry, noisy"
    )
    """What guidance steers away from. None: the bundle's default."""
    steps: int | None = option(
        None, "--steps", values="1 to the model's training timesteps (1000 in nano)", example=4
    )
    """Sampler steps. None: the bundle's default."""
    guidance: str | None = option(
        "default",
        "--guidance",
        values='"default", "m-cfg", "cfg", "m0-cfg" or None',
        example="m-cfg",
    )
    """Kind of guidance: "m-cfg" (Eq. 4), "cfg" (Eq. 3), "m0-cfg" (Table 3), None (off), or
    "default": the bundle's."""
    guidance_scale: float | None = option(
        None, "--guidance-scale", values=_interval(GUIDANCE_SCALE_RANGE), example=0.5
    )
    """Guidance scale w of Eq. 3-4. Below 0 the picture goes towards what the negative prompt asks
    for, which it reaches at -1. None: the bundle's default."""
    temperature: float | Mapping[str, float] | None = option(
        None,
        "--temperature",
        values=f"{_interval(TEMPERATURE_RANGE)}, or a mapping of modalities to such numbers",
        example={"edges": 2.0},
        unit="√d_k",
    )
    """Temperature τ = δ/√d_k of Eq. 5, for all modalities or by name; less is stronger. None: 1."""
    depth: MapOption = option("auto", "--depth", values=_MAP_RANGE, example=None)
    """Depth map, near = bright. "auto": the bundle's depth network, else absent."""
    segmentation: MapOption = option("auto", "--segmentation", values=_MAP_RANGE, example=None)
    """Class indices, or colours. "auto": the bundle's segmentation network, else absent."""
    edges: MapOption = option("auto", "--edges", values=_MAP_RANGE, example=None)
    """Edge map, edges = bright. "auto": Canny."""
    seed: int = option(0, "--seed", values="0 to 2^64 - 1", example=7)
    """Seed of the noise: the same seed gives the same picture. A model that starts without noise
    (`SamplerSpec.few_steps`) gives the same picture for every seed."""
    color_fix: bool = option(True, "--no-color-fix", values="True or False", example=False)
    """Give the result the colours of the input."""
    fidelity: bool = option(False, "--fidelity", values="True or False", example=True)
    """Keep everything that the input shows: averaged over the block of each input pixel, the result
    is the input to within `color.FIDELITY_PSNR`. Noise and artefacts of the input stay, too."""
    scale: float | None = option(
        None, "--scale", values=f"{_interval(SCALE_RANGE)}, fractions too", example=2.5, unit="×"
    )
    """Factor by which each side grows. None: the model's."""
    width: int | None = option(None, "--width", values="1 up", example=3000, unit="pixels")
    """Width of the result, in place of `scale`."""
    height: int | None = option(None, "--height", values="1 up", example=2000, unit="pixels")
    """Height of the result, in place of `scale`."""
    fit: str | None = option(None, "--fit", values='"inside", "cover" or None', example="cover")
    """With both `width` and `height`: "inside" (None) is as large as fits into them; "cover" is
    exactly that size, with what sticks out cut off."""
    bits: int | None = option(None, "--bits", values="8, 16 or None", example=16, unit="bits")
    """Bits per channel of a PNG or TIFF. None: those of the input."""
    first_frame: bool = option(False, "--first-frame", values="True or False", example=True)
    """Take the first frame of an animation, or page of a document, rather than refuse it."""
    max_memory_mb: float | None = option(
        None, "--max-memory", values=_interval(MEMORY_RANGE), example=800.0, unit="MB"
    )
    """Limit of the memory that the picture takes beside the networks. None: no limit."""

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)
        check_text("negative_prompt", self.negative_prompt)
        if self.steps is not None:
            check_integer("steps", self.steps, 1, None)
        if self.guidance not in (*GUIDANCE, None, "default"):
            raise OptionError(
                f"guidance is {self.guidance!r}; it must be one of "
                f"{', '.join(map(repr, GUIDANCE))}, None or 'default'"
            )
        if self.guidance_scale is not None:
            check_number("guidance_scale", self.guidance_scale, GUIDANCE_SCALE_RANGE)
        if isinstance(self.temperature, Mapping):
            check_names("temperature", self.temperature, MODALITIES)
            for name, value in self.temperature.items():
                check_number(f"temperature[{name!r}]", value, TEMPERATURE_RANGE)
        elif self.temperature is not None:
            check_number("temperature", self.temperature, TEMPERATURE_RANGE)
        for name in MAPS:
            check_map(name, getattr(self, name))
        check_integer("seed", self.seed, *SEED_RANGE)
        for name in ("color_fix", "fidelity", "first_frame"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        if self.fidelity and not self.color_fix:
            raise OptionError("fidelity keeps the colours, which color_fix=False forbids; drop one")
        self._check_target()
        if self.bits not in (None, 8, 16):
            raise OptionError(f"bits is {self.bits!r}; it must be 8, 16 or None")
        if self.max_memory_mb is not None:
            check_number("max_memory_mb", self.max_memory_mb, MEMORY_RANGE)

    def _check_target(self) -> None:
        if self.scale is not None:
            check_number("scale", self.scale, SCALE_RANGE)
        for name in ("width", "height"):
            value = getattr(self, name)
            if value is not None:
                check_integer(name, value, 1, None)
                if self.scale is not None:
                    raise OptionError(
                        f"scale is {self.scale!r} and {name} is {value!r}; give one of the two"
                    )
        if self.fit not in (None, *FITS):
            raise OptionError(f"fit is {self.fit!r}; it must be {' or '.join(map(repr, FITS))}")
        if self.fit is not None and (self.width is None or self.height is None):
            raise OptionError(f"fit is {self.fit!r}, which needs both width and height")

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> UpscaleOptions:
        """Options from names and values, as a config file or keyword arguments give them.

        Raises:
            OptionError: also for a name that is not an option, naming the nearest that is.
        """
        check_names("option", options, tuple(field.name for field in fields(cls)))
        return cls(**options)

    def target(self, source: tuple[int, int], native: int) -> Target:
        """The size of the result of a picture of (width, height); see `resolve_target`.

        Raises:
            OptionError: the factor is outside `SCALE_RANGE`.
        """
        return resolve_target(
            source,
            native,
            scale=self.scale,
            width=self.width,
            height=self.height,
            fit=self.fit,
        )


def check_names(what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise `OptionError` for a name that is not known, naming the nearest that is."""
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise OptionError(
                f"unknown {what} {name!r}; did you mean {nearest!r}? There are {', '.join(known)}"
            )


def check_text(name: str, value: object) -> None:
    """Raise `OptionError` unless `value` is a string or None."""
    if value is not None and not isinstance(value, str):
        raise OptionError(f"{name} is {value!r}; it must be a string or None")


def check_integer(name: str, value: object, low: int, high: int | None) -> None:
    """Raise `OptionError` unless `value` is an integer from `low` to `high` (None: no limit)."""
    wanted = f"an integer from {low}" + (" up" if high is None else f" to {high}")
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{name} is {value!r}; it must be {wanted}") from None
    if number < low or (high is not None and number > high):
        raise OptionError(f"{name} is {number}; it must be {wanted}")


def check_number(name: str, value: object, allowed: tuple[float, float]) -> None:
    """Raise `OptionError` unless `value` is a finite number in the interval `allowed`."""
    low, high = allowed
    wanted = f"a number from {low:g} to {high:g}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise OptionError(f"{name} is {value!r}; it must be {wanted}")
    if not (math.isfinite(value) and low <= value <= high):
        raise OptionError(f"{name} is {value}; it must be {wanted}")


def check_map(name: str, value: object) -> None:
    """Raise `OptionError` unless `value` is a `MapOption`."""
    if isinstance(value, str) and value != "auto":
        raise OptionError(
            f"{name} is {value!r}; it must be 'auto', None, or a map: an array, a PIL image, or "
            f"a pathlib.Path to a file"
        )
    if value is not None and not isinstance(value, (str, Path, Image.Image, np.ndarray)):
        raise OptionError(
            f"{name} is a {type(value).__name__}; it must be 'auto', None, or a map: an array, "
            f"a PIL image, or a pathlib.Path to a file"
        )
