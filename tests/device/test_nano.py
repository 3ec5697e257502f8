"""The shipped model as a user has it: quality, guidance, seams and colours."""

from __future__ import annotations

import io
import itertools
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity
from sklearn.datasets import load_sample_image

from mmsr_edge import Upscaler, tiling
from mmsr_edge.bundle import open_bundle
from mmsr_edge.cli.main import main
from mmsr_edge.image.blur import gaussian_blur
from mmsr_edge.image.color import block_means, delta_e00
from mmsr_edge.modalities.canny import canny
from mmsr_edge.tiling import plan_tiles
from mmsr_edge.training.regions import laplacian_energy

BACKENDS = ["openvino", "onnxruntime"]
SCALE = 4


@pytest.fixture(scope="module")
def original() -> NDArray[np.uint8]:
    """A photograph that nano was not trained on, [424, 640, 3]."""
    return load_sample_image("china.jpg")[:424, :640]


def shrink(picture: NDArray[np.uint8], noise: float, quality: int) -> Image.Image:
    """The picture at a quarter of its size, with Gaussian noise, compressed as JPEG."""
    size = (picture.shape[1] // SCALE, picture.shape[0] // SCALE)
    reduced = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    noisy = reduced + np.random.default_rng(0).normal(0, noise, reduced.shape)
    buffer = io.BytesIO()
    pixels = noisy.round().clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def sharpness(picture: NDArray[Any]) -> float:
    """Mean gradient."""
    return float(np.abs(np.diff(picture.astype(np.float64), axis=1)).mean())


def roughness(picture: NDArray[np.uint8]) -> float:
    """Mean gradient of the sky of `original`, which holds nothing but noise."""
    return sharpness(picture[20:150, 360:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_beats_bicubic_on_a_noisy_photo(backend: str, original: NDArray[np.uint8]) -> None:
    pytest.importorskip(backend)
    small = shrink(original, noise=20, quality=60)
    ours = np.asarray(Upscaler(backend=backend).upscale(small).image)
    bicubic = np.asarray(small.resize(ours.shape[1::-1], Image.Resampling.BICUBIC))

    def similarity(picture: NDArray[np.uint8]) -> float:
        return float(structural_similarity(picture, original, channel_axis=2))

    assert similarity(ours) > similarity(bicubic) + 0.03  # .510 against .451 at release
    assert roughness(ours) < 0.85 * roughness(bicubic)  # .74 at release


def test_colours_stay(original: NDArray[np.uint8]) -> None:
    small = shrink(original, noise=0, quality=98)
    image = Upscaler().upscale(small).image

    def regions(picture: Image.Image) -> NDArray[np.float64]:
        """Mean colours of 16x16 HR pixels, which detail does not change."""
        return np.asarray(picture.convert("RGB").resize((40, 26), Image.Resampling.BOX)) / 127.5 - 1

    assert delta_e00(regions(image), regions(small)) < 1.5  # 1.17 at release


@pytest.mark.parametrize("backend", BACKENDS)
def test_guidance_goes_from_soft_to_crisp(backend: str, original: NDArray[np.uint8]) -> None:
    """A step of 0.5 in w changes the sharpness by 2 %; quantization alone, by less than 0.2 %."""
    pytest.importorskip(backend)
    small = shrink(original[:, 200:624], noise=10, quality=80)
    upscaler = Upscaler(backend=backend)

    def upscale(**options: Any) -> NDArray[np.float64]:
        return np.asarray(upscaler.upscale(small, prompt="auto", **options).image, np.float64)

    pictures = [upscale(guidance_scale=w) for w in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    sharp = [sharpness(picture) for picture in pictures]
    assert all(b > 1.01 * a for a, b in itertools.pairwise(sharp)), sharp
    np.testing.assert_array_equal(pictures[2], upscale())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_low_temperature_of_depth_blurs_what_is_far(
    backend: str, original: NDArray[np.uint8]
) -> None:
    """With a caller's map, left far and right near: the left follows τ, the right stays."""
    pytest.importorskip(backend)
    small = shrink(original[:384, 200:584], noise=0, quality=95)
    depth = np.tile(np.repeat([0.0, 1.0], 48), (96, 1))
    upscaler = Upscaler(backend=backend)
    pictures = [
        np.asarray(upscaler(small, depth=depth, temperature={"depth": t}).image)
        for t in (0.4, 0.63, 1.0, 3.0, 10.0)
    ]
    energies = [laplacian_energy(picture) for picture in pictures]
    far = [float(energy[:, :160].mean()) for energy in energies]
    near = [float(energy[:, 224:].mean()) for energy in energies]
    assert all(b > 1.05 * a for a, b in itertools.pairwise(far)), far
    assert far[-1] > 1.3 * far[0]
    assert max(near) < 1.1 * min(near), near


@pytest.mark.parametrize("backend", BACKENDS)
def test_denoise_keeps_grain_or_takes_it(backend: str, original: NDArray[np.uint8]) -> None:
    pytest.importorskip(backend)
    small = shrink(original, noise=15, quality=95)
    upscaler = Upscaler(backend=backend)
    kept, usual, smooth = (
        np.asarray(upscaler(small, denoise=value).image) for value in (0, None, 1)
    )
    assert roughness(kept) > 1.5 * roughness(usual)
    ground = np.s_[200:]
    assert sharpness(smooth[ground]) < 0.9 * sharpness(usual[ground])


def test_edges_of_a_caller_are_drawn(original: NDArray[np.uint8]) -> None:
    """Edges of the original, against the same shifted: along lines, the right ones are nearer."""
    small = shrink(original[:384, 200:584], noise=15, quality=60)
    hr = original[:384, 200:584]
    edges = canny(hr.astype(np.float32) / 127.5 - 1)
    wrong = np.roll(edges, (40, 60), (0, 1))
    upscaler = Upscaler()

    def error(lines: NDArray[np.bool_]) -> float:
        picture = np.asarray(upscaler(small, edges=lines).image, np.float64)
        return float(np.square(picture - hr)[edges].mean())

    assert error(edges) < error(wrong)


def test_the_bundle_describes_itself(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = open_bundle("nano").manifest
    assert manifest.name == "nano" and manifest.preset == "nano"
    assert manifest.allow_failing == ()
    assert sum(source.get("photographs", 0) for source in manifest.provenance.sources) == 218
    assert all(source["licence"] for source in manifest.provenance.sources)
    for name in ("unet", "decoder"):
        (artifact,) = manifest.components[name].artifacts
        assert artifact.precision == "int8"
        card = artifact.parity or {}
        assert card["gate"] == 35
        assert min(score["psnr"] for score in card["backends"].values()) >= 35
    whole = (manifest.components["unet"].artifacts[0].parity or {})["end_to_end"]
    assert set(whole) == set(BACKENDS)
    assert all(score["gate"] == 35 and score["psnr"] >= 35 for score in whole.values())
    assert main(["info", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert (model["name"], model["version"]) == ("nano", manifest.version)
    assert model["verified"] is True and set(model["components"]) == set(manifest.components)


# --- Seams and colours --------------------------------------------------------------------------


def flat() -> NDArray[np.uint8]:
    return np.full((128, 240, 3), (120, 150, 90), np.uint8)


def gradient() -> NDArray[np.uint8]:
    y, x = np.mgrid[:128, :240]
    shades = np.stack([40 + 0.6 * x, 60 + y, 200 - 0.3 * (x + y)], axis=-1)
    return np.asarray(shades.round().astype(np.uint8))


def natural() -> NDArray[np.uint8]:
    photo = Image.fromarray(load_sample_image("flower.jpg")[:384, :]).resize((240, 128))
    return np.asarray(photo)


PICTURES = {"flat": flat, "gradient": gradient, "natural": natural}


@pytest.fixture(scope="module")
def openvino() -> Upscaler:
    pytest.importorskip("openvino")
    return Upscaler(backend="openvino", threads=1)


def across(picture: NDArray[np.uint8], columns: list[int]) -> float:
    """Mean gradient across the left borders of these columns, in grey levels."""
    grey = picture.astype(np.float64).mean(axis=-1)
    return float(np.mean([np.abs(grey[:, c] - grey[:, c - 1]).mean() for c in columns]))


def seams(upscaler: Upscaler, picture: NDArray[np.uint8]) -> tuple[float, float]:
    """Gradients across tile borders, and at the same places inside a tile.

    For the second, the picture is extended on both sides by reflection, which moves the tiles.
    """
    tile = upscaler.bundle.manifest.tile
    lefts = plan_tiles(*picture.shape[:2], tile).lefts
    borders = [left for left in lefts if left] + [left + tile.size for left in lefts[:-1]]
    shift = 24
    grown = np.pad(picture, [(0, 0), (shift, shift), (0, 0)], mode="symmetric")
    others = plan_tiles(*grown.shape[:2], tile).lefts
    elsewhere = {x for left in others for x in (left, left + tile.size)}
    assert not {border + shift for border in borders} & elsewhere
    with_seams = np.asarray(upscaler.upscale(picture).image)
    without = np.asarray(upscaler.upscale(grown).image)[:, shift * SCALE :]
    columns = [border * SCALE for border in borders]
    return across(with_seams, columns), across(without, columns)


def visible(seam: float, inside: float) -> bool:
    """Whether the gradient at a seam exceeds that inside a tile by a tenth, and by 0.1 grey levels.

    int8 alone leaves differences of 0.49 grey levels between neighbours in a flat picture.
    """
    return seam - inside > max(0.1 * inside, 0.1)


@pytest.mark.parametrize("kind", PICTURES)
def test_tiles_leave_no_seams(openvino: Upscaler, kind: str) -> None:
    seam, inside = seams(openvino, PICTURES[kind]())
    print(f"{kind}: {seam:.3f} at seams, {inside:.3f} inside")
    assert not visible(seam, inside)


def test_a_seam_is_found(openvino: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles set side by side without blending."""

    def hard(positions: tuple[int, ...], size: int) -> NDArray[np.float32]:
        weights = np.ones((len(positions), size), np.float32)
        for i in range(len(positions) - 1):
            weights[i, positions[i + 1] - positions[i] :] = 0
        return weights

    monkeypatch.setattr(tiling, "feather", hard)
    assert visible(*seams(openvino, natural()))


@pytest.mark.parametrize("kind", PICTURES)
def test_colours_do_not_shift(openvino: Upscaler, kind: str) -> None:
    """Compared over areas: single pixels differ by the noise and blur that nano removes."""
    picture = PICTURES[kind]()[:, :128]
    reference = picture.astype(np.float32) / 127.5 - 1
    shown = np.asarray(openvino.upscale(picture).image, np.float32) / 127.5 - 1
    small = block_means(shown, SCALE)
    areas = delta_e00(gaussian_blur(small, 2), gaussian_blur(reference, 2))
    print(f"{kind}: areas {areas:.3f}, pixels {delta_e00(small, reference):.3f}")
    assert areas < 1
    faithful = openvino.upscale(picture, fidelity=True)
    shown = np.asarray(faithful.image, np.float32) / 127.5 - 1
    assert delta_e00(block_means(shown, SCALE), reference) < 0.5
