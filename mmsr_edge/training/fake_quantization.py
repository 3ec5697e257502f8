"""Rounding to int8 while training, so that the weights learn to live with it.

What the export does afterwards (see `converters.quantize`) is done here on the way forward, and
nothing on the way back (the straight-through estimator; Jacob et al. 2018, Sec. 3):

    x̂ = s·(clamp(round(x / s) + o, 0, 255) - o),   ∂x̂/∂x = 1 inside the range, else 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError

LEVELS = 255
"""Of 8 bits, less one."""
FORGET = 0.02
"""How much of a range is the newest batch's."""


def round_weight(weight: Tensor) -> Tensor:
    """int8 weights, symmetric, a scale per output channel; [O, ...] to the same."""
    most = weight.detach().abs().amax(tuple(range(1, weight.ndim)))
    scale = (most / (LEVELS // 2)).clamp_min(torch.finfo(torch.float32).tiny)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def round_activation(x: Tensor, least: Tensor, greatest: Tensor) -> Tensor:
    """uint8 activations of the range [least, greatest], widened to hold 0; any shape."""
    low, high = least.clamp_max(0), greatest.clamp_min(0)
    scale = ((high - low) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    zero = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, LEVELS)


class ActivationRange(nn.Module):
    """Rounds activations; while training, the range follows the batches' least and greatest."""

    least: Tensor
    greatest: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("least", "greatest"):  # known again after a few batches: not saved
            self.register_buffer(name, torch.full((), torch.nan), persistent=False)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        for seen, new in ((self.least, x.amin()), (self.greatest, x.amax())):
            seen.copy_(torch.where(seen.isnan(), new, seen.lerp(new, FORGET)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.training or self.least.isnan():
            self._follow(x)
        return round_activation(x, self.least, self.greatest)


class FakeQuantizedConv2d(nn.Conv2d):
    """A convolution that rounds its weights, its input, and what it gives before any activation.

    The last is for ONNX Runtime, whose int8 convolutions give int8 (see `QuantConfig.tool`). The
    state dict is that of the plain convolution.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        if conv.groups != 1 or conv.padding_mode != "zeros" or conv.dilation != (1, 1):
            raise OptionError(f"cannot round {conv}: only plain convolutions are")
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            bias=conv.bias is not None,
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.taken, self.given = (ActivationRange().to(conv.weight.device) for _ in range(2))
        self.rounds = True
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.rounds:
            return super().forward(x)
        weight = round_weight(self.weight)
        seen = F.conv2d(self.taken(x), weight, self.bias, self.stride, self.padding)
        rounded: Tensor = self.given(seen)
        return rounded


def set_fake_quantization(network: nn.Module, on: bool) -> None:
    """Whether those layers of a network that can round do so."""
    for module in network.modules():
        if isinstance(module, FakeQuantizedConv2d):
            module.rounds = on


def fake_quantize_layers(network: nn.Module, kept: tuple[str, ...]) -> list[str]:
    """Make every convolution in `network` an `FakeQuantizedConv2d`, except those of the names in `kept`.

    Returns:
        The names of those that round now.

    Raises:
        OptionError: a name in `kept` is no convolution's.
    """
    convs = {name: m for name, m in network.named_modules() if type(m) is nn.Conv2d}
    for name in kept:
        if name not in convs:
            raise OptionError(f"no convolution is named {name!r}; there are {', '.join(convs)}")
    rounded = [name for name in convs if name not in kept]
    for name in rounded:
        network.set_submodule(name, FakeQuantizedConv2d(convs[name]))
    return rounded
