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

from mmsr_edge.bundle import Artifact, ComponentSpec, describe_file
from mmsr_edge.converters.quantize import QuantConfig, quantize
from mmsr_edge.converters.to_onnx import halve_weights, save_onnx, to_onnx
from mmsr_edge.training.checkpoint import write_weights

Format = Literal["onnx", "torch"]
Precision = Literal["fp32", "fp16", "int8"]
Feeds = Mapping[str, NDArray[Any]]

READERS: dict[str, tuple[str, ...]] = {"onnx": ("onnxruntime", "openvino"), "torch": ("torch",)}
"""Backends that read each format, and that it is checked with."""
EXACTER: dict[Precision, Precision] = {"int8": "fp16", "fp16": "fp32"}
"""What a component gets that has no such precision."""


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

    def forms(
        self, formats: Sequence[Format], precisions: Sequence[Precision]
    ) -> list[tuple[Format, Precision]]:
        """What to make when these formats and precisions are asked for, each once."""
        forms: list[tuple[Format, Precision]] = []
        for form in formats:
            for precision in precisions:
                whole = form == "onnx" and self.quantization is not None
                made = precision if precision != "int8" or whole else EXACTER[precision]
                if (form, made) not in forms:
                    forms.append((form, made))
        return forms

    def write(self, root: Path, form: Format, precision: Precision) -> Artifact:
        """Write one artifact below `root`, as `component/precision.suffix`.

        Raises:
            BundleError, OptionError, ParityError: it cannot be made; see `write_weights`,
                `quantize` and `to_onnx`.
        """
        if form == "torch":
            return write_weights(
                self.network, root, self.spec.name, "fp16" if precision == "fp16" else "fp32"
            )
        model, tools = self._exported, ["torch", "onnx", "onnxscript"]
        quantization = None
        if precision == "int8" and self.quantization is not None:
            quantization = self.quantization.to_dict()
            model = quantize(model, self.calibration, self.quantization)
            tools.append("nncf")
        if precision != "fp32":
            model = halve_weights(model)
        path = root / self.spec.name / f"{precision}.onnx"
        path.parent.mkdir(exist_ok=True)
        names = save_onnx(model, path)
        return Artifact(
            "onnx",
            precision,
            tuple(describe_file(root, f"{self.spec.name}/{name}") for name in names),
            quantization=quantization,
            tools={tool: package_version(tool) for tool in tools},
        )

    @cached_property
    def _exported(self) -> onnx.ModelProto:
        return to_onnx(self.network, self.example, self.spec.inputs, self.spec.outputs)
