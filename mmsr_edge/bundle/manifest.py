"""The manifest: everything that a bundle declares, read from and written to `manifest.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mmsr_edge.bundle.contract import check_components
from mmsr_edge.bundle.records import decode, encode
from mmsr_edge.bundle.specs import (
    ComponentSpec,
    LatentSpec,
    Provenance,
    SamplerSpec,
    TextSpec,
    TileSpec,
)
from mmsr_edge.errors import BundleError

SCHEMA = 3
"""Version of the manifest's format. It increases when older readers would misread it."""

READABLE = (1, 2, SCHEMA)
"""Versions that are read. What schemas 2 and 3 added is optional, so that an older manifest means
the same in schema 3."""


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle declares."""

    name: str
    """Name of the model, such as "nano"."""
    version: str
    """Version of the weights."""
    preset: str
    """Architecture, a key of `mmsr_edge.models.presets`."""
    scale: int
    """Output pixels per input pixel, along each side."""
    tile: TileSpec
    """Size and spacing of the tiles."""
    latent: LatentSpec
    """Latent space of the diffusion."""
    sampler: SamplerSpec
    """The diffusion schedule and the defaults of sampling."""
    text: TextSpec
    """Tokenizer of the prompt, and default words."""
    components: dict[str, ComponentSpec]
    """The networks by role."""
    provenance: Provenance
    """Sources and licences of the weights."""
    allow_failing: tuple[str, ...] = ()
    """Components shipped although their parity card misses its gate."""
    untrained: tuple[str, ...] = ()
    """Components that have not been trained; `Upscaler` refuses a bundle that has any."""
    schema: int = SCHEMA
    """Version of the manifest's format, once it is read; always `SCHEMA`."""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise BundleError(f"manifest schema is {self.schema}; what is written has {SCHEMA}")
        for key in ("allow_failing", "untrained"):
            for name in getattr(self, key):
                if name not in self.components:
                    raise BundleError(f"{key} names {name!r}, which is not a component")
        check_components(
            self.components,
            scale=self.scale,
            tile=self.tile,
            latent=self.latent,
            text=self.text,
        )
        if "diffusion_unet" in self.components and self.sampler.diffusion == "same":
            raise BundleError(
                "component 'diffusion_unet' would go unused: sampler diffusion is 'same'; "
                "make it 'separate', or leave the component out"
            )
        if not any(self.sampler.steps in served for served in self.unets.values()):
            raise BundleError(
                f"sampler steps {self.sampler.steps} are more than the {self.sampler.few_steps} of "
                "'unet', and there is no 'diffusion_unet'; add it, or lower the default"
            )

    @property
    def unets(self) -> dict[str, range]:
        """Numbers of steps that each UNet serves, by component, the fewest first."""
        last, few = self.sampler.num_train_timesteps, self.sampler.few_steps
        if self.sampler.diffusion == "same":
            return {"unet": range(1, last + 1)}
        served = {"unet": range(1, few + 1)}
        if "diffusion_unet" in self.components:
            served["diffusion_unet"] = range(few + 1, last + 1)
        return served

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest.

        Raises:
            BundleError: `text` is not JSON; a key is missing, unknown or of the wrong type; or the
                components do not fit together.
        """
        try:
            data = json.loads(text, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:  # ValueError: also too many digits
            raise BundleError(f"manifest is not JSON: {error}; export the bundle again") from None
        # Checked first, so that a newer format is reported as such and not as unknown keys.
        schema = data.get("schema") if isinstance(data, dict) else None
        known = ", ".join(map(str, READABLE))
        if schema is None:
            raise BundleError(f"schema: missing; this mmsr-edge reads schema {known}")
        if isinstance(schema, bool) or schema not in READABLE:
            raise BundleError(
                f"schema: {schema!r} is unknown; this mmsr-edge reads {known}; install the release "
                "that wrote the bundle, or export it again"
            )
        return decode(cls, {**data, "schema": SCHEMA})

    def to_json(self) -> str:
        """The manifest as JSON text, which `from_json` reads back to an equal object."""
        try:
            return json.dumps(encode(self), indent=2, allow_nan=False) + "\n"
        except ValueError as error:
            raise BundleError(
                f"manifest holds a number that JSON cannot: {error}; "
                "write null for an infinite PSNR"
            ) from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated keys, since readers disagree on which of two values counts."""
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BundleError(f"manifest has the key {twice!r} twice; remove one of the two")
    return data
