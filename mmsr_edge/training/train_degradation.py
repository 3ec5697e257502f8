"""Train the degradation estimator on tiles with measured levels.

    python -m mmsr_edge.training.train_degradation --tiles FILE FILE --photos DIR --out FIRST \\
        --side 64 --steps 700
    python -m mmsr_edge.training.train_degradation --tiles FILE FILE --photos DIR --out RUN \\
        --start FIRST --steps 300 --learning-rate 5e-4

Quarters of tiles take a quarter of the time, and whole tiles at the end settle what depends on the
size. The tiles come from `training.data.tiles`. At every step a few are degraded anew from their HR
tile, so that the network meets more degradations than the files hold. Tiles of photographs that
are held out by their names are not trained on; at the end, the errors on them are printed and
written to `errors.json` in the run's folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.bundle import LEVELS
from mmsr_edge.errors import OptionError
from mmsr_edge.files import write_text
from mmsr_edge.models.degradation import DegradationConfig, build_degradation
from mmsr_edge.models.device import pick_device
from mmsr_edge.training.data.degradation import (
    DegradeConfig,
    bicubic_down,
    degrade,
    draw_config,
    measure_degradation,
)
from mmsr_edge.training.data.photos import find_photos, to_bytes, to_picture
from mmsr_edge.training.data.tiles import SCALE, Tiles, load_tiles
from mmsr_edge.training.options import add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_run, start_from
from mmsr_edge.training.teachers.labels import is_held_out


@dataclass(frozen=True)
class DegradationStage:
    """Settings of this stage."""

    start: str = ""
    """Folder of a run to start from, such as one on smaller squares; empty: random weights."""
    batch: int = 32
    """Tiles per step."""
    side: int = 128
    """Side in pixels, a multiple of 8, of the squares that are cut out of the tiles."""
    fresh: int = 2
    """Tiles that are degraded anew at every step; 0: none."""
    noisy: float = 0.25
    """Chance that these are strongly noisy (`NOISY`)."""


class LevelPool:
    """LR tiles and their levels in memory; the oldest are degraded anew.

    Args:
        files: what `Tiles.save` wrote.
        photos: folder of the photographs that the tiles were cut from.
        held_out: whether to take the held-out photographs' tiles, or all others.

    Raises:
        OptionError: there is no such tile.
    """

    def __init__(self, files: Sequence[Path], photos: Path, *, held_out: bool) -> None:
        names = [path.name for path in find_photos(photos)]
        self.sources: list[tuple[Tiles, int]] = []
        """File and row of each tile."""
        for path in files:
            tiles = load_tiles(path)
            rows = enumerate(tiles.photo.tolist())
            self.sources += [(tiles, i) for i, n in rows if is_held_out(names[n]) is held_out]
        if not self.sources:
            kind = "held-out photographs" if held_out else "photographs to train on"
            raise OptionError(f"{' '.join(map(str, files))} has no tiles of {kind}; make more")
        self.lr = torch.stack([tiles.lr[i] for tiles, i in self.sources])
        self.levels = torch.stack([tiles.levels[i] for tiles, i in self.sources])
        self._next = 0

    def __len__(self) -> int:
        return len(self.sources)

    def renew(self, count: int, noisy: float, g: torch.Generator) -> None:
        """Degrade the next `count` tiles anew from their HR tiles."""
        if not count:
            return
        rows = [(self._next + i) % len(self) for i in range(count)]
        self._next = (rows[-1] + 1) % len(self)
        hr = torch.stack([tiles.hr[i] for tiles, i in (self.sources[row] for row in rows)])
        hr = hr.float() / 127.5 - 1
        lr = degrade(hr, draw_config(DegradeConfig(), noisy, g), g)
        self.levels[rows] = measure_degradation(lr, bicubic_down((hr + 1) / 2, SCALE) * 2 - 1)
        # A device's tiles start anywhere in the grid of JPEG's blocks.
        left, top = torch.randint(8, (2,), generator=g).tolist()
        height, width = lr.shape[-2:]
        shifted = F.pad(lr, (left, 0, top, 0), mode="reflect")[..., :height, :width]
        self.lr[rows] = to_bytes(shifted)

    def batch(self, count: int, side: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Squares of `count` tiles, turned at random, and their levels.

        Returns:
            [count, 3, side, side] in [-1, 1], and [count, 3].
        """
        rows = torch.randint(len(self), (count,), generator=g)
        last = self.lr.shape[-1] - side
        top, left = torch.randint(last + 1, (2,), generator=g).tolist()
        lr = self.lr[rows, :, top : top + side, left : left + side]
        flips = torch.randint(2, (3,), generator=g).tolist()
        lr = lr.transpose(2, 3) if flips[0] else lr
        lr = lr.flip([axis for axis in (2, 3) if flips[axis - 1]])
        return to_picture(lr), self.levels[rows]


@torch.no_grad()
def errors(
    network: nn.Module, pool: LevelPool, device: torch.device
) -> dict[str, dict[str, float]]:
    """Errors on a pool by level, and those of the best constants.

    Returns:
        By level: `r2`, the share of the variance that is explained; `error`, the mean absolute
        error; and `constant`, that of the pool's own median.
    """
    made = [network(to_picture(part).to(device)).cpu() for part in pool.lr.split(64)]
    estimates, truth = torch.cat(made), pool.levels
    variance = (truth - truth.mean(0)).square().mean(0).clamp_min(1e-9)
    r2 = 1 - (estimates - truth).square().mean(0) / variance
    error = (estimates - truth).abs().mean(0)
    constant = (truth - truth.median(0).values).abs().mean(0)
    return {
        name: {"r2": float(r2[i]), "error": float(error[i]), "constant": float(constant[i])}
        for i, name in enumerate(LEVELS)
    }


def train(pool: LevelPool, run: Run, stage: DegradationStage, device: torch.device) -> None:
    """Run the stage; `run.trained` holds `degradation`."""
    g = torch.Generator().manual_seed(run.config.seed + run.step)
    network = run.trained["degradation"]
    for _ in run:
        pool.renew(stage.fresh, stage.noisy, g)
        image, levels = (part.to(device) for part in pool.batch(stage.batch, stage.side, g))
        wrong = (network(image) - levels).square().mean(0)
        run.update(wrong.mean(), **dict(zip(LEVELS, wrong, strict=True)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=Path, nargs="+", required=True, help="files of tiles")
    add_run_options(parser, DegradationStage(), steps=700, learning_rate=2e-3, warmup=50, ema=0.995)
    args = parser.parse_args()
    config, stage = run_config(args, DegradationStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    network = build_degradation(DegradationConfig()).to(device, memory_format=torch.channels_last)
    if stage.start:
        start_from({"degradation": network}, load_run(Path(stage.start)))
    run = Run(args.out, config, stage, {"degradation": network.train()})
    train(LevelPool(args.tiles, args.photos, held_out=False), run, stage, device)
    network.load_state_dict(load_run(args.out)["degradation"])  # the averaged weights
    found = errors(network.eval(), LevelPool(args.tiles, args.photos, held_out=True), device)
    write_text(args.out / "errors.json", json.dumps(found, indent=1) + "\n")
    for name, values in found.items():
        print(name, *(f"{key} {value:.3f}" for key, value in values.items()), sep="  ")


if __name__ == "__main__":
    main()
