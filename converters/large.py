"""Export of one component that exceeds protobuf's 2 GiB, in one format with compressed weights.

    python -m mmsr_edge.converters.large --checkpoint CHECKPOINT --component unet \\
        --form openvino-int8 --out unet/int8.xml

Only the weights are compressed. Activations stay float, so that no recorded inputs and no second
copy of the float graph are needed. Each process writes one form and prints its size, the time and
the peak resident memory.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from mmsr_edge.benchmark.machine import peak_rss_mb
from mmsr_edge.converters.compress import compress_weights
from mmsr_edge.converters.options import check_names
from mmsr_edge.converters.quantize import weighted_layers
from mmsr_edge.converters.to_coreml import compress_weights as compress_program
from mmsr_edge.converters.to_coreml import save_coreml, to_coreml
from mmsr_edge.converters.to_onnx import export_onnx, halve_weights, save_onnx
from mmsr_edge.errors import MMSRError, OptionError, OutputError
from mmsr_edge.models.checkpoint import load_network
from mmsr_edge.models.signatures import draw_inputs, output_names

Form = Literal["onnx-int8", "openvino-int8", "openvino-int4", "coreml-palette"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "openvino": ".xml", "coreml": ".mlpackage"}
GROUP = 64
"""Weights per int4 scale; smaller where it does not divide the layer's inputs."""


def write_large(
    network: nn.Module, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str],
    form: Form, out: Path,
) -> tuple[str, ...]:  # fmt: skip
    """Write a network in one form.

    Args:
        network: network in evaluation mode.
        feeds: one set of inputs, by name, in the order of the network's arguments.
        outputs: names of the outputs, in the order of the network's results.
        form: format and compression. int4 uses 8 bits for convolutions; palette uses 64 evenly
            spaced values per tensor, because k-means was not tried on 10⁹ weights.
        out: path of the model file, with the format's suffix.

    Returns:
        Names of the written files in the folder of `out`; the model file comes first.

    Raises:
        OptionError: the form is unknown, or `out` has another suffix.
        OutputError: `out` cannot be written.
    """
    check_names("form", (form,), get_args(Form))
    kind = form.partition("-")[0]
    suffix = SUFFIXES[kind]
    if out.suffix != suffix:
        raise OptionError(f"{str(out)!r} must end in {suffix} for form {form!r}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            names = _WRITERS[kind](network, feeds, outputs, form, Path(folder, out.name))
            # The model file is moved last, after the files that it refers to.
            for beside in sorted({Path(name).parts[0] for name in names} - {out.name}):
                Path(folder, beside).replace(out.parent / beside)
            if out.is_dir():
                shutil.rmtree(out)
            Path(folder, out.name).replace(out)
    except OSError as error:
        raise OutputError(f"cannot write {str(out)!r}: {error}") from error
    return names


def _write_onnx(
    network: nn.Module, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str],
    form: str, path: Path,
) -> tuple[str, ...]:  # fmt: skip
    """Write by way of a float32 file that is read back one tensor at a time."""
    del form
    with tempfile.TemporaryDirectory(prefix=".float32.", dir=path.parent) as folder:
        model = export_onnx(network, feeds, outputs, Path(folder, "float32.onnx"))
        model = compress_weights(model, set(weighted_layers(model)), Path(folder))
        model = halve_weights(model, Path(folder))
        # The remaining external tensors are small; load them before their file is deleted.
        onnx.load_external_data_for_model(model, folder)
    return save_onnx(model, path)


def _write_openvino(
    network: nn.Module, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str],
    form: str, path: Path,
) -> tuple[str, ...]:  # fmt: skip
    import nncf
    import openvino as ov

    arguments = tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in feeds.values())
    with torch.no_grad():
        program = torch.export.export(network, arguments, strict=False)
    model = ov.convert_model(program)
    for ports, names in ((model.inputs, feeds), (model.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    model.reshape({name: list(value.shape) for name, value in feeds.items()})
    if form.endswith("int8"):
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    else:
        adjust = nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=16
        )
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            group_size=GROUP,
            ratio=1.0,
            advanced_parameters=adjust,
        )
    ov.save_model(model, str(path), compress_to_fp16=True)
    return (path.name, path.with_suffix(".bin").name)


def _write_coreml(
    network: nn.Module, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str],
    form: str, path: Path,
) -> tuple[str, ...]:  # fmt: skip
    del form
    return save_coreml(compress_program(to_coreml(network, feeds, outputs), "uniform"), path)


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "coreml": _write_coreml}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    add("--component", default="unet")
    add("--form", required=True, help=", ".join(get_args(Form)))
    add("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args(arguments)
    began = time.perf_counter()
    try:
        network, p = load_network(args.checkpoint, args.component)
        feeds = draw_inputs(args.component, p, np.random.default_rng(0))
        names = write_large(network, feeds, output_names(args.component), args.form, args.out)
    except MMSRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum((args.out.parent / name).stat().st_size for name in names)
    peak = peak_rss_mb()
    held = "" if peak is None else f", peak RSS {peak * 1e6 / 2**30:.2f} GiB"
    print(f"{args.form}: {size / 1e6:.1f} MB, {time.perf_counter() - began:.0f} s{held}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
