"""Quantization: the layers that become int8 or int4, those kept in float, and the stored files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from mmsr_edge.bundle import Artifact, ComponentSpec, TensorSpec, describe_file, open_bundle
from mmsr_edge.converters.components import COMPONENTS
from mmsr_edge.converters.compress import compress_weights, pack_int4, round_blocks, round_weights
from mmsr_edge.converters.quantize import (
    QuantConfig,
    quantize,
    unsigned_activations,
    weighted_layers,
)
from mmsr_edge.converters.to_onnx import to_onnx
from mmsr_edge.errors import OptionError, ParityError
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import backend_named

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mmsr_edge.calib.reader import CalibrationSet


# Spelled out, not computed from the patterns under test.
FLOAT_LAYERS = {
    "unet": {
        "net.conv_in",
        "net.conv_out",
        "net.time_embedding.linear_1",
        "net.time_embedding.linear_2",
        "net.mid_block.resnets.0.time_emb_proj",
        "net.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "net.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    },
    "decoder": {"eighth.0", "compact.body.0", "compact.body.2", "compact.out", "out.0"},
}
INT8_LAYERS = {
    "unet": {
        "net.mid_block.resnets.0.conv1",
        "net.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "net.mid_block.attentions.0.transformer_blocks.0.ff.net.2",
        "net.down_blocks.0.downsamplers.0.conv",
    },
    "decoder": {"eighth.1.0.conv1", "eighth.2", "quarter.0.conv2"},
}


def load(exported: Path, name: str, precision: str) -> onnx.ModelProto:
    bundle = open_bundle(exported)
    artifact = bundle.artifact(name, ("onnx",), precision)
    assert artifact.precision == precision
    return onnx.load(str(bundle.path(artifact.files[0])))


def weights(model: onnx.ModelProto) -> dict[str, Any]:
    """Weight of each layer as the file stores it: layer path to initializer."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            source = node.input[1]
            while source in makers and makers[source].op_type in ("DequantizeLinear", "Cast"):
                source = makers[source].input[0]
            if source in constants:
                found[node.name.rpartition("/")[0]] = constants[source]
    return found


@pytest.mark.parametrize("name", ["unet", "decoder"])
def test_layers_are_int8_or_float_as_designed(exported: Path, name: str) -> None:
    stored = weights(load(exported, name, "int8"))
    types = {path: tensor.data_type for path, tensor in stored.items()}
    for path in FLOAT_LAYERS[name]:
        assert types[path] in (TensorProto.FLOAT, TensorProto.FLOAT16), path
    for path in INT8_LAYERS[name]:
        assert types[path] == TensorProto.INT8, path


def test_only_layers_with_weights_are_quantized(exported: Path) -> None:
    """By NNCF; ONNX Runtime's tool quantizes a tensor for all of its readers."""
    model = load(exported, "unet", "int8")
    constants = {tensor.name for tensor in model.graph.initializer}
    dequantized = {
        node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    assert not [node.name for node in quantizers if node.input[0] in constants]
    readers = {node.op_type for node in model.graph.node for i in node.input if i in dequantized}
    # Shape-only operators may stand between a quantizer and its layer.
    assert readers <= {"Conv", "Gemm", "MatMul", "Reshape", "Transpose"}


def zero_points(model: onnx.ModelProto) -> list[NDArray[Any]]:
    """Zero points of the activations, in the order of the graph."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [constants[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]


def test_activations_with_a_zero_point_are_unsigned(exported: Path) -> None:
    zeros = zero_points(load(exported, "unet", "int8"))
    assert any(zero.any() for zero in zeros)  # SiLU's
    assert {zero.dtype.name for zero in zeros if zero.any()} == {"uint8"}


def test_unsigned_activations_are_the_same_numbers() -> None:
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    constants = {
        "s": np.float32(0.02), "z": np.int8(-90), "none": np.int8(0),
        "w": np.arange(-8, 8, dtype=np.int8).reshape(4, 4), "ws": np.float32(0.1),
    }  # fmt: skip
    graph = onnx.helper.make_graph(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            node("DequantizeLinear", ["w", "ws", "z"], ["v"]),  # shared with the weights
            node("MatMul", ["d", "v"], ["y"]),
            node("QuantizeLinear", ["y", "ws", "none"], ["p"]),
            node("DequantizeLinear", ["p", "ws", "none"], ["out"]),
        ],
        "toy",
        [info("x", TensorProto.FLOAT, [64, 4])],
        [info("out", TensorProto.FLOAT, [64, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        value_info=[info("q", TensorProto.INT8, [64, 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    before = model.SerializeToString()
    result = unsigned_activations(model)
    onnx.checker.check_model(result, full_check=True)
    assert model.SerializeToString() == before
    assert [zero.item() for zero in zero_points(result)] == [38, 0]
    assert [zero.dtype.name for zero in zero_points(result)] == ["uint8", "int8"]
    feeds = {"x": np.random.default_rng(0).uniform(-2, 6, (64, 4)).astype(np.float32)}
    (expected,), (given,) = (ReferenceEvaluator(m).run(None, feeds) for m in (model, result))
    np.testing.assert_array_equal(given, expected)


def test_int8_weights_are_within_half_a_step_of_float(exported: Path) -> None:
    exact = {
        p: numpy_helper.to_array(t) for p, t in weights(load(exported, "decoder", "fp32")).items()
    }
    model = load(exported, "decoder", "int8")
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    steps = {
        node.input[0]: constants[node.input[1]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    for path in INT8_LAYERS["decoder"]:
        tensor = weights(model)[path]
        step = steps[tensor.name].reshape(-1, 1, 1, 1)
        error = np.abs(numpy_helper.to_array(tensor) * step - exact[path])
        assert (error <= 0.5001 * step).all(), path
        assert len(step) == len(exact[path])  # per channel


def test_most_weights_are_int8(exported: Path) -> None:
    stored = weights(load(exported, "unet", "int8"))
    sizes = dict.fromkeys(("int8", "float"), 0)
    for tensor in stored.values():
        kind = "int8" if tensor.data_type == TensorProto.INT8 else "float"
        sizes[kind] += int(np.prod(tensor.dims))
    assert sizes["int8"] > 4 * sizes["float"]


def test_settings_are_read_back_from_the_manifest(exported: Path) -> None:
    artifact = open_bundle(exported).artifact("unet", ("onnx",), "int8")
    assert artifact.quantization is not None
    assert QuantConfig.from_dict(artifact.quantization) == COMPONENTS["unet"].quantization
    assert artifact.tools["nncf"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_flaot": []}, "'keep_flaot'; did you mean 'keep_float'"),
        ({"bits": 4}, "unknown quantization setting 'bits'"),
        ({"activations": "none"}, "'none' must be 'asymmetric', 'symmetric' or 'float'"),
        ({"samples": 0}, "samples 0 must be >= 1"),
        ({"smooth": True, "activations": "float"}, "smooth with tool 'nncf' and activations 'fl"),
        ({"ranges": "mean"}, "'mean' must be 'widest' or 'average'"),
        ({"ranges": "average"}, "with tool 'nncf': choose tool 'onnxruntime'"),
        ({"smooth": True, "tool": "onnxruntime"}, "choose 'nncf' and 'asymmetric'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        QuantConfig.from_dict(settings)


def test_settings_change_only_what_they_name() -> None:
    base = QuantConfig(keep_float=("a",), samples=9)
    assert QuantConfig.from_dict({"samples": 3}, base) == QuantConfig(("a",), samples=3)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("conv_inn", "'conv_inn' matches no layer"), ("(", "is no regular expression")],
)
def test_patterns_must_match(
    exported: Path, recorded: CalibrationSet, pattern: str, message: str
) -> None:
    model = load(exported, "decoder", "fp32")
    with pytest.raises(OptionError, match=message):
        quantize(model, recorded.calibration("decoder"), QuantConfig(keep_float=(pattern,)))


def test_int8_without_recorded_inputs_is_refused(exported: Path) -> None:
    with pytest.raises(OptionError, match="needs recorded inputs"):
        quantize(load(exported, "decoder", "fp32"), [], QuantConfig())


def test_smoothing_keeps_precision_beside_a_large_channel() -> None:
    network = nn.Sequential(nn.Linear(64, 64)).eval()
    rng = np.random.default_rng(0)
    large = np.where(np.arange(64) == 3, 60, 1).astype(np.float32)
    samples = [{"x": rng.standard_normal((1, 16, 64), np.float32) * large} for _ in range(9)]
    ports = [TensorSpec(name, (1, 16, 64), "float32") for name in ("x", "y")]
    model = to_onnx(network, samples[0], ports[:1], ports[1:])
    with torch.no_grad():
        exact = network(torch.from_numpy(samples[-1]["x"])).numpy()
    errors = []
    for smooth in (False, True):
        int8 = quantize(model, samples[:-1], QuantConfig(smooth=smooth))
        session = onnxruntime.InferenceSession(int8.SerializeToString())
        (found,) = session.run(None, samples[-1])
        errors.append(np.square(found - exact).mean())
    assert errors[1] < 0.75 * errors[0]


def test_weights_left_in_float_are_found(
    exported: Path, recorded: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted violation: a quantizer that does nothing."""
    import nncf

    monkeypatch.setattr(nncf, "quantize", lambda model, *_, **__: model)
    model = load(exported, "decoder", "fp32")
    with pytest.raises(ParityError, match=r"weights of .* are not int8"):
        quantize(model, recorded.calibration("decoder"), QuantConfig())


def test_layers_are_found_by_their_torch_names(exported: Path) -> None:
    layers = weighted_layers(load(exported, "decoder", "fp32"))
    assert set(layers.values()) >= INT8_LAYERS["decoder"] | FLOAT_LAYERS["decoder"]


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_quantized_per_channel(axis: int) -> None:
    weights = np.random.default_rng(0).standard_normal((6, 5, 3, 3)).astype(np.float32)
    weights *= np.logspace(-3, 2, weights.shape[axis]).reshape(
        (-1, 1, 1, 1) if not axis else (1, -1, 1, 1)
    )
    np.moveaxis(weights, axis, 0)[2] = 0
    rounded, scales = round_weights(weights, axis)
    assert rounded.dtype == np.int8 and scales.shape == (weights.shape[axis],)
    by_channel = np.moveaxis(rounded, axis, 0).reshape(len(scales), -1)
    assert (np.abs(by_channel).max(1) == np.where(np.arange(len(scales)) == 2, 0, 127)).all()
    exact = np.moveaxis(weights, axis, 0).reshape(len(scales), -1)
    assert (np.abs(by_channel * scales[:, None] - exact) <= 0.5001 * scales[:, None]).all()


def one_layer(
    kind: str, weight: NDArray[np.float32], taken: list[int], given: list[int]
) -> onnx.ModelProto:
    """A graph of one node, "layer/node", from "x" to "y"."""
    options = {"transB": 1} if kind == "Gemm transposed" else {}
    node = onnx.helper.make_node(
        kind.split(maxsplit=1)[0], ["x", "w"], ["y"], name="layer/node", **options
    )
    x, y = (
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in (("x", taken), ("y", given))
    )
    stored = [numpy_helper.from_array(weight, "w")]
    graph = onnx.helper.make_graph([node], "g", [x], [y], stored)
    opset = onnx.helper.make_opsetid("", 19)  # the first with a DequantizeLinear that onnx runs
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset])


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "MatMul", "Gemm", "Gemm transposed"])
def test_compressed_weights_are_dequantized_along_the_right_axis(kind: str) -> None:
    """Channels differ by a factor of up to 1000, so that a wrong axis gives large errors."""
    rng = np.random.default_rng(0)
    convolution = kind.startswith("Conv")
    shape = {"Conv": (4, 3, 1, 1), "ConvTranspose": (3, 4, 1, 1), "Gemm transposed": (4, 3)}.get(
        kind, (3, 4)
    )
    outputs = 0 if shape[0] == 4 else 1
    loud = np.logspace(0, 3, 4).reshape([4 if i == outputs else 1 for i in range(len(shape))])
    weight = (rng.standard_normal(shape) * loud).astype(np.float32)
    sizes = ([1, 3, 2, 2], [1, 4, 2, 2]) if convolution else ([2, 3], [2, 4])
    model = one_layer(kind, weight, *sizes)
    compressed = compress_weights(model, {"layer/node"})
    onnx.checker.check_model(compressed, full_check=True)
    assert weights(compressed)["layer"].data_type == TensorProto.INT8
    x = rng.standard_normal(sizes[0]).astype(np.float32)
    first, second = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (model, compressed))
    peak = np.abs(first).max(axis=tuple(i for i in range(first.ndim) if i != 1), keepdims=True)
    assert (np.abs(first - second) < 0.02 * peak).all()


@pytest.mark.parametrize(("ranges", "reach"), [("widest", 9.0), ("average", 3.0)])
def test_ranges_are_the_widest_or_the_average(ranges: Any, reach: float) -> None:
    network = nn.Conv2d(1, 1, 1).eval()
    spec = [TensorSpec(name, (1, 1, 4, 4), "float32") for name in ("x", "y")]
    samples = []
    for most in (1.0, 1.0, 1.0, 9.0):
        x = np.zeros((1, 1, 4, 4), np.float32)
        x[..., 0, 0] = most
        samples.append({"x": x})
    model = to_onnx(network, samples[0], spec[:1], spec[1:])
    config = QuantConfig(tool="onnxruntime", ranges=ranges)
    made = quantize(model, samples, config)
    reads = next(n for n in made.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x")
    scale = next(t for t in made.graph.initializer if t.name == reads.input[1])
    assert float(numpy_helper.to_array(scale)) == pytest.approx(reach / 255)


def test_small_networks_keep_float_activations(exported: Path) -> None:
    for name in ("depth", "segmentation", "captioner"):
        model = load(exported, name, "int8")
        kinds = {node.op_type for node in model.graph.node}
        assert "DequantizeLinear" in kinds and "QuantizeLinear" not in kinds, name
    stored = {path: t.data_type for path, t in weights(load(exported, "depth", "int8")).items()}
    assert stored["whole"] != TensorProto.INT8 and stored["out"] == TensorProto.INT8


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_runtimes_keep_float_activations_beside_int8_weights(backend: str, tmp_path: Path) -> None:
    """Unless told not to, both round them, 32 at a time, in a product with 256 inputs."""
    network = nn.Linear(256, 256, bias=False).eval()
    specs = [TensorSpec(name, (1, 77, 256), "float32") for name in ("x", "y")]
    x = np.random.default_rng(0).standard_normal((1, 77, 256)).astype(np.float32)
    x[..., 0] *= 100
    model = to_onnx(network, {"x": x}, specs[:1], specs[1:])
    compressed = quantize(model, [{"x": x}], QuantConfig(activations="float"))
    onnx.save(compressed, tmp_path / "int8.onnx")
    artifact = Artifact("onnx", "int8", (describe_file(tmp_path, "int8.onnx"),))
    spec = ComponentSpec("linear", tuple(specs[:1]), tuple(specs[1:]), (artifact,))
    opened = backend_named(backend).open(
        tmp_path / "int8.onnx", spec, artifact, SessionOptions(), "nano"
    )
    w = network.weight.detach().numpy()
    step = np.abs(w).max(1, keepdims=True) / 127
    wanted = x @ (np.round(w / step) * step).T
    np.testing.assert_allclose(opened.run({"x": x})["y"], wanted, atol=1e-3)


# --- int4 ---------------------------------------------------------------------------------------


def test_int4_blocks_have_the_best_scale_of_a_few() -> None:
    rng = np.random.default_rng(0)
    steps = rng.integers(-7, 8, (3, 2, 16, 5)).astype(np.float32)
    steps[:, :, 0] = 7  # the largest weight of each block is 7 scales
    scales = rng.uniform(0.1, 10, (3, 2, 1, 5)).astype(np.float32)
    exact = (steps * scales).reshape(3, 32, 5)
    q, s = round_blocks(exact, 1, 16)
    np.testing.assert_array_equal(q.reshape(steps.shape), steps)
    np.testing.assert_allclose(s, scales.squeeze(2), rtol=1e-6)

    normal = rng.standard_normal((64, 64)).astype(np.float32)
    q, s = round_blocks(normal, 1, 32)
    plain = np.abs(normal.reshape(64, 2, 32)).max(2, keepdims=True) / 7
    rounded = np.round(normal.reshape(64, 2, 32) / plain) * plain
    error = np.square(q * s.repeat(32, 1) - normal).sum()
    assert 0.5 < error / np.square(rounded.reshape(64, 64) - normal).sum() < 0.95
    q, s = round_blocks(np.zeros((2, 16), np.float32), 1, 16)
    assert not q.any() and (s == 1).all()


@pytest.mark.parametrize("count", [1, 6, 7])
def test_onnx_unpacks_what_pack_int4_packs(count: int) -> None:
    values = np.array([-7, 7, -1, 0, 3, -4, 5], np.int8)[:count]
    tensor = pack_int4(values, "w")
    assert len(tensor.raw_data) == (count + 1) // 2
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), values)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "MatMul", "Gemm", "Gemm transposed"])
def test_int4_weights_share_their_scales_along_the_inputs(kind: str) -> None:
    """The second half of the inputs has weights 1000 times as large, and is zero."""
    rng = np.random.default_rng(0)
    convolution, first = kind.startswith("Conv"), kind in ("Conv", "Gemm transposed")
    shape = ((8, 64) if first else (64, 8)) + ((1, 1) if convolution else ())
    loud = np.repeat([1.0, 1000.0], 32).reshape([64 if n == 64 else 1 for n in shape])
    weight = (rng.standard_normal(shape) * loud).astype(np.float32)
    sizes = ([1, 64, 2, 2], [1, 8, 2, 2]) if convolution else ([2, 64], [2, 8])
    model = one_layer(kind, weight, *sizes)
    small = compress_weights(model, {"layer/node"}, four=frozenset({"layer/node"}))
    onnx.checker.check_model(small, full_check=True)
    (stored,) = [t for t in small.graph.initializer if t.data_type == TensorProto.INT4]
    assert len(stored.raw_data) == weight.size / 2
    x = rng.standard_normal(sizes[0]).astype(np.float32)
    x[:, 32:] = 0
    first_, second = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0]
        for m in (model, small)
    )
    error = np.square(first_ - second).mean() / np.square(first_).mean()
    assert 1e-4 < error < 0.02  # 15 steps give normal weights an error of about .01


def test_layers_whose_inputs_make_no_blocks_get_int8() -> None:
    network = nn.Sequential(nn.Conv2d(37, 4, 1), nn.Conv2d(4, 24, 1), nn.Conv2d(24, 4, 1))
    shape = (1, 37, 4, 4)
    feed = {"x": np.zeros(shape, np.float32)}
    specs = [TensorSpec("x", shape, "float32")], [TensorSpec("y", (1, 4, 4, 4), "float32")]
    model = to_onnx(network.eval(), feed, *specs)
    layers = frozenset(weighted_layers(model))
    kinds = {
        path: tensor.data_type
        for path, tensor in weights(compress_weights(model, set(layers), four=layers)).items()
    }
    assert kinds == {"0": TensorProto.INT8, "1": TensorProto.INT8, "2": TensorProto.INT4}
