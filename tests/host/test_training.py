"""Runs: they learn, stop, resume after a kill, and end in a checkpoint that loads."""

from __future__ import annotations

import csv
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from mmsr_edge.bundle import open_bundle
from mmsr_edge.errors import OptionError
from mmsr_edge.models.autoencoder import SlimDecoder
from mmsr_edge.models.checkpoint import open_checkpoint
from mmsr_edge.models.networks import build_component
from mmsr_edge.models.super_resolution import CompactSuperResolution
from mmsr_edge.training.average import average
from mmsr_edge.training.data.distillation import DistillationPool, cut, read_targets, write_targets
from mmsr_edge.training.data.photos import Photos
from mmsr_edge.training.data.samples import draw_present
from mmsr_edge.training.denoiser import Denoiser
from mmsr_edge.training.losses.perceptual import LPIPS, read_arrays
from mmsr_edge.training.losses.picture import PictureLoss
from mmsr_edge.training.run import Run, RunConfig
from mmsr_edge.training.shards import join_run, split_run
from mmsr_edge.training.stage_networks import grow_super_resolution
from mmsr_edge.training.states import load_run, load_states, start_from
from mmsr_edge.training.train_distillation import DistillationStage, train
from mmsr_edge.training.train_fine_tuning import keep_all_but_context, take_context
from mmsr_edge.training.train_super_resolution import SuperResolutionStage
from mmsr_edge.training.train_super_resolution import train as train_super_resolution
from mmsr_edge.training.train_tokenizer import revive

STAGES = "mmsr_edge.training"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, pixels in zip("ab", load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def stage_command(stage: str, out: Path, *options: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        f"{STAGES}.{stage}",
        "--out",
        str(out),
        "--device",
        "cpu",
        *map(str, options),
    ]


def run_stage(stage: str, out: Path, *options: object) -> None:
    command = stage_command(stage, out, *options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


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


def test_a_run_learns_logs_and_draws(tmp_path: Path) -> None:
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


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
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


def test_what_a_run_learnt_comes_back_in_small_files(tmp_path: Path) -> None:
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


def test_a_run_says_how_fast_it_is(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 5)
    for step in run:
        toy_step(run, step)
    # 32 rows of 4 -> 1, forward and the gradient of the weights: a multiplication and an addition.
    assert run.throughput.flops == 2 * (2 * 32 * 4)
    (row,) = csv.DictReader((tmp_path / "log.csv").open())
    rate, flops = float(row["samples_per_s"]), float(row["tflops"])
    assert rate > 0 and flops == pytest.approx(rate * 512 / 1e12, abs=1e-4)
    assert "share_of_peak" not in row  # no data sheet is known for this processor


def test_starting_from_a_run_takes_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)),
    )
    fresh = start_from({"net": new}, {"net": old.state_dict()})
    assert fresh == ["net.1.weight", "net.1.bias"] and "net.1.weight" in capsys.readouterr().out
    assert torch.equal(new[0].weight, old[0].weight)


def test_a_bad_batch_is_not_learnt(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 3)
    before = run.trained["net"].weight.detach().clone()
    run.update(run.trained["net"](torch.full((1, 4), float("nan"))).sum())
    assert torch.equal(before, run.trained["net"].weight)


def test_crops_come_from_where_there_is_detail(tmp_path: Path) -> None:
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


def test_revived_codes_are_features() -> None:
    codebook, features = torch.zeros(4, 2), torch.randn(10, 2)
    assert revive(codebook, torch.tensor([1.0, 0.0, 3.0, 0.0]), features) == 2
    assert codebook[0].eq(0).all() and codebook[2].eq(0).all()
    assert all((features == codebook[i]).all(1).any() for i in (1, 3))


def test_all_stages_train_and_release_a_checkpoint(
    photos: Path, lpips_weights: Path, checkpoint: Path, tmp_path: Path
) -> None:
    seen = ("--modalities", checkpoint)
    small = ("--photos", photos, "--preset", "micro", "--warmup", 1, "--log-every", 1)
    runs = {n: tmp_path / n for n in ("autoencoder", "tokenizer", "diffusion")}
    judged = (
        "--lpips",
        lpips_weights,
        "--vgg-taps",
        4,
        "--vgg-crop",
        32,
        "--adversarial-weight",
        0.1,
    )
    ours = (*judged, "--steps", 3, "--batch", 2, "--crop", 64, "--reconstructed", 0.5)
    run_stage("train_autoencoder", runs["autoencoder"], *small, *ours)
    frozen = ("--freeze-encoder", "--init", runs["autoencoder"])
    run_stage("train_autoencoder", tmp_path / "longer", *small, *ours, *frozen)
    kept, moved = (load_run(r) for r in (runs["autoencoder"], tmp_path / "longer"))
    for name, same in (("hr_encoder", True), ("lr_encoder", False), ("decoder", False)):
        equal = all(torch.equal(v, moved[name][k]) for k, v in kept[name].items())
        assert equal is same, name
    run_stage(
        "train_tokenizer", runs["tokenizer"], *small, *seen, "--steps", 4, "--batch", 1, "--warm", 2
    )
    before = (*seen, "--autoencoder", runs["autoencoder"], "--tokenizer", runs["tokenizer"])
    last = ("--steps", 3, "--batch", 2, "--pool", 8)
    run_stage("train_diffusion", tmp_path / "noisy", *small, *before, *last)
    ours = ("--diffusion", tmp_path / "noisy", *judged, "--diffused", 1, "--reconstructed", 1)
    run_stage("train_fine_tuning", runs["diffusion"], *small, *before, *last, *ours)

    (photos / "sources.json").write_text('[{"source": "scikit-learn", "licence": "CC-BY-2.0"}]')
    out = tmp_path / "checkpoint"
    named = [str(v) for n, run in runs.items() for v in (f"--{n}", run)] + list(map(str, seen))
    release = [sys.executable, "-m", f"{STAGES}.release", "--preset", "micro", "--version", "0"]
    release += [*named, "--photos", str(photos), "--out", str(out)]
    release += ["--teacher-source", "a network", "MIT", "pictures"]
    release += ["--initialized-from", "an old one", "BSD-3-Clause", "the decoder"]
    subprocess.run(release, check=True, timeout=120)
    manifest = open_bundle(out).manifest
    assert manifest.provenance.sources[0]["name"] == "scikit-learn"
    target = {"name": "a network", "licence": "MIT", "used_for": "distillation of pictures"}
    began = {"name": "an old one", "licence": "BSD-3-Clause"}
    began["used_for"] = "initial weights of the decoder"
    assert manifest.provenance.sources[-2:] == (target, began)
    assert manifest.provenance.licence == "Apache-2.0 AND BSD-3-Clause"
    assert manifest.components["captioner"].labels == ("cat", "tree", "house", "sea")
    scale = manifest.latent.residual_scale
    assert scale is not None and len(scale) == 4 and min(scale) > 0
    # The decoder that is released is the one that was finished.
    finished = load_run(runs["diffusion"])["decoder"]
    for key, value in open_checkpoint(out).networks["decoder"].state_dict().items():
        assert torch.equal(value, finished[key].half().float()), key

    # A checkpoint stands in for the runs that it was made from; the anchor lets E_lr learn.
    released = ["--modalities", out, *(v for n in runs for v in (f"--{n}", out))]
    again = tmp_path / "again"
    ours = (*judged, "--diffused", 1, "--reconstructed", 1, "--anchor-weight", 0.1)
    run_stage("train_fine_tuning", again, *small, *released, *last, *ours)
    before, after = load_states(out), load_run(again)
    assert set(after) == {"denoiser", "decoder", "discriminator", "lr_encoder"}
    for name in ("denoiser", "decoder", "lr_encoder"):
        assert any(not torch.equal(v, after[name][k]) for k, v in before[name].items()), name
        for key, value in before[name].items():
            torch.testing.assert_close(after[name][key], value, atol=0.01, rtol=0)


def test_a_decoder_begins_at_the_super_resolution_network_that_was_trained(
    photos: Path, lpips_weights: Path, tmp_path: Path
) -> None:
    device = torch.device("cpu")
    sizes = {"teacher_crop": 64, "crop": 64, "batch": 2, "pool": 8, "vgg_taps": 3, "vgg_crop": 48}
    stage = SuperResolutionStage(clean=0.0, **sizes)
    torch.manual_seed(0)
    compact = CompactSuperResolution(2, 8)
    config = RunConfig(steps=60, warmup=1, log_every=10, learning_rate=3e-3, device="cpu")
    run = Run(tmp_path, config, stage, {"compact": compact})
    pool = DistillationPool(Photos(photos, device), Doubled(), stage, seed=0)
    train_super_resolution(
        pool, PictureLoss(lpips_weights, stage, target_share=0.0), run, stage, device
    )
    with (tmp_path / "log.csv").open() as file:
        log = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert log[-1]["l1"] < 0.6 * log[0]["l1"]
    assert log[-1]["hr_l1"] > log[-1]["l1"] / stage.l1_weight

    weights = load_run(tmp_path)["compact"]
    decoder = build_component("decoder", "micro")
    assert isinstance(decoder, SlimDecoder)
    decoder.begin_at(weights)
    compact.load_state_dict(weights)
    latent, lr = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(decoder(latent, lr), compact(lr))
    # From there the latent can become of use.
    decoder(latent, lr).square().mean().backward()
    assert decoder.out[0].weight.grad.abs().max() > 0
    with pytest.raises(OptionError, match="does not fit this preset"):
        decoder.begin_at(CompactSuperResolution(3, 8).state_dict())


def test_a_longer_compact_enlarger_begins_where_a_shorter_one_ended() -> None:
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
    # Where nothing was given, nothing is handed over.
    before = short.compact.body[0].weight.clone()
    grow_super_resolution(short, start_from({"decoder": short}, {}))
    assert torch.equal(short.compact.body[0].weight, before)


def test_blur_is_only_taught_to_those_who_are_told() -> None:
    soft = torch.arange(4000) % 4 == 0
    g = torch.Generator().manual_seed(0)
    present = draw_present(soft, 0.3, g, absent=0.2)
    assert present[soft, 0].all()  # else c∅ would learn to blur
    assert present[~soft, 0].mean().item() == pytest.approx(0.8 * 0.7, abs=0.03)
    assert present[:, 1:].mean().item() == pytest.approx(0.8 * 0.7, abs=0.02)
    nothing = (present == 0).all(1)
    assert nothing[~soft].float().mean().item() == pytest.approx(0.2 + 0.8 * 0.3**4, abs=0.03)
    assert draw_present(soft, 0.0, g).all()


def test_what_carries_the_context_can_learn_alone() -> None:
    net, decoder = Denoiser("micro", torch.zeros(32, 256)), build_component("decoder", "micro")
    keep_all_but_context(net, decoder)
    learns = {name for name, p in net.named_parameters() if p.requires_grad}
    unet = {name for name in learns if name.startswith("unet.")}
    assert unet and all(".attn2." in name for name in unet)
    for part in ("text_encoder", "connector"):
        whole = {f"{part}.{name}" for name, _ in getattr(net, part).named_parameters()}
        assert whole and whole <= learns
    assert not any(p.requires_grad for p in decoder.parameters())

    # And it can be taken from another run, without anything else.
    other = Denoiser("micro", torch.zeros(32, 256))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    take_context(net, other.state_dict())
    theirs = dict(other.named_parameters())
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, theirs[name] if name in learns else before[name]), name


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs SIGTERM")
def test_a_terminated_stage_saves_and_resumes(
    photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    options = (
        "--modalities",
        checkpoint,
        "--photos",
        photos,
        "--preset",
        "micro",
        "--batch",
        1,
        "--warm",
        1,
    )
    options += ("--warmup", 1, "--log-every", 1)
    command = stage_command("train_tokenizer", tmp_path, *options, "--steps", 100000)
    process = subprocess.Popen(command)
    log = tmp_path / "log.csv"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size > 200) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.terminate()
    assert process.wait(60) == 0
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert 0 < state["step"] < 100000
    run_stage("train_tokenizer", tmp_path, *options, "--steps", state["step"] + 2)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == state["step"] + 2


class Doubled(nn.Module):
    """A teacher whose answer is known: each pixel four times each way, and darker."""

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return lr.repeat_interleave(4, 2).repeat_interleave(4, 3) / 2 - 0.5


def test_squares_are_cut_and_turned_as_one_by_one() -> None:
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


def test_pieces_of_a_target_stay_together(photos: Path) -> None:
    stage = DistillationStage(teacher_crop=64, crop=32, batch=4, pool=16, reuse=4, clean=0.0)
    pool = DistillationPool(Photos(photos, torch.device("cpu")), Doubled(), stage, seed=0)
    assert pool.count == 8
    lr, hr, target = pool.batch(24)
    assert lr.shape == (24, 3, 8, 8) and hr.shape == target.shape == (24, 3, 32, 32)
    # Turned, mirrored and cut alike: the teacher's answer is still the one to this piece.
    torch.testing.assert_close(target, Doubled()(lr), atol=1.5 / 127.5, rtol=0)
    # 24 pieces, each picture used four times: eight new ones came; then the oldest go.
    assert pool.count == 8 and pool.owed == 6
    for _ in range(4):
        pool.batch(8)
    assert pool.count == 16


def test_targets_are_kept_in_a_file(photos: Path, tmp_path: Path) -> None:
    stage = DistillationStage(
        teacher_crop=64, crop=32, batch=4, pool=16, reuse=float("inf"), clean=0.0
    )
    device = torch.device("cpu")
    made = DistillationPool(Photos(photos, device), Doubled(), stage, seed=0)
    write_targets(tmp_path / "targets.pt", made.held)
    held = read_targets([tmp_path / "targets.pt"] * 2, stage)
    pool = DistillationPool(Photos(photos, device), nn.Identity(), stage, seed=0, held=held)
    lr, _, target = pool.batch(24)
    assert pool.count == 16 == 2 * made.count  # and none was made beside them
    torch.testing.assert_close(target, Doubled()(lr), atol=1.5 / 127.5, rtol=0)
    with pytest.raises(OptionError, match="have 64 pixels a side, and crop is 128"):
        read_targets([tmp_path / "targets.pt"], replace(stage, crop=128))
    (tmp_path / "targets.pt").write_bytes(b"PK")
    with pytest.raises(OptionError, match="cannot read distillation targets"):
        read_targets([tmp_path / "targets.pt"], stage)


def test_the_answer_to_a_clean_picture_is_the_hr_picture(photos: Path) -> None:
    stage = DistillationStage(teacher_crop=64, crop=32, batch=4, pool=16, reuse=4, clean=1.0)
    pool = DistillationPool(Photos(photos, torch.device("cpu")), Doubled(), stage, seed=0)
    lr, hr, target = pool.batch(24)
    assert torch.equal(target, hr)
    # The HR picture, shrunk, is the piece but for what bicubic takes from around it.
    inner = (..., slice(2, -2), slice(2, -2))
    shrunk = torch.nn.functional.interpolate(hr, (8, 8), mode="bicubic", antialias=True)
    off = (shrunk - lr)[inner].abs().mean()
    assert off < 0.1 * (shrunk.flip(-1) - lr)[inner].abs().mean()


def test_the_teachers_stage_learns_from_the_teacher_alone(
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
    net.load_state_dict(states["denoiser"])
    hr_encoder = networks.pop("hr_encoder").requires_grad_(False)
    net.text_encoder.requires_grad_(False)
    net.connector.requires_grad_(False)
    before = {k: v.clone() for k, v in net.connector.state_dict().items()}
    config = RunConfig(steps=150, warmup=1, log_every=10, learning_rate=2e-3, device="cpu")
    run = Run(tmp_path, config, stage, {**networks, "denoiser": net})
    pool = DistillationPool(Photos(photos, device), Doubled(), stage, seed=0)
    train(pool, PictureLoss(lpips_weights, stage, target_share=0.0), hr_encoder, run, stage, device)
    with (tmp_path / "log.csv").open() as file:
        log = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert log[-1]["l1"] < 0.6 * log[0]["l1"]
    # The teacher is darker than HR, so what learns from it alone leaves HR behind.
    assert log[-1]["hr_l1"] > log[-1]["l1"] / stage.l1_weight
    assert set(load_run(tmp_path)) == {"lr_encoder", "decoder", "denoiser"}
    for key, value in before.items():
        assert torch.equal(value, net.connector.state_dict()[key]), key
