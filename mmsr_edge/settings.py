"""Run settings: the options of one call, completed with a bundle's defaults."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING

from mmsr_edge.bundle import MODALITIES
from mmsr_edge.checks import check_integer
from mmsr_edge.errors import OptionError
from mmsr_edge.modalities.prompt import join_words
from mmsr_edge.modalities.spatial import DIALS
from mmsr_edge.sampler import GUIDANCE

if TYPE_CHECKING:
    from mmsr_edge.bundle import Manifest
    from mmsr_edge.config import UpscaleOptions
    from mmsr_edge.modalities.spatial import DialOption

__all__ = ["RunSettings", "resolve"]


@dataclass(frozen=True)
class RunSettings:
    """The settings of one run, with all defaults filled in."""

    positive: str
    """The prompt with the bundle's suffix; empty when text is absent."""
    own: str | None
    """The prompt without the suffix; None when text is absent."""
    tagged: bool
    """Whether the tagger's words are put before `positive`."""
    negative: str
    """The negative prompt; empty when the negative prediction has no text."""
    steps: int
    """Number of sampler steps."""
    unet: str
    """Component that serves so many steps, one of `mmsr_edge.bundle.UNETS`."""
    guidance: str | None
    """One of `sampler.GUIDANCE`; None: no guidance, one UNet call a step."""
    guidance_scale: float
    """Guidance scale w of Eq. 3-4; 0 without guidance, or where a map replaces it."""
    strength: float
    """Strength λ; 1 where a map replaces it."""
    temperature: tuple[float, ...]
    """Temperature τ = δ/√d_k of Eq. 5 of each modality, in the order of `MODALITIES`."""
    told: bool = False
    """Whether the model is told levels of degradation, in words or by the decoder's input."""
    dials: Mapping[str, DialOption] = field(default_factory=dict)
    """The dials that are maps over the picture, by name; see `modalities.spatial`."""


def resolve(options: UpscaleOptions, manifest: Manifest) -> RunSettings:
    """Complete the options of a call with a bundle's defaults.

    Raises:
        OptionError: there are more steps than the model has timesteps or UNets for, the model does
            not support the guidance, the guidance scale or the levels of degradation would go
            unused, or a dial's map names classes that the model does not have.
    """
    sampler, text = manifest.sampler, manifest.text
    steps = sampler.steps if options.steps is None else operator.index(options.steps)
    check_integer("steps", steps, 1, sampler.num_train_timesteps)
    unet = next((name for name, served in manifest.unets.items() if steps in served), None)
    if unet is None:
        raise OptionError(
            f"steps is {steps}, but {manifest.name!r} has only the student for 1 to "
            f"{sampler.few_steps} steps; {steps} steps need its diffusion UNet: export the "
            f"checkpoint with --diffusion, or use steps={sampler.few_steps}"
        )

    baked, few = sampler.baked_guidance, steps <= sampler.few_steps
    guidance: str | None
    if options.guidance != "default":
        guidance = options.guidance
    elif baked is not None:
        guidance = None
    elif few:
        guidance = None if options.guidance_scale is None else sampler.few_guidance
    else:
        guidance = sampler.guidance
    if few and guidance is not None and sampler.few_guidance is None:
        raise OptionError(
            f"guidance is {guidance!r}, but {manifest.name!r} was trained for up to "
            f"{sampler.few_steps} steps without it, one UNet call a step; pass guidance=None, or "
            "more steps"
        )
    if baked is not None and guidance is not None:
        raise OptionError(
            f"guidance is {guidance!r}, but {manifest.name!r} has guidance baked in at "
            f"w = {baked:g}, so a step is one UNet call; pass guidance=None or leave it out"
        )
    if manifest.components[unet].takes("guidance") and guidance not in (None, sampler.guidance):
        raise OptionError(
            f"guidance is {guidance!r}, but {manifest.name!r} was distilled from "
            f"{sampler.guidance!r}; pass that, or guidance=None"
        )
    scale = options.guidance_scale
    dials = {
        name: value
        for name in DIALS
        if (value := getattr(options, name)) is not None and not isinstance(value, Real)
    }
    _check_dials(dials, manifest, unet)
    if scale is not None and guidance is None:
        why = (
            f"{manifest.name!r} has guidance baked in at w = {baked:g}; leave guidance_scale out"
            if baked is not None
            else f"guidance is None; choose one of {', '.join(map(repr, GUIDANCE))}"
        )
        shown = "a map" if "guidance_scale" in dials else repr(scale)
        raise OptionError(f"guidance_scale is {shown}, which would go unused: {why}")
    if guidance is None or "guidance_scale" in dials:
        scale = 0.0
    elif scale is None:
        scale = sampler.guidance_scale

    negative = options.negative_prompt
    if negative is None:
        # Table 3: without a negative prompt, cfg is guided by the empty language token.
        negative = "" if guidance == "cfg" else text.negative
    given = options.temperature
    if isinstance(given, Mapping):
        by_name = {name: float(given.get(name, 1.0)) for name in MODALITIES}
    else:
        by_name = dict.fromkeys(MODALITIES, 1.0 if given is None else float(given))
    tagged = options.prompt == "auto"
    own = "" if tagged else options.prompt
    return RunSettings(
        positive="" if own is None else join_words(own, text.positive),
        own=own,
        tagged=tagged,
        negative=negative.strip(),
        steps=steps,
        unet=unet,
        guidance=guidance,
        guidance_scale=float(scale),  # type: ignore[arg-type]  # maps are among the dials
        strength=1.0 if "strength" in dials else float(options.strength),  # type: ignore[arg-type]
        temperature=tuple(by_name[name] for name in MODALITIES),
        told=_is_told(options, manifest),
        dials=dials,
    )


def _check_dials(dials: Mapping[str, DialOption], manifest: Manifest, unet: str) -> None:
    """Check that the model can use the dials that are maps."""
    if "guidance_scale" in dials and manifest.components[unet].takes("guidance"):
        raise OptionError(
            f"guidance_scale is a map, but the UNet of {manifest.name!r} takes one number for all "
            "of a tile; give a number"
        )
    network = manifest.components.get("segmentation")
    for name, value in dials.items():
        DIALS[name].check_classes(value, () if network is None else network.labels, manifest.name)


def _is_told(options: UpscaleOptions, manifest: Manifest) -> bool:
    """Whether levels of degradation can reach the model; raises `OptionError` if they must."""
    words = manifest.text.degradation
    if (words and options.prompt is not None) or manifest.components["decoder"].takes(
        "degradation"
    ):
        return True
    unused: dict[str, object] = {"denoise": options.denoise}
    if isinstance(options.degradation, Mapping):
        unused["degradation"] = options.degradation
    why = (
        f"{manifest.name!r} is told the degradation in words, and prompt is None; give a prompt"
        if words
        else f"{manifest.name!r} {manifest.version} was not trained with levels of degradation; "
        "leave it out, or use a bundle that was"
    )
    for name, value in unused.items():
        if value is not None:
            raise OptionError(f"{name} is {value!r}, which would go unused: {why}")
    return False
