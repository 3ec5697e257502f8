"""A model at its release gates: predictions, contexts and pictures, made as a device makes them.

Everything goes through `Upscaler`, so that the gates see what a user gets: the choice between
student and diffusion, the words, the maps' geometry, the colour fix. Where a gate reads the inside,
the UNet's inputs are taken on their way to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmsr_edge import UpscaleOptions, Upscaler
from mmsr_edge.bundle import LEVELS, MAPS, UNETS
from mmsr_edge.errors import Cancelled, OptionError
from mmsr_edge.modalities.segmentation import PALETTE
from mmsr_edge.models.checkpoint import load_network
from mmsr_edge.models.presets import preset
from mmsr_edge.pipeline import MultimodalPipeline, PictureRun
from mmsr_edge.settings import resolve
from mmsr_edge.training.data.tiles import Tiles
from mmsr_edge.training.gates import (
    Gate,
    MapTrial,
    context_gates,
    denoising_gates,
    dial_gates,
    map_gates,
)
from mmsr_edge.training.regions import TEMPERATURES, mean_effect, measure_dial, split

Array = NDArray[Any]

TILES = 16
"""Tiles that the gates need, and look at, for contexts and denoiser."""
MAP_TILES = 32
"""Most tiles that maps are measured on: what they are worth differs much between pictures."""
DIAL_TILES = 8
"""Most tiles that a dial is measured on; those whose map has both regions."""
MIDDLE = 127.5
"""Median of a picture's depth in 1/255, where `modalities.depth.spread_depth` puts it."""
DIALS = ("depth", "segmentation")
"""Modalities whose dials have gates."""


def measure(root: Path, tiles: Tiles) -> list[Gate]:
    """All gates of a checkpoint; minutes on a CPU.

    A preset without the MMLC has neither latents nor temperatures, so it has no gates for them.

    Args:
        root: the checkpoint, with its HR encoder.
        tiles: at least `TILES`, best of photographs that the model was not trained on.

    Raises:
        OptionError: there are too few tiles, or none of them has a map with two regions.
    """
    model = Upscaler(root, "torch")
    rows = choose(tiles)
    steps = model.bundle.manifest.sampler.few_steps + 1  # more than the student's
    feeds = [unet_feeds(model, tiles, row, steps) for row in rows]
    encoder, _ = load_network(root, "hr_encoder")
    gates = denoiser(model, feeds, encoder, tiles.hr[rows])
    if preset(model.bundle.manifest.preset).connector.latents:
        gates += device_gates(model, tiles, [feed["context"] for _, feed in feeds])
    else:
        gates += maps(model, tiles)
    return gates


def device_gates(
    model: Upscaler, tiles: Tiles, contexts: Sequence[Array] | None = None
) -> list[Gate]:
    """The gates that need no HR encoder, so that a device's bundle can be measured too.

    Args:
        model: the model, on any backend.
        tiles: as in `measure`.
        contexts: contexts of the chosen tiles; None: they are made.
    """
    if contexts is None:
        rows = choose(tiles)
        contexts = [unet_feeds(model, tiles, row)[1]["context"] for row in rows]
    gates = context_gates(torch.from_numpy(np.concatenate(contexts)))
    for modality in DIALS:
        gates += dial(model, tiles, modality)
    return gates + maps(model, tiles)


def choose(tiles: Tiles, count: int = TILES) -> list[int]:
    """Rows of `count` tiles, of as many photographs as there are.

    Raises:
        OptionError: there are fewer tiles.
    """
    if len(tiles) < count:
        raise OptionError(f"the gates need {count} tiles, and there are {len(tiles)}; make more")
    return list(_by_photo(tiles))[:count]


def _by_photo(tiles: Tiles) -> Iterator[int]:
    """All rows: the first of every photograph, then the second of each, and so on."""
    photos = tiles.photo.tolist()
    turn: dict[int, int] = {}
    order = []
    for row, photo in enumerate(photos):
        turn[photo] = turn.get(photo, -1) + 1
        order.append((turn[photo], row))
    return (row for _, row in sorted(order))


def tile_options(
    model: Upscaler, tiles: Tiles, row: int, *, sharp: bool, of: int | None = None
) -> dict[str, Any]:
    """Options of `Upscaler.upscale` for one tile.

    Args:
        model: the model that is given them.
        tiles: the tiles.
        row: the tile.
        sharp: whether the maps are those of the HR picture; otherwise the LR picture's.
        of: the tile whose maps are given; None: its own.
    """
    source, quality = row if of is None else of, int(sharp)
    planes = (tiles.depth, tiles.classes, tiles.edges)
    options: dict[str, Any] = {"prompt": tiles.words[row][0]}
    for name, plane in zip(MAPS, planes, strict=True):
        values = plane[source, quality].numpy()
        options[name] = values if values.any() else None  # a map that could not be made is 0
    if options["segmentation"] is not None:  # in colours, which are left as they are
        options["segmentation"] = PALETTE[options["segmentation"]]
    if resolve(UpscaleOptions(), model.bundle.manifest).told:
        options["degradation"] = dict(zip(LEVELS, tiles.levels[row].tolist(), strict=True))
    return options


def upscale(model: Upscaler, tiles: Tiles, row: int, **options: Any) -> NDArray[np.uint8]:
    """Result of one tile, [H, W, 3]."""
    return np.asarray(model(pixels(tiles.lr[row]), **options).image)


def pixels(picture: Tensor) -> NDArray[np.uint8]:
    """A picture [3, H, W] of `Tiles` as [H, W, 3]."""
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())


class _Tap(MultimodalPipeline):
    """A pipeline that keeps the inputs of the UNet's first call, and then stops."""

    def __init__(self, tapped: MultimodalPipeline) -> None:
        vars(self).update(vars(tapped))  # the same sessions
        self.stop = threading.Event()
        self.caught: tuple[str, dict[str, Array]] | None = None

    def run(
        self, component: str, calls: Sequence[dict[str, Array]], picture: PictureRun
    ) -> list[dict[str, Array]]:
        if component in UNETS and self.caught is None:
            self.caught = component, dict(calls[0])
            self.stop.set()
        return super().run(component, calls, picture)


def unet_feeds(
    model: Upscaler, tiles: Tiles, row: int, steps: int | None = None
) -> tuple[str, dict[str, Array]]:
    """The component that denoises, and its inputs for one tile with all that is known of it.

    Args:
        model: the model.
        tiles: the tiles.
        row: the tile.
        steps: steps of the trajectory, which decide the component; None: the model's default.
    """
    before = model.pipeline
    tap = model.pipeline = _Tap(before)
    options = {**tile_options(model, tiles, row, sharp=False), "steps": steps, "guidance": None}
    try:
        model(pixels(tiles.lr[row]), cancel=tap.stop, **options)
    except Cancelled:
        pass
    finally:
        model.pipeline = before
    assert tap.caught is not None, "the UNet was not called"
    return tap.caught


def denoiser(
    model: Upscaler,
    feeds: Sequence[tuple[str, dict[str, Array]]],
    encoder: Callable[[Tensor], Tensor],
    hr: Tensor,
) -> list[Gate]:
    """Gates of the denoiser, on the tiles that `feeds` are of.

    Args:
        model: the model.
        feeds: results of `unet_feeds`.
        encoder: the HR encoder.
        hr: HR tiles, uint8 [N, 3, H, W].
    """
    manifest = model.bundle.manifest
    latent, separate = manifest.latent, feeds[0][0] == "diffusion_unet"
    with torch.inference_mode():
        z0 = torch.cat([encoder(tile[None].float() / 127.5 - 1) for tile in hr])
    lr = torch.from_numpy(
        np.concatenate([feed["latent"][:, latent.channels :] for _, feed in feeds])
    )
    if separate and latent.diffusion_scale is not None:
        z0 = z0 / torch.tensor(latent.diffusion_scale)[:, None, None]
    elif latent.residual_scale is not None:
        z0 = (z0 - lr) / torch.tensor(latent.residual_scale)[:, None, None]
    run = model.pipeline.start(resolve(UpscaleOptions(), manifest))

    def predict(noisy: Tensor, t: int) -> Tensor:
        out = []
        for z, (component, feed) in zip(torch.cat([noisy, lr], 1), feeds, strict=True):
            now = {"latent": z[None].numpy(), "timestep": np.array([t], np.float32)}
            out.append(run.run(component, **{**feed, **now})["prediction"])
        return torch.from_numpy(np.concatenate(out))

    alphas = torch.from_numpy(model.pipeline.schedule.alphas_cumprod)
    return denoising_gates(predict, z0, alphas, manifest.sampler.prediction_type)


def dial(model: Upscaler, tiles: Tiles, modality: str) -> list[Gate]:
    """Gates of a modality's temperature, with the maps that a device makes.

    Raises:
        OptionError: no tile has a map of this kind with two regions.
    """
    effects = []
    for row in _by_photo(tiles):
        options = tile_options(model, tiles, row, sharp=False)
        side = tiles.hr.shape[-1]
        given = options[modality]
        regions = None if given is None else split(modality, given, (side, side), MIDDLE)
        if regions is None:
            continue
        pictures = [
            upscale(model, tiles, row, **options, temperature={modality: t}) for t in TEMPERATURES
        ]
        effects.append(measure_dial(modality, TEMPERATURES, pictures, regions))
        if len(effects) == DIAL_TILES:
            break
    if not effects:
        raise OptionError(f"no tile has a map of {modality} with two regions; make other tiles")
    return dial_gates(mean_effect(effects))


def maps(model: Upscaler, tiles: Tiles) -> list[Gate]:
    """Gates of right maps against another picture's, both of HR pictures."""
    rows = choose(tiles, min(MAP_TILES, len(tiles)))
    trials = []
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        right, wrong = (
            upscale(model, tiles, row, **tile_options(model, tiles, row, sharp=True, of=of))
            for of in (row, other)
        )
        size = (right.shape[1], right.shape[0])
        edges = (_edges(tiles, of, size) for of in (row, other))
        trials.append(MapTrial(pixels(tiles.hr[row]), right, wrong, *edges))
    return map_gates(trials)


def _edges(tiles: Tiles, row: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    plane = Image.fromarray(tiles.edges[row, 1].numpy())
    return np.asarray(plane.resize(size, Image.Resampling.NEAREST)) > 127
