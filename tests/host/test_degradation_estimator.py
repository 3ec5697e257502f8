"""The degradation estimator: its network, the tiles that it is trained on, and its stage."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from mmsr_edge.bundle import LEVELS
from mmsr_edge.errors import OptionError
from mmsr_edge.modalities.degradation import jpeg_level
from mmsr_edge.models import preset
from mmsr_edge.models.degradation import DegradationConfig, build_degradation, grid
from mmsr_edge.training import train_degradation
from mmsr_edge.training.data.degradation import bicubic_down, measure_degradation
from mmsr_edge.training.data.jpeg import jpeg
from mmsr_edge.training.data.tiles import Tiles
from mmsr_edge.training.states import load_run
from mmsr_edge.training.teachers.labels import is_held_out
from mmsr_edge.training.train_degradation import LevelPool, errors

SIDE = 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs to train on and two held out, by their names."""
    folder = tmp_path_factory.mktemp("photos")
    names = [f"{i:03}.png" for i in range(200)]
    learnt, kept = ([n for n in names if is_held_out(n) is held] for held in (False, True))
    for name in learnt[:3] + kept[:2]:
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def files(photos: Path) -> list[Path]:
    """Two files with four tiles of each photograph; the LR tiles are clean."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(2):
        coarse = torch.from_numpy(rng.random((10, 3, 16, 16), np.float32))
        hr = nn.functional.interpolate(coarse, 4 * SIDE, mode="bicubic").clamp(0, 1)
        lr = bicubic_down(hr, 4)
        nothing = torch.zeros(10, 2, 1, 1, dtype=torch.uint8)
        tiles = Tiles(
            (hr * 255).round().byte(), (lr * 255).round().byte(), nothing, nothing, nothing,
            torch.zeros(10, 3), torch.arange(10) % 5, [("", "")] * 10,
        )  # fmt: skip
        path = photos.parent / f"{photos.name}{number}.pt"
        tiles.save(path)
        found.append(path)
    return found


def test_levels_of_squares_of_any_size() -> None:
    torch.manual_seed(0)
    network = build_degradation(DegradationConfig()).eval()
    image = torch.randn(3, 3, 64, 64)
    levels = network(image)
    assert levels.shape == (3, 3) and ((levels > 0) & (levels < 1)).all()
    torch.testing.assert_close(network(image[1:2]), levels[1:2])
    assert network(torch.zeros(1, 3, 128, 128)).shape == (1, 3)
    config = preset("nano").degradation
    assert config is not None
    assert sum(p.numel() for p in build_degradation(config).parameters()) < 100_000
    assert preset("sd2").degradation is None


def test_the_grid_of_blocks_is_found_wherever_it_begins() -> None:
    noise = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 0.01
    for phase in range(8):
        profile = noise.clone()
        profile[phase::8] += 2.0
        assert float(grid(profile[None])) == pytest.approx(2, abs=0.02)
    assert float(grid(torch.full((1, 63), 3.0))) == pytest.approx(0, abs=1e-5)


def test_pools_hold_the_photographs_that_are_held_out_or_the_others(
    files: list[Path], photos: Path
) -> None:
    pools = [LevelPool(files, photos, held_out=held) for held in (False, True)]
    assert [len(pool) for pool in pools] == [12, 8]
    for pool, held in zip(pools, (False, True), strict=True):
        names = [path.name for path in sorted(photos.iterdir())]
        for tiles, row in pool.sources:
            assert is_held_out(names[int(tiles.photo[row])]) is held
    with pytest.raises(OptionError, match="no tiles of held-out photographs; make more"):
        LevelPool([], photos, held_out=True)


def test_tiles_are_degraded_anew_in_turn(files: list[Path], photos: Path) -> None:
    pool = LevelPool(files, photos, held_out=False)
    before, g = pool.lr.clone(), torch.Generator().manual_seed(0)
    pool.renew(0, 1.0, g)
    assert torch.equal(pool.lr, before)
    pool.renew(8, 1.0, g)
    changed = (pool.lr != before).flatten(1).any(1)
    assert changed.tolist() == [True] * 8 + [False] * 4
    assert (pool.levels[:8, 0] > 0.25).all() and not pool.levels[8:].any()
    pool.renew(6, 1.0, g)  # the last four, then from the start
    assert (pool.lr != before).flatten(1).any(1).all()


def test_batches_are_squares_with_the_levels_of_their_tiles(
    files: list[Path], photos: Path
) -> None:
    pool = LevelPool(files, photos, held_out=False)
    pool.levels[:, 0] = torch.arange(12) / 12
    pool.lr[:] = (torch.arange(12) * 20)[:, None, None, None]
    image, levels = pool.batch(30, 16, torch.Generator().manual_seed(0))
    assert image.shape == (30, 3, 16, 16)
    values = (image.mean((1, 2, 3)) + 1) * 127.5
    torch.testing.assert_close(values, levels[:, 0] * 240, atol=0.01, rtol=0)


class Fixed(nn.Module):
    """A network that returns stored rows, in order."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, image: Tensor) -> Tensor:
        return self.rows[: len(image)]


def test_errors_are_zero_for_the_truth_and_r2_for_the_mean(files: list[Path], photos: Path) -> None:
    pool = LevelPool(files, photos, held_out=True)
    pool.levels = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    cpu = torch.device("cpu")
    perfect = errors(Fixed(pool.levels), pool, cpu)
    assert tuple(perfect) == LEVELS
    median = pool.levels.sort(0).values[3]
    for i, name in enumerate(LEVELS):
        assert perfect[name]["r2"] == 1 and perfect[name]["error"] == 0
        expected = float((pool.levels[:, i] - median[i]).abs().mean())
        assert perfect[name]["constant"] == pytest.approx(expected)
    mean = errors(Fixed(pool.levels.mean(0).expand(8, 3)), pool, cpu)
    assert [values["r2"] for values in mean.values()] == pytest.approx([0, 0, 0], abs=1e-5)


def test_the_estimator_trains_resumes_and_starts_from_a_run(
    files: list[Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(out: Path, *options: object) -> None:
        given = ["--tiles", *files, "--photos", photos, "--out", out, "--device", "cpu"]
        given += ["--batch", 2, "--fresh", 1, "--log-every", 1, "--warmup", 1, *options]
        monkeypatch.setattr(sys, "argv", ["train", *map(str, given)])
        train_degradation.main()

    for steps in (2, 3):
        command(tmp_path / "first", "--side", 16, "--steps", steps)
    rows = list(csv.DictReader((tmp_path / "first" / "log.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert set(LEVELS) <= set(rows[0])
    found = json.loads((tmp_path / "first" / "errors.json").read_text())
    assert set(found) == set(LEVELS) and set(found["blur"]) == {"r2", "error", "constant"}

    start = ("--start", tmp_path / "first", "--learning-rate", 1e-9)
    command(tmp_path / "second", "--side", SIDE, "--steps", 1, *start)
    first, second = (load_run(tmp_path / name)["degradation"] for name in ("first", "second"))
    build_degradation(DegradationConfig()).load_state_dict(second)
    for key, value in first.items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(second[key], value, atol=1e-6, rtol=0)


def test_the_level_of_a_quality_is_what_compression_leads_to() -> None:
    """The device's curve against JPEG at training's own measure, on two other photographs.

    The level depends on the picture too, so that the curve is right on average only.
    """
    crops = []
    for pixels in load_sample_images().images:
        hr = torch.from_numpy(pixels[:416, :640].copy()).permute(2, 0, 1)[None].float() / 255
        crops.append(bicubic_down(hr, 2))
    clean = torch.cat(crops)
    for quality in (10.0, 30.0, 50.0, 75.0, 95.0):
        lr = jpeg(clean, torch.full((len(clean),), quality))
        measured = float(measure_degradation(lr * 2 - 1, clean * 2 - 1)[:, 2].mean())
        assert jpeg_level(quality) == pytest.approx(measured, abs=0.2), quality
