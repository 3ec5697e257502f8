"""The shortest program: upscale one photo, and print its maps, timings and warnings.

python examples/upscale_photo.py photo.jpg photo_x4.png
"""

from __future__ import annotations

import sys

from mmsr_edge import Upscaler


def main() -> None:
    """Upscale the first argument to the second."""
    source, target = sys.argv[1:3]
    result = Upscaler().upscale(source, output=target)
    print(f"{target}: {result.image.width}×{result.image.height}, backend {result.backend}")
    print("maps:", {name: bool(image) for name, image in result.maps.items()})
    print("seconds:", {name: round(s, 2) for name, s in result.timings.items()})
    for warning in result.warnings:
        print("warning:", warning)


if __name__ == "__main__":
    main()
