"""Fake quantization to 8 bits, for quantization-aware training.

The forward pass quantizes as the export does (see `converters.quantize`); the backward pass does
not (the straight-through estimator; Jacob et al. 2018, Sec. 3):

    x̂ = s·(clamp(round(x / s) + o, 0, 255) - o),   ∂x̂/∂x = 1 inside the range, else 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError

LEVELS = 255
"""Steps between the least and the greatest 8-bit value."""
RANGE_UPDATE = 0.02
"""Weight of the newest batch in the moving average of an activation range."""


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """Weights [O, ...] fake-quantized to int8, symmetric, one scale per output channel."""
    largest = weight.detach().abs().amax(tuple(range(1, weight.ndim)))
    scale = (largest / (LEVELS // 2)).clamp_min(torch.finfo(torch.float32).tiny)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def fake_quantize_activation(x: Tensor, least: Tensor, greatest: Tensor) -> Tensor:
    """Activations of any shape, fake-quantized to uint8 in [least, greatest], widened to hold 0."""
    low, high = least.clamp_max(0), greatest.clamp_min(0)
    scale = ((high - low) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    zero = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, LEVELS)


class ActivationRange(nn.Module):
    """Fake quantization of activations, in a range tracked while training.

    `least` and `greatest` are moving averages of the batches' extremes.
    """

    least: Tensor
    greatest: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("least", "greatest"):  # not saved: a few batches restore them
            self.register_buffer(name, torch.full((), torch.nan), persistent=False)

    @torch.no_grad()
    def _update_range(self, x: Tensor) -> None:
        for bound, new in ((self.least, x.amin()), (self.greatest, x.amax())):
            bound.copy_(torch.where(bound.isnan(), new, bound.lerp(new, RANGE_UPDATE)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.training or self.least.isnan():
            self._update_range(x)
        return fake_quantize_activation(x, self.least, self.greatest)


class FakeQuantizedConv2d(nn.Conv2d):
    """A convolution with fake quantization of its weights, its input and its output.

    The output is quantized before any activation function, because int8 convolutions of ONNX
    Runtime have int8 outputs (see `QuantConfig.tool`). The state dict is that of the plain
    convolution.

    Args:
        conv: the convolution to replace; its parameters are shared.

    Raises:
        OptionError: `conv` has groups, a dilation or a padding other than zeros.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        if conv.groups != 1 or conv.padding_mode != "zeros" or conv.dilation != (1, 1):
            raise OptionError(
                f"cannot fake-quantize {conv}: only convolutions without groups and dilation, and "
                "padded with zeros, can be"
            )
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            bias=conv.bias is not None,
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.input_range, self.output_range = (
            ActivationRange().to(conv.weight.device) for _ in range(2)
        )
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        weight = fake_quantize_weight(self.weight)
        out = F.conv2d(self.input_range(x), weight, self.bias, self.stride, self.padding)
        quantized: Tensor = self.output_range(out)
        return quantized


def fake_quantize_layers(network: nn.Module, kept: tuple[str, ...]) -> list[str]:
    """Replace every convolution of `network` by a `FakeQuantizedConv2d`, in place.

    Args:
        network: the network.
        kept: names of the convolutions that stay in float.

    Returns:
        The names of the replaced convolutions.

    Raises:
        OptionError: a name in `kept` is not that of a convolution.
    """
    convs = {name: m for name, m in network.named_modules() if type(m) is nn.Conv2d}
    for name in kept:
        if name not in convs:
            raise OptionError(f"no convolution is named {name!r}; choose from {', '.join(convs)}")
    quantized = [name for name in convs if name not in kept]
    for name in quantized:
        network.set_submodule(name, FakeQuantizedConv2d(convs[name]))
    return quantized
