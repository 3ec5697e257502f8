"""Options: refusals with their messages, and a bundle's defaults for options left open."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import make_bundle

from mmsr_edge.bundle import Manifest, TensorSpec, load_manifest
from mmsr_edge.cli.arguments import add_dials, add_jobs, add_size
from mmsr_edge.config import UpscaleKeywords, UpscaleOptions
from mmsr_edge.errors import OptionError
from mmsr_edge.settings import RunSettings, resolve
from mmsr_edge.upscaler import Upscaler


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_manifest(make_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompt", 3, "prompt is 3; it must be a string"),
        ("negative_prompt", b"x", "negative_prompt is b'x'; it must be a string"),
        ("steps", 0, "steps is 0; it must be an integer from 1 up"),
        ("steps", 2.0, "steps is 2.0; it must be an integer from 1 up"),
        ("steps", True, "steps is True; it must be an integer"),
        (
            "guidance",
            "mcfg",
            "guidance is 'mcfg'; it must be one of 'm-cfg', 'm0-cfg', 'cfg', None",
        ),
        ("guidance_scale", -2, "guidance_scale is -2; it must be a number from -1 to 100"),
        ("guidance_scale", float("nan"), "guidance_scale is nan; it must be a number"),
        ("guidance_scale", "4", "guidance_scale is '4'; it must be a number"),
        ("temperature", 0.3, "temperature is 0.3; it must be a number from 0.4 to 10"),
        ("temperature", {"edges": 11}, "temperature['edges'] is 11; it must be a number from 0.4"),
        ("temperature", {"edge": 1}, "unknown temperature 'edge'; did you mean 'edges'?"),
        ("depth", "depth.png", "depth is 'depth.png'; it must be 'auto', None, or a map"),
        ("segmentation", [[1]], "segmentation is a list; it must be 'auto', None, or a map"),
        ("edges", False, "edges is a bool; it must be 'auto', None, or a map"),
        (
            "degradation",
            "none",
            "degradation is 'none'; it must be 'auto', None, or a",
        ),
        ("degradation", 0.5, "degradation is 0.5; it must be 'auto', None, or a mapping from"),
        ("degradation", {"nois": 0}, "unknown level of degradation 'nois'; did you mean 'noise'?"),
        (
            "degradation",
            {"jpeg": 1.1},
            "degradation['jpeg'] is 1.1; it must be a number from 0 to",
        ),
        ("denoise", -0.1, "denoise is -0.1; it must be a number from 0 to 1"),
        ("denoise", True, "denoise is True; it must be a number from 0 to 1"),
        ("seed", -1, "seed is -1; it must be an integer from 0 to 18446744073709551615"),
        ("seed", 2**64, "seed is 18446744073709551616; it must be an integer from 0"),
        ("seed", None, "seed is None; it must be an integer"),
        ("color_fix", 1, "color_fix is 1; it must be True or False"),
        ("stpes", 4, "unknown option 'stpes'; did you mean 'steps'?"),
    ],
)
def test_a_wrong_value_is_quoted_with_the_allowed_ones(name: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        UpscaleOptions.from_mapping({name: value})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": np.int64(1), "seed": 2**64 - 1, "guidance_scale": np.float32(100)},
        {"temperature": 0.4},
        {"temperature": {"text": 10, "depth": 0.4}},
        {"depth": np.zeros((2, 2)), "segmentation": Path("x.png"), "edges": None},
        {"degradation": {"noise": 0, "blur": 1, "jpeg": np.float32(0.5)}},
        {"degradation": {}, "denoise": 1},
    ],
)
def test_the_ends_of_the_ranges_and_numpy_numbers_are_accepted(options: dict[str, Any]) -> None:
    made = UpscaleOptions.from_mapping(options)
    assert all(getattr(made, name) is value for name, value in options.items())


def test_keywords_are_the_options() -> None:
    """`upscale`'s typed keywords, by which mypy checks a call, are `UpscaleOptions`' fields."""
    options = {field.name: field.type for field in fields(UpscaleOptions)}
    keywords = UpscaleKeywords.__annotations__
    assert {name: hint.__forward_arg__ for name, hint in keywords.items()} == options
    assert inspect.signature(Upscaler.upscale).parameters["options"].annotation == (
        "Unpack[UpscaleKeywords]"
    )


def test_a_mistyped_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"unknown option 'promt'; did you mean 'prompt'\?"):
        Upscaler("nano").upscale(tmp_path / "a.png", promt="a wall")


@pytest.mark.parametrize("field", fields(UpscaleOptions), ids=lambda field: field.name)
def test_options_document_flag_range_and_example(field: Field[Any]) -> None:
    """Each option has a flag of the command line, a range and an example that is accepted."""
    about = field.metadata
    with_sides = {"width": 8, "height": 8} if field.name == "fit" else {}
    UpscaleOptions.from_mapping({field.name: about["example"], **with_sides})
    assert about["range"] and isinstance(about["unit"], str)
    parser = argparse.ArgumentParser()
    for add in (add_dials, add_jobs, add_size):
        add(parser)
    assert about["flag"] in parser.format_help()


def test_options_left_open_come_from_the_bundle(manifest: Manifest) -> None:
    assert resolve(UpscaleOptions(), manifest) == RunSettings(
        positive="sharp",
        own="",
        tagged=False,
        negative="blurry, noisy",
        steps=2,
        unet="unet",
        guidance=None,
        guidance_scale=0.0,
        strength=1.0,
        temperature=(1.0, 1.0, 1.0, 1.0),
    )
    guided = replace(manifest, sampler=replace(manifest.sampler, guidance="cfg"))
    settings = resolve(UpscaleOptions(), guided)
    assert (settings.guidance, settings.guidance_scale) == ("cfg", 4.0)
    assert settings.negative == ""  # Table 3: the empty language token
    assert resolve(UpscaleOptions(negative_prompt=" fog "), guided).negative == "fog"
    for kind in ("m-cfg", "m0-cfg"):
        assert resolve(UpscaleOptions(guidance=kind), guided).negative == "blurry, noisy"
    assert resolve(UpscaleOptions(guidance=None), guided).guidance is None


def test_given_options_override_the_bundle(manifest: Manifest) -> None:
    options = UpscaleOptions(
        prompt=" a dog ",
        negative_prompt="",
        steps=7,
        guidance="m0-cfg",
        guidance_scale=0.5,
        strength=np.float32(0),
        temperature={"segmentation": 3, "text": 0.5},
    )
    assert resolve(options, manifest) == RunSettings(
        positive="a dog, sharp",
        own=" a dog ",
        tagged=False,
        negative="",
        steps=7,
        unet="unet",
        guidance="m0-cfg",
        guidance_scale=0.5,
        strength=0.0,
        temperature=(0.5, 1.0, 3.0, 1.0),
    )
    assert resolve(UpscaleOptions(temperature=2), manifest).temperature == (2.0, 2.0, 2.0, 2.0)


def test_dials_that_are_maps_leave_their_numbers_neutral(manifest: Manifest) -> None:
    dials: dict[str, Any] = {"strength": {"depth": (0, 1)}, "guidance_scale": np.ones((2, 2))}
    settings = resolve(UpscaleOptions(guidance="cfg", **dials), manifest)
    assert (settings.strength, settings.guidance_scale) == (1.0, 0.0)
    assert settings.dials == dials
    assert not resolve(UpscaleOptions(strength=2), manifest).dials


def test_no_prompt_and_no_suffix_is_no_text(manifest: Manifest) -> None:
    plain = replace(manifest, text=replace(manifest.text, positive=""))
    assert resolve(UpscaleOptions(), plain).positive == ""
    assert resolve(UpscaleOptions(prompt="  "), plain).positive == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1001}, "steps is 1001; it must be an integer from 1 to 1000"),
        ({"guidance_scale": 3.0}, "guidance_scale is 3.0, which would go unused: guidance is None"),
        ({"guidance": None, "guidance_scale": 3.0}, "which would go unused"),
    ],
)
def test_limits_set_by_the_manifest(
    manifest: Manifest, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        resolve(UpscaleOptions(**options), manifest)
    assert message in str(caught.value)


def test_baked_guidance_refuses_guidance(manifest: Manifest) -> None:
    sampler = replace(manifest.sampler, guidance="m-cfg", baked_guidance=4.0)
    baked = replace(manifest, sampler=sampler)
    assert resolve(UpscaleOptions(), baked).guidance is None
    assert resolve(UpscaleOptions(guidance=None), baked).guidance is None
    with pytest.raises(OptionError, match="guidance is 'cfg', but 'tiny' has guidance baked in"):
        resolve(UpscaleOptions(guidance="cfg"), baked)
    with pytest.raises(OptionError, match=r"guidance_scale is 2.*baked in at w = 4"):
        resolve(UpscaleOptions(guidance_scale=2), baked)


def test_few_steps_refuse_guidance(manifest: Manifest) -> None:
    few = replace(manifest, sampler=replace(manifest.sampler, guidance="m-cfg", few_steps=4))
    assert resolve(UpscaleOptions(steps=4), few).guidance is None
    assert resolve(UpscaleOptions(steps=5), few).guidance == "m-cfg"
    assert resolve(UpscaleOptions(steps=4, guidance=None), few).guidance_scale == 0
    with pytest.raises(OptionError, match=r"guidance is 'cfg', but 'tiny' was trained .* 4 steps"):
        resolve(UpscaleOptions(steps=4, guidance="cfg"), few)
    with pytest.raises(OptionError, match="guidance_scale is 2"):
        resolve(UpscaleOptions(steps=1, guidance_scale=2), few)


def test_few_steps_accept_the_guidance_of_their_distillation(manifest: Manifest) -> None:
    sampler = replace(manifest.sampler, guidance=None, few_steps=4, few_guidance="m-cfg")
    few = replace(manifest, sampler=sampler)
    assert resolve(UpscaleOptions(steps=4), few).guidance is None  # by default a step is one call
    settings = resolve(UpscaleOptions(steps=4, guidance_scale=-0.5), few)
    assert (settings.guidance, settings.guidance_scale) == ("m-cfg", -0.5)
    other = UpscaleOptions(steps=1, guidance="m0-cfg", guidance_scale=1)
    assert resolve(other, few).guidance == "m0-cfg"
    with pytest.raises(OptionError, match="which would go unused: guidance is None"):
        resolve(UpscaleOptions(steps=4, guidance=None, guidance_scale=1), few)
    with pytest.raises(OptionError, match="which would go unused: guidance is None"):
        resolve(UpscaleOptions(steps=5, guidance_scale=1), few)


def test_a_unet_with_a_guidance_input_accepts_one_kind_of_guidance(manifest: Manifest) -> None:
    unet = manifest.components["unet"]
    unet = replace(unet, inputs=(*unet.inputs, TensorSpec("guidance", (1,), "float32")))
    components = {**manifest.components, "unet": unet}
    sampler = replace(manifest.sampler, guidance="m-cfg")
    conditioned = replace(manifest, components=components, sampler=sampler)
    assert resolve(UpscaleOptions(guidance_scale=2), conditioned).guidance_scale == 2
    with pytest.raises(OptionError, match="'cfg', but 'tiny' was distilled from 'm-cfg'"):
        resolve(UpscaleOptions(guidance="cfg"), conditioned)
