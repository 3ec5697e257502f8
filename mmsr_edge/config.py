"""Config: the options of one upscale call, and the checks that need no bundle.

`settings.resolve` fills in the bundle's defaults and makes the checks that need its manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from PIL import Image

from mmsr_edge.bundle import LEVELS, MAPS, MODALITIES
from mmsr_edge.checks import check_integer, check_names, check_number, check_text
from mmsr_edge.errors import OptionError
from mmsr_edge.image.target import FITS, SCALE_RANGE, Target, resolve_target
from mmsr_edge.modalities.spatial import GUIDANCE_SCALE, STRENGTH
from mmsr_edge.sampler import GUIDANCE

if TYPE_CHECKING:
    from mmsr_edge.modalities.base import MapOption
    from mmsr_edge.modalities.spatial import DialOption

__all__ = [
    "GUIDANCE_SCALE_RANGE",
    "LEVEL_RANGE",
    "SEED_RANGE",
    "STRENGTH_RANGE",
    "TEMPERATURE_RANGE",
    "UpscaleKeywords",
    "UpscaleOptions",
]

TEMPERATURE_RANGE = (0.4, 10.0)
"""Temperatures in multiples of √d_k: the range of good pictures in the paper (Sec. 3.2)."""
GUIDANCE_SCALE_RANGE = GUIDANCE_SCALE.limits
"""Guidance scales w of Eq. 3-4. The paper uses 4 and examines values up to 14."""
STRENGTH_RANGE = STRENGTH.limits
"""Strengths λ. At 0 the picture is the LR encoder's alone."""
LEVEL_RANGE = (0.0, 1.0)
"""Levels of degradation, from none to as much as training has."""
SEED_RANGE = (0, 2**64 - 1)
"""Seeds: keys of the Philox generator that draws the noise."""
MEMORY_RANGE = (1.0, 1e9)
"""Memory limits, in MB."""

_MAP_RANGE = '"auto", None, or a map: a pathlib.Path, a PIL image or an array'


class UpscaleKeywords(TypedDict, total=False):
    """The options of one call as keyword arguments: the fields of `UpscaleOptions`."""

    prompt: str | None
    negative_prompt: str | None
    steps: int | None
    guidance: str | None
    guidance_scale: DialOption | None
    strength: DialOption
    temperature: float | Mapping[str, float] | None
    depth: MapOption
    segmentation: MapOption
    edges: MapOption
    degradation: str | Mapping[str, float] | None
    denoise: float | None
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
    """A field of `UpscaleOptions`, with metadata for the documentation.

    Args:
        default: default value.
        flag: flag on the command line.
        values: allowed values, in words.
        example: an allowed value.
        unit: unit of the values; empty for none.
    """
    about = {"flag": flag, "range": values, "example": example, "unit": unit}
    return field(default=default, metadata=about)


def _interval(limits: tuple[float, float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"


@dataclass(frozen=True, eq=False, kw_only=True)
class UpscaleOptions:
    """The options of `Upscaler.upscale`.

    Raises:
        OptionError: a value has the wrong type or is out of range; the message quotes both.
    """

    prompt: str | None = option(
        "", "--prompt", values='text, "auto" or None', example="a brick wall"
    )
    """Description of the picture. The bundle's own words are appended to it. "auto": tags and words
    found in the picture. None: text is absent."""
    negative_prompt: str | None = option(
        None, "--negative-prompt", values="text or None", example="blurry, noisy"
    )
    """Text that guidance steers away from. None: the bundle's default for the kinds "m-cfg" and
    "m0-cfg", no text for "cfg". Empty: no text."""
    steps: int | None = option(
        None,
        "--steps",
        values="1 to the model's training timesteps; 1 to 4 in the wheel's nano",
        example=4,
    )
    """Number of sampler steps. None: the bundle's default. A bundle without its diffusion UNet,
    such as the wheel's nano, refuses more than its student's."""
    guidance: str | None = option(
        "default",
        "--guidance",
        values='"default", "m-cfg", "cfg", "m0-cfg" or None',
        example="m-cfg",
    )
    """Kind of guidance, by what the negative prediction sees beside the negative prompt: "m-cfg"
    the maps (Eq. 4), "cfg" nothing (Eq. 3), "m0-cfg" m∅ in place of every map (Table 3). None: off.
    "default": the bundle's kind."""
    guidance_scale: DialOption | None = option(
        None,
        "--guidance-scale",
        values=f"{_interval(GUIDANCE_SCALE_RANGE)}, or a map of such numbers",
        example=0.5,
    )
    """Guidance scale w of Eq. 3-4. 0 is off; larger values are stronger. Below 0 the picture moves
    towards the negative prompt, which replaces the prompt at -1. A map's black is -1, its white 1.
    None: the bundle's default."""
    strength: DialOption = option(
        1.0,
        "--strength",
        values=f"{_interval(STRENGTH_RANGE)}, or a map of such numbers",
        example=1.5,
    )
    """Strength λ: factor on what the diffusion adds to the picture. 0 leaves what the LR encoder
    makes, 1 is the model's own picture, more is crisper. A map's black is 0, its white 2. It costs
    no network call."""
    temperature: float | Mapping[str, float] | None = option(
        None,
        "--temperature",
        values=f"{_interval(TEMPERATURE_RANGE)}, or a mapping from modalities to such numbers",
        example={"depth": 0.4},
        unit="√d_k",
    )
    """Temperature τ = δ/√d_k of Eq. 5: one number for all modalities, or a mapping from their names
    to numbers. 1 is plain attention. In nano, below 1 a part of the picture becomes softer, above
    it crisper: what is far (depth), all but the subject (segmentation), what lies between edges
    (edges); words act more strongly below 1 (text). None, or a name that is not in the mapping:
    1."""
    depth: MapOption = option("auto", "--depth", values=_MAP_RANGE, example=None)
    """Depth map, near = bright. "auto": made by the bundle's depth network, absent if it has none.
    None: absent."""
    segmentation: MapOption = option("auto", "--segmentation", values=_MAP_RANGE, example=None)
    """Segmentation map: class indices from 0 to 255, or colours. "auto": made by the bundle's
    segmentation network, absent if it has none. None: absent."""
    edges: MapOption = option("auto", "--edges", values=_MAP_RANGE, example=None)
    """Edge map, edge = bright. "auto": Canny edges of the picture. None: absent."""
    degradation: str | Mapping[str, float] | None = option(
        "auto",
        "--degradation",
        values='"auto", None, or a mapping from "noise", "blur" and "jpeg" to levels from 0 to 1',
        example={"blur": 0.3},
    )
    """Levels of noise, blur and JPEG that the model is told. "auto": estimated from the picture and
    from a JPEG file's own tables. A mapping: its levels, and estimates of those it lacks. None: it
    is told none. Models that cannot be told refuse a mapping and ignore "auto"."""
    denoise: float | None = option(None, "--denoise", values=_interval(LEVEL_RANGE), example=0.5)
    """How much noise to remove: the level of noise that the model is told in place of the estimate,
    and that of JPEG where the picture was compressed. 0: keep the grain; 1: remove what may be
    noise, and fine texture with it. None: as estimated. Models that cannot be told refuse it."""
    seed: int = option(0, "--seed", values="0 to 2^64 - 1", example=7)
    """Seed of the noise. The same seed gives the same picture. It has no effect where the model
    starts without noise: up to `SamplerSpec.few_steps` steps, 4 in nano."""
    color_fix: bool = option(True, "--no-color-fix", values="True or False", example=False)
    """Give the result the colours of the input. False: keep the colours that the model makes."""
    fidelity: bool = option(False, "--fidelity", values="True or False", example=True)
    """Keep everything that the input shows: the result, averaged over the block of each input
    pixel, matches the input with a PSNR of at least 50 dB; a warning is given if it does not. Noise
    and artefacts of the input stay too. Needs `color_fix`."""
    scale: float | None = option(
        None, "--scale", values=f"{_interval(SCALE_RANGE)}, fractions too", example=2.5, unit="×"
    )
    """Factor by which each side grows. None: the model's own factor."""
    width: int | None = option(None, "--width", values="1 or more", example=3000, unit="pixels")
    """Width of the result, instead of `scale`. The aspect ratio is kept."""
    height: int | None = option(None, "--height", values="1 or more", example=2000, unit="pixels")
    """Height of the result, instead of `scale`. The aspect ratio is kept."""
    fit: str | None = option(None, "--fit", values='"inside", "cover" or None', example="cover")
    """How the picture fits a box of `width` and `height` when both are given. "inside" or None: as
    large as fits into the box. "cover": exactly the size of the box, with the excess cut off."""
    bits: int | None = option(None, "--bits", values="8, 16 or None", example=16, unit="bits")
    """Bits per channel of the result; 16 needs a PNG or TIFF file. None: as many as the input has,
    or 8 where the format holds no more."""
    first_frame: bool = option(False, "--first-frame", values="True or False", example=True)
    """Use the first frame of an animation or the first page of a document. False: refuse it."""
    max_memory_mb: float | None = option(
        None, "--max-memory", values="1 up", example=800.0, unit="MB"
    )
    """Limit of the memory that the picture takes, networks excluded, in MB of 10⁶ bytes. A picture
    with a higher estimate is refused before the work. None: no limit."""

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
            GUIDANCE_SCALE.check(self.guidance_scale)
        STRENGTH.check(self.strength)
        if isinstance(self.temperature, Mapping):
            check_names("temperature", self.temperature, MODALITIES)
            for name, value in self.temperature.items():
                check_number(f"temperature[{name!r}]", value, TEMPERATURE_RANGE)
        elif self.temperature is not None:
            check_number("temperature", self.temperature, TEMPERATURE_RANGE)
        for name in MAPS:
            check_map(name, getattr(self, name))
        self._check_levels()
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

    def _check_levels(self) -> None:
        given = self.degradation
        if isinstance(given, Mapping):
            check_names("level of degradation", given, LEVELS)
            for name, value in given.items():
                check_number(f"degradation[{name!r}]", value, LEVEL_RANGE)
        elif given is not None and not (isinstance(given, str) and given == "auto"):
            raise OptionError(
                f"degradation is {given!r}; it must be 'auto', None, or a mapping from "
                f"{', '.join(map(repr, LEVELS))} to numbers from 0 to 1"
            )
        if self.denoise is not None:
            check_number("denoise", self.denoise, LEVEL_RANGE)
            if isinstance(given, Mapping) and "noise" in given:
                raise OptionError(
                    f"denoise is {self.denoise!r} and degradation['noise'] is {given['noise']!r}; "
                    "give one of the two"
                )

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
        """Build options from a mapping of names to values, such as keyword arguments.

        Raises:
            OptionError: a name is not an option, and the message suggests the nearest; or a value
                is not allowed.
        """
        check_names("option", options, tuple(field.name for field in fields(cls)))
        return cls(**options)

    def target(self, source: tuple[int, int], native: int) -> Target:
        """The size of the result; see `resolve_target`.

        Args:
            source: (width, height) of the input in pixels.
            native: factor of the networks.

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
