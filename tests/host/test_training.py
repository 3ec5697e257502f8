"""Runs: learning, logs, resuming, and the data and losses that they use."""

from __future__ import annotations

import csv
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmsr_edge.errors import OptionError
from mmsr_edge.training.average import average
from mmsr_edge.training.data.photos import Photos
from mmsr_edge.training.losses.perceptual import LPIPS, read_arrays
from mmsr_edge.training.run import Run, RunConfig
from mmsr_edge.training.shards import join_run, split_run
from mmsr_edge.training.states import load_run, start_from


@dataclass(frozen=True)
class Toy:
    size: int = 4


def toy_run(folder: Path, steps: int, **options: object) -> Run:
    torch.manual_seed(0)
    config = RunConfig(steps=steps, warmup=1, log_every=5, device="cpu", **options)
    return Run(folder, config, Toy(), {"net": nn.Linear(4, 1)})


def toy_step(run: Run, step: int) -> None:
    g = torch.Generator().manual_seed(step)
    x = torch.randn(32, 4, generator=g)
    run.update((run.trained["net"](x) - x.sum(1, keepdim=True)).square().mean())


def test_a_run_learns_and_writes_log_and_curve(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 200, learning_rate=0.05)
    for step in run:
        toy_step(run, step)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert len(rows) == 40 and float(rows[-1]["loss"]) < 0.05 * float(rows[0]["loss"])
    assert Image.open(tmp_path / "curve.png").width > 100
    torch.testing.assert_close(run.trained["net"].weight, torch.ones(1, 4), atol=0.1, rtol=0)
    averaged = load_run(tmp_path)["net"]["weight"]
    assert not torch.equal(averaged, run.trained["net"].weight)
    torch.testing.assert_close(averaged, run.trained["net"].weight, atol=0.1, rtol=0)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = toy_run(tmp_path / "whole", 30)
    for step in whole:
        toy_step(whole, step)
    first = toy_run(tmp_path / "parts", 30)
    for step in first:
        toy_step(first, step)
        if step == 11:
            first._stop()
    second = toy_run(tmp_path / "parts", 30)
    assert second.step == 12
    for step in second:
        toy_step(second, step)
    state = [[*r.parameters, *r.ema.shadow_params] for r in (whole, second)]
    for a, b in zip(*state, strict=True):
        assert torch.equal(a, b)


def test_a_run_refuses_other_settings(tmp_path: Path) -> None:
    toy_run(tmp_path, 3)
    with pytest.raises(OptionError, match="other settings"):
        Run(tmp_path, RunConfig(steps=3), Toy(size=5), {"net": nn.Linear(4, 1)})


def test_a_schedule_by_time_ends_with_the_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy_run(tmp_path, 10**6, learning_rate=1.0, minutes=2.0, by_time=True)
    rates = []
    for seconds in (0, 60, 120, 500):
        monkeypatch.setattr(run, "elapsed", lambda s=seconds: s)
        rates.append(run.learning_rate())
    assert rates == pytest.approx([1.0, 0.51, 0.02, 0.02])
    with pytest.raises(OptionError, match="by_time without minutes"):
        toy_run(tmp_path / "other", 10, by_time=True)


def test_a_run_is_split_into_small_files_and_joined(tmp_path: Path) -> None:
    def start(folder: str) -> Run:
        torch.manual_seed(0)
        wide, kept = nn.Linear(600, 500), nn.Linear(4, 4).requires_grad_(False)
        networks = {"wide": nn.Sequential(wide, nn.Linear(500, 2)), "kept": kept}
        return Run(tmp_path / folder, RunConfig(steps=4, device="cpu"), Toy(), networks)

    base, run = start("base"), start("run")
    base.save()
    for _ in run:
        run.update(run.trained["wide"](torch.randn(8, 600)).square().mean())
    first, second = split_run(tmp_path / "run", tmp_path / "shards", size=0)[:2]
    assert first.stat().st_size < 700_000 and second.stat().st_size < 5_000
    (tmp_path / "shards" / "0.safetensors").unlink()
    split_run(tmp_path / "run", tmp_path / "shards")
    join_run(tmp_path / "shards", tmp_path / "base", tmp_path / "joined")
    joined, learnt, old = (load_run(tmp_path / n) for n in ("joined", "run", "base"))
    for key in ("0.weight", "0.bias", "1.weight"):
        assert torch.equal(joined["wide"][key], learnt["wide"][key].half().float())
        assert not torch.equal(joined["wide"][key], old["wide"][key])
    assert torch.equal(joined["kept"]["weight"], old["kept"]["weight"])
    with pytest.raises(OptionError, match=r"no \.safetensors"):
        join_run(tmp_path / "base", tmp_path / "base", tmp_path / "joined")


def test_an_average_lies_between_two_runs() -> None:
    one = {"net": {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}, "alone": {}}
    two = {"net": {"w": torch.tensor([4.0, 6.0]), "n": torch.tensor(5)}}
    got = average(one, two, 0.25)
    assert got["net"]["w"].tolist() == [1.0, 3.0] and int(got["net"]["n"]) == 3
    assert one["net"]["w"].tolist() == [0.0, 2.0] and "alone" in got
    with pytest.raises(OptionError, match=r"net\.w has shape \[2\] in one run and \[3\]"):
        average(one, {"net": {"w": torch.zeros(3)}}, 0.5)
    with pytest.raises(OptionError, match="share 2 must be"):
        average(one, two, 2)


def test_a_run_logs_its_throughput(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 5)
    for step in run:
        toy_step(run, step)
    # 32 rows of 4 -> 1, forward and the gradient of the weights: a multiplication and an addition.
    assert run.throughput.flops == 2 * (2 * 32 * 4)
    (row,) = csv.DictReader((tmp_path / "log.csv").open())
    rate, flops = float(row["samples_per_s"]), float(row["tflops"])
    assert rate > 0 and flops == pytest.approx(rate * 512 / 1e12, abs=1e-4)
    assert "share_of_peak" not in row  # no data sheet is known for this processor


def test_starting_from_a_run_takes_the_weights_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)),
    )
    fresh = start_from({"net": new}, {"net": old.state_dict()})
    assert fresh == ["net.1.weight", "net.1.bias"] and "net.1.weight" in capsys.readouterr().out
    assert torch.equal(new[0].weight, old[0].weight)


def test_a_batch_with_nan_is_skipped(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 3)
    before = run.trained["net"].weight.detach().clone()
    run.update(run.trained["net"](torch.full((1, 4), float("nan"))).sum())
    assert torch.equal(before, run.trained["net"].weight)


def test_crops_favour_detail(tmp_path: Path) -> None:
    pixels = np.full((200, 400, 3), 90, np.uint8)
    pixels[:, 300:] = np.random.default_rng(0).integers(0, 255, (200, 100, 3))
    Image.fromarray(pixels).save(tmp_path / "half.png")
    data = Photos(tmp_path, torch.device("cpu"), candidates=6, halvings=0)
    busy = [data.draw(64).left + 64 > 300 for _ in range(50)]
    assert sum(busy) > 35
    image, crops = data.batch(3, 64)
    assert image.shape == (3, 3, 64, 64) and image.min() >= -1 and image.max() <= 1
    first = crops[0]
    expected = pixels[first.top : first.top + 64, first.left : first.left + 64]
    expected = expected[:, ::-1] if first.flip else expected
    np.testing.assert_allclose(image[0].permute(1, 2, 0), expected / 127.5 - 1, atol=1e-6)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no photographs below"):
        Photos(tmp_path, torch.device("cpu"))


def test_weights_files_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(OptionError, match=r"arrays only, not posix\.getcwd"):
        read_arrays(path)


def test_lpips_is_zero_on_equals_and_grows_with_noise(lpips_weights: Path) -> None:
    metric = LPIPS(lpips_weights)
    g = torch.Generator().manual_seed(0)
    a, noise = torch.rand(1, 3, 64, 64, generator=g) * 2 - 1, torch.randn(1, 3, 64, 64, generator=g)
    values = [float(metric(a, a + s * noise)) for s in (0, 0.05, 0.2, 0.5)]
    assert values[0] == 0 and values == sorted(values) and values[-1] > 2 * values[1]
