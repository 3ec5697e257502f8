"""Jobs: each file has one outcome, is made once, and is complete or absent."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import make_bundle
from PIL import Image

from mmsr_edge import OptionError, Upscaler
from mmsr_edge.errors import BackendError
from mmsr_edge.image import load_image, picture_size
from mmsr_edge.jobs import JOURNAL, Outcome, Report, Task, find_tasks, run_job
from mmsr_edge.pipeline import MultimodalPipeline

if TYPE_CHECKING:
    from mmsr_edge.upscaler import Progress


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    return Upscaler(make_bundle(tmp_path_factory.mktemp("tiny")), "onnxruntime", threads=1)


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures at three depths of folders, and two files that are no pictures."""
    for seed, name in enumerate(("a.png", "b.jpg", "sub/c.PNG", "sub/deep/d.webp")):
        picture(tmp_path / "in" / name, seed)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    return tmp_path / "in"


def names(tasks: list[Task], output: Path) -> list[str]:
    return [task.target.relative_to(output).as_posix() for task in tasks]


def statuses(report: Report) -> list[str]:
    return [outcome.status for outcome in report.files]


def files_in(output: Path) -> list[str]:
    files = (path for path in output.rglob("*") if path.is_file())
    return sorted(path.relative_to(output).as_posix() for path in files)


# --- Finding files ------------------------------------------------------------------------------


def test_folders_patterns_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder.parent / "out"
    assert names(find_tasks([folder], out), out) == ["a.png", "b.png"]
    everything = ["a.png", "b.png", "sub/c.png", "sub/deep/d.png"]
    assert names(find_tasks([folder], out, recursive=True), out) == everything
    assert names(find_tasks([f"{folder}/**/*"], out), out) == everything
    assert names(find_tasks([f"{folder}/*/*"], out), out) == ["sub/c.png"]
    assert names(find_tasks([f"{folder}/su[b]/*.PNG"], out), out) == ["sub/c.png"]
    both = find_tasks([folder / "a.png", folder / "sub", folder / "a.png"], out)
    assert names(both, out) == ["a.png", "c.png"]
    kept = find_tasks([folder], out, suffix=None)
    assert names(kept, out) == ["a.png", "b.jpg"]
    monkeypatch.chdir(folder)
    assert names(find_tasks(["*.png"], out), out) == ["a.png"]
    # Results in the same folder are no inputs.
    inside = folder / "sub"
    assert names(find_tasks([folder], inside, recursive=True), inside) == ["a.png", "b.png"]


def test_missing_inputs(folder: Path) -> None:
    out = folder.parent / "out"
    with pytest.raises(OptionError, match=r"\*\.xyz': no picture found"):
        find_tasks([f"{folder}/*.xyz"], out)
    with pytest.raises(OptionError, match=r"format '\.bmp' is unknown"):
        find_tasks([folder], out, suffix=".bmp")
    # A file named explicitly is a task, even where it is missing or no picture.
    assert names(find_tasks([folder / "gone.png", folder / "notes.txt"], out), out) == [
        "gone.png",
        "notes.png",
    ]


# --- Outcomes -----------------------------------------------------------------------------------


def test_a_tree_is_mirrored_and_each_file_equals_that_of_a_single_call(
    upscaler: Upscaler, folder: Path
) -> None:
    out = folder.parent / "out"
    seen: list[tuple[str, str]] = []
    outcomes: list[Outcome] = []

    def progress(task: Task, progress: Progress) -> None:
        seen.append((task.source.name, progress.stage))

    tasks = find_tasks([folder], out, recursive=True)
    report = run_job(
        upscaler,
        tasks,
        out,
        workers=2,
        progress=progress,
        finished=outcomes.append,
        seed=3,
        scale=2,
    )
    assert statuses(report) == ["done"] * 4
    assert {name for name, stage in seen if stage == "done"} == {
        "a.png", "b.jpg", "c.PNG", "d.webp",
    }  # fmt: skip
    assert sorted(outcome.target for outcome in outcomes) == sorted(str(t.target) for t in tasks)
    for task, outcome in zip(tasks, report.files, strict=True):
        expected = upscaler(task.source, seed=3, scale=2).image
        with Image.open(task.target) as written:
            np.testing.assert_array_equal(np.asarray(written), np.asarray(expected))
        assert outcome.input_size == (16, 12)
        assert outcome.output_size == (32, 24)
    saved = json.loads(json.dumps(report.as_json()))
    assert saved["counts"]["done"] == 4
    assert saved["files"][0]["output_sha256"]
    assert saved["settings"]["scale"] == 2


def test_one_bad_file_does_not_stop_the_others(upscaler: Upscaler, folder: Path) -> None:
    (folder / "aa.png").write_bytes(b"\x89PNG broken")
    (folder / "ab.png").write_bytes((folder / "a.png").read_bytes()[:-400])
    out = folder.parent / "out"
    tasks = [*find_tasks([folder], out), Task(folder / "gone.png", out / "gone.png")]
    report = run_job(upscaler, tasks, out)
    assert statuses(report) == ["done", "failed", "failed", "done", "failed"]
    assert "aa.png is not a picture" in str(report.files[1].error)
    assert "ab.png cannot be decoded" in str(report.files[2].error)
    assert "no file" in str(report.files[4].error)
    assert files_in(out) == [JOURNAL, "a.png", "b.png"]


def test_two_inputs_of_one_name(upscaler: Upscaler, folder: Path) -> None:
    picture(folder / "a.jpg", 5)
    out = folder.parent / "out"
    report = run_job(upscaler, find_tasks([folder], out), out)
    assert statuses(report) == ["done", "failed", "done"]
    assert "is the result of" in str(report.files[1].error)
    report = run_job(upscaler, find_tasks([folder], folder, suffix=None)[:1], folder)
    assert "is the input itself" in str(report.files[0].error)


def test_a_dry_run_touches_nothing(upscaler: Upscaler, folder: Path) -> None:
    (folder / "aa.png").write_bytes(b"broken")
    out = folder.parent / "out"
    report = run_job(upscaler, find_tasks([folder], out), out, dry_run=True, width=40)
    assert statuses(report) == ["planned", "failed", "planned"]
    assert report.files[0].output_size == (40, 30)
    assert not out.exists()


def test_options_of_one_picture_are_refused(upscaler: Upscaler, folder: Path) -> None:
    tasks = find_tasks([folder], folder.parent / "out")
    for options, message in (
        ({"depth": Path("depth.png")}, "depth is one picture's map"),
        ({"stepz": 1}, "did you mean 'steps'"),
        ({"workers": 0}, "workers is 0"),
        ({"scale": 99}, "scale is 99"),
    ):
        with pytest.raises(OptionError, match=message):
            run_job(upscaler, tasks, folder.parent / "out", **options)
    # A size that is impossible for one picture fails that picture alone.
    picture_of_another_size = folder / "z.png"
    Image.new("RGB", (100, 100)).save(picture_of_another_size)
    report = run_job(
        upscaler, find_tasks([folder], folder.parent / "out"), folder.parent / "out", width=64
    )
    assert statuses(report) == ["done", "done", "failed"]
    assert "width=64 is 0.64 times" in str(report.files[2].error)


# --- Resuming -----------------------------------------------------------------------------------


def test_finished_files_are_checked_and_skipped(upscaler: Upscaler, folder: Path) -> None:
    out = folder.parent / "out"
    tasks = find_tasks([folder], out, recursive=True)
    run_job(upscaler, tasks[:2], out)
    made = (out / "a.png").stat().st_mtime_ns
    report = run_job(upscaler, tasks, out)
    assert statuses(report) == ["skipped", "skipped", "done", "done"]
    assert (out / "a.png").stat().st_mtime_ns == made
    (out / "b.png").unlink()
    assert statuses(run_job(upscaler, tasks, out)) == ["skipped", "done", "skipped", "skipped"]
    assert statuses(run_job(upscaler, tasks, out, overwrite=True)) == ["done"] * 4
    assert (out / "a.png").stat().st_mtime_ns > made


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda source, target: picture(source, 99), "made from another input"),
        (lambda source, target: target.write_bytes(target.read_bytes()[:-1]), "has been changed"),
        (lambda source, target: picture(target, 7), "has been changed"),
        (lambda source, target: (target.parent / JOURNAL).unlink(), "no job made it"),
        (None, "made with other settings"),
    ],
    ids=["input", "cut", "replaced", "journal", "settings"],
)
def test_doubtful_results_are_neither_accepted_nor_overwritten(
    upscaler: Upscaler, folder: Path, spoil: Any, message: str
) -> None:
    out = folder.parent / "out"
    tasks = find_tasks([folder], out)
    run_job(upscaler, tasks, out)
    if spoil:
        spoil(tasks[0].source, tasks[0].target)
    before = tasks[0].target.read_bytes()
    report = run_job(upscaler, tasks[:1], out, seed=0 if spoil else 1)
    assert statuses(report) == ["failed"]
    assert message in str(report.files[0].error)
    assert "allow overwriting" in str(report.files[0].error)
    assert tasks[0].target.read_bytes() == before
    assert statuses(run_job(upscaler, tasks[:1], out, overwrite=True)) == ["done"]


def test_results_of_another_model_are_not_accepted(
    upscaler: Upscaler, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = folder.parent / "out"
    tasks = find_tasks([folder], out)
    run_job(upscaler, tasks, out)
    root = make_bundle(tmp_path_factory.mktemp("other"), steps=1)
    report = run_job(Upscaler(root, "onnxruntime"), tasks, out)
    assert "other settings" in str(report.files[0].error)


def test_a_killed_job_resumes(upscaler: Upscaler, folder: Path) -> None:
    """The journal of a killed job may end in half a line."""
    out = folder.parent / "out"
    tasks = find_tasks([folder], out)
    run_job(upscaler, tasks, out)
    journal = (out / JOURNAL).read_text().splitlines(keepends=True)
    assert len(journal) == 4  # begun and done, twice
    (out / JOURNAL).write_text("".join(journal[:3]) + journal[3][:20])
    report = run_job(upscaler, tasks, out)
    assert statuses(report) == ["skipped", "done"]
    assert statuses(run_job(upscaler, tasks, out)) == ["skipped", "skipped"]


# --- Cancelling, and too little memory ----------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_cancelling_stops_within_a_network_call_and_leaves_whole_files(
    upscaler: Upscaler, folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    cancel = threading.Event()
    calls: list[str] = []
    original = MultimodalPipeline.run

    def run(pipeline: Any, component: str, *rest: Any) -> Any:
        calls.append(component)
        if calls.count("decoder") == 2:
            cancel.set()
        return original(pipeline, component, *rest)

    monkeypatch.setattr(MultimodalPipeline, "run", run)
    out = folder.parent / "out"
    tasks = find_tasks([folder], out, recursive=True)
    report = run_job(upscaler, tasks, out, workers=workers, cancel=cancel)
    assert report.count("cancelled") >= 2
    assert report.count("done") + report.count("cancelled") == 4
    assert report.count("done") == len(files_in(out)) - 1  # and the journal
    for outcome in report.files:
        assert Path(outcome.target).exists() == (outcome.status == "done")
    monkeypatch.undo()
    after = run_job(upscaler, tasks, out)
    assert after.count("skipped") == report.count("done")
    assert after.count("done") == report.count("cancelled")


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate"), BackendError("bad_alloc")])
def test_too_little_memory_for_several_is_enough_for_one(
    upscaler: Upscaler, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    original = Upscaler.upscale
    lock, running, most = threading.Lock(), [0], [0]

    def upscale(self: Upscaler, source: Any, **options: Any) -> Any:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            crowded = running[0] > 1
        try:
            time.sleep(0.05)
            if crowded:
                raise error
            return original(self, source, **options)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(Upscaler, "upscale", upscale)
    out = folder.parent / "out"
    tasks = find_tasks([folder], out, recursive=True)
    assert statuses(run_job(upscaler, tasks, out, workers=4)) == ["done"] * 4
    assert most[0] > 1

    def never(self: Upscaler, source: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(Upscaler, "upscale", never)
    report = run_job(upscaler, tasks, out, workers=4, overwrite=True)
    assert statuses(report) == ["failed"] * 4
    assert str(report.files[0].error).startswith("out of memory: ")


def test_an_unexpected_error_fails_one_file(
    upscaler: Upscaler, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Upscaler.upscale

    def upscale(self: Upscaler, source: Path, **options: Any) -> Any:
        if source.name == "a.png":
            raise ZeroDivisionError("by the test")
        return original(self, source, **options)

    monkeypatch.setattr(Upscaler, "upscale", upscale)
    report = run_job(upscaler, find_tasks([folder], folder.parent / "o"), folder.parent / "o")
    assert statuses(report) == ["failed", "done"]
    assert report.files[0].error == "ZeroDivisionError: by the test"


# --- Headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_size_in_the_header_is_that_of_the_picture(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"in{suffix}"
    Image.new("RGB", (16, 24)).save(path, exif=exif.tobytes())
    assert picture_size(path) == load_image(path).size
