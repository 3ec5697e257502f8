"""Output of the commands: exit codes, JSON, sizes and progress bars."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmsr_edge.errors import ImageError
from mmsr_edge.files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mmsr_edge.jobs import Outcome, Task
    from mmsr_edge.upscaler import Progress

__all__ = [
    "CANCELLED",
    "FAILED",
    "OK",
    "USAGE",
    "FileBars",
    "byte_size",
    "file_bars",
    "picture_bar",
    "write_json",
]

OK, FAILED, USAGE, CANCELLED = 0, 1, 2, 130
"""Exit codes."""

_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


def write_json(data: object, path: Path) -> None:
    """Write `data` to a JSON file.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, json.dumps(data, indent=2, default=str) + "\n")


def byte_size(count: int) -> str:
    """A number of bytes as text, such as "1.4 MB"."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


@contextmanager
def picture_bar(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A progress bar for one picture; yields the `progress` callback of an upscale call."""
    from tqdm import tqdm

    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=1.0, bar_format=_BAR, disable=True if quiet else None) as bar:

        def show(progress: Progress) -> None:
            tiles = f" tile {progress.tile}/{progress.tiles}" if progress.tiles > 1 else ""
            bar.set_description_str(f"{progress.stage}{tiles}", refresh=False)
            bar.n = progress.fraction  # set, not summed, so that it ends at exactly 1
            bar.update(0)

        yield show


class FileBars:
    """Progress bars with the time left: one for all files, and one for each file in progress."""

    def __init__(self, tasks: Sequence[Task], tqdm: Any, *, quiet: bool) -> None:
        self._tqdm, self._lock = tqdm, threading.Lock()
        self._work = {str(task.source): _pixels(task.source) for task in tasks}
        self._share = dict.fromkeys(self._work, 0.0)
        self._open: dict[str, Any] = {}
        # disable=None: no bar where stderr is not a terminal.
        self._form: dict[str, Any] = {"bar_format": _BAR, "disable": True if quiet else None}
        self._files = len(tasks)
        self._ended = 0
        self._total = tqdm(total=sum(self._work.values()), position=0, **self._form)
        self._describe()

    def write(self, line: str) -> None:
        """Print a line on stdout, above the bars."""
        self._tqdm.write(line)

    def progress(self, task: Task, progress: Progress) -> None:
        """Show the progress of a file, after one of its steps."""
        name = str(task.source)
        with self._lock:
            bar = self._open.get(name)
            if bar is None:
                taken = {other.pos for other in self._open.values()}
                place = next(i for i in range(1, 1000) if -i not in taken)
                bar = self._tqdm(total=1.0, position=place, leave=False, **self._form)
                self._open[name] = bar
            tiles = f" tile {progress.tile}/{progress.tiles}" if progress.tiles > 1 else ""
            bar.set_description_str(f"{task.source.name}: {progress.stage}{tiles}", refresh=False)
            bar.n = progress.fraction
            bar.update(0)
            self._share[name] = progress.fraction
            self._advance()

    def finished(self, outcome: Outcome) -> None:
        """Count a file as ended, whatever its outcome, and close its bar."""
        with self._lock:
            self._ended += 1
            if bar := self._open.pop(outcome.source, None):
                bar.close()
            if outcome.status == "done":
                self._share[outcome.source] = 1.0
            else:  # not counted as work, so that the time left stays right
                self._total.total -= self._work[outcome.source]
                self._share[outcome.source] = 0.0
            self._describe()
            self._advance()

    def close(self) -> None:
        """Close all bars."""
        for bar in (*self._open.values(), self._total):
            bar.close()

    def _describe(self) -> None:
        self._total.set_description_str(f"{self._ended}/{self._files} files", refresh=False)

    def _advance(self) -> None:
        self._total.n = sum(self._share[name] * work for name, work in self._work.items())
        self._total.update(0)


@contextmanager
def file_bars(tasks: Sequence[Task], *, quiet: bool) -> Iterator[FileBars]:
    """Progress bars for many pictures, closed at the end of the block."""
    from tqdm import tqdm

    bars = FileBars(tasks, tqdm, quiet=quiet)
    try:
        yield bars
    finally:
        bars.close()


def _pixels(path: Path) -> int:
    from mmsr_edge.image import picture_size

    try:
        width, height = picture_size(path)
    except ImageError:
        return 0
    return width * height
