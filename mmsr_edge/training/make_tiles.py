"""Make training tiles with maps, words and levels of degradation, in one file.

    python -m mmsr_edge.training.make_tiles --photos DIR --modalities RUN RUN RUN --out FILE

A tile takes 1.2 MB, and half a second's work makes four. Several processes can share the work:
`--part 0/2` and `--part 1/2` write two files, and the stages read both.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mmsr_edge.bundle import Provenance, load_manifest
from mmsr_edge.errors import OptionError
from mmsr_edge.models.checkpoint import write_checkpoint
from mmsr_edge.models.networks import build_networks
from mmsr_edge.training.data.photos import find_photos
from mmsr_edge.training.data.tiles import TilesConfig, TorchRun, join_tiles, make_tiles
from mmsr_edge.training.modality_networks import add_modality_networks, load_modality_networks

LONGEST = 2600
"""Photographs with a longer side are shrunk to this many pixels first."""


def read_part(text: str) -> tuple[int, int]:
    """Number and count of `text`, such as "0/2".

    Raises:
        OptionError: it has another form, or the number is not below the count.
    """
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    raise OptionError(f"part is {text!r}; give a number and a count, such as 0/2 and 1/2")


def torch_run(folders: Sequence[Path], preset_name: str) -> TorchRun:
    """The modality networks of runs or a checkpoint, as the modalities run them on a device."""
    found = load_modality_networks(folders, preset_name, torch.device("cpu"))
    networks = {**build_networks(preset_name), **found.networks}
    origin = Provenance("unknown", ())
    with TemporaryDirectory() as folder:
        root = write_checkpoint(
            networks, Path(folder) / "checkpoint", preset_name=preset_name, version="0",
            residual_scale=None, provenance=origin, precision="fp32", labels=found.labels,
        )  # fmt: skip
        manifest = load_manifest(root)
    return TorchRun(found.networks, manifest)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--photos", type=Path, required=True, help="folder of photographs")
    add_modality_networks(parser)
    add("--preset", default="nano", help="preset of the networks; default nano")
    add("--out", type=Path, required=True, help="file to write")
    add("--views", type=int, default=3, help="views of each photograph; default 3")
    add("--part", default="0/1", help="share of the photographs, such as 0/2; default all")
    add("--seed", type=int, default=0, help="seed of all random draws; default 0")
    args = parser.parse_args()
    number, count = read_part(args.part)
    run = torch_run(args.modalities, args.preset)
    rng = np.random.default_rng([args.seed, number])
    g = torch.Generator().manual_seed(args.seed * count + number)
    paths = list(enumerate(find_photos(args.photos)))[number::count]
    parts = []
    for photo, path in tqdm(paths, desc="photographs"):
        with Image.open(path) as file:
            image = file.convert("RGB")
        image.thumbnail((LONGEST, LONGEST))
        parts += [make_tiles(image, photo, run, TilesConfig(), rng, g) for _ in range(args.views)]
    tiles = join_tiles(parts)
    tiles.save(args.out)
    print(len(tiles), "tiles")


if __name__ == "__main__":
    main()
