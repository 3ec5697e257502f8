"""Release gates: what a trained model must do before its weights are released.

Each function judges predictions, contexts or pictures, however they were made, and gives one `Gate`
per number. `gate_runs.measure` makes them with a checkpoint, on the path that a device takes.
Every limit stands here once, and there is no way around it: a model that fails is not released.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mmsr_edge.errors import ReleaseError
from mmsr_edge.training.denoiser import diffuse
from mmsr_edge.training.regions import REGIONS, DialEffect, widened

LEVELS = (99, 249, 499, 749, 999)
"""Timesteps at which the denoiser is measured."""
DENOISING = 0.9
"""Greatest error of the denoiser ÷ variance of its target; 1 is what a constant reaches."""
SHARE = 0.05
"""Least variance of the context between pictures ÷ its energy."""
COSINE = 0.8
"""Greatest mean cosine between the tokens of a context."""
MOVED, SPILT, GREY_LEVELS = 0.3, 0.1, 2.0
"""Of a dial from its lowest to its highest temperature: least change of the energy of detail in the
region that it moves, greatest change in the other, least mean |Δ| of the first."""
BETTER, PLACED = 2.0, 1.2
"""Of right maps against another picture's: least gain in error, in standard errors; least mean |Δ|
where the wrong maps have edges, ÷ that elsewhere."""

Prediction = Literal["v_prediction", "epsilon", "sample"]


@dataclass(frozen=True)
class Gate:
    """One measured number and its limit."""

    name: str
    """What was measured."""
    value: float
    """The number; not finite is failed."""
    limit: float
    """The limit; it passes itself."""
    at_least: bool
    """Whether the value must be at least the limit; otherwise at most."""

    @property
    def passed(self) -> bool:
        """Whether the value keeps the limit."""
        if not math.isfinite(self.value):
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def denoising_gates(
    predict: Callable[[Tensor, int], Tensor],
    z0: Tensor,
    alphas: Tensor,
    prediction: Prediction = "v_prediction",
    seed: int = 0,
) -> list[Gate]:
    """Error of the denoiser ÷ variance of its target, at each of `LEVELS`.

    Args:
        predict: the denoiser: z_t [N, C, h, w] and t to its prediction of the same shape.
        z0: clean latents, [N, C, h, w], as the diffusion models them.
        alphas: ᾱ_t of the schedule, [T].
        prediction: what it predicts.
        seed: seed of the noise.
    """
    g = torch.Generator().manual_seed(seed)
    gates = []
    for t in LEVELS:
        noise = torch.randn(z0.shape, generator=g)
        noisy, v = diffuse(z0, alphas[t].float().reshape(1, 1, 1, 1), noise)
        target = {"v_prediction": v, "epsilon": noise, "sample": z0}[prediction]
        error = (predict(noisy, t) - target).square().mean() / target.var()
        name = f"denoiser: error ÷ variance of its target at t = {t}"
        gates.append(Gate(name, error.item(), DENOISING, at_least=False))
    return gates


def context_gates(context: Tensor) -> list[Gate]:
    """Whether the context differs between pictures, and its tokens from each other.

    Args:
        context: contexts of N different pictures with all modalities, [N, L, D].
    """
    energy = context.square().mean()
    share = (context - context.mean(0)).square().mean() / energy
    unit = F.normalize(context, dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    n = context.shape[1]
    cosine = (cosines.sum() - cosines.diagonal(dim1=1, dim2=2).sum()) / (len(unit) * n * (n - 1))
    return [
        Gate("context: variance between pictures ÷ energy", share.item(), SHARE, at_least=True),
        Gate("context: mean cosine between its tokens", cosine.item(), COSINE, at_least=False),
    ]


def dial_gates(effect: DialEffect) -> list[Gate]:
    """Whether a modality's temperature moves its own region of the picture and no other."""
    mine, other = REGIONS[effect.modality]
    low, high = effect.temperatures[0], effect.temperatures[-1]
    dial = f"τ({effect.modality}) {low:g} to {high:g}:"
    return [
        Gate(f"{dial} detail of the {mine} moves by", effect.moved, MOVED, at_least=True),
        Gate(f"{dial} detail of the {other} moves by", effect.spilt, SPILT, at_least=False),
        Gate(f"{dial} mean |Δ| of the {mine}", effect.levels, GREY_LEVELS, at_least=True),
        Gate(f"{dial} steps the wrong way", effect.backward, 0, at_least=False),
    ]


@dataclass(frozen=True)
class MapTrial:
    """One picture with its own maps, of the HR picture, and with another picture's."""

    hr: NDArray[np.uint8]
    """The HR picture, [H, W, 3]."""
    right: NDArray[np.uint8]
    """The result with its own maps, [H, W, 3]."""
    wrong: NDArray[np.uint8]
    """The result with the other picture's maps, [H, W, 3]."""
    right_edges: NDArray[np.bool_]
    """Its own edge map, [H, W]."""
    wrong_edges: NDArray[np.bool_]
    """The other picture's edge map, [H, W]."""


def map_gates(trials: Sequence[MapTrial]) -> list[Gate]:
    """Whether right maps help, and whether a wrong map changes the picture where it is wrong.

    Errors are compared in decibels, tile by tile: in a mean of squares one noisy tile weighs as
    much as ten clean ones. The place is measured off the picture's own edges: there, texture is as
    likely under the wrong edges as elsewhere.
    """
    gains = [_decibels(t.wrong, t.hr) - _decibels(t.right, t.hr) for t in trials]
    spread = float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    here, elsewhere = [], []
    for t in trials:
        moved = np.abs(t.wrong.astype(np.int16) - t.right).mean(-1)
        off, wrong = ~widened(t.right_edges), widened(t.wrong_edges)
        here.append(moved[off & wrong])
        elsewhere.append(moved[off & ~wrong])
    placed = _mean(here) / max(_mean(elsewhere), 1e-9)
    return [
        Gate(
            "HR maps: another picture's raise the error in dB, in standard errors",
            float(np.mean(gains)) / max(spread, 1e-9), BETTER, at_least=True,
        ),
        Gate(
            "HR maps: mean |Δ| along another picture's edges ÷ elsewhere",
            placed, PLACED, at_least=True,
        ),
    ]  # fmt: skip


def _decibels(picture: NDArray[Any], reference: NDArray[Any]) -> float:
    """Mean square error in dB; that of equal pictures is as of one of 0.01 grey levels."""
    error = float(np.square(picture.astype(np.float32) - reference).mean())
    return 10 * math.log10(max(error, 1e-4))


def _mean(parts: list[NDArray[Any]]) -> float:
    together = np.concatenate(parts)
    return float(together.mean()) if together.size else math.nan


def gate_table(gates: Sequence[Gate]) -> str:
    """The gates as a table in plain text."""
    width = max(len(gate.name) for gate in gates)
    lines = []
    for gate in gates:
        sign = "≥" if gate.at_least else "≤"
        verdict = "" if gate.passed else "  FAILED"
        lines.append(f"{gate.name:<{width}}  {gate.value:8.4f}  {sign} {gate.limit:g}{verdict}")
    return "\n".join(lines)


def require(gates: Sequence[Gate]) -> None:
    """Check that all gates are passed.

    Raises:
        ReleaseError: some are not, or there are none; the message has the whole table.
    """
    failed = sum(not gate.passed for gate in gates)
    if failed or not gates:
        raise ReleaseError(
            f"{failed} of {len(gates)} release gates failed; the weights are not released, "
            f"train on\n{gate_table(gates) if gates else ''}"
        )
