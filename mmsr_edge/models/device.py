"""The device that training runs on, and the faster precision on it."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn


def pick_device(name: str) -> torch.device:
    """The torch device `name`; `auto` is CUDA if available, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = name.startswith("cuda")
    return torch.device(name)


@cache
def bfloat16_pays() -> bool:
    """Whether this processor convolves faster in bfloat16 than in float32, measured once.

    The CPU flags do not determine this: bfloat16 is many times faster with AMX and twice as fast on
    Zen 4, but takes twice as long on server cores that hide AMX from a virtual machine.
    """

    def seconds(dtype: torch.dtype) -> float:
        layout = torch.channels_last
        conv = nn.Conv2d(128, 128, 3, padding=1).to(dtype=dtype, memory_format=layout)
        x = torch.zeros(4, 128, 48, 48, dtype=dtype).contiguous(memory_format=layout)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            conv(x)
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.no_grad():
        return seconds(torch.bfloat16) < seconds(torch.float32)


def autocast(device: torch.device) -> Any:
    """A context of bfloat16 autocast on CUDA and on CPUs that gain from it; else a null context."""
    if device.type == "cuda" or (device.type == "cpu" and bfloat16_pays()):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
