"""Export: formats beside ONNX, files made for one backend, the report, and resumed exports."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from PIL import Image

from mmsr_edge import Upscaler
from mmsr_edge.bundle import open_bundle
from mmsr_edge.calib.readers import coreml_samples, nncf_dataset, onnxruntime_reader
from mmsr_edge.converters import export_all
from mmsr_edge.converters.artifacts import Source
from mmsr_edge.converters.components import component
from mmsr_edge.converters.export_all import ExportConfig, export_bundle, export_key
from mmsr_edge.converters.parity import GATES
from mmsr_edge.converters.quantize import QuantConfig
from mmsr_edge.converters.to_onnx import SMALLEST_HALF
from mmsr_edge.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path

    from mmsr_edge.calib.reader import CalibrationSet


@pytest.fixture(scope="module")
def openvino(
    checkpoint: Path, recorded_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A bundle of OpenVINO files, and the folder of its report."""
    folder = tmp_path_factory.mktemp("openvino")
    out, report = folder / "micro", folder / "report"
    export_bundle(
        ExportConfig(checkpoint, out, ("openvino",), ("int8",), (), recorded_file, report=report)
    )
    assert sorted(p.name for p in folder.iterdir()) == ["micro", "report"]
    return out, report


def small_halves(graph: str) -> list[str]:
    """Small constants of an OpenVINO graph that are stored as float16."""
    found = []
    for layer in ElementTree.fromstring(graph).iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None and data.get("element_type") == "f16":
            shape = [int(n) for n in (data.get("shape") or "").split(",") if n.strip()]
            if math.prod(shape) < SMALLEST_HALF:
                found.append(layer.get("name") or "")
    return found


def test_small_constants_at_float16_are_found(openvino: tuple[Path, Path], tmp_path: Path) -> None:
    """OpenVINO's own compression makes them, and its CPU plugin may then fail after one call."""
    import openvino as ov

    path = openvino[0] / "connector" / "fp16.xml"
    ov.save_model(ov.Core().read_model(path), tmp_path / "x.xml", compress_to_fp16=True)
    assert small_halves((tmp_path / "x.xml").read_text())


def test_openvino_runs_its_own_files(openvino: tuple[Path, Path], exported: Path) -> None:
    bundle = open_bundle(openvino[0])
    for name, spec in bundle.manifest.components.items():
        wanted = ["int8"] if component(name).quantization else ["fp16"]
        assert [a.precision for a in spec.artifacts] == wanted, name
        for artifact in spec.artifacts:
            assert [f.path for f in artifact.files] == [
                f"{name}/{artifact.precision}.{suffix}" for suffix in ("xml", "bin")
            ]
            text = bundle.path(artifact.files[0]).read_text()
            assert small_halves(text) == []
            assert "site-packages" not in text and str(openvino[0].parent) not in text
    weights = bundle.component("unet").artifacts[0].files[1]
    float32 = open_bundle(exported).artifact("unet", ("onnx",), "fp32")
    assert weights.bytes < float32.files[0].bytes / 2  # float layers are float16
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    pictures = [
        np.asarray(Upscaler(folder, "openvino", precision="int8", threads=1).upscale(picture).image)
        for folder in (openvino[0], exported)
    ]
    difference = np.subtract(*pictures, dtype=np.float64)
    assert 10 * np.log10(255**2 / np.mean(difference**2)) >= 40


def test_the_report_agrees_with_the_cards(openvino: tuple[Path, Path], micro_gate: float) -> None:
    out, report = openvino
    rows = json.loads((report / "export.json").read_text())
    with (report / "export.csv").open(newline="") as file:
        assert [row["component"] for row in csv.DictReader(file)] == [r["component"] for r in rows]
    for row in rows:
        assert row["passed"] is True
        if row["component"] == "whole pipeline":
            assert row["gate"] == {"fp16": 40, "int8": micro_gate}[row["precision"]]
            continue
        spec = open_bundle(out).component(row["component"])
        (artifact,) = [a for a in spec.artifacts if a.precision == row["precision"]]
        score = (artifact.parity or {})["backends"][row["backend"]]
        assert row["decibels"] == (score["psnr"] and pytest.approx(score["psnr"], abs=1e-4))
        assert row["gate"] == GATES[row["precision"]]
        assert row["megabytes"] == sum(f.bytes for f in artifact.files) / 1e6
    with Image.open(report / "export.png") as picture:
        assert picture.format == "PNG" and picture.height > 28 * len(rows)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_export_resumes(
    interruption: type[BaseException],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interrupted at the fourth file; of three before, two are kept and a damaged one is redone."""
    config = ExportConfig(checkpoint, tmp_path / "micro", ("torch",), ("fp32",))
    honest, written = Source.write, list[str]()

    def write(self: Source, *arguments: Any) -> Any:
        if len(written) == 3:
            raise interruption
        written.append(self.spec.name)
        return honest(self, *arguments)

    monkeypatch.setattr(Source, "write", write)
    with pytest.raises(interruption):
        export_bundle(config)
    (stage,) = tmp_path.iterdir()
    assert stage.name == f".micro.{export_key(config)}.part" and not config.out.exists()
    damaged = stage / "bundle" / written[1] / "fp32.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")

    again: list[str] = []
    monkeypatch.setattr(
        Source, "write", lambda self, *a: (again.append(self.spec.name), honest(self, *a))[1]
    )
    rows = export_bundle(config)
    assert list(tmp_path.iterdir()) == [config.out]
    names = list(open_bundle(config.out).manifest.components)  # which checks the hashes
    assert written == names[:3] and again == [names[1], *names[3:]]
    assert [row.component for row in rows] == names
    assert all(row.scores["torch"].finite for row in rows)


def test_an_export_with_other_options_does_not_resume(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages of other options are not used, and are removed; those of other bundles stay."""
    config = ExportConfig(checkpoint, tmp_path / "micro", ("torch",), ("fp32",))
    assert export_key(config) == export_key(replace(config, report=tmp_path))
    assert export_key(config) != export_key(replace(config, precisions=("fp16",)))
    monkeypatch.setattr(export_all, "installed_version", lambda tool: "other")
    stale = tmp_path / f".micro.{export_key(config)}.part" / "bundle"
    monkeypatch.undo()
    assert export_key(config) not in str(stale)
    foreign = tmp_path / f".micro.2.{export_key(config)}.part"
    stale.mkdir(parents=True)
    foreign.mkdir()
    export_bundle(config)
    assert sorted(tmp_path.iterdir()) == [foreign, config.out]


def test_int4_is_the_same_picture_in_a_smaller_file(
    checkpoint: Path, exported: Path, tmp_path: Path, micro_gate: float
) -> None:
    """Only weights are quantized, so no inputs are recorded."""
    out = tmp_path / "micro"
    shutil.copytree(exported, out)
    chosen = ("depth", "tokenizer", "unet")  # the others are kept
    rows = export_bundle(ExportConfig(checkpoint, out, ("onnx", "openvino"), ("int4",), chosen))
    made = {(r.component, r.artifact.format): r.artifact for r in rows}
    for form in ("onnx", "openvino"):
        precisions = [made[name, form].precision for name in chosen]
        assert precisions == ["int8", "fp16", "int4"]
    float16 = open_bundle(exported).artifact("unet", ("onnx",), "fp16").files[0].bytes
    assert made["unet", "onnx"].files[0].bytes < float16 / 2
    assert made["unet", "openvino"].files[1].bytes < float16 / 2
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    want = np.asarray(Upscaler(exported, "openvino", precision="fp32", threads=1)(picture).image)
    for backend in ("onnxruntime", "openvino"):
        made_here = Upscaler(out, backend, threads=1)  # "auto" takes the only artifact
        difference = np.subtract(np.asarray(made_here(picture).image), want, dtype=np.float64)
        # int4's gate for a component is 30 dB; with these random weights the picture has 34.
        assert min(micro_gate, 30) <= 10 * np.log10(255**2 / np.mean(difference**2)) < 70


# --- ONNX Runtime's recipe ----------------------------------------------------------------------


def test_a_convolution_is_one_int8_kernel_in_onnxruntime(
    checkpoint: Path, recorded: CalibrationSet, exported: Path, tmp_path: Path
) -> None:
    """The graph optimized by the runtime has QLinearConv with its own recipe, not with NNCF's."""
    import onnxruntime as ort

    def kinds(name: str) -> list[str]:
        bundle = open_bundle(exported)
        path = bundle.path(bundle.artifact(name, ("onnx",), "int8").files[0])
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        settings.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        graph = onnx.load(settings.optimized_model_filepath).graph
        return [node.op_type for node in graph.node]

    assert kinds("decoder").count("QLinearConv") >= 3
    assert kinds("unet").count("QLinearConv") == 0
    artifact = open_bundle(exported).artifact("decoder", ("onnx",), "int8")
    assert artifact.quantization is not None
    assert artifact.quantization["tool"] == "onnxruntime" and artifact.tools["onnxruntime"]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(OptionError, match="'symmetric' with tool 'onnxruntime'"):
        QuantConfig(tool="onnxruntime", activations="symmetric")
    with pytest.raises(OptionError, match="tool 'aimet' must be"):
        QuantConfig.from_dict({"tool": "aimet"})


def test_every_tool_reads_the_recorded_inputs(recorded: CalibrationSet) -> None:
    samples = recorded.calibration("text_encoder")
    reader = onnxruntime_reader(samples)
    for _ in range(2):
        read = list(iter(reader.get_next, None))
        assert len(read) == len(reader) == len(samples)
        reader.rewind()
    taken = list(nncf_dataset(samples).get_inference_data())
    narrow = coreml_samples(samples)
    for sample, *others in zip(samples, read, taken, narrow, strict=True):
        for other in others:
            np.testing.assert_array_equal(other["ids"], sample["ids"])
    assert narrow[0]["ids"].dtype == np.int32
    assert samples[0]["ids"].dtype == np.int64  # unchanged
