"""Ablations: the variants of a picture, and the modalities that each switches on."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import make_bundle
from PIL import Image
from sklearn.datasets import load_sample_image

from mmsr_edge import Upscaler
from mmsr_edge.modalities.canny import canny

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


Run = Callable[..., None]


@pytest.fixture
def run(ablation: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["ablation.py", *map(str, arguments)])
        ablation.main()

    return call


@pytest.fixture
def variants(ablation: Any) -> Any:
    return ablation.variants


def test_variants_take_better_maps_and_anothers(variants: Any) -> None:
    levels = {"noise": 0.2, "blur": 0.7, "jpeg": 0.0}
    own, another = (
        variants.Known(f"{who} words", {name: f"{who} {name}" for name in NAMES[1:]}, levels)
        for who in ("own", "another's")
    )
    found = variants.modalities(own, another)
    assert len(found) == 20 and not any("degradation" in options for options in found.values())
    nothing = dict.fromkeys(("prompt", *NAMES[1:]))
    assert found["all"] == {"prompt": "auto"} and found["none"] == nothing
    assert found["no maps"] == {**nothing, "prompt": "auto"}
    assert found["depth alone"] == {**nothing, "depth": "auto"}
    assert found["without text"] == {"prompt": None}
    assert found["words of another"] == {"prompt": "another's words"}
    assert found["HR maps"] == {"prompt": "auto", **own.maps}
    assert found["HR edges of another"] == {"prompt": "auto", "edges": "another's edges"}

    told = variants.modalities(own, another, degradation=True)
    assert len(told) == 25 and told["none"]["degradation"] is None
    assert told["right degradation"]["degradation"] == levels
    assert set(told["clean degradation"]["degradation"].values()) == {0.0}
    wrong = told["wrong degradation"]["degradation"]
    assert all(abs(wrong[name] - level) == pytest.approx(0.5) for name, level in levels.items())
    offered = {method for contrast in variants.CONTRASTS for method in contrast}
    assert offered <= set(told)  # a contrast with a name that does not exist would go unnoticed


def test_better_maps_are_those_of_the_hr_picture(variants: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    upscaler = Upscaler(make_bundle(tmp_path / "tiny", optional=True), "onnxruntime", threads=1)
    photo = load_sample_image("china.jpg")[100:356, 200:456]
    hr = Image.fromarray(photo)
    lr = hr.resize((64, 64), Image.Resampling.BICUBIC)
    known = variants.know(upscaler, lr, hr)
    result = upscaler(lr, prompt=known.words, **known.maps)
    assert result.caption == upscaler(lr, prompt="auto").caption  # the LR picture's own words
    reference = canny(photo.astype(float) / 127.5 - 1)
    assert np.array_equal(np.asarray(known.maps["edges"]) > 0, reference)
    large = upscaler(hr, prompt=None, edges=None)  # the bundle's networks on the HR picture
    for name in ("depth", "segmentation"):
        assert np.array_equal(np.asarray(known.maps[name]), np.asarray(large.maps[name])), name


def test_levels_are_measured_with_the_hr_picture(variants: Any) -> None:
    pytest.importorskip("torch")
    hr = Image.fromarray(load_sample_image("china.jpg")[:256, :256])
    clean = hr.resize((64, 64), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 20, (64, 64, 3))
    noisy = Image.fromarray((np.asarray(clean) + noise).clip(0, 255).astype(np.uint8))
    low, high = (variants.measure_levels(lr, hr) for lr in (clean, noisy))
    assert set(low) == {"noise", "blur", "jpeg"}
    assert high["noise"] > low["noise"] + 0.3 and low["blur"] < 0.2


def test_paired_differences_are_those_of_scipy(variants: Any) -> None:
    from lib.paired import against, paired
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    values = {"new": rng.normal(3, 1, 12), "old": rng.normal(2, 1, 12)}
    rows: list[dict[str, object]] = []
    for method, column in values.items():
        for picture, value in enumerate(column):
            key = {"set": "s", "degradation": "d", "picture": picture, "method": method}
            rows.append({**key, "lpips": value, "mse_y": value, "seconds": 1})
    # A picture that only one of them has does not count.
    rows.append({**rows[0], "picture": 99, "lpips": 1000.0})
    (line,) = paired(rows, [("new", "old"), ("new", "old"), ("absent", "old")])
    test = ttest_rel(values["new"], values["old"])
    mean = float((values["new"] - values["old"]).mean())
    assert line["pictures"] == 12 and line["reference"] == "old"
    assert line["lpips"] == pytest.approx(mean, abs=1e-5)
    assert line["lpips_se"] == pytest.approx(mean / test.statistic, abs=1e-5)
    assert line["mse_y_percent"] == pytest.approx(100 * mean / values["old"].mean(), abs=1e-3)
    assert "lpips_percent" not in line and "seconds" not in line
    assert against(["a", "b", "c"], "b") == [("a", "b"), ("c", "b")]


def test_modalities_report(run: Run, test_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle, out = make_bundle(tmp_path / "tiny", optional=True), tmp_path / "out"
    common = ("--set", test_set, "--model", bundle, "--backend", "onnxruntime", "--out", out)
    run("modalities", *common, "--photos", test_set / "hr")
    rows = list(csv.DictReader((out / "modalities.csv").open()))
    assert len(rows) == 2 * 20 and len({r["method"] for r in rows}) == 20
    by_variant = {r["method"]: r for r in rows if r["picture"] == "a"}
    values = {name: float(r["psnr_y"]) for name, r in by_variant.items()}
    for name in NAMES[1:]:  # in this bundle each of them changes the picture
        changed = (f"without {name}", f"HR {name}", f"HR {name} of another")
        assert len({values["all"], *(values[variant] for variant in changed)}) == 4, name
    assert len({values["all"], values["without text"], values["words of another"]}) == 3
    assert all(float(r["niqe"]) > 0 and int(r["unet_calls"]) == 2 * TILES for r in rows)
    assert Image.open(out / "modalities.png").width == 21 * 160
    lines = list(csv.DictReader((out / "modalities.paired.csv").open()))
    found = {(r["method"], r["reference"]): r for r in lines}
    assert {("HR maps", "HR maps of another"), ("none", "all")} <= set(found)
    maps = [float(r["mse_y"]) for r in rows if r["method"] == "HR maps"]
    others = [float(r["mse_y"]) for r in rows if r["method"] == "HR maps of another"]
    difference = float(found["HR maps", "HR maps of another"]["mse_y"])
    assert difference == pytest.approx(np.mean(maps) - np.mean(others), abs=1e-4)

    run("modalities", *common, "--variant", "HR maps*", "--variant", "all")
    rows = list(csv.DictReader((out / "modalities.csv").open()))
    assert {r["method"] for r in rows} == {"all", "HR maps", "HR maps of another"}

    run("guidance", *common, "--steps", 3, "--weights", 2, "--pictures", 1)
    rows = list(csv.DictReader((out / "guidance.csv").open()))
    calls = {r["method"]: int(r["unet_calls"]) / TILES for r in rows}
    assert calls == {"none": 3, "cfg w=2": 6, "m0-cfg w=2": 6, "m-cfg w=2": 6}


def test_dials_report(run: Run, test_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle, out = make_bundle(tmp_path / "tiny", optional=True), tmp_path / "out"
    run("dials", "--set", test_set, "--model", bundle, "--backend", "onnxruntime", "--out", out)
    rows = list(csv.DictReader((out / "dials.csv").open()))
    assert {r["temperature"] for r in rows} == {"0.4", "0.7", "1.0", "3.0", "10.0"}
    assert {"depth", "edges"} <= {r["modality"] for r in rows}
    depth = [r for r in rows if r["modality"] == "depth" and r["picture"] == "a"]
    assert [float(r["moved_levels"]) > 0 for r in depth] == [False, True, True, True, True]
    lines = {r["modality"]: r for r in csv.DictReader((out / "dials.summary.csv").open())}
    assert int(lines["depth"]["pictures"]) == 2
    energy = [float(r["moved_energy"]) for r in rows if r["modality"] == "depth"]
    first, last = (energy[0] + energy[5]) / 2, (energy[4] + energy[9]) / 2
    share = 100 * (1 - min(first, last) / max(first, last))
    assert float(lines["depth"]["moved_percent"]) == pytest.approx(share, abs=0.05)
    strip = Image.open(out / "dials.png")
    assert strip.width == 5 * 256


def test_one_picture_has_no_other(run: Run, test_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle = make_bundle(tmp_path / "tiny", optional=True)
    common = ("--set", test_set, "--model", bundle, "--backend", "onnxruntime")
    with pytest.raises(SystemExit, match="need two pictures, not 1"):
        run("modalities", *common, "--pictures", 1, "--out", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"no variant is called \['x'\]; there are all, none"):
        run("modalities", *common, "--variant", "x", "--out", tmp_path / "out")
