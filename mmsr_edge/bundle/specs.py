"""The records that a manifest is made of, as frozen dataclasses.

`Manifest > ComponentSpec > Artifact > FileSpec`, and `TensorSpec` for inputs and outputs. Every
class checks itself when it is built, so that a converter fails where the mistake is made.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from mmsr_edge.errors import BundleError

MAX_TIMESTEPS = 100_000
"""Most noise levels of a schedule; diffusion models have a thousand."""

PRECISIONS = ("int4", "int8", "fp16", "fp32")
"""From the smallest to the most exact."""

FASTEST = ("int8", "fp16", "fp32", "int4")
"""From the fastest to the slowest, where int8 has kernels of its own. int4 is a smaller file and no
more: its weights are unpacked to float, by ONNX Runtime at every call."""

Format = Literal["onnx", "openvino", "coreml", "torch"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
Guidance = Literal["m-cfg", "cfg", "m0-cfg"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a component. Shapes are static and the batch is 1."""

    name: str
    """Name in the graph and in feeds."""
    shape: tuple[int, ...]
    """Every dimension, batch first."""
    dtype: Literal["float32", "int64"]
    """Type at the boundary, whatever the precision inside."""

    def __post_init__(self) -> None:
        if not self.name:
            raise BundleError("a tensor needs a name, got ''")
        if self.dtype not in ("float32", "int64"):
            raise BundleError(f"tensor {self.name!r}: dtype {self.dtype!r} is not float32 or int64")
        if not self.shape or self.shape[0] != 1 or min(self.shape) < 1:
            raise BundleError(
                f"tensor {self.name!r}: shape {self.shape} must be positive with a batch of 1"
            )


@dataclass(frozen=True)
class FileSpec:
    """One file of a bundle."""

    path: str
    """Where it is, relative to the bundle, with forward slashes."""
    sha256: str
    """Digest of the content, 64 lower-case hexadecimal digits."""
    bytes: int
    """Size of the content."""

    def __post_init__(self) -> None:
        pure = PurePosixPath(self.path)
        if (
            not pure.parts
            or pure.is_absolute()
            or ".." in pure.parts
            or pure.as_posix() != self.path
            or re.search(r"[\\:\x00]", self.path)
        ):
            raise BundleError(
                f"file path {self.path!r} must be relative, inside the bundle, with forward slashes"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise BundleError(
                f"file {self.path!r}: sha256 {self.sha256!r} is not 64 lower-case hex digits"
            )
        if self.bytes < 0:
            raise BundleError(f"file {self.path!r}: bytes {self.bytes} is negative")


@dataclass(frozen=True)
class Artifact:
    """One form of a component: a format at a precision."""

    format: Format
    """Which family of runtimes opens it."""
    precision: Precision
    """Precision of weights (and, for int8, of the activations the recipe names)."""
    files: tuple[FileSpec, ...]
    """All files; the first is the one to open, the others lie where it expects them."""
    quantization: dict[str, Any] | None = None
    """The settings that made it, when it is quantized."""
    parity: dict[str, Any] | None = None
    """The parity card: how far it is from torch fp32 on recorded inputs."""
    tools: dict[str, str] = field(default_factory=dict)
    """Version of each tool that had a part in it."""
    backends: tuple[str, ...] = ()
    """Backends it was made for, which then prefer it; empty: all that open the format."""

    def __post_init__(self) -> None:
        if not self.files:
            raise BundleError(f"{self.format} {self.precision} artifact has no files")


@dataclass(frozen=True)
class ComponentSpec:
    """One network of the pipeline."""

    name: str
    """Role, such as "unet"; the key of `Manifest.components`."""
    inputs: tuple[TensorSpec, ...]
    """What it takes, in the order of the graph's arguments."""
    outputs: tuple[TensorSpec, ...]
    """What it gives, in order."""
    artifacts: tuple[Artifact, ...]
    """The forms it is available in."""
    labels: tuple[str, ...] = ()
    """What its classes (segmentation) or its scores (tagger) stand for, by index."""

    def __post_init__(self) -> None:
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            names = [tensor.name for tensor in tensors]
            if not names or len(set(names)) != len(names):
                raise BundleError(
                    f"component {self.name!r}: {kind} names must be present and differ, got {names}"
                )
        if not self.artifacts:
            raise BundleError(f"component {self.name!r} has no artifact")

    def takes(self, name: str) -> bool:
        """Whether it has an input of that name."""
        return any(tensor.name == name for tensor in self.inputs)


@dataclass(frozen=True)
class LatentSpec:
    """The space the diffusion runs in."""

    channels: int
    """C, channels of a latent."""
    factor: int = 8
    """Output pixels to a latent cell, along each side."""
    residual_scale: tuple[float, ...] | None = None
    """Per channel s: the diffusion models (z_hr - z_lr) / s. None: it models z_hr itself."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.factor < 1:
            raise BundleError(
                f"latent channels {self.channels} and factor {self.factor} must be >= 1"
            )
        scale = self.residual_scale
        if scale is not None and (
            len(scale) != self.channels or not all(math.isfinite(s) and s > 0 for s in scale)
        ):
            raise BundleError(f"residual_scale {scale} must be {self.channels} positive numbers")


@dataclass(frozen=True)
class SamplerSpec:
    """The diffusion schedule and the defaults of sampling."""

    prediction_type: Literal["v_prediction", "epsilon", "sample"]
    """What the UNet predicts."""
    num_train_timesteps: int
    """T, number of noise levels in training."""
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"]
    """How beta grows from the first timestep to the last."""
    beta_start: float
    """Beta at the first timestep (unused by squaredcos_cap_v2)."""
    beta_end: float
    """Beta at the last timestep (unused by squaredcos_cap_v2)."""
    rescale_zero_snr: bool
    """Whether the last timestep is pure noise (zero terminal SNR)."""
    timestep_spacing: Literal["trailing", "leading", "linspace"]
    """How the sampled timesteps are spread over T."""
    steps: int
    """Default number of steps."""
    guidance: Guidance | None
    """Default guidance; None is one positive call a step."""
    guidance_scale: float
    """Default w of Eq. 3-4."""
    baked_guidance: float | None = None
    """w the UNet was distilled with, when its one call already contains the guidance."""
    few_steps: int = 0
    """Up to so many steps the walk starts from z_T = 0 instead of noise, as the UNet was taught,
    and has no guidance by default."""
    few_guidance: Guidance | None = None
    """What these steps take where w is given, as the UNet was taught it; None: they refuse it."""

    def __post_init__(self) -> None:
        if self.num_train_timesteps > MAX_TIMESTEPS:  # the schedule is an array of as many
            raise BundleError(
                f"sampler num_train_timesteps {self.num_train_timesteps} must be at most "
                f"{MAX_TIMESTEPS}"
            )
        if not 1 <= self.steps <= self.num_train_timesteps:
            raise BundleError(
                f"sampler steps {self.steps} must lie in 1..{self.num_train_timesteps} "
                "(num_train_timesteps)"
            )
        if not 0 <= self.few_steps <= self.num_train_timesteps:
            raise BundleError(
                f"sampler few_steps {self.few_steps} must lie in 0..{self.num_train_timesteps} "
                "(num_train_timesteps)"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise BundleError(
                f"sampler betas {self.beta_start} and {self.beta_end} must satisfy "
                "0 < beta_start <= beta_end < 1"
            )
        for name in ("guidance_scale", "baked_guidance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise BundleError(f"sampler {name} {value} must be finite and >= 0")


@dataclass(frozen=True)
class TextSpec:
    """How a prompt becomes ids."""

    tokenizer: Literal["hashed-words", "clip-bpe"]
    """Which tokenizer."""
    vocab_size: int
    """Ids lie in 0..vocab_size - 1."""
    length: int = 77
    """Ids to a prompt, padding included."""
    positive: str = ""
    """Added to every prompt."""
    negative: str = ""
    """The negative prompt when the caller gives none."""

    def __post_init__(self) -> None:
        if self.vocab_size < 4 or self.length < 2:
            raise BundleError(
                f"text vocab_size {self.vocab_size} must be >= 4 and length {self.length} >= 2"
            )


@dataclass(frozen=True)
class TileSpec:
    """The window the networks see, in pixels of the low-resolution picture."""

    size: int
    """Side of a tile."""
    overlap: int
    """Pixels that neighbours share."""
    multiple_of: int
    """Tiles start at multiples of this, so that their latents lie on one grid."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap <= self.size // 2:
            raise BundleError(
                f"tile overlap {self.overlap} must lie in 0..{self.size // 2}, "
                f"half of the size {self.size}"
            )
        if self.multiple_of < 1 or self.size % self.multiple_of:
            raise BundleError(
                f"tile size {self.size} must be a multiple of multiple_of {self.multiple_of}"
            )


@dataclass(frozen=True)
class Provenance:
    """Where the weights come from and what may be done with them."""

    licence: str
    """Licence of the weights, an SPDX expression where there is one."""
    sources: tuple[dict[str, Any], ...]
    """Every data set and every checkpoint: name, licence, address, what it was used for."""
    notes: str = ""
    """Anything a user of the weights should know."""
