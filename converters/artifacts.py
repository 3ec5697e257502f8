"""Artifacts: one network as files, in the formats and precisions there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Literal

import onnx
from numpy.typing import NDArray
from torch import nn

from mmsr_edge.bundle import Artifact, ComponentSpec, Format, Precision, describe_file
from mmsr_edge.converters.compress import BLOCK
from mmsr_edge.converters.quantize import QuantConfig, quantize, quantize_weights
from mmsr_edge.converters.to_coreml import (
    PALETTE_BITS,
    compress_weights,
    save_coreml,
    to_coreml,
)
from mmsr_edge.converters.to_onnx import halve_weights, save_onnx, to_onnx
from mmsr_edge.converters.to_openvino import save_openvino
from mmsr_edge.errors import OptionError
from mmsr_edge.models.checkpoint import write_weights
from mmsr_edge.runtimes.registry import BACKENDS, Backend

CoreMLWeights = Literal["linear", "palette"]
Feeds = Mapping[str, NDArray[Any]]

READERS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnxruntime", "openvino"),
    "openvino": ("openvino",),
    "coreml": ("mil",),
    "torch": ("torch",),
}
"""Backends that each format is checked with. Core ML itself runs on macOS only; "mil" interprets
its programs anywhere, on build machines."""
INTERPRETER = Backend("mil", "coreml", "mmsr_edge.converters.mil.session", ("coreml",))
"""The reader that is no runtime."""
CHECKERS = {backend.name: backend for backend in (*BACKENDS, INTERPRETER)}
"""All readers by name."""
QUANTIZED: dict[Precision, tuple[Format, ...]] = {
    "int4": ("onnx", "openvino"),
    "int8": ("onnx", "openvino", "coreml"),
}
"""Formats that have int4, and int8: of weights and activations, and of weights alone."""
EXACTER: dict[Precision, Precision] = {"int4": "int8", "int8": "fp16", "fp16": "fp32"}
"""What a component gets that has no such precision."""
_INT4: dict[str, Any] = {"weights": "blocks", "bits": 4, "block": BLOCK, "activations": "float"}


@dataclass(frozen=True)
class Source:
    """What the artifacts of one component are made from."""

    network: nn.Module
    """In torch, float32."""
    spec: ComponentSpec
    """Its name and tensors."""
    example: Feeds
    """One set of inputs."""
    calibration: Sequence[Feeds] = ()
    """Recorded inputs, for int8."""
    quantization: QuantConfig | None = None
    """How int8 is made; None: it is not."""
    coreml_weights: CoreMLWeights = "linear"
    """How Core ML's weights are compressed where int8 is asked for."""
    exact: tuple[str, ...] = ()
    """Operations that Core ML computes in float32 also where float16 is asked for."""

    def forms(
        self, formats: Sequence[Format], precisions: Sequence[Precision]
    ) -> list[tuple[Format, Precision]]:
        """What to make when these formats and precisions are asked for, each once."""
        forms: list[tuple[Format, Precision]] = []
        for form in formats:
            for precision in precisions:
                made = precision
                while not self._has(form, made):
                    made = EXACTER[made]
                if (form, made) not in forms:
                    forms.append((form, made))
        return forms

    def _has(self, form: Format, precision: Precision) -> bool:
        if precision not in QUANTIZED:
            return True
        if form not in QUANTIZED[precision] or self.quantization is None:
            return False
        # What has int8 weights and no more is small, and in 4 bits it would miss its gate.
        return precision == "int8" or self.quantization.activations != "float"

    def write(self, root: Path, form: Format, precision: Precision) -> Artifact:
        """Write one artifact below `root`, as `component/precision.suffix`.

        Raises:
            BundleError, OptionError, ParityError: it cannot be made; see `write_weights`,
                `quantize`, `to_onnx` and `to_coreml`.
        """
        if form == "torch":
            return write_weights(
                self.network, root, self.spec.name, "fp16" if precision == "fp16" else "fp32"
            )
        if form == "coreml":
            return self._write_coreml(root, precision)
        model, tools = self._exported, ["torch", "onnx", "onnxscript"]
        quantization = None
        if precision == "int8" and self.quantization is not None:
            quantization = self.quantization.to_dict()
            model = self._quantized
            tools += [self.quantization.tool] if self.quantization.activations != "float" else []
        if precision == "int4" and self.quantization is not None:
            quantization = {**_INT4, "int8": list(self.quantization.eight_at_int4)}
            model = quantize_weights(self._exported, self.quantization)
        folder = root / self.spec.name
        folder.mkdir(exist_ok=True)
        model = model if precision == "fp32" else halve_weights(model)
        if form == "openvino":
            names = save_openvino(model, folder / f"{precision}.xml")
            tools.append("openvino")
        else:
            names = save_onnx(model, folder / f"{precision}.onnx")
        return Artifact(
            form,
            precision,
            tuple(describe_file(root, f"{self.spec.name}/{name}") for name in names),
            quantization=quantization,
            tools={tool: package_version(tool) for tool in tools},
        )

    def _write_coreml(self, root: Path, precision: Precision) -> Artifact:
        quantization = None
        if precision == "fp32":
            model = to_coreml(self.network, self._arguments, self._outputs, "fp32")
        else:
            model = self._half_program
        if precision == "int8":
            linear = self.coreml_weights == "linear"
            model = compress_weights(model, "int8" if linear else "palette")
            bits = 8 if linear else PALETTE_BITS
            quantization = {"weights": self.coreml_weights, "bits": bits, "activations": "fp16"}
        path = root / self.spec.name / f"{precision}.mlpackage"
        names = save_coreml(model, path)
        return Artifact(
            "coreml",
            precision,
            tuple(describe_file(root, f"{self.spec.name}/{name}") for name in names),
            quantization=quantization,
            tools={tool: package_version(tool) for tool in ("torch", "coremltools")},
        )

    @cached_property
    def _exported(self) -> onnx.ModelProto:
        return to_onnx(self.network, self.example, self.spec.inputs, self.spec.outputs)

    @cached_property
    def _quantized(self) -> onnx.ModelProto:
        if self.quantization is None:
            raise OptionError(f"component {self.spec.name!r} is never quantized")
        return quantize(self._exported, self.calibration, self.quantization)

    @cached_property
    def _half_program(self) -> Any:
        """Core ML's float16 program, which int8 is made from too."""
        return to_coreml(self.network, self._arguments, self._outputs, exact=self.exact)

    @property
    def _arguments(self) -> Feeds:
        """The example in the order of the network's arguments; recorded inputs have another."""
        return {spec.name: self.example[spec.name] for spec in self.spec.inputs}

    @property
    def _outputs(self) -> list[str]:
        return [spec.name for spec in self.spec.outputs]
