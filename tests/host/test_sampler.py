"""The numpy sampler against diffusers, to 1e-5, for every schedule it can describe."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from mmsr_edge import sampler
from mmsr_edge.bundle import SamplerSpec

SHAPE = (1, 4, 6, 6)
COMBINATIONS = list(
    itertools.product(
        sampler.PREDICTION_TYPES, sampler.BETA_SCHEDULES, sampler.SPACINGS, (False, True)
    )
)


def spec_of(prediction_type: str, beta_schedule: str, spacing: str, zero_snr: bool) -> SamplerSpec:
    return SamplerSpec(
        prediction_type=prediction_type,
        num_train_timesteps=1000,
        beta_schedule=beta_schedule,
        beta_start=0.00085,
        beta_end=0.012,
        rescale_zero_snr=zero_snr,
        timestep_spacing=spacing,
        steps=10,
        guidance=None,
        guidance_scale=4.0,
        baked_guidance=None,
    )


def reference_of(spec: SamplerSpec) -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=spec.num_train_timesteps,
        beta_start=spec.beta_start,
        beta_end=spec.beta_end,
        beta_schedule=spec.beta_schedule,
        clip_sample=False,
        prediction_type=spec.prediction_type,
        timestep_spacing=spec.timestep_spacing,
        rescale_betas_zero_snr=spec.rescale_zero_snr,
    )


def normal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)


def network(prediction_type: str, alphas: np.ndarray):
    """A nonlinear stand-in whose clean estimate stays of order one at every noise level."""

    def denoise(latent: np.ndarray, timestep: int) -> np.ndarray:
        a = math.sqrt(alphas[timestep])
        s = math.sqrt(1 - alphas[timestep])
        clean = np.tanh(latent + 0.001 * timestep)
        if prediction_type == "sample":
            out = clean
        elif prediction_type == "epsilon":
            out = (latent - a * clean) / s
        else:
            out = (a * latent - clean) / s
        return out.astype(latent.dtype)

    return denoise


@pytest.mark.parametrize("beta_schedule", sampler.BETA_SCHEDULES)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_table_of_noise_levels(beta_schedule: str, zero_snr: bool) -> None:
    spec = spec_of("v_prediction", beta_schedule, "trailing", zero_snr)
    ours = sampler.make_schedule(spec).alphas_cumprod
    theirs = reference_of(spec).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.sqrt(ours), np.sqrt(theirs), rtol=0, atol=1e-5)
    assert (ours[-1] == 0) == zero_snr


@pytest.mark.parametrize("spacing", sampler.SPACINGS)
def test_timesteps(spacing: str) -> None:
    reference = reference_of(spec_of("epsilon", "linear", spacing, False))
    for steps in range(2, 1001):
        reference.set_timesteps(steps)
        theirs = reference.timesteps.numpy()  # with a spurious -1 at the end of some
        np.testing.assert_array_equal(sampler.timesteps(1000, steps, spacing), theirs[:steps])


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize(("prediction_type", "beta_schedule", "spacing", "zero_snr"), COMBINATIONS)
def test_one_step(
    prediction_type: str, beta_schedule: str, spacing: str, zero_snr: bool, eta: float
) -> None:
    spec = spec_of(prediction_type, beta_schedule, spacing, zero_snr)
    schedule = sampler.make_schedule(spec)
    alphas = schedule.alphas_cumprod
    reference = reference_of(spec)
    # The reference's table is float32, and off by more than 1e-5 near the noisy end, where
    # 1/sqrt(alpha) is in the thousands. The tables are compared above; here, the arithmetic.
    reference.alphas_cumprod = torch.from_numpy(alphas.copy())
    denoise = network(prediction_type, alphas)
    reference.set_timesteps(10)
    compared = 0
    for seed, t in enumerate(reference.timesteps.tolist()):
        if prediction_type == "epsilon" and alphas[t] == 0:
            continue
        latent, fresh = normal(seed).astype(np.float64), normal(100 + seed).astype(np.float64)
        prediction = denoise(latent, t)
        expected = reference.step(
            torch.from_numpy(prediction),
            t,
            torch.from_numpy(latent),
            eta=eta,
            variance_noise=torch.from_numpy(fresh) if eta else None,
        )
        before = t - 100
        alpha_next = alphas[before] if before >= 0 else 1.0
        denoised = sampler.to_denoised(latent, prediction, alphas[t], prediction_type)
        result = sampler.ddim_step(latent, denoised, alphas[t], alpha_next, eta, fresh)
        np.testing.assert_allclose(denoised, expected.pred_original_sample, rtol=0, atol=1e-5)
        np.testing.assert_allclose(result, expected.prev_sample, rtol=0, atol=1e-5)
        compared += 1
    assert compared >= 9


# Undefined where alpha is 0, and refused: see tests/device/test_sampler.py.
UNDEFINED = ("epsilon", "trailing", True)
TRAJECTORIES = [c for c in COMBINATIONS if c[2] != "linspace" and (c[0], *c[2:]) != UNDEFINED]


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("prediction_type", "beta_schedule", "spacing", "zero_snr"), TRAJECTORIES)
def test_a_whole_trajectory(
    prediction_type: str, beta_schedule: str, spacing: str, zero_snr: bool, eta: float
) -> None:
    spec = spec_of(prediction_type, beta_schedule, spacing, zero_snr)
    compare_trajectories(spec, eta, np.float64)


@pytest.mark.parametrize(
    ("prediction_type", "beta_schedule", "spacing", "zero_snr"),
    [c for c in TRAJECTORIES if c[1] != "squaredcos_cap_v2"],
)
def test_a_whole_trajectory_in_float32_with_the_references_own_table(
    prediction_type: str, beta_schedule: str, spacing: str, zero_snr: bool
) -> None:
    """But for eta > 0, where the reference's float32 roots cancel, and for the cosine schedule."""
    spec = spec_of(prediction_type, beta_schedule, spacing, zero_snr)
    compare_trajectories(spec, 0.0, np.float32)


def compare_trajectories(spec: SamplerSpec, eta: float, dtype: type) -> None:
    schedule = sampler.make_schedule(spec)
    reference = reference_of(spec)
    if dtype is np.float64:
        reference.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod.copy())
    reference.set_timesteps(10)
    denoise = network(spec.prediction_type, schedule.alphas_cumprod)
    noise = normal(0).astype(dtype)
    theirs = torch.from_numpy(noise)
    rng = np.random.default_rng(1)
    compared = 0
    for step in sampler.sample(
        denoise, noise, schedule, 10, spec.timestep_spacing, eta, np.random.default_rng(1)
    ):
        t = int(reference.timesteps[step.index])
        fresh = torch.from_numpy(rng.standard_normal(SHAPE, dtype=np.float32))
        theirs = reference.step(
            torch.from_numpy(denoise(theirs.numpy(), t)),
            t,
            theirs,
            eta=eta,
            variance_noise=fresh if eta else None,
        ).prev_sample
        assert (step.timestep, step.total, step.latent.dtype) == (t, 10, dtype)
        np.testing.assert_allclose(step.latent, theirs, rtol=0, atol=1e-5)
        compared += 1
    assert compared == 10
    np.testing.assert_array_equal(step.latent, step.denoised)


@pytest.mark.parametrize("prediction_type", sampler.PREDICTION_TYPES)
@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 10), ("trailing", 7)])
def test_trajectories_that_leave_the_grid_in_diffusers_ddim(
    prediction_type: str, spacing: str, steps: int
) -> None:
    """First-order DPM-Solver++ is DDIM, and steps to the next timestep as our sampler does."""
    spec = spec_of(prediction_type, "scaled_linear", spacing, False)
    schedule = sampler.make_schedule(spec)
    reference = DPMSolverMultistepScheduler(
        beta_start=spec.beta_start,
        beta_end=spec.beta_end,
        beta_schedule=spec.beta_schedule,
        prediction_type=prediction_type,
        solver_order=1,
        final_sigmas_type="zero",
    )
    reference.set_timesteps(timesteps=sampler.timesteps(schedule, steps, spacing).tolist())
    denoise = network(prediction_type, schedule.alphas_cumprod)
    theirs = torch.from_numpy(normal(3))
    for step in sampler.sample(denoise, normal(3), schedule, steps, spacing):
        t = reference.timesteps[step.index]
        prediction = torch.from_numpy(denoise(theirs.numpy(), int(t)))
        theirs = reference.step(prediction, t, theirs).prev_sample
        np.testing.assert_allclose(step.latent, theirs, rtol=0, atol=2e-5)
