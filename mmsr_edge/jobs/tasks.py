"""Tasks: the pictures that files, folders and patterns name, and where their results go."""

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
"""What counts as a picture in a folder. Files that are named are always tried."""

_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class Task:
    """One picture to be made."""

    source: Path
    """The input."""
    target: Path
    """The result."""


def find_tasks(
    inputs: Sequence[str | os.PathLike[str]],
    output: Path,
    *,
    recursive: bool = False,
    suffix: str | None = ".png",
) -> list[Task]:
    """The pictures that `inputs` name, and where their results go.

    Args:
        inputs: files; folders, of which the pictures are taken; patterns such as `a/**/*.jpg`.
        output: folder of the results. What lies below a folder, or below the part of a pattern
            that is no pattern yet, keeps its place below `output`.
        recursive: look into the folders in a folder, too.
        suffix: of the results, such as ".png"; None: that of the input.

    Raises:
        OptionError: for an unknown `suffix`, and when nothing is found.
    """
    if suffix is not None and suffix.lower() not in FORMATS:
        raise OptionError(f"format {suffix!r} is unknown; choose {', '.join(FORMATS)}")
    tasks: dict[Path, Task] = {}
    for name in inputs:
        given = os.fspath(name)
        found = list(_pictures(given, recursive, output))
        if not found:
            raise OptionError(
                f"{given!r}: no picture is there; the suffixes looked for are "
                f"{' '.join(sorted(SUFFIXES))}"
            )
        for path, below in found:
            ending = path.suffix if suffix is None else suffix
            target = output / below.with_name(f"{below.stem}{ending}")
            tasks.setdefault(path.resolve(), Task(path, target))
    return list(tasks.values())


def _pictures(given: str, recursive: bool, output: Path) -> Iterator[tuple[Path, Path]]:
    """Paths of pictures, each with its place below the folder that was searched."""
    path = Path(given)
    results = output.resolve()  # below a folder that is searched, these are no inputs
    if path.is_dir():
        base, names = path, list(path.rglob("*") if recursive else path.glob("*"))
    elif path.exists() or not _MAGIC & set(given):
        yield path, Path(path.name)  # also one that is missing: that is the task's own failure
        return
    else:
        fixed = []
        for part in path.parts[:-1]:
            if _MAGIC & set(part):
                break
            fixed.append(part)
        base = Path(*fixed) if fixed else Path()
        # Path.glob takes no absolute patterns.
        names = [Path(found) for found in glob.glob(given, recursive=True)]  # noqa: PTH207
    for found in sorted(names):
        if not found.is_file() or found.suffix.lower() not in SUFFIXES:
            continue
        if found.name.startswith("."):
            continue
        if results != base.resolve() and results in found.resolve().parents:
            continue
        yield found, found.relative_to(base)
