"""Distillation of a decoder from another, on recorded inputs."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmsr_edge.calib.reader import CalibrationSet
from mmsr_edge.errors import OptionError
from mmsr_edge.models.autoencoder import build_autoencoder
from mmsr_edge.models.decoder import SlimDecoder
from mmsr_edge.models.presets import ALIGNED, preset
from mmsr_edge.models.super_resolution import CompactSuperResolution
from mmsr_edge.training import train_decoder
from mmsr_edge.training.states import load_run, write_run
from mmsr_edge.training.train_decoder import Recorded, load_teacher

LATENT = 8
"""Side of the recorded latents."""


def drawn_inputs(count: int = 6) -> dict[str, Any]:
    """Inputs of micro's decoder: smooth pictures, so that there is something to learn."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand((count, 3, 4, 4), generator=g) * 2 - 1
    return {
        "latent": torch.randn((count, 4, LATENT, LATENT), generator=g).numpy(),
        "lr": nn.functional.interpolate(coarse, (2 * LATENT,) * 2, mode="bilinear").numpy(),
        "degradation": torch.rand((count, 8), generator=g).numpy(),
        "aligned": torch.rand((count, ALIGNED, LATENT, LATENT), generator=g).numpy(),
    }


def longer_decoder(step: float) -> SlimDecoder:
    """micro's decoder with six compact layers, the last of which differ by `step` from the
    identity."""
    torch.manual_seed(1)
    config = replace(preset("micro").autoencoder, compact_layers=6)
    decoder = build_autoencoder(config)["decoder"]
    assert isinstance(decoder, SlimDecoder) and decoder.compact is not None
    pass_on_nearly(decoder.compact, step)
    return decoder.eval()


@torch.no_grad()
def pass_on_nearly(network: CompactSuperResolution, step: float) -> None:
    """Make the convolutions from number 3 on, and their PReLUs, differ by `step` from the
    identity."""
    network.pass_on(3)
    for parameter in network.body[6:].parameters():
        parameter.add_(torch.randn(parameter.shape) * step)


@pytest.mark.parametrize("step", [0.0, 1e-3, 1e-2])
def test_layers_near_the_identity_fold_into_one(step: float) -> None:
    """The error is of second order: a step ten times as large makes it 100 times as large."""
    torch.manual_seed(0)
    longer, folded = (CompactSuperResolution(n, 8) for n in (9, 3))
    pass_on_nearly(longer, step)
    folded.load_state_dict({**folded.state_dict(), **_upto(longer, 6)})
    folded.fold(longer)
    lr = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        wanted, made = longer.features(lr), folded.features(lr)
        without = longer.body[:6](lr)
    inner = (..., slice(8, -8), slice(8, -8))  # away from the padding
    size = wanted[inner].abs().mean()
    assert (made - wanted)[inner].abs().mean() <= 1000 * step**2 * size + 1e-6
    if step:
        assert (made - wanted)[inner].abs().mean() < (without - wanted)[inner].abs().mean() / 3


def _upto(network: CompactSuperResolution, end: int) -> dict[str, torch.Tensor]:
    """The state of the layers before `end`."""
    state = network.state_dict()
    return {k: v for k, v in state.items() if k.startswith("body.") and int(k.split(".")[1]) < end}


@pytest.mark.parametrize(("quantized", "share"), [(False, 0.6), (True, 0.9)])
def test_a_shorter_decoder_learns_the_longer_ones_pictures(
    lpips_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: bool,
    share: float,
) -> None:  # fmt: skip
    teacher = longer_decoder(0.05)
    write_run(tmp_path / "teacher", {"decoder": teacher.state_dict()})
    CalibrationSet({"decoder": drawn_inputs()}, {}).save(tmp_path / "set.npz")
    monkeypatch.setitem(train_decoder.DECODER_FLOAT, "micro", ("compact.body.0", "out.0"))
    command = ["train_decoder", "--decoder", str(tmp_path / "teacher"), "--preset", "micro"]
    command += ["--calibration-set", str(tmp_path / "set.npz"), "--lpips", str(lpips_weights)]
    command += ["--steps", "120", "--log-every", "10", "--warmup", "1", "--learning-rate", "1e-3"]
    command += ["--out", str(tmp_path / "run"), "--ema", "0.9", "--device", "cpu", "--window", "6"]
    command += ["--alex-weight", "0"]
    monkeypatch.setattr(sys, "argv", command + ["--quantization-aware"] * quantized)
    train_decoder.main()
    with (tmp_path / "run" / "log.csv").open() as file:
        log = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert log[-1]["l1"] < share * log[0]["l1"], log
    assert log[-1]["features"] < share * log[0]["features"], log
    state = load_run(tmp_path / "run")["decoder"]
    decoder = build_autoencoder(preset("micro").autoencoder)["decoder"]
    decoder.load_state_dict(state)


def test_a_teacher_may_have_the_presets_own_size() -> None:
    own = build_autoencoder(preset("micro").autoencoder)["decoder"]
    teacher = load_teacher(own.state_dict(), "micro")
    student, folded = train_decoder.begin(teacher, "micro")
    assert folded == []
    for key, value in own.state_dict().items():
        assert torch.equal(student.state_dict()[key], value), key


def test_pieces_show_the_same_place() -> None:
    rows = np.arange(LATENT, dtype=np.float32)
    place = np.broadcast_to(rows[:, None] * 10 + rows, (1, 1, LATENT, LATENT))
    double = place.repeat(2, 2).repeat(2, 3)
    inputs = {"latent": place, "lr": double, "degradation": np.ones((1, 8)), "aligned": place + 1}
    inputs = {name: array.copy() for name, array in inputs.items()}
    recorded = Recorded(inputs, torch.Generator().manual_seed(0), torch.device("cpu"))
    latent, lr, degradation, aligned = recorded.batch(16, 3)
    assert latent.shape == (16, 1, 3, 3) and lr.shape == (16, 1, 6, 6)
    assert degradation.shape == (16, 8)
    assert torch.equal(aligned, latent + 1)
    assert torch.equal(lr[..., ::2, ::2], latent)
    assert len(latent[:, 0, 0, 0].unique()) > 4
    assert recorded.batch(1, 100)[0].shape == (1, 1, LATENT, LATENT)


def test_a_set_without_the_decoders_inputs_is_refused() -> None:
    with pytest.raises(OptionError, match="no lr, degradation, aligned of a decoder"):
        Recorded({"latent": np.zeros((1, 4, 8, 8))}, torch.Generator(), torch.device("cpu"))


def test_a_file_that_is_no_calibration_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_text("no set")
    with pytest.raises(OptionError, match=r"set\.npz' cannot be read as a calibration set"):
        train_decoder.read_inputs(tmp_path / "set.npz")
