"""The pipeline on one tile: the calls of each network, their inputs, and the results.

Sessions are spies around the reference networks in numpy; no runtime is involved.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import (
    CHANNELS,
    LATENT,
    LENGTH,
    MAP,
    RESIDUAL_SCALE,
    TILE,
    make_bundle,
    reference,
)

from mmsr_edge.bundle import ALIGNED, UNETS, Manifest, TensorSpec, load_manifest
from mmsr_edge.config import UpscaleOptions
from mmsr_edge.errors import BackendError, Cancelled
from mmsr_edge.modalities.aligned import align_maps
from mmsr_edge.modalities.prompt import encode_prompt
from mmsr_edge.pipeline import MultimodalPipeline, PictureRun
from mmsr_edge.settings import resolve

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

rng = np.random.default_rng(0)
LR = rng.uniform(-1, 1, (1, 3, TILE, TILE)).astype(np.float32)
NOISE = rng.standard_normal((1, CHANNELS, LATENT, LATENT)).astype(np.float32)
MAPS = {
    name: rng.uniform(-1, 1, (1, 3, MAP, MAP)).astype(np.float32)
    for name in ("depth", "segmentation", "edges")
}
MODALITY_INPUTS = ("text", "depth_tokens", "segmentation_tokens", "edge_tokens")


class Spies:
    """Opener of sessions that record every call."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.opened: Counter[str] = Counter()
        self.fed: list[tuple[str, dict[str, Array]]] = []

    def __call__(self, component: str) -> Any:
        self.opened[component] += 1
        return _Spy(self, component)

    def feeds(self, component: str) -> list[dict[str, Array]]:
        return [feeds for name, feeds in self.fed if name == component]


class _Spy:
    def __init__(self, spies: Spies, component: str) -> None:
        self._spies, self._component = spies, component
        spec = spies.manifest.components[component]
        self.inputs, self.outputs = spec.inputs, spec.outputs

    def run_all(self, calls: list[dict[str, Array]]) -> list[dict[str, Array]]:
        return [self._run(feeds) for feeds in calls]

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        assert {name: (a.shape, a.dtype.name) for name, a in feeds.items()} == {
            spec.name: (spec.shape, spec.dtype) for spec in self.inputs
        }
        self._spies.fed.append((self._component, feeds))
        if self._component == "connector":
            modalities = [
                feeds[name] if here else None
                for name, here in zip(MODALITY_INPUTS, feeds["present"][0], strict=True)
            ]
            result = reference.connector(modalities, tuple(feeds["temperature"][0]))
        elif self._component in UNETS:
            result = reference.unet(feeds["latent"], feeds["timestep"], feeds["context"])
        else:
            result = getattr(reference, self._component)(*feeds.values())
        return {self.outputs[0].name: result.astype(np.float32)}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_manifest(make_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def spies(manifest: Manifest) -> Spies:
    return Spies(manifest)


def start(spies: Spies, **options: Any) -> PictureRun:
    pipeline = MultimodalPipeline(spies.manifest, spies)
    return pipeline.start(resolve(UpscaleOptions(**options), spies.manifest))


def latent_of(run: PictureRun, maps: dict[str, Array] = MAPS, noise: Array = NOISE) -> Array:
    *_, last = run.denoise(LR, maps, noise)
    return last.latent


def context_of(manifest: Manifest, text: str | None, maps: dict[str, Array]) -> Array:
    """The reference connector's context for a prompt and maps at temperature 1."""
    embedding = None
    if text is not None:
        embedding = reference.text_encoder(encode_prompt(text, manifest.text))
    tokens = [reference.tokenizer(maps[name]) if name in maps else None for name in MAPS]
    return reference.connector([embedding, *tokens], (1, 1, 1, 1))


def one_step(context: Array, start: Array = NOISE) -> Array:
    """The HR latent after one step of a zero-SNR trajectory: z_0 = −v, then z_lr + s z_0."""
    z_lr = reference.lr_encoder(LR)
    v = reference.unet(np.concatenate([start, z_lr], axis=1), 999, context)
    latent: Array = z_lr - np.array(RESIDUAL_SCALE)[:, None, None] * v
    return latent


def test_one_step_is_the_formula(spies: Spies) -> None:
    run = start(spies, steps=1, prompt="a dog")
    (step,) = run.denoise(LR, MAPS, NOISE)
    expected = one_step(context_of(spies.manifest, "a dog, sharp", MAPS))
    np.testing.assert_allclose(step.latent, expected, atol=1e-5)
    assert (step.index, step.total) == (0, 1)
    np.testing.assert_array_equal(
        run.decode(step.latent, LR), reference.decoder(step.latent).clip(-1, 1)
    )


def test_few_steps_start_without_noise(manifest: Manifest) -> None:
    few = Spies(replace(manifest, sampler=replace(manifest.sampler, few_steps=2)))
    for steps, start_from in ((1, 0 * NOISE), (2, 0 * NOISE), (3, NOISE)):
        few.fed.clear()
        first, *_ = start(few, steps=steps, prompt="").denoise(LR, MAPS, NOISE)
        fed = few.feeds("unet")[0]["latent"][:, :CHANNELS]
        np.testing.assert_array_equal(fed, start_from)
        if steps == 1:
            expected = one_step(context_of(manifest, "sharp", MAPS), start_from)
            np.testing.assert_allclose(first.latent, expected, atol=1e-5)
    plain = start(Spies(manifest), steps=1, prompt="").denoise(LR, MAPS, NOISE)
    np.testing.assert_allclose(
        next(plain).latent, one_step(context_of(manifest, "sharp", MAPS)), atol=1e-5
    )


def test_without_residual_scale_the_prediction_is_the_latent(manifest: Manifest) -> None:
    plain = replace(manifest, latent=replace(manifest.latent, residual_scale=None))
    latent = latent_of(start(Spies(plain), steps=1))
    z_lr = reference.lr_encoder(LR)
    context = context_of(manifest, "sharp", MAPS)
    expected = -reference.unet(np.concatenate([NOISE, z_lr], axis=1), 999, context)
    np.testing.assert_allclose(latent, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("guidance", "negative_prompt", "negative_text", "negative_maps"),
    [
        ("m-cfg", "fog", "fog", MAPS),
        ("m-cfg", None, "blurry, noisy", MAPS),  # the bundle's
        ("m-cfg", " ", None, MAPS),
        ("m0-cfg", "fog", "fog", {}),
        ("m0-cfg", None, "blurry, noisy", {}),
        ("cfg", "fog", "fog", {}),  # Eq. 3
        ("cfg", "rain", "rain", {}),
        ("cfg", None, None, {}),  # Table 3: the empty language token
    ],
)
@pytest.mark.parametrize("w", [1.5, -0.5])
def test_guidance_calls_the_unet_twice_and_follows_equations_3_and_4(
    spies: Spies,
    guidance: str,
    negative_prompt: str | None,
    negative_text: str | None,
    negative_maps: dict[str, Array],
    w: float,
) -> None:
    run = start(
        spies,
        steps=1,
        guidance=guidance,
        guidance_scale=w,
        prompt="dog",
        negative_prompt=negative_prompt,
    )
    latent = latent_of(run)
    positive = context_of(spies.manifest, "dog, sharp", MAPS)
    negative = context_of(spies.manifest, negative_text, negative_maps)
    fed = [feeds["context"] for feeds in spies.feeds("unet")]
    assert len(fed) == 2
    np.testing.assert_allclose(fed[0], positive, atol=1e-6)
    np.testing.assert_allclose(fed[1], negative, atol=1e-6)
    # Linear in the prediction: the guided latent is the same combination of the two.
    expected = (1 + w) * one_step(positive) - w * one_step(negative)
    np.testing.assert_allclose(latent, expected, atol=1e-5)


@pytest.mark.parametrize("guidance", ["m-cfg", "m0-cfg", "cfg"])
def test_two_negative_prompts_give_two_pictures(spies: Spies, guidance: str) -> None:
    fog, rain = (
        latent_of(start(spies, guidance=guidance, guidance_scale=2, negative_prompt=text))
        for text in ("fog", "rain")
    )
    assert np.abs(fog - rain).max() > 1e-3


def test_a_negative_prompt_counts_without_a_prompt(spies: Spies) -> None:
    run = start(
        spies, steps=1, prompt=None, guidance="cfg", guidance_scale=1, negative_prompt="fog"
    )
    latent_of(run)
    positive, negative = (feeds["present"].tolist() for feeds in spies.feeds("connector"))
    assert (positive, negative) == ([[0, 1, 1, 1]], [[1, 0, 0, 0]])


@pytest.mark.parametrize("guidance", ["m-cfg", "m0-cfg", "cfg"])
def test_guidance_scale_zero_calls_the_unet_once_per_step(spies: Spies, guidance: str) -> None:
    plain = latent_of(start(spies, steps=3, guidance=None))
    spies.fed.clear()
    guided = latent_of(start(spies, steps=3, guidance=guidance, guidance_scale=0))
    np.testing.assert_array_equal(plain, guided)
    assert len(spies.feeds("unet")) == 3
    assert len(spies.feeds("connector")) == 1


def test_a_unet_with_a_guidance_input_is_called_once_per_step(manifest: Manifest) -> None:
    unet = manifest.components["unet"]
    unet = replace(unet, inputs=(*unet.inputs, TensorSpec("guidance", (1,), "float32")))
    spies = Spies(
        replace(
            manifest,
            components={**manifest.components, "unet": unet},
            sampler=replace(manifest.sampler, guidance="m-cfg"),
        )
    )
    latent_of(start(spies, steps=2, guidance_scale=2.5))
    latent_of(start(spies, steps=1, guidance=None))
    assert [feeds["guidance"].tolist() for feeds in spies.feeds("unet")] == [[2.5], [2.5], [0.0]]


def test_the_number_of_steps_chooses_the_session(manifest: Manifest) -> None:
    """Each UNet with the inputs that it takes; the one that is not needed stays closed."""
    unet = manifest.components["unet"]
    w = TensorSpec("guidance", (1,), "float32")
    components = {
        **manifest.components,
        "unet": replace(unet, inputs=(*unet.inputs, w)),
        "diffusion_unet": replace(unet, name="diffusion_unet"),
    }
    sampler = replace(
        manifest.sampler, few_steps=2, few_guidance="m-cfg", guidance="m-cfg", diffusion="separate"
    )
    both = replace(manifest, components=components, sampler=sampler)
    student, diffusion = Spies(both), Spies(both)
    run = start(student, steps=2, guidance_scale=0.5)
    latent_of(run)
    assert (run.calls["unet"], student.opened["diffusion_unet"]) == (2, 0)
    assert [feeds["guidance"].tolist() for feeds in student.feeds("unet")] == [[0.5], [0.5]]
    run = start(diffusion, steps=3, guidance_scale=0.5)
    latent_of(run)
    assert (run.calls["diffusion_unet"], diffusion.opened["unet"]) == (6, 0)
    first = diffusion.feeds("diffusion_unet")[0]
    np.testing.assert_array_equal(first["latent"][:, :CHANNELS], NOISE)


@pytest.fixture
def aligning(manifest: Manifest) -> Spies:
    """UNet and decoder take maps aligned with the latent, of 4 map pixels to a cell."""
    names = ("tokenizer", "unet", "decoder")
    tokenizer, unet, decoder = (manifest.components[name] for name in names)
    side = 4 * LATENT
    tokenizer = replace(tokenizer, inputs=(TensorSpec("map", (1, 3, side, side), "float32"),))
    aligned = TensorSpec("aligned", (1, ALIGNED, LATENT, LATENT), "float32")
    made = [tokenizer, *(replace(c, inputs=(*c.inputs, aligned)) for c in (unet, decoder))]
    components = {**manifest.components, **dict(zip(names, made, strict=True))}
    return Spies(replace(manifest, components=components))


@pytest.mark.parametrize(
    ("guidance", "negative"), [("m-cfg", ["depth", "edges"]), ("m0-cfg", []), ("cfg", [])]
)
def test_a_unet_may_take_aligned_maps(aligning: Spies, guidance: str, negative: list[str]) -> None:
    maps = {name: MAPS[name].repeat(2, axis=2).repeat(2, axis=3) for name in ("depth", "edges")}
    run = start(aligning, steps=1, guidance=guidance, guidance_scale=1)
    latent_of(run, {**maps, "segmentation": None})  # type: ignore[dict-item]
    fed = [feeds["aligned"] for feeds in aligning.feeds("unet")]
    seen_by_negative = {name: maps[name] for name in negative}
    np.testing.assert_array_equal(fed[0], align_maps(maps, LATENT))
    np.testing.assert_array_equal(fed[1], align_maps(seen_by_negative, LATENT))
    assert np.abs(fed[0][:, 4:20]).max() > 0.5
    assert (np.abs(fed[1]).max() > 0) == bool(negative)
    temperature = {"depth": 0.5, "edges": 3.0}
    latent_of(start(aligning, steps=1, temperature=temperature), maps)
    warm = aligning.feeds("unet")[-1]["aligned"]
    np.testing.assert_array_equal(warm, align_maps(maps, LATENT, temperature))
    assert (warm != fed[0]).any()


@pytest.mark.parametrize("guidance", ["m-cfg", "m0-cfg"])
def test_a_decoder_may_take_aligned_maps(aligning: Spies, guidance: str) -> None:
    """It gets those of the positive prediction, with the temperatures."""
    maps = {name: MAPS[name].repeat(2, axis=2).repeat(2, axis=3) for name in ("depth", "edges")}
    temperature = {"depth": 0.5, "edges": 3.0}
    run = start(aligning, steps=1, guidance=guidance, guidance_scale=1, temperature=temperature)
    latent = latent_of(run, maps)
    run.decode(latent, LR, {**maps, "segmentation": None})
    run.decode(latent, LR)
    told, untold = (feeds["aligned"] for feeds in aligning.feeds("decoder"))
    np.testing.assert_array_equal(told, align_maps(maps, LATENT, temperature))
    assert np.abs(told[:, -3:]).max() > 0 and not untold.any()


def test_a_decoder_may_take_the_lr_tile(manifest: Manifest) -> None:
    decoder = manifest.components["decoder"]
    lr = TensorSpec("lr", LR.shape, "float32")
    decoder = replace(decoder, inputs=(*decoder.inputs, lr))
    spies = Spies(replace(manifest, components={**manifest.components, "decoder": decoder}))
    run = start(spies)
    run.decode(latent_of(run), LR)
    np.testing.assert_array_equal(spies.feeds("decoder")[0]["lr"], LR)


def test_temperature_reaches_the_connector_in_order(spies: Spies) -> None:
    latent_of(start(spies, steps=1, temperature={"edges": 2, "text": 0.5}))
    (feeds,) = spies.feeds("connector")
    np.testing.assert_array_equal(feeds["temperature"], np.array([[0.5, 1, 1, 2]], np.float32))


@pytest.mark.parametrize("left_out", ["depth", "segmentation", "edges"])
def test_an_absent_map_is_marked_absent_and_not_tokenized(spies: Spies, left_out: str) -> None:
    maps = {name: given for name, given in MAPS.items() if name != left_out}
    latent_of(start(spies, steps=1), {**maps, left_out: None})  # type: ignore[dict-item]
    (feeds,) = spies.feeds("connector")
    place = list(MAPS).index(left_out) + 1
    assert feeds["present"].tolist() == [[float(i != place) for i in range(4)]]
    for name, given in maps.items():
        i = list(MAPS).index(name) + 1
        np.testing.assert_allclose(feeds[MODALITY_INPUTS[i]], reference.tokenizer(given), atol=1e-5)
    assert len(spies.feeds("tokenizer")) == 2


def test_no_text_is_absent_text(manifest: Manifest) -> None:
    spies = Spies(replace(manifest, text=replace(manifest.text, positive="")))
    latent_of(start(spies, steps=1))
    (feeds,) = spies.feeds("connector")
    assert feeds["present"].tolist() == [[0, 1, 1, 1]]
    assert not spies.feeds("text_encoder")


def test_inputs_shared_by_tiles_are_computed_once_per_picture(spies: Spies) -> None:
    run = start(spies, steps=2, guidance="m0-cfg", guidance_scale=1)
    for _ in range(3):
        latent_of(run)
    # Two prompts; three conditions with maps and the one without.
    assert run.calls == {
        "text_encoder": 2,
        "tokenizer": 9,
        "connector": 4,
        "lr_encoder": 3,
        "unet": 12,
    }
    assert set(run.seconds) == {*run.calls, "load"}
    assert all(seconds > 0 for seconds in run.seconds.values())

    run = start(spies, steps=2, guidance="m-cfg", guidance_scale=1)
    for _ in range(3):
        latent_of(run, {})
    assert run.calls["connector"] == 2


def test_the_trajectory_follows_the_trailing_timesteps(spies: Spies) -> None:
    steps = list(start(spies, steps=4).denoise(LR, MAPS, NOISE))
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert [feeds["timestep"].item() for feeds in spies.feeds("unet")] == [999, 749, 499, 249]
    for feeds in spies.feeds("unet"):
        np.testing.assert_allclose(
            feeds["latent"][:, CHANNELS:], reference.lr_encoder(LR), atol=1e-6
        )


def test_a_check_that_raises_ends_it_before_the_next_network_call(spies: Spies) -> None:
    def check() -> None:
        if len(spies.feeds("unet")) == 4:
            raise Cancelled("enough")

    pipeline = MultimodalPipeline(spies.manifest, spies)
    options = UpscaleOptions(steps=4, guidance="m-cfg", guidance_scale=1)
    run = pipeline.start(resolve(options, spies.manifest), check)
    with pytest.raises(Cancelled):
        latent_of(run)
    # Two steps, each of a positive and a negative call; the third does not begin.
    assert spies.fed[-1][0] == "unet"
    assert len(spies.feeds("unet")) == 4


def test_numbers_that_are_not_finite_are_refused(spies: Spies) -> None:
    latent = np.zeros((1, CHANNELS, LATENT, LATENT), np.float32)
    latent[0, 0, 3, 4] = np.nan
    with pytest.raises(BackendError, match=r"not finite.*fp32"):
        start(spies).decode(latent, LR)


def test_sessions_are_opened_when_needed_and_only_once(spies: Spies) -> None:
    pipeline = MultimodalPipeline(spies.manifest, spies)
    assert not spies.opened
    settings = resolve(UpscaleOptions(steps=1), spies.manifest)
    gate = threading.Barrier(4)

    def work() -> None:
        gate.wait()
        latent_of(pipeline.start(settings))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spies.opened == dict.fromkeys(
        ("text_encoder", "tokenizer", "connector", "lr_encoder", "unet"), 1
    )


def test_the_reference_depends_on_every_input() -> None:
    """Swapping any two inputs changes its result."""
    texts = [reference.text_encoder(np.full((1, LENGTH), i)) for i in (3, 4)]
    tokens = [reference.tokenizer(given) for given in MAPS.values()]
    base = one_step(reference.connector([texts[0], *tokens], (1, 1, 1, 1)))
    for other in (
        reference.connector([texts[1], *tokens], (1, 1, 1, 1)),
        reference.connector([texts[0], tokens[1], tokens[0], tokens[2]], (1, 1, 1, 1)),
        reference.connector([texts[0], tokens[0], tokens[2], tokens[1]], (1, 1, 1, 1)),
        reference.connector([texts[0], *tokens], (1, 1, 1, 2)),
    ):
        assert np.abs(one_step(other) - base).max() > 1e-3
