"""Published networks as components: exported files against the output of `transformers`.

The reference is the libraries' whole chain (image processor, network, postprocessing) on the same
picture, without code of ours.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from modality_factory import READERS, picture
from PIL import Image

from mmsr_edge.converters.artifacts import CHECKERS
from mmsr_edge.converters.caption_networks import vocabulary
from mmsr_edge.converters.map_networks import (
    DepthNetwork,
    depth_network,
    pillow_matrix,
    segmentation_network,
    torch_matrix,
)
from mmsr_edge.converters.published import Preprocessing, open_published
from mmsr_edge.errors import BundleError, OptionError
from mmsr_edge.modalities.caption import GreedyCaptioner
from mmsr_edge.modalities.vocabulary import bundle_vocabulary
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mmsr_edge.bundle import Bundle


SIDE = 256


def image_of(source: Image.Image) -> np.ndarray[Any, Any]:
    """The picture as [1, 3, s, s] in [-1, 1], as the pipeline passes it."""
    return np.asarray(source, np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - 1


def pixels_of(source: Image.Image, processor: Any, side: int) -> torch.Tensor:
    """The library's preprocessing; resized beforehand in floats, as it would round to 8 bits."""
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
        assert (got[0] == wanted).mean() > 0.999, reader  # ties may differ


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
    assert len(seen) == 3  # the captions depend on the picture


def test_texts_are_those_of_the_tokenizers(published: Callable[[str], Path]) -> None:
    rng = np.random.default_rng(0)
    for name in ("vit_gpt2", "blip"):
        words = vocabulary(open_published(published(name), "caption"), None)
        tokenizer = hf.AutoTokenizer.from_pretrained(published(name))
        for _ in range(50):
            ids = rng.integers(0, len(words.tokens), 12).tolist()
            wanted = tokenizer.decode(ids, skip_special_tokens=True)
            assert words.text(ids).strip() == wanted.strip()


def test_the_picture_is_encoded_once(converted: Callable[[str], Bundle]) -> None:
    """The captioner has the cross-attention's projections, and nothing else of the decoder."""
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
    """A checkpoint whose network predicts 1, 2, 3, … from left to right."""

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
def test_near_is_one_for_inverse_and_metric_depth(metric: bool) -> None:
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


def test_the_meaning_of_depth_is_never_guessed() -> None:
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
