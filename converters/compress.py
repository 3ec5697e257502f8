"""Weights to int8 or int4, activations left in float: a smaller file.

int8 is for networks that are small and run once a picture, where rounding activations would gain
nothing; int4 for what is fetched over a slow line. OpenVINO unpacks the weights when it opens
the file, ONNX Runtime at every call, which only large convolutions notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

__all__ = ["compress_weights", "pack_int4", "round_blocks", "round_weights"]

BLOCK = 32
"""Weights that share an int4 scale; fewer, down to a half, where these do not divide the inputs."""
SHARES = (1.0, 0.9, 0.8, 0.7)
"""Of the greatest weight: where an int4 block's range may end."""
INT4_OPSET = 21
"""The first in which DequantizeLinear takes int4 and blocks."""


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


def round_blocks(
    weights: NDArray[np.float32], axis: int, size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int4 by blocks: w ≈ q·s, where `size` neighbours along `axis` share a scale.

    s is the best, by squared error, of a few shares of max|w| / 7: of seven steps a side, the
    greatest weight is rarely worth one.

    Returns:
        q in [-7, 7] of the weights' shape, and s, the same but for `axis`, which counts blocks; a
        block of zeros has s = 1.
    """
    shape = (*weights.shape[:axis], -1, size, *weights.shape[axis + 1 :])
    blocks = weights.reshape(shape)
    most = np.abs(blocks).max(axis=axis + 1, keepdims=True)
    most[most == 0] = 7
    best, scales = np.full_like(most, np.inf), np.ones_like(most)
    for share in SHARES:
        tried = most * np.float32(share / 7)
        missed = blocks - np.clip(np.round(blocks / tried), -7, 7) * tried
        error = np.square(missed).sum(axis=axis + 1, keepdims=True)
        scales = np.where(error < best, tried, scales)
        best = np.minimum(error, best)
    rounded = np.clip(np.round(blocks / scales), -7, 7).astype(np.int8)
    return rounded.reshape(weights.shape), scales.squeeze(axis + 1).astype(np.float32)


def pack_int4(values: NDArray[np.int8], name: str) -> onnx.TensorProto:
    """An INT4 tensor: two numbers a byte, the first in the low half."""
    from onnx import TensorProto, helper

    flat = values.reshape(-1)
    pairs = np.pad(flat, (0, flat.size % 2)).reshape(-1, 2).astype(np.uint8) & 15
    packed = pairs[:, 0] | pairs[:, 1] << 4
    return helper.make_tensor(name, TensorProto.INT4, values.shape, packed.tobytes(), raw=True)


def compress_weights(
    model: onnx.ModelProto,
    layers: set[str],
    folder: Path | None = None,
    four: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """A copy of a float32 graph in which the weights of `layers` (names of nodes) are int8.

    Each is read through a DequantizeLinear along the layer's output channels.

    Args:
        model: not changed.
        layers: names of nodes.
        folder: where weights lie that the graph keeps in a file beside; one at a time is read.
        four: those of `layers` whose weights are int4 instead, by blocks along their inputs, where
            these divide into blocks. The graph's opset is then raised to the first that has int4.
    """
    import onnx
    from onnx import helper, numpy_helper, version_converter

    result = onnx.ModelProto()
    result.CopyFrom(model)
    if four:
        result = version_converter.convert_version(result, INT4_OPSET)
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
            outputs, inputs = _axes(node, values.ndim)
            size = _block_size(values.shape[inputs]) if node.name in four else 0
            options = {"axis": inputs, "block_size": size} if size else {"axis": outputs}
            if size:
                rounded, scales = round_blocks(values, inputs, size)
                constants[name].CopyFrom(pack_int4(rounded, name))
            else:
                rounded, scales = round_weights(values, outputs)
                constants[name].CopyFrom(numpy_helper.from_array(rounded, name))
            made[name] = f"{name}.float"
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scale"))
            unpacking.append(
                helper.make_node(
                    "DequantizeLinear",
                    [name, f"{name}.scale"],
                    [made[name]],
                    name=f"{name}.dequantize",
                    **options,
                )
            )
        node.input[1] = made[name]
    for node in reversed(unpacking):
        graph.node.insert(0, node)
    return result


def _block_size(inputs: int) -> int:
    """The largest size of blocks that `inputs` divides into; 0 where all would be too small."""
    return next((n for n in range(BLOCK, BLOCK // 2 - 1, -1) if inputs % n == 0), 0)


def _axes(node: onnx.NodeProto, rank: int) -> tuple[int, int]:
    """Which axes of its weights count a layer's output and input channels."""
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMul":
        return rank - 1, rank - 2
    if node.op_type == "Gemm":
        return (0, 1) if flags.get("transB") else (1, 0)
    return (1, 0) if node.op_type == "ConvTranspose" else (0, 1)
