"""Use your own depth map: here the ground is nearer towards the lower edge.

python examples/own_depth.py photo.jpg photo_x4.png
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from mmsr_edge import Upscaler


def main() -> None:
    """Upscale the first argument to the second, guided by a depth map made here."""
    source, target = sys.argv[1:3]
    with Image.open(source) as photo:
        width, height = photo.size
    # From 0 (far) to 1 (near), at the photo's size. A path or a PIL image works, too.
    depth = np.repeat(np.linspace(0, 1, height, dtype=np.float32)[:, None], width, axis=1)
    result = Upscaler().upscale(source, depth=depth, output=target)
    used = result.maps["depth"]
    print(f"{target}: depth used, {used.width}×{used.height}" if used else "depth was left out")
    for warning in result.warnings:
        print("warning:", warning)


if __name__ == "__main__":
    main()
