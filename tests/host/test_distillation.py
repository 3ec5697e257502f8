"""Distillation: the pool of teacher targets, and training on them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from training_factory import save_photos

from mmsr_edge.errors import OptionError
from mmsr_edge.models.decoder import SlimDecoder
from mmsr_edge.models.networks import build_component
from mmsr_edge.models.residual_dense import ResidualDenseNetwork
from mmsr_edge.models.super_resolution import CompactSuperResolution
from mmsr_edge.training.data.distillation import (
    DistillationPool,
    Pictures,
    cut,
    float_teacher,
    read_targets,
    write_targets,
)
from mmsr_edge.training.data.photos import Photos
from mmsr_edge.training.denoiser import Denoiser
from mmsr_edge.training.losses.picture import PictureLoss
from mmsr_edge.training.run import Run, RunConfig
from mmsr_edge.training.stage_networks import freeze_but_dense, grow_super_resolution
from mmsr_edge.training.states import load_run, load_states, start_from
from mmsr_edge.training.train_distillation import DistillationStage, train
from mmsr_edge.training.train_super_resolution import SuperResolutionStage
from mmsr_edge.training.train_super_resolution import train as train_super_resolution


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("photos"))


def test_a_decoder_starts_from_a_trained_super_resolution_network(
    photos: Path, lpips_weights: Path, tmp_path: Path
) -> None:
    device = torch.device("cpu")
    sizes = {"teacher_crop": 64, "crop": 64, "batch": 2, "pool": 8, "vgg_taps": 3, "vgg_crop": 48}
    stage = SuperResolutionStage(clean=0.0, **sizes)
    torch.manual_seed(0)
    compact = CompactSuperResolution(2, 8)
    config = RunConfig(steps=60, warmup=1, log_every=10, learning_rate=3e-3, device="cpu")
    run = Run(tmp_path, config, stage, {"super_resolution": compact})
    pool = DistillationPool(Photos(photos, device), float_teacher(Doubled()), stage, seed=0)
    train_super_resolution(
        pool, PictureLoss(lpips_weights, stage, target_share=0.0), run, stage, device
    )
    with (tmp_path / "log.csv").open() as file:
        log = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert log[-1]["l1"] < 0.6 * log[0]["l1"]
    assert log[-1]["hr_l1"] > log[-1]["l1"] / stage.l1_weight

    weights = load_run(tmp_path)["super_resolution"]
    decoder = build_component("decoder", "micro")
    assert isinstance(decoder, SlimDecoder)
    decoder.dense = None
    decoder.begin_at(weights)
    compact.load_state_dict(weights)
    assert decoder.compact is not None and decoder.compact.told is not None
    assert not decoder.compact.told[2].weight.any()  # the levels of degradation have no effect yet
    latent, lr = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(decoder(latent, lr), compact(lr))
    # The gradient reaches the branch of the latent.
    decoder(latent, lr).square().mean().backward()
    assert decoder.out[0].weight.grad.abs().max() > 0
    with pytest.raises(OptionError, match="does not fit this preset"):
        decoder.begin_at(CompactSuperResolution(3, 8).state_dict())


def test_super_resolution_learns_the_contrast_of_the_hr_picture(
    photos: Path, lpips_weights: Path, tmp_path: Path
) -> None:
    device = torch.device("cpu")
    none = dict.fromkeys(("l1_weight", "grid_weight", "alex_weight", "vgg_weight"), 0.0)
    sizes = {"teacher_crop": 64, "crop": 64, "batch": 8, "pool": 8}
    stage = SuperResolutionStage(clean=0.0, contrast_weight=1.0, contrast_first=0, **none, **sizes)
    torch.manual_seed(0)
    config = RunConfig(steps=120, warmup=1, log_every=20, learning_rate=1e-2, device="cpu")
    run = Run(tmp_path, config, stage, {"super_resolution": CompactSuperResolution(2, 8)})
    pool = DistillationPool(Photos(photos, device), float_teacher(Doubled()), stage, seed=0)
    picture = PictureLoss(lpips_weights, stage, target_share=0.0)
    train_super_resolution(pool, picture, run, stage, device)
    with (tmp_path / "log.csv").open() as file:
        log = [float(row["contrast"]) for row in csv.DictReader(file)]
    assert sum(log[2:]) / len(log[2:]) < 0.8 * log[0], log


def test_a_longer_super_resolution_network_starts_equal_to_a_shorter_one() -> None:
    torch.manual_seed(0)
    short = build_component("decoder", "micro")
    long = build_component("decoder", "micro")
    assert isinstance(short, SlimDecoder) and isinstance(long, SlimDecoder)
    short.compact, long.compact = CompactSuperResolution(2, 8), CompactSuperResolution(5, 8)
    fresh = start_from({"decoder": long}, {"decoder": short.state_dict()})
    latent, lr = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16) * 2 - 1
    assert (long(latent, lr) - short(latent, lr)).abs().max() > 0.01
    grow_super_resolution(long, fresh)
    torch.testing.assert_close(long(latent, lr), short(latent, lr))
    # Without given weights, nothing is changed.
    before = short.compact.body[0].weight.clone()
    grow_super_resolution(short, start_from({"decoder": short}, {}))
    assert torch.equal(short.compact.body[0].weight, before)


def test_a_residual_dense_network_draws_half_of_the_picture_at_first() -> None:
    torch.manual_seed(0)
    decoder = build_component("decoder", "micro")
    assert isinstance(decoder, SlimDecoder)
    latent, lr = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16) * 2 - 1
    other = ResidualDenseNetwork(1, "half", 8, 4)
    decoder.begin_dense(other.state_dict())
    both = decoder(latent, lr)
    dense, decoder.dense = decoder.dense, None
    alone = decoder(latent, lr)
    torch.testing.assert_close(both, (alone + other(lr)) / 2)
    decoder.dense = dense
    # The gate decides by place, and softly: no cell of 4 x 4 pixels has a share of its own.
    with torch.no_grad():
        decoder.gate.weight.normal_(std=3.0)
        decoder.gate.bias.zero_()
    share = (decoder(latent, lr) - alone) / (other(lr) - alone)
    assert -1e-3 < share.min() < 0.2 and 0.8 < share.max() < 1 + 1e-3
    steps = share.median(dim=1).values.diff(dim=2).abs()
    assert steps[..., 3::4].mean() < 1.2 * steps[..., 2::4].mean()
    with pytest.raises(OptionError, match="does not fit this preset"):
        decoder.begin_dense(ResidualDenseNetwork(2, "half", 8, 4).state_dict())


def test_dials_soften_what_the_dense_network_draws() -> None:
    """At a = 1 nothing of it is left; where a is 0 all of it."""
    torch.manual_seed(0)
    decoder = build_component("decoder", "micro")
    assert isinstance(decoder, SlimDecoder)
    latent, lr = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16) * 2 - 1
    aligned = torch.zeros(1, 23, 8, 8)
    aligned[..., -1, :, 4:] = 1.0
    other = ResidualDenseNetwork(1, "half", 8, 4)
    pictures = []
    for weights in (decoder.dense.state_dict(), other.state_dict()):  # type: ignore[union-attr]
        decoder.begin_dense(weights)
        pictures.append(decoder(latent, lr, None, aligned))
    change = (pictures[1] - pictures[0]).abs().mean((0, 1, 2))
    assert change[:20].min() > 1e-3 and change[44:].max() < 1e-6


class Doubled(nn.Module):
    """A teacher with a known output: each pixel repeated 4 x 4 times, and darker."""

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return lr.repeat_interleave(4, 2).repeat_interleave(4, 3) / 2 - 0.5


def test_crops_in_a_batch_equal_crops_one_by_one() -> None:
    pictures = torch.arange(3 * 2 * 9 * 9).reshape(3, 2, 9, 9)
    rows, corner = (
        torch.tensor([2, 0, 1, 2, 0]),
        torch.tensor([[0, 5], [5, 0], [1, 2], [3, 4], [2, 2]]),
    )
    turns = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]).bool()
    got = cut(pictures, rows, corner, 4, turns)
    for i, ((top, left), (down, across, swap)) in enumerate(
        zip(corner.tolist(), turns, strict=True)
    ):
        wanted = pictures[rows[i], :, top : top + 4, left : left + 4]
        if swap:
            wanted = wanted.transpose(1, 2)
            down, across = across, down  # the flips come before the swap
        wanted = wanted.flip(1) if down else wanted
        wanted = wanted.flip(2) if across else wanted
        assert torch.equal(got[i], wanted)


def test_lr_hr_and_target_are_cropped_alike(photos: Path) -> None:
    stage = DistillationStage(teacher_crop=64, crop=32, batch=4, pool=16, reuse=4, clean=0.0)
    pool = DistillationPool(
        Photos(photos, torch.device("cpu")), float_teacher(Doubled()), stage, seed=0
    )
    assert pool.count == 8
    lr, hr, target = pool.batch(24)
    assert lr.shape == (24, 3, 8, 8) and hr.shape == target.shape == (24, 3, 32, 32)
    # Cropped, mirrored and rotated alike: the target is still the teacher's output for this LR.
    torch.testing.assert_close(target, Doubled()(lr), atol=1.5 / 127.5, rtol=0)
    # 24 crops at four uses per picture: six new ones are owed, and made in groups of eight.
    assert pool.count == 8 and pool.owed == 6
    for _ in range(4):
        pool.batch(8)
    assert pool.count == 16


def test_targets_are_written_and_read(photos: Path, tmp_path: Path) -> None:
    stage = DistillationStage(
        teacher_crop=64, crop=32, batch=4, pool=16, reuse=float("inf"), clean=0.0
    )
    device = torch.device("cpu")
    made = DistillationPool(Photos(photos, device), float_teacher(Doubled()), stage, seed=0)
    write_targets(tmp_path / "targets.pt", made.held)
    held = read_targets([tmp_path / "targets.pt"] * 2, stage)
    pool = DistillationPool(
        Photos(photos, device), float_teacher(nn.Identity()), stage, seed=0, held=held
    )
    lr, _, target = pool.batch(24)
    assert pool.count == 16 == 2 * made.count  # no new targets were made
    torch.testing.assert_close(target, Doubled()(lr), atol=1.5 / 127.5, rtol=0)
    with pytest.raises(OptionError, match="have 64 pixels a side, and crop is 128"):
        read_targets([tmp_path / "targets.pt"], replace(stage, crop=128))
    (tmp_path / "targets.pt").write_bytes(b"PK")
    with pytest.raises(OptionError, match="cannot read distillation targets"):
        read_targets([tmp_path / "targets.pt"], stage)


def test_features_are_cut_where_the_picture_is(photos: Path, tmp_path: Path) -> None:
    """Each picture's features are its own pixels, which a turned crop would not match."""
    stage = DistillationStage(
        teacher_crop=64, crop=32, batch=4, pool=16, reuse=float("inf"), clean=0.0
    )

    def teacher(lr: torch.Tensor) -> Pictures:
        return Doubled()(lr), torch.cat([lr, 2 * lr], dim=1)

    made = DistillationPool(Photos(photos, torch.device("cpu")), teacher, stage, seed=0)
    write_targets(tmp_path / "targets.pt", made.held)
    held = read_targets([tmp_path / "targets.pt"], stage)
    pool = DistillationPool(made.photos, teacher, stage, seed=1, held=held)
    lr, _, _, features = pool.batch(24)
    assert features.shape == (24, 6, 8, 8) and features.dtype == torch.float32
    torch.testing.assert_close(features[:, :3], lr, atol=1.5 / 127.5, rtol=0)
    torch.testing.assert_close(features[:, 3:], 2 * features[:, :3], atol=2e-3, rtol=0)


def test_the_target_of_a_clean_picture_is_the_hr_picture(photos: Path) -> None:
    stage = DistillationStage(teacher_crop=64, crop=32, batch=4, pool=16, reuse=4, clean=1.0)
    pool = DistillationPool(
        Photos(photos, torch.device("cpu")), float_teacher(Doubled()), stage, seed=0
    )
    lr, hr, target = pool.batch(24)
    assert torch.equal(target, hr)
    # The reduced HR crop equals the LR crop, but for pixels that bicubic takes from around it.
    inner = (..., slice(2, -2), slice(2, -2))
    shrunk = torch.nn.functional.interpolate(hr, (8, 8), mode="bicubic", antialias=True)
    off = (shrunk - lr)[inner].abs().mean()
    assert off < 0.1 * (shrunk.flip(-1) - lr)[inner].abs().mean()


@pytest.mark.parametrize("clean", [0.0, 1.0])
def test_the_gate_learns_which_pictures_are_degraded(
    photos: Path, lpips_weights: Path, checkpoint: Path, tmp_path: Path, clean: float
) -> None:
    device = torch.device("cpu")
    sizes = {"teacher_crop": 64, "crop": 64, "batch": 2, "pool": 8}
    stage = DistillationStage(
        preset="micro", clean=clean, gate_weight=5.0, dense_alone=True, reconstructed=0.5, **sizes
    )
    states = load_states(checkpoint)
    names = ("hr_encoder", "tokenizer", "lr_encoder", "decoder")
    networks = {n: build_component(n, "micro") for n in names}
    start_from(networks, states)
    codebook = networks.pop("tokenizer").vq.quantize.embedding.weight.detach()
    frozen = {n: networks[n] for n in ("hr_encoder", "lr_encoder")}
    frozen["denoiser"] = Denoiser("micro", codebook)
    decoder = networks["decoder"]
    freeze_but_dense(decoder)
    before = {k: v.clone() for k, v in decoder.state_dict().items()}
    config = RunConfig(steps=60, warmup=1, log_every=10, learning_rate=1e-2, device="cpu")
    run = Run(tmp_path, config, stage, {"decoder": decoder})
    pool = DistillationPool(Photos(photos, device), float_teacher(Doubled()), stage, seed=0)
    picture = PictureLoss(lpips_weights, stage, target_share=0.0)
    train(pool, picture, frozen, run, stage, device)
    lr, latent = pool.batch(4)[0], torch.zeros(4, 4, 8, 8)
    shares: list[torch.Tensor] = []
    decoder.gate.register_forward_hook(lambda _, __, out: shares.append(out.sigmoid()))
    with torch.no_grad():
        decoder(latent, lr)
    mean = float(shares[-1].mean())
    assert mean < 0.35 if clean else mean > 0.65, mean
    for key, value in decoder.state_dict().items():
        learns = key.startswith(("dense.", "join_dense.", "gate."))
        assert learns or torch.equal(value, before[key]), key


def test_distillation_learns_from_the_teacher_alone(
    photos: Path, lpips_weights: Path, checkpoint: Path, tmp_path: Path
) -> None:
    device = torch.device("cpu")
    sizes = {"teacher_crop": 64, "crop": 64, "batch": 2, "pool": 8}
    stage = DistillationStage(preset="micro", clean=0.0, later=0.5, reconstructed=0.5, **sizes)
    states = load_states(checkpoint)
    names = ("hr_encoder", "tokenizer", "lr_encoder", "decoder")
    networks = {n: build_component(n, "micro") for n in names}
    start_from(networks, states)
    net = Denoiser("micro", networks.pop("tokenizer").vq.quantize.embedding.weight.detach())
    start_from({"denoiser": net}, states)
    hr_encoder = networks.pop("hr_encoder").requires_grad_(False)
    net.text_encoder.requires_grad_(False)
    net.connector.requires_grad_(False)
    before = {k: v.clone() for k, v in net.connector.state_dict().items()}
    config = RunConfig(steps=150, warmup=1, log_every=10, learning_rate=2e-3, device="cpu")
    run = Run(tmp_path, config, stage, {**networks, "denoiser": net})
    pool = DistillationPool(Photos(photos, device), float_teacher(Doubled()), stage, seed=0)
    picture = PictureLoss(lpips_weights, stage, target_share=0.0)
    train(pool, picture, {"hr_encoder": hr_encoder}, run, stage, device)
    with (tmp_path / "log.csv").open() as file:
        log = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert log[-1]["l1"] < 0.6 * log[0]["l1"]
    # The teacher is darker than HR, so learning from it alone moves away from HR.
    assert log[-1]["hr_l1"] > log[-1]["l1"] / stage.l1_weight
    assert set(load_run(tmp_path)) == {"lr_encoder", "decoder", "denoiser"}
    for key, value in before.items():
        assert torch.equal(value, net.connector.state_dict()[key]), key
