"""Strength and guidance scale, as numbers and as maps, from the pipeline to the picture.

The networks of the tiny bundle work on each latent cell by itself, so that a map with two values
gives, cell by cell, what the two numbers give.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from bundle_factory import CHANNELS, LATENT, MAP, RESIDUAL_SCALE, TILE, make_bundle, reference
from photo_factory import photo, pixels

from mmsr_edge import Upscaler
from mmsr_edge.bundle import TensorSpec, load_manifest, write_manifest
from mmsr_edge.config import UpscaleOptions
from mmsr_edge.errors import OptionError
from mmsr_edge.jobs import Task, run_job
from mmsr_edge.pipeline import MultimodalPipeline, PictureRun
from mmsr_edge.settings import resolve

Array = npt.NDArray[Any]

rng = np.random.default_rng(0)
LR = rng.uniform(-1, 1, (1, 3, TILE, TILE)).astype(np.float32)
NOISE = rng.standard_normal((1, CHANNELS, LATENT, LATENT)).astype(np.float32)
MAPS = {"edges": rng.uniform(-1, 1, (1, 3, MAP, MAP)).astype(np.float32)}
HALVES = np.zeros((1, 1, LATENT, LATENT), np.float32)
HALVES[..., LATENT // 2 :] = 1
GUIDED = {"guidance": "m-cfg", "negative_prompt": "fog"}


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    root = make_bundle(tmp_path_factory.mktemp("tiny"), optional=True)
    return Upscaler(root, "onnxruntime", threads=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    """A model of the latent itself, without residual."""
    root = make_bundle(tmp_path_factory.mktemp("plain"))
    manifest = load_manifest(root)
    write_manifest(root, replace(manifest, latent=replace(manifest.latent, residual_scale=None)))
    return Upscaler(root, "onnxruntime", threads=1)


def steps_of(
    upscaler: Upscaler, dials: dict[str, Array] | None = None, **options: Any
) -> tuple[list[Array], PictureRun]:
    """The latent after each step of a tile, and its run."""
    settings = resolve(UpscaleOptions(**options), upscaler.bundle.manifest)
    run = upscaler.pipeline.start(settings)
    return [step.latent for step in run.denoise(LR, MAPS, NOISE, dials)], run


@pytest.mark.parametrize("model", ["upscaler", "plain"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.0, 2 * HALVES])
def test_strength_is_a_factor_on_what_the_diffusion_adds(
    model: str, strength: float | Array, request: pytest.FixtureRequest
) -> None:
    made: Upscaler = request.getfixturevalue(model)
    z_lr = reference.lr_encoder(LR)
    whole, whole_run = steps_of(made, steps=3)
    if isinstance(strength, float):
        latents, run = steps_of(made, steps=3, strength=strength)
    else:
        latents, run = steps_of(made, {"strength": strength}, steps=3)
    assert run.calls == whole_run.calls
    for latent, full in zip(latents, whole, strict=True):  # previews too
        np.testing.assert_allclose(latent, z_lr + strength * (full - z_lr), atol=1e-5)
        if isinstance(strength, float) and strength == 1:
            np.testing.assert_array_equal(latent, full)
    assert np.abs(whole[-1] - z_lr).max() > 0.1


@pytest.mark.parametrize("strength", [0.0, 1.0, 1.5])
def test_a_diffusion_unet_may_model_the_latent_at_a_scale_of_its_own(
    upscaler: Upscaler, strength: float
) -> None:
    """`unet` models (z_hr − z_lr) / s, `diffusion_unet` z_hr / σ; the two have one graph here."""
    manifest = upscaler.bundle.manifest
    sigma = (2.0, 1.0, 0.5, 3.0)
    diffusion = replace(manifest.components["unet"], name="diffusion_unet")
    both = replace(
        manifest,
        components={**manifest.components, "diffusion_unet": diffusion},
        sampler=replace(manifest.sampler, few_steps=1, diffusion="separate"),
        latent=replace(manifest.latent, diffusion_scale=sigma),
    )

    def opened(name: str) -> Any:
        return upscaler.pipeline._open_session("unet" if name == "diffusion_unet" else name)

    pipeline = MultimodalPipeline(both, opened)
    settings = resolve(UpscaleOptions(steps=3, strength=strength), both)
    run = pipeline.start(settings)
    scaled = [step.latent for step in run.denoise(LR, MAPS, NOISE)]
    assert run.calls["diffusion_unet"] == 3
    z_lr = reference.lr_encoder(LR)
    residuals, _ = steps_of(upscaler, steps=3)  # z_lr + s · z_0 of the same trajectory
    for latent, full in zip(scaled, residuals, strict=True):
        z_0 = (full - z_lr) / np.array(RESIDUAL_SCALE)[:, None, None]
        z_hr = z_0 * np.array(sigma)[:, None, None]
        np.testing.assert_allclose(latent, z_lr + strength * (z_hr - z_lr), atol=1e-4)


def test_a_map_of_guidance_scales_is_each_cells_number(upscaler: Upscaler) -> None:
    by_number = {w: steps_of(upscaler, steps=3, guidance_scale=w, **GUIDED)[0] for w in (-0.5, 2.0)}
    dials = {"guidance_scale": np.where(HALVES > 0, np.float32(2), np.float32(-0.5))}
    latents, run = steps_of(upscaler, dials, steps=3, guidance_scale=np.ones((1, 1)), **GUIDED)
    assert run.calls["unet"] == 6
    for latent, low, high in zip(latents, by_number[-0.5], by_number[2.0], strict=True):
        np.testing.assert_allclose(latent, np.where(HALVES > 0, high, low), atol=1e-5)


def test_a_map_of_zeros_makes_no_negative_prediction(upscaler: Upscaler) -> None:
    off, _ = steps_of(upscaler, steps=2, guidance=None)
    given: dict[str, Any] = {"steps": 2, "guidance_scale": np.ones((1, 1)), **GUIDED}
    latents, run = steps_of(upscaler, {"guidance_scale": 0 * HALVES}, **given)
    assert (run.calls["unet"], run.calls["connector"]) == (2, 1)
    np.testing.assert_array_equal(latents[-1], off[-1])
    assert steps_of(upscaler, {"guidance_scale": 0.01 * HALVES}, **given)[1].calls["unet"] == 4


# --- Whole pictures -------------------------------------------------------------------------------

PICTURE = photo(60, 90)  # 12 tiles
FIXED: dict[str, Any] = {"color_fix": False, "depth": None, "segmentation": None, "steps": 1}


@pytest.mark.parametrize(
    ("dial", "low", "high", "options"),
    [("strength", 0.0, 2.0, {}), ("guidance_scale", 0.0, 60.0, GUIDED)],
)
def test_a_pictures_map_is_each_places_number(
    upscaler: Upscaler, dial: str, low: float, high: float, options: dict[str, Any]
) -> None:
    """The map has a pixel to each of 30 × 45 latent cells, which are 8 × 8 pixels of the result."""
    mask = np.zeros((30, 45))
    mask[7:19, 13:32] = 1
    here = mask.repeat(8, axis=0).repeat(8, axis=1)[..., None] > 0
    options = {**FIXED, **options}
    numbers = {
        value: pixels(upscaler(PICTURE, **{dial: value}, **options)) for value in (low, high)
    }
    made = pixels(upscaler(PICTURE, **{dial: low + (high - low) * mask}, **options))
    expected = np.where(here, numbers[high], numbers[low])
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert np.abs(numbers[low].astype(int) - numbers[high]).max() > 20


def test_dials_follow_the_modalities(upscaler: Upscaler) -> None:
    """A dial that follows a map is the same as the array that it stands for."""
    half = np.zeros((30, 45), np.uint8)
    half[:, 20:] = 1
    grid = half.astype(float)
    for name, given, value, array in (
        ("depth", 255 * half, (0.25, 1.5), 0.25 + 1.25 * grid),
        ("segmentation", 2 * half, {"sky": 0.5, 0: 2}, 2 - 1.5 * grid),
    ):
        maps = {name: given}
        followed = upscaler(PICTURE, **{**FIXED, **maps}, strength={name: value})
        direct = upscaler(PICTURE, **{**FIXED, **maps}, strength=array)
        difference = pixels(followed).astype(int) - pixels(direct)
        # Depth is interpolated between pixels when it is brought to the maps' resolution.
        assert (np.abs(difference) > 1).mean() < 0.05
        assert (pixels(direct) != pixels(upscaler(PICTURE, **{**FIXED, **maps}))).mean() > 0.5


def test_a_dial_follows_the_map_that_a_network_makes(upscaler: Upscaler) -> None:
    given: dict[str, Any] = {"steps": 1, "color_fix": False}
    one = pixels(upscaler(PICTURE, **given))
    for dial in ({"depth": (0, 2)}, {"segmentation": {"grass": 2}}, {"edges": (0, 2)}):
        assert (pixels(upscaler(PICTURE, **given, strength=dial)) != one).any()
        guided = upscaler(PICTURE, **given, guidance_scale=dial, guidance="m0-cfg")
        assert 12 < guided.calls["unet"] <= 24
        assert (pixels(guided) != one).any()


@pytest.mark.parametrize("name", ["depth", "segmentation", "edges"])
def test_a_dial_cannot_follow_a_map_that_is_absent(upscaler: Upscaler, name: str) -> None:
    value: Any = {"other": 1} if name == "segmentation" else (0, 1)
    with pytest.raises(OptionError, match=f"strength follows {name}, which is absent"):
        upscaler(PICTURE, strength={name: value}, **{name: None})
    flat = np.full((40, 40, 3), 9, np.uint8)  # none of the three can be made
    with pytest.raises(OptionError, match=f"guidance_scale follows {name}, which is absent"):
        upscaler(flat, guidance_scale={name: value}, **GUIDED)


def test_refusals_that_need_the_manifest(upscaler: Upscaler) -> None:
    with pytest.raises(OptionError, match="unknown class in strength 'gras'; did you mean 'grass'"):
        upscaler(PICTURE, strength={"segmentation": {"gras": 1}})
    with pytest.raises(OptionError, match="guidance_scale is a map, which would go unused"):
        upscaler(PICTURE, guidance_scale=np.ones((9, 9)))
    manifest = upscaler.bundle.manifest
    unet = manifest.components["unet"]
    unet = replace(unet, inputs=(*unet.inputs, TensorSpec("guidance", (1,), "float32")))
    takes = replace(
        manifest,
        components={**manifest.components, "unet": unet},
        sampler=replace(manifest.sampler, guidance="m-cfg"),
    )
    assert resolve(UpscaleOptions(guidance_scale=2), takes).guidance_scale == 2
    with pytest.raises(OptionError, match="the UNet of 'tiny' takes one number"):
        resolve(UpscaleOptions(guidance_scale={"depth": (0, 1)}), takes)


def test_a_job_takes_numbers_and_modalities(upscaler: Upscaler, tmp_path: Path) -> None:
    tasks = [Task(tmp_path / "in.png", tmp_path / "out" / "in.png")]
    for given in (np.ones((2, 2)), tmp_path / "in.png"):
        with pytest.raises(OptionError, match="strength is one picture's map; in a job it must be"):
            run_job(upscaler, tasks, tmp_path / "out", strength=given)
    followed = {"segmentation": {"grass": np.float32(0.5), 0: 2, "other": 1}}
    reports = [
        run_job(upscaler, tasks, tmp_path / "out", dry_run=True, strength=strength)
        for strength in (followed, dict(followed), {"depth": (0, 1)}, {"depth": [0, 1]}, 1.0)
    ]
    first, same, depth, listed, number = (report.fingerprint for report in reports)
    assert first == same
    assert depth == listed
    assert len({first, depth, number}) == 3
