"""Jobs: many pictures, one by one or a few at a time, that can be stopped and taken up again.

What has been made is noted in a journal beside the results, a line a file, as soon as the file is
there. A later job with the same settings skips what still is what the journal says: the same
input, and an output with the same bytes that opens.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from typing_extensions import Unpack

    from mmsr_edge.config import UpscaleKeywords
    from mmsr_edge.jobs.tasks import Task
    from mmsr_edge.upscaler import Progress, Upscaler

__all__ = ["JOURNAL", "Outcome", "Report", "run_job"]

JOURNAL = ".mmsr-edge.jsonl"
"""Name of the journal, in the folder of the results."""


@dataclass
class Outcome:
    """What became of a task."""

    source: str
    """The input."""
    target: str
    """The result."""
    status: str = "planned"
    """"planned", "done", "skipped" (it was done before), "failed" or "cancelled"."""
    error: str | None = None
    """Why it failed."""
    input_size: tuple[int, int] | None = None
    """(width, height) of the input, as it is stored."""
    output_size: tuple[int, int] | None = None
    """(width, height) of the result."""
    seconds: float | None = None
    """How long it took."""
    input_sha256: str | None = None
    """Of the input's bytes."""
    output_sha256: str | None = None
    """Of the result's bytes."""
    warnings: list[str] = field(default_factory=list)
    """As in `Result`."""


@dataclass
class Report:
    """What became of a job."""

    model: str
    """Name and version."""
    backend: str
    """Name of the runtime."""
    settings: dict[str, Any]
    """The options."""
    fingerprint: str
    """Of model, backend and options: results with the same one may stand in for each other."""
    seconds: float = 0.0
    """How long the job took."""
    files: list[Outcome] = field(default_factory=list)
    """Each task's, in the order of the tasks."""

    def count(self, status: str) -> int:
        """Number of files of that status."""
        return sum(outcome.status == status for outcome in self.files)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, counts by status included."""
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
    """Make every picture of `tasks`; one that fails does not stop the others.

    Args:
        upscaler: what makes them.
        tasks: from `find_tasks`.
        output: folder of the results and of the journal.
        workers: pictures at a time. Where memory runs out, the pictures that it ran out for are
            tried again, half as many at a time, down to one.
        overwrite: make all of them, and replace what is there. Else a file that the journal does
            not vouch for is a failure.
        dry_run: find out what would be done and what would fail, and do nothing.
        cancel: once set, the job ends before its next network calls; the report says how far.
        progress: called after every sampler step, in the thread of the picture.
        finished: called with each outcome, in the thread of the caller.
        options: of `Upscaler.upscale`; a map must be "auto" or None.

    Raises:
        OptionError: an option is unknown, outside its range, or one picture's own.
        OutputError: `output` cannot be made.
    """
    if workers < 1:
        raise OptionError(f"workers is {workers}; it must be at least 1")
    for name in MAPS:
        if options.get(name, "auto") not in ("auto", None):
            raise OptionError(f"{name} is one picture's map; with many it must be 'auto' or None")
    checked = UpscaleOptions.from_mapping(options)
    cancel = cancel or threading.Event()
    job = _Job(upscaler, checked, output, overwrite, cancel, progress)
    began = time.perf_counter()
    outcomes = {task: Outcome(str(task.source), str(task.target)) for task in tasks}
    report = Report(job.model, upscaler.backend, job.settings, job.fingerprint)
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
    """What the tasks of a job share."""

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
        # The manifest holds the hash of every file of the model; memory changes no pixel.
        identity = {
            "manifest": _sha256(upscaler.bundle.root / MANIFEST_NAME),
            "backend": upscaler.backend,
            "precision": upscaler.precision,
            "settings": {**self.settings, "max_memory_mb": None},
        }
        text = json.dumps(identity, sort_keys=True, default=dict)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._journal = output / JOURNAL
        self._writing = threading.Lock()

    def prepare(self) -> None:
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"folder {self.output} cannot be made: {error}") from error

    def plan(self, outcomes: dict[Task, Outcome]) -> Iterator[Task]:
        """The tasks that are to be done; the others' outcomes are settled."""
        known = dict(self._read_journal())
        targets: dict[Path, Task] = {}
        for task, outcome in outcomes.items():
            try:
                other = targets.setdefault(task.target.absolute(), task)
                if other is not task:
                    raise OutputError(f"{task.target} is to be the result of {other.source}, too")
                if task.target.resolve() == task.source.resolve():
                    raise OutputError(f"{task.target} is the input itself; name another folder")
                outcome.input_size = picture_size(task.source)
                native = self.upscaler.bundle.manifest.scale
                outcome.output_size = self.options.target(outcome.input_size, native).size
                if task.target.exists() and not self.overwrite:
                    entry = known.get(self._name(task))
                    if not (entry and entry.get("output_sha256") is None):
                        self._vouch(task, outcome, entry)
                        continue
                    # Begun and not noted as done: the job was killed between the two.
                yield task
            except MMSRError as error:
                outcome.status, outcome.error = "failed", str(error)

    def _vouch(self, task: Task, outcome: Outcome, entry: dict[str, Any] | None) -> None:
        """Skip a task whose result is what a job like this one made.

        Raises:
            OutputError: it is not, with the reason.
        """
        doubt = "no job made it"
        if entry is not None:
            outcome.input_sha256 = _sha256(task.source)
            if entry.get("fingerprint") != self.fingerprint:
                doubt = "it was made with other settings"
            elif entry.get("input_sha256") != outcome.input_sha256:
                doubt = "it was made from another input"
            elif entry.get("output_sha256") != _sha256(task.target):
                doubt = "it has been changed since it was made"
            else:
                picture_size(task.target)
                outcome.status = "skipped"
                outcome.output_sha256 = entry["output_sha256"]
                return
        raise OutputError(f"{task.target} exists, and {doubt}; remove it, or allow overwriting")

    def round(
        self,
        tasks: Iterable[Task],
        outcomes: dict[Task, Outcome],
        workers: int,
        finished: Callable[[Outcome], None] | None,
    ) -> list[Task]:
        """Do the tasks, `workers` at a time; gives those for which memory ran out among others."""
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
                # Waked up now and then, so that Ctrl-C gets through on every platform.
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    task = running.pop(future)
                    if future.result():
                        again.append(task)
                    elif finished:
                        finished(outcomes[task])

    def _do(self, task: Task, outcome: Outcome, others: bool) -> bool:
        """Do one task; whether it is worth trying again when there is more memory."""
        began = time.perf_counter()
        try:
            if self.cancel.is_set():
                raise Cancelled("the job was cancelled before it began")
            self._make(task, outcome)
        except Cancelled as error:
            outcome.status, outcome.error = "cancelled", str(error)
        except Exception as error:  # one bad file must not stop the others
            if others and _out_of_memory(error):
                return True
            said = (
                str(error) if isinstance(error, MMSRError) else f"{type(error).__name__}: {error}"
            )
            if _out_of_memory(error):
                said = f"memory ran out: {said}; close other programs, or make it smaller"
            outcome.status, outcome.error = "failed", said
        outcome.seconds = round(time.perf_counter() - began, 3)
        return False

    def _make(self, task: Task, outcome: Outcome) -> None:
        try:
            task.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"folder {task.target.parent} cannot be made: {error}") from error
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
            with suppress(ValueError, TypeError, KeyError):  # half a line, when power failed
                entry = json.loads(line)
                yield entry["target"], entry

    def _note(self, task: Task, outcome: Outcome) -> None:
        """Add a line: without the output's hash, the file is begun; with it, done."""
        entry = {
            "target": self._name(task),
            "source": str(task.source),
            "fingerprint": self.fingerprint,
            "input_sha256": outcome.input_sha256,
            "output_sha256": outcome.output_sha256,
        }
        try:
            with self._writing, self._journal.open("a", encoding="utf-8") as file:
                file.write("\n" * self._torn() + json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            outcome.warnings.append(
                f"the journal cannot be written, so it will be made again: {error}"
            )

    def _torn(self) -> bool:
        """Whether the last line has no end."""
        with self._journal.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"


def _out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, BackendError)
        and any(sign in said for sign in ("bad_alloc", "out of memory", "allocat"))
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
