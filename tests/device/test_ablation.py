"""Ablations: the variants of a picture, and the modalities that each switches on."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import make_bundle
from PIL import Image
from sklearn.datasets import load_sample_image

from mmsr_edge import Upscaler

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TILES = 4
"""Tiles of 32 pixels in a picture of 56."""
NAMES = ("text", "depth", "segmentation", "edges")


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return pytest.importorskip("ablation")


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    photo = Image.fromarray(load_sample_image("china.jpg"))
    for folder in ("hr", "lr_real"):
        (root / folder).mkdir(parents=True)
    for name, corner in (("a", 0), ("b", 200)):
        hr = photo.crop((corner, corner, corner + 224, corner + 224))
        hr.save(root / "hr" / f"{name}.png")
        hr.resize((56, 56)).save(root / "lr_real" / f"{name}.png")
    return root


def run(*arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / "ablation.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_variants_use_one_modality_omit_one_or_take_anothers(ablation: Any) -> None:
    others = {"prompt": "x", "depth": "d", "segmentation": "s", "edges": "e"}
    variants = ablation.modalities(others)
    assert len(variants) == 2 + 3 * len(NAMES)
    assert variants["all"] == {"prompt": "auto"} and set(variants["none"].values()) == {None}
    assert variants["depth alone"] == {**dict.fromkeys(others), "depth": "auto"}
    assert variants["without text"] == {"prompt": None}
    assert variants["edges of another"] == {"prompt": "auto", "edges": "e"}


def test_computed_modalities_can_be_given_back(ablation: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    upscaler = Upscaler(make_bundle(tmp_path / "tiny", optional=True), "onnxruntime", threads=1)
    photo = load_sample_image("china.jpg")[100:164, 200:264]
    first = upscaler(photo, prompt="auto")
    again = upscaler(photo, **ablation.own_modalities(upscaler, first))
    assert again.caption == first.caption
    difference = np.asarray(first.image).astype(int) - np.asarray(again.image)
    assert np.abs(difference).max() <= 2  # maps were rounded to 8 bits


def test_modalities_report(test_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle, out = make_bundle(tmp_path / "tiny", optional=True), tmp_path / "out"
    common = ("--set", test_set, "--model", bundle, "--backend", "onnxruntime", "--out", out)
    run("modalities", *common, "--photos", test_set / "hr")
    rows = list(csv.DictReader((out / "modalities.csv").open()))
    assert len(rows) == 2 * 14 and len({r["method"] for r in rows}) == 14
    by_variant = {r["method"]: r for r in rows if r["picture"] == "a"}
    values = {name: float(r["psnr_y"]) for name, r in by_variant.items()}
    for name in NAMES:  # in this bundle each of them changes the picture
        assert len({values["all"], values[f"without {name}"], values[f"{name} of another"]}) == 3
    assert all(float(r["niqe"]) > 0 and int(r["unet_calls"]) == 2 * TILES for r in rows)
    assert Image.open(out / "modalities.png").width == 15 * 160

    run("guidance", *common, "--steps", 3, "--weights", 2, "--pictures", 1)
    rows = list(csv.DictReader((out / "guidance.csv").open()))
    calls = {r["method"]: int(r["unet_calls"]) / TILES for r in rows}
    assert calls == {"none": 3, "cfg w=2": 6, "m0-cfg w=2": 6, "m-cfg w=2": 6}
