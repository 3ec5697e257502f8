"""The parts of a manifest, as frozen dataclasses.

`Manifest > ComponentSpec > Artifact > FileSpec`, and `TensorSpec` for inputs and outputs. Every
class checks its values when it is built, so that a converter fails where the mistake is made.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from mmsr_edge.errors import BundleError

MAX_TIMESTEPS = 100_000
"""Largest number of noise levels in a schedule; diffusion models usually have 1000."""

PRECISIONS = ("int4", "int8", "fp16", "fp32")
"""Precisions, from the smallest to the most exact."""

FASTEST = ("int8", "fp16", "fp32", "int4")
"""Precisions, from the fastest to the slowest in runtimes with int8 kernels. int4 only makes the
file smaller: its weights are unpacked to float, by ONNX Runtime at every call."""

Format = Literal["onnx", "openvino", "coreml", "torch"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
Guidance = Literal["m-cfg", "cfg", "m0-cfg"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a component. Shapes are static and the batch is 1."""

    name: str
    """Name in the graph and in feeds."""
    shape: tuple[int, ...]
    """All dimensions, batch first."""
    dtype: Literal["float32", "int64"]
    """Type outside the network, independent of the precision inside."""

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
    """Path relative to its bundle, with forward slashes."""
    sha256: str
    """SHA-256 of the content, 64 lower-case hexadecimal digits."""
    bytes: int
    """Size of the content in bytes."""
    bundle: str = ""
    """Name of the bundle that holds the file, a folder beside this one's; empty: this one."""

    def __post_init__(self) -> None:
        if self.bundle and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.bundle):
            raise BundleError(
                f"bundle {self.bundle!r} must be the name of a folder beside this bundle: letters, "
                "digits, '.', '_' and '-'"
            )
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
    """Format of the files, which decides the runtimes that can open it."""
    precision: Precision
    """Precision of the weights and, for int8, of the activations that the recipe names."""
    files: tuple[FileSpec, ...]
    """All files. The first is the one to open; it expects the others at their paths."""
    quantization: dict[str, Any] | None = None
    """Settings of the quantization; None: not quantized."""
    parity: dict[str, Any] | None = None
    """The parity card: deviation from torch float32 on recorded inputs."""
    tools: dict[str, str] = field(default_factory=dict)
    """Versions of the tools that made it, by name."""
    backends: tuple[str, ...] = ()
    """Backends that it was made for and that prefer it; empty: all that open the format."""

    def __post_init__(self) -> None:
        if not self.files:
            raise BundleError(f"{self.format} {self.precision} artifact has no files")


@dataclass(frozen=True)
class ComponentSpec:
    """One network of the pipeline."""

    name: str
    """Role, such as "unet"; the key of `Manifest.components`."""
    inputs: tuple[TensorSpec, ...]
    """Inputs, in the order of the graph's arguments."""
    outputs: tuple[TensorSpec, ...]
    """Outputs, in the order of the graph's results."""
    artifacts: tuple[Artifact, ...]
    """Forms of the network."""
    labels: tuple[str, ...] = ()
    """Names of the classes (segmentation) or of the scores (tagger), by index."""

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
        """Whether the component has an input called `name`."""
        return any(tensor.name == name for tensor in self.inputs)


@dataclass(frozen=True)
class LatentSpec:
    """The latent space of the diffusion."""

    channels: int
    """C, number of channels of a latent."""
    factor: int = 8
    """Output pixels per latent cell, along each side."""
    residual_scale: tuple[float, ...] | None = None
    """s by channel: `unet` models (z_hr - z_lr) / s. None: it models z_hr itself."""
    diffusion_scale: tuple[float, ...] | None = None
    """σ by channel: `diffusion_unet` models z_hr / σ. None: the same as `unet`."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.factor < 1:
            raise BundleError(
                f"latent channels {self.channels} and factor {self.factor} must be >= 1"
            )
        for name in ("residual_scale", "diffusion_scale"):
            scale = getattr(self, name)
            if scale is not None and (
                len(scale) != self.channels or not all(math.isfinite(s) and s > 0 for s in scale)
            ):
                raise BundleError(f"{name} {scale} must be {self.channels} positive numbers")


@dataclass(frozen=True)
class SamplerSpec:
    """The diffusion schedule and the defaults of sampling."""

    prediction_type: Literal["v_prediction", "epsilon", "sample"]
    """Quantity that the UNet predicts: v, ε or z_0."""
    num_train_timesteps: int
    """T, number of noise levels in training."""
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"]
    """Course of beta from the first timestep to the last."""
    beta_start: float
    """Beta at the first timestep (unused by squaredcos_cap_v2)."""
    beta_end: float
    """Beta at the last timestep (unused by squaredcos_cap_v2)."""
    rescale_zero_snr: bool
    """Whether the last timestep is pure noise (zero terminal SNR)."""
    timestep_spacing: Literal["trailing", "leading", "linspace"]
    """Spacing of a trajectory's timesteps over T."""
    steps: int
    """Default number of steps."""
    guidance: Guidance | None
    """Default guidance; None: no guidance, one UNet call a step."""
    guidance_scale: float
    """Default guidance scale w of Eq. 3-4."""
    baked_guidance: float | None = None
    """w that the UNet was distilled with: one call contains the guidance. None: not baked in."""
    few_steps: int = 0
    """Trajectories of up to this many steps start from z_T = 0 instead of noise, as the UNet was
    trained, and have no guidance by default."""
    few_guidance: Guidance | None = None
    """Guidance of these trajectories when the caller gives w; None: they refuse guidance."""
    diffusion: Literal["same", "separate"] = "same"
    """Weights of the diffusion, which serve more than `few_steps` steps. "same": those of component
    `unet`, which then serves all. "separate": those of component `diffusion_unet`, which a bundle
    may leave out; `unet` is the student distilled from it."""

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
        if self.diffusion == "separate" and self.few_steps == 0:
            raise BundleError(
                "sampler diffusion is 'separate' with few_steps 0, so that no trajectory would be "
                "left to 'unet'; say how many steps it was distilled to"
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
    """Conversion of a prompt to ids, and default words."""

    tokenizer: Literal["hashed-words", "clip-bpe"]
    """Kind of tokenizer."""
    vocab_size: int
    """Number of ids: they are 0 to vocab_size - 1."""
    length: int = 77
    """Number of ids of a prompt, padding included."""
    positive: str = ""
    """Words that are appended to every prompt."""
    negative: str = ""
    """Default negative prompt."""
    degradation: bool = False
    """Whether the model knows words for levels of noise, blur and JPEG, such as "noise3"."""

    def __post_init__(self) -> None:
        if self.vocab_size < 4 or self.length < 2:
            raise BundleError(
                f"text vocab_size {self.vocab_size} must be >= 4 and length {self.length} >= 2"
            )


@dataclass(frozen=True)
class TileSpec:
    """The tiles that the networks take, in pixels of the LR picture."""

    size: int
    """Side of a tile."""
    overlap: int
    """Least number of pixels that neighbouring tiles share."""
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
    """Origin and licence of the weights."""

    licence: str
    """Licence of the weights, as an SPDX expression where there is one."""
    sources: tuple[dict[str, Any], ...]
    """Every data set and checkpoint that was used: name, licence, address and purpose."""
    notes: str = ""
    """Remarks for users of the weights."""
