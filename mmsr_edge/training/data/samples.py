"""Training samples of the diffusion, encoded by the frozen networks.

Encoding a crop costs more than a training step of the denoiser, so samples are held in a pool and
each is used about `reuse` times. `reuse=1`, for a GPU, makes as many samples as are used.
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
    """Settings of the stages that draw from a `Pool` of encoded samples."""

    crop: int = 256
    """Side of a training crop in HR pixels; a multiple of 8."""
    batch: int = 16
    """Samples per step."""
    pool: int = 2048
    """Encoded samples held in memory."""
    reuse: float = 6.0
    """Uses of a sample, on average; 1 if encoding is cheap."""
    drop: float = 0.1
    """p, the chance that a modality is replaced by m∅, drawn for each on its own (Sec. 3.1)."""
    negative: float = 0.12
    """Share of the samples with a blurred target and the negative prompt."""


WORDS = 0.8
"""Share of the samples with words in the prompt, before the positive or negative prompt."""


@dataclass
class Samples:
    """A batch of encoded samples, on one device."""

    z_hr: Tensor
    """[B, C, h, w], latents of the targets, from the HR encoder."""
    z_lr: Tensor
    """[B, C, h, w], latents of the LR pictures, from the LR encoder."""
    indices: Tensor
    """[B, 3, 256], token indices of depth, segmentation and edges."""
    ids: Tensor
    """[B, 77], token ids of the prompts."""
    target: Tensor
    """[B, 3, H, W] uint8, the HR crops, blurred where `soft`."""
    lr: Tensor
    """[B, 3, H/4, W/4] uint8, the LR pictures of the crops."""
    soft: Tensor
    """[B] bool, whether the target is blurred and the prompt negative."""
    teacher_target: Tensor | None = None
    """[B, 3, H, W] uint8, the teacher targets; `target` where `soft`. None: there is no teacher."""

    @property
    def columns(self) -> dict[str, Tensor]:
        """The fields that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __getitem__(self, rows: Tensor | slice) -> Samples:
        return Samples(**{name: value[rows] for name, value in self.columns.items()})

    def put(self, rows: Tensor, new: Samples) -> None:
        """Replace `rows` by the samples `new`."""
        for name, value in self.columns.items():
            value[rows] = getattr(new, name)

    @staticmethod
    def cat(parts: list[Samples]) -> Samples:
        """Concatenate batches."""
        columns = [part.columns for part in parts]
        return Samples(**{name: torch.cat([c[name] for c in columns]) for name in columns[0]})


def draw_present(soft: Tensor, drop: float, g: torch.Generator, *, absent: float = 0.0) -> Tensor:
    """Draw which modalities of the samples are present, [B, 4], 1 or 0.

    Args:
        soft: [B], whether the target is blurred. Then the text is always present, because blurred
            targets without their negative prompt would train the network to blur.
        drop: chance that a modality is absent, drawn for each on its own.
        g: generator of the draws.
        absent: chance that all four are absent, per sample.
    """
    present = torch.rand((len(soft), 4), generator=g, device=g.device) >= drop
    present &= torch.rand((len(soft), 1), generator=g, device=g.device) >= absent
    present[:, 0] |= soft
    return present.float()


class Encoder:
    """Draws crops and encodes them with the frozen networks.

    A share `negative` of the targets is blurred and has the negative prompt, so that guidance with
    a negative prompt pushes away from blur (as in SUPIR).

    Args:
        folder: folder of the photographs.
        frozen: `hr_encoder`, `lr_encoder` and `tokenizer`, by name, on `device`.
        modalities: the modality networks.
        text: settings of the prompts.
        crop: side of the crops in HR pixels.
        negative: share of the samples with a blurred target.
        device: device of the photos, the networks and the samples.
        seed: seed of all random draws.
        teacher: network from LR pictures to targets; None: samples have no teacher target.
        noisy: share of the batches with strongly noisy LR pictures.
        sharp_maps: share of the samples with maps and words from the HR picture.
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
        """Draw and encode `count` new samples."""
        hr, crops = self.photos.batch(count, self.crop)
        lr = degrade(hr, draw_config(DegradeConfig(), self.noisy, self.g), self.g)
        conditions = self.maker(crops, hr, lr)
        bad = self._rand(count) < self.negative
        with_words = self._rand(count) < WORDS
        prompts = []
        for i in range(count):
            prompt = join_words(
                conditions.words[i] if with_words[i] else "",
                self.text.negative if bad[i] else self.text.positive,
            )
            prompts.append(torch.from_numpy(encode_prompt(prompt, self.text))[0])
        sigma = 1.0 + 2.0 * self._rand(count)
        blurred = filter_each(hr, gaussian_kernels(sigma, sigma, torch.zeros_like(sigma)))
        target = torch.where(bad[:, None, None, None], blurred, hr)
        layout = torch.channels_last
        with autocast(self.device):
            z_hr = self.frozen["hr_encoder"](target.contiguous(memory_format=layout))
            z_lr = self.frozen["lr_encoder"](lr.contiguous(memory_format=layout))
            maps = conditions.maps.flatten(0, 1).contiguous(memory_format=layout)
            _, indices = self.frozen["tokenizer"](maps)
            pictures = [target, lr]
            if self.teacher is not None:
                enlarged = self.teacher(lr.contiguous(memory_format=layout))
                # The teacher does not blur, so the blurred target stands for its output.
                pictures.append(torch.where(bad[:, None, None, None], target, enlarged))
        ids = torch.stack(prompts).to(self.device)
        sharp, coarse, *teacher_target = (to_bytes(x) for x in pictures)
        tokens = indices.reshape(count, 3, -1)
        return Samples(z_hr.float(), z_lr.float(), tokens, ids, sharp, coarse, bad, *teacher_target)


class Pool:
    """Samples in memory to draw batches from, replaced a few at a time.

    Args:
        encoder: makes new samples.
        size: largest number of samples held.
        reuse: uses of a sample before it is replaced, on average.
    """

    def __init__(self, encoder: Encoder, size: int, reuse: float) -> None:
        self.encoder, self.size, self.reuse = encoder, size, reuse
        self.samples = encoder(min(size, 8))
        self.oldest, self.owed = 0, 0.0
        while len(self.samples.ids) < size // 8:
            self._refresh(encoder(8))

    def batch(self, count: int) -> Samples:
        """Draw `count` different samples, after adding `count / reuse` new ones to the pool."""
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
