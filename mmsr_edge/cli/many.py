"""`mmsr-edge upscale` of many pictures: find them, run the job, and print each outcome."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmsr_edge.cli.output import CANCELLED, FAILED, OK, file_bars, write_json
from mmsr_edge.errors import OptionError, OutputError

if TYPE_CHECKING:
    import argparse
    import threading
    from collections.abc import Callable, Sequence

    from mmsr_edge.config import UpscaleKeywords
    from mmsr_edge.jobs import Outcome, Report, Task
    from mmsr_edge.upscaler import Upscaler

__all__ = ["default_target", "is_job", "run_jobs"]


def is_job(arguments: argparse.Namespace) -> bool:
    """Whether the command runs a job, rather than upscaling one picture to one file."""
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
    options: UpscaleKeywords,
    cancel: threading.Event,
) -> int:
    """Run the job, print the outcomes, and return the exit code.

    Raises:
        OptionError, OutputError: the arguments do not fit a job; nothing was upscaled.
    """
    from mmsr_edge.jobs import run_job

    if arguments.save_maps is not None:
        raise OptionError("--save-maps is for one picture at a time")
    tasks, output = _tasks(upscaler, arguments)
    if arguments.report is not None and not arguments.report.absolute().parent.is_dir():
        raise OutputError(
            f"{arguments.report}: {arguments.report.parent} does not exist; make it first"
        )
    quiet = arguments.quiet or arguments.dry_run
    with file_bars(tasks, quiet=quiet) as bars:

        def finished(outcome: Outcome) -> None:
            bars.finished(outcome)
            _print_outcome(outcome, bars.write, quiet=arguments.quiet)

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
        print("mmsr-edge: cancelled; run the same command again to resume", file=sys.stderr)
        return CANCELLED
    return FAILED if report.count("failed") else OK


def default_target(upscaler: Upscaler, arguments: argparse.Namespace, source: Path) -> Path:
    """Default path of one picture's result: beside it, as in `photo_x4.png`."""
    scale = upscaler.bundle.manifest.scale if arguments.scale is None else arguments.scale
    return source.with_name(f"{source.stem}_x{scale:g}{_suffix(arguments) or source.suffix}")


def _suffix(arguments: argparse.Namespace) -> str | None:
    """Suffix of the results; None: that of each input."""
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


def _print_outcome(outcome: Outcome, write: Callable[[str], None], *, quiet: bool) -> None:
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
        write(f"{outcome.target}: skipped, already done")


def _sizes(outcome: Outcome) -> str:
    sizes = (outcome.input_size, outcome.output_size)
    return " -> ".join(f"{size[0]}x{size[1]}" for size in sizes if size)


def _summary(report: Report) -> str:
    counts = {name: report.count(name) for name in ("planned", "done", "skipped", "failed")}
    counts["cancelled"] = report.count("cancelled")
    parts = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing"
    return f"{parts}; {report.seconds:.1f} s"
