"""Comparison of recipes for the quantization of a checkpoint's components: time, size and error.

    python benchmarks/quantization.py --checkpoint weights/nano --calibration PHOTOS --out OUT

`naive` is the default of the tools: all convolutions and matrix products at int8, one scale per
tensor, ranges from a few inputs. Every other int8 recipe leaves the layers of `keep_float` in
float. Times are medians over rounds in which the files alternate on each runtime; compare them
within one table only. Writes `quantization.csv` and `quantization.png`.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mmsr_edge.bundle import Artifact, ComponentSpec, describe_file
from mmsr_edge.calib.reader import CalibrationSet
from mmsr_edge.calib.record import record
from mmsr_edge.converters.components import COMPONENTS, component
from mmsr_edge.converters.options import check_names, read_settings, words
from mmsr_edge.converters.parity import measure
from mmsr_edge.converters.quantize import (
    QuantConfig,
    quantize,
    quantize_static,
    quantize_weights,
)
from mmsr_edge.converters.report import draw_table
from mmsr_edge.converters.to_onnx import halve_weights, save_onnx, to_onnx
from mmsr_edge.models.checkpoint import open_checkpoint, run_network
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import BACKENDS

RUNTIMES = [backend for backend in BACKENDS if backend.name in ("onnxruntime", "openvino")]
COLUMNS = ("component", "recipe", "backend", "MB", "ms", "dB")
Samples = list[dict[str, Any]]


def naive(model: onnx.ModelProto, samples: Samples) -> onnx.ModelProto:
    """Quantize all to int8, with one scale per tensor and ranges from four recorded inputs."""
    return quantize_static(model, samples[:4], op_types_to_quantize=["Conv", "Gemm", "MatMul"])


def recipes(
    model: onnx.ModelProto, samples: Samples, config: QuantConfig | None
) -> dict[str, Callable[[], onnx.ModelProto]]:
    """Functions that make a graph, by the name of the recipe."""
    made: dict[str, Callable[[], onnx.ModelProto]] = {
        "fp32": lambda: model,
        "fp16": lambda: halve_weights(model),
        "int8 weights": lambda: quantize(
            model, samples, replace(config or QuantConfig(), activations="float", tool="nncf")
        ),
    }
    if config is None or config.activations == "float":
        return made
    variants: dict[str, dict[str, Any]] = {
        "int8 nncf": {"tool": "nncf", "activations": "asymmetric"},
        "int8 nncf symmetric": {"tool": "nncf", "activations": "symmetric"},
        "int8 nncf smooth": {"tool": "nncf", "activations": "asymmetric", "smooth": True},
        "int8 onnxruntime": {"tool": "onnxruntime", "activations": "asymmetric"},
    }
    made["int4 weights"] = lambda: quantize_weights(model, config)
    made["naive"] = lambda: naive(model, samples)
    for name, changes in variants.items():
        made[name] = partial(quantize, model, samples, replace(config, **changes))
    return made


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help="photographs, or a set")
    parser.add_argument("--quantization", type=Path, help="JSON file, as for export_all.py")
    parser.add_argument("--components", type=words, default=("lr_encoder", "unet", "decoder"))
    parser.add_argument("--samples", type=int, default=32, help="most inputs to calibrate on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="per runtime (default: its own choice)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args()
    check_names("component", args.components, tuple(COMPONENTS))
    checkpoint = open_checkpoint(args.checkpoint)
    recorded = (
        record(args.checkpoint, args.calibration, backend="torch")
        if args.calibration.is_dir()
        else CalibrationSet.load(args.calibration)
    )
    settings = read_settings(args.quantization)
    rows: list[tuple[str, ...]] = []
    for name in args.components:
        network, spec = checkpoint.networks[name], checkpoint.bundle.component(name)
        feeds = recorded.held_out(name)
        references = [run_network(network, name, feed) for feed in feeds]
        model = to_onnx(network, feeds[0], spec.inputs, spec.outputs)
        config = component(name).quantization
        if config is not None:
            config = QuantConfig.from_dict(settings.get(name, {}), config)
            config = replace(config, samples=args.samples)
        rows += compare(
            name,
            recipes(model, recorded.calibration(name), config),
            spec,
            feeds,
            references,
            args,
        )
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "quantization.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    bad = {i for i, row in enumerate(rows) if float(row[-1]) < 35}
    draw_table(COLUMNS, rows, bad, words=3).save(args.out / "quantization.png")


def compare(
    name: str,
    ways: dict[str, Callable[[], onnx.ModelProto]],
    spec: ComponentSpec,
    feeds: Samples,
    references: Samples,
    args: argparse.Namespace,
) -> list[tuple[str, ...]]:
    """Measure one component; prints each row and returns all."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        options = SessionOptions(threads=args.threads, cache_dir=root / "cache")
        sessions, sizes = {}, {}
        for number, (way, make) in enumerate(ways.items()):
            model = make()
            (file, *_) = save_onnx(
                model if way == "fp32" else halve_weights(model), root / f"{number}.onnx"
            )
            artifact = Artifact("onnx", "fp32", (describe_file(root, file),))
            sizes[way] = artifact.files[0].bytes
            for backend in RUNTIMES:
                sessions[way, backend.name] = backend.open(root / file, spec, artifact, options, "")
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in sessions}
        for backend in RUNTIMES:
            for _ in range(args.rounds):
                for way in ways:
                    session = sessions[way, backend.name]
                    session.run(feeds[0])  # warms the runtime's threads and caches
                    began = time.perf_counter()
                    session.run(feeds[0])
                    seconds[way, backend.name].append(time.perf_counter() - began)
        for (way, reader), session in sessions.items():
            psnr = measure(session, feeds, references, component(name).codes).psnr
            row: tuple[str, ...] = (
                name,
                way,
                reader,
                f"{sizes[way] / 1e6:.2f}",
                f"{statistics.median(seconds[way, reader]) * 1e3:.1f}",
                f"{np.inf if psnr is None else psnr:.1f}",
            )
            print(("{:<12}{:<22}{:<13}{:>8}{:>9}{:>8}").format(*row), flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
