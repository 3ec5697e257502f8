"""Post-training quantization of float ONNX graphs to int8, on recorded activations.

The result is a QDQ graph: weights are stored as int8, and activations pass through QuantizeLinear
and DequantizeLinear. OpenVINO and ONNX Runtime both fuse these nodes into int8 kernels.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import re
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmsr_edge.converters.compress import compress_weights
from mmsr_edge.errors import OptionError, ParityError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx
    from numpy.typing import NDArray

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class QuantConfig:
    """Recipe for the quantization of one component.

    Only convolutions and linear layers are quantized, with int8 weights per channel and int8
    activations per tensor. Everything else (norms, softmax, the products inside attention, sums)
    stays float: on a UNet of 25 M parameters, quantizing the rest as well lost 3 dB and made
    OpenVINO slower.

    Raises:
        OptionError: a value is outside its range, or two settings contradict each other.
    """

    keep_float: tuple[str, ...] = ()
    """Regular expressions for layers that stay float, searched for in torch module paths such as
    `net.conv_in`. Each must match a layer."""
    eight: tuple[str, ...] = ()
    """Regular expressions for further layers with 8-bit weights at int4; no effect at int8."""
    activations: Literal["asymmetric", "symmetric", "float"] = "asymmetric"
    """Form of the activations: int8 with a zero point (+2.5 dB after SiLU, which is one-sided),
    int8 without one, or float, where only the file size matters; see `compress`."""
    samples: int = 256
    """Maximum number of recorded inputs to use, spread evenly over all of them."""
    fast_bias_correction: bool = True
    """Whether NNCF corrects biases from collected statistics instead of rerunning the network."""
    tool: Literal["nncf", "onnxruntime"] = "nncf"
    """Quantization tool. ONNX Runtime's also quantizes the outputs of convolutions, which its int8
    kernels require: 2.5 times as fast in ONNX Runtime, as fast in OpenVINO, less exact. It
    quantizes convolutions only, with uint8 activations, and does not correct biases."""
    ranges: Literal["widest", "average"] = "widest"
    """Ranges of the activations: from the smallest and largest recorded value (widest), or from the
    means of each input's smallest and largest value (average), which clips rare values.
    Quantization-aware training (`fake_quantization`) uses the average. Needs tool onnxruntime."""
    smooth: bool = False
    """Whether to apply SmoothQuant (Xiao et al. 2023), which moves large activation channels into
    the following weights before quantization. Applies to matrix products; needs tool nncf."""

    def __post_init__(self) -> None:
        if self.tool not in ("nncf", "onnxruntime"):
            raise OptionError(f"tool {self.tool!r} must be 'nncf' or 'onnxruntime'")
        if self.tool == "onnxruntime" and self.activations == "symmetric":
            raise OptionError(
                "activations 'symmetric' with tool 'onnxruntime': its fast kernels need uint8 "
                "activations, which have a zero point; choose 'asymmetric'"
            )
        if self.ranges not in ("widest", "average"):
            raise OptionError(f"ranges {self.ranges!r} must be 'widest' or 'average'")
        if self.ranges == "average" and self.tool != "onnxruntime":
            raise OptionError(
                f"ranges 'average' with tool {self.tool!r}: choose tool 'onnxruntime', or 'widest'"
            )
        if self.activations not in ("asymmetric", "symmetric", "float"):
            raise OptionError(
                f"activations {self.activations!r} must be 'asymmetric', 'symmetric' or 'float'"
            )
        if self.smooth and (self.tool != "nncf" or self.activations == "float"):
            raise OptionError(
                f"smooth with tool {self.tool!r} and activations {self.activations!r}: it needs "
                "NNCF and quantized activations; choose 'nncf' and 'asymmetric'"
            )
        if self.samples < 1:
            raise OptionError(f"samples {self.samples} must be >= 1")

    @property
    def eight_at_int4(self) -> tuple[str, ...]:
        """Patterns of the layers with 8-bit weights at int4: `keep_float` and `eight`."""
        return self.keep_float + self.eight

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], base: QuantConfig | None = None) -> QuantConfig:
        """Read settings from a JSON object, on top of `base` (default: the defaults).

        Raises:
            OptionError: a key is no setting, or a value is outside its range.
        """
        known = [f.name for f in fields(cls)]
        for key in settings:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise OptionError(
                    f"unknown quantization setting {key!r}; did you mean {near!r}? "
                    f"There are {', '.join(known)}"
                )
        values: dict[str, Any] = {**(asdict(base) if base else {}), **settings}
        for key in {"keep_float", "eight"} & set(values):
            values[key] = tuple(values[key])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a JSON object."""
        return {**asdict(self), "keep_float": list(self.keep_float), "eight": list(self.eight)}


def quantize(
    model: onnx.ModelProto, samples: Iterable[Mapping[str, NDArray[Any]]], config: QuantConfig
) -> onnx.ModelProto:
    """Quantize a float32 graph made by `to_onnx`.

    Args:
        model: the float32 graph; not changed.
        samples: recorded inputs, by name.
        config: the recipe.

    Raises:
        OptionError: there are no samples, or a pattern of `keep_float` matches no layer.
        ParityError: a weight that should be int8 is still float.
        MissingExtraError: the tool is not installed.
    """
    layers = weighted_layers(model)
    float_paths = _kept(layers.values(), config.keep_float)
    quantized = {node for node, path in layers.items() if path not in float_paths}
    if config.activations == "float":
        result = compress_weights(model, quantized)
    elif config.tool == "onnxruntime":
        kinds = {node.name: node.op_type for node in model.graph.node}
        quantized = {name for name in quantized if kinds[name] == "Conv"}
        result = _run_onnxruntime(model, samples, config, quantized)
    else:
        result = _run_nncf(model, samples, config, quantized)
    _check_weights(result, quantized)
    return result


def quantize_weights(model: onnx.ModelProto, config: QuantConfig) -> onnx.ModelProto:
    """Quantize weights to int4, or int8 for `config.eight_at_int4`; activations stay float.

    Args:
        model: a float32 graph made by `to_onnx`; not changed.
        config: the recipe; its `eight_at_int4` selects the layers with 8 bits.

    Raises:
        OptionError: a pattern matches no layer.
    """
    layers = weighted_layers(model)
    exact = _kept(layers.values(), config.eight_at_int4)
    four = frozenset(node for node, path in layers.items() if path not in exact)
    return compress_weights(model, set(layers), four=four)


def weighted_layers(model: onnx.ModelProto) -> dict[str, str]:
    """Layers with weights: torch module path by node name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name: node.name.rpartition("/")[0]
        for node in model.graph.node
        if node.op_type in _WEIGHTED and len(node.input) > 1 and node.input[1] in constants
    }


def _kept(paths: Iterable[str], patterns: tuple[str, ...]) -> set[str]:
    known = sorted(set(paths))
    kept: set[str] = set()
    for pattern in patterns:
        try:
            found = {path for path in known if re.search(pattern, path)}
        except re.error as error:
            raise OptionError(f"keep_float {pattern!r} is no regular expression: {error}") from None
        if not found:
            raise OptionError(
                f"keep_float {pattern!r} matches no layer; there are {', '.join(known[:8])}, ..."
            )
        kept |= found
    return kept


def _spread(samples: list[dict[str, NDArray[Any]]], most: int) -> list[dict[str, NDArray[Any]]]:
    if len(samples) <= most:
        return samples
    return [samples[i] for i in np.linspace(0, len(samples) - 1, most).round().astype(int)]


def _chosen(
    samples: Iterable[Mapping[str, NDArray[Any]]], config: QuantConfig
) -> list[dict[str, NDArray[Any]]]:
    chosen = _spread([dict(sample) for sample in samples], config.samples)
    if not chosen:
        raise OptionError("int8 needs recorded inputs, and there are none for this component")
    return chosen


def _run_onnxruntime(
    model: onnx.ModelProto,
    samples: Iterable[Mapping[str, NDArray[Any]]],
    config: QuantConfig,
    quantized: set[str],
) -> onnx.ModelProto:
    if importlib.util.find_spec("onnxruntime") is None:
        raise missing_extra("onnxruntime", "convert")
    from onnxruntime.quantization import QuantType

    return quantize_static(
        model,
        _chosen(samples, config),
        op_types_to_quantize=["Conv"],
        nodes_to_quantize=sorted(quantized),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"CalibMovingAverage": config.ranges == "average"},
    )


def quantize_static(
    model: onnx.ModelProto, samples: list[dict[str, NDArray[Any]]], **settings: Any
) -> onnx.ModelProto:
    """Run ONNX Runtime's `quantize_static` on a graph in memory (QDQ, min-max ranges).

    Args:
        model: the float graph; not changed.
        samples: inputs by name; all are used.
        settings: other arguments of `quantize_static`.
    """
    import onnx
    from onnxruntime import quantization as ort

    from mmsr_edge.calib.readers import onnxruntime_reader

    named = onnx.ModelProto()
    named.CopyFrom(model)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # its advice, on the root logger, does not apply
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "int8.onnx")
            ort.quantize_static(
                named,
                str(out),
                onnxruntime_reader(samples),
                quant_format=ort.QuantFormat.QDQ,
                calibrate_method=ort.CalibrationMethod.MinMax,
                **settings,
            )
            return onnx.load(str(out))
    finally:
        root.setLevel(level)


def _run_nncf(
    model: onnx.ModelProto,
    samples: Iterable[Mapping[str, NDArray[Any]]],
    config: QuantConfig,
    quantized: set[str],
) -> onnx.ModelProto:
    if importlib.util.find_spec("nncf") is None:
        raise missing_extra("nncf", "convert")
    chosen = _chosen(samples, config)
    import nncf

    from mmsr_edge.calib.readers import nncf_dataset

    nncf.set_log_level(logging.ERROR)
    presets = {
        "asymmetric": nncf.QuantizationPreset.MIXED,
        "symmetric": nncf.QuantizationPreset.PERFORMANCE,
    }
    ignored = [node.name for node in model.graph.node if node.name not in quantized]
    result = nncf.quantize(
        model,
        nncf_dataset(chosen),
        subset_size=len(chosen),
        preset=presets[config.activations],
        target_device=nncf.TargetDevice.CPU,
        fast_bias_correction=config.fast_bias_correction,
        model_type=nncf.ModelType.TRANSFORMER if config.smooth else None,
        ignored_scope=nncf.IgnoredScope(names=ignored),
    )
    return unsigned_activations(result)


def unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert int8 activations with a zero point to uint8: s·(q − z) = s·((q + 128) − (z + 128)).

    The values stay the same. OpenVINO supports zero points in quantized convolutions for uint8
    only, and runs such int8 convolutions in float32.

    Args:
        model: the QDQ graph; not changed.
    """
    import onnx
    from onnx import numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    moved: dict[str, str] = {}
    quantized: set[str] = set()
    for node in result.graph.node:  # sorted: quantizers precede their readers
        if node.op_type == "QuantizeLinear":
            quantized.add(node.output[0])
        elif node.op_type != "DequantizeLinear" or node.input[0] not in quantized:
            continue
        if len(node.input) < 3 or node.input[2] not in constants:
            continue
        name = node.input[2]
        zero = numpy_helper.to_array(constants[name])
        if zero.dtype != np.int8 or not zero.any():
            continue
        if name not in moved:
            moved[name] = f"{name}_unsigned"
            shifted = (zero.astype(np.int16) + 128).astype(np.uint8)
            result.graph.initializer.append(numpy_helper.from_array(shifted, moved[name]))
        node.input[2] = moved[name]
    read = {name for node in result.graph.node for name in node.input}
    for name in moved:
        if name not in read:
            result.graph.initializer.remove(constants[name])
    for info in [i for i in result.graph.value_info if i.name in quantized]:
        result.graph.value_info.remove(info)  # it has the old type
    return result


def _check_weights(model: onnx.ModelProto, quantized: set[str]) -> None:
    """Check that every quantized layer reads stored int8 weights, not float ones."""
    from onnx import TensorProto

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.name not in quantized:
            continue
        maker = makers.get(node.input[1])
        source = constants.get(maker.input[0]) if maker is not None else None
        if source is None or source.data_type not in (TensorProto.INT8, TensorProto.UINT8):
            raise ParityError(
                f"the weights of {node.name!r} are not int8 in the quantized graph; "
                "update NNCF: it folds them since 2.19"
            )
