"""The shipped model, as a user has it: it must beat bicubic, not merely run."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity
from sklearn.datasets import load_sample_image

from mmsr_edge import Upscaler
from mmsr_edge.bundle import open_bundle
from mmsr_edge.cli import main
from mmsr_edge.color import delta_e00

BACKENDS = ["openvino", "onnxruntime"]


SCALE = 4


@pytest.fixture(scope="module")
def original() -> NDArray[np.uint8]:
    """A photograph that nano was not trained on, [424, 640, 3]."""
    return load_sample_image("china.jpg")[:424, :640]


def shrink(picture: NDArray[np.uint8], noise: float, quality: int) -> Image.Image:
    """A quarter of its size, with noise, through JPEG."""
    size = (picture.shape[1] // SCALE, picture.shape[0] // SCALE)
    reduced = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    noisy = reduced + np.random.default_rng(0).normal(0, noise, reduced.shape)
    buffer = io.BytesIO()
    pixels = noisy.round().clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_beats_bicubic_on_a_noisy_photo(backend: str, original: NDArray[np.uint8]) -> None:
    pytest.importorskip(backend)
    small = shrink(original, noise=20, quality=60)
    ours = np.asarray(Upscaler(backend=backend).upscale(small).image)
    bicubic = np.asarray(small.resize(ours.shape[1::-1], Image.Resampling.BICUBIC))

    def similarity(picture: NDArray[np.uint8]) -> float:
        return float(structural_similarity(picture, original, channel_axis=2))

    def roughness(picture: NDArray[np.uint8]) -> float:
        """Mean gradient of the sky, where there is nothing but noise."""
        return float(np.abs(np.diff(picture[20:150, 360:].astype(np.float64), axis=1)).mean())

    assert similarity(ours) > similarity(bicubic) + 0.03  # .510 against .451 when released
    assert roughness(ours) < 0.85 * roughness(bicubic)  # 0.74 when released


def test_colours_stay(original: NDArray[np.uint8]) -> None:
    small = shrink(original, noise=0, quality=98)
    image = Upscaler().upscale(small).image

    def regions(picture: Image.Image) -> NDArray[np.float64]:
        """Mean colours of squares of 16 HR pixels, which detail does not change."""
        return np.asarray(picture.convert("RGB").resize((40, 26), Image.Resampling.BOX)) / 127.5 - 1

    assert delta_e00(regions(image), regions(small)) < 1.5  # 1.17 when released


def test_the_bundle_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = open_bundle("nano").manifest
    assert manifest.name == "nano" and manifest.preset == "nano"
    assert manifest.allow_failing == ()
    assert sum(source["photographs"] for source in manifest.provenance.sources) == 218
    assert all(source["licence"] for source in manifest.provenance.sources)
    for name in ("unet", "decoder"):
        (artifact,) = manifest.components[name].artifacts
        assert artifact.precision == "int8"
        cards = (artifact.parity or {})["backends"]
        assert min(card["psnr"] for card in cards.values()) >= 35
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
