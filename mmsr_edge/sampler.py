"""Sampler: noise schedules, DDIM and guidance as pure functions of numpy arrays.

Nothing here depends on networks or backends: `sample` takes a noise latent to a clean one with any
function `denoise(latent, timestep) -> prediction`, and yields every step, so that progress and
cancellation cost nothing. A distilled few-step model is sampled the same way, in fewer steps.

Notation. `alpha` is the cumulative ᾱ_t of the DDIM paper: a noisy latent is
z_t = √ᾱ_t · z_0 + √(1 − ᾱ_t) · ε, so ᾱ = 1 is clean and ᾱ = 0 is pure noise.

Sources: MMSR (Eq. 3-4); Song et al., *Denoising Diffusion Implicit Models* (2021); Lin et al.,
*Common Diffusion Noise Schedules and Sample Steps are Flawed* (2023), zero terminal SNR and
"trailing" timesteps; Salimans & Ho (2022), v-prediction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from mmsr_edge.bundle import SamplerSpec

    Array = npt.NDArray[Any]
    Denoiser = Callable[[Array, int], Array]

__all__ = [
    "BETA_SCHEDULES",
    "GUIDANCE",
    "PREDICTION_TYPES",
    "SPACINGS",
    "Schedule",
    "Step",
    "ddim_step",
    "guide",
    "make_schedule",
    "negative_present",
    "sample",
    "timesteps",
    "to_denoised",
]

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")
BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")
SPACINGS = ("trailing", "leading", "linspace")
GUIDANCE = ("m-cfg", "m0-cfg", "cfg")


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much signal is left at every training timestep, and what the network predicts."""

    alphas_cumprod: npt.NDArray[np.float64]
    """ᾱ_t for t = 0 … T−1, falling from almost 1 towards 0."""
    prediction_type: str
    """What the network's output means: one of `PREDICTION_TYPES`."""

    def __len__(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alphas_cumprod)


@dataclass(frozen=True, eq=False)
class Step:
    """The state after one sampler step."""

    index: int
    """Index of the step: 0 for the first, `total` − 1 for the last."""
    total: int
    """Number of steps of the trajectory."""
    timestep: int
    """The training timestep at which the network was called."""
    latent: Array
    """The latent handed to the next step; after the last step, the result."""
    denoised: Array
    """The network's current estimate of the clean latent."""


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def make_schedule(spec: SamplerSpec) -> Schedule:
    """Build the table of ᾱ_t that `spec` describes.

    With `rescale_zero_snr` the last ᾱ becomes exactly 0 (Lin et al., Algorithm 1), so that sampling
    starts from the pure noise the network was trained on.

    Raises:
        OptionError: for an unknown beta schedule or prediction type.
    """
    _choice("beta_schedule", spec.beta_schedule, BETA_SCHEDULES)
    _choice("prediction_type", spec.prediction_type, PREDICTION_TYPES)
    T = spec.num_train_timesteps
    betas: npt.NDArray[np.float64]
    if spec.beta_schedule == "scaled_linear":
        betas = np.linspace(math.sqrt(spec.beta_start), math.sqrt(spec.beta_end), T) ** 2
    elif spec.beta_schedule == "linear":
        betas = np.linspace(spec.beta_start, spec.beta_end, T)
    else:  # Nichol & Dhariwal (2021), Eq. 17, betas capped at 0.999
        edges = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - edges[1:] / edges[:-1], 0.999)
    alphas: npt.NDArray[np.float64] = np.cumprod(1 - betas, dtype=np.float64)
    if spec.rescale_zero_snr:
        root = np.sqrt(alphas)
        alphas = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return Schedule(alphas, spec.prediction_type)


def timesteps(schedule: Schedule | int, steps: int, spacing: str) -> npt.NDArray[np.int64]:
    """The training timesteps to visit, noisiest first: int64 [steps].

    "trailing" always includes T−1, where the latent is (nearly) pure noise, and is the one spacing
    that makes sense for few steps; "leading" and "linspace" are there for published weights.

    Args:
        schedule: a schedule, or T itself.
        steps: how many, 1 … T.
        spacing: one of `SPACINGS`.

    Raises:
        OptionError: when `steps` is out of range, or is 1 with a spacing that would give only
            t = 0, the clean end.
    """
    _choice("timestep_spacing", spacing, SPACINGS)
    T = schedule if isinstance(schedule, int) else len(schedule)
    lowest = 1 if spacing == "trailing" else 2
    if not lowest <= steps <= T:
        raise OptionError(
            f"steps is {steps}; with {spacing!r} timesteps it must be from {lowest} to {T}"
        )
    if spacing == "trailing":
        # arange's rounding can add one value too many at the end: the spurious timestep -1.
        return (np.round(np.arange(T, 0, -T / steps)[:steps]) - 1).astype(np.int64)
    if spacing == "leading":
        return (np.arange(steps)[::-1] * (T // steps)).astype(np.int64)
    return np.round(np.linspace(0, T - 1, steps)[::-1]).astype(np.int64)


def to_denoised(sample: Array, prediction: Array, alpha: float, prediction_type: str) -> Array:
    """The clean latent z_0 that a network's `prediction` at noise level `alpha` implies.

    Raises:
        OptionError: for "epsilon" at alpha = 0, where the sample contains no signal.
    """
    _choice("prediction_type", prediction_type, PREDICTION_TYPES)
    alpha = float(alpha)
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":  # v = √ᾱ ε − √(1−ᾱ) z_0 (Salimans & Ho, App. D)
        return math.sqrt(alpha) * sample - math.sqrt(1 - alpha) * prediction
    if alpha == 0:
        raise OptionError(
            "prediction_type 'epsilon' is undefined where the signal is zero (alpha = 0): "
            "with rescale_zero_snr use 'v_prediction' or 'sample', or 'leading' timesteps"
        )
    return (sample - math.sqrt(1 - alpha) * prediction) / math.sqrt(alpha)


def ddim_step(
    sample: Array,
    denoised: Array,
    alpha: float,
    alpha_next: float,
    eta: float = 0.0,
    noise: Array | None = None,
) -> Array:
    """One DDIM step from noise level `alpha` to the cleaner `alpha_next` (Song et al., Eq. 12).

    Args:
        sample: the noisy latent z_t, any shape.
        denoised: the estimate of z_0 from `to_denoised`, same shape.
        alpha: ᾱ of `sample`, below 1.
        alpha_next: ᾱ to reach; 1 ends the trajectory and returns `denoised`.
        eta: 0 is deterministic, 1 has the variance of DDPM (Eq. 16).
        noise: standard normal, same shape; needed when `eta` > 0.
    """
    alpha, alpha_next = float(alpha), float(alpha_next)
    epsilon = (sample - math.sqrt(alpha) * denoised) / math.sqrt(1 - alpha)
    # Eq. 16
    variance = eta**2 * (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
    # Eq. 12: "predicted z_0" + "direction pointing to z_t" + "random noise"
    direction = math.sqrt(max(1 - alpha_next - variance, 0.0)) * epsilon
    result: Array = math.sqrt(alpha_next) * denoised + direction
    if variance > 0:
        if noise is None:
            raise OptionError(f"eta is {eta}: a step with eta > 0 needs `noise`")
        result = result + math.sqrt(variance) * noise
    return result


def guide(positive: Array, negative: Array, w: float | Array) -> Array:
    """Classifier-free guidance: push the positive prediction away from the negative one by `w`.

    Eq. 3 and Eq. 4 are the same combination; what differs is the condition under which
    `negative` was predicted (`negative_present`). w = 0 returns the positive prediction. As an
    array, w varies over the latent.
    """
    # Eq. 3-4: (1 + w) ε(z_t, c, pos, m) − w ε(z_t, c, neg, m)
    return (1 + w) * positive - w * negative


def negative_present(guidance: str, present: Array) -> Array:
    """Which modalities the negative prediction is given. The positive is given all (Sec. 4.1).

    "m-cfg" keeps the maps: ε(z_t, c, neg, m) of Eq. 4. "cfg" has text alone, as methods without
    maps do: ε(z_t, c, neg) of Eq. 3. "m0-cfg" is Table 3's control for the architecture, with m∅ in
    place of the maps: ε(z_t, c, m∅, neg). In this network a map that is absent *is* m∅, so for one
    negative prompt the last two are the same. They differ in the prompt that they have where the
    caller gives none (`settings.resolve`): "m0-cfg" the bundle's, "cfg" none, the "empty language
    token" of Table 3.

    Args:
        guidance: one of `GUIDANCE`.
        present: float32 [..., 4] of 0 and 1, order text, depth, segmentation, edges: whether there
            is a negative prompt, and the maps of the positive prediction.
    """
    _choice("guidance", guidance, GUIDANCE)
    negative = np.array(present)
    if guidance != "m-cfg":
        negative[..., 1:] = 0
    return negative


def sample(
    denoise: Denoiser,
    noise: Array,
    schedule: Schedule,
    steps: int,
    spacing: str,
    eta: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Iterator[Step]:
    """Sample a clean latent from pure noise by DDIM, yielding after every step.

    Unlike `diffusers.DDIMScheduler`, which always goes T // steps timesteps down, each step goes
    exactly to the timestep at which the network is called next. Where the two differ ("linspace",
    and "trailing" when `steps` does not divide T), the scheduler leaves the latent at another noise
    level than that of the timestep given to the next call.

    Args:
        denoise: the network, guidance included: (latent, timestep) -> prediction, same shape.
        noise: standard normal, float32, any shape; it is not altered.
        schedule: from `make_schedule`.
        steps: number of network calls.
        spacing: one of `SPACINGS`.
        eta: 0 … 1, see `ddim_step`.
        rng: draws the noise of `eta` > 0, one array of the latent's shape a step.

    Raises:
        OptionError: as `timesteps` and `to_denoised` do, before the network is first called.
    """
    if not 0 <= eta <= 1:
        raise OptionError(f"eta is {eta}; it must be from 0 to 1")
    if eta > 0 and rng is None:
        raise OptionError(f"eta is {eta}: sampling with eta > 0 needs `rng`")
    visited = timesteps(schedule, steps, spacing).tolist()
    alphas = [float(schedule.alphas_cumprod[t]) for t in visited] + [1.0]
    # Called on an empty latent, so that an undefined prediction is refused before the first step.
    to_denoised(noise[:0], noise[:0], alphas[0], schedule.prediction_type)
    return _trajectory(denoise, noise, schedule.prediction_type, visited, alphas, eta, rng)


def _trajectory(
    denoise: Denoiser,
    latent: Array,
    prediction_type: str,
    visited: list[int],
    alphas: list[float],
    eta: float,
    rng: np.random.Generator | None,
) -> Iterator[Step]:
    # Separate from `sample`, so that its checks run when it is called, not at the first `next`.
    for index, timestep in enumerate(visited):
        alpha, alpha_next = alphas[index : index + 2]
        denoised = to_denoised(latent, denoise(latent, timestep), alpha, prediction_type)
        fresh = None
        if rng is not None and eta > 0:
            fresh = rng.standard_normal(latent.shape, dtype=np.float32)
        latent = ddim_step(latent, denoised, alpha, alpha_next, eta, fresh)
        yield Step(index, len(visited), timestep, latent, denoised)
