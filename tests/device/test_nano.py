"""The shipped model, as a user has it: it must beat bicubic, not merely run."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from mmsr_edge import Upscaler
from mmsr_edge.bundle import open_bundle
from mmsr_edge.cli import main
from mmsr_edge.color import delta_e00

BACKENDS = ["openvino", "onnxruntime"]


@pytest.fixture(scope="module")
def original() -> NDArray[np.uint8]:
    """A piece of a photograph that nano was not trained on, [256, 256, 3]."""
    return load_sample_image("china.jpg")[60:316, 100:356]


@pytest.fixture(scope="module")
def small(original: NDArray[np.uint8]) -> Image.Image:
    """A quarter of its size, with noise, through JPEG."""
    reduced = np.asarray(Image.fromarray(original).resize((64, 64), Image.Resampling.BICUBIC))
    noisy = reduced + np.random.default_rng(0).normal(0, 12, reduced.shape)
    buffer = io.BytesIO()
    Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_beats_bicubic_on_a_noisy_photo(
    backend: str, original: NDArray[np.uint8], small: Image.Image
) -> None:
    pytest.importorskip(backend)
    ours = np.asarray(Upscaler(backend=backend).upscale(small).image)
    bicubic = np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC))
    assert psnr(ours, original) > psnr(bicubic, original) + 0.5

    def roughness(image: NDArray[np.uint8]) -> float:
        """Mean gradient of the sky, where there is nothing but noise."""
        return float(np.abs(np.diff(image[:40, -80:].astype(np.float64), axis=1)).mean())

    assert roughness(ours) < 0.6 * roughness(bicubic)


def test_colours_stay(original: NDArray[np.uint8]) -> None:
    reduced = Image.fromarray(original).resize((64, 64), Image.Resampling.BICUBIC)
    image = Upscaler().upscale(reduced).image
    back = np.asarray(image.resize((64, 64), Image.Resampling.BOX))
    assert delta_e00(back / 127.5 - 1, np.asarray(reduced) / 127.5 - 1) < 3.0


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
