"""The quality benchmark: metrics against scikit-image, and pages of measured results."""

from __future__ import annotations

import csv
import subprocess
import sys
import types
from pathlib import Path

import bundle_factory
import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab, rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio
from sklearn.datasets import load_sample_image

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return pytest.importorskip("lib.metrics")


def test_psnr_on_luma_agrees_with_scikit_image(metrics: object) -> None:
    a = load_sample_image("flower.jpg")[:64, :80]
    b = np.clip(a.astype(int) + np.random.default_rng(0).integers(-20, 20, a.shape), 0, 255)
    b = b.astype(np.uint8)
    luma = [rgb2ycbcr(p)[4:-4, 4:-4, 0] for p in (a, b)]
    expected = peak_signal_noise_ratio(*luma, data_range=255)
    assert metrics.psnr_y(a, b) == pytest.approx(expected, abs=1e-6)
    assert metrics.psnr_y(a, a) == float("inf")
    assert metrics.ssim_y(a, a) == pytest.approx(1) and metrics.ssim_y(a, b) < 0.95


def test_colour_shift_agrees_with_scikit_image_and_ignores_noise(metrics: object) -> None:
    lr = load_sample_image("flower.jpg")[:64:2, :82:2]
    large = lr.repeat(4, axis=0).repeat(4, axis=1)
    assert metrics.shift_e00(large, lr) == pytest.approx(0, abs=1e-3)
    warmer = np.clip(large + np.array([12, 0, -9]), 0, 255).astype(np.uint8)
    means = [
        p[:, : 40 * p.shape[1] // 41].reshape(4, len(p) // 4, 5, len(p) // 4, 3).mean((1, 3)) / 255
        for p in (warmer, lr)
    ]
    expected = deltaE_ciede2000(*(rgb2lab(m) for m in means)).mean()
    assert metrics.shift_e00(warmer, lr) == pytest.approx(expected, abs=1e-3) and expected > 3
    noise = np.random.default_rng(0).normal(0, 8, lr.shape)
    noisy = np.clip(lr + noise, 0, 255).astype(np.uint8)
    assert metrics.shift_e00(large, noisy) < 1.0


def test_pyiqa_is_used_where_it_is_installed(
    metrics: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the package, which needs torchvision."""
    pytest.importorskip("torch")

    class Metric:
        def __init__(self, mode: str) -> None:
            self.metric_mode = mode

        def __call__(self, *pictures: object) -> object:
            assert len(pictures) == (1 if self.metric_mode == "NR" else 2)
            assert all(p.shape == (1, 3, 32, 40) and 0 <= p.min() <= p.max() <= 1 for p in pictures)
            return pictures[0].mean() - (pictures[1].mean() if len(pictures) == 2 else 0)

    package = types.SimpleNamespace(
        list_models=lambda: ["niqe", "ssim"],
        create_metric=lambda name: Metric("NR" if name == "niqe" else "FR"),
    )
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(SystemExit, match="'pyiqa' is not installed; try: pip install pyiqa"):
        metrics.Metrics(None, others=["niqe"])
    monkeypatch.setitem(sys.modules, "pyiqa", package)
    with pytest.raises(SystemExit, match="no metric 'musiq'; it has niqe, ssim"):
        metrics.Metrics(None, others=["musiq"])
    bright, dark = np.full((32, 40, 3), 255, np.uint8), np.full((32, 40, 3), 51, np.uint8)
    row = metrics.Metrics(None, others=["niqe", "ssim"])(bright, dark)
    assert (row["pyiqa_niqe"], row["pyiqa_ssim"]) == (pytest.approx(1), pytest.approx(0.8))
    assert metrics.measured({"method": 1, **row}) == [
        "psnr_y", "ssim_y", "pyiqa_niqe", "pyiqa_ssim",
    ]  # fmt: skip


def test_report_has_every_picture_and_the_mean(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle = bundle_factory.make_bundle(tmp_path / "tiny")
    root = tmp_path / "set"
    for folder in ("hr", "lr_bicubic"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        hr = Image.fromarray(load_sample_image("china.jpg")[:128, :128])
        hr = hr.rotate(90) if name == "b" else hr
        hr.save(root / "hr" / f"{name}.png")
        hr.resize((32, 32), Image.Resampling.BICUBIC).save(root / "lr_bicubic" / f"{name}.png")
    out = tmp_path / "report"
    command = [sys.executable, str(BENCHMARKS / "quality.py"), "--set", str(root)]
    command += ["--model", str(bundle), "--backend", "onnxruntime", "--out", str(out)]
    done = subprocess.run([*command, "--crop", "64"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = list(csv.DictReader((out / "quality.csv").open()))
    assert [(r["picture"], r["method"]) for r in rows] == [
        (p, m) for p in ("a", "b") for m in ("bicubic", "tiny")
    ]
    summary = {r["method"]: r for r in csv.DictReader((out / "summary.csv").open())}
    mean = np.mean([float(r["psnr_y"]) for r in rows if r["method"] == "bicubic"])
    assert float(summary["bicubic"]["psnr_y"]) == pytest.approx(mean, abs=1e-3)
    page = (out / "index.html").read_text()
    assert all((out / r["file"]).exists() for r in rows)
    assert page.count("<img") == 6 and "set-lr_bicubic-a-tiny.png" in page
