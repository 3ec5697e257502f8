"""Core ML: damaged packages miss their gates or are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from coreml_factory import feeds_of, worst
from torch import nn

from mmsr_edge.converters.export_all import ExportConfig, export_bundle
from mmsr_edge.converters.mil import MILProgram
from mmsr_edge.converters.mil.package import open_package
from mmsr_edge.errors import BackendError, BundleError, MMSRError, ParityError
from mmsr_edge.models.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable


pytest.importorskip("coremltools")


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(checkpoint)


def spoilt(package: Path, out: Path, spoil: Callable[[Any, Path], None]) -> Path:
    """A copy of a package after `spoil` has changed its block of operations or weights file."""
    copy = Path(shutil.copytree(package, out / package.name))
    opened = open_package(copy)
    function = opened.spec.mlProgram.functions["main"]
    spoil(
        function.block_specializations[function.opset],
        opened.model.parent / "weights" / "weight.bin",
    )
    opened.model.write_bytes(opened.spec.SerializeToString())
    return copy


def consts(block: Any) -> dict[str, Any]:
    return {o.outputs[0].name: o for o in block.operations if o.type == "const"}


def blobs(block: Any, kind: str, parameter: str = "weight") -> list[Any]:
    """Constants in the weights file that operations of a kind use."""
    known = consts(block)
    names = [o.inputs[parameter].arguments[0].name for o in block.operations if o.type == kind]
    values = [known[name].attributes["val"] for name in names if name in known]
    return [v for v in values if v.WhichOneof("value") == "blobFileValue"]


def shape_of(value: Any) -> tuple[int, ...]:
    return tuple(d.constant.size for d in value.type.tensorType.dimensions)


def change(block: Any, kind: str, parameter: str, values: list[int]) -> None:
    """Change a constant of the first operation of a kind."""
    operation = next(o for o in block.operations if o.type == kind)
    const = consts(block)[operation.inputs[parameter].arguments[0].name]
    tensor = const.attributes["val"].immediateValue.tensor
    field = tensor.WhichOneof("value")
    assert list(getattr(tensor, field).values) != values
    del getattr(tensor, field).values[:]
    getattr(tensor, field).values.extend(values)


def flip_a_byte(block: Any, weights: Path) -> None:
    """Flip a bit in the exponent of one of 2592 numbers, which becomes very large."""
    offset = blobs(block, "conv")[-1].blobFileValue.offset + 64 + 201
    data = bytearray(weights.read_bytes())
    data[offset] ^= 0x40
    weights.write_bytes(data)


def swap_weights(block: Any, _: Path) -> None:
    values = blobs(block, "conv")
    one, other = next(
        (a, b) for i, a in enumerate(values) for b in values[i + 1 :] if shape_of(a) == shape_of(b)
    )
    one, other = one.blobFileValue, other.blobFileValue
    one.offset, other.offset = other.offset, one.offset


def shift_padding(block: Any, _: Path) -> None:
    """Two rows above instead of one above and one below, which keeps the shapes."""
    operation = next(
        o
        for o in block.operations
        if o.type == "conv"
        and list(consts(block)[o.inputs["pad"].arguments[0].name]
                 .attributes["val"].immediateValue.tensor.ints.values) == [1] * 4
    )  # fmt: skip
    const = consts(block)[operation.inputs["pad"].arguments[0].name]
    const.attributes["val"].immediateValue.tensor.ints.values[:] = [2, 0, 1, 1]


def mistake_an_activation(block: Any, _: Path) -> None:
    """Sigmoid for ReLU. Without any activation, 41 dB would remain and pass."""
    next(o for o in block.operations if o.type == "relu").type = "sigmoid"


@pytest.mark.parametrize(
    "spoil",
    [flip_a_byte, swap_weights, shift_padding, mistake_an_activation],
    ids=lambda spoil: spoil.__name__,
)
def test_a_wrong_encoder_misses_its_gate(
    spoil: Callable[[Any, Path], None], coreml_bundle: Path, opened: Checkpoint, tmp_path: Path
) -> None:
    package = coreml_bundle / "lr_encoder" / "fp16.mlpackage"
    assert worst(opened, "lr_encoder", spoilt(package, tmp_path / "same", lambda *_: None)) >= 40
    assert worst(opened, "lr_encoder", spoilt(package, tmp_path, spoil)) < 40


def transpose_a_weight(block: Any, weights: Path) -> None:
    """Transpose a square weight, which keeps the shapes."""
    value = next(v for v in blobs(block, "linear") if len(set(shape_of(v))) == 1)
    rows, offset = shape_of(value)[0], value.blobFileValue.offset + 64
    data = bytearray(weights.read_bytes())
    matrix = np.frombuffer(data, np.float16, rows * rows, offset).reshape(rows, rows)
    data[offset : offset + matrix.nbytes] = matrix.T.tobytes()
    weights.write_bytes(data)


def raise_epsilon(block: Any, _: Path) -> None:
    operation = next(o for o in block.operations if o.type == "layer_norm")
    const = consts(block)[operation.inputs["epsilon"].arguments[0].name]
    const.attributes["val"].immediateValue.tensor.bytes.values = np.float16(1.0).tobytes()


def normalize_another_axis(block: Any, _: Path) -> None:
    change(block, "softmax", "axis", [-2])


@pytest.mark.parametrize(
    "spoil", [transpose_a_weight, raise_epsilon, normalize_another_axis], ids=lambda f: f.__name__
)
def test_a_wrong_text_encoder_misses_its_gate(
    spoil: Callable[[Any, Path], None], coreml_bundle: Path, opened: Checkpoint, tmp_path: Path
) -> None:
    package = coreml_bundle / "text_encoder" / "fp16.mlpackage"
    assert worst(opened, "text_encoder", spoilt(package, tmp_path, spoil)) < 40


def widen_a_stride(block: Any, _: Path) -> None:
    change(block, "conv", "strides", [2, 2])


def transpose_a_product(block: Any, _: Path) -> None:
    operation = next(o for o in block.operations if o.type == "matmul")
    const = consts(block)[operation.inputs["transpose_y"].arguments[0].name]
    bools = const.attributes["val"].immediateValue.tensor.bools
    bools.values[:] = [not bools.values[0]]


def use_an_unknown_operation(block: Any, _: Path) -> None:
    next(o for o in block.operations if o.type in ("relu", "gelu")).type = "moonshine"


def cut_the_weights(_: Any, weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[: -weights.stat().st_size // 2])


def lose_the_weights(_: Any, weights: Path) -> None:
    weights.unlink()


def point_between_blobs(block: Any, _: Path) -> None:
    blobs(block, "conv")[0].blobFileValue.offset += 64


def point_outside(block: Any, _: Path) -> None:
    blobs(block, "conv")[0].blobFileValue.fileName = "@model_path/../../../secret.bin"


def mistake_a_type(block: Any, _: Path) -> None:
    blobs(block, "conv")[0].type.tensorType.dataType = 11  # float32


@pytest.mark.parametrize(
    ("name", "spoil", "error", "message"),
    [
        ("lr_encoder", widen_a_stride, BundleError, r"conv '.*output .* the program declares"),
        ("text_encoder", transpose_a_product, BackendError, r"matmul '.*RuntimeError"),
        ("lr_encoder", use_an_unknown_operation, BackendError, "does not support: moonshine"),
        ("lr_encoder", cut_the_weights, BundleError, r"the file (ends at|at) \d+"),
        ("lr_encoder", lose_the_weights, BundleError, "weight.bin' is missing"),
        ("lr_encoder", point_between_blobs, BundleError, "no blob begins here"),
        ("lr_encoder", point_outside, BundleError, "which is outside of the package"),
        ("lr_encoder", mistake_a_type, BundleError, r"it holds \d+ FLOAT16"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_package_is_refused(
    name: str,
    spoil: Callable[[Any, Path], None],
    error: type[MMSRError],
    message: str,
    coreml_bundle: Path,
    opened: Checkpoint,
    tmp_path: Path,
) -> None:
    package = spoilt(coreml_bundle / name / "fp16.mlpackage", tmp_path, spoil)
    with pytest.raises(error, match=message):
        MILProgram.open(package).run(feeds_of(opened, name))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Manifest.json", b"{", "is no package manifest"),
        ("Manifest.json", b"{}", "is no package manifest"),
        ("Manifest.json", None, "is no .mlpackage"),
        ("Data/com.apple.CoreML/model.mlmodel", b"\xff\xff\xff", "is no Core ML model"),
        ("Data/com.apple.CoreML/model.mlmodel", b"", "only ML Programs"),
        ("Data/com.apple.CoreML/model.mlmodel", None, "which is not in the package"),
        ("Data/com.apple.CoreML/weights/weight.bin", b"", "a weights file has more"),
        ("Data/com.apple.CoreML/weights/weight.bin", bytes(64), "is of version 0"),
    ],
)
def test_broken_files_are_refused(
    file: str, content: bytes | None, message: str, coreml_bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(
        coreml_bundle / "lr_encoder" / "fp16.mlpackage", tmp_path / "a.mlpackage"
    )
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        MILProgram.open(copy)


def test_a_missed_gate_stops_the_build(
    coreml_bundle: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the first parameter of the network is scaled by 1.2 before the conversion."""
    from mmsr_edge.converters import artifacts

    out = shutil.copytree(coreml_bundle, tmp_path / "micro")
    honest = artifacts.to_coreml

    def perturbed(network: nn.Module, *arguments: Any, **options: Any) -> Any:
        with torch.no_grad():
            for parameter in list(network.parameters())[:1]:
                parameter.mul_(1.2)
        return honest(network, *arguments, **options)

    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    monkeypatch.setattr(artifacts, "to_coreml", perturbed)
    config = ExportConfig(checkpoint, out, ("coreml",), ("fp16",), components=("lr_encoder",))
    with pytest.raises(ParityError, match=r"lr_encoder at fp16 on mil: .* gate 40 dB"):
        export_bundle(config)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
