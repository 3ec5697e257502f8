"""The export path for large networks, in each of its forms, with a small network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmsr_edge import OptionError
from mmsr_edge.converters.large import main, write_large
from mmsr_edge.models.checkpoint import load_network, run_network
from mmsr_edge.models.signatures import draw_inputs, output_names

if TYPE_CHECKING:
    from pathlib import Path


Feeds = dict[str, NDArray[Any]]


def on_onnxruntime(path: Path, feeds: Feeds) -> NDArray[Any]:
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, feeds)[0]


def on_openvino(path: Path, feeds: Feeds) -> NDArray[Any]:
    import openvino as ov

    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(feeds)[0]


def interpreted(path: Path, feeds: Feeds) -> NDArray[Any]:
    from mmsr_edge.converters.mil.program import MILProgram

    return next(iter(MILProgram.open(path).run(feeds).values()))


@pytest.mark.parametrize(
    ("form", "suffix", "run", "decibels"),
    [
        # 56, 57, 44 and 48 dB when measured; an output of zeros has 18.
        ("onnx-int8", "onnx", on_onnxruntime, 45),
        ("openvino-int8", "xml", on_openvino, 45),
        ("openvino-int4", "xml", on_openvino, 35),
        ("coreml-palette", "mlpackage", interpreted, 40),
    ],
)
def test_the_file_computes_what_the_network_does(
    checkpoint: Path, tmp_path: Path, form: str, suffix: str, run: Any, decibels: float
) -> None:
    out = tmp_path / "made" / f"unet.{suffix}"
    arguments = ["--checkpoint", str(checkpoint), "--component", "unet", "--out", str(out)]
    assert main([*arguments, "--form", form]) == 0
    assert {path.suffix for path in out.parent.iterdir()} <= {
        f".{suffix}",
        ".bin",
    }
    network, p = load_network(checkpoint, "unet")
    feeds = draw_inputs("unet", p, np.random.default_rng(4))
    (expected,) = run_network(network, "unet", feeds).values()
    found = run(out, feeds)
    error = np.square(found - expected).mean()
    assert error > 0  # the weights are compressed
    assert 10 * np.log10(np.ptp(expected) ** 2 / error) > decibels


def test_weights_have_the_size_of_the_form(checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    network, p = load_network(checkpoint, "connector")
    feeds = draw_inputs("connector", p, np.random.default_rng(0))
    names = write_large(network, feeds, output_names("connector"), "onnx-int8", tmp_path / "c.onnx")
    assert names == ("c.onnx",)
    bits = {onnx.TensorProto.INT8: 8, onnx.TensorProto.FLOAT16: 16}
    model = onnx.load(tmp_path / "c.onnx")
    large = [t for t in model.graph.initializer if np.prod(t.dims) >= 1024]
    assert {bits[tensor.data_type] for tensor in large} == {8, 16}


def test_options_are_checked(checkpoint: Path, tmp_path: Path) -> None:
    network, _ = load_network(checkpoint, "decoder")
    with pytest.raises(OptionError, match="form 'onnx-int4' is not supported; there are"):
        write_large(network, {}, (), "onnx-int4", tmp_path / "d.onnx")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"must end in \.xml for form 'openvino-int8'"):
        write_large(network, {}, (), "openvino-int8", tmp_path / "d.onnx")
