"""Teacher targets: the outputs of a published super-resolution network for LR pictures.

A stage makes targets while it trains, or starts with those of `--targets FILE`, which
`training.make_targets` writes. A target costs more than a training step and never changes, so each
is used many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from mmsr_edge.errors import OptionError
from mmsr_edge.files import replacing
from mmsr_edge.models.autoencoder import SCALE
from mmsr_edge.models.device import autocast
from mmsr_edge.training.data.degradation import (
    DegradeConfig,
    bicubic_down,
    degrade,
    draw_config,
)
from mmsr_edge.training.data.photos import Photos, to_bytes, to_picture

GROUP = 8
"""Pictures per batch of the teacher."""
Pictures = tuple[Tensor, ...]
"""LR pictures [N, 3, h, w], HR pictures and teacher targets [N, 3, 4h, 4w], all uint8; and, if a
student is to learn them, the teacher's features [N, 64, h, w], float16."""
Teacher = Callable[[Tensor], tuple[Tensor, ...]]
"""A teacher: LR pictures [B, 3, h, w] to pictures [B, 3, 4h, 4w], both in [-1, 1], and perhaps to
features [B, 64, h, w]."""


def float_teacher(network: nn.Module) -> Teacher:
    """A network from LR pictures to pictures as a teacher, without features."""
    return lambda lr: (network(lr),)


@dataclass(frozen=True)
class DistillationConfig:
    """Settings of the stages that draw from a `DistillationPool`."""

    teacher_crop: int = 224
    """Side in HR pixels of the crops that the teacher is given."""
    crop: int = 128
    """Side in HR pixels of the pieces that are cut from them and trained on."""
    batch: int = 8
    """Pieces per step."""
    pool: int = 4096
    """Teacher targets held; more if `--targets` has more."""
    reuse: float = 32.0
    """Pieces drawn per target, on average; 1 if the teacher is cheap, `inf` to make no targets
    beside those of `--targets`."""
    clean: float = 0.25
    """Share of the LR pictures that are only downscaled, in groups that are not strongly noisy."""
    noisy: float = 0.0
    """Share of the groups of `GROUP` pictures that are all strongly noisy."""


CLEAN = 1 / 127.5
"""Largest difference from the downscaled HR picture up to which an LR picture counts as clean."""


@torch.no_grad()
def make_targets(
    photos: Photos, teacher: Teacher, side: int, degradation: DegradeConfig, g: torch.Generator
) -> Pictures:
    """Draw `GROUP` crops and make their LR pictures and targets.

    The target of a clean LR picture is the HR picture.

    Args:
        photos: source of the crops.
        teacher: the teacher.
        side: side of the HR pictures in pixels.
        degradation: degradation that makes the LR pictures.
        g: generator of the degradations.
    """
    hr, _ = photos.batch(GROUP, side)
    lr = degrade(hr, degradation, g)
    with autocast(photos.device):
        target, *features = teacher(lr.contiguous(memory_format=torch.channels_last))
    # For a picture that was only downscaled, the HR picture is the better target.
    clean = (bicubic_down((hr + 1) / 2, SCALE) * 2 - 1 - lr).abs().amax((1, 2, 3)) < CLEAN
    target = torch.where(clean[:, None, None, None], hr, target)
    return to_bytes(lr), to_bytes(hr), to_bytes(target), *(x.half() for x in features)


def join(parts: Sequence[Pictures]) -> Pictures:
    """Concatenate pictures of equal size."""
    return tuple(torch.cat(x) for x in zip(*parts, strict=True))


def cut(pictures: Tensor, rows: Tensor, corner: Tensor, side: int, turns: Tensor) -> Tensor:
    """Cut squares out of pictures and turn them, as one gather: one by one is slower than a step.

    Args:
        pictures: [N, C, H, W].
        rows: index of each square's picture, [B].
        corner: top and left of each square, [B, 2].
        side: side of the squares in pixels.
        turns: whether to flip vertically, flip horizontally, and then transpose, [B, 3], bool.

    Returns:
        [B, C, side, side].
    """
    line = torch.arange(side, device=rows.device)
    y, x = (
        corner[:, i, None] + torch.where(turns[:, i, None], side - 1 - line, line) for i in (0, 1)
    )
    swapped = turns[:, 2, None, None]
    rows_of = torch.where(swapped, y[:, None, :], y[:, :, None])
    columns_of = torch.where(swapped, x[:, :, None], x[:, None, :])
    return pictures[rows[:, None, None], :, rows_of, columns_of].permute(0, 3, 1, 2)


class DistillationPool:
    """LR pictures, HR pictures and teacher targets in memory, replaced a few at a time.

    Args:
        photos: source of the crops.
        teacher: the teacher.
        stage: sizes, `reuse` and degradation.
        seed: seed of all random draws.
        held: pictures to start with; None: they are made.
    """

    def __init__(
        self, photos: Photos, teacher: Teacher, stage: DistillationConfig, seed: int,
        held: Pictures | None = None,
    ) -> None:  # fmt: skip
        self.photos, self.teacher, self.stage = photos, teacher, stage
        self.g = torch.Generator(photos.device).manual_seed(seed)
        self.count = 0
        """Number of pictures held."""
        self.next, self.owed = 0, 0.0
        first = held or self._make()
        room = max(stage.pool, len(first[0]))
        self.room = tuple(x.new_empty((room, *x.shape[1:]), device=photos.device) for x in first)
        self._put(first)
        while self.count < min(room, max(stage.batch, stage.pool // 32)):
            self._put(self._make())

    @property
    def held(self) -> Pictures:
        """The pictures held."""
        return tuple(x[: self.count] for x in self.room)

    def _put(self, new: Pictures) -> None:
        """Add new pictures; if the pool is full, they replace the oldest."""
        size = len(self.room[0])
        at = (torch.arange(len(new[0])) + self.next) % size
        for kept, pictures in zip(self.room, new, strict=True):
            kept[at.to(kept.device)] = pictures.to(kept.device)
        self.next = (self.next + len(at)) % size
        self.count = min(size, self.count + len(at))

    def _make(self) -> Pictures:
        stage = self.stage
        degradation = draw_config(DegradeConfig(clean=stage.clean), stage.noisy, self.g)
        return make_targets(self.photos, self.teacher, stage.teacher_crop, degradation, self.g)

    def _refresh(self, count: int) -> None:
        self.owed += count / self.stage.reuse
        while self.owed >= GROUP:
            self.owed -= GROUP
            self._put(self._make())

    def _below(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=self.g, device=self.g.device)

    def batch(self, count: int) -> list[Tensor]:
        """Random squares of random pictures; the versions of one are cut and turned alike.

        Features are not those of a turned picture, so that with features nothing is turned.

        Returns:
            LR pictures [B, 3, h, w], HR pictures and teacher targets [B, 3, 4h, 4w], in [-1, 1];
            and features [B, 64, h, w], if they are held.
        """
        self._refresh(count)
        side = self.stage.crop // SCALE
        rows = self._below(self.count, count)
        corner = self._below(self.room[0].shape[-1] - side + 1, count, 2)
        turns = self._below(2, count, 3).bool()
        lr, hr, target, *features = self.room
        turns &= not features
        pictures = [
            to_picture(cut(pictures, rows, corner * scale, side * scale, turns))
            for pictures, scale in ((lr, 1), (hr, SCALE), (target, SCALE))
        ]
        return pictures + [cut(x, rows, corner, side, turns).float() for x in features]


def read_targets(files: Iterable[Path], stage: DistillationConfig) -> Pictures | None:
    """The pictures in `files`, joined; None if there are no files.

    Raises:
        OptionError: a file is missing, was not written by `write_targets`, or has pictures smaller
            than the stage's `crop`.
    """
    held: list[Pictures] = []
    for path in files:
        try:
            pictures = tuple(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
            _, hr, _, *_ = pictures
        except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise OptionError(
                f"cannot read distillation targets in {str(path)!r}: {reason}"
            ) from None
        if hr.shape[-1] < stage.crop:
            raise OptionError(
                f"the pictures in {str(path)!r} have {hr.shape[-1]} pixels a side, and crop is "
                f"{stage.crop}; give larger pictures or a smaller crop"
            )
        held.append(pictures)
    return join(held) if held else None


def write_targets(path: Path, held: Pictures) -> None:
    """Write pictures for `read_targets`."""
    whole = [x.cpu().clone() for x in held]
    with replacing(path) as file:
        torch.save(whole, file)
