"""Stages: each one trains, stops and resumes, and a release makes a checkpoint of them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_factory import STAGES, make_tiles, run_stage, save_photos, stage_command

from mmsr_edge.bundle import open_bundle
from mmsr_edge.errors import OptionError
from mmsr_edge.models.checkpoint import open_checkpoint
from mmsr_edge.training.release import join
from mmsr_edge.training.states import load_run, load_states
from mmsr_edge.training.train_tokenizer import revive


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("photos"))


def test_revived_codes_are_features() -> None:
    codebook, features = torch.zeros(4, 2), torch.randn(10, 2)
    assert revive(codebook, torch.tensor([1.0, 0.0, 3.0, 0.0]), features) == 2
    assert codebook[0].eq(0).all() and codebook[2].eq(0).all()
    assert all((features == codebook[i]).all(1).any() for i in (1, 3))


def test_all_stages_train_and_release_a_checkpoint(
    photos: Path, lpips_weights: Path, checkpoint: Path, tmp_path: Path
) -> None:
    modalities = ("--modalities", checkpoint)
    small = ("--photos", photos, "--preset", "micro", "--warmup", 1, "--log-every", 1)
    runs = {n: tmp_path / n for n in ("autoencoder", "tokenizer", "student", "diffusion")}
    adversarial = (
        "--lpips",
        lpips_weights,
        "--vgg-taps",
        4,
        "--vgg-crop",
        32,
        "--adversarial-weight",
        0.1,
    )
    ours = (*adversarial, "--steps", 3, "--batch", 2, "--crop", 64, "--reconstructed", 0.5)
    run_stage("train_autoencoder", runs["autoencoder"], *small, *ours)
    frozen = ("--freeze-encoder", "--init", runs["autoencoder"])
    run_stage("train_autoencoder", tmp_path / "longer", *small, *ours, *frozen)
    kept, moved = (load_run(r) for r in (runs["autoencoder"], tmp_path / "longer"))
    for name, same in (("hr_encoder", True), ("lr_encoder", False), ("decoder", False)):
        equal = all(torch.equal(v, moved[name][k]) for k, v in kept[name].items())
        assert equal is same, name
    tiles = tmp_path / "tiles.pt"
    make_tiles().save(tiles)
    small = ("--tiles", tiles, "--preset", "micro", "--warmup", 1, "--log-every", 1)
    run_stage("train_tokenizer", runs["tokenizer"], *small, "--steps", 4, "--batch", 2, "--warm", 2)
    start = ("--checkpoint", checkpoint, "--tokenizer", runs["tokenizer"])
    pictures = ("--lpips", lpips_weights, "--vgg-taps", 2, "--vgg-crop", 32, "--window", 8)
    last = ("--pictures", 1, "--dials", 1, "--warm", 1, "--steps", 2)
    run_stage("train_modalities", runs["student"], *small, *start, *pictures, *last)
    trained = ("--init", runs["student"], "--context-alone", "--batch", 1, "--steps", 2)
    run_stage("train_diffusion", runs["diffusion"], *small, *start, *trained)

    (photos / "sources.json").write_text('[{"source": "scikit-learn", "licence": "CC-BY-2.0"}]')
    out = tmp_path / "checkpoint"
    named = [str(v) for n, run in runs.items() for v in (f"--{n}", run)] + list(
        map(str, modalities)
    )
    release = [sys.executable, "-m", f"{STAGES}.release", "--preset", "micro", "--version", "0"]
    release += ["--few-steps", "4", *named, "--photos", str(photos), "--out", str(out)]
    release += ["--teacher-source", "a network", "MIT", "pictures"]
    release += ["--initialized-from", "an old one", "BSD-3-Clause", "the decoder"]
    subprocess.run(release, check=True, timeout=120)
    manifest = open_bundle(out).manifest
    assert manifest.provenance.sources[0]["name"] == "scikit-learn"
    target = {"name": "a network", "licence": "MIT", "used_for": "distillation of pictures"}
    initial = {"name": "an old one", "licence": "BSD-3-Clause"}
    initial["used_for"] = "initial weights of the decoder"
    assert manifest.provenance.sources[-2:] == (target, initial)
    assert manifest.provenance.licence == "Apache-2.0 AND BSD-3-Clause"
    assert manifest.components["captioner"].labels == ("cat", "tree", "house", "sea")
    scale = manifest.latent.residual_scale
    assert scale is not None and len(scale) == 4 and min(scale) > 0
    # The released decoder is that of the fine-tuning.
    tuned, diffusion = load_run(runs["student"]), load_run(runs["diffusion"])["denoiser"]
    networks = open_checkpoint(out).networks
    for key, value in networks["decoder"].state_dict().items():
        assert torch.equal(value, tuned["decoder"][key].half().float()), key
    for name, run in (("unet", tuned["denoiser"]), ("diffusion_unet", diffusion)):
        for key, value in networks[name].state_dict().items():
            assert torch.equal(value, run[f"unet.{key}"].half().float()), key
    assert {name: served[0] for name, served in manifest.unets.items()} == {
        "unet": 1, "diffusion_unet": 5
    }  # fmt: skip
    sigma = torch.tensor(manifest.latent.diffusion_scale)
    torch.testing.assert_close(sigma, diffusion["latent_scale"])
    diffusion["connector.latents"] += 0.1
    with pytest.raises(OptionError, match=r"differ in connector\.latents"):
        join(tuned, diffusion)

    # A checkpoint replaces the runs that it was made from.
    again = ("--checkpoint", out, "--tokenizer", out, *pictures, *last)
    run_stage("train_modalities", tmp_path / "again", *small, *again)
    before, after = load_states(out), load_run(tmp_path / "again")
    assert set(after) == {"denoiser", "decoder"}
    for name in after:
        assert any(not torch.equal(v, after[name][k]) for k, v in before[name].items()), name
        for key, value in before[name].items():
            torch.testing.assert_close(after[name][key], value, atol=0.02, rtol=0)


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs SIGTERM")
def test_a_terminated_stage_saves_and_resumes(tmp_path: Path) -> None:
    tiles = tmp_path / "tiles.pt"
    make_tiles().save(tiles)
    options = ("--tiles", tiles, "--preset", "micro", "--batch", 1, "--warm", 1)
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
