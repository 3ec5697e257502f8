"""Tasks: pictures named by files, folders and patterns, and the paths of their results."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmsr_edge.errors import OptionError
from mmsr_edge.image import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["SUFFIXES", "Task", "find_tasks"]

SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".j2k",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
"""Suffixes of pictures in folders and patterns. A file named directly may have any suffix."""

_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class Task:
    """One picture to upscale."""

    source: Path
    """Path of the input."""
    target: Path
    """Path of the result."""


def find_tasks(
    inputs: Sequence[str | os.PathLike[str]],
    output: Path,
    *,
    recursive: bool = False,
    suffix: str | None = ".png",
) -> list[Task]:
    """A task for each picture that `inputs` name, without duplicates.

    Args:
        inputs: files, folders that hold pictures, and patterns such as `a/**/*.jpg`.
        output: folder of the results. A result keeps the input's path relative to the folder, or
            relative to the part of a pattern before its first wildcard.
        recursive: include subfolders.
        suffix: suffix of the results, such as ".png"; None: that of each input.

    Raises:
        OptionError: `suffix` is unknown, or an input names no picture.
    """
    if suffix is not None and suffix.lower() not in FORMATS:
        raise OptionError(f"format {suffix!r} is unknown; choose {', '.join(FORMATS)}")
    tasks: dict[Path, Task] = {}
    for name in inputs:
        given = os.fspath(name)
        found = list(_pictures(given, recursive, output))
        if not found:
            raise OptionError(
                f"{given!r}: no picture found; the suffixes searched for are "
                f"{' '.join(sorted(SUFFIXES))}"
            )
        for path, below in found:
            ending = path.suffix if suffix is None else suffix
            target = output / below.with_name(f"{below.stem}{ending}")
            tasks.setdefault(path.resolve(), Task(path, target))
    return list(tasks.values())


def _pictures(given: str, recursive: bool, output: Path) -> Iterator[tuple[Path, Path]]:
    """Paths of pictures, and each path relative to the folder that was searched."""
    path = Path(given)
    results = output.resolve()  # results below a searched folder are not inputs
    if path.is_dir():
        base, names = path, list(path.rglob("*") if recursive else path.glob("*"))
    elif path.exists() or not _MAGIC & set(given):
        yield path, Path(path.name)  # a missing file, too: its task then fails
        return
    else:
        fixed = []
        for part in path.parts[:-1]:
            if _MAGIC & set(part):
                break
            fixed.append(part)
        base = Path(*fixed) if fixed else Path()
        # Path.glob does not accept absolute patterns.
        names = [Path(found) for found in glob.glob(given, recursive=True)]  # noqa: PTH207
    for found in sorted(names):
        if not found.is_file() or found.suffix.lower() not in SUFFIXES:
            continue
        if found.name.startswith("."):
            continue
        if results != base.resolve() and results in found.resolve().parents:
            continue
        yield found, found.relative_to(base)
