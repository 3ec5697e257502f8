"""Export of networks to Core ML: one ML Program (`.mlpackage`) each, for iOS 17 and macOS 14.

Shapes are static. Networks are captured by `torch.export`, because `torch.jit.trace` fails with
numpy ≥ 2.4. int8 and palettes compress the weights only, and activations stay float16: coremltools
calibrates activations by running the model, which needs macOS. `QuantConfig.keep_float` protects
layers from int8 activations and is therefore ignored here; int8 weights alone lose little.

The UNet's attention is rewritten for the Neural Engine; see `split_attention`. The text encoder and
the connector run once per picture and keep the attention that coremltools emits for iOS 17.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from mmsr_edge.converters.split_attention import split_attention
from mmsr_edge.errors import OptionError, OutputError, ParityError, missing_extra

CoreMLPrecision = Literal["fp32", "fp16", "int8", "palette", "uniform"]
"""palette: 6-bit indices into 64 float16 values per tensor, found by k-means; uniform: 64 evenly
spaced values instead, found within minutes for the largest networks."""
PALETTE_BITS = 6
"""Bits of a palette index; fewer lose too much quality on the Neural Engine."""
SMALLEST_COMPRESSED = 2048
"""Weights with at most this many elements (biases, norms) stay float16: they add little."""

_WEIGHTS = {
    "conv": ("weight",),
    "conv_transpose": ("weight",),
    "linear": ("weight",),
    "matmul": ("x", "y"),
    "gather": ("x",),
}
"""Parameters that hold weights, by operation. Other constants are not compressed: an attention mask
contains −∞, which admits neither a scale nor a palette."""
_COPIES = {"aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default"}
"""Operators of the export without effect; coremltools does not support all of them."""
_PADS = {"aten.pad.default", "aten.constant_pad_nd.default"}
_RESIZES = (
    "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",  # coremltools converts it without antialiasing
)


def import_coremltools() -> Any:
    """Import coremltools without its warnings about the versions of other packages.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with _quiet():
            import coremltools
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "coremltools":
            raise
        raise missing_extra("coremltools", "coreml") from None
    return coremltools


def convert(
    network: nn.Module,
    feeds: Mapping[str, NDArray[Any]],
    outputs: Sequence[str],
    out: Path,
    precision: CoreMLPrecision = "fp16",
) -> Path:
    """Convert a network and write it as a package, atomically.

    Inputs and outputs are float32, or int32 where the network has integers: Core ML has no int64.

    Args:
        network: network in evaluation mode, on the CPU.
        feeds: one set of inputs, by name, in the order of the network's arguments.
        outputs: names of the outputs, in the order of the network's results.
        out: folder `*.mlpackage`; an existing one is replaced.
        precision: precision of the weights and of the computation. fp32 computes in float32, which
            only the CPU supports, and is meant for tests; the others compute in float16.

    Returns:
        `out`.

    Raises:
        OptionError: `precision` is unknown, or `out` has another suffix.
        ParityError: the program's inputs or outputs differ from `feeds` or `outputs`.
        OutputError: `out` cannot be written.
        MissingExtraError: coremltools is not installed.
        NotImplementedError: coremltools lacks an operator of the network.
    """
    if precision not in get_args(CoreMLPrecision):
        raise OptionError(
            f"precision {precision!r} is unknown; there are {', '.join(get_args(CoreMLPrecision))}"
        )
    _check_suffix(out)
    model = to_coreml(network, feeds, outputs, "fp32" if precision == "fp32" else "fp16")
    save_coreml(compress_weights(model, precision), out)
    return out


def to_coreml(
    network: nn.Module,
    feeds: Mapping[str, NDArray[Any]],
    outputs: Sequence[str],
    precision: Literal["fp32", "fp16"] = "fp16",
    exact: Collection[str] = (),
) -> Any:
    """Convert a network to a `coremltools` model; `convert` has the other arguments and the errors.

    Args:
        exact: types of the operations that compute in float32 even at fp16.
    """
    ct = import_coremltools()
    with _quiet():
        _register_operators()
        with split_attention(network):
            program = _export(network, feeds)
        model = _to_program(ct, program, feeds, outputs, precision, exact)
    _check_ports(model.get_spec().description, feeds, outputs)
    return model


def _export(network: nn.Module, feeds: Mapping[str, NDArray[Any]]) -> ExportedProgram:
    arguments = tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in feeds.values())
    with torch.no_grad():
        program = torch.export.export(network, arguments, strict=False).run_decompositions({})
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if str(node.target) in _COPIES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif str(node.target) in _PADS and min(node.args[1]) < 0:
            _crop(graph, node)
    program.graph_module.recompile()
    return program


def _crop(graph: torch.fx.Graph, pad: torch.fx.Node) -> None:
    """Replace negative padding, which coremltools lacks, by slices."""
    x, sides, *rest = pad.args
    for i in range(len(sides) // 2):
        before, after = (min(side, 0) for side in sides[2 * i : 2 * i + 2])
        size = x.meta["val"].shape[-1 - i]
        if before or after:
            with graph.inserting_before(pad):
                bounds = (x.meta["val"].ndim - 1 - i, -before, size + after)
                cropped = graph.call_function(torch.ops.aten.slice.Tensor, (x, *bounds))
            cropped.meta["val"] = torch.ops.aten.slice.Tensor(x.meta["val"], *bounds)
            x = cropped
    pad.args = (x, [max(side, 0) for side in sides], *rest)
    if not any(pad.args[1]):
        pad.replace_all_uses_with(x)
        graph.erase_node(pad)


def _to_program(
    ct: Any,
    exported: ExportedProgram,
    feeds: Mapping[str, NDArray[Any]],
    outputs: Sequence[str],
    precision: Literal["fp32", "fp16"],
    exact: Collection[str],
) -> Any:
    (results,) = next(node for node in exported.graph.nodes if node.op == "output").args
    found = [node.meta["val"].dtype for node in results]
    if len(found) != len(outputs):
        raise ParityError(f"the network gives {len(found)} results, expected {list(outputs)}")
    return ct.convert(
        exported,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=(
            ct.precision.FLOAT32
            if precision == "fp32"
            else ct.transform.FP16ComputePrecision(op_selector=lambda op: op.op_type not in exact)
        ),
        inputs=[
            ct.TensorType(name=name, shape=value.shape, dtype=_boundary(value.dtype.kind == "f"))
            for name, value in feeds.items()
        ],
        outputs=[
            ct.TensorType(name=name, dtype=_boundary(dtype.is_floating_point))
            for name, dtype in zip(outputs, found, strict=True)
        ],
        skip_model_load=True,
    )


def _boundary(floating: bool) -> type:
    return np.float32 if floating else np.int32


def compress_weights(model: Any, precision: CoreMLPrecision) -> Any:
    """Compress the weights of a float16 model made by `to_coreml`; fp32 and fp16 change nothing."""
    import coremltools.optimize.coreml as cto

    if precision == "int8":
        # Symmetric, with one scale per output channel.
        compress, settings = (
            cto.linear_quantize_weights,
            cto.OpLinearQuantizerConfig(
                mode="linear_symmetric", weight_threshold=SMALLEST_COMPRESSED
            ),
        )
    elif precision in ("palette", "uniform"):
        compress, settings = (
            cto.palettize_weights,
            cto.OpPalettizerConfig(
                mode="kmeans" if precision == "palette" else "uniform",
                nbits=PALETTE_BITS,
                weight_threshold=SMALLEST_COMPRESSED,
            ),
        )
    else:
        return model
    # Selected by name: selection by operation type would include biases, and coremltools rejects a
    # constant that operations of two types share.
    names = _weight_names(model.get_spec().mlProgram.functions["main"])
    config = cto.OptimizationConfig(op_name_configs=dict.fromkeys(names, settings))
    with _quiet():
        return compress(model, config)


def _weight_names(function: Any) -> list[str]:
    """Names of the float16 constants that are weights."""
    from coremltools.proto import MIL_pb2

    block = function.block_specializations[function.opset]
    constants = {
        op.outputs[0].name
        for op in block.operations
        if op.type == "const"
        and op.outputs[0].type.tensorType.dataType == MIL_pb2.DataType.Value("FLOAT16")
    }
    taken = {
        argument.name
        for op in block.operations
        for parameter in _WEIGHTS.get(op.type, ())
        for argument in op.inputs[parameter].arguments
    }
    return sorted(constants & taken)


def _check_ports(
    description: Any, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
) -> None:
    expected = {name: list(value.shape) for name, value in feeds.items()}
    found = {port.name: list(port.type.multiArrayType.shape) for port in description.input}
    if found != expected:
        raise ParityError(f"the program has inputs {found}, expected {expected}")
    names = [port.name for port in description.output]
    if names != list(outputs):
        raise ParityError(f"the program has outputs {names}, expected {list(outputs)}")


def save_coreml(model: Any, out: Path) -> tuple[str, ...]:
    """Write a model as a package, atomically.

    Returns:
        The written files, relative to the folder of `out`; the model file comes first.

    Raises:
        OptionError: `out` does not end in .mlpackage.
        OutputError: `out` cannot be written.
    """
    _check_suffix(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            part, old = Path(folder, out.name), Path(folder, "old")
            with _quiet():
                model.save(str(part))
            _settle(part)
            if out.exists():
                out.rename(old)
            part.rename(out)
    except OSError as error:
        raise OutputError(f"cannot write {str(out)!r}: {error}") from error
    return package_files(out)


def _check_suffix(out: Path) -> None:
    if out.suffix != ".mlpackage":
        raise OptionError(f"{str(out)!r} must end in .mlpackage")


def _settle(package: Path) -> None:
    """Remove random identifiers, dates and debug data, so that equal networks give equal files."""
    from coremltools.proto import Model_pb2

    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    path = package / "Manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    entries = manifest["itemInfoEntries"]
    renamed = {key: str(uuid.uuid5(uuid.NAMESPACE_URL, entries[key]["path"])) for key in entries}
    manifest["itemInfoEntries"] = {renamed[key]: entry for key, entry in entries.items()}
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    path.write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    file = package / "Data" / _model_path(manifest)
    spec = Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    file.write_bytes(spec.SerializeToString(deterministic=True))
    for entry in package.rglob("*"):  # coremltools makes the model readable by its owner only
        entry.chmod(0o755 if entry.is_dir() else 0o644)


def _model_path(manifest: Mapping[str, Any]) -> str:
    """Path of the model file below `Data`, from the package's manifest."""
    return str(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])


def package_files(package: Path) -> tuple[str, ...]:
    """Files of a package, relative to its parent folder; the model file comes first."""
    manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    model = package / "Data" / _model_path(manifest)
    others = sorted(path for path in package.rglob("*") if path.is_file() and path != model)
    return tuple(path.relative_to(package.parent).as_posix() for path in (model, *others))


# --- Operators that coremltools lacks or converts wrongly ---------------------------------------


def _register_operators() -> None:
    """Register the missing operators with coremltools.

    Resizing with a cubic or an antialiased kernel becomes a matrix product along each axis. For a
    constant, such as a resized position embedding, coremltools folds the products, and only the
    result is stored.
    """
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, where
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    def number(value: Any) -> Any:
        return (
            [number(v) for v in value] if isinstance(value, list) else getattr(value, "val", value)
        )

    def resize(context: Any, node: Any) -> None:
        kind, _, overload = node.kind.partition(".")
        x, size, align_corners, *scales = _get_inputs(context, node)
        sizes, factors = number(size), [number(scale) for scale in scales] or [None, None]
        if overload == "vec":  # takes sizes or factors, each as a list
            factors = [None, None] if factors[0] is None else [float(f) for f in factors[0]]
        for axis, factor in enumerate(factors):
            before = x.shape[2 + axis]
            after = int(before * factor) if sizes is None else int(sizes[axis])
            matrix = _resize_matrix(kind, before, after, bool(number(align_corners)), factor)
            pair = {"x": matrix, "y": x} if axis == 0 else {"x": x, "y": matrix.T}
            x = Builder.matmul(**pair)
        context.add(Builder.identity(x=x, name=node.name))

    for name in _RESIZES:
        for overload in (name, f"{name}.vec"):
            _TORCH_OPS_REGISTRY.set_func_by_name(resize, overload)
    for overload in ("where.scalar", "where.scalarother"):
        _TORCH_OPS_REGISTRY.set_func_by_name(where, overload)


def _resize_matrix(
    kind: str, size: int, target: int, align_corners: bool, scale: float | None
) -> NDArray[np.float32]:
    """Matrix [target, size] of torch's resize along one axis."""
    resize = getattr(torch.ops.aten, kind).default
    units = torch.eye(size)[None, None]
    return resize(units, [target, size], align_corners, scale, None)[0, 0].numpy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress coremltools' progress output and its version warnings."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
