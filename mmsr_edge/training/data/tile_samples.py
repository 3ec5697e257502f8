"""Tiles encoded by the frozen networks, and the draw of their conditions.

Latents and token indices are computed once; maps, words and temperatures are drawn anew for every
batch, from the LR picture, as on the device, or from the HR picture, as a caller's better maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmsr_edge.bundle import LEVELS, MAPS, TextSpec
from mmsr_edge.modalities.aligned import align_maps
from mmsr_edge.modalities.degradation import degradation_words
from mmsr_edge.modalities.prompt import encode_prompt, join_words
from mmsr_edge.models.device import autocast
from mmsr_edge.training.data.dials import areas, pull
from mmsr_edge.training.data.photos import to_picture
from mmsr_edge.training.data.tiles import Tiles


@dataclass(frozen=True)
class ConditionsConfig:
    """Settings of the draw of conditions."""

    clean: float = 0.0
    """Share of the samples drawn from the tiles that are only downscaled, the others from all."""
    sharp: float = 0.4
    """Share of the samples with maps and words of the HR picture."""
    other: float = 0.5
    """Among those, share with LR maps for each kind of map all the same."""
    aligned: float = 0.6
    """Share of the samples with aligned maps beside the tokens."""
    drop: float = 0.1
    """p, the chance that a modality is replaced by m∅, drawn for each on its own (Sec. 3.1)."""
    unknown: float = 0.1
    """Chance that a level of degradation is not told, for each; and that none is."""
    less: float = 0.0
    """Share of the samples that are told of less degradation than there is, down to none."""
    tagged: float = 0.7
    """Share of the prompts with tags and computed words."""
    negative: float = 0.08
    """Share of the prompts that are the negative one."""


@dataclass
class Conditions:
    """What a batch is conditioned on."""

    ids: Tensor
    """[B, 77], token ids of the prompts."""
    indices: Tensor
    """[B, 3, 256], token indices of depth, segmentation and edges."""
    aligned: Tensor
    """[B, 20, l, l], maps on the latent's grid, 0 where absent: `aligned` without the dials."""
    seen: Tensor
    """[B], 1 for samples with aligned maps, 0 for those with tokens alone."""
    present: Tensor
    """[B, 4], 1 for each modality given and 0 for each absent."""
    degradation: Tensor
    """[B, 8], levels, 0 where unknown; which of them are known; shares of noise, blur to keep."""
    areas: Tensor
    """[B, 3, l, l], where the dials act; see `data.dials`."""
    untold: Tensor
    """[B, 2], share of the blur, and of noise and JPEG, that the words keep back; mostly 0."""
    negative: Tensor
    """[B] bool, whether the prompt is the negative one."""

    def to(self, device: torch.device) -> Conditions:
        """The same on a device."""
        return Conditions(**{name: value.to(device) for name, value in vars(self).items()})

    def with_dials(self, temperature: Tensor | None) -> Tensor:
        """The UNet's input `aligned`, [B, 23, l, l], at temperatures [B, 4]; None: 1."""
        dials = torch.zeros_like(self.areas)
        if temperature is not None:
            p = (pull(temperature) * self.present * self.seen[:, None])[:, 1:, None, None]
            dials = p * self.areas
        return torch.cat([self.aligned, dials], dim=1)


class TileSamples:
    """Encoded tiles.

    Args:
        tiles: the tiles.
        networks: `hr_encoder`, `lr_encoder` and `tokenizer`, frozen.
        text: settings of the prompts.
        scale: s, standard deviation of the residual per channel, [C].
        g: generator of all draws, on the CPU.
        cache: file with the encoded tiles; written if it is missing.
    """

    def __init__(
        self, tiles: Tiles, networks: dict[str, nn.Module], text: TextSpec, scale: Tensor,
        g: torch.Generator, cache: Path | None = None,
    ) -> None:  # fmt: skip
        self.tiles, self.text, self.g = tiles, text, g
        self.device = scale.device
        self.pieces = torch.Generator(self.device).manual_seed(g.initial_seed())
        """Generator of draws on the networks' device."""
        self.size = tiles.hr.shape[-1] // 8
        self._clean = (tiles.levels < torch.tensor([0.12, 0.05, 0.05])).all(1).nonzero()[:, 0]
        if cache and cache.exists():
            kept = torch.load(cache, map_location="cpu", weights_only=True, mmap=True)
        else:
            kept = _encode(tiles, networks, scale)
            if cache:
                torch.save(kept, cache)
        self.z_lr, self.residual, self.indices = kept
        """Latents of the LR tiles and residuals (z_hr − z_lr) / s, [N, C, l, l], float16; token
        indices of LR maps and HR maps, [N, 2, 3, 256]."""

    def _chance(self, p: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.g) < p

    def rows(self, count: int, clean: float = 0.0) -> Tensor:
        """Rows of `count` tiles, drawn at random; a share `clean` of them are only downscaled."""
        rows = torch.randint(len(self.tiles), (count,), generator=self.g)
        if clean:
            place = torch.randint(len(self._clean), (count,), generator=self.g)
            rows = torch.where(self._chance(clean, count), self._clean[place], rows)
        return rows

    def take(self, column: Tensor, rows: Tensor) -> Tensor:
        """Rows of a column of all tiles, float32 on the networks' device."""
        return column[rows].float().to(self.device)

    def latents(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """z_lr and residual of some tiles, float32."""
        return self.take(self.z_lr, rows), self.take(self.residual, rows)

    def conditions(self, rows: Tensor, config: ConditionsConfig) -> Conditions:
        """Draw the conditions of some tiles."""
        count = len(rows)
        best = self._chance(config.sharp, count)
        sharp = (best[:, None] & ~self._chance(config.other, count, 3)).long()
        present = (~self._chance(config.drop, count, 4)).float()
        known = ~self._chance(config.unknown, count, 3) & ~self._chance(config.unknown, count, 1)
        levels, untold = self._told(rows, config.less)
        known |= untold.gt(0).any(1, keepdim=True)
        negative = self._chance(config.negative, count)
        present[:, 0][negative] = 1.0
        tagged = self._chance(config.tagged, count)
        prompts = [
            self.prompt(int(r), int(b), bool(w), told, k, bool(n))
            for r, b, w, told, k, n in zip(rows, best, tagged, levels, known, negative, strict=True)
        ]
        aligned = self.aligned(rows, sharp, present[:, 1:])
        seen = self._chance(config.aligned, count).float()
        aligned = aligned * seen[:, None, None, None]
        levels = torch.where(known, levels, torch.zeros(()))
        planes = (self.tiles.depth, self.tiles.classes, self.tiles.edges)
        depth, classes, edges = (p[rows, sharp[:, i]] for i, p in enumerate(planes))
        return Conditions(
            torch.cat([torch.from_numpy(encode_prompt(p, self.text)) for p in prompts]),
            torch.stack([self.indices[rows, sharp[:, i], i] for i in range(3)], dim=1),
            aligned,
            seen,
            present,
            torch.cat([levels, known.float(), untold.flip(1)], dim=1),
            areas(depth, classes, edges, self.size),
            untold,
            negative,
        ).to(self.device)

    def _told(self, rows: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Levels that are told, [B, 3], and the shares that they keep back, [B, 2].

        Levels of noise and JPEG are roots of amplitudes.
        """
        count = len(rows)
        less = self._chance(share, count)[:, None]
        untold = torch.rand((count, 2), generator=self.g)
        untold[self._chance(0.3, count)] = 1.0
        untold = torch.where(less, untold, torch.zeros(()))
        blur, rest = (1 - untold).T
        factors = torch.stack([rest.sqrt(), blur, rest.sqrt()], dim=1)
        return self.tiles.levels[rows] * factors, untold

    def prompt(
        self, row: int, sharp: int, tagged: bool, levels: Tensor, known: Tensor, negative: bool
    ) -> str:
        """Prompt of a tile, as the device writes it."""
        named = zip(LEVELS, levels.tolist(), known.tolist(), strict=True)
        told = degradation_words({name: level for name, level, k in named if k})
        words = self.tiles.words[row][sharp] if tagged else ""
        own = self.text.negative if negative else self.text.positive
        return join_words(words, told, own)

    def aligned(self, rows: Tensor, sharp: Tensor, present: Tensor) -> Tensor:
        """Maps on the latent's grid, [B, 20, l, l]; 0 where `present` [B, 3] is."""
        maps = self.tiles.maps(rows, sharp)
        given = {name: maps[:, i].numpy() for i, name in enumerate(MAPS)}
        aligned = torch.from_numpy(align_maps(given, self.size))[:, : -len(MAPS)]
        widths = torch.tensor([1, 3, aligned.shape[1] - 4])
        return aligned * present.repeat_interleave(widths, dim=1)[..., None, None]


@torch.no_grad()
def _encode(tiles: Tiles, networks: dict[str, nn.Module], scale: Tensor) -> list[Tensor]:
    """z_lr, residual and indices of all tiles."""
    z_lr, residual, indices = [], [], []
    for first in tqdm(range(0, len(tiles), 4), desc="encode", mininterval=10):
        rows = torch.arange(first, min(first + 4, len(tiles)))
        lr, hr = (to_picture(x[rows].to(scale.device)) for x in (tiles.lr, tiles.hr))
        with autocast(scale.device):
            low = networks["lr_encoder"](lr).float()
            high = networks["hr_encoder"](hr).float()
        z_lr.append(low.half().cpu())
        residual.append(((high - low) / scale[:, None, None]).half().cpu())
        maps = [tiles.maps(rows, torch.full((len(rows), 3), sharp)) for sharp in (0, 1)]
        flat = torch.cat(maps).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        found = networks["tokenizer"](flat.to(scale.device))[1].short().cpu()
        indices.append(found.reshape(2, len(rows), 3, -1).transpose(0, 1))
    return [torch.cat(part) for part in (z_lr, residual, indices)]
