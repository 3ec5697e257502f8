"""Upscale a photo with each backend; print its time, or why the backend cannot be used here.

python examples/choose_backend.py photo.jpg
"""

from __future__ import annotations

import sys

from mmsr_edge import MMSRError, Upscaler
from mmsr_edge.runtimes.registry import BACKENDS


def main() -> None:
    """Upscale the first argument with every backend."""
    for backend in BACKENDS:
        try:
            upscaler = Upscaler(backend=backend.name)
            upscaler.upscale(sys.argv[1])  # the first call also loads the networks
            result = upscaler.upscale(sys.argv[1])
        except MMSRError as error:  # noqa: PERF203
            print(f"{backend.name}: not usable here: {error}")
        else:
            print(f"{backend.name}: {result.timings['total']:.2f} s")
    print(f"auto: {Upscaler().backend}")


if __name__ == "__main__":
    main()
