"""Taught pictures: LR pictures and what a published enlarger makes of them.

    python -m mmsr_edge.training.taught --photos DIR --teacher DIR --out FILE --count N

A stage makes its own while it trains, or starts with those of `--taught FILE`: the teacher's answer
to an LR picture is the same every time, and costs more than a step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmsr_edge.errors import OptionError
from mmsr_edge.files import write_atomically
from mmsr_edge.models.autoencoder import SCALE
from mmsr_edge.training.data import HALVINGS, Photos, to_bytes, to_picture
from mmsr_edge.training.degrade import NOISY, DegradeConfig, bicubic_down, degrade, draw_config
from mmsr_edge.training.picture_teacher import load_picture_teacher
from mmsr_edge.training.run import autocast, pick_device

GROUP = 8
"""Pictures that are taught together."""
Pictures = tuple[Tensor, Tensor, Tensor]
"""LR [N, 3, h, w], HR and taught [N, 3, 4h, 4w] as uint8."""


class TaughtSizes(Protocol):
    """The settings that a stage must have."""

    @property
    def taught_crop(self) -> int: ...
    @property
    def crop(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def pool(self) -> int: ...
    @property
    def reuse(self) -> float: ...
    @property
    def clean(self) -> float: ...
    @property
    def noisy(self) -> float: ...


CLEAN = 1 / 127.5
"""An LR picture this near to the downscaled HR picture, everywhere, is that and no more."""


@torch.no_grad()
def teach(
    photos: Photos, teacher: nn.Module, side: int, degradation: DegradeConfig, g: torch.Generator
) -> Pictures:
    """New pictures; where the LR picture is clean, the HR picture is the answer.

    Args:
        photos: where crops come from.
        teacher: enlarges [B, 3, h, w] in [-1, 1].
        side: HR pixels of a side.
        degradation: what LR pictures are made by.
        g: draws the degradations.
    """
    hr, _ = photos.batch(GROUP, side)
    lr = degrade(hr, degradation, g)
    with autocast(photos.device):
        taught = teacher(lr.contiguous(memory_format=torch.channels_last))
    # Of a picture that was only downscaled more is known than the teacher shows.
    known = (bicubic_down((hr + 1) / 2, SCALE) * 2 - 1 - lr).abs().amax((1, 2, 3)) < CLEAN
    taught = torch.where(known[:, None, None, None], hr, taught)
    return to_bytes(lr), to_bytes(hr), to_bytes(taught)


def join(parts: Sequence[Pictures]) -> Pictures:
    """Pictures of one size, in one."""
    lr, hr, taught = (torch.cat(x) for x in zip(*parts, strict=True))
    return lr, hr, taught


def cut(pictures: Tensor, rows: Tensor, corner: Tensor, side: int, turns: Tensor) -> Tensor:
    """Squares of some pictures, turned, all at once: on a GPU one by one takes longer than a step.

    Args:
        pictures: [N, C, H, W].
        rows: [B], of which picture.
        corner: [B, 2], top and left.
        side: of the squares.
        turns: [B, 3] of bool: upside down, mirrored, and then rows for columns.

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


class TaughtPool:
    """LR pictures, HR pictures and the teacher's answers, refreshed a few at a time.

    Args:
        photos: where crops come from.
        teacher: enlarges [B, 3, h, w] in [-1, 1].
        stage: sizes.
        seed: of everything random.
        held: pictures to start with; none: they are made.
    """

    def __init__(
        self, photos: Photos, teacher: nn.Module, stage: TaughtSizes, seed: int,
        held: Pictures | None = None,
    ) -> None:  # fmt: skip
        self.photos, self.teacher, self.stage = photos, teacher, stage
        self.g = torch.Generator(photos.device).manual_seed(seed)
        self.count = 0
        """Pictures held."""
        self.next, self.owed = 0, 0.0
        first = held or self._teach()
        room = max(stage.pool, len(first[0]))
        self.room = tuple(x.new_empty((room, *x.shape[1:]), device=photos.device) for x in first)
        self._put(first)
        while self.count < min(room, max(stage.batch, stage.pool // 32)):
            self._put(self._teach())

    @property
    def held(self) -> Pictures:
        """The pictures."""
        lr, hr, taught = (x[: self.count] for x in self.room)
        return lr, hr, taught

    def _put(self, new: Pictures) -> None:
        """Keep new pictures, in the place of the oldest where there is no more room."""
        size = len(self.room[0])
        at = (torch.arange(len(new[0])) + self.next) % size
        for kept, pictures in zip(self.room, new, strict=True):
            kept[at.to(kept.device)] = pictures.to(kept.device)
        self.next = (self.next + len(at)) % size
        self.count = min(size, self.count + len(at))

    def _teach(self) -> Pictures:
        stage = self.stage
        degradation = draw_config(DegradeConfig(clean=stage.clean), stage.noisy, self.g)
        return teach(self.photos, self.teacher, stage.taught_crop, degradation, self.g)

    def _refresh(self, count: int) -> None:
        self.owed += count / self.stage.reuse
        while self.owed >= GROUP:
            self.owed -= GROUP
            self._put(self._teach())

    def _below(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=self.g, device=self.g.device)

    def batch(self, count: int) -> list[Tensor]:
        """Random squares of random pictures, in all three versions, turned the same way.

        Returns:
            LR [B, 3, h, w], HR and taught [B, 3, 4h, 4w], in [-1, 1].
        """
        self._refresh(count)
        side = self.stage.crop // SCALE
        rows = self._below(self.count, count)
        corner = self._below(self.room[0].shape[-1] - side + 1, count, 2)
        turns = self._below(2, count, 3).bool()
        return [
            to_picture(cut(pictures, rows, corner * scale, side * scale, turns))
            for pictures, scale in zip(self.room, (1, SCALE, SCALE), strict=True)
        ]


def read_taught(files: Iterable[Path], stage: TaughtSizes) -> Pictures | None:
    """The pictures in `files`; None: there are no files.

    Raises:
        OptionError: a file is missing or other than `write_taught` makes it, or its pictures are
            smaller than the pieces that the stage cuts.
    """
    held: list[Pictures] = []
    for path in files:
        try:
            lr, hr, taught = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise OptionError(f"cannot read taught pictures in {str(path)!r}: {reason}") from None
        if hr.shape[-1] < stage.crop:
            raise OptionError(
                f"the pictures in {str(path)!r} have {hr.shape[-1]} pixels a side, and crop is "
                f"{stage.crop}"
            )
        held.append((lr, hr, taught))
    return join(held) if held else None


def write_taught(path: Path, held: Pictures) -> None:
    """Write pictures for `read_taught`."""
    whole = [x.cpu().clone() for x in held]
    write_atomically(path, lambda p: torch.save(whole, p))


def _add_teacher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher", type=Path, required=True, help="folder with realesrgan-x4plus.param and .bin"
    )


def add_taught(parser: argparse.ArgumentParser) -> None:
    """Add the options that `taught_pool` reads."""
    _add_teacher(parser)
    parser.add_argument(
        "--taught", type=Path, nargs="+", default=[], help="files of pictures to start with"
    )


def taught_pool(
    args: argparse.Namespace, stage: TaughtSizes, seed: int, device: torch.device
) -> TaughtPool:
    """The pool of a stage's command line."""
    photos = Photos(args.photos, device, seed=seed, halvings=HALVINGS)
    teacher = load_picture_teacher(args.teacher, device)
    return TaughtPool(photos, teacher, stage, seed, read_taught(args.taught, stage))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    _add_teacher(parser)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--count", type=int, default=1024, help="pictures; default 1024")
    parser.add_argument("--side", type=int, default=192, help="their HR pixels a side; default 192")
    parser.add_argument(
        "--clean", type=float, default=0.2, help="share that is only downscaled; default 0.2"
    )
    parser.add_argument(
        "--halvings",
        type=int,
        default=HALVINGS,
        help=f"smaller copies of each photo; default {HALVINGS}",
    )
    parser.add_argument(
        "--noisy", action="store_true", help="all of them as if taken in the dark, none clean"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    args = parser.parse_args()
    device = pick_device("auto")
    g = torch.Generator(device).manual_seed(args.seed)
    photos = Photos(args.photos, device, seed=args.seed, halvings=args.halvings)
    teacher = load_picture_teacher(args.teacher, device)
    groups = tqdm(range(-(-args.count // GROUP)), desc="taught", unit_scale=GROUP)
    degradation = NOISY if args.noisy else DegradeConfig(clean=args.clean)
    made = [teach(photos, teacher, args.side, degradation, g) for _ in groups]
    write_taught(args.out, join(made))


if __name__ == "__main__":
    main()
