"""Weights to int8, activations left in float: for networks that are small and run once a picture.

The file is a quarter of the size; runtimes unpack the weights when they load it, so it is as fast
as float, and no activation is rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

__all__ = ["compress_weights", "round_weights"]


def round_weights(
    weights: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 per channel: w ≈ q·s, s = max|w| / 127 over all axes but `axis`.

    Returns:
        q of the weights' shape, and s, one number a channel; a channel of zeros has s = 1.
    """
    others = tuple(i for i in range(weights.ndim) if i != axis)
    scales = np.abs(weights).max(axis=others, keepdims=True) / 127
    scales[scales == 0] = 1
    rounded = np.round(weights / scales).astype(np.int8)
    return rounded, scales.reshape(-1).astype(np.float32)


def compress_weights(
    model: onnx.ModelProto, layers: set[str], folder: Path | None = None
) -> onnx.ModelProto:
    """A copy of a float32 graph in which the weights of `layers` (names of nodes) are int8.

    Each is read through a DequantizeLinear along the layer's output channels. `folder` is where
    weights lie that the graph keeps in a file beside; one at a time is read.
    """
    import onnx
    from onnx import helper, numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[str, str] = {}
    unpacking = []
    for node in graph.node:
        if node.name not in layers:
            continue
        name = node.input[1]
        if name not in made:
            values = numpy_helper.to_array(constants[name], str(folder or ""))
            axis = _output_axis(node, values.ndim)
            rounded, scales = round_weights(values, axis)
            made[name] = f"{name}.float"
            constants[name].CopyFrom(numpy_helper.from_array(rounded, name))
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scale"))
            unpacking.append(
                helper.make_node(
                    "DequantizeLinear",
                    [name, f"{name}.scale"],
                    [made[name]],
                    name=f"{name}.dequantize",
                    axis=axis,
                )
            )
        node.input[1] = made[name]
    for node in reversed(unpacking):
        graph.node.insert(0, node)
    return result


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    """Which axis of its weights counts a layer's output channels."""
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        return 0 if flags.get("transB") else 1
    return 1 if node.op_type == "ConvTranspose" else 0
