"""Fake quantization: the results of int8 kernels, and gradients that pass through."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmsr_edge.converters.compress import round_weights
from mmsr_edge.converters.options import read_settings
from mmsr_edge.errors import OptionError
from mmsr_edge.models.decoder import SlimDecoder
from mmsr_edge.models.networks import build_component
from mmsr_edge.training.fake_quantization import (
    FakeQuantizedConv2d,
    fake_quantize_activation,
    fake_quantize_layers,
    fake_quantize_weight,
)
from mmsr_edge.training.train_decoder import DECODER_FLOAT as FLOAT

WEIGHTS = Path(__file__).parents[2] / "weights"


def test_weights_are_quantized_as_by_the_export() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[4] = 0
    q, scales = round_weights(weight.numpy(), 0)
    wanted = q * scales.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(fake_quantize_weight(weight).numpy(), wanted, atol=1e-6)


def test_a_quantized_convolution_equals_integer_arithmetic() -> None:
    """Against sums of integers less the zero point, as a QLinearConv accumulates them."""
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3, padding=1)
    conv = FakeQuantizedConv2d(plain)
    assert conv.state_dict().keys() == plain.state_dict().keys()
    x = torch.rand(2, 3, 8, 8) * 3 - 1
    got = conv(x).detach().numpy()
    least, greatest = float(x.min()), float(x.max())
    step = (greatest - least) / 255
    zero = round(-least / step)
    integers = (np.clip(np.round(x.numpy() / step) + zero, 0, 255) - zero).astype(np.float64)
    q, scales = round_weights(plain.weight.detach().numpy(), 0)
    sums = F.conv2d(torch.from_numpy(integers), torch.from_numpy(q.astype(np.float64)), padding=1)
    assert plain.bias is not None
    bias = plain.bias.detach().numpy()[:, None, None]
    wanted = sums.numpy() * (scales[:, None, None] * step) + bias
    step = (wanted.max() - wanted.min()) / 255
    zero = np.round(-wanted.min() / step)
    wanted = (np.clip(np.round(wanted / step) + zero, 0, 255) - zero) * step
    # All but a few, which lie halfway between two steps of the output.
    assert (np.abs(got - wanted) < 1e-4).mean() > 0.99
    assert np.abs(got - wanted).max() < 1.01 * step
    assert np.abs(got - plain(x).detach().numpy()).max() > step  # quantization changes the result


def test_gradients_pass_inside_the_range_and_not_outside() -> None:
    x = torch.tensor([-5.0, -0.9, 0.3, 1.9, 7.0], requires_grad=True)
    fake_quantize_activation(x, torch.tensor(-1.0), torch.tensor(2.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_ranges_follow_the_batches_only_in_training() -> None:
    conv = FakeQuantizedConv2d(nn.Conv2d(1, 1, 1)).train()
    conv(torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4))
    for _ in range(400):
        conv(torch.linspace(-2, 4, 16).reshape(1, 1, 4, 4))
    assert float(conv.input_range.least) == pytest.approx(-2, abs=0.01)
    assert float(conv.input_range.greatest) == pytest.approx(4, abs=0.01)
    conv.eval()(torch.full((1, 1, 4, 4), 100.0))
    assert float(conv.input_range.greatest) < 5


@pytest.mark.parametrize("name", ["nano", "small"])
def test_all_layers_of_the_decoder_are_quantized_but_the_named_ones(name: str) -> None:
    decoder = build_component("decoder", name)
    assert isinstance(decoder, SlimDecoder)
    keys = decoder.state_dict().keys()
    quantized = fake_quantize_layers(decoder, FLOAT[name])
    assert decoder.state_dict().keys() == keys
    assert "compact.body.8" in quantized and "quarter.0.conv1" in quantized
    assert not set(quantized) & set(FLOAT[name])
    kept = {name for name, m in decoder.named_modules() if type(m) is nn.Conv2d}
    assert kept == set(FLOAT[name])
    # The export keeps the same layers in float.
    patterns = read_settings(WEIGHTS / f"{name}.quantization.json")["decoder"]["keep_float"]
    matched = {n for n in (*quantized, *kept) if any(re.search(p, n) for p in patterns)}
    assert matched == kept
    with pytest.raises(OptionError, match=r"'compact\.nothing'; choose from"):
        fake_quantize_layers(build_component("decoder", "nano"), ("compact.nothing",))
    with pytest.raises(OptionError, match="only convolutions without groups and dilation"):
        FakeQuantizedConv2d(nn.Conv2d(4, 4, 3, groups=4))
