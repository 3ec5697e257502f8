"""Compression of weights to int8 or int4, with float activations, for smaller files.

int8 is for small networks that run once per picture, where int8 activations gain no speed. int4 is
for downloads over a slow connection. OpenVINO unpacks the weights once when it opens the file. ONNX
Runtime unpacks them in every call, which slows down large convolutions only.
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
"""Weights per int4 scale; where it does not divide the inputs, a smaller size, at least half."""
SHARES = (1.0, 0.9, 0.8, 0.7)
"""Candidates for the range of an int4 block, as shares of its largest absolute weight."""
INT4_OPSET = 21
"""First ONNX opset whose DequantizeLinear supports int4 and blocks."""


def round_weights(
    weights: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize to symmetric int8 per channel: w ≈ q·s, s = max|w| / 127 over all axes but `axis`.

    Returns:
        q in the shape of `weights`, and s [channels]; a channel of zeros has s = 1.
    """
    others = tuple(i for i in range(weights.ndim) if i != axis)
    scales = np.abs(weights).max(axis=others, keepdims=True) / 127
    scales[scales == 0] = 1
    quantized = np.round(weights / scales).astype(np.int8)
    return quantized, scales.reshape(-1).astype(np.float32)


def round_blocks(
    weights: NDArray[np.float32], axis: int, size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize to symmetric int4 by blocks: w ≈ q·s, with one s per `size` weights along `axis`.

    s is the multiple of max|w| / 7 by one of `SHARES` with the least squared error: with only seven
    steps on each side, clipping the largest weight often reduces the error.

    Returns:
        q in [-7, 7] in the shape of `weights`, and s in the same shape with the number of blocks
        along `axis`; a block of zeros has s = 1.
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
    quantized = np.clip(np.round(blocks / scales), -7, 7).astype(np.int8)
    return quantized.reshape(weights.shape), scales.squeeze(axis + 1).astype(np.float32)


def pack_int4(values: NDArray[np.int8], name: str) -> onnx.TensorProto:
    """Make an INT4 tensor: two numbers per byte, the first in the low half."""
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
    """Compress the weights of some layers of a float32 graph to int8 or int4.

    Each weight is read through a DequantizeLinear along the layer's output channels (int8) or
    through one with blocks along its input channels (int4).

    Args:
        model: the float32 graph; not changed.
        layers: names of the nodes.
        folder: folder of the external weights, where the graph has any; read one at a time.
        four: nodes of `layers` with int4 weights, provided that their inputs divide into blocks.
            The graph's opset is then raised to `INT4_OPSET`.

    Returns:
        The compressed copy.
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
                quantized, scales = round_blocks(values, inputs, size)
                constants[name].CopyFrom(pack_int4(quantized, name))
            else:
                quantized, scales = round_weights(values, outputs)
                constants[name].CopyFrom(numpy_helper.from_array(quantized, name))
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
    """The largest block size that divides `inputs`, from BLOCK / 2 to BLOCK; 0: there is none."""
    return next((n for n in range(BLOCK, BLOCK // 2 - 1, -1) if inputs % n == 0), 0)


def _axes(node: onnx.NodeProto, rank: int) -> tuple[int, int]:
    """Axes of the output and input channels in a layer's weights."""
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMul":
        return rank - 1, rank - 2
    if node.op_type == "Gemm":
        return (0, 1) if flags.get("transB") else (1, 0)
    return (1, 0) if node.op_type == "ConvTranspose" else (0, 1)
