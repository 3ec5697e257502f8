"""Artifacts: one network written as files, in every format and precision."""

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
"""Backends that check each format. Core ML runs on macOS only; "mil" interprets its programs on any
build machine."""
INTERPRETER = Backend("mil", "coreml", "mmsr_edge.converters.mil.session", ("coreml",))
"""Interpreter of ML Programs; a reader for checks, not a runtime."""
CHECKERS = {backend.name: backend for backend in (*BACKENDS, INTERPRETER)}
"""All readers, by name."""
QUANTIZED: dict[Precision, tuple[Format, ...]] = {
    "int4": ("onnx", "openvino"),
    "int8": ("onnx", "openvino", "coreml"),
}
"""Formats that support int4 and int8. For Core ML, int8 compresses the weights only."""
EXACTER: dict[Precision, Precision] = {"int4": "int8", "int8": "fp16", "fp16": "fp32"}
"""Next more exact precision, for a component that lacks the requested one."""
_INT4: dict[str, Any] = {"weights": "blocks", "bits": 4, "block": BLOCK, "activations": "float"}


@dataclass(frozen=True)
class Source:
    """Source of the artifacts of one component: network, specification and settings."""

    network: nn.Module
    """The network in torch at float32."""
    spec: ComponentSpec
    """Name and tensors of the component."""
    example: Feeds
    """One set of inputs, by name."""
    calibration: Sequence[Feeds] = ()
    """Recorded inputs to calibrate int8 on."""
    quantization: QuantConfig | None = None
    """Settings of int8 and int4; None: the component stays float."""
    coreml_weights: CoreMLWeights = "linear"
    """Compression of Core ML's weights at int8."""
    exact: tuple[str, ...] = ()
    """Operations that Core ML computes in float32 even at float16."""

    def forms(
        self, formats: Sequence[Format], precisions: Sequence[Precision]
    ) -> list[tuple[Format, Precision]]:
        """Distinct (format, precision) pairs to write for the requested formats and precisions."""
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
        # Components with float activations are small, and would miss their gate at 4 bits.
        return precision == "int8" or self.quantization.activations != "float"

    def write(self, root: Path, form: Format, precision: Precision) -> Artifact:
        """Write one artifact below `root`, as `component/precision.suffix`.

        Raises:
            BundleError, OptionError, ParityError: the artifact cannot be made; see
                `write_weights`, `quantize`, `to_onnx` and `to_coreml`.
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
        """Core ML's float16 program, from which int8 is compressed as well."""
        return to_coreml(self.network, self._arguments, self._outputs, exact=self.exact)

    @property
    def _arguments(self) -> Feeds:
        """The example, sorted by the network's arguments; recorded inputs have another order."""
        return {spec.name: self.example[spec.name] for spec in self.spec.inputs}

    @property
    def _outputs(self) -> list[str]:
        return [spec.name for spec in self.spec.outputs]
