"""The benchmark: measurements, tables, chart, and backends that cannot run."""

from __future__ import annotations

import csv
import json
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
from bundle_factory import make_bundle
from PIL import Image

from mmsr_edge.benchmark import Configuration, Measurement, benchmark, grid, sample_picture
from mmsr_edge.benchmark.chart import BAR, COLOURS, LEFT, draw_chart
from mmsr_edge.cli.main import main
from mmsr_edge.errors import BackendError, OptionError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny"))


def measurement(name: str, p50: float, components: dict[str, tuple[float, float]]) -> Measurement:
    return Measurement(name, "int8", 1, "512x512", 1.0, 9, 8, 7, 6, p50, p50, 100.0, components)


def test_command_writes_json_csv_and_chart(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    options = ["--backend", "onnxruntime", "--repeats", "2", "--steps", "1", "--steps", "3"]
    assert main(["bench", "--model", str(root), *options, "-o", str(out)]) == 0
    text = capsys.readouterr().out
    saved = json.loads((out / "bench.json").read_text())
    first, second = saved["measurements"]
    assert (first["steps"], second["steps"]) == (1, 3)
    assert saved["machine"]["cores"] and not saved["refused"]
    for one in (first, second):
        assert one["cold_ms"] > one["first_tile_ms"] > one["load_ms"] > 0
        assert one["p90_ms"] >= one["p50_ms"] > one["components"]["unet"][0] > 0
        assert one["peak_mb"] is None or one["peak_mb"] > 20
        files = sum(f.stat().st_size for f in root.rglob("*.onnx")) / 1e6
        assert one["disk_mb"] == pytest.approx(files, abs=0.01)
    rows = list(csv.DictReader((out / "bench.csv").open()))
    assert [float(row["unet_p50_ms"]) for row in rows] == [
        one["components"]["unet"][0] for one in (first, second)
    ]
    assert f"{first['p50_ms']:.1f}" in text
    assert Image.open(out / "bench.png").size[0] == 1000


def test_unavailable_backends_are_named_and_the_others_measured(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backend", "coreml", "--backend", "onnxruntime", "--repeats", "1"]
    assert main(["bench", "--model", str(root), *options]) == 0
    text = capsys.readouterr().out
    assert "not measured: coreml" in text and "onnxruntime " in text
    assert main(["bench", "--model", str(root), "--backend", "coreml"]) == 1


@pytest.mark.parametrize(
    "options", [["--repeats", "0"], ["--backend", "tpu"], ["--model", "nowhere"]]
)
def test_errors_are_one_line(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) in (1, 2)
    error = capsys.readouterr().err
    assert options[-1] in error and len(error.strip().splitlines()) == 1


def test_a_process_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    dead = subprocess.CompletedProcess([], 3, "", "boom")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: dead)
    with pytest.raises(BackendError, match=r"exit 3.*boom"):
        benchmark([Configuration(str(root), "onnxruntime")])


def test_grid_is_every_pair_and_keeps_the_rest() -> None:
    made = list(grid(Configuration(threads=3), ["a", "b"], ["int8"], [1, None]))
    assert [(c.backend, c.steps) for c in made] == [("a", 1), ("a", None), ("b", 1), ("b", None)]
    assert {c.threads for c in made} == {3}
    with pytest.raises(OptionError, match="repeats 0"):
        Configuration(repeats=0)


def test_sample_picture_is_reproducible_and_has_contrast() -> None:
    picture = np.asarray(sample_picture())
    assert picture.shape == (128, 128, 3) and picture.std() > 40
    assert np.array_equal(picture, np.asarray(sample_picture()))


def test_bars_are_as_long_as_their_times() -> None:
    shares = {"unet": (60.0, 61.0), "decoder": (30.0, 31.0)}
    image = draw_chart(
        [measurement("fast", 50, {"unet": (50.0, 50.0)}), measurement("slow", 100, shares)]
    )
    pixels = np.asarray(image)

    def length(colour: str) -> list[int]:
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        counts = (pixels[:, LEFT:] == rgb).all(-1).sum(1)
        return sorted({int(c) for c in counts if c > 50})

    fast, slow = length(COLOURS[0])[0], length(COLOURS[0])[-1]
    assert slow / fast == pytest.approx(60 / 50, abs=0.02)
    assert length(COLOURS[1])[-1] / slow == pytest.approx(30 / 60, abs=0.02)
    assert image.height > BAR
