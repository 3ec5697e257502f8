"""Render scenes into files, in several processes; existing files are kept.

    python -m mmsr_edge.training.scenes.make --photos DIR --out SCENES --count 4000

Each file holds `FILE` scenes: `rgb`, uint8 [n, S, S, 3], and `inverse`, float16 [n, S, S], the
inverse depth divided by its largest value in the picture: 1 is the nearest point, 0 the sky.
"""

from __future__ import annotations

import argparse
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmsr_edge.files import replacing
from mmsr_edge.training.scenes.places import draw_scene
from mmsr_edge.training.scenes.render import render
from mmsr_edge.training.scenes.textures import Textures

FILE = 50
"""Scenes per file."""

Array = NDArray[Any]


def usable(rgb: NDArray[np.uint8], depth: Array) -> bool:
    """Whether a picture is usable: neither dark nor flat, not nearly all sky, of varied depth."""
    if rgb.std() < 8 or np.percentile(rgb, 95) < 30:
        return False
    known = depth[np.isfinite(depth)]
    if known.size < 0.15 * depth.size:
        return False
    low, high = np.percentile(known, [10, 90])
    return bool(high > 1.08 * low and known.min() > 0.02)


def render_scene(textures: Textures, seed: int, side: int) -> tuple[NDArray[np.uint8], Array]:
    """Render the scene of a seed: RGB [side, side, 3] and inverse depth [side, side] in [0, 1].

    An unusable picture is drawn again, up to 20 times.
    """
    for attempt in range(20):
        rng = np.random.default_rng([seed, attempt])
        rgb, depth = render(draw_scene(textures, rng), textures, side, rng)
        if usable(rgb, depth):
            break
    # Clipped, so that a very near point, such as a leaf at the lens, does not take the whole range.
    inverse = 1 / depth
    return rgb, np.minimum(inverse / np.percentile(inverse, 99.8), 1).astype(np.float32)


_TEXTURES: list[Textures] = []


def _start(textures: Textures) -> None:
    _TEXTURES.append(textures)


def _write(job: tuple[Path, int, int]) -> None:
    path, first, side = job
    scenes = [render_scene(_TEXTURES[0], first + i, side) for i in range(FILE)]
    rgb, inverse = (np.stack(column) for column in zip(*scenes, strict=True))
    with replacing(path) as file:
        np.savez(file, rgb=rgb, inverse=inverse.astype(np.float16))


def make_scenes(
    photos: Path | None, out: Path, count: int, side: int = 160, seed: int = 0, workers: int = 2
) -> None:
    """Render `count` scenes (rounded up to whole files) into `out`.

    Args:
        photos: folder of photographs for textures; None: patterns alone.
        out: folder of the files; created.
        count: number of scenes.
        side: side of the pictures in pixels.
        seed: seed of the scenes; part of the file names.
        workers: number of processes.
    """
    out.mkdir(parents=True, exist_ok=True)
    firsts = range(0, count, FILE)
    jobs = [(out / f"{seed:02}-{i:06}.npz", seed * 10**6 + i, side) for i in firsts]
    jobs = [job for job in jobs if not job[0].exists()]
    context: Any = get_context("spawn")
    with context.Pool(workers, _start, (Textures(photos, seed),)) as pool:
        for _ in tqdm(pool.imap_unordered(_write, jobs), total=len(jobs), desc="scenes"):
            pass


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder of photographs to cut textures from"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument(
        "--side", type=int, default=160, help="side of the pictures in pixels; default 160"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="number of processes; default 2")
    args = parser.parse_args()
    make_scenes(args.photos, args.out, args.count, args.side, args.seed, args.workers)


if __name__ == "__main__":
    main()
