"""The command line's part for sizes and for many pictures at once."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsr_edge.errors import ImageError, OptionError, OutputError
from mmsr_edge.files import write_atomically

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from mmsr_edge.jobs import Outcome, Report, Task
    from mmsr_edge.upscaler import Progress, Upscaler

__all__ = ["add_jobs", "add_size", "default_target", "is_job", "run_jobs", "write_json"]

OK, FAILED, CANCELLED = 0, 1, 130
"""Exit codes; wrong usage is 2."""


def add_size(parser: argparse.ArgumentParser) -> None:
    """What the result is to be."""
    group = parser.add_argument_group("result")
    add = group.add_argument
    add("--scale", type=float, metavar="X", help="1 to 8, fractions too (default: the model's 4)")
    add("--width", type=int, metavar="PX", help="width of the result, in place of --scale")
    add("--height", type=int, metavar="PX", help="height of the result, in place of --scale")
    add("--fit", help="with both: inside (default), or cover and cut off what sticks out")
    add("--bits", type=int, help="8 or 16 a channel, in PNG and TIFF (default: the input's)")
    add("--first-frame", action="store_true", help="of an animation, rather than refuse it")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Which pictures, and how."""
    group = parser.add_argument_group("many pictures")
    add = group.add_argument
    add("-r", "--recursive", action="store_true", help="look into folders in folders, too")
    add("--format", metavar="SUFFIX", help=".png (default), .jpg, .webp, .avif, .tif, or same")
    add("-j", "--jobs", type=int, default=1, metavar="N", help="pictures at a time (default: 1)")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--report", type=Path, metavar="FILE", help="write what became of each file, as JSON")


def is_job(arguments: argparse.Namespace) -> bool:
    """Whether the command is about more than one picture and one result."""
    given: Sequence[str] = arguments.input
    output: str | None = arguments.output
    one = Path(given[0])
    return (
        len(given) > 1
        or one.is_dir()
        or (bool(set(given[0]) & set("*?[")) and not one.exists())
        or (output is not None and (output.endswith(("/", "\\")) or Path(output).is_dir()))
        or arguments.dry_run
        or arguments.report is not None
    )


def run_jobs(
    upscaler: Upscaler,
    arguments: argparse.Namespace,
    options: dict[str, Any],
    cancel: threading.Event,
) -> int:
    """Do them, say what became of them, and return the exit code.

    Raises:
        OptionError, OutputError: nothing was begun.
    """
    from mmsr_edge.jobs import run_job

    if arguments.save_maps is not None:
        raise OptionError("--save-maps is for one picture at a time")
    tasks, output = _tasks(upscaler, arguments)
    if arguments.report is not None and not arguments.report.absolute().parent.is_dir():
        raise OutputError(f"{arguments.report}: there is no folder {arguments.report.parent}")
    quiet = arguments.quiet or arguments.dry_run
    with _bars(tasks, quiet=quiet) as bars:

        def finished(outcome: Outcome) -> None:
            bars.finished(outcome)
            _tell(outcome, bars.write, quiet=arguments.quiet)

        report = run_job(
            upscaler,
            tasks,
            output,
            workers=arguments.jobs,
            overwrite=arguments.overwrite,
            dry_run=arguments.dry_run,
            cancel=cancel,
            progress=bars.progress,
            finished=finished,
            **options,
        )
    if arguments.dry_run and not arguments.quiet:
        for outcome in report.files:
            if outcome.status == "planned":
                print(f"{outcome.source} -> {outcome.target}: {_sizes(outcome)}")
    if arguments.report is not None:
        write_json(report.as_json(), arguments.report)
    if not arguments.quiet:
        print(_summary(report))
    if cancel.is_set():
        print("mmsr-edge: cancelled; the same command takes it up again", file=sys.stderr)
        return CANCELLED
    return FAILED if report.count("failed") else OK


def default_target(upscaler: Upscaler, arguments: argparse.Namespace, source: Path) -> Path:
    """Where the result of one picture goes when no place is named: beside it."""
    scale = upscaler.bundle.manifest.scale if arguments.scale is None else arguments.scale
    return source.with_name(f"{source.stem}_x{scale:g}{_suffix(arguments) or source.suffix}")


def _suffix(arguments: argparse.Namespace) -> str | None:
    """Of the results; None: that of each input."""
    suffix: str = arguments.format or ".png"
    return None if suffix == "same" else suffix


def _tasks(upscaler: Upscaler, arguments: argparse.Namespace) -> tuple[list[Task], Path]:
    from mmsr_edge.image import FORMATS
    from mmsr_edge.jobs import Task, find_tasks

    given: list[str] = arguments.input
    output = None if arguments.output is None else Path(arguments.output)
    single = len(given) == 1 and Path(given[0]).is_file()
    if single and (output is None or (output.suffix.lower() in FORMATS and not output.is_dir())):
        source = Path(given[0])
        target = output or default_target(upscaler, arguments, source)
        return [Task(source, target)], target.parent
    if output is None:
        raise OptionError("several pictures need a folder for the results: -o DIR")
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; several pictures need a folder")
    return find_tasks(
        given, output, recursive=arguments.recursive, suffix=_suffix(arguments)
    ), output


def _tell(outcome: Outcome, write: Callable[[str], None], *, quiet: bool) -> None:
    if outcome.status == "failed":
        print(f"mmsr-edge: {outcome.source}: {outcome.error}", file=sys.stderr)
        return
    if quiet:
        return
    for warning in outcome.warnings:
        print(f"mmsr-edge: warning: {outcome.source}: {warning}", file=sys.stderr)
    if outcome.status == "done":
        write(f"{outcome.target}: {_sizes(outcome)}, {outcome.seconds:.1f} s")
    elif outcome.status == "skipped":
        write(f"{outcome.target}: skipped, it is done already")


def _sizes(outcome: Outcome) -> str:
    sizes = (outcome.input_size, outcome.output_size)
    return " -> ".join(f"{size[0]}x{size[1]}" for size in sizes if size)


def _summary(report: Report) -> str:
    counts = {name: report.count(name) for name in ("planned", "done", "skipped", "failed")}
    counts["cancelled"] = report.count("cancelled")
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing"
    return f"{said}; {report.seconds:.1f} s"


def write_json(data: object, path: Path) -> None:
    """Write `data`, for programs to read.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps(data, indent=2, default=str) + "\n"
    try:
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


class _Bars:
    """A bar over all files, and one for each that is being worked on, with the time left."""

    def __init__(self, tasks: Sequence[Task], tqdm: Any, *, quiet: bool) -> None:
        self._tqdm, self._lock = tqdm, threading.Lock()
        self._work = {str(task.source): _pixels(task.source) for task in tasks}
        self._share = dict.fromkeys(self._work, 0.0)
        self._open: dict[str, Any] = {}
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        # disable=None: no bar where stderr is not a terminal.
        self._form: dict[str, Any] = {"bar_format": form, "disable": True if quiet else None}
        self._files = len(tasks)
        self._ended = 0
        self._total = tqdm(total=sum(self._work.values()), position=0, **self._form)
        self._describe()

    def write(self, line: str) -> None:
        """A line on stdout, above the bars."""
        self._tqdm.write(line)

    def progress(self, task: Task, progress: Progress) -> None:
        """A step of a file was done."""
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
        """A file was done with, one way or the other."""
        with self._lock:
            self._ended += 1
            if bar := self._open.pop(outcome.source, None):
                bar.close()
            if outcome.status == "done":
                self._share[outcome.source] = 1.0
            else:  # no work, so that it does not count into the time left
                self._total.total -= self._work[outcome.source]
                self._share[outcome.source] = 0.0
            self._describe()
            self._advance()

    def close(self) -> None:
        """Take them away."""
        for bar in (*self._open.values(), self._total):
            bar.close()

    def _describe(self) -> None:
        self._total.set_description_str(f"{self._ended}/{self._files} files", refresh=False)

    def _advance(self) -> None:
        self._total.n = sum(self._share[name] * work for name, work in self._work.items())
        self._total.update(0)


@contextmanager
def _bars(tasks: Sequence[Task], *, quiet: bool) -> Iterator[_Bars]:
    from tqdm import tqdm

    bars = _Bars(tasks, tqdm, quiet=quiet)
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
