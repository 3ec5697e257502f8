"""Taught pictures: LR pictures and what a published enlarger makes of them.

    python -m mmsr_edge.training.taught --photos DIR --teacher DIR --out FILE --count N

A stage makes its own while it trains, or starts with those of `--taught FILE`: the teacher's answer
to an LR picture is the same every time, and costs more than a step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
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
from mmsr_edge.training.degrade import NOISY, DegradeConfig, bicubic_down, degrade
from mmsr_edge.training.picture_teacher import load_picture_teacher
from mmsr_edge.training.run import autocast, pick_device

GROUP = 8
"""Pictures that are taught together."""
Group = tuple[Tensor, Tensor, Tensor]
"""LR [8, 3, h, w], HR and taught [8, 3, 4h, 4w] as uint8."""


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


CLEAN = 1 / 127.5
"""An LR picture this near to the downscaled HR picture, everywhere, is that and no more."""


@torch.no_grad()
def teach(
    photos: Photos, teacher: nn.Module, side: int, degradation: DegradeConfig, g: torch.Generator
) -> Group:
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


class TaughtPool:
    """LR pictures, HR pictures and the teacher's answers, refreshed a few at a time.

    Args:
        photos: where crops come from.
        teacher: enlarges [B, 3, h, w] in [-1, 1].
        stage: sizes.
        seed: of everything random.
        held: pictures to start with, as `read_taught` gives them.
    """

    def __init__(
        self, photos: Photos, teacher: nn.Module, stage: TaughtSizes, seed: int,
        held: Iterable[Group] = (),
    ) -> None:  # fmt: skip
        self.photos, self.teacher, self.stage = photos, teacher, stage
        self.g = torch.Generator(photos.device).manual_seed(seed)
        # One tensor a picture would be slow to stack, one of all too big.
        self.held = list(held) or [self._teach()]
        self.oldest, self.owed = 0, 0.0
        while self.count < max(stage.batch, stage.pool // 32):
            self.held.append(self._teach())

    @property
    def count(self) -> int:
        """Pictures held."""
        return GROUP * len(self.held)

    def _teach(self) -> Group:
        stage = self.stage
        degradation = DegradeConfig(clean=stage.clean)
        return teach(self.photos, self.teacher, stage.taught_crop, degradation, self.g)

    def _refresh(self, count: int) -> None:
        self.owed += count / self.stage.reuse
        while self.owed >= GROUP:
            self.owed -= GROUP
            new = self._teach()
            if self.count < self.stage.pool:
                self.held.append(new)
                continue
            self.held[self.oldest] = new
            self.oldest = (self.oldest + 1) % len(self.held)

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.g, device=self.g.device))

    def _piece(self) -> list[Tensor]:
        """The same random square of a random picture's three versions, turned the same way."""
        group, row = self.held[self._below(len(self.held))], self._below(GROUP)
        side = self.stage.crop
        room = group[0].shape[-1] - side // SCALE + 1
        top, left = self._below(room), self._below(room)
        turns, mirrored = self._below(4), self._below(2)
        out = []
        for pictures, scale in zip(group, (1, SCALE, SCALE), strict=True):
            y, x, n = top * scale, left * scale, side * scale // SCALE
            piece = pictures[row, :, y : y + n, x : x + n].rot90(turns, (1, 2))
            out.append(piece.flip(-1) if mirrored else piece)
        return out

    def batch(self, count: int) -> list[Tensor]:
        """LR [B, 3, h, w], HR and taught [B, 3, 4h, 4w], in [-1, 1]."""
        self._refresh(count)
        stacked = (torch.stack(x) for x in zip(*(self._piece() for _ in range(count)), strict=True))
        return [to_picture(x) for x in stacked]


def read_taught(files: Iterable[Path], stage: TaughtSizes) -> list[Group]:
    """The pictures in `files`.

    Raises:
        OptionError: a file is missing or other than `write_taught` makes it, or its pictures are
            smaller than the pieces that the stage cuts.
    """
    held: list[Group] = []
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
        held += zip(lr.split(GROUP), hr.split(GROUP), taught.split(GROUP), strict=True)
    return held


def write_taught(path: Path, held: list[Group]) -> None:
    """Write pictures for `read_taught`."""
    whole = [torch.cat(x) for x in zip(*held, strict=True)]
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
    write_taught(args.out, [teach(photos, teacher, args.side, degradation, g) for _ in groups])


if __name__ == "__main__":
    main()
