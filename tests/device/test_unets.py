"""Two sets of UNet weights: the student of few steps, and the diffusion that it was distilled from.

Which one's session is called is in `test_pipeline.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import make_bundle
from PIL import Image

from mmsr_edge.bundle import Manifest, load_manifest, write_manifest
from mmsr_edge.cli.main import main
from mmsr_edge.config import UpscaleOptions
from mmsr_edge.errors import BundleError, OptionError
from mmsr_edge.settings import resolve

REFUSAL = (
    "steps is 50, but 'tiny' has only the student for 1 to 4 steps; 50 steps need its diffusion "
    "UNet: export the checkpoint with --diffusion, or use steps=4"
)


def only_student(manifest: Manifest, **sampler: Any) -> Manifest:
    """The manifest of a bundle without its diffusion."""
    sampler = {"few_steps": 4, "diffusion": "separate", **sampler}
    return replace(manifest, sampler=replace(manifest.sampler, **sampler))


def both_unets(manifest: Manifest, **sampler: Any) -> Manifest:
    """The manifest of a bundle with student and diffusion."""
    diffusion = replace(manifest.components["unet"], name="diffusion_unet")
    components = {**manifest.components, "diffusion_unet": diffusion}
    sampler = {"few_steps": 4, "diffusion": "separate", **sampler}
    changed = replace(manifest.sampler, **sampler)
    return replace(manifest, components=components, sampler=changed)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def manifest(root: Path) -> Manifest:
    return load_manifest(root)


def test_which_unet_serves_which_steps(manifest: Manifest) -> None:
    few = replace(manifest, sampler=replace(manifest.sampler, few_steps=4))
    both = both_unets(manifest)
    assert manifest.unets == few.unets == {"unet": range(1, 1001)}
    assert only_student(manifest).unets == {"unet": range(1, 5)}
    assert both.unets == {"unet": range(1, 5), "diffusion_unet": range(5, 1001)}
    assert Manifest.from_json(both.to_json()) == both


def test_a_diffusion_unet_belongs_to_a_student(manifest: Manifest) -> None:
    both = both_unets(manifest)
    with pytest.raises(BundleError, match="'diffusion_unet' would go unused"):
        replace(manifest, components=both.components)
    with pytest.raises(BundleError, match="'separate' with few_steps 0"):
        both_unets(manifest, few_steps=0)
    diffusion = both.components["diffusion_unet"]
    latent = replace(diffusion.inputs[0], shape=(1, 2, 8, 8))
    short = replace(diffusion, inputs=(latent, *diffusion.inputs[1:]))
    with pytest.raises(BundleError, match="'diffusion_unet': input 'latent'"):
        replace(both, components={**both.components, "diffusion_unet": short})


def test_the_default_number_of_steps_has_a_unet(manifest: Manifest) -> None:
    assert both_unets(manifest, steps=50).sampler.steps == 50
    with pytest.raises(BundleError, match="steps 50 are more than the 4 of 'unet'"):
        only_student(manifest, steps=50)


def test_the_number_of_steps_chooses_the_unet(manifest: Manifest) -> None:
    few = replace(manifest, sampler=replace(manifest.sampler, few_steps=4))
    assert resolve(UpscaleOptions(steps=50), few).unet == "unet"  # one UNet serves all
    student, both = only_student(manifest), both_unets(manifest)
    assert resolve(UpscaleOptions(steps=4), student).unet == "unet"
    with pytest.raises(OptionError) as caught:
        resolve(UpscaleOptions(steps=50), student)
    assert str(caught.value) == REFUSAL
    assert resolve(UpscaleOptions(steps=4), both).unet == "unet"
    assert resolve(UpscaleOptions(steps=5), both).unet == "diffusion_unet"


def test_the_command_line_says_which_unet_serves_which_steps(
    root: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    model, picture = ("--model", str(root)), root.parent / "in.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)

    def info(*options: str) -> str:
        assert main(["info", *model, *options]) == 0
        return capsys.readouterr().out

    assert "steps     1 to 1000: unet\n" in info()
    write_manifest(root, only_student(manifest))
    missing = "from 5: none, the diffusion UNet was left out of this bundle"
    assert f"steps     1 to 4: unet; {missing}\n" in info()
    assert main(["upscale", str(picture), *model, "--steps", "50"]) == 2
    assert capsys.readouterr().err == f"mmsr-edge: {REFUSAL}\n"
    write_manifest(root, both_unets(manifest))
    assert "steps     1 to 4: unet; 5 to 1000: diffusion_unet\n" in info()
    described = json.loads(info("--json"))["model"]
    assert described["unets"] == {"unet": [1, 4], "diffusion_unet": [5, 1000]}
