"""A toy network for tests of runtimes: ONNX file, spec, and reference in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmsr_edge.bundle import Artifact, ComponentSpec, FileSpec, TensorSpec
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from mmsr_edge.runtimes.base import Session

    Array = npt.NDArray[Any]

BY_NAME = {backend.name: backend for backend in BACKENDS}
ONNX_BACKENDS = ("onnxruntime", "openvino")

rng = np.random.default_rng(3)
KERNEL = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
TABLE = rng.standard_normal((10, 4)).astype(np.float32)

# Two inputs of two dtypes and two outputs of two dtypes, listed in another order than the graph's.
SPEC = ComponentSpec(
    name="tokenizer",
    inputs=(TensorSpec("ids", (1, 5), "int64"), TensorSpec("image", (1, 3, 8, 8), "float32")),
    outputs=(
        TensorSpec("best", (1, 4), "int64"),
        TensorSpec("features", (1, 4, 8, 8), "float32"),
    ),
    artifacts=(Artifact("onnx", "fp32", (FileSpec("m.onnx", "0" * 64, 0),)),),
)


def reference(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The graph in numpy, in float64: a 3x3 convolution plus the mean of looked-up rows."""
    padded = np.pad(feeds["image"].astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    bias = TABLE[feeds["ids"]].mean(axis=1)
    features = np.einsum("bihwyx,oiyx->bohw", windows, KERNEL) + bias[..., None, None]
    return {"features": features, "best": features.reshape(1, 4, 64).argmax(axis=2)}


def make_feeds(seed: int = 0) -> dict[str, Array]:
    values = np.random.default_rng(seed)
    return {
        "image": values.uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32),
        "ids": values.integers(0, 10, (1, 5)),
    }


def save_model(path: Path, batch: int | str = 1) -> Path:
    """Write the graph as ONNX; a string as `batch` leaves that dimension free."""

    def info(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [batch, *shape])

    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "one"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axes"], ["bias"]),
        helper.make_node("Add", ["conv", "bias"], ["features"]),
        helper.make_node("Flatten", ["features"], ["flat"], axis=2),
        helper.make_node("Reshape", ["flat", "rows4"], ["flat4"]),
        helper.make_node("ArgMax", ["flat4"], ["best"], axis=2, keepdims=0),
    ]
    constants = {
        "kernel": KERNEL,
        "table": TABLE,
        "one": np.array([1]),
        "axes": np.array([2, 3]),
        "rows4": np.array([-1, 4, 64]),
    }
    graph = helper.make_graph(
        nodes,
        "toy",
        [info("image", TensorProto.FLOAT, 3, 8, 8), info("ids", TensorProto.INT64, 5)],
        [info("features", TensorProto.FLOAT, 4, 8, 8), info("best", TensorProto.INT64, 4)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    # An old IR version and opset, for the oldest runtime that the extras allow.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def open_model(
    name: str, path: Path, options: SessionOptions, spec: ComponentSpec = SPEC
) -> Session:
    return BY_NAME[name].open(path, spec, spec.artifacts[0], options, "micro")


def assert_right(results: Mapping[str, Array], feeds: Mapping[str, Array]) -> None:
    expected = reference(feeds)
    assert list(results) == ["best", "features"]
    # bfloat16 inside, which OpenVINO takes by itself where the CPU has it, misses by 1e-2.
    np.testing.assert_allclose(results["features"], expected["features"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(results["best"], expected["best"])
    assert results["features"].dtype == np.float32
    assert results["best"].dtype == np.int64
