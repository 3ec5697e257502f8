"""Which backends can be used here, why not the others, and a photo enlarged by each that can.

python examples/choose_backend.py photo.jpg
"""

from __future__ import annotations

import sys

from mmsr_edge import MMSRError, Upscaler
from mmsr_edge.runtimes.registry import BACKENDS


def main() -> None:
    """Enlarge the argument on every backend."""
    for backend in BACKENDS:
        try:
            upscaler = Upscaler(backend=backend.name)
            upscaler.upscale(sys.argv[1])  # the first call also loads the networks
            result = upscaler.upscale(sys.argv[1])
        except MMSRError as error:  # noqa: PERF203
            print(f"{backend.name}: not here: {error}")
        else:
            print(f"{backend.name}: {result.timings['total']:.2f} s")
    print(f"auto: {Upscaler().backend}")


if __name__ == "__main__":
    main()
