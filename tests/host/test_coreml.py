"""Core ML: exported packages read back and run, requests, and operators beyond our networks'."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from coreml_factory import GATES, decibels, feeds_of, worst
from diffusers.models.attention import BasicTransformerBlock
from torch import nn
from torch.nn import functional as F

from mmsr_edge.bundle import REQUIRED, open_bundle
from mmsr_edge.converters.artifacts import INTERPRETER, Source
from mmsr_edge.converters.export_all import ExportConfig, main
from mmsr_edge.converters.mil import MILProgram
from mmsr_edge.converters.quantize import QuantConfig
from mmsr_edge.converters.report import pipeline_table
from mmsr_edge.converters.split_attention import SplitAttention, split_attention
from mmsr_edge.converters.to_coreml import convert, package_files
from mmsr_edge.errors import BundleError, MissingExtraError, OptionError, ParityError
from mmsr_edge.models.checkpoint import Checkpoint, open_checkpoint, run_network
from mmsr_edge.models.signatures import draw_inputs, output_names
from mmsr_edge.runtimes.base import SessionOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytest.importorskip("coremltools")


MODALITY_NETWORKS = ("depth", "segmentation", "captioner")
"""Components that take the whole picture; all have int8 weights."""
QUANTIZED = {"lr_encoder", "unet", "decoder"}


def tensor_of(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(checkpoint)


# --- The export ---------------------------------------------------------------------------------


def test_a_bundle_of_packages_is_complete_and_within_its_gates(coreml_bundle: Path) -> None:
    bundle = open_bundle(coreml_bundle)
    assert tuple(bundle.manifest.components) == (*MODALITY_NETWORKS, "degradation", *REQUIRED)
    listed = {"manifest.json"}
    for name, spec in bundle.manifest.components.items():
        expected = ["int8", "fp16"] if name in (*MODALITY_NETWORKS, *QUANTIZED) else ["fp16"]
        assert [a.precision for a in spec.artifacts] == expected, name
        for artifact in spec.artifacts:
            paths = [file.path for file in artifact.files]
            listed.update(paths)
            assert paths[0] == (
                f"{name}/{artifact.precision}.mlpackage/Data/com.apple.CoreML/model.mlmodel"
            )
            assert artifact.tools["coremltools"]
            assert (artifact.quantization is not None) == (artifact.precision == "int8")
            card = artifact.parity
            assert card is not None
            score = card["backends"]["mil"]
            assert score["finite"] and score["repeats"]
            assert score["psnr"] is None or score["psnr"] >= GATES[artifact.precision]
    found = {
        p.relative_to(coreml_bundle).as_posix() for p in coreml_bundle.rglob("*") if p.is_file()
    }
    assert found == listed
    lines = pipeline_table(bundle.manifest).splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "whole pipeline at coreml int8 on mil",
        "whole pipeline at coreml fp16 on mil",
    ]


@pytest.mark.parametrize("name", REQUIRED)
def test_every_component_agrees_with_its_network(
    coreml_bundle: Path, opened: Checkpoint, name: str
) -> None:
    """With other inputs and another formula than the parity card's."""
    for precision in ("fp16", "int8") if name in QUANTIZED else ("fp16",):
        package = coreml_bundle / name / f"{precision}.mlpackage"
        assert worst(opened, name, package) >= GATES[precision]
        program = MILProgram.open(package)
        spec = opened.bundle.component(name)
        for specs, ports in ((spec.inputs, program.inputs), (spec.outputs, program.outputs)):
            assert [(p.name, p.shape) for p in ports] == [(s.name, s.shape) for s in specs]
            assert [p.dtype.name for p in ports] == [
                s.dtype.replace("int64", "int32") for s in specs
            ]


def test_codes_agree(coreml_bundle: Path, opened: Checkpoint) -> None:
    feeds = feeds_of(opened, "tokenizer")
    reference = run_network(opened.networks["tokenizer"], "tokenizer", feeds)
    indices = MILProgram.open(coreml_bundle / "tokenizer" / "fp16.mlpackage").run(feeds)["indices"]
    assert (indices == reference["indices"]).mean() >= 0.98
    assert len(set(indices.flatten())) > 10  # a constant would agree with anything


def test_the_unets_attention_is_in_the_neural_engines_form(
    coreml_bundle: Path, opened: Checkpoint
) -> None:
    unet, feeds = opened.networks["unet"], feeds_of(opened, "unet")
    blocks = [m for m in unet.modules() if isinstance(m, BasicTransformerBlock)]
    attentions = [a for b in blocks for a in (b.attn1, b.attn2)]
    before = [a.processor for a in attentions]
    expected = run_network(unet, "unet", feeds)["prediction"]
    with split_attention(unet) as count:
        assert count == len(attentions) == 8
        assert all(isinstance(a.processor, SplitAttention) for a in attentions)
        split = run_network(unet, "unet", feeds)["prediction"]
        mask = torch.zeros(1, 1, 4)
        with pytest.raises(NotImplementedError, match="no mask"):
            attentions[0](torch.zeros(1, 4, attentions[0].to_q.in_features), attention_mask=mask)
    assert [a.processor for a in attentions] == before
    np.testing.assert_allclose(split, expected, atol=1e-5)
    # A softmax for each head, and projections as convolutions. The linear layers left are those of
    # the time embedding, of the residual blocks and of the feed-forward networks.
    kinds = MILProgram.open(coreml_bundle / "unet" / "fp16.mlpackage").kinds
    assert kinds["softmax"] == sum(a.heads for a in attentions)
    layers = [n for n, m in unet.named_modules() if isinstance(m, nn.Linear)]
    assert kinds["linear"] == sum(".attn" not in name for name in layers)


def test_precisions_and_sizes(coreml_bundle: Path, opened: Checkpoint, tmp_path: Path) -> None:
    name = "lr_encoder"
    network, feeds = opened.networks[name], feeds_of(opened, name, 0)
    whole = convert(network, feeds, output_names(name), tmp_path / "a.mlpackage", "fp32")
    assert worst(opened, name, whole) >= 60
    # Palettes are an alternative form of int8.
    source = Source(
        network, opened.bundle.component(name), feeds, (), QuantConfig(), coreml_weights="palette"
    )
    artifact = source.write(tmp_path, "coreml", "int8")
    assert artifact.quantization == {"weights": "palette", "bits": 6, "activations": "fp16"}
    palette = tmp_path / name / "int8.mlpackage"
    assert worst(opened, name, palette) >= 35
    assert MILProgram.open(palette).kinds["constexpr_lut_to_dense"] > 0
    half, int8 = (coreml_bundle / name / f"{p}.mlpackage" for p in ("fp16", "int8"))
    sizes = [
        (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
        for package in (palette, int8, half, whole)
    ]
    assert sizes == sorted(set(sizes))


class Masked(nn.Module):
    """A large mask with −∞, and zeros shared by a norm and a layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.GroupNorm(4, 64), nn.Linear(64, 64, bias=False)
        self.mask = torch.full((64, 64), -torch.inf).triu(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.norm(x).flatten(2).mT)
        return torch.softmax(x @ x.mT + self.mask, -1) @ x


@pytest.mark.parametrize("precision", ["int8", "palette"])
def test_nothing_but_weights_is_compressed(precision: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, feeds = Masked().eval(), {"x": tensor_of(1, 64, 8, 8)}
    with torch.no_grad():
        expected = network(torch.from_numpy(feeds["x"])).numpy()
    program = MILProgram.open(convert(network, feeds, ["y"], tmp_path / "a.mlpackage", precision))
    compressed = [kind for kind in program.kinds.elements() if kind.startswith("constexpr")]
    assert len(compressed) == 1
    assert decibels(expected, program.run(feeds)["y"]) >= 35


def test_packages_are_reproducible_and_hold_no_paths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU()).eval()
    contents = []
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        out = tmp_path / side / "net.mlpackage"
        convert(network, {"x": np.zeros((1, 3, 8, 8), np.float32)}, ["y"], out)
        contents.append({name: (out.parent / name).read_bytes() for name in package_files(out)})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3  # the manifest, the model, the weights
    for content in contents[0].values():
        for word in (b"site-packages", b".py", str(tmp_path).encode()):
            assert word not in content


def test_recorded_inputs_come_in_any_order(opened: Checkpoint, tmp_path: Path) -> None:
    spec = opened.bundle.component("connector")
    drawn = draw_inputs("connector", opened.preset, np.random.default_rng(0))
    turned = {name: drawn[name] for name in sorted(drawn)}
    assert list(turned) != list(drawn)
    source = Source(opened.networks["connector"], spec, turned)
    artifact = source.write(tmp_path, "coreml", "fp32")
    path = tmp_path / artifact.files[0].path
    session = INTERPRETER.open(path, spec, artifact, SessionOptions(), "micro")
    reference = run_network(source.network, "connector", turned)["context"]
    assert decibels(reference, session.run(turned)["context"]) > 60


# --- Requests -----------------------------------------------------------------------------------


def test_wrong_requests_are_refused(
    coreml_bundle: Path, opened: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, feeds = nn.Identity(), {"x": np.zeros((1, 2), np.float32)}
    with pytest.raises(OptionError, match="precision 'int4' is unknown"):
        convert(network, feeds, ["y"], tmp_path / "a.mlpackage", "int4")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"must end in \.mlpackage"):
        convert(network, feeds, ["y"], tmp_path / "a.mlmodel")
    with pytest.raises(ParityError, match="gives 1 results, expected"):
        convert(nn.ReLU(), feeds, ["y", "z"], tmp_path / "a.mlpackage")
    with pytest.raises(OptionError, match="Core ML weights 'sparse' is not supported"):
        ExportConfig(tmp_path, tmp_path, coreml_weights="sparse")  # type: ignore[arg-type]
    command = ["--checkpoint", str(tmp_path), "--out", str(tmp_path), "--formats", "coreml"]
    assert main([*command, "--coreml-weights", "sparse"]) == 1
    assert "there are linear, palette" in capsys.readouterr().err
    program = MILProgram.open(coreml_bundle / "decoder" / "fp16.mlpackage")
    named = r"\['aligned', 'degradation', 'latent', 'lr'\]"
    with pytest.raises(OptionError, match=rf"takes {named}, but was fed \['image'\]"):
        program.run({"image": np.zeros(3)})
    given = draw_inputs("decoder", opened.preset, np.random.default_rng(0))
    rest = {name: value for name, value in given.items() if name != "latent"}
    with pytest.raises(OptionError, match=r"feed 'latent' is float32 \[1, 2\], it must be"):
        program.run({"latent": np.zeros((1, 2), np.float32), **rest})
    # As a session, against a manifest of another component.
    bundle = open_bundle(coreml_bundle)
    artifact = bundle.component("decoder").artifacts[0]
    arguments = (artifact, SessionOptions(), "micro")
    path = bundle.path(artifact.files[0])
    with pytest.raises(BundleError, match="the file has inputs"):
        INTERPRETER.open(path, bundle.component("lr_encoder"), *arguments)
    with pytest.raises(BundleError, match=r"is in no \.mlpackage folder"):
        INTERPRETER.open(tmp_path / "a", bundle.component("decoder"), *arguments)


def test_without_coremltools_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match=r"mmsr-edge\[coreml\]"):
        convert(nn.ReLU(), {"x": np.zeros((1, 2), np.float32)}, ["y"], tmp_path / "a.mlpackage")
    with pytest.raises(MissingExtraError, match=r"mmsr-edge\[coreml\]"):
        INTERPRETER.check()


# --- Operators beyond our networks' -------------------------------------------------------------


class Odds(nn.Module):
    """Operators that coremltools lacks or defines differently, which we register or rewrite."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 2, 5, 5))

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cubic = F.interpolate(image, (9, 12), mode="bicubic", align_corners=False)
        scaled = F.interpolate(image, scale_factor=1.5, mode="bicubic", align_corners=True)
        smooth = F.interpolate(image, (3, 4), mode="bilinear", antialias=True)
        fixed = F.interpolate(self.position, (6, 8), mode="bicubic")
        cropped = F.pad(image, (-1, 2, 0, -3))
        chosen = torch.where(ids > 3, image[0, 0, 0, :2].sum(), -1.0)
        return cubic, scaled, smooth, fixed + image, cropped, chosen, ids + 1


class Vision(nn.Module):
    """Further operators of depth, segmentation and caption networks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.up = nn.ConvTranspose2d(16, 8, 3, 2, 1, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.normalized = nn.BatchNorm2d(8)
        self.normalized.running_mean.uniform_(-1, 1)

    def forward(self, pixels: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        h = self.norm(tokens)
        tokens = tokens + self.attention(h, h, h, need_weights=False)[0]
        plane = tokens.transpose(1, 2).unflatten(2, (8, 8))
        x = F.hardswish(self.normalized(self.depthwise(self.up(plane))))
        x = F.interpolate(x, (20, 24), mode="bilinear", align_corners=True)
        pooled = F.adaptive_avg_pool2d(F.max_pool2d(x, 3, 2, 1), 1).flatten(1)
        sampled = F.grid_sample(x, grid, align_corners=False)
        values, classes = x.topk(3, dim=1)
        mixed = torch.einsum("bchw,bdhw->bcd", x, values)
        return pooled, sampled, mixed, F.log_softmax(x, 1), x.argmax(1), classes


@pytest.mark.parametrize("kind", [Odds, Vision])
def test_other_operators_agree(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, rng = kind().eval(), np.random.default_rng(0)
    if kind is Odds:
        feeds = {"picture": rng.standard_normal((1, 2, 6, 8), np.float32),
                 "words": np.array([[1, 5]])}  # fmt: skip
    else:
        feeds = {"image": rng.standard_normal((1, 3, 32, 32), np.float32),
                 "places": rng.uniform(-1.2, 1.2, (1, 5, 5, 2)).astype(np.float32)}  # fmt: skip
    with torch.no_grad():
        expected = [t.numpy() for t in network(*map(torch.from_numpy, feeds.values()))]
    names = [f"result_{i}" for i in range(len(expected))]
    package = convert(network, feeds, names, tmp_path / "a.mlpackage", "fp32")
    results = MILProgram.open(package).run(feeds)
    for name, value in zip(names, expected, strict=True):
        if value.dtype.kind == "f":
            assert results[name].dtype == np.float32
            assert decibels(value, results[name]) >= 60, name
        else:
            np.testing.assert_array_equal(results[name], value)


def test_float16_is_stored_between_operations(tmp_path: Path) -> None:
    """x·300·300/300/300 is x in float32; in float16 it may exceed 65504 on the way."""

    class Excursion(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.relu(x * 300) * 300) / 300 / 300

    feeds = {"x": np.array([[0.5, 0.8]], np.float32)}
    results = {}
    for precision in ("fp32", "fp16"):
        out = tmp_path / f"{precision}.mlpackage"
        package = convert(Excursion(), feeds, ["y"], out, precision)  # type: ignore[arg-type]
        results[precision] = MILProgram.open(package).run(feeds)["y"]
    np.testing.assert_allclose(results["fp32"], feeds["x"], rtol=1e-6)
    assert np.isfinite(results["fp16"][0, 0])  # 45000
    assert np.isinf(results["fp16"][0, 1])  # 72000
