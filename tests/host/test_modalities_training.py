"""What makes the networks read their modalities: dials, a relative context, and the stages."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training_factory import COUNT, make_tiles, run_stage

from mmsr_edge.bundle import ALIGNED
from mmsr_edge.modalities.aligned import align_maps
from mmsr_edge.modalities.segmentation import SUBJECT
from mmsr_edge.models.connector import Connector
from mmsr_edge.models.networks import build_component
from mmsr_edge.models.presets import preset
from mmsr_edge.training.data.degradation import bicubic_down, split_error
from mmsr_edge.training.data.dials import areas, draw_temperatures, gain, pull, refocus
from mmsr_edge.training.data.tile_samples import ConditionsConfig, TileSamples
from mmsr_edge.training.denoiser import Denoiser
from mmsr_edge.training.states import load_run
from mmsr_edge.training.student import Student, begin
from mmsr_edge.training.train_modalities import PATHS, keep_untold


def make_samples(seed: int = 0) -> TileSamples:
    torch.manual_seed(0)
    networks = {n: build_component(n, "micro") for n in ("hr_encoder", "lr_encoder", "tokenizer")}
    text = preset("micro").text_spec()
    g = torch.Generator().manual_seed(seed)
    return TileSamples(make_tiles(), networks, text, torch.ones(4), g)


def test_dials_are_neutral_at_one_and_monotone() -> None:
    steps = torch.tensor([0.4, 0.63, 1.0, 3.0, 10.0])
    assert pull(steps)[[0, 2, 4]].tolist() == pytest.approx([1, 0, -0.5], abs=1e-6)
    assert (pull(steps).diff() < 0).all()
    area = torch.ones(5, 3, 1, 1)
    by_depth = torch.ones(5, 4)
    by_depth[:, 1] = steps
    g = gain(area, torch.ones(5, 4), by_depth).flatten()
    assert g.tolist() == pytest.approx([0, 0.4958, 1, 1.2386, 1.5], abs=1e-3)
    absent = torch.tensor([1.0, 0, 1, 1]).expand(5, -1)
    assert gain(area, absent, by_depth).eq(1).all()  # an absent map has no dial


def test_drawn_temperatures_fill_their_range() -> None:
    g = torch.Generator().manual_seed(0)
    drawn = draw_temperatures(8000, g, one=0.25, second=0.5)
    assert 0.4 <= drawn.min() < 0.41 and 9.7 < drawn.max() <= 10
    turned = (drawn != 1).sum(1)
    for count, share in ((0, 0.25), (1, 0.375), (2, 0.375)):
        assert (turned == count).float().mean().item() == pytest.approx(share, abs=0.02)
    low, high = drawn[drawn < 1], drawn[drawn > 1]
    assert len(high) / (len(low) + len(high)) == pytest.approx(0.35, abs=0.02)
    for part, middle in ((low, 0.4**0.5), (high, 10**0.5)):  # log-uniform
        assert (part < middle).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert draw_temperatures(500, g, text=False)[:, 0].eq(1).all()


def test_areas_are_far_places_the_rest_and_flat_places() -> None:
    depth = torch.zeros(1, 64, 64)
    depth[:, :, 32:] = 255
    classes = torch.full((1, 64, 64), 3)
    classes[:, :32] += SUBJECT
    edges = torch.zeros(1, 64, 64)
    edges[:, 20] = 255
    far, rest, flat = areas(depth, classes, edges, 8)[0]
    assert far[:, :4].eq(1).all() and far[:, 4:].eq(0).all()
    assert rest[:5].eq(0).all() and rest[5:].eq(1).all()  # a cell around it too
    assert flat[1:4].eq(0).all() and flat[0].eq(1).all() and flat[4:].eq(1).all()


def test_refocused_pictures_are_softer_or_sharper_where_asked() -> None:
    g = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 64, 64, generator=g) * 2 - 1
    softness = torch.zeros(1, 1, 8, 8)
    softness[..., :3], softness[..., 5:] = 1.0, -0.5
    moved = refocus(picture, softness)

    def energy(x: Tensor) -> list[float]:
        detail = x.diff(dim=2).square()
        return [
            float(part.mean()) for part in (detail[..., :16], detail[..., 28:36], detail[..., 48:])
        ]

    soft, same, sharp = (a / b for a, b in zip(energy(moved), energy(picture), strict=True))
    assert soft < 0.05 and same == pytest.approx(1, abs=0.05) and sharp > 1.5
    torch.testing.assert_close(refocus(picture, torch.zeros(1, 1, 8, 8)), picture)


def test_context_of_absent_modalities_is_zero() -> None:
    torch.manual_seed(0)
    connector = build_component("connector", "micro")
    assert isinstance(connector, Connector)
    text, maps = torch.randn(2, 77, 32), [torch.randn(2, 256, 256) for _ in range(3)]
    nothing, all_on, one = torch.zeros(2, 4), torch.ones(2, 4), torch.ones(2, 4)
    assert connector(text, *maps, nothing, one).abs().max() < 1e-5
    context = connector(text, *maps, all_on, one)
    assert context.abs().max() > 0.1
    connector.fix_absent()
    torch.testing.assert_close(connector(text, *maps, all_on, one), context)
    with torch.no_grad():  # a fixed c∅ is the one of before, not that of new weights
        connector.latents.normal_()
    assert connector(text, *maps, nothing, one).abs().max() > 1e-3


def test_a_constant_context_folds_into_biases() -> None:
    """The UNet with biases and no context equals the UNet with that context."""
    torch.manual_seed(0)
    codebook = torch.randn(32, 256)
    old = Denoiser("micro", codebook)
    states = {k: v.clone() for k, v in old.state_dict().items() if ".processor." not in k}
    states["residual_scale"] = torch.ones(4)
    narrow = states["unet.net.conv_in.weight"][:, :8].clone()
    states["unet.net.conv_in.weight"] = narrow
    torch.manual_seed(1)
    new = Denoiser("micro", codebook)
    begin(new, states, "micro", fold=True)
    with torch.no_grad():
        new.unet.net.conv_in.weight[:, 8:] = 0
    torch.manual_seed(2)
    latent, t = torch.randn(1, 8, 16, 16), torch.tensor([5.0])
    from mmsr_edge.training.student import constant_context

    context = constant_context(old, "micro").expand(1, 16, -1)
    with torch.no_grad():
        old.unet.net.conv_in.weight[:, 8:] = 0
        expected = old.unet(latent, t, context)
        nothing = torch.zeros_like(context)
        torch.testing.assert_close(new.unet(latent, t, nothing), expected, atol=1e-4, rtol=1e-4)
        assert (new.unet(latent, t, torch.randn_like(context)) - expected).abs().max() > 1e-3


def test_conditions_are_those_of_the_device() -> None:
    samples = make_samples()
    rows = torch.arange(COUNT)
    config = ConditionsConfig(sharp=0, aligned=1, drop=0, unknown=0, tagged=1, negative=0)
    given = samples.conditions(rows, config)
    maps = samples.tiles.maps(rows, torch.zeros(COUNT, 3, dtype=torch.long))
    names = ("depth", "segmentation", "edges")
    expected = align_maps({n: maps[:, i].numpy() for i, n in enumerate(names)}, samples.size)
    np.testing.assert_array_equal(given.with_dials(None).numpy(), expected)
    assert expected.shape == (COUNT, ALIGNED, 16, 16)
    # The dials of training and of the device are the same, computed from classes and from colours.
    heat = {"depth": 0.5, "segmentation": 0.4, "edges": 7.0}
    expected = align_maps({n: maps[:, i].numpy() for i, n in enumerate(names)}, 16, heat)
    turned = given.with_dials(torch.tensor([[1.0, *heat.values()]]).expand(COUNT, -1))
    np.testing.assert_allclose(turned.numpy(), expected, atol=1e-5)
    assert np.abs(expected[:, -3:]).max((0, 2, 3)).min() > 0.3
    assert given.degradation[:, :3].equal(samples.tiles.levels)
    level = round(9 * float(samples.tiles.levels[0, 0]))
    every = torch.ones(3, dtype=torch.bool)
    prompt = samples.prompt(0, 0, True, samples.tiles.levels[0], every, False)
    assert prompt.startswith(f"cat, dark, noise{level}, blur")
    assert prompt.endswith("sharp detailed photo")
    nothing = samples.conditions(rows, ConditionsConfig(drop=1, negative=0))
    assert nothing.present.eq(0).all() and nothing.aligned.eq(0).all()


def test_words_that_tell_less_keep_the_rest_in_the_target() -> None:
    samples = make_samples()
    rows = torch.arange(COUNT)
    config = ConditionsConfig(drop=0, unknown=0, negative=0, less=1)
    given = samples.conditions(rows, config)
    told, known, stay = given.degradation.split([3, 3, 2], dim=1)
    assert torch.equal(stay, given.untold.flip(1))  # noise, then blur
    assert known.eq(1).all() and given.untold.min() >= 0 and given.untold.max() == 1
    blur, rest = (1 - given.untold).T
    true = samples.tiles.levels
    torch.testing.assert_close(told, true * torch.stack([rest.sqrt(), blur, rest.sqrt()], 1))
    assert samples.conditions(rows, ConditionsConfig(less=0)).untold.eq(0).all()

    hr = F.avg_pool2d(torch.rand(2, 3, 132, 132, generator=samples.g), 5, 1)
    hr = (4 * (hr - 0.5)).clamp(-0.9, 0.9)
    clean = bicubic_down((hr + 1) / 2, 4) * 2 - 1
    noise = 0.05 * torch.randn(clean.shape, generator=samples.g)
    soft = F.avg_pool2d(F.pad(clean, (1,) * 4, mode="reflect"), 3, 1)
    lr = soft + noise
    parts = split_error(lr, clean)
    torch.testing.assert_close(parts[0] + parts[1], lr - clean)
    for part, expected in zip(parts, (soft - clean, noise), strict=True):
        error = (part - expected).square().mean() / expected.square().mean()
        assert error < 0.1
    assert keep_untold(hr, lr, torch.zeros(2, 2)) is hr
    # All of it kept back: the target is the HR picture with what the LR picture has.
    kept = keep_untold(hr, lr, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert torch.equal(kept[0], hr[0])
    again = bicubic_down((kept[1:] + 1) / 2, 4) * 2 - 1
    assert (again - lr[1:]).square().mean() < 0.2 * (clean - lr)[1].square().mean()


def test_a_student_that_ignores_its_conditions_is_found_out() -> None:
    """Residuals do not depend on the maps while cross-attention's output weights are zero."""
    samples = make_samples()
    net = Denoiser("micro", torch.randn(32, 256))
    rows = torch.arange(2)
    z_lr, _ = samples.latents(rows)
    given = samples.conditions(rows, ConditionsConfig(drop=0, aligned=0, negative=0))
    student = Student(net, "micro")
    with torch.no_grad():
        moved = student.residual(z_lr, given) - student.residual(z_lr, given, absent_text=True)
        assert moved.abs().max() > 1e-6
        for name, parameter in net.unet.named_parameters():
            if ".attn2.to_out.0.weight" in name:
                parameter.zero_()
        still = student.residual(z_lr, given) - student.residual(z_lr, given, absent_text=True)
    assert still.abs().max() < 1e-6


def test_stages_train_and_resume(tmp_path: Path, checkpoint: Path, lpips_weights: Path) -> None:
    tiles = tmp_path / "tiles.pt"
    make_tiles().save(tiles)
    small = ("--tiles", tiles, "--preset", "micro", "--warmup", 1, "--log-every", 1)
    run_stage(
        "train_tokenizer", tmp_path / "tokenizer", *small, "--steps", 4, "--batch", 2, "--warm", 2
    )
    start = ("--checkpoint", checkpoint, "--tokenizer", tmp_path / "tokenizer")
    kept = ("--encoded", tmp_path / "encoded.pt")
    pictures = ("--lpips", lpips_weights, "--vgg-taps", 2, "--vgg-crop", 32, "--window", 8)
    out = tmp_path / "modalities"
    last = (*small, *start, *kept, *pictures, "--pictures", 1, "--dials", 1, "--warm", 2)
    run_stage("train_modalities", out, *last, "--steps", 3)
    # The first step has all kinds of samples.
    last = (*last[:-1], 0, "--init", out, "--context-alone", "--paths-alone", "--less", 1)
    run_stage("train_modalities", tmp_path / "longer", *last, "--steps", 1)
    before, after = load_run(out), load_run(tmp_path / "longer", ema=False)
    for key, value in after["decoder"].items():
        path = any(name in key for name in PATHS)
        assert torch.equal(value, before["decoder"][key]) is not path, key
    for key, value in after["denoiser"].items():
        if key.startswith(("connector.", "text_encoder.")):
            assert torch.equal(value, before["denoiser"][key]), key
    assert {"denoiser", "decoder"} <= set(load_run(out))
    assert (tmp_path / "encoded.reference.pt").exists()
    diffusion = ("--steps", 2, "--batch", 2, "--context-alone", "--init", out)
    run_stage("train_diffusion", tmp_path / "diffusion", *small, *start, *kept, *diffusion)
    student, denoiser = (load_run(r)["denoiser"] for r in (out, tmp_path / "diffusion"))
    for key, value in student.items():  # one connector and one text encoder serve both UNets
        if not key.startswith("unet.") and key != "latent_scale":
            assert torch.equal(value, denoiser[key]), key
    assert math.isfinite(float(denoiser["unet.net.conv_in.weight"].sum()))
