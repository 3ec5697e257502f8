"""Split the trained weights of a run into small half-precision files, to move between machines.

    python -m mmsr_edge.training.shards split RUN FOLDER
    python -m mmsr_edge.training.shards join FOLDER BASE RUN

`split` writes the averaged weights of the trained networks, without the optimizer; `join` puts them
into the weights of the run or checkpoint that the training started from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from mmsr_edge.errors import OptionError
from mmsr_edge.training.states import averaged, load_state, load_states, write_run

SIZE = 15
"""Largest size of a file in MiB."""


def split_run(run: Path, folder: Path, size: int = SIZE) -> list[Path]:
    """Write the averaged weights of a run as `0.safetensors`, `1.safetensors`, …

    Args:
        run: folder of the run, with `state.pt`.
        folder: folder of the files; created.
        size: largest size of a file in MiB; a single larger tensor gets a file of its own.

    Returns:
        The paths of the files.

    Raises:
        OptionError: `run` is not a run's folder.
    """
    shards: list[dict[str, Tensor]] = [{}]
    room = size << 20
    for (name, key), value in averaged(load_state(run)).items():
        half = value.half().contiguous()
        if half.nbytes > room and shards[-1]:
            shards.append({})
            room = size << 20
        room -= half.nbytes
        shards[-1][f"{name}/{key}"] = half
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.safetensors" for i in range(len(shards))]
    for path, shard in zip(paths, shards, strict=True):
        save_file(shard, path)
    return paths


def join_run(folder: Path, base: Path, out: Path) -> None:
    """Write a run from split weights; a stage can start from it, and `release` can read it.

    Args:
        folder: folder with the files of `split_run`.
        base: the run or checkpoint that the training started from.
        out: folder of the run to write.

    Raises:
        OptionError: `folder` has no such files, or `base` is neither a run nor a checkpoint.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise OptionError(f"no .safetensors in {str(folder)!r}: give the folder of a split run")
    networks = load_states(base)
    for path in paths:
        for joint, value in load_file(path).items():
            name, _, key = joint.partition("/")
            networks.setdefault(name, {})[key] = value.float()
    write_run(out, networks)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    split = commands.add_parser("split", help="write the trained weights of a run as small files")
    split.add_argument("run", type=Path, help="folder of the run")
    split.add_argument("folder", type=Path, help="folder of the files to write")
    split.add_argument(
        "--size", type=int, default=SIZE, help=f"largest size of a file in MiB; default {SIZE}"
    )
    joint = commands.add_parser("join", help="make a run from such files")
    joint.add_argument("folder", type=Path, help="folder of the files")
    joint.add_argument("base", type=Path, help="run or checkpoint that the training started from")
    joint.add_argument("run", type=Path, help="folder of the run to write")
    args = parser.parse_args()
    if args.command == "join":
        join_run(args.folder, args.base, args.run)
        return
    for path in split_run(args.run, args.folder, args.size):
        print(path, f"{path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
