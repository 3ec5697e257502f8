"""The paper command: every part in one run, and what cannot be made is said."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_factory import make_bundle
from PIL import Image
from sklearn.datasets import load_sample_image

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


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


Run = Callable[..., str]


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command, and returns what it prints; torch and pyiqa are not installed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    command = pytest.importorskip("paper")
    for name in ("pyiqa", "lib.tokens"):
        monkeypatch.setitem(sys.modules, name, None)

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["paper.py", *map(str, arguments)])
        command.main()
        return capsys.readouterr().out

    return call


def test_the_paper_in_one_run(paper: Run, test_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle, out = make_bundle(tmp_path / "tiny", optional=True), tmp_path / "out"
    said = paper(
        *("--set", test_set, "--model", bundle, "--backend", "onnxruntime", "--out", out),
        *("--steps", 2, "--weights", 2, 4, "--photos", test_set / "hr"),
        *("--checkpoint", tmp_path, "--tiles", tmp_path, "--held-out", tmp_path),
    )
    assert "pyiqa is not installed" in said
    bare, ours = table(out / "table2.csv")
    assert "nano-bare" in bare["why"] and "nano-bare" in said
    assert float(ours["niqe"]) > 0 and float(ours["images/s"]) > 0 and not ours["why"]
    # No metric networks, so Table 3 has no LPIPS, and says so.
    assert "Table 3, lpips: not measured" in said and not (out / "table3.lpips.csv").exists()
    rows = table(out / "table3.niqe.csv")
    assert [row["niqe"] for row in rows] == ["cfg", "m0-cfg", "m-cfg"]
    assert len({float(row["w=4"]) for row in rows}) > 1
    assert len({row["w=0"] for row in rows}) == 1
    every = table(out / "table3.all.csv")
    mean = sum(float(r["niqe"]) for r in every if r["method"] == "cfg w=2") / 2
    assert float(rows[0]["w=2"]) == pytest.approx(mean, abs=1e-4)
    assert "Figure 4 is left out: it needs torch" in said
    assert len({row["method"] for row in table(out / "figure8.csv")}) == 20
    assert {row["modality"] for row in table(out / "figure9.csv")} >= {"depth", "edges"}
    for figure in ("figure8", "figure9"):
        assert Image.open(out / f"{figure}.png").width > 1000


def test_table_2_measures_a_bundle_without_the_mmlc(
    paper: Run, test_set: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    bundle, out = make_bundle(tmp_path / "tiny", optional=True), tmp_path / "out"
    paper(
        *("--set", test_set, "--model", bundle, "--backend", "onnxruntime", "--out", out),
        *("--bare", bundle, "--part", "table 2"),
    )
    bare, ours = table(out / "table2.csv")
    assert float(bare["images/s"]) > 0 and float(ours["images/s"]) > 0
    assert [row[""] for row in (bare, ours)] == ["w/o. MMLC", "w. MMLC"]
    assert not (out / "figure8.csv").exists()


def test_the_students_steps_have_no_table_3(paper: Run, test_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle, out = make_bundle(tmp_path / "tiny", few_steps=4), tmp_path / "out"
    said = paper(
        *("--set", test_set, "--model", bundle, "--backend", "onnxruntime", "--out", out),
        *("--steps", 4, "--part", "table 3"),
    )
    assert "Table 3 is left out: steps is 4, and up to 4 are the student's" in said
