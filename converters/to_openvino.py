"""Conversion of ONNX graphs to OpenVINO IR: an .xml file, and the weights in a .bin file beside it.

OpenVINO also reads ONNX, and runs it at the same speed once compiled. IR loads without a conversion
and is the input of OpenVINO's other tools.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx

from mmsr_edge.errors import ParityError, missing_extra

__all__ = ["save_openvino"]


def save_openvino(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Convert a graph and write it, with the weights at the precision that they have.

    OpenVINO's own `compress_to_fp16` also halves small constants. With the connector's constants
    halved, the CPU plugin (2026.4) is right on the first call and 30 dB off from the second on.

    Args:
        model: graph of at most 2 GiB; for float16 weights, a result of `to_onnx.halve_weights`.
        path: path of the .xml file.

    Returns:
        Names of the written files in the folder of `path`; the graph comes first.

    Raises:
        ParityError: the converted graph has other inputs or outputs than `model`.
        MissingExtraError: OpenVINO is not installed.
    """
    if importlib.util.find_spec("openvino") is None:
        raise missing_extra("openvino", "openvino")
    import openvino as ov

    converted = ov.Core().read_model(model.SerializeToString())
    for kind, ports, values in (
        ("input", converted.inputs, model.graph.input),
        ("output", converted.outputs, model.graph.output),
    ):
        for port, value in zip(ports, values, strict=True):
            if value.name not in port.get_names():
                raise ParityError(
                    f"the converted graph lacks {kind} {value.name!r}; it has "
                    f"{sorted(port.get_names())} in its place"
                )
            # Fused nodes leave several names on a tensor; only the contract's name stays.
            port.get_tensor().set_names({value.name})
    ov.save_model(converted, str(path), compress_to_fp16=False)
    return (path.name, path.with_suffix(".bin").name)
