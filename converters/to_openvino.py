"""ONNX graphs to OpenVINO's own form: an .xml file with the weights in a .bin beside it.

OpenVINO reads ONNX itself, and at the same speed once compiled. Its own form loads without a
conversion, and is what its other tools take.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx

from mmsr_edge.errors import ParityError, missing_extra

__all__ = ["save_openvino"]


def save_openvino(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Convert a graph and write it; weights are stored as they are.

    OpenVINO's own `compress_to_fp16` also halves small constants. With those of our connector, its
    CPU plugin (2026.4) gives the right answer once, and from the second call on one 30 dB away.

    Args:
        model: at most 2 GiB; for float16 weights, what `to_onnx.halve_weights` made.
        path: of the .xml file.

    Returns:
        The names of the files written, in the folder of `path`; the first is the graph.

    Raises:
        ParityError: the converted graph has other inputs or outputs.
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
            # A tensor may have several names, those of nodes that were fused; one is the contract's
            port.get_tensor().set_names({value.name})
    ov.save_model(converted, str(path), compress_to_fp16=False)
    return (path.name, path.with_suffix(".bin").name)
