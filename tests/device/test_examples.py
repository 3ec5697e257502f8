"""The examples run on the installed package, and are short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pytest.importorskip("openvino")
    path = tmp_path / "photos" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(load_sample_image("china.jpg")[100:164, 200:280]).save(path)
    return path


def run(name: str, *arguments: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_minimal(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert "backend" in run("upscale_photo.py", photo, out)
    assert Image.open(out).size == (320, 256)


def test_batch_resumes(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "done" in run("batch_job.py", photo.parent, out)
    assert Image.open(out / "photo.png").size == (320, 256)
    assert "skipped" in run("batch_job.py", photo.parent, out)


def test_backends(photo: Path) -> None:
    lines = run("choose_backend.py", photo).splitlines()
    assert any(line.startswith("openvino: ") and line.endswith(" s") for line in lines)
    assert lines[-1] == "auto: openvino"


def test_own_depth_is_used(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert "depth used" in run("own_depth.py", photo, out)
    assert Image.open(out).size == (320, 256)


def test_dials(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "dials.png"
    run("dials.py", photo, out)
    sheet = np.asarray(Image.open(out).convert("RGB"), np.float64)
    count = len(sheet) // 256
    assert sheet.shape == (count * 256, 92 + 5 * 240, 3) and count >= 5
    rows = [sheet[y : y + 240, 92:].reshape(240, 5, 240, 3) for y in range(0, count * 256, 256)]
    sharp = np.abs(np.diff(rows[1], axis=2)).mean((0, 2, 3))
    assert (np.diff(sharp) > 0).all()  # guidance: each picture is sharper than the one before
    for row in rows:
        assert np.abs(row[:, 2] - rows[0][:, 2]).max() == 0  # the model's own picture
        assert np.abs(row - row[:, 2:3]).mean() > 0


def test_examples_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert lengths.pop("web_page.py") < 140  # a page has many parts
    assert len(lengths) >= 5 and max(lengths.values()) < 80, lengths
