"""Export of networks to ONNX: one static graph per component, for ONNX Runtime and OpenVINO."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from mmsr_edge.errors import ParityError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from mmsr_edge.bundle import TensorSpec

OPSET = 18
"""ONNX opset that every supported runtime reads; newer ones only name GELU and GroupNorm."""
SMALLEST_HALF = 1024
"""Tensors with fewer elements (biases, norms, constants) stay float32: they are negligible."""
SINGLE_FILE_LIMIT = 1 << 30
"""Bytes; larger graphs keep their weights in a second file, because protobuf ends at 2 GiB."""

_DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


def to_onnx(
    network: nn.Module,
    feeds: Mapping[str, NDArray[Any]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> onnx.ModelProto:
    """Export a network at float32 with batch 1 and static shapes.

    Nodes are named `module.path/OpType`, so that a part of the network can be selected by its
    torch name. Source paths and stack traces of the exporting machine are removed from the graph.

    Args:
        network: network in evaluation mode.
        feeds: one set of inputs, by name.
        inputs: expected inputs of the graph, in the order of the network's arguments.
        outputs: expected outputs of the graph.

    Raises:
        ParityError: the graph's names, shapes or dtypes differ from `inputs` or `outputs`.
    """
    arguments = tuple(torch.from_numpy(feeds[spec.name]) for spec in inputs)
    program = _program(
        network, arguments, [spec.name for spec in inputs], [spec.name for spec in outputs]
    )
    model: onnx.ModelProto = program.model_proto
    _name_nodes(model.graph)
    _strip(model)
    for kind, wanted, found in (
        ("input", inputs, model.graph.input),
        ("output", outputs, model.graph.output),
    ):
        _check(kind, wanted, found)
    return model


def export_onnx(
    network: nn.Module, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str], path: Path
) -> onnx.ModelProto:
    """Export a network of any size at float32 to `path`, with the weights in a file beside it.

    Returns:
        The graph, with nodes named as by `to_onnx`. Its weights are not in memory.
    """
    arguments = tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in feeds.values())
    program = _program(network, arguments, list(feeds), list(outputs))
    program.save(str(path), external_data=True)
    model = onnx.load(str(path), load_external_data=False)
    _name_nodes(model.graph)
    _strip(model)
    return model


def _program(
    network: nn.Module, arguments: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str]
) -> Any:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            external_data=False,
            verbose=False,
        )
    if program is None:  # the signature allows None, for exports to a file
        raise TypeError("torch.onnx.export gave no program")
    return program


def halve_weights(model: onnx.ModelProto, folder: Path | None = None) -> onnx.ModelProto:
    """Store weights as float16, each followed by a Cast to float32.

    The file shrinks by half and computation stays float32: runtimes fold the Casts at load time.
    These tensors stay float32: small ones, those that quantization nodes read, and those that
    float16 cannot represent to within 2⁻¹⁰ of their norm.

    Args:
        model: a float32 graph; not changed.
        folder: folder of the external weights, where the graph has any.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph = halved.graph
    fixed = {
        name
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input
    }
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name in fixed:
            continue
        exact = numpy_helper.to_array(tensor, str(folder or ""))
        if exact.size < SMALLEST_HALF:
            continue
        with np.errstate(over="ignore"):
            half = exact.astype(np.float16)
        # Sums of squares, not np.linalg.norm: after NNCF has run in this process, OpenBLAS's
        # threaded dot product never returns.
        wide = exact.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.square(half - wide).sum()
        if not error <= 2**-20 * np.square(wide).sum():
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}:half"))
        casts.append(
            onnx.helper.make_node(
                "Cast", [tensor.name], [name], name=f"{name}/Cast", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return halved


def save_onnx(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Check a graph and write it.

    Returns:
        Names of the written files in the folder of `path`; the graph comes first.
    """
    if model.ByteSize() <= SINGLE_FILE_LIMIT:
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
        return (path.name,)
    weights = f"{path.name}.data"
    onnx.save(model, str(path), save_as_external_data=True, location=weights)
    onnx.checker.check_model(str(path), full_check=True)
    return (path.name, weights)


def _name_nodes(graph: onnx.GraphProto) -> None:
    counts: Counter[str] = Counter()
    for node in graph.node:
        scopes = [p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
        # The innermost named module; the last entry of the list is the operator itself.
        modules = ast.literal_eval(scopes[0])[:-1] if scopes else []
        path = next((module for module in reversed(modules) if module), "")
        name = f"{path}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"


def _strip(model: onnx.ModelProto) -> None:
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    del graph.value_info[:]
    graph.name = "network"


def _check(kind: str, wanted: Sequence[TensorSpec], found: Sequence[onnx.ValueInfoProto]) -> None:
    expected = [(spec.name, spec.dtype, spec.shape) for spec in wanted]
    got = []
    for value in found:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
        got.append((value.name, _DTYPES.get(tensor.elem_type, str(tensor.elem_type)), shape))
    if got != expected:
        raise ParityError(f"the exported graph has {kind}s {got}, expected {expected}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress output and its developer warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
