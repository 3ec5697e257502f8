"""Throughput of a run: samples per second, FLOP per second, and the share of the device's peak."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0, "T4": 65.0}
"""Peak TFLOP/s of dense bf16 (T4: fp16) matrix products, from NVIDIA's data sheets, by part of the
device's name."""


def peak_tflops(device: torch.device) -> float | None:
    """Peak TFLOP/s of `device`; None if it is not in `PEAK_TFLOPS`."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


class Throughput:
    """Counts the FLOP of one step and measures the time of the steps.

    Args:
        samples: samples per step.
        device: device that the steps run on.
    """

    def __init__(self, samples: int, device: torch.device) -> None:
        self.samples, self.peak = samples, peak_tflops(device)
        self.flops: int | None = None
        self.restart()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the FLOP of convolutions and matrix products of the step made inside."""
        with FlopCounterMode(display=False) as counter:
            torch.compiler.set_stance("force_eager")  # compiled code is not counted
            try:
                yield
            finally:
                torch.compiler.set_stance("default")
        self.flops = counter.get_total_flops()

    def restart(self) -> None:
        """Restart the clock."""
        self.started = time.monotonic()

    def measure(self, steps: int) -> dict[str, float]:
        """Columns of the log for the `steps` made since `restart`; restarts the clock."""
        rate = steps / max(time.monotonic() - self.started, 1e-9)
        values = {"samples_per_s": rate * self.samples, "tflops": rate * (self.flops or 0) / 1e12}
        if self.peak:
            values["share_of_peak"] = values["tflops"] / self.peak
        self.restart()
        return {key: round(value, 4) for key, value in values.items()}
