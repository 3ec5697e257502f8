"""Training samples of the diffusion, as the frozen networks encode them.

Encoding a crop costs more than a training step of the denoiser, so samples live in a pool and each
is used about `reuse` times; on a GPU `reuse=1` makes every sample fresh.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsr_edge.bundle import TextSpec
from mmsr_edge.modalities.prompt import encode_prompt, join_words
from mmsr_edge.models.device import autocast
from mmsr_edge.training.data.degradation import (
    DegradeConfig,
    degrade,
    draw_config,
    filter_each,
    gaussian_kernels,
)
from mmsr_edge.training.data.maps import MapMaker, ModalityNetworks
from mmsr_edge.training.data.photos import HALVINGS, Photos, to_bytes


@dataclass(frozen=True)
class SamplesConfig:
    """Settings of stages that learn from encoded samples."""

    crop: int = 256
    """HR pixels of a training crop's side; its latent has an eighth."""
    batch: int = 16
    """Samples per step."""
    pool: int = 2048
    """Encoded samples held."""
    reuse: float = 6.0
    """Times that a sample is used; 1 where encoding is cheap."""
    drop: float = 0.1
    """p, the chance that a modality is replaced by m∅, each on its own (Sec. 3.1)."""
    negative: float = 0.12
    """Share of targets blurred on purpose, with a prompt that says so."""


WORDS = 0.8
"""Share of the samples whose prompt says more than how good the picture is."""


@dataclass
class Samples:
    """A batch of encoded samples, on one device."""

    z_hr: Tensor
    """[B, C, h, w] latents of the HR crops."""
    z_lr: Tensor
    """[B, C, h, w] latents from the LR encoder."""
    indices: Tensor
    """[B, 3, 256] token indices of depth, segmentation and edges."""
    ids: Tensor
    """[B, 77] prompt ids."""
    target: Tensor
    """[B, 3, H, W] uint8, the HR crops (blurred where the prompt says so)."""
    lr: Tensor
    """[B, 3, H/4, W/4] uint8, the LR pictures."""
    soft: Tensor
    """[B] of bool: whether the target is blurred."""
    teacher_target: Tensor | None = None
    """[B, 3, H, W] uint8, the LR pictures as a teacher enlarges them; None: there is no teacher."""

    @property
    def columns(self) -> dict[str, Tensor]:
        """What there is, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __getitem__(self, rows: Tensor | slice) -> Samples:
        return Samples(**{name: value[rows] for name, value in self.columns.items()})

    def put(self, rows: Tensor, new: Samples) -> None:
        """Replace `rows` by `new`."""
        for name, value in self.columns.items():
            value[rows] = getattr(new, name)

    @staticmethod
    def cat(parts: list[Samples]) -> Samples:
        """Join batches."""
        columns = [part.columns for part in parts]
        return Samples(**{name: torch.cat([c[name] for c in columns]) for name in columns[0]})


def draw_present(soft: Tensor, drop: float, g: torch.Generator, *, absent: float = 0.0) -> Tensor:
    """Which modalities are known of samples, [B, 4], 1 or 0.

    Args:
        soft: [B], whether the target is blurred. Then the prompt, which says so, always is known:
            without it, blur would be learnt for samples of which nothing is known.
        drop: chance that a modality is not, each on its own.
        g: draws.
        absent: chance that none is.
    """
    known = torch.rand((len(soft), 4), generator=g, device=g.device) >= drop
    known &= torch.rand((len(soft), 1), generator=g, device=g.device) >= absent
    known[:, 0] |= soft
    return known.float()


class Encoder:
    """Draws crops and encodes them with the frozen networks.

    A share `negative` of the targets is blurred, and their prompt says so: this is what gives a
    negative prompt something to push away from (SUPIR does the same).

    Args:
        folder: of photographs.
        frozen: `hr_encoder`, `lr_encoder`, `tokenizer`.
        modalities: what looks at the crops.
        crop: HR pixels of a side.
        negative: share of blurred targets.
        device: where all of it happens.
        seed: of everything random.
        teacher: enlarges LR pictures; None: nobody teaches.
        noisy: share of the draws whose LR pictures are all as if taken in the dark.
        sharp_maps: share of the samples whose maps and words come from the HR picture.
    """

    def __init__(
        self,
        folder: Path,
        frozen: dict[str, nn.Module],
        modalities: ModalityNetworks,
        text: TextSpec,
        crop: int,
        negative: float,
        device: torch.device,
        seed: int,
        teacher: nn.Module | None = None,
        noisy: float = 0.0,
        sharp_maps: float = 0.5,
    ) -> None:
        self.photos = Photos(folder, device, seed=seed, halvings=HALVINGS)
        self.maker = MapMaker(self.photos, modalities, seed, sharp_maps)
        self.frozen, self.text, self.crop, self.negative = frozen, text, crop, negative
        self.g = torch.Generator(device).manual_seed(seed)
        self.device, self.teacher, self.noisy = device, teacher, noisy

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.g, device=self.device)

    @torch.no_grad()
    def __call__(self, count: int) -> Samples:
        """Encode `count` fresh samples."""
        hr, crops = self.photos.batch(count, self.crop)
        lr = degrade(hr, draw_config(DegradeConfig(), self.noisy, self.g), self.g)
        seen = self.maker(crops, hr, lr)
        bad = self._rand(count) < self.negative
        with_words = self._rand(count) < WORDS
        prompts = []
        for i in range(count):
            prompt = join_words(
                seen.words[i] if with_words[i] else "",
                self.text.negative if bad[i] else self.text.positive,
            )
            prompts.append(torch.from_numpy(encode_prompt(prompt, self.text))[0])
        sigma = 1.0 + 2.0 * self._rand(count)
        blurred = filter_each(hr, gaussian_kernels(sigma, sigma, torch.zeros_like(sigma)))
        target = torch.where(bad[:, None, None, None], blurred, hr)
        fold = torch.channels_last
        with autocast(self.device):
            z_hr = self.frozen["hr_encoder"](target.contiguous(memory_format=fold))
            z_lr = self.frozen["lr_encoder"](lr.contiguous(memory_format=fold))
            maps = seen.maps.flatten(0, 1).contiguous(memory_format=fold)
            _, indices = self.frozen["tokenizer"](maps)
            pictures = [target, lr]
            if self.teacher is not None:
                answer = self.teacher(lr.contiguous(memory_format=fold))
                # What is to be blurred, the teacher does not know.
                pictures.append(torch.where(bad[:, None, None, None], target, answer))
        ids = torch.stack(prompts).to(self.device)
        sharp, coarse, *teacher_target = (to_bytes(x) for x in pictures)
        tokens = indices.reshape(count, 3, -1)
        return Samples(z_hr.float(), z_lr.float(), tokens, ids, sharp, coarse, bad, *teacher_target)


class Pool:
    """Samples to draw batches from, refreshed a few at a time.

    Args:
        encoder: makes new ones.
        size: samples held.
        reuse: times that a sample is used on average before it is replaced.
    """

    def __init__(self, encoder: Encoder, size: int, reuse: float) -> None:
        self.encoder, self.size, self.reuse = encoder, size, reuse
        self.samples = encoder(min(size, 8))
        self.oldest, self.owed = 0, 0.0
        while len(self.samples.ids) < size // 8:
            self._refresh(encoder(8))

    def batch(self, count: int) -> Samples:
        """Draw `count` samples, none twice, after `count / reuse` new ones came into the pool."""
        self.owed += count / self.reuse
        while self.owed >= 8:
            self._refresh(self.encoder(8))
            self.owed -= 8
        g = self.encoder.g
        rows = torch.randperm(len(self.samples.ids), generator=g, device=self.encoder.device)[
            :count
        ]
        return self.samples[rows]

    def _refresh(self, new: Samples) -> None:
        held = len(self.samples.ids)
        if held < self.size:
            self.samples = Samples.cat([self.samples, new])
            return
        rows = (torch.arange(len(new.ids), device=new.ids.device) + self.oldest) % held
        self.samples.put(rows, new)
        self.oldest = (self.oldest + len(new.ids)) % held
