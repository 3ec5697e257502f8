"""Release gates: each is passed by a model that does what it should, and fails a planted one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmsr_edge import Upscaler
from mmsr_edge.bundle import open_bundle
from mmsr_edge.errors import OptionError, ReleaseError
from mmsr_edge.models.checkpoint import open_checkpoint
from mmsr_edge.models.presets import preset
from mmsr_edge.sampler import make_schedule
from mmsr_edge.training import gate_runs, release
from mmsr_edge.training.data.tiles import Tiles
from mmsr_edge.training.gate_runs import choose, device_gates, measure, tile_options, unet_feeds
from mmsr_edge.training.gates import (
    LEVELS,
    Gate,
    MapTrial,
    context_gates,
    denoising_gates,
    dial_gates,
    gate_table,
    map_gates,
    require,
)
from mmsr_edge.training.regions import TEMPERATURES, DialEffect

ALPHAS = torch.from_numpy(make_schedule(preset("nano").sampler).alphas_cumprod)
Picture = NDArray[np.uint8]


def passed(gates: list[Gate]) -> list[bool]:
    return [gate.passed for gate in gates]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- The denoiser -------------------------------------------------------------------------------


def knows(z0: Tensor, share: float) -> Callable[[Tensor, int], Tensor]:
    """A denoiser that knows the clean latents to a share, and the rest of them not at all."""

    def predict(noisy: Tensor, t: int) -> Tensor:
        a = ALPHAS[t].float()
        guess = share * z0
        noise = (noisy - a.sqrt() * guess) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * guess

    return predict


def test_a_denoiser_passes_at_every_level() -> None:
    z0 = draw(4, 4, 16, 16)
    gates = denoising_gates(knows(z0, 1.0), z0, ALPHAS)
    assert [f"t = {t}" in gate.name for t, gate in zip(LEVELS, gates, strict=True)] == [True] * 5
    assert all(gate.value < 1e-3 for gate in gates)
    # A tenth of the variance is explained by a share of about .05: v is −z0 at pure noise.
    at_noise = denoising_gates(knows(z0, 0.5), z0, ALPHAS)[-1]
    assert at_noise.value == pytest.approx(0.25, abs=0.02) and at_noise.passed


@pytest.mark.parametrize("predict", [
    lambda noisy, t: torch.zeros_like(noisy),
    lambda noisy, t: torch.full_like(noisy, 0.3),
    lambda noisy, t: noisy,
    lambda noisy, t: torch.full_like(noisy, math.nan),
])  # fmt: skip
def test_a_network_that_does_not_denoise_fails(predict: Callable[[Tensor, int], Tensor]) -> None:
    gates = denoising_gates(predict, draw(4, 4, 16, 16), ALPHAS)
    assert not any(passed(gates[2:]))
    with pytest.raises(ReleaseError, match="t = 999"):
        require(gates)


def test_a_network_that_fails_at_one_level_fails() -> None:
    z0 = draw(4, 4, 16, 16)
    right = knows(z0, 1.0)
    gates = denoising_gates(
        lambda noisy, t: torch.zeros_like(noisy) if t == 249 else right(noisy, t), z0, ALPHAS
    )
    assert passed(gates) == [True, False, True, True, True]
    with pytest.raises(ReleaseError, match="1 of 5 release gates failed"):
        require(gates)


def test_the_target_is_what_the_network_predicts() -> None:
    z0 = draw(4, 4, 16, 16)
    assert passed(denoising_gates(lambda noisy, t: z0, z0, ALPHAS, "sample")) == [True] * 5
    assert not any(passed(denoising_gates(lambda noisy, t: z0, z0, ALPHAS))[1:])


# --- The context --------------------------------------------------------------------------------


def test_a_context_that_tells_pictures_apart_passes() -> None:
    share, cosine = context_gates(draw(16, 12, 8))
    assert share.value == pytest.approx(15 / 16, abs=0.05) and share.passed
    assert abs(cosine.value) < 0.05 and cosine.passed


def test_a_constant_context_fails() -> None:
    constant = draw(1, 12, 8).expand(16, -1, -1)
    assert passed(context_gates(constant)) == [False, True]
    almost = constant + 0.03 * draw(16, 12, 8, seed=1)  # nano 0.10.0: a share of .0012
    share, _ = context_gates(almost)
    assert share.value < 0.002 and not share.passed
    assert not context_gates(torch.zeros(16, 12, 8))[0].passed


def test_a_context_of_one_token_repeated_fails() -> None:
    repeated = draw(16, 1, 8).expand(-1, 12, -1) + 0.05 * draw(16, 12, 8, seed=1)
    share, cosine = context_gates(repeated)
    assert share.passed and cosine.value > 0.9 and not cosine.passed


# --- The dials ----------------------------------------------------------------------------------

GOOD = DialEffect(
    "depth", TEMPERATURES,
    energy=((60.0, 80.0, 100.0, 110.0, 120.0), (100.0, 100.0, 101.0, 102.0, 103.0)),
    moves=((0.0, 1.0, 2.0, 2.5, 3.0), (0.0, 0.1, 0.2, 0.3, 0.4)),
)  # fmt: skip


def test_a_dial_that_obeys_passes() -> None:
    moved, spilt, levels, backward = gates = dial_gates(GOOD)
    assert all(passed(gates))
    assert (moved.value, spilt.value) == pytest.approx((0.5, 0.03))
    assert (levels.value, backward.value) == (3.0, 0)
    assert "far half" in moved.name and "near half" in spilt.name
    assert "subject" in dial_gates(replace(GOOD, modality="segmentation"))[1].name


@pytest.mark.parametrize(("planted", "failing"), [
    ({"energy": ((90.0, 95.0, 100.0, 110.0, 120.0), GOOD.energy[1])}, 0),
    ({"energy": (GOOD.energy[0], (100.0, 101.0, 102.0, 106.0, 111.0))}, 1),
    ({"energy": (GOOD.energy[0], (111.0, 108.0, 106.0, 102.0, 100.0))}, 1),
    ({"moves": ((0.0, 0.5, 1.0, 1.5, 1.9), GOOD.moves[1])}, 2),
    ({"energy": ((60.0, 100.0, 80.0, 110.0, 120.0), GOOD.energy[1])}, 3),
    ({"energy": ((60.0, 80.0, 80.0, 110.0, 120.0), GOOD.energy[1])}, 3),
])  # fmt: skip
def test_a_dial_that_does_not_obey_fails(
    planted: dict[str, tuple[float, ...]], failing: int
) -> None:
    gates = dial_gates(replace(GOOD, **planted))  # type: ignore[arg-type]
    assert passed(gates) == [number != failing for number in range(4)]


# --- The maps -----------------------------------------------------------------------------------


def trials(
    gain: float, where: float, elsewhere: float, count: int = 8, side: int = 48
) -> list[MapTrial]:
    """Pictures that wrong maps change by `where` along their edges, by `elsewhere` beside them.

    The right result is `gain` grey levels nearer to the HR picture than the wrong one.
    """
    out = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        hr = rng.integers(64, 192, (side, side, 3)).astype(np.int16)
        own, other = np.zeros((2, side, side), bool)
        own[8], other[24] = True, True
        error = rng.normal(0, 8, hr.shape)
        right = hr + error
        wrong = right + np.sign(error) * gain
        along = np.zeros((side, side, 1))
        along[22:27] = 1
        wrong = wrong + rng.choice((-1, 1), hr.shape) * (where * along + elsewhere * (1 - along))
        pictures = (p.round().clip(0, 255).astype(np.uint8) for p in (hr, right, wrong))
        out.append(MapTrial(*pictures, own, other))
    return out


def test_maps_that_are_read_pass() -> None:
    better, placed = gates = map_gates(trials(gain=1, where=8, elsewhere=2))
    assert all(passed(gates)) and better.value > 2 and placed.value > 2


def test_maps_that_are_not_read_fail() -> None:
    same = [replace(t, wrong=t.right) for t in trials(1, 8, 2)]
    assert not any(passed(map_gates(same)))
    # Another picture's maps do as well: the gain is noise.
    swapped = [replace(t, right=t.wrong, wrong=t.right) if i % 2 else t
               for i, t in enumerate(trials(1, 8, 2))]  # fmt: skip
    better, placed = map_gates(swapped)
    assert not better.passed and placed.passed
    # They change the picture everywhere alike.
    better, placed = map_gates(trials(gain=1, where=4, elsewhere=4))
    assert better.passed and placed.value == pytest.approx(1, abs=0.1) and not placed.passed


# --- The table ----------------------------------------------------------------------------------


def test_limits_pass_themselves_and_nonsense_fails() -> None:
    for at_least in (True, False):
        assert Gate("", 0.5, 0.5, at_least).passed
        assert not Gate("", math.nan, 0.5, at_least).passed
        assert not Gate("", math.inf, 0.5, at_least).passed
    assert Gate("", 0.6, 0.5, True).passed and not Gate("", 0.6, 0.5, False).passed


def test_the_error_has_the_whole_table() -> None:
    gates = [Gate("one", 0.25, 0.5, True), Gate("another", 0.125, 0.5, False)]
    with pytest.raises(ReleaseError) as caught:
        require(gates)
    table = str(caught.value).splitlines()[1:]
    assert table == gate_table(gates).splitlines()
    assert table[0].split() == ["one", "0.2500", "≥", "0.5", "FAILED"]
    assert table[1].split() == ["another", "0.1250", "≤", "0.5"]
    require(gates[1:])
    with pytest.raises(ReleaseError):
        require([])


# --- A model at its gates -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    """Smooth random tiles of `micro`: 18 of 9 photographs."""
    g = torch.Generator().manual_seed(3)

    def smooth(channels: int, side: int) -> Tensor:
        coarse = torch.rand((18, channels, 6, 6), generator=g)
        return torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1) * 255

    hr = smooth(3, 128).byte()
    depth = smooth(2, 256).byte()
    classes = torch.where(smooth(2, 256) > 128, 65, 2).byte()  # the subject is class 1
    edges = (smooth(2, 256).diff(dim=-1, append=torch.zeros(18, 2, 256, 1)).abs() > 5).byte() * 255
    lr = torch.nn.functional.avg_pool2d(hr.float(), 4).byte()
    words = [(f"tag{i}", f"better{i}") for i in range(18)]
    return Tiles(hr, lr, depth, classes, edges, torch.rand((18, 3)), torch.arange(18) // 2, words)


def test_tiles_of_many_photographs_are_chosen(tiles: Tiles) -> None:
    rows = choose(tiles, 16)
    assert rows[:9] == list(range(0, 18, 2)) and rows[9:] == list(range(1, 15, 2))
    with pytest.raises(OptionError, match="need 19 tiles, and there are 18"):
        choose(tiles, 19)


def test_the_unets_inputs_are_taken_on_their_way(checkpoint: Path, tiles: Tiles) -> None:
    model = Upscaler(checkpoint, "torch")
    before = model.pipeline
    component, feeds = unet_feeds(model, tiles, 3, steps=2)
    assert component == "unet" and model.pipeline is before
    networks = open_checkpoint(checkpoint).networks
    lr = tiles.lr[3:4].float() / 127.5 - 1
    with torch.no_grad():
        latent = networks["lr_encoder"](lr)
    np.testing.assert_allclose(feeds["latent"][:, 4:], latent, atol=1e-5)
    # Every map is part of the context, and the words are the tile's.
    for name in ("depth", "segmentation", "edges", "prompt"):
        changed = replace_option(tiles, name)
        _, other = unet_feeds(model, changed, 3, steps=2)
        assert not np.array_equal(feeds["context"], other["context"]), name
    _, again = unet_feeds(model, tiles, 3, steps=2)
    np.testing.assert_array_equal(feeds["context"], again["context"])


def replace_option(tiles: Tiles, name: str) -> Tiles:
    """The tiles with one modality of all tiles mirrored, or other words."""
    columns = dict(vars(tiles))
    if name == "prompt":
        columns["words"] = [("other words", "")] * len(tiles)
    else:
        key = {"segmentation": "classes"}.get(name, name)
        columns[key] = columns[key].flip(-2)
    return Tiles(**columns)


def test_maps_of_a_tile_are_given_as_they_are(checkpoint: Path, tiles: Tiles) -> None:
    model = Upscaler(checkpoint, "torch")
    options = tile_options(model, tiles, 0, sharp=True, of=5)
    assert options["prompt"] == "tag0"  # its own words, whoever's the maps are
    assert np.array_equal(options["edges"], tiles.edges[5, 1])
    result = model(gate_runs.pixels(tiles.lr[0]), **options)
    kept = {name: np.asarray(image) for name, image in result.maps.items() if image is not None}
    assert np.abs(kept["depth"].astype(int) - tiles.depth[5, 1].numpy()).max() <= 1
    for row in range(3):
        expected = (tiles.maps(torch.tensor([5]), torch.ones(1, 3).long())[0, 1, row] + 1) * 127.5
        assert np.abs(kept["segmentation"][..., row] - expected.numpy()).max() < 1
    blank = Tiles(**{**vars(tiles), "depth": torch.zeros_like(tiles.depth)})
    assert tile_options(model, blank, 0, sharp=False)["depth"] is None


@pytest.mark.parametrize("component", ["unet", "diffusion_unet"])
def test_each_unet_is_measured_on_what_it_models(component: str, checkpoint: Path) -> None:
    """The student models (z_hr − z_lr) / s, a separate diffusion z_hr / σ."""
    manifest = open_bundle(checkpoint).manifest
    spec = replace(manifest.latent, residual_scale=(2.0,) * 4, diffusion_scale=(0.5,) * 4)
    z_hr, z_lr = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1)
    models = z_hr / 0.5 if component == "diffusion_unet" else (z_hr - z_lr) / 2
    asked: list[str] = []

    def run(name: str, **feeds: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        row = len(asked) % 2
        asked.append(name)
        assert feeds["context"][0, 0, 0] == row  # the tile's own
        np.testing.assert_array_equal(feeds["latent"][:, 4:], z_lr[row : row + 1])
        noisy, t = torch.from_numpy(feeds["latent"][:, :4]), int(feeds["timestep"][0])
        prediction = knows(models[row : row + 1], 1.0)(noisy, t)
        return {"prediction": prediction.numpy()}

    model: Any = SimpleNamespace(
        bundle=SimpleNamespace(manifest=replace(manifest, latent=spec)),
        pipeline=SimpleNamespace(
            schedule=make_schedule(manifest.sampler), start=lambda _: SimpleNamespace(run=run)
        ),
    )
    feeds = [
        (component, {"latent": torch.cat([draw(1, 4, 8, 8, seed=9), z_lr[i : i + 1]], 1).numpy(),
                     "context": np.full((1, 2, 3), i, np.float32)})
        for i in range(2)
    ]  # fmt: skip
    latents = iter(z_hr)
    hr = torch.zeros((2, 3, 64, 64), dtype=torch.uint8)
    gates = gate_runs.denoiser(model, feeds, lambda picture: next(latents)[None], hr)
    assert set(asked) == {component} and len(asked) == 2 * len(LEVELS)
    assert all(gate.value < 1e-3 for gate in gates), gate_table(gates)


def test_random_weights_are_measured_and_not_released(
    checkpoint: Path, tiles: Tiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_runs, "DIAL_TILES", 2)  # seconds instead of a minute
    gates = measure(checkpoint, tiles)
    kinds = [gate.name.split(":")[0].split(" ")[0] for gate in gates]
    assert [kinds.count(k) for k in ("denoiser", "context", "HR")] == [5, 2, 2]
    assert sum(name.startswith("τ(depth)") for name in kinds) == 4
    assert sum(name.startswith("τ(segmentation)") for name in kinds) == 4
    assert all(math.isfinite(gate.value) for gate in gates)
    assert sum(not gate.passed for gate in gates) >= 5

    written = []

    def write(out: Path) -> Path:
        written.append(out)
        return checkpoint

    monkeypatch.setattr(release, "measure", lambda root, given: gates)
    with pytest.raises(ReleaseError, match=r"of 17 release gates failed.*train on"):
        release.release(write, tmp_path / "out", tiles)
    assert len(written) == 1 and written[0] != tmp_path / "out"


def test_a_model_that_passes_is_written(
    tiles: Tiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = []

    def write(out: Path) -> Path:
        written.append(out)
        return out

    good = [Gate("denoiser", 0.5, 0.9, at_least=False)]
    monkeypatch.setattr(release, "measure", lambda root, given: good)
    release.release(write, tmp_path / "nano", tiles)
    # The copy that was measured lay beside, where a variant finds what it shares.
    assert written[0].parent == tmp_path and written[0].name.startswith(".nano-")
    assert written[1:] == [tmp_path / "nano"] and not written[0].exists()
    assert gate_table(good) in capsys.readouterr().out
    release.release(write, tmp_path / "micro", None)
    assert written[2:] == [tmp_path / "micro"]


def test_weights_without_tiles_are_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["release", "--preset", "nano", "--version", "1", "--modalities", "x"]
    for name in ("autoencoder", "tokenizer", "diffusion", "photos", "out"):
        command += [f"--{name}", "x"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(OptionError, match="--tiles is missing; 'nano' is released only if"):
        release.main()
    monkeypatch.setattr("sys.argv", [*command, "--accept-failed-gates"])
    with pytest.raises(SystemExit):  # there is no such way
        release.main()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that need many pictures are only named, not measured."""

    def named(name: str) -> list[Gate]:
        return [Gate(name, 1.0, 1.0, at_least=True)]

    monkeypatch.setattr(gate_runs, "dial", lambda model, tiles, name: named(f"τ({name})"))
    monkeypatch.setattr(gate_runs, "maps", lambda model, tiles: named("maps"))
    monkeypatch.setattr(gate_runs, "denoiser", lambda *_: named("denoiser"))


@pytest.mark.usefixtures("quick")
def test_a_preset_without_latents_has_no_gates_for_them(
    checkpoint: Path, tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    micro = preset("micro")
    bare = replace(micro, connector=replace(micro.connector, latents=0))
    monkeypatch.setattr(gate_runs, "preset", lambda name: bare)
    assert [gate.name for gate in measure(checkpoint, tiles)] == ["denoiser", "maps"]


@pytest.mark.usefixtures("quick")
def test_a_device_measures_all_but_the_denoiser(checkpoint: Path, tiles: Tiles) -> None:
    gates = device_gates(Upscaler(checkpoint, "torch"), tiles)
    kinds = [gate.name.split(":")[0] for gate in gates]
    assert kinds == ["context", "context", "τ(depth)", "τ(segmentation)", "maps"]
