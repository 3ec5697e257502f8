"""Jobs: many pictures, one or a few at a time, which can be stopped and resumed.

A journal beside the results records each file, one line when it is begun and one when it is done.
A later job with the same settings skips a file if the input and the result still have the recorded
hashes and the result can be opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.bundle import MANIFEST_NAME, MAPS
from mmsr_edge.config import UpscaleOptions
from mmsr_edge.errors import (
    BackendError,
    Cancelled,
    ImageError,
    MMSRError,
    OptionError,
    OutputError,
)
from mmsr_edge.image import picture_size
from mmsr_edge.modalities.spatial import DIALS, belongs_to_one_picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from typing_extensions import Unpack

    from mmsr_edge.config import UpscaleKeywords
    from mmsr_edge.jobs.tasks import Task
    from mmsr_edge.upscaler import Progress, Upscaler

__all__ = ["JOURNAL", "Outcome", "Report", "run_job"]

JOURNAL = ".mmsr-edge.jsonl"
"""File name of the journal, in the folder of the results."""


@dataclass
class Outcome:
    """Outcome of a task."""

    source: str
    """Path of the input."""
    target: str
    """Path of the result."""
    status: str = "planned"
    """"planned", "done", "skipped" (done by an earlier job), "failed" or "cancelled"."""
    error: str | None = None
    """Message, if it failed or was cancelled."""
    input_size: tuple[int, int] | None = None
    """(width, height) of the input as stored, in pixels."""
    output_size: tuple[int, int] | None = None
    """(width, height) of the result, in pixels."""
    seconds: float | None = None
    """Wall time of the task, in seconds."""
    input_sha256: str | None = None
    """SHA-256 of the input file."""
    output_sha256: str | None = None
    """SHA-256 of the result file."""
    warnings: list[str] = field(default_factory=list)
    """Warnings, as in `Result`."""
    degradation: dict[str, float] = field(default_factory=dict)
    """Levels of degradation that the model was told, as in `Result`."""


@dataclass
class Report:
    """Outcome of a job."""

    model: str
    """Name and version of the model."""
    backend: str
    """Name of the backend."""
    settings: dict[str, Any]
    """The options of `Upscaler.upscale`, as JSON types."""
    fingerprint: str
    """SHA-256 of model, backend and options; equal for interchangeable results."""
    seconds: float = 0.0
    """Wall time of the job, in seconds."""
    files: list[Outcome] = field(default_factory=list)
    """Outcome of each task, in the order of the tasks."""

    def count(self, status: str) -> int:
        """Number of files with this status."""
        return sum(outcome.status == status for outcome in self.files)

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON types, with counts by status."""
        statuses = ("done", "skipped", "failed", "cancelled", "planned")
        return {
            **{
                item.name: getattr(self, item.name) for item in fields(self) if item.name != "files"
            },
            "counts": {status: self.count(status) for status in statuses},
            "files": [vars(outcome) for outcome in self.files],
        }


def run_job(
    upscaler: Upscaler,
    tasks: Sequence[Task],
    output: Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    dry_run: bool = False,
    cancel: threading.Event | None = None,
    progress: Callable[[Task, Progress], None] | None = None,
    finished: Callable[[Outcome], None] | None = None,
    **options: Unpack[UpscaleKeywords],
) -> Report:
    """Upscale every picture of `tasks`; a failure does not stop the others.

    Args:
        upscaler: the upscaler that runs every task.
        tasks: tasks, from `find_tasks`.
        output: folder of the results and the journal.
        workers: pictures at a time. Pictures that run out of memory are tried again, half as many
            at a time, down to one.
        overwrite: upscale every picture and replace existing results. Otherwise a task fails if its
            result exists and does not match the journal.
        dry_run: report what would be done and what would fail, without doing it.
        cancel: once set, the job ends before its next network calls; the report gives each file's
            status.
        progress: called after every sampler step, in the thread of the picture.
        finished: called with each outcome, in the thread of the caller.
        options: options of `Upscaler.upscale`; a map must be "auto" or None, and a dial must not
            be one picture's map.

    Returns:
        The outcome of every task.

    Raises:
        OptionError: an option is unknown, outside its range, or a map of a single picture.
        OutputError: `output` cannot be created.
    """
    if workers < 1:
        raise OptionError(f"workers is {workers}; it must be at least 1")
    for name in DIALS:
        if belongs_to_one_picture(options.get(name)):
            raise OptionError(
                f"{name} is one picture's map; in a job it must be a number or follow a modality, "
                "as in {'depth': (0.5, 1)}"
            )
    for name in MAPS:
        if options.get(name, "auto") not in ("auto", None):
            raise OptionError(f"{name} is one picture's map; in a job it must be 'auto' or None")
    checked = UpscaleOptions.from_mapping(options)
    cancel = cancel or threading.Event()
    job = _Job(upscaler, checked, output, overwrite, cancel, progress)
    began = time.perf_counter()
    outcomes = {task: Outcome(str(task.source), str(task.target)) for task in tasks}
    report = Report(job.model, upscaler.backend, _plain(job.settings), job.fingerprint)
    report.files = list(outcomes.values())
    waiting = list(job.plan(outcomes))
    for task in tasks:
        if task not in waiting and finished:
            finished(outcomes[task])
    if not dry_run and waiting:
        job.prepare()
        while waiting:
            waiting = job.round(waiting, outcomes, workers, finished)
            workers = max(workers // 2, 1)
    report.seconds = time.perf_counter() - began
    return report


class _Job:
    """State that the tasks of a job share."""

    def __init__(
        self,
        upscaler: Upscaler,
        options: UpscaleOptions,
        output: Path,
        overwrite: bool,
        cancel: threading.Event,
        progress: Callable[[Task, Progress], None] | None,
    ) -> None:
        manifest = upscaler.bundle.manifest
        self.upscaler, self.options, self.output = upscaler, options, output
        self.overwrite, self.cancel, self.progress = overwrite, cancel, progress
        self.model = f"{manifest.name} {manifest.version}"
        self.settings = {item.name: getattr(options, item.name) for item in fields(options)}
        # The manifest holds the hash of every model file; the memory limit changes no pixel.
        identity = {
            "manifest": _sha256(upscaler.bundle.root / MANIFEST_NAME),
            "backend": upscaler.backend,
            "precision": upscaler.precision,
            "settings": {**self.settings, "max_memory_mb": None},
        }
        text = json.dumps(_plain(identity), sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._journal = output / JOURNAL
        self._writing = threading.Lock()

    def prepare(self) -> None:
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"folder {self.output} cannot be created: {error}") from error

    def plan(self, outcomes: dict[Task, Outcome]) -> Iterator[Task]:
        """The tasks to be done; outcomes of skipped and failed ones are set."""
        known = dict(self._read_journal())
        targets: dict[Path, Task] = {}
        for task, outcome in outcomes.items():
            try:
                other = targets.setdefault(task.target.absolute(), task)
                if other is not task:
                    raise OutputError(
                        f"{task.target} is the result of {other.source}, too; use separate folders"
                    )
                if task.target.resolve() == task.source.resolve():
                    raise OutputError(f"{task.target} is the input itself; name another folder")
                outcome.input_size = picture_size(task.source)
                native = self.upscaler.bundle.manifest.scale
                outcome.output_size = self.options.target(outcome.input_size, native).size
                if task.target.exists() and not self.overwrite:
                    entry = known.get(self._name(task))
                    if not (entry and entry.get("output_sha256") is None):
                        self._skip_existing(task, outcome, entry)
                        continue
                    # Recorded as begun but not as done: the job was killed in between.
                yield task
            except MMSRError as error:
                outcome.status, outcome.error = "failed", str(error)

    def _skip_existing(self, task: Task, outcome: Outcome, entry: dict[str, Any] | None) -> None:
        """Skip a task whose existing result matches the journal's `entry`.

        Raises:
            OutputError: the result does not match; the message gives the reason.
        """
        reason = "no job made it"
        if entry is not None:
            outcome.input_sha256 = _sha256(task.source)
            if entry.get("fingerprint") != self.fingerprint:
                reason = "it was made with other settings"
            elif entry.get("input_sha256") != outcome.input_sha256:
                reason = "it was made from another input"
            elif entry.get("output_sha256") != _sha256(task.target):
                reason = "it has been changed since it was made"
            else:
                picture_size(task.target)
                outcome.status = "skipped"
                outcome.output_sha256 = entry["output_sha256"]
                return
        raise OutputError(f"{task.target} exists, but {reason}; remove it, or allow overwriting")

    def round(
        self,
        tasks: Iterable[Task],
        outcomes: dict[Task, Outcome],
        workers: int,
        finished: Callable[[Outcome], None] | None,
    ) -> list[Task]:
        """Do the tasks, `workers` at a time; return those that ran out of memory beside others."""
        again: list[Task] = []
        waiting = iter(tasks)
        with ThreadPoolExecutor(workers, "mmsr-edge") as pool:
            running: dict[Future[bool], Task] = {}
            while True:
                for task in waiting:
                    running[pool.submit(self._do, task, outcomes[task], workers > 1)] = task
                    if len(running) >= workers:
                        break
                if not running:
                    return again
                # The timeout lets Ctrl-C through on every platform.
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    task = running.pop(future)
                    if future.result():
                        again.append(task)
                    elif finished:
                        finished(outcomes[task])

    def _do(self, task: Task, outcome: Outcome, others: bool) -> bool:
        """Do one task; return whether to try it again with fewer `others` at a time."""
        began = time.perf_counter()
        try:
            if self.cancel.is_set():
                raise Cancelled("the job was cancelled before this picture was started")
            self._make(task, outcome)
        except Cancelled as error:
            outcome.status, outcome.error = "cancelled", str(error)
        except Exception as error:  # one bad file must not stop the others
            if others and _out_of_memory(error):
                return True
            message = (
                str(error) if isinstance(error, MMSRError) else f"{type(error).__name__}: {error}"
            )
            if _out_of_memory(error):
                message = (
                    f"out of memory: {message}; close other programs, or choose a smaller size"
                )
            outcome.status, outcome.error = "failed", message
        outcome.seconds = round(time.perf_counter() - began, 3)
        return False

    def _make(self, task: Task, outcome: Outcome) -> None:
        try:
            task.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"folder {task.target.parent} cannot be created: {error}") from error
        notify = self.progress
        outcome.input_sha256 = _sha256(task.source)
        self._note(task, outcome)
        result = self.upscaler.upscale(
            task.source,
            **self.settings,
            progress=None if notify is None else lambda progress: notify(task, progress),
            cancel=self.cancel,
            output=task.target,
        )
        outcome.output_sha256 = _sha256(task.target)
        outcome.output_size = result.size
        outcome.warnings += result.warnings
        outcome.degradation = result.degradation
        outcome.status = "done"
        self._note(task, outcome)

    # --- The journal ----------------------------------------------------------------------------

    def _name(self, task: Task) -> str:
        return task.target.relative_to(self.output).as_posix()

    def _read_journal(self) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            lines = self._journal.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return
        for line in lines:
            with suppress(ValueError, TypeError, KeyError):  # half a line, after a power cut
                entry = json.loads(line)
                yield entry["target"], entry

    def _note(self, task: Task, outcome: Outcome) -> None:
        """Add a line to the journal: the file is begun, or done if `output_sha256` is set."""
        entry = {
            "target": self._name(task),
            "source": str(task.source),
            "fingerprint": self.fingerprint,
            "input_sha256": outcome.input_sha256,
            "output_sha256": outcome.output_sha256,
        }
        try:
            with self._writing, self._journal.open("a", encoding="utf-8") as file:
                file.write("\n" * self._ends_within_line() + json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            outcome.warnings.append(
                f"the journal cannot be written, so a later job will make this file again: {error}"
            )

    def _ends_within_line(self) -> bool:
        """Whether the journal's last line lacks its newline."""
        with self._journal.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"


def _plain(value: Any) -> Any:
    """A value of JSON types, with strings for keys."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _out_of_memory(error: BaseException) -> bool:
    message = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, BackendError)
        and any(sign in message for sign in ("bad_alloc", "out of memory", "allocat"))
    )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error}") from error
