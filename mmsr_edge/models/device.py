"""The device that training runs on, and the precision that pays there."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = name.startswith("cuda")
    return torch.device(name)


@cache
def bfloat16_pays() -> bool:
    """Whether this processor convolves faster in bfloat16 than in float32, measured once.

    Its flags do not tell: with AMX it is many times faster, on Zen 4 twice, and on a server's cores
    whose AMX is hidden from a guest it takes twice as long.
    """

    def seconds(dtype: torch.dtype) -> float:
        fold = torch.channels_last
        conv = nn.Conv2d(128, 128, 3, padding=1).to(dtype=dtype, memory_format=fold)
        x = torch.zeros(4, 128, 48, 48, dtype=dtype).contiguous(memory_format=fold)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            conv(x)
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.no_grad():
        return seconds(torch.bfloat16) < seconds(torch.float32)


def autocast(device: torch.device) -> Any:
    """bfloat16 autocast on CUDA, and on a CPU that is faster with it."""
    if device.type == "cuda" or (device.type == "cpu" and bfloat16_pays()):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
