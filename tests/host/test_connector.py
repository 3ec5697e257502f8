"""The MMLC: its cost, its missing modalities, its temperature (Sec. 3.1-3.2, Eq. 5)."""

from __future__ import annotations

import csv
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmsr_edge.bundle import MODALITIES
from mmsr_edge.models.connector import Attention, Connector, attention
from mmsr_edge.models.presets import PRESETS, ConnectorConfig, preset
from mmsr_edge.training.stage_networks import load_stage_networks

DIM, WIDTH = 48, 32


@pytest.fixture
def connector() -> Connector:
    torch.manual_seed(0)
    return Connector(ConnectorConfig(latents=16, heads=4, blocks=2), DIM, WIDTH).eval()


def feeds(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    maps = {
        f"{m}_tokens": torch.randn(1, 256, WIDTH, generator=g)
        for m in ("depth", "segmentation", "edge")
    }
    text = torch.randn(1, 77, DIM, generator=g)
    return {"text": text, **maps, "present": torch.ones(1, 4), "temperature": torch.ones(1, 4)}


def token_input(modality: str) -> str:
    return {"text": "text", "edges": "edge_tokens"}.get(modality, f"{modality}_tokens")


def test_attention_at_temperature_1_is_torchs_own() -> None:
    q, k, v = (torch.randn(2, 4, n, 8) for n in (5, 9, 9))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attention(q, k, v, 8**0.5), expected)


def test_context_has_one_token_per_latent(connector: Connector) -> None:
    assert connector(**feeds()).shape == (1, 16, DIM)
    assert PRESETS["nano"].connector.latents == PRESETS["sd2"].connector.latents == 128


def test_without_latents_the_context_is_the_tokens(connector: Connector) -> None:
    bare = Connector(ConnectorConfig(latents=0, heads=4, blocks=0), DIM, WIDTH).eval()
    own = bare.state_dict()
    bare.load_state_dict({k: v for k, v in connector.state_dict().items() if k in own})
    feed = feeds()
    feed["present"][0, 2] = 0
    maps = [feed[f"{m}_tokens"] for m in ("depth", "segmentation", "edge")]
    context = bare(**feed)
    torch.testing.assert_close(context, connector.tokens([feed["text"], *maps], feed["present"]))
    p = preset("nano-bare")
    assert context.shape == (1, p.context_tokens, DIM) and p.context_tokens == 77 + 3 * 256
    assert preset("nano").context_tokens == 128


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_absent_modality_has_exactly_no_influence(connector: Connector, modality: str) -> None:
    feed = feeds()
    feed["present"][0, MODALITIES.index(modality)] = 0
    other = {**feed, token_input(modality): torch.full_like(feed[token_input(modality)], 1e3)}
    assert torch.equal(connector(**feed), connector(**other))


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_present_modality_has_influence(connector: Connector, modality: str) -> None:
    feed = feeds()
    other = {**feed, token_input(modality): feeds(1)[token_input(modality)]}
    assert not torch.allclose(connector(**feed), connector(**other), atol=1e-4)
    without = {**feed, "present": feed["present"].clone()}
    without["present"][0, MODALITIES.index(modality)] = 0
    assert not torch.allclose(connector(**feed), connector(**without), atol=1e-4)


def test_cost_is_linear_in_the_number_of_tokens() -> None:
    layer = Attention(DIM, 4).eval()
    latents = torch.randn(1, 16, DIM)

    def flops(tokens: int) -> int:
        with FlopCounterMode(display=False) as counter:
            layer(latents, torch.randn(1, tokens, DIM))
        return counter.get_total_flops()

    a, b, c = flops(256), flops(512), flops(1024)
    assert c - b == 2 * (b - a)
    # Self-attention over the same tokens grows faster.
    layer_flops = []
    for n in (256, 512, 1024):
        x = torch.randn(1, n, DIM)
        with FlopCounterMode(display=False) as counter:
            layer(x, x)
        layer_flops.append(counter.get_total_flops())
    assert layer_flops[2] - layer_flops[1] > 2 * (layer_flops[1] - layer_flops[0])


def _weights(connector: Connector, temperature: float, modality: int) -> Tensor:
    """Attention [heads, N, M_m] of the latents to one modality's tokens, normalised to sum 1."""
    feed = feeds()
    names = ["text", "depth_tokens", "segmentation_tokens", "edge_tokens"]
    tokens = connector.tokens([feed[n] for n in names], feed["present"])
    start = sum(connector.lengths[:modality])
    picked = torch.zeros(1, tokens.shape[1], connector.lengths[modality])
    picked[0, start : start + connector.lengths[modality]] = torch.eye(connector.lengths[modality])
    cross = connector.cross.attention
    q = cross.to_q(connector.cross.norm1(connector.latents[None]))
    k = cross.to_k(tokens)
    q, k = (t.unflatten(-1, (cross.heads, -1)).transpose(1, 2) for t in (q, k))
    delta = torch.ones(1, tokens.shape[1])
    delta[:, start : start + connector.lengths[modality]] = temperature
    attended = attention(
        q, k, picked[:, None].expand(1, cross.heads, -1, -1), delta[:, None, None] * cross.root_d
    )
    return (attended / attended.sum(-1, keepdim=True))[0]


@pytest.mark.parametrize("modality", range(4))
def test_temperature_flattens_when_large_and_sharpens_when_small(
    connector: Connector, modality: int
) -> None:
    @torch.no_grad()
    def entropy(temperature: float) -> float:
        p = _weights(connector, temperature, modality)
        return float(-(p * p.clamp_min(1e-30).log()).sum(-1).mean())

    values = [entropy(t) for t in (0.05, 0.4, 1.0, 10.0, 1e4)]
    assert values == sorted(values)
    uniform = torch.log(torch.tensor(float(connector.lengths[modality])))
    assert values[-1] == pytest.approx(float(uniform), abs=1e-3)
    assert values[0] < 0.7 * values[2]


@pytest.mark.parametrize("modality", MODALITIES)
def test_temperature_of_one_modality_flattens_it_and_leaves_the_others(
    connector: Connector, modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attention weights of a forward pass, normalised within each modality."""
    calls: list[tuple[Tensor, ...]] = []

    def recording(q: Tensor, k: Tensor, v: Tensor, delta: Tensor) -> Tensor:
        calls.append((q, k, delta))
        return attention(q, k, v, delta)

    @torch.no_grad()
    def weights(temperature: float) -> dict[str, Tensor]:
        feed = feeds()
        feed["temperature"][0, MODALITIES.index(modality)] = temperature
        calls.clear()
        connector(**feed)
        q, k, delta = calls[0]  # the cross-attention comes first
        whole = attention(q, k, torch.eye(k.shape[2]).expand(1, q.shape[1], -1, -1), delta)
        parts = whole.split(list(connector.lengths), dim=-1)
        return {m: p / p.sum(-1, keepdim=True) for m, p in zip(MODALITIES, parts, strict=True)}

    monkeypatch.setattr("mmsr_edge.models.connector.attention", recording)
    plain, hot = weights(1.0), weights(10.0)
    for name in MODALITIES:
        if name == modality:
            assert hot[name].amax(-1).mean() < 0.7 * plain[name].amax(-1).mean()
        else:
            torch.testing.assert_close(hot[name], plain[name])


def test_the_report_compares_both_contexts(checkpoint: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "connector.py"
    out = tmp_path / "connector.csv"
    command = [sys.executable, str(script), "--model", str(checkpoint), "--out", str(out)]
    subprocess.run([*command, "--repeats", "1"], check=True, timeout=120, capture_output=True)
    with out.open() as file:
        condensed, bare = csv.DictReader(file)
    latents = PRESETS["micro"].connector.latents
    assert (condensed["way"], int(condensed["context_tokens"])) == ("with MMLC", latents)
    assert (bare["way"], int(bare["context_tokens"])) == ("without", 77 + 3 * 256)
    assert 0 < float(condensed["gflop"]) < float(bare["gflop"])
    assert float(condensed["milliseconds"]) > 0 and float(bare["milliseconds"]) > 0


def test_without_the_mmlc_the_other_weights_are_those_of_the_run(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = ConnectorConfig(latents=0, heads=2, blocks=0)
    bare = replace(PRESETS["micro"], name="micro-bare", connector=none)
    monkeypatch.setitem(PRESETS, "micro-bare", bare)
    args = Namespace(autoencoder=checkpoint, tokenizer=checkpoint, diffusion=checkpoint)
    cpu = torch.device("cpu")
    ours, without = (load_stage_networks(args, n, cpu).denoiser for n in ("micro", "micro-bare"))
    assert not any(k.startswith("connector.cross") for k in without.state_dict())
    for key, value in without.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key
    ids, noisy = torch.zeros(1, 77, dtype=torch.long), torch.zeros(1, 4, 8, 8)
    tokens, present = torch.zeros(1, 3, 256, dtype=torch.long), torch.ones(1, 4)
    latent = torch.cat([noisy, noisy], 1)
    contexts = [net.context(ids, tokens, present) for net in (ours, without)]
    for net, context in zip((ours, without), contexts, strict=True):
        assert net.unet(latent, torch.zeros(1), context).shape == noisy.shape
    assert [c.shape for c in contexts] == [(1, 16, 32), (1, 845, 32)]
