"""What tokens tell: codes that tell all, codes that tell nothing, and features that were lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.modalities.segmentation import PALETTE, SUBJECT
from mmsr_edge.models.networks import build_component
from mmsr_edge.training.data.tiles import Tiles
from mmsr_edge.training.losses.tokens import what_maps_tell
from mmsr_edge.training.states import write_run

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LEVELS = torch.tensor([0, 85, 170, 255])


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return pytest.importorskip("lib.tokens")


def make_tiles(count: int, seed: int) -> Tiles:
    """Tiles whose maps are constant within each token: one of four depths, classes or densities.

    Edges are lines in a share of the rows. Maps of the HR picture equal those of the LR picture in
    the upper half of a tile, and are drawn anew in the lower one.
    """
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randint(4, (count, 2, 3, 16, 16), generator=g)
    drawn[:, 1, :, :8] = drawn[:, 0, :, :8]

    def spread(kinds: Tensor) -> Tensor:
        return kinds.repeat_interleave(16, -1).repeat_interleave(16, -2)

    depth = LEVELS[spread(drawn[:, :, 0])].byte()
    classes = torch.tensor([0, 3, 7, 3 + SUBJECT])[spread(drawn[:, :, 1])].byte()
    lines = torch.arange(256)[:, None] % 4 < spread(drawn[:, :, 2])
    blank = torch.zeros((count, 3, 8, 8), dtype=torch.uint8)
    return Tiles(
        blank, blank, depth, classes, (lines * 255).byte(), torch.zeros(count, 3),
        torch.arange(count), [("", "")] * count,
    )  # fmt: skip


class Reader(nn.Module):
    """A tokenizer whose features are a token's mean colour; its codes are the features it meets.

    Args:
        codes: vectors of the codebook, [codes, 3].
    """

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.vq = nn.Module()
        self.vq.quantize = nn.Module()
        self.vq.quantize.embedding = nn.Embedding.from_pretrained(codes)

    def features(self, map: Tensor) -> Tensor:
        return F.avg_pool2d(map, 16).flatten(2).transpose(1, 2)


def complete_codes() -> Tensor:
    """The mean colour of every token that `make_tiles` draws."""
    grey = torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0, -0.5, 0.0, 0.5])[:, None].expand(-1, 3)
    colours = torch.from_numpy(PALETTE[[0, 3, 7, 3 + SUBJECT]]).float() / 127.5 - 1
    return torch.cat([grey, colours])


@pytest.fixture
def files() -> tuple[Tiles, Tiles]:
    return make_tiles(6, 0), make_tiles(4, 1)


def test_codes_that_tell_all(tokens: Any, files: tuple[Tiles, Tiles]) -> None:
    found = tokens.report(Reader(complete_codes()), *files)
    assert [(r["map"], r["of"]) for r in found.rows] == [
        (name, of) for name in ("depth", "segmentation", "edges") for of in ("LR", "HR")
    ]
    for row in found.rows:
        assert row["code"] == pytest.approx(1, abs=0.01), row["map"]
        assert row["bits"] == pytest.approx(2, abs=0.02)  # four kinds of tokens, evenly drawn
        assert row["codes used"] == 4
        # The upper half is equal, and a quarter of the lower half by chance.
        assert row["codes shared by LR and HR"] == pytest.approx(0.625, abs=0.05)
        if row["map"] == "segmentation":
            assert row["chance"] == pytest.approx(0.25, abs=0.05)
        else:
            assert row["features, probed"] == pytest.approx(1, abs=0.01)
            assert row["mean of the token"] == pytest.approx(1, abs=0.01)
    assert found.picture.shape == (9 * 256, 4 * 256, 3)
    whole, told = found.picture[:256, :256], found.picture[256:512, :256]
    assert np.abs(whole.astype(int) - told).max() <= 1
    assert np.abs(whole[..., 0].astype(int) - files[1].depth[0, 0].numpy()).max() <= 1
    assert np.array_equal(found.picture[768:1024, :256], PALETTE[files[1].classes[0, 0]])


def test_one_code_tells_nothing(tokens: Any, files: tuple[Tiles, Tiles]) -> None:
    found = tokens.report(Reader(torch.zeros(1, 3)), *files)
    for row in found.rows:
        assert row["bits"] == 0 and row["codes shared by LR and HR"] == 1
        if row["map"] == "segmentation":
            assert row["code"] == row["chance"]
        else:  # what the codes lost, the features still tell
            assert row["code"] == pytest.approx(0, abs=0.02)
            assert row["code, probed"] == pytest.approx(0, abs=0.02)
            assert row["features, probed"] == pytest.approx(1, abs=0.01)


def test_a_code_may_know_the_class_but_not_the_subject(
    tokens: Any, files: tuple[Tiles, Tiles]
) -> None:
    codes = complete_codes()
    codes[-1] = codes[-3] = (codes[-1] + codes[-3]) / 2  # class 3 with and without the mark
    row = tokens.report(Reader(codes), *files).rows[2]
    assert row["class without the subject's mark"] == pytest.approx(1, abs=0.01)
    assert row["code"] == pytest.approx(0.75, abs=0.05)


def test_a_code_that_was_never_seen_tells_the_mean(tokens: Any) -> None:
    known = tokens.Tokens(
        torch.zeros(3, 2), torch.tensor([0, 0, 1]), torch.tensor([[1.0], [2], [6]])
    )
    told = tokens.Lookup(known, 3, None)(
        tokens.Tokens(torch.zeros(3, 2), torch.tensor([0, 1, 2]), torch.zeros(3, 1))
    )
    assert told.flatten().tolist() == [1.5, 6, 3]


def test_the_probe_is_a_ridge_regression(tokens: Any) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn((400, 5), generator=g)
    y = x @ torch.randn((5, 3), generator=g) + 0.1 * torch.randn((400, 3), generator=g) + 2
    centred = (x - x.mean(0)).double()
    alpha = tokens.RIDGE * float((centred.T @ centred).trace()) / 5
    expected = Ridge(alpha=alpha).fit(x.numpy(), y.numpy()).predict(x.numpy())
    np.testing.assert_allclose(tokens.Probe(x, y, None)(x), expected, atol=1e-4)
    classes = (y[:, :1] > 2).long()
    guess = tokens.Probe(x, classes, 2)(x)
    assert tokens.share_right(guess, classes) > 0.9


def test_absent_maps_are_left_out(tokens: Any) -> None:
    tiles = make_tiles(8, 0)
    tiles.depth[2, 1] = 0
    tiles.depth[5] = 0
    assert tokens.present(tiles, 0, 8).tolist() == [0, 1, 3, 4, 6, 7]
    assert tokens.present(tiles, 2, 8).tolist() == list(range(8))
    assert len(tokens.present(tiles, 0, 3)) == 3


def test_targets_are_those_of_the_training(tokens: Any) -> None:
    tiles = make_tiles(2, 0)
    read = tokens.read_tokens(Reader(complete_codes()), tiles, torch.tensor([1]), 2, 1)
    told = what_maps_tell(tiles.depth[1:, 1], tiles.classes[1:, 1], tiles.edges[1:, 1])[2]
    assert torch.equal(read.told.reshape(16, 16, 16), told[0].permute(1, 2, 0))


@pytest.mark.slow
def test_the_report_of_a_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_component("tokenizer", "micro")
    write_run(tmp_path / "run", {"tokenizer": network.state_dict()})
    for name, seed in (("a", 0), ("b", 1)):
        make_tiles(3, seed).save(tmp_path / f"{name}.pt")
    command = [sys.executable, str(BENCHMARKS / "tokenizer_report.py"), "--preset", "micro"]
    command += ["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    command += ["--tiles", str(tmp_path / "a.pt"), "--held-out", str(tmp_path / "b.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / "out" / "tokens.csv").read_text().splitlines()) == 7
    assert Image.open(tmp_path / "out" / "tokens.png").height == 9 * 256
