"""Closed-form properties of the sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmsr_edge import sampler
from mmsr_edge.bundle import SamplerSpec
from mmsr_edge.errors import OptionError


def spec_of(**changes: object) -> SamplerSpec:
    fields = {
        "prediction_type": "v_prediction",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "rescale_zero_snr": True,
        "timestep_spacing": "trailing",
        "steps": 4,
        "guidance": None,
        "guidance_scale": 4.0,
        "baked_guidance": None,
    }
    return SamplerSpec(**(fields | changes))


def perfect(clean: np.ndarray, schedule: sampler.Schedule):
    """A perfect denoiser: its prediction is exact for a latent of `clean` plus noise."""

    def denoise(latent: np.ndarray, timestep: int) -> np.ndarray:
        alpha = float(schedule.alphas_cumprod[timestep])
        noise = (latent - math.sqrt(alpha) * clean) / math.sqrt(1 - alpha)
        return {
            "sample": clean,
            "epsilon": noise,
            "v_prediction": math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean,
        }[schedule.prediction_type]

    return denoise


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 50])
@pytest.mark.parametrize("prediction_type", sampler.PREDICTION_TYPES)
def test_a_perfect_network_is_followed_to_the_picture(
    prediction_type: str, steps: int, eta: float
) -> None:
    schedule = sampler.make_schedule(
        spec_of(prediction_type=prediction_type, rescale_zero_snr=False)
    )
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 1, 4, 8, 8))
    trajectory = list(
        sampler.sample(perfect(clean, schedule), noise, schedule, steps, "trailing", eta, rng)
    )
    assert [step.index for step in trajectory] == list(range(steps))
    np.testing.assert_allclose(trajectory[-1].latent, clean, rtol=0, atol=1e-9)


def test_every_step_reaches_the_noise_level_of_its_timestep() -> None:
    """With eta = 0 and a perfect network, the latent stays sqrt(a) z0 + sqrt(1-a) noise."""
    schedule = sampler.make_schedule(spec_of())
    clean, noise = np.random.default_rng(1).standard_normal((2, 1, 4, 8, 8))
    levels = [*schedule.alphas_cumprod[sampler.timesteps(schedule, 7, "trailing")][1:], 1.0]
    for step in sampler.sample(perfect(clean, schedule), noise, schedule, 7, "trailing"):
        a = levels[step.index]
        expected = math.sqrt(a) * clean + math.sqrt(1 - a) * noise
        np.testing.assert_allclose(step.latent, expected, rtol=0, atol=1e-9)


def test_eta_1_keeps_the_variance_of_the_forward_process() -> None:
    schedule = sampler.make_schedule(spec_of(prediction_type="sample"))
    clean = np.zeros((200, 200))
    rng = np.random.default_rng(2)
    noise = rng.standard_normal(clean.shape)
    levels = [*schedule.alphas_cumprod[sampler.timesteps(schedule, 5, "trailing")][1:], 1.0]
    trajectory = sampler.sample(lambda *_: clean, noise, schedule, 5, "trailing", 1.0, rng)
    for step in trajectory:
        assert step.latent.var() == pytest.approx(1 - levels[step.index], rel=0.05, abs=1e-9)


def test_the_same_seed_gives_the_same_bytes() -> None:
    schedule = sampler.make_schedule(spec_of())

    def run(seed: int) -> bytes:
        rng = np.random.Generator(np.random.Philox(seed))
        noise = rng.standard_normal((1, 4, 8, 8), dtype=np.float32)
        trajectory = sampler.sample(
            lambda z, t: np.tanh(z), noise, schedule, 4, "trailing", 0.5, rng
        )
        latent = list(trajectory)[-1].latent
        assert latent.dtype == np.float32
        return latent.tobytes()

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_noise_is_left_alone_and_steps_come_one_by_one() -> None:
    schedule = sampler.make_schedule(spec_of())
    noise = np.ones((1, 4, 2, 2), np.float32)
    calls: list[int] = []

    def denoise(latent: np.ndarray, timestep: int) -> np.ndarray:
        calls.append(timestep)
        return latent * 0.5

    trajectory = sampler.sample(denoise, noise, schedule, 4, "trailing")
    assert calls == []
    next(trajectory)
    assert calls == [999]
    list(trajectory)
    assert calls == [999, 749, 499, 249]
    assert (noise == 1).all()


def test_guidance_by_hand() -> None:
    positive = np.array([1.0, -2.0], np.float32)
    negative = np.array([0.5, 3.0], np.float32)
    np.testing.assert_array_equal(sampler.guide(positive, negative, 0), positive)
    np.testing.assert_array_equal(sampler.guide(positive, negative, 4), [3.0, -22.0])
    np.testing.assert_array_equal(sampler.guide(positive, positive, 4), positive)
    assert sampler.guide(positive, negative, 4.0).dtype == np.float32
    by_place = np.array([0, 4], np.float32)
    np.testing.assert_array_equal(sampler.guide(positive, negative, by_place), [1.0, -22.0])
    assert sampler.guide(positive, negative, by_place).dtype == np.float32


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [("m-cfg", [1, 1, 0, 1]), ("m0-cfg", [1, 0, 0, 0]), ("cfg", [1, 0, 0, 0])],
)
def test_modalities_of_the_negative_prediction(guidance: str, expected: list[int]) -> None:
    present = np.array([[1, 1, 0, 1]], np.float32)
    np.testing.assert_array_equal(sampler.negative_present(guidance, present), [expected])
    np.testing.assert_array_equal(present, [[1, 1, 0, 1]])
    wordless = np.array([[0, 1, 0, 1]], np.float32)
    assert sampler.negative_present(guidance, wordless)[0].tolist() == [0, *expected[1:]]
    with pytest.raises(OptionError, match="'pag'"):
        sampler.negative_present("pag", present)


def test_zero_terminal_snr_starts_from_pure_noise() -> None:
    schedule = sampler.make_schedule(spec_of())
    alphas = schedule.alphas_cumprod
    assert alphas[-1] == 0
    assert (np.diff(alphas) < 0).all()
    plain = sampler.make_schedule(spec_of(rescale_zero_snr=False)).alphas_cumprod
    assert alphas[0] == pytest.approx(plain[0], abs=1e-12)


def test_refusals_quote_the_value() -> None:
    schedule = sampler.make_schedule(spec_of())
    noise = np.zeros((1, 4, 2, 2), np.float32)
    with pytest.raises(OptionError, match=r"steps is 0.*1 to 1000"):
        sampler.timesteps(schedule, 0, "trailing")
    with pytest.raises(OptionError, match=r"steps is 1001"):
        sampler.timesteps(1000, 1001, "trailing")
    with pytest.raises(OptionError, match=r"steps is 1; with 'leading'.*2 to"):
        sampler.timesteps(schedule, 1, "leading")
    with pytest.raises(OptionError, match="'karras'"):
        sampler.timesteps(schedule, 4, "karras")
    with pytest.raises(OptionError, match="'cosine'"):
        sampler.make_schedule(spec_of(beta_schedule="cosine"))
    with pytest.raises(OptionError, match="'flow'"):
        sampler.make_schedule(spec_of(prediction_type="flow"))
    with pytest.raises(OptionError, match=r"eta is 1\.5"):
        sampler.sample(lambda z, t: z, noise, schedule, 4, "trailing", eta=1.5)
    with pytest.raises(OptionError, match="needs `rng`"):
        sampler.sample(lambda z, t: z, noise, schedule, 4, "trailing", eta=0.5)
    with pytest.raises(OptionError, match="needs `noise`"):
        sampler.ddim_step(noise, noise, 0.2, 0.5, eta=1.0)


def test_epsilon_at_zero_snr_is_refused_before_the_network_runs() -> None:
    schedule = sampler.make_schedule(spec_of(prediction_type="epsilon"))
    noise = np.zeros((1, 4, 2, 2), np.float32)

    def denoise(latent: np.ndarray, timestep: int) -> np.ndarray:
        raise AssertionError("called")

    with pytest.raises(OptionError, match="rescale_zero_snr"):
        sampler.sample(denoise, noise, schedule, 4, "trailing")
    # "leading" never visits T - 1, so there the combination is sound.
    sampler.sample(denoise, noise, schedule, 4, "leading")
