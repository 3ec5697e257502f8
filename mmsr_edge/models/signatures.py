"""Inputs and outputs of the networks: their names, from the contract, and random inputs.

Random inputs have the contract's shapes at a preset's sizes. Exporters take shapes from them, and
use them when there are no recorded inputs. Pictures and maps are RGB in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsr_edge.bundle import CONTRACT, MAP_SIDE, MAP_TOKENS, UNETS
from mmsr_edge.models.autoencoder import FACTOR, SCALE
from mmsr_edge.models.presets import Preset

Array = NDArray[Any]
Draw = Callable[[Preset, tuple[int, ...], np.random.Generator], Array]


def input_names(name: str, p: Preset) -> tuple[str, ...]:
    """Names of a network's inputs, in the order of its arguments."""
    # No preset's UNet takes w, and not each aligned maps. Only a decoder with a super-resolution
    # network reads the LR picture and, in some presets, the levels of degradation and the maps.
    absent = {(unet, "guidance") for unet in UNETS}
    if not p.unet.aligned:
        absent |= {(unet, "aligned") for unet in UNETS}
    if not p.autoencoder.compact_layers:
        absent.add(("decoder", "lr"))
    if not p.autoencoder.degradation:
        absent.add(("decoder", "degradation"))
    if not p.autoencoder.aligned:
        absent.add(("decoder", "aligned"))
    return tuple(key for key in CONTRACT[name].inputs if (name, key) not in absent)


def output_names(name: str) -> tuple[str, ...]:
    """Names of a network's outputs, in the order of its results."""
    return tuple(CONTRACT[name].outputs)


def draw_inputs(name: str, p: Preset, rng: np.random.Generator) -> dict[str, Array]:
    """One set of random inputs of a network, by name, with batch size 1."""
    sizes = _sizes(p)
    feeds = {}
    for key in input_names(name, p):
        symbols, _ = CONTRACT[name].inputs[key]
        shape = tuple(sizes[s] if s in sizes else int(s) for s in symbols.split())
        feeds[key] = _DRAWS.get(key, _normal)(p, shape, rng)
    return feeds


def _sizes(p: Preset) -> dict[str, int]:
    """Sizes of the contract's symbols (see `Signature`)."""
    side = p.tile * SCALE
    return {
        "t": p.tile,
        "c": p.autoencoder.channels,
        "2c": 2 * p.autoencoder.channels,
        "l": side // FACTOR,
        "o": side,
        "s": MAP_SIDE,
        "n": MAP_TOKENS,
        "w": p.tokenizer.width,
        "i": p.text.length,
        "d": p.dim,
        "m": p.context_tokens,
        "k": p.dim,
    }


def _normal(_: Preset, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return rng.standard_normal(shape, np.float32)


def _picture(_: Preset, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Noise at two scales, like a picture: coarse blocks, and fine detail added to them."""
    n = shape[-1]
    coarse = rng.uniform(-1, 1, (1, 3, n // 8 + 1, n // 8 + 1)).repeat(8, 2).repeat(8, 3)
    fine = rng.normal(0, 0.1, (1, 3, n, n))
    return (coarse[..., :n, :n] + fine).clip(-1, 1).astype(np.float32)


def _ids(p: Preset, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Ids of a prompt: start, 0 to 11 words, end, padding."""
    words = int(rng.integers(0, 12))
    ids = np.zeros(shape, np.int64)
    ids[0, : words + 2] = [1, *rng.integers(3, p.text.vocab_size, words), 2]
    return ids


def _present(_: Preset, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return (rng.random(shape) < 0.7).astype(np.float32)


def _temperature(_: Preset, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Log-uniform over the allowed range (Sec. 3.2)."""
    return np.exp(rng.uniform(np.log(0.4), np.log(10), shape)).astype(np.float32)


def _degradation(_: Preset, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Levels, 0 where unknown; 1 or 0 for each that is known or not; shares to keep."""
    known = (rng.random((1, 3)) < 0.8).astype(np.float32)
    stay = rng.uniform(-0.5, 1, (1, shape[1] - 6)).astype(np.float32)
    return np.concatenate([known * rng.random(known.shape, np.float32), known, stay], axis=1)


def _timestep(p: Preset, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return rng.integers(0, p.sampler.num_train_timesteps, shape).astype(np.float32)


_DRAWS: dict[str, Draw] = {
    "image": _picture,
    "lr": _picture,
    "map": _picture,
    "ids": _ids,
    "present": _present,
    "temperature": _temperature,
    "timestep": _timestep,
    "degradation": _degradation,
}
