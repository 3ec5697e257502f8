"""Config: the options of one upscale call, and what they come to with a bundle's defaults.

`UpscaleOptions` is what the caller said, checked for itself; `resolve` fills in what was left open
from the manifest and checks what only a manifest can tell, and gives the `RunSettings` that the
pipeline works from.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from mmsr_edge.contract import MODALITIES
from mmsr_edge.errors import OptionError
from mmsr_edge.sampler import GUIDANCE
from mmsr_edge.target import FITS, SCALE_RANGE

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmsr_edge.bundle import Manifest

__all__ = [
    "GUIDANCE_SCALE_RANGE",
    "MAPS",
    "SEED_RANGE",
    "TEMPERATURE_RANGE",
    "MapOption",
    "RunSettings",
    "UpscaleOptions",
    "join_words",
    "resolve",
    "takes_guidance",
]

MAPS = MODALITIES[1:]
"""The modalities that are pictures."""

TEMPERATURE_RANGE = (0.4, 10.0)
"""Multiples of √d_k; the range in which the paper finds good pictures (Sec. 3.2)."""
GUIDANCE_SCALE_RANGE = (-1.0, 100.0)
"""w of Eq. 3-4; the paper uses 4 and examines up to 14."""
SEED_RANGE = (0, 2**64 - 1)
"""What one Philox key is drawn from."""

MapOption: TypeAlias = "str | Path | Image.Image | npt.NDArray[Any] | None"
"""A map: "auto" (made from the picture), None (absent), or the caller's: path, image or array."""


@dataclass(frozen=True, eq=False, kw_only=True)
class UpscaleOptions:
    """What the caller of `Upscaler.upscale` may choose.

    Raises:
        OptionError: for a value of the wrong type or outside its range, quoting both.
    """

    prompt: str | None = ""
    """What the picture shows, in own words; "auto": tags found in it; None: text is absent."""
    negative_prompt: str | None = None
    """What to steer away from where guidance is on. None: the bundle's default."""
    steps: int | None = None
    """Sampler steps, from 1 up to the training timesteps. None: the bundle's default."""
    guidance: str | None = "default"
    """"m-cfg" (Eq. 4), "cfg" (Eq. 3), "m0-cfg" (Table 3), None (off), "default": the bundle's."""
    guidance_scale: float | None = None
    """w of Eq. 3-4, in `GUIDANCE_SCALE_RANGE`; below 0 the picture goes towards what the negative
    prompt asks for, which it reaches at -1. None: the bundle's default."""
    temperature: float | Mapping[str, float] | None = None
    """δ/√d_k of Eq. 5 in `TEMPERATURE_RANGE`, for all modalities or by name; less is stronger."""
    depth: MapOption = "auto"
    """Depth map, near = bright. "auto": the bundle's depth network, else absent."""
    segmentation: MapOption = "auto"
    """Class indices, or colours. "auto": the bundle's segmentation network, else absent."""
    edges: MapOption = "auto"
    """Edge map, edges = bright. "auto": Canny."""
    seed: int = 0
    """Of the noise, in `SEED_RANGE`; the same seed gives the same picture. Where the model starts
    without noise (`SamplerSpec.few_steps`), every seed does."""
    color_fix: bool = True
    """Give the result the colours of the input."""
    fidelity: bool = False
    """Change nothing that the input shows: averaged over the block of each pixel of the input, the
    result is the input to within `color.FIDELITY_PSNR`. Its noise and artefacts stay, too."""
    scale: float | None = None
    """Factor in `target.SCALE_RANGE`, fractions too. None: the model's."""
    width: int | None = None
    """Width of the result in pixels, in place of `scale`."""
    height: int | None = None
    """Height of the result in pixels, in place of `scale`."""
    fit: str | None = None
    """With both `width` and `height`: "inside" (None), as large as goes into them, or "cover":
    just that size, what sticks out cut off."""
    bits: int | None = None
    """Bits a channel of a PNG or TIFF: 8 or 16. None: those of the input."""
    first_frame: bool = False
    """Take the first frame of an animation, or page of a document, rather than refuse it."""
    max_memory_mb: float | None = None
    """Most memory in MB that the picture may take, beside the networks. None: no limit."""

    def __post_init__(self) -> None:
        _text("prompt", self.prompt)
        _text("negative_prompt", self.negative_prompt)
        if self.steps is not None:
            _integer("steps", self.steps, 1, None)
        if self.guidance not in (*GUIDANCE, None, "default"):
            raise OptionError(
                f"guidance is {self.guidance!r}; it must be one of "
                f"{', '.join(map(repr, GUIDANCE))}, None or 'default'"
            )
        if self.guidance_scale is not None:
            _number("guidance_scale", self.guidance_scale, GUIDANCE_SCALE_RANGE)
        if isinstance(self.temperature, Mapping):
            _check_names("temperature", self.temperature, MODALITIES)
            for name, value in self.temperature.items():
                _number(f"temperature[{name!r}]", value, TEMPERATURE_RANGE)
        elif self.temperature is not None:
            _number("temperature", self.temperature, TEMPERATURE_RANGE)
        for name in MAPS:
            _map(name, getattr(self, name))
        _integer("seed", self.seed, *SEED_RANGE)
        for name in ("color_fix", "fidelity", "first_frame"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        if self.fidelity and not self.color_fix:
            raise OptionError("fidelity keeps the colours, which color_fix=False forbids; drop one")
        self._check_target()
        if self.bits not in (None, 8, 16):
            raise OptionError(f"bits is {self.bits!r}; it must be 8, 16 or None")
        if self.max_memory_mb is not None:
            _number("max_memory_mb", self.max_memory_mb, (1, 1e9))

    def _check_target(self) -> None:
        if self.scale is not None:
            _number("scale", self.scale, SCALE_RANGE)
        for name in ("width", "height"):
            value = getattr(self, name)
            if value is not None:
                _integer(name, value, 1, None)
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
        _check_names("option", options, tuple(field.name for field in fields(cls)))
        return cls(**options)


@dataclass(frozen=True)
class RunSettings:
    """One run's settings with nothing left open."""

    positive: str
    """The prompt with the bundle's suffix; empty when text is absent."""
    tagged: bool
    """Whether what the tagger finds is put before `positive`."""
    negative: str
    """The negative prompt."""
    steps: int
    """Sampler steps."""
    guidance: str | None
    """One of `sampler.GUIDANCE`, or None: one UNet call a step."""
    guidance_scale: float
    """w of Eq. 3-4; 0 where guidance is None."""
    temperature: tuple[float, float, float, float]
    """δ/√d_k of Eq. 5 in the order of `MODALITIES`."""


def resolve(options: UpscaleOptions, manifest: Manifest) -> RunSettings:
    """Fill in a bundle's defaults.

    Raises:
        OptionError: for more steps than the model has timesteps, for guidance on a model that has
            it baked in, and for a guidance scale that would go unused.
    """
    sampler, text = manifest.sampler, manifest.text
    steps = sampler.steps if options.steps is None else operator.index(options.steps)
    _integer("steps", steps, 1, sampler.num_train_timesteps)

    baked, taught = sampler.baked_guidance, steps <= sampler.few_steps
    guidance: str | None
    if options.guidance != "default":
        guidance = options.guidance
    elif baked is not None:
        guidance = None
    elif taught:
        guidance = None if options.guidance_scale is None else sampler.few_guidance
    else:
        guidance = sampler.guidance
    if taught and guidance is not None and sampler.few_guidance is None:
        raise OptionError(
            f"guidance is {guidance!r}, but {manifest.name!r} was taught its walks of up to "
            f"{sampler.few_steps} steps without it, one UNet call a step; pass guidance=None, or "
            "more steps"
        )
    if baked is not None and guidance is not None:
        raise OptionError(
            f"guidance is {guidance!r}, but {manifest.name!r} has guidance baked in at "
            f"w = {baked:g}, so a step is one UNet call; pass guidance=None or leave it out"
        )
    if takes_guidance(manifest) and guidance not in (None, sampler.guidance):
        raise OptionError(
            f"guidance is {guidance!r}, but {manifest.name!r} was distilled from "
            f"{sampler.guidance!r}; pass that, or guidance=None"
        )
    scale = options.guidance_scale
    if scale is not None and guidance is None:
        why = (
            f"{manifest.name!r} has guidance baked in at w = {baked:g}; leave guidance_scale out"
            if baked is not None
            else f"guidance is None; choose one of {', '.join(map(repr, GUIDANCE))}"
        )
        raise OptionError(f"guidance_scale is {scale!r}, which would go unused: {why}")
    if guidance is None:
        scale = 0.0
    elif scale is None:
        scale = sampler.guidance_scale

    given = options.temperature
    if isinstance(given, Mapping):
        by_name = {name: float(given.get(name, 1.0)) for name in MODALITIES}
    else:
        by_name = dict.fromkeys(MODALITIES, 1.0 if given is None else float(given))
    tagged = options.prompt == "auto"
    return RunSettings(
        positive=(
            ""
            if options.prompt is None
            else join_words("" if tagged else options.prompt, text.positive)
        ),
        tagged=tagged,
        negative=text.negative if options.negative_prompt is None else options.negative_prompt,
        steps=steps,
        guidance=guidance,
        guidance_scale=float(scale),
        temperature=(
            by_name["text"],
            by_name["depth"],
            by_name["segmentation"],
            by_name["edges"],
        ),
    )


def join_words(*parts: str) -> str:
    """Parts of a prompt as one; empty ones are left out."""
    return ", ".join(part.strip() for part in parts if part.strip())


def takes_guidance(manifest: Manifest) -> bool:
    """Whether w is an input of the UNet, distilled so that one call contains the guidance.

    Such a UNet learned one kind of guidance, and knows no other.
    """
    return manifest.components["unet"].takes("guidance")


def _check_names(what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise OptionError(
                f"unknown {what} {name!r}; did you mean {nearest!r}? There are {', '.join(known)}"
            )


def _text(name: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise OptionError(f"{name} is {value!r}; it must be a string or None")


def _integer(name: str, value: object, low: int, high: int | None) -> None:
    wanted = f"an integer from {low}" + (" up" if high is None else f" to {high}")
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{name} is {value!r}; it must be {wanted}") from None
    if number < low or (high is not None and number > high):
        raise OptionError(f"{name} is {number}; it must be {wanted}")


def _number(name: str, value: object, allowed: tuple[float, float]) -> None:
    low, high = allowed
    wanted = f"a number from {low:g} to {high:g}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise OptionError(f"{name} is {value!r}; it must be {wanted}")
    if not (math.isfinite(value) and low <= value <= high):
        raise OptionError(f"{name} is {value}; it must be {wanted}")


def _map(name: str, value: object) -> None:
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
