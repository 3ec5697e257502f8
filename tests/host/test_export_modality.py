"""Conversion of published checkpoints: refusals, options, bundles, and Core ML."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import bundle_factory
import numpy as np
import onnx
import pytest
from modality_factory import READERS, picture
from onnx import numpy_helper
from published_checkpoints import TASKS
from safetensors.torch import load_file, save_file

from mmsr_edge import Upscaler
from mmsr_edge.bundle import open_bundle
from mmsr_edge.converters import artifacts as artifacts_module
from mmsr_edge.converters import export_modality as export_module
from mmsr_edge.converters.caption_networks import check_captioner
from mmsr_edge.converters.export_modality import ModalityConfig, export_modality, main
from mmsr_edge.converters.published import open_published
from mmsr_edge.errors import BundleError, OptionError, OutputError, ParityError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mmsr_edge.bundle import Bundle


# --- Checkpoints that are refused ---------------------------------------------------------------


@pytest.fixture
def spoiled(published: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(published(name), tmp_path / name)


def rewrite(path: Path, **changes: Any) -> None:
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def test_a_missing_weight_is_refused(spoiled: Callable[[str], Path]) -> None:
    """`transformers` itself only warns."""
    folder = spoiled("dpt")
    weights = load_file(folder / "model.safetensors")
    del weights["head.head.0.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BundleError, match=r"lacks 1 of the network's weights, such as 'head\.head"):
        open_published(folder, "depth")


@pytest.mark.parametrize(
    ("file", "changes", "complaint"),
    [
        ("config.json", {"model_type": "resnet"}, "type 'resnet'; --task depth converts depth_any"),
        ("config.json", {"model_type": "blip"}, "use --task caption"),
        ("preprocessor_config.json", {"do_center_crop": True}, "do_center_crop is not supported"),
        ("preprocessor_config.json", {"image_mean": None}, "image_mean None must be three"),
        ("preprocessor_config.json", {"size": {"height": 5, "width": 8}}, "inputs are 5x8"),
    ],
)
def test_unsupported_configs_are_refused(
    file: str, changes: dict[str, Any], complaint: str, spoiled: Callable[[str], Path]
) -> None:
    folder = spoiled("dpt")
    rewrite(folder / file, **changes)
    with pytest.raises(BundleError, match=complaint):
        open_published(folder, "depth")


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("config.json", "config.json is missing"),
        ("preprocessor_config.json", "has no preprocessor_config.json"),
        ("model.safetensors", "has no weights"),
    ],
)
def test_a_missing_file_is_named(file: str, complaint: str, spoiled: Callable[[str], Path]) -> None:
    folder = spoiled("dpt")
    (folder / file).unlink()
    with pytest.raises(BundleError, match=complaint):
        open_published(folder, "depth")


def test_sides_are_limited_to_those_of_the_network(published: Callable[[str], Path]) -> None:
    depth = open_published(published("depth_anything"), "depth")
    assert (depth.side(None), depth.side(70)) == (126, 70)
    with pytest.raises(OptionError, match="side 100: depth_anything takes multiples of 14"):
        depth.side(100)
    captioner = open_published(published("blip"), "caption")
    with pytest.raises(OptionError, match="takes pictures of 64 only"):
        captioner.side(128)


def test_settings_that_change_greedy_choices_are_refused(spoiled: Callable[[str], Path]) -> None:
    folder = spoiled("vit_gpt2")
    check_captioner(open_published(folder, "caption"))
    rewrite(folder / "generation_config.json", repetition_penalty=1.5)
    with pytest.raises(BundleError, match=r"repetition_penalty = 1\.5"):
        check_captioner(open_published(folder, "caption"))


# --- Bundles ------------------------------------------------------------------------------------


def test_components_are_added_and_the_others_kept(
    converted: Callable[[str], Bundle], base: Path, published: Callable[[str], Path]
) -> None:
    bundle, before = converted("vit_gpt2"), open_bundle(base)
    added = set(bundle.manifest.components) - set(before.manifest.components)
    assert added == {"captioner", "caption_decoder"}
    for name, spec in before.manifest.components.items():
        assert bundle.manifest.components[name] == spec
        for file in (f for a in spec.artifacts for f in a.files):
            assert bundle.path(file).read_bytes() == before.path(file).read_bytes()
    provenance = bundle.manifest.provenance
    assert provenance.licence == "CC0-1.0 AND MIT"
    assert provenance.sources[:1] == before.manifest.provenance.sources
    source = provenance.sources[1]
    assert (source["name"], source["licence"], source["used_for"]) == ("vit_gpt2", "MIT", "caption")
    (artifact,) = bundle.component("captioner").artifacts
    card = artifact.parity
    assert card is not None
    assert card["checkpoint"] == source["sha256"]["model.safetensors"]
    assert set(card["backends"]) == set(READERS)
    assert all(score["psnr"] >= 60 for score in card["backends"].values())


@pytest.mark.slow
def test_a_bundle_with_depth_and_classes_upscales(
    published: Callable[[str], Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the command line: depth at int8, then classes, added to the same bundle."""
    base = bundle_factory.make_bundle(tmp_path / "tiny")
    out = tmp_path / "out"
    common = ["--out", str(out), "--calibration", str(photos), "--side", "32"]
    depth = ["--task", "depth", "--source", str(published("dpt")), "--precisions", "int8"]
    assert main([*depth, *common, "--bundle", str(base)]) == 1
    assert "declares no licence" in capsys.readouterr().err
    assert not out.exists()
    (published("dpt") / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# DPT\n")
    assert main([*depth, *common, "--bundle", str(base), "--allow-failing"]) == 0
    assert "onnx int8" in capsys.readouterr().out
    classes = ["--task", "segmentation", "--source", str(published("segformer"))]
    assert main([*classes, *common, "--bundle", str(out), "--licence", "MIT"]) == 0
    bundle = open_bundle(out)
    assert bundle.manifest.provenance.licence == "CC0-1.0 AND mit AND MIT"
    assert bundle.manifest.allow_failing == ("depth",)
    (artifact,) = bundle.component("depth").artifacts
    assert artifact.precision == "int8" and artifact.quantization is not None
    result = Upscaler(out, "onnxruntime", threads=1).upscale(picture(0).resize((40, 40)), seed=1)
    plain = Upscaler(base, "onnxruntime", threads=1).upscale(picture(0).resize((40, 40)), seed=1)
    assert np.abs(np.asarray(result.image, int) - np.asarray(plain.image, int)).mean() > 1


def test_a_missed_gate_leaves_no_bundle(
    published: Callable[[str], Path],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted: a weight scaled by 1.1, and another caption."""
    honest, out = artifacts_module.to_onnx, tmp_path / "out"
    config = ModalityConfig(
        "caption", published("vit_gpt2"), out, base, precisions=("fp32",), licence="MIT"
    )

    def perturbed(*arguments: Any) -> onnx.ModelProto:
        model = honest(*arguments)
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.1, weight.name))
        return model

    with monkeypatch.context() as patch:
        patch.setattr(artifacts_module, "to_onnx", perturbed)
        with pytest.raises(ParityError, match="captioner at fp32 on onnxruntime"):
            export_modality(config)
    monkeypatch.setattr(export_module, "written", lambda *_: [0, 1, 2])
    with pytest.raises(ParityError, match="captions at onnx fp32 on onnxruntime: 0 of 4"):
        export_modality(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"task": "pose"}, "task 'pose' is not supported"),
        ({"formats": ("torch",)}, "format 'torch' is not supported"),
        ({"precisions": ("int2",)}, "precision 'int2'"),
        ({"precisions": ("int8",)}, "give --calibration"),
        ({"precisions": ()}, "at least one"),
        ({"quantization": {"unet": {}}}, "'unet' is not part of --task depth"),
        ({"length": 9}, "--length is for --task caption"),
        ({"task": "caption", "depth_is": "metric"}, "--depth-is is for --task depth"),
        ({"task": "caption", "length": 1}, "length 1 must be >= 2"),
    ],
)
def test_options_are_checked_first(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"task": "depth", "source": tmp_path, "out": tmp_path / "o"}
    with pytest.raises(OptionError, match=complaint):
        ModalityConfig(**{**settings, **changes})


def test_a_folder_that_is_no_bundle_is_not_replaced(
    published: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "keep.txt").touch()
    config = partial(ModalityConfig, "depth", published("dpt"), licence="MIT")
    with pytest.raises(OutputError, match="is not a bundle"):
        export_modality(config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


# --- Core ML ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TASKS))
def test_core_ml_programs_agree(
    name: str, published: Callable[[str], Path], base: Path, tmp_path: Path
) -> None:
    """Gated with the interpreter: 60 dB at float32, 40 dB at float16, and equal captions."""
    pytest.importorskip("coremltools")
    config = ModalityConfig(
        TASKS[name],  # type: ignore[arg-type]
        published(name),
        tmp_path / "out",
        base,
        formats=("coreml",),
        precisions=("fp32", "fp16"),
        licence="MIT",
    )
    if name == "mask2former":
        with pytest.raises(OptionError, match="mask2former does not convert to Core ML"):
            export_modality(config)
        return
    made = export_modality(config)
    assert {(row.artifact.format, row.artifact.precision) for row in made.rows} == {
        ("coreml", "fp32"),
        ("coreml", "fp16"),
    }
    assert all(share == 1 for where, share in made.captions.items() if "fp32" in where)
