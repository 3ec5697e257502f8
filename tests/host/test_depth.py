"""The depth student: contract, invariances of its losses, and a run that learns and resumes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsr_edge.models.depth import DepthConfig, build_depth
from mmsr_edge.training.losses.depth import (
    LEAST_SPREAD,
    DepthWeights,
    aligned,
    depth_loss,
    gradient_loss,
    invariant_loss,
    nearness,
    rank_loss,
)
from mmsr_edge.training.scenes.make import render_scene
from mmsr_edge.training.scenes.textures import Textures
from mmsr_edge.training.states import load_run
from mmsr_edge.training.train_depth import main


def picture(seed: int, side: int = 32) -> torch.Tensor:
    """A map [2, 1, side, side] in (0, 1] with structure at several sizes."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand((2, 1, 4, 4), generator=g)
    fine = torch.rand((2, 1, side, side), generator=g)
    up = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return 0.05 + 0.8 * up + 0.1 * fine


def test_contract_and_size() -> None:
    network = build_depth(DepthConfig()).eval()
    with torch.inference_mode():
        out = network(torch.rand(2, 3, 256, 256) * 2 - 1)
    assert out.shape == (2, 1, 256, 256) and out.min() >= 0 and out.max() <= 1
    # At one byte per weight, the shipped file stays under 2 MB.
    assert sum(p.numel() for p in network.parameters()) < 1.9e6


def test_the_receptive_field_is_the_whole_picture() -> None:
    torch.manual_seed(0)
    network = build_depth(DepthConfig()).eval()
    image = torch.rand(1, 3, 256, 256, requires_grad=True)
    network(image)[0, 0, 0, 0].backward()
    assert image.grad is not None
    assert (image.grad[0].abs().sum(0) > 0).float().mean() > 0.5
    assert image.grad[0, :, -8:, -8:].abs().sum() > 0  # the opposite corner


def test_the_target_is_the_root_of_scaled_inverse_depth() -> None:
    inverse = torch.linspace(0, 1, 101).reshape(1, 1, 1, 101).repeat(1, 1, 5, 1)
    target = nearness(inverse)
    expected = ((inverse - 0.02) / 0.96).clamp(0, 1).sqrt()
    torch.testing.assert_close(target, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(nearness(3 * inverse), target)


def test_alignment_removes_scale_and_shift() -> None:
    d = 3 * picture(0)
    torch.testing.assert_close(aligned(4 * d - 7), aligned(d), atol=1e-4, rtol=1e-4)
    flat = aligned(d)[0].flatten()
    assert flat.median().abs() < 1e-6 and flat.abs().mean() == pytest.approx(1, rel=1e-5)


def test_a_nearly_flat_map_is_not_amplified() -> None:
    sky = torch.zeros(1, 1, 20, 20)
    sky[..., :2, :2] = 1  # one pixel in a hundred is near
    assert aligned(sky).max() == pytest.approx(1 / LEAST_SPREAD)


@pytest.mark.parametrize("loss", [invariant_loss, gradient_loss])
def test_losses_ignore_scale_and_shift_but_not_order(loss: object) -> None:
    assert callable(loss)
    d, other = 3 * picture(0), 3 * picture(1)
    assert loss(0.7 * d + 0.1, d) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(loss(2 * other - 1, d), loss(other, d), atol=1e-4, rtol=1e-4)
    assert loss(-d, d) > 5 * loss(d + 0.01 * other, d) > 0


def test_rank_loss_counts_order_only_where_depths_differ() -> None:
    d = picture(2)
    torch.manual_seed(0)
    right, wrong = rank_loss(50 * d, d), rank_loss(-50 * d, d)
    assert right < 0.01 and wrong > 10
    # A constant prediction is undecided about every pair: softplus(0) = ln 2.
    assert rank_loss(torch.full_like(d, 0.4), d) == pytest.approx(np.log(2), rel=1e-5)
    assert rank_loss(d, torch.full_like(d, 0.4)) == 0  # no pair to order


def test_the_whole_loss_learns_a_map() -> None:
    inverse = picture(3)
    guess = torch.full_like(inverse, 0.5) + 0.01 * picture(4)
    guess.requires_grad_()
    optimizer = torch.optim.Adam([guess], 0.03)
    losses = []
    for _ in range(200):
        loss, _ = depth_loss(guess, inverse, DepthWeights())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert (guess - nearness(inverse)).abs().mean() < 0.1


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    textures = Textures(None, patterns=1)
    for i in range(3):  # two of them are held out
        pairs = [render_scene(textures, 2 * i + j, 32) for j in range(2)]
        rgb, inverse = (np.stack(c) for c in zip(*pairs, strict=True))
        np.savez(folder / f"{i}.npz", rgb=rgb, inverse=inverse.astype(np.float16))
    return folder


def test_a_run_resumes_and_initializes_another(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(out: Path, steps: int, *options: str) -> dict[str, torch.Tensor]:
        command = [
            "train_depth", "--scenes", str(scenes), "--out", str(out), "--steps", str(steps),
            "--device", "cpu", "--batch", "2", "--side", "64", "--log-every", "1", *options,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", command)
        main()
        return load_run(out)["depth"]

    run = tmp_path / "run"
    first = train(run, 2)
    state = train(run, 3)
    assert len((run / "log.csv").read_text().splitlines()) == 1 + 3
    assert any(not torch.equal(state[k], first[k]) for k in state)
    build_depth(DepthConfig()).load_state_dict(state)
    for name, value in train(tmp_path / "next", 0, "--start", str(run)).items():
        torch.testing.assert_close(value, state[name])
