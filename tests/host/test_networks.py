"""Autoencoder, tokenizer, text encoder and the table of presets."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel

from mmsr_edge.bundle import ALIGNED
from mmsr_edge.errors import OptionError
from mmsr_edge.models import PRESETS, build_component, build_networks, preset, preset_components
from mmsr_edge.models.diffusion_unet import DiffusionUNet
from mmsr_edge.models.presets import TokenizerConfig
from mmsr_edge.models.tokenizer import Tokenizer, nearest_codes
from mmsr_edge.models.unet import UNet
from mmsr_edge.sampler import make_schedule
from mmsr_edge.training.denoiser import diffuse


@pytest.fixture(scope="module")
def micro() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return build_networks("micro")


@torch.no_grad()
def test_shapes_are_the_contracts(micro: dict[str, torch.nn.Module]) -> None:
    p = PRESETS["micro"]
    c, n, latent = p.autoencoder.channels, p.connector.latents, p.tile // 2
    hr, lr = torch.rand(1, 3, 4 * p.tile, 4 * p.tile), torch.rand(1, 3, p.tile, p.tile)
    z, z_lr = micro["hr_encoder"](hr), micro["lr_encoder"](lr)
    assert z.shape == z_lr.shape == (1, c, latent, latent)
    assert micro["decoder"](z, lr).shape == hr.shape
    tokens, indices = micro["tokenizer"](torch.rand(1, 3, 256, 256))
    assert tokens.shape == (1, 256, 256) and indices.shape == (1, 256)
    text = micro["text_encoder"](torch.randint(0, 64, (1, 77)))
    assert text.shape == (1, 77, p.dim)
    context = micro["connector"](text, tokens, tokens, tokens, torch.ones(1, 4), torch.ones(1, 4))
    assert context.shape == (1, n, p.dim)
    out = micro["unet"](torch.cat([z, z_lr], 1), torch.tensor([10.0]), context)
    assert out.shape == z.shape


def fresh_decoder() -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A decoder of `micro` with fresh weights, and a latent and LR picture for it."""
    torch.manual_seed(0)
    decoder = build_component("decoder", "micro")
    return decoder, torch.randn(1, 4, 16, 16), torch.rand(1, 3, 32, 32) * 2 - 1


@torch.no_grad()
def test_a_decoder_is_shown_maps_where_they_are(micro: dict[str, torch.nn.Module]) -> None:
    """Fresh weights change nothing; others do at the place shown, within the receptive field."""
    decoder, latent, lr = fresh_decoder()
    aligned, levels = torch.zeros(1, ALIGNED, 16, 16), torch.tensor([[0.3, 0, 0.8, 1, 0, 1, 0, 0]])
    aligned[..., 2, 3] = 1
    aligned[:, -3:] = 0  # the dials
    plain = decoder(latent, lr)
    assert torch.equal(decoder(latent, lr, levels, aligned), plain)
    decoder.compact.shown.weight.normal_(std=0.1)
    nothing = decoder(latent, lr, None, torch.zeros_like(aligned))
    torch.testing.assert_close(nothing, plain)
    moved = (decoder(latent, lr, None, aligned) - plain).abs().amax(1)[0]
    aligned[:, :4] *= -1
    assert torch.equal((decoder(latent, lr, None, aligned) - plain).abs().amax(1)[0], moved)
    assert moved[16:24, 24:32].min() > 1e-5 and moved[80:].max() == 0 == moved[:, 88:].max()
    decoder.compact.told[2].weight.normal_(std=0.1)
    assert (decoder(latent, lr, levels, aligned) - plain).abs().amax(1).min() > 1e-5


@torch.no_grad()
def test_detail_is_drawn_along_edges_and_goes_with_softness() -> None:
    decoder, latent, lr = fresh_decoder()
    aligned = torch.zeros(1, ALIGNED, 16, 16)
    plain = decoder(latent, lr)
    decoder.detail.out.weight.normal_(std=0.1)
    torch.testing.assert_close(decoder(latent, lr, None, aligned), plain)
    aligned[:, 4:20, 2, 3] = 1
    drawn = decoder(latent, lr, None, aligned) - plain
    moved = drawn.abs().amax(1)[0]
    assert moved[16:24, 24:32].min() > 1e-5 and moved[40:].max() == 0 == moved[:, 48:].max()
    aligned[:, -3] = 1  # as soft as can be
    soft = decoder(latent, lr, None, aligned)
    aligned[:, 4:20] = 0
    torch.testing.assert_close(decoder(latent, lr, None, aligned), soft)
    aligned[:, -3], aligned[:, 4:20, 2, 3] = -0.5, 1
    crisp = decoder(latent, lr, None, aligned)
    aligned[:, 4:20] = 0
    crisp -= decoder(latent, lr, None, aligned)
    torch.testing.assert_close(crisp, 1.5 * drawn, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_what_is_not_told_stays_in_proportion() -> None:
    decoder, latent, lr = fresh_decoder()
    aligned = torch.rand(1, ALIGNED, 16, 16)
    aligned[:, -3:] = 0

    def keeping(noise: float, blur: float) -> Tensor:
        levels = torch.tensor([[0.3, 0, 0.8, 1, 0, 1, noise, blur]])
        return decoder(latent, lr, levels, aligned)

    still = keeping(0, 0)
    assert torch.equal(keeping(1, -0.5), still)  # fresh weights
    decoder.kept.weight.normal_(std=0.1)
    assert torch.equal(keeping(0, 0), still)
    noise, blur = keeping(1, 0) - still, keeping(0, 1) - still
    assert min(noise.abs().mean(), blur.abs().mean()) > 1e-3
    torch.testing.assert_close(keeping(0.25, -0.5) - still, 0.25 * noise - 0.5 * blur)
    # More noise than there is: softer, as by a dial of the same size.
    aligned[:, -1] = 0.5
    dialled = keeping(0, 0)
    aligned[:, -1] = 0
    torch.testing.assert_close(keeping(-0.5, 0), dialled)


@torch.no_grad()
def test_dials_move_the_picture_in_proportion() -> None:
    decoder, latent, lr = fresh_decoder()
    aligned = torch.rand(1, ALIGNED, 16, 16)

    def turned(depth: float, segmentation: float = 0.0) -> Tensor:
        aligned[:, -3:] = 0
        aligned[:, -3, 3:6, 5:8], aligned[:, -2, 3:6, 5:8] = depth, segmentation
        return decoder(latent, lr, None, aligned)

    still = turned(0)
    aligned[:, -3] = 1
    bilinear = F.interpolate(lr, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(decoder(latent, lr, None, aligned), bilinear)  # where it begins
    for conv in decoder.refocus:
        conv.weight.normal_(std=0.1)
    assert torch.equal(turned(0), still)
    soft, crisp, half = turned(1) - still, turned(-0.5) - still, turned(0.5) - still
    torch.testing.assert_close(crisp, -soft / 2, atol=1e-6, rtol=1e-4)
    # Two dials multiply what they leave, as the gains in training do: 1 − (1 − .5)(1 − .5).
    both = turned(0.5, 0.5) - still
    torch.testing.assert_close(both, 1.5 * half, atol=1e-6, rtol=1e-4)
    assert soft[..., 28:44, 44:60].abs().amax(1).min() > 1e-6
    far = torch.ones(128, 128, dtype=torch.bool)
    far[16:56, 32:72] = False
    assert soft[0, :, far].abs().max() == 0


@torch.no_grad()
def test_a_diffusion_predicts_v_of_the_latent_from_a_noisy_residual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a network that knows the residual's velocity, v is exact; `weight` scales an error."""
    torch.manual_seed(0)
    unet = build_component("diffusion_unet", "micro")
    assert isinstance(unet, DiffusionUNet)
    s, sigma = torch.tensor([0.1, 0.3, 0.5, 0.8]), torch.tensor([0.9, 1.0, 1.4, 0.7])
    unet.relate(s, sigma)
    s, sigma = s[:, None, None], sigma[:, None, None]
    z_lr, r, noise = torch.randn(3, 4, 4, 16, 16)
    t = torch.tensor([3.0, 250.0, 600.0, 999.0])
    a = torch.from_numpy(make_schedule(PRESETS["micro"].sampler).alphas_cumprod).float()
    a = a[t.long()][:, None, None, None]
    noisy, v = diffuse((z_lr + s * r) / sigma, a, noise)
    # The residual r at the same ratio of signal to noise: √ᾱ·(s/σ) to √(1−ᾱ).
    signal = a * (s / sigma) ** 2
    of_residual = diffuse(r, signal / (signal + 1 - a), noise)[1]
    seen = []

    def known(self: UNet, latent: Tensor, *_: object) -> Tensor:
        seen.append(latent)
        return of_residual + error

    monkeypatch.setattr(UNet, "forward", known)
    latent, context = torch.cat([noisy, z_lr], 1), torch.zeros(4, 16, 32)
    error = torch.zeros(())
    torch.testing.assert_close(unet(latent, t, context), v, atol=1e-5, rtol=1e-5)
    given = diffuse(r, signal / (signal + 1 - a), noise)[0]
    torch.testing.assert_close(seen[0], torch.cat([given, z_lr], 1), atol=1e-4, rtol=1e-4)
    error = torch.ones(())
    moved = unet(latent, t, context) - v
    torch.testing.assert_close(moved, unet.weight(t).expand_as(v), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["slim", "vqgan"])
def test_tokens_are_the_nearest_codes_as_in_diffusers(kind: str) -> None:
    torch.manual_seed(0)
    vqgan = TokenizerConfig((8, 8, 8, 16, 16), layers_per_block=1, codes=32, norm_groups=4)
    tokenizer = Tokenizer(PRESETS["micro"].tokenizer if kind == "slim" else vqgan)
    image = torch.rand(2, 3, 256, 256) * 2 - 1
    features = tokenizer.features(image).transpose(1, 2).unflatten(2, (16, 16))
    # The codebook's own spacing is far below that of features; take some of them as codes.
    codebook = tokenizer.vq.quantize.embedding.weight
    codebook.copy_(features.flatten(2)[0].T[:: 256 // len(codebook)])
    reference = VectorQuantizer(*codebook.shape, beta=0.25)
    reference.embedding.weight.data.copy_(codebook)
    expected, _, (_, _, indices) = reference(features)
    tokens, ours = tokenizer(image)
    assert torch.equal(ours.flatten(), indices.flatten())
    assert len(indices.unique()) > 8
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_features_of_the_slim_tokenizer_have_unit_scale() -> None:
    tokenizer = Tokenizer(PRESETS["micro"].tokenizer)
    features = tokenizer.features(5 * torch.randn(1, 3, 256, 256))
    torch.testing.assert_close(features.square().mean(-1), torch.ones(1, 256))


def test_nearest_codes_agree_with_cdist() -> None:
    features, codes = torch.randn(50, 8), torch.randn(20, 8)
    assert torch.equal(nearest_codes(features, codes), torch.cdist(features, codes).argmin(1))


@torch.no_grad()
def test_text_encoder_is_clips(micro: dict[str, torch.nn.Module]) -> None:
    inner = micro["text_encoder"].model
    assert isinstance(inner, CLIPTextModel)
    a, b = torch.full((1, 77), 5), torch.full((1, 77), 5)
    b[0, 40:] = 6
    # CLIP's attention is causal: later tokens do not change earlier outputs.
    out_a, out_b = micro["text_encoder"](a), micro["text_encoder"](b)
    torch.testing.assert_close(out_a[:, :40], out_b[:, :40])
    assert not torch.allclose(out_a[:, 40:], out_b[:, 40:])


def test_presets_are_looked_up_and_refused_by_name() -> None:
    assert preset("nano").name == "nano"
    with pytest.raises(OptionError, match="'nanno'; there are micro, nano, sd2"):
        preset("nanno")
    with pytest.raises(OptionError, match="unknown component 'vae'"):
        build_component("vae", "micro")


def test_the_paper_size_preset_follows_the_paper() -> None:
    p = PRESETS["sd2"]
    assert (p.tokenizer.codes, p.tokenizer.width, p.dim) == (1024, 256, 1024)
    with torch.device("meta"):
        sizes = {
            n: sum(q.numel() for q in build_component(n, "sd2").parameters())
            for n in preset_components(p)
            if n != "unet"
        }
    assert sizes["text_encoder"] == pytest.approx(
        340e6, rel=0.02
    )  # SD2's OpenCLIP ViT-H text tower
