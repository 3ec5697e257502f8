"""Published checkpoints as components: the files against `transformers`' own output.

The reference is the libraries' whole chain (image processor, network, postprocessing) on the same
picture; none of our own code takes part in it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import bundle_factory
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file

from mmsr_edge import Upscaler
from mmsr_edge.bundle import open_bundle, write_manifest
from mmsr_edge.converters import artifacts as artifacts_module
from mmsr_edge.converters import export_modality as export_module
from mmsr_edge.converters.artifacts import CHECKERS
from mmsr_edge.converters.caption_networks import check_captioner, vocabulary
from mmsr_edge.converters.export_modality import ModalityConfig, export_modality, main
from mmsr_edge.converters.map_networks import (
    DepthNetwork,
    depth_network,
    pillow_matrix,
    segmentation_network,
    torch_matrix,
)
from mmsr_edge.converters.published import Preprocessing, open_published
from mmsr_edge.errors import BundleError, OptionError, OutputError, ParityError
from mmsr_edge.modalities.caption import GreedyCaptioner
from mmsr_edge.modalities.vocabulary import bundle_vocabulary
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mmsr_edge.bundle import Bundle

pytestmark = pytest.mark.host

TASKS = {
    "depth_anything": "depth",
    "dpt": "depth",
    "segformer": "segmentation",
    "mask2former": "segmentation",
    "vit_gpt2": "caption",
    "blip": "caption",
}
SIDE = 256


@pytest.fixture(scope="module")
def makers() -> dict[str, Callable[[Path], Path]]:
    """The module beside this file; a test's folder is not on the path."""
    import importlib.util
    from pathlib import Path

    path = Path(__file__).with_name("published_checkpoints.py")
    spec = importlib.util.spec_from_file_location("published_checkpoints", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MAKERS


@pytest.fixture(scope="module")
def published(
    makers: dict[str, Callable[[Path], Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A checkpoint by name, made once."""
    root = tmp_path_factory.mktemp("published")

    def get(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else makers[name](folder)

    return get


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose maps have 256 pixels, by its manifest; its tokenizer is never run here."""
    root = bundle_factory.make_bundle(tmp_path_factory.mktemp("base") / "tiny")
    manifest = open_bundle(root).manifest
    tokenizer = manifest.components["tokenizer"]
    inputs = (replace(tokenizer.inputs[0], shape=(1, 3, SIDE, SIDE)),)
    components = {**manifest.components, "tokenizer": replace(tokenizer, inputs=inputs)}
    write_manifest(root, replace(manifest, components=components))
    return root


@pytest.fixture(scope="module")
def converted(
    published: Callable[[str], Path], base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    """A bundle with a checkpoint in it, fp32, converted once."""
    root = tmp_path_factory.mktemp("converted")

    def get(name: str) -> Bundle:
        out = root / name
        if not out.exists():
            config = ModalityConfig(
                TASKS[name],  # type: ignore[arg-type]
                published(name),
                out,
                bundle=base,
                precisions=("fp32",),
                licence="MIT",
            )
            export_modality(config)
        return open_bundle(out)

    return get


def picture(seed: int) -> Image.Image:
    """Coloured blocks, with noise on them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (16, 16, 3)).repeat(16, 0).repeat(16, 1)
    return Image.fromarray((blocks + rng.integers(-12, 13, blocks.shape)).clip(0, 255).astype("u1"))


def image_of(source: Image.Image) -> np.ndarray[Any, Any]:
    """[1, 3, s, s] in [-1, 1], as the pipeline hands it over."""
    return np.asarray(source, np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - 1


def pixels_of(source: Image.Image, processor: Any, side: int) -> torch.Tensor:
    """The library's processing of a picture; resized before it, for it would round to 8 bits."""
    if source.size != (side, side):
        filtered = Image.Resampling(processor.resample)
        planes = [
            np.asarray(plane.convert("F").resize((side, side), filtered))
            for plane in source.split()
        ]
        whole = np.stack(planes)
    else:
        whole = np.asarray(source, np.float32).transpose(2, 0, 1)
    return processor(whole, return_tensors="pt", do_resize=False)["pixel_values"]


def run_file(bundle: Bundle, reader: str, component: str, feeds: dict[str, Any]) -> Any:
    session = open_session(bundle, component, CHECKERS[reader], SessionOptions(threads=1))
    return session.run(feeds)


READERS = ("onnxruntime", "openvino")


@pytest.mark.parametrize(
    ("name", "model", "processor", "side"),
    [
        ("depth_anything", "DepthAnythingForDepthEstimation", "DPTImageProcessorPil", 126),
        ("dpt", "DPTForDepthEstimation", "DPTImageProcessorPil", 96),
    ],
)
def test_depth_is_that_of_transformers(
    name: str,
    model: str,
    processor: str,
    side: int,
    published: Callable[[str], Path],
    converted: Callable[[str], Bundle],
) -> None:
    network = getattr(hf, model).from_pretrained(published(name)).eval()
    chain = getattr(hf, processor).from_pretrained(published(name))
    with torch.inference_mode():
        outputs = network(pixels_of(picture(3), chain, side))
    (found,) = chain.post_process_depth_estimation(outputs, [(SIDE, SIDE)])
    depth = found["predicted_depth"].numpy()
    wanted = (depth - depth.min()) / (depth.max() - depth.min())  # large is near
    assert wanted.std() > 0.05
    for reader in READERS:
        got = run_file(converted(name), reader, "depth", {"image": image_of(picture(3))})["depth"]
        assert got.shape == (1, 1, SIDE, SIDE)
        np.testing.assert_allclose(got[0, 0], wanted, atol=1e-3, err_msg=reader)


@pytest.mark.parametrize(
    ("name", "model", "processor", "side"),
    [
        (
            "segformer",
            "SegformerForSemanticSegmentation",
            "SegformerImageProcessorPil",
            256,
        ),
        pytest.param(
            "mask2former",
            "Mask2FormerForUniversalSegmentation",
            "Mask2FormerImageProcessorPil",
            384,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_classes_are_those_of_transformers(
    name: str,
    model: str,
    processor: str,
    side: int,
    published: Callable[[str], Path],
    converted: Callable[[str], Bundle],
) -> None:
    network = getattr(hf, model).from_pretrained(published(name)).eval()
    chain = getattr(hf, processor).from_pretrained(published(name))
    with torch.inference_mode():
        outputs = network(pixels_of(picture(3), chain, side))
    (found,) = chain.post_process_semantic_segmentation(outputs, [(SIDE, SIDE)])
    wanted = found.numpy()
    assert (np.bincount(wanted.ravel()) > 0.01 * wanted.size).sum() >= 2
    for reader in READERS:
        feeds = {"image": image_of(picture(3))}
        got = run_file(converted(name), reader, "segmentation", feeds)["classes"]
        assert got.dtype == np.int64
        assert (got[0] == wanted).mean() > 0.999, reader  # a tie may fall either way


@pytest.mark.parametrize(
    ("name", "model", "processor"),
    [
        ("vit_gpt2", "VisionEncoderDecoderModel", "ViTImageProcessorPil"),
        ("blip", "BlipForConditionalGeneration", "BlipImageProcessorPil"),
    ],
)
def test_captions_are_those_of_transformers(
    name: str,
    model: str,
    processor: str,
    published: Callable[[str], Path],
    converted: Callable[[str], Bundle],
) -> None:
    network = getattr(hf, model).from_pretrained(published(name)).eval()
    chain = getattr(hf, processor).from_pretrained(published(name))
    tokenizer = hf.AutoTokenizer.from_pretrained(published(name))
    bundle = converted(name)
    words = bundle_vocabulary(bundle)
    seen = set()
    for reader in READERS:
        sessions = {
            part: open_session(bundle, part, CHECKERS[reader], SessionOptions(threads=1))
            for part in ("captioner", "caption_decoder")
        }
        captioner = GreedyCaptioner(
            lambda part, feeds, sessions=sessions: sessions[part].run(feeds),
            bundle.component("caption_decoder"),
            words,
        )
        for seed in range(3):
            source = picture(seed)
            wanted = network.generate(
                pixel_values=pixels_of(source, chain, 64), do_sample=False, max_new_tokens=20
            )[0].tolist()
            assert captioner.ids(image_of(source)) == wanted
            text = tokenizer.decode(wanted, skip_special_tokens=True).strip()
            assert captioner.caption(image_of(source)) == text
            seen.add(tuple(wanted))
    assert len(seen) == 3  # the picture matters


def test_texts_are_those_of_the_tokenizers(published: Callable[[str], Path]) -> None:
    rng = np.random.default_rng(0)
    for name in ("vit_gpt2", "blip"):
        words = vocabulary(open_published(published(name), "caption"), None)
        tokenizer = hf.AutoTokenizer.from_pretrained(published(name))
        for _ in range(50):
            ids = rng.integers(0, len(words.tokens), 12).tolist()
            wanted = tokenizer.decode(ids, skip_special_tokens=True)
            assert words.text(ids).strip() == wanted.strip()


def test_the_picture_is_looked_at_once(converted: Callable[[str], Bundle]) -> None:
    """The step that fills the cross-attention's cache leaves nothing of the decoder behind."""
    bundle = converted("vit_gpt2")

    def weights(part: str) -> set[str]:
        path = bundle.path(bundle.component(part).artifacts[0].files[0])
        return {tensor.name for tensor in onnx.load(str(path)).graph.initializer}

    assert any("crossattention" in name for name in weights("captioner"))
    assert not any(".mlp." in name and "decoder" in name for name in weights("captioner"))
    assert not any("encoder.layer" in name for name in weights("caption_decoder"))


def test_positions_are_constants(converted: Callable[[str], Bundle]) -> None:
    bundle = converted("depth_anything")
    graph = onnx.load(str(bundle.path(bundle.component("depth").artifacts[0].files[0]))).graph
    modes = [
        attribute.s
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Resize" and attribute.name == "mode"
    ]
    assert modes and b"cubic" not in modes


# --- The parts ----------------------------------------------------------------------------------


def test_resizing_is_that_of_pillow_and_torch() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 40)).astype(np.float32)
    for filtered in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        for to in (17, 63):
            rows = pillow_matrix(40, to, filtered).numpy()
            wanted = np.asarray(Image.fromarray(plane).resize((to, to), filtered))
            np.testing.assert_allclose(rows @ plane @ rows.T, wanted, atol=1e-5)
    rows = torch_matrix(40, 63, "bicubic")
    x = torch.from_numpy(plane)
    wanted = F.interpolate(x[None, None], size=(63, 63), mode="bicubic", align_corners=False)[0, 0]
    torch.testing.assert_close(rows @ x @ rows.T, wanted, atol=1e-5, rtol=0)


def ramp_checkpoint(**config: Any) -> Any:
    """A checkpoint whose network finds distances, or nearnesses, 1, 2, 3 from left to right."""

    class Ramp(torch.nn.Module):
        config = SimpleNamespace(model_type="dpt")

        def forward(self, pixel_values: torch.Tensor) -> Any:
            row = torch.arange(1.0, 1 + pixel_values.shape[-1])
            return SimpleNamespace(predicted_depth=row.expand(1, len(row), -1))

    model = Ramp()
    for key, value in config.items():
        setattr(model.config, key, value)
    given = Preprocessing(8, Image.Resampling.BILINEAR, (1.0,) * 3, (0.0,) * 3)
    return SimpleNamespace(model=model, preprocessing=given, kind=model.config.model_type)


@pytest.mark.parametrize("metric", [False, True])
def test_near_is_one_whatever_the_network_predicts(metric: bool) -> None:
    network = DepthNetwork(ramp_checkpoint(), 8, 8, metric)
    row = network(torch.zeros(1, 3, 8, 8))[0, 0, 4].numpy()
    values = np.arange(1.0, 9)
    near = 1 / values if metric else values
    np.testing.assert_allclose(row, (near - near.min()) / np.ptp(near), atol=1e-5)


def test_a_flat_depth_is_zero_and_finite() -> None:
    checkpoint = ramp_checkpoint()
    checkpoint.model.forward = lambda pixel_values: SimpleNamespace(
        predicted_depth=torch.full(pixel_values.shape[1:][:1] + pixel_values.shape[2:], 5.0)[:1]
    )
    assert (DepthNetwork(checkpoint, 8, 8, False)(torch.zeros(1, 3, 8, 8)) == 0).all()


def test_what_depth_means_is_never_guessed() -> None:
    unclear = ramp_checkpoint(backbone_config=SimpleNamespace(model_type="dinov2"))
    with pytest.raises(OptionError, match="give --depth-is"):
        depth_network(unclear, 8, 8, None)
    assert depth_network(unclear, 8, 8, "metric").metric
    metric = ramp_checkpoint(model_type="depth_anything", depth_estimation_type="metric")
    assert depth_network(metric, 8, 8, None).metric
    with pytest.raises(OptionError, match="by its config this network's is 'metric'"):
        depth_network(metric, 8, 8, "inverse")


def test_more_classes_than_colours_are_refused() -> None:
    many: Any = SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(num_labels=300)), kind="segformer"
    )
    with pytest.raises(BundleError, match="300 classes"):
        segmentation_network(many, 8, 8)


# --- Checkpoints that are refused ---------------------------------------------------------------


@pytest.fixture
def spoiled(published: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(published(name), tmp_path / name)


def rewrite(path: Path, **changes: Any) -> None:
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def test_a_missing_weight_is_not_drawn(spoiled: Callable[[str], Path]) -> None:
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
        ("config.json", {"model_type": "blip"}, "it is one for --task caption"),
        ("preprocessor_config.json", {"do_center_crop": True}, "do_center_crop is not supported"),
        ("preprocessor_config.json", {"image_mean": None}, "image_mean None must be three"),
        ("preprocessor_config.json", {"size": {"height": 5, "width": 8}}, "pictures of 5x8"),
    ],
)
def test_what_is_not_supported_is_said(
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


def test_sides_are_those_the_network_can_have(published: Callable[[str], Path]) -> None:
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


def test_a_component_is_added_and_the_rest_stays(
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
    """From the command line: depth at int8 on photographs, then classes, replaced in place."""
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
    assert np.abs(np.asarray(result.image, int) - np.asarray(plain.image, int)).max() > 0


def test_a_missed_gate_leaves_no_bundle(
    published: Callable[[str], Path],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The planted violations: a weight off by a tenth, and a word that is another."""
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
        ({"quantization": {"unet": {}}}, "'unet' is not made by --task depth"),
        ({"length": 9}, "--length is for --task caption"),
        ({"task": "caption", "depth_is": "metric"}, "--depth-is is for --task depth"),
        ({"task": "caption", "length": 1}, "length 1 must be >= 2"),
    ],
)
def test_options_are_checked_first(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"task": "depth", "source": tmp_path, "out": tmp_path / "o"}
    with pytest.raises(OptionError, match=complaint):
        ModalityConfig(**{**settings, **changes})


def test_no_folder_of_the_users_is_lost(published: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "keep.txt").touch()
    config = partial(ModalityConfig, "depth", published("dpt"), licence="MIT")
    with pytest.raises(OutputError, match="is no bundle"):
        export_modality(config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


# --- Core ML ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TASKS))
def test_core_ml_programs_do_the_same(
    name: str, published: Callable[[str], Path], base: Path, tmp_path: Path
) -> None:
    """Gated by the interpreter: 60 dB at float32, 40 dB at float16, and equal captions."""
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
