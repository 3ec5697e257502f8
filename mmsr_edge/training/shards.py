"""What a run learnt, in half precision and in small files: the way back from a borrowed machine.

    python -m mmsr_edge.training.shards split RUN FOLDER
    python -m mmsr_edge.training.shards join FOLDER BASE RUN

`split` writes the averaged weights of what learnt, and nothing of the optimizer; `join` puts them
over those of the run or the checkpoint that the training began with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from mmsr_edge.errors import OptionError
from mmsr_edge.training.states import averaged, load_state, load_states, write_run

SIZE = 15
"""Most MiB of a file."""


def split_run(run: Path, folder: Path, size: int = SIZE) -> list[Path]:
    """Write what a run learnt as `0.safetensors`, `1.safetensors`, …

    Args:
        run: a folder with `state.pt`.
        folder: created.
        size: most MiB of a file; one tensor may be larger.

    Raises:
        OptionError: there is no run in `run`.
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
    """Write a run that a stage can begin with, or a release be made of.

    Args:
        folder: of `split_run`'s files.
        base: the run or checkpoint that the training began with.
        out: the run's folder.

    Raises:
        OptionError: there are no such files.
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
    split = commands.add_parser("split", help="write what a run learnt in small files")
    split.add_argument("run", type=Path, help="the run's folder")
    split.add_argument("folder", type=Path, help="where the files are to be")
    split.add_argument("--size", type=int, default=SIZE, help=f"MiB of a file; default {SIZE}")
    joint = commands.add_parser("join", help="make a run of such files")
    joint.add_argument("folder", type=Path, help="where the files are")
    joint.add_argument("base", type=Path, help="run or checkpoint that the training began with")
    joint.add_argument("run", type=Path, help="the run's folder, to be written")
    args = parser.parse_args()
    if args.command == "join":
        join_run(args.folder, args.base, args.run)
        return
    for path in split_run(args.run, args.folder, args.size):
        print(path, f"{path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
