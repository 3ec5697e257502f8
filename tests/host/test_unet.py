"""The denoiser and the widening of a Stable Diffusion 2 state dict."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from mmsr_edge.errors import BundleError
from mmsr_edge.models.presets import PRESETS, UNetConfig
from mmsr_edge.models.unet import UNet, build_unet, widen_conv_in

SD2_CONFIG = {  # unet/config.json of the published 512-pixel base model
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 1024,
    "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20),
    "layers_per_block": 2, "use_linear_projection": True,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip


def shapes(net: UNet2DConditionModel) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in net.state_dict().items()}


def test_sd2_preset_has_the_shapes_of_the_published_network() -> None:
    with torch.device("meta"):
        published = UNet2DConditionModel(**SD2_CONFIG)
        ours = build_unet(PRESETS["sd2"].unet, channels=4, dim=1024, latent_size=64)
    theirs, mine = shapes(published), shapes(ours)
    assert theirs.pop("conv_in.weight") == (320, 4, 3, 3)
    assert mine.pop("conv_in.weight") == (320, 8, 3, 3)
    assert mine == theirs
    assert sum(p.numel() for p in ours.parameters()) > 865e6


def test_nano_has_heads_of_32_channels() -> None:
    p = PRESETS["nano"]
    with torch.device("meta"):
        net = build_unet(p.unet, p.autoencoder.channels, p.dim, 64)
    layers = [m for n, m in net.named_modules() if n.endswith(("attn1", "attn2"))]
    assert layers and all(m.to_q.out_features // m.heads == 32 for m in layers)


@pytest.fixture(scope="module")
def narrow() -> UNet2DConditionModel:
    """SD2's layout at a twentieth of its width."""
    torch.manual_seed(0)
    small = {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": (2, 4, 4, 4)}
    small |= {"cross_attention_dim": 48, "sample_size": 16}
    return UNet2DConditionModel(**{**SD2_CONFIG, **small}).eval()


def wide(narrow: UNet2DConditionModel) -> UNet:
    sd2 = PRESETS["sd2"].unet
    config: UNetConfig = replace(sd2, block_out_channels=(32, 64, 64, 64), heads=(2, 4, 4, 4))
    net = UNet(config, channels=4, dim=48, latent_size=16).eval()
    net.net.load_state_dict(widen_conv_in(narrow.state_dict(), 8))
    return net


@torch.no_grad()
def test_a_widened_network_starts_equal_to_the_old_one(narrow: UNet2DConditionModel) -> None:
    net = wide(narrow)
    z, lr, context = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.randn(2, 128, 48)
    t = torch.tensor([3.0, 900.0])
    expected = narrow(z, t, encoder_hidden_states=context).sample
    out = net(torch.cat([z, lr], 1), t, context)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    # With weights for the new channels, the output differs.
    net.net.conv_in.weight[:, 4:] = 0.1
    assert not torch.allclose(net(torch.cat([z, lr], 1), t, context), expected, atol=1e-2)


def test_widening_is_idempotent_and_refuses_other_widths(narrow: UNet2DConditionModel) -> None:
    state = widen_conv_in(narrow.state_dict(), 8)
    assert torch.equal(widen_conv_in(state, 8)["conv_in.weight"], state["conv_in.weight"])
    with pytest.raises(BundleError, match="4 input channels; expected 5 or 10"):
        widen_conv_in(narrow.state_dict(), 10)
