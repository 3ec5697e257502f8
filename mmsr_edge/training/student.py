"""The student, which gives the residual in one step, and how it begins with other weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mmsr_edge.bundle import MAP_TOKENS
from mmsr_edge.modalities.prompt import encode_prompt
from mmsr_edge.models.device import autocast
from mmsr_edge.models.presets import preset
from mmsr_edge.training.data.tile_samples import Conditions, ConditionsConfig, TileSamples
from mmsr_edge.training.denoiser import Denoiser, alphas
from mmsr_edge.training.states import start_from

RATES = {
    "connector": 6.0,
    "text_encoder": 2.0,
    ".attn2.": 10.0,
    "conv_in": 5.0,
    "told": 10.0,
    "shown": 10.0,
    "refocus": 2.0,
    "decoder.kept": 10.0,
    "decoder.detail": 10.0,
    "unet.": 0.5,
}
"""Factors on the learning rate: what reads the modalities begins anew."""


BOOST = 8.0
"""Factor on the fresh weights that read a context which is relative to c∅: a tenth as large as one
that is not."""


@dataclass(frozen=True)
class Place:
    """A square part of all tiles of a batch. The context is that of the whole tile.

    A part of a quarter of the tile takes a quarter of the time, so that a step sees four times as
    many pictures.
    """

    top: int
    """First row in latent cells."""
    left: int
    """First column."""
    side: int
    """Side in latent cells."""

    def of(self, x: Tensor, factor: int = 1) -> Tensor:
        """The part of latents (`factor` 1), LR tiles (2) or HR tiles (8)."""
        rows, columns = (slice(n * factor, (n + self.side) * factor) for n in (self.top, self.left))
        return x[..., rows, columns].contiguous(memory_format=torch.channels_last)


def draw_place(size: int, side: int, whole: float, g: torch.Generator) -> Place:
    """A random part of `side` cells of tiles of `size` cells, with the chance `whole` all of it.

    It lies at multiples of 8 cells, as the features of the UNet's lowest level do.
    """
    if float(torch.rand((), generator=g)) < whole:
        return Place(0, 0, size)
    top, left = (8 * int(n) for n in torch.randint((size - side) // 8 + 1, (2,), generator=g))
    return Place(top, left, side)


class Student:
    """The one-step network: residuals of conditions.

    Args:
        net: the denoiser.
        preset_name: its preset.
    """

    def __init__(self, net: Denoiser, preset_name: str) -> None:
        self.net = net
        self.table = alphas(preset_name, net.codebook.device)
        self.last = len(self.table) - 1

    def residual(
        self,
        z_lr: Tensor,
        given: Conditions,
        temperature: Tensor | None = None,
        t: Tensor | None = None,
        estimate: Tensor | None = None,
        absent_text: bool = False,
        place: Place | None = None,
    ) -> Tensor:
        """r̂, [B, C, l, l], from no estimate at the last timestep, or from `estimate` at `t` [B].

        Args:
            z_lr: [B, C, l, l].
            given: the conditions.
            temperature: [B, 4]; None: 1.
            t: timesteps, [B]; None: the last.
            estimate: r̂ of the step before, [B, C, l, l]; it is used where `t` is not the last.
            absent_text: whether text is absent, whatever `given` says.
            place: part of the tiles that `z_lr`, `estimate` and the result are; None: all of it.
        """
        present = given.present
        if absent_text:
            present = present.clone()
            present[:, 0] = 0
        if t is None:
            t = torch.full((len(z_lr),), self.last, device=z_lr.device)
        a = self.table[t][:, None, None, None]
        noisy = torch.zeros_like(z_lr) if estimate is None else a.sqrt() * estimate
        latent = torch.cat([noisy, z_lr], 1).contiguous(memory_format=torch.channels_last)
        with autocast(z_lr.device):
            context = self.net.context(given.ids, given.indices, present, temperature)
            if place is not None:
                self.net.unet.place(place.top, place.left)
            aligned = given.with_dials(temperature)
            aligned = aligned if place is None else place.of(aligned)
            v = self.net.unet(latent, t.float(), context, aligned).float()
        return a.sqrt() * noisy - (1 - a).sqrt() * v


def fold_context(net: Denoiser, unet: dict[str, Tensor], context: Tensor) -> None:
    """Load a UNet whose context had become a constant, so that it needs no context.

    What attention to one and the same token gives, W_o·W_v·c, is added to the bias. The weights
    that read the context are fresh. W_o is kept: with zeros in its place nothing was learnt in 100
    steps.

    Args:
        net: receives the weights.
        unet: state dict of the UNet.
        context: the constant, [D].
    """
    unet = dict(unet)
    own = net.unet.state_dict()
    for key in [k for k in unet if k.endswith("attn2.to_v.weight")]:
        base = key.removesuffix("to_v.weight")
        constant = unet[f"{base}to_out.0.weight"] @ (unet[key] @ context)
        unet[f"{base}to_out.0.bias"] = unet[f"{base}to_out.0.bias"] + constant
        unet[f"{base}to_q.weight"] = own[f"{base}to_q.weight"]
        for name in ("to_k", "to_v"):
            unet[f"{base}{name}.weight"] = BOOST * own[f"{base}{name}.weight"]
    for key, value in own.items():
        if ".processor." in key:
            unet.setdefault(key, value)
    narrow = unet["net.conv_in.weight"]
    wide = own["net.conv_in.weight"].clone()  # aligned maps begin small, not at zero: see above
    wide[:, : narrow.shape[1]] = narrow
    net.unet.load_state_dict({**unet, "net.conv_in.weight": wide})


@torch.no_grad()
def constant_context(net: Denoiser, preset_name: str) -> Tensor:
    """The constant that a denoiser's context had become, [D]: f of the positive words alone."""
    text = preset(preset_name).text_spec()
    ids = torch.from_numpy(encode_prompt(text.positive, text))
    zeros = torch.zeros(1, MAP_TOKENS, net.codebook.shape[1])
    present = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    tokens = net.connector.tokens([net.text_encoder(ids), zeros, zeros, zeros], present)
    context: Tensor = net.connector.condense(tokens)[0].mean(0)
    return context


def begin(net: Denoiser, states: dict[str, Tensor], preset_name: str, *, fold: bool) -> None:
    """Load a checkpoint's denoiser into `net`.

    With `fold`, its context is taken for a constant: the UNet gets it as biases, and the connector
    keeps its fresh weights.
    """
    if not fold:
        start_from({"denoiser": net}, {"denoiser": states})
        return
    fresh = copy.deepcopy(net.connector.state_dict())
    for name in ("text_encoder", "connector"):
        getattr(net, name).load_state_dict(under(states, name), strict=False)
    context = constant_context(net, preset_name)
    net.connector.load_state_dict(fresh)
    net.residual_scale.copy_(states["residual_scale"])
    fold_context(net, under(states, "unet"), context)


def under(states: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """State dict of one of the denoiser's networks."""
    return {k.removeprefix(f"{name}."): v for k, v in states.items() if k.startswith(f"{name}.")}


@torch.no_grad()
def student_residuals(
    samples: TileSamples, net: Denoiser, preset_name: str, cache: Path | None
) -> Tensor:
    """r̂ of all tiles with absent modalities, [N, C, l, l], float16; kept beside `cache`."""
    path = cache.with_suffix(".reference.pt") if cache else None
    if path and path.exists():
        kept: Tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return kept
    student, parts = Student(net, preset_name), []
    config = ConditionsConfig(drop=1.0, aligned=0.0, negative=0.0)
    for first in tqdm(range(0, len(samples.z_lr), 4), desc="reference", mininterval=10):
        rows = torch.arange(first, min(first + 4, len(samples.z_lr)))
        given = samples.conditions(rows, config)
        parts.append(student.residual(samples.latents(rows)[0], given).half().cpu())
    residuals = torch.cat(parts)
    if path:
        torch.save(residuals, path)
    return residuals
