"""Export: a checkpoint becomes a bundle that runs alike on every backend."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mmsr_edge import Upscaler
from mmsr_edge.bundle import REQUIRED, open_bundle
from mmsr_edge.bundle.staging import staged_bundle
from mmsr_edge.converters import artifacts as artifacts_module
from mmsr_edge.converters import to_onnx as to_onnx_module
from mmsr_edge.converters.components import COMPONENTS, component
from mmsr_edge.converters.export_all import ExportConfig, main
from mmsr_edge.converters.report import pipeline_table, table
from mmsr_edge.converters.to_onnx import halve_weights, save_onnx
from mmsr_edge.errors import BundleError, OptionError, OutputError, ParityError
from mmsr_edge.models import build_component, preset
from mmsr_edge.models.checkpoint import open_checkpoint, run_network, write_checkpoint
from mmsr_edge.models.signatures import draw_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from mmsr_edge.converters.report import Row


FORMS = {
    "float": {("onnx", "fp32"), ("onnx", "fp16"), ("torch", "fp32"), ("torch", "fp16")},
    "int8": {("onnx", "fp32"), ("onnx", "int8"), ("torch", "fp32"), ("torch", "fp16")},
}


def decibels(a: Any, b: Any) -> float:
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(10 * np.log10(255**2 / max(np.mean(difference**2), 1e-12)))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_holds_the_requested_artifacts(exported: Path) -> None:
    components = open_bundle(exported).manifest.components
    # In the pipeline's order; hr_encoder is not shipped.
    assert tuple(components) == ("depth", "segmentation", "captioner", "degradation", *REQUIRED)
    for name, spec in components.items():
        forms = {(a.format, a.precision) for a in spec.artifacts}
        assert forms == FORMS["int8" if component(name).quantization else "float"], name
        for artifact in spec.artifacts:
            assert (artifact.quantization is not None) == (artifact.precision == "int8")
            assert artifact.tools["torch"]
    listed = {f.path for s in components.values() for a in s.artifacts for f in a.files} | {
        "manifest.json"
    }
    assert set(snapshot(exported)) == listed


def test_every_artifact_has_a_card_within_its_gate(
    export: tuple[Path, list[Row]], micro_gate: float
) -> None:
    folder, rows = export
    sources = {"onnx": {"onnxruntime", "openvino"}, "torch": {"torch"}}
    gates = {"fp32": 60, "fp16": 40, "int8": micro_gate}
    for spec in open_bundle(folder).manifest.components.values():
        for artifact in spec.artifacts:
            card = artifact.parity
            assert card is not None
            assert card["inputs"] == "recorded"
            assert set(card["backends"]) == sources[artifact.format]
            for score in card["backends"].values():
                assert score["finite"]
                assert score["psnr"] is None or score["psnr"] >= gates[artifact.precision]
    unet = open_bundle(folder).component("unet")
    for artifact in unet.artifacts:
        assert artifact.parity is not None
        assert set(artifact.parity["end_to_end"]) == sources[artifact.format]
    lines = table(rows).splitlines()
    assert len(lines) == 1 + sum(len(row.scores) for row in rows)
    # A line for each of the UNet's artifacts on each backend.
    whole = pipeline_table(open_bundle(folder).manifest).splitlines()
    assert len(whole) == sum(len(row.scores) for row in rows if row.component == "unet")
    assert any("int8 on openvino, 2 steps: " in line for line in whole)


def test_the_same_seed_gives_the_same_picture_on_every_runtime(exported: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 50, 3), np.uint8)  # four tiles
    backends = ("onnxruntime", "openvino", "torch")
    results = {
        name: np.asarray(
            Upscaler(exported, name, precision="fp32", threads=1)
            .upscale(picture, seed=3, color_fix=False, prompt="a test")
            .image
        )
        for name in backends
    }
    assert results["torch"].shape == (160, 200, 3)
    assert results["torch"].std() > 10  # a flat picture would agree with anything
    for name in backends[:2]:
        assert decibels(results[name], results["torch"]) >= 40, name
    other = Upscaler(exported, "onnxruntime", precision="fp32", threads=1)
    reseeded = other.upscale(picture, seed=4, color_fix=False, prompt="a test").image
    assert decibels(reseeded, results["torch"]) < 40  # other noise misses the bar


def test_graphs_are_static_and_hold_no_paths(exported: Path) -> None:
    bundle = open_bundle(exported)
    for name, spec in bundle.manifest.components.items():
        path = bundle.path(spec.artifacts[0].files[0])
        assert b"site-packages" not in path.read_bytes()
        assert b".py" not in path.read_bytes()
        graph = onnx.load(str(path)).graph
        for specs, values in ((spec.inputs, graph.input), (spec.outputs, graph.output)):
            assert [v.name for v in values] == [s.name for s in specs], name
            shapes = [tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values]
            assert shapes == [s.shape for s in specs], name


def test_a_graph_with_other_outputs_is_refused(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    spec = opened.bundle.component("lr_encoder")
    feeds = draw_inputs("lr_encoder", opened.preset, np.random.default_rng(0))
    other = torch.nn.Conv2d(3, 5, 2, stride=2).eval()
    with pytest.raises(
        ParityError, match=r"has outputs \[\('lr_latent', 'float32', \(1, 5, 16, 16"
    ):
        to_onnx_module.to_onnx(other, feeds, spec.inputs, spec.outputs)


def weight_graph(weight: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """A graph that computes x · weight."""
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer/MatMul")],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("scale", "halved"),
    [(1.0, True), (1e5, False), (1e-8, False)],
    ids=["ordinary", "overflows", "underflows"],
)
def test_only_weights_that_float16_can_hold_are_halved(scale: float, halved: bool) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)) * scale
    model = halve_weights(weight_graph(weight))
    onnx.checker.check_model(model, full_check=True)
    stored = TensorProto.FLOAT16 if halved else TensorProto.FLOAT
    assert model.graph.initializer[0].data_type == stored
    x = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    got = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, x @ weight, rtol=2e-2, atol=4e-2 * scale)


def test_fp16_files_are_half_the_size_and_lossless_for_fp16_weights(exported: Path) -> None:
    bundle = open_bundle(exported)
    spec = bundle.component("connector")
    by_precision = {a.precision: a for a in spec.artifacts if a.format == "onnx"}
    graphs = {
        precision: onnx.load(str(bundle.path(artifact.files[0]))).graph
        for precision, artifact in by_precision.items()
    }
    weight = {
        p: sum(len(t.raw_data) for t in g.initializer if np.prod(t.dims) >= 1024)
        for p, g in graphs.items()
    }
    assert weight["fp16"] == weight["fp32"] / 2
    full = {t.name: numpy_helper.to_array(t) for t in graphs["fp32"].initializer}
    for tensor in graphs["fp16"].initializer:
        stored = numpy_helper.to_array(tensor)
        np.testing.assert_array_equal(stored, full[tensor.name.removesuffix(":half")])


def test_large_graphs_store_weights_in_a_file_beside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import onnxruntime
    import openvino

    monkeypatch.setattr(to_onnx_module, "SINGLE_FILE_LIMIT", 1000)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    names = save_onnx(weight_graph(weight), tmp_path / "net.onnx")
    assert names == ("net.onnx", "net.onnx.data")
    assert (tmp_path / names[0]).stat().st_size < 1000
    x = np.ones((1, 64), np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / names[0]))
    compiled = openvino.Core().compile_model(
        str(tmp_path / names[0]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for got in (session.run(None, {"x": x})[0], compiled({"x": x})["y"]):
        np.testing.assert_allclose(got, x @ weight, rtol=1e-4, atol=1e-4)


def test_a_missed_gate_stops_the_build_and_names_the_component(
    exported: Path,
    checkpoint: Path,
    recorded_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Planted: one weight of the exported decoder is scaled by 1.1."""
    out = shutil.copytree(exported, tmp_path / "micro")
    before = snapshot(out)
    honest = artifacts_module.to_onnx

    def perturbed(*arguments: Any) -> onnx.ModelProto:
        model = honest(*arguments)
        weight = next(t for t in model.graph.initializer if t.name == "out.0.weight")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.1, weight.name))
        return model

    monkeypatch.setattr(artifacts_module, "to_onnx", perturbed)
    command = ["--checkpoint", str(checkpoint), "--out", str(out), "--components", "decoder"]
    command += ["--precisions", "fp32", "--calibration-set", str(recorded_file)]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "error: decoder at fp32 on onnxruntime: " in message
    assert "gate 60 dB" in message
    assert snapshot(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["micro"]

    assert main([*command, "--allow-failing", "decoder"]) == 0
    manifest = open_bundle(out).manifest
    assert manifest.allow_failing == ("decoder",)
    (artifact,) = manifest.components["decoder"].artifacts
    assert artifact.parity is not None
    assert artifact.parity["backends"]["openvino"]["psnr"] < 60


def test_components_not_named_are_kept(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = shutil.copytree(exported, tmp_path / "micro")
    before = snapshot(out)
    command = ["--checkpoint", str(checkpoint), "--components", "lr_encoder"]
    command += ["--precisions", "fp32"]
    assert main([*command, "--out", str(out)]) == 0
    after = snapshot(out)
    gone = {path for path in before if path not in after}
    assert gone == {
        f"lr_encoder/{name}" for name in ("int8.onnx", "fp16.safetensors", "fp32.safetensors")
    }
    assert {p for p in after if after[p] != before[p]} == {
        "manifest.json"
    }  # export is reproducible

    assert (
        main([*command, "--out", str(tmp_path / "new")]) == 1
    )  # no bundle to take components from
    assert not (tmp_path / "new").exists()


def test_the_diffusion_ships_on_request(
    exported: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its UNet serves more steps than the student's; a bundle without it says so."""
    opened = open_checkpoint(checkpoint)
    manifest = opened.bundle.manifest
    torch.manual_seed(1)
    both = write_checkpoint(
        {**opened.networks, "diffusion_unet": build_component("diffusion_unet", "micro")},
        tmp_path / "both",
        preset_name="micro",
        version="1",
        residual_scale=manifest.latent.residual_scale,
        diffusion_scale=[0.5, 1, 1, 2],
        provenance=manifest.provenance,
        sampler=replace(manifest.sampler, few_steps=2, diffusion="separate"),
        labels={name: spec.labels for name, spec in manifest.components.items()},
    )
    assert open_bundle(both).manifest.unets["diffusion_unet"][0] == 3
    command = ["--precisions", "fp32", "--checkpoint"]
    assert main([*command, str(checkpoint), "--diffusion", "--out", str(tmp_path / "x")]) == 1
    assert "has no component 'diffusion_unet'" in capsys.readouterr().err
    command += [str(both), "--components"]  # the others are taken over
    for name, more in (("small", ("unet",)), ("large", ("unet,diffusion_unet", "--diffusion"))):
        out = shutil.copytree(exported, tmp_path / name)
        assert main([*command, *more, "--out", str(out)]) == 0
    small, large = (Upscaler(tmp_path / name, "onnxruntime") for name in ("small", "large"))
    assert "diffusion_unet" not in small.bundle.manifest.components
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    with pytest.raises(OptionError, match="3 steps need its diffusion UNet"):
        small(picture, steps=3)
    few, many = (large(picture, steps=steps) for steps in (2, 3))
    assert few.timings["unet"] and "diffusion_unet" not in few.timings
    assert many.timings["diffusion_unet"] and "unet" not in many.timings
    same = Upscaler(both, "torch")(picture, steps=3)
    assert np.abs(np.subtract(same.image, many.image, dtype=np.int16)).max() <= 2


def test_weights_of_two_checkpoints_are_not_mixed(
    exported: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_checkpoint(checkpoint)
    networks = dict(opened.networks)
    networks["decoder"] = build_component("decoder", "micro")
    manifest = opened.bundle.manifest
    other = write_checkpoint(
        networks,
        tmp_path / "other",
        preset_name="micro",
        version="1",
        residual_scale=manifest.latent.residual_scale,
        provenance=manifest.provenance,
        sampler=manifest.sampler,
        labels={name: spec.labels for name, spec in manifest.components.items()},
    )
    out = shutil.copytree(exported, tmp_path / "micro")
    command = ["--checkpoint", str(other), "--out", str(out), "--components", "lr_encoder"]
    assert main([*command, "--precisions", "fp32"]) == 1
    assert "'decoder' is not among --components" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": ("tflite",)}, r"'tflite' is not supported; there are onnx \(read by"),
        ({"precisions": ("int2",)}, "'int2' is not supported; there are fp32, fp16, int8, int4"),
        ({"components": ("vae",)}, "'vae' is not supported; there are depth, "),
        ({"precisions": ("int8",)}, "int8 needs recorded inputs"),
        ({"quantization": {"tokenizer": {}}}, "'tokenizer' is never quantized"),
        ({"quantization": {"unet": {"sample": 3}}}, "did you mean 'samples'"),
        ({"formats": ()}, "at least one format"),
    ],
)
def test_bad_requests_are_refused_at_once(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        ExportConfig(tmp_path, tmp_path / "out", **{"precisions": ("fp32",), **changes})


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is not a bundle"), staged_bundle(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").exists()


def test_a_failed_export_leaves_the_older_bundle(tmp_path: Path) -> None:
    out = tmp_path / "nano"
    with staged_bundle(out) as root:
        (root / "manifest.json").write_text("old")
        assert not out.exists()

    def fail_halfway() -> None:
        with staged_bundle(out) as root:
            (root / "manifest.json").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert (out / "manifest.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_checkpoint_opens_with_its_networks_and_shapes(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    assert set(opened.networks) == set(COMPONENTS) - {"diffusion_unet"}
    for name, network in opened.networks.items():
        assert not network.training
        feeds = draw_inputs(name, preset("micro"), np.random.default_rng(3))
        outputs = run_network(network, name, feeds)
        for spec in opened.bundle.component(name).outputs:
            assert outputs[spec.name].shape == spec.shape
            assert outputs[spec.name].dtype.name == spec.dtype
        for key, value in network.state_dict().items():
            assert (value == value.half().to(value.dtype)).all(), key


def test_a_checkpoint_that_fp16_cannot_hold_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint)
    opened.networks["unet"].net.conv_in.weight[0, 0, 0, 0] = 1e6
    manifest = opened.bundle.manifest
    with pytest.raises(BundleError, match=r"'net.conv_in.weight' of 'unet' is not finite at fp16"):
        write_checkpoint(
            opened.networks,
            tmp_path / "new",
            preset_name="micro",
            version="0",
            residual_scale=manifest.latent.residual_scale,
            provenance=manifest.provenance,
        )
    assert not (tmp_path / "new").exists()
