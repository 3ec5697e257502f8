"""Effects of the dials: guidance, and each modality's temperature (Sec. 3.2, Fig. 9).

    python examples/dials.py photo.jpg dials.png --model weights/nano --backend torch

First row: the picture at w from -1 (towards the negative prompt) to 1. Then one row per modality:
the picture's difference from that at δ = 0.4, amplified. δ divides the connector's attention logits
of that modality alone: a small δ concentrates attention on few tokens, a large δ spreads it evenly.
Below each picture is its mean difference from the first of the row, in 1/255. Quantization to int8
hides differences as small as nano's; torch shows them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmsr_edge import Upscaler
from mmsr_edge.bundle import MODALITIES

SCALES = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Guidance scales w of Eq. 4."""
TEMPERATURES = (0.4, 1.0, 2.0, 4.0, 10.0)
"""Temperatures δ in units of √d_k, over the paper's range."""
SIDE, LINE, MARGIN = 192, 14, 84
"""Pixels: side of a crop, height of the line below it, width of the names on the left."""
GAIN = 64
"""Factor that amplifies the differences."""


def middle(image: Image.Image) -> np.ndarray:
    """Centre crop of a picture, [SIDE, SIDE, 3] in 0 … 255."""
    left, top = ((n - SIDE) // 2 for n in image.size)
    return np.asarray(image.convert("RGB").crop((left, top, left + SIDE, top + SIDE)), np.float32)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo", type=Path)
    parser.add_argument("strip", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    upscaler = Upscaler(args.model, args.backend)
    rows = 1 + len(MODALITIES)
    sheet = Image.new("RGB", (MARGIN + len(SCALES) * SIDE, rows * (SIDE + LINE)), "white")
    pen = ImageDraw.Draw(sheet)

    def draw(
        row: int, name: str, symbol: str, dials: dict[float, dict[str, Any]], gain: int = 0
    ) -> None:
        """Draw one row: differences times `gain`, or the pictures themselves if `gain` is 0."""
        y = row * (SIDE + LINE)
        pen.text((4, y + SIDE // 2), name, fill="black")
        pictures = [upscaler.upscale(args.photo, prompt="auto", **d).image for d in dials.values()]
        first = middle(pictures[0])
        for column, (value, picture) in enumerate(zip(dials, pictures, strict=True)):
            x, crop = MARGIN + column * SIDE, middle(picture)
            shown = np.clip(128 + gain * (crop - first), 0, 255) if gain else crop
            sheet.paste(Image.fromarray(shown.astype(np.uint8)), (x, y))
            difference = np.abs(crop - first).mean()
            pen.text((x + 2, y + SIDE + 1), f"{symbol} {value:g}: {difference:.3f}", fill="black")

    draw(0, "guidance", "w", {w: {"guidance_scale": w} for w in SCALES})
    for row, name in enumerate(MODALITIES, 1):
        dials = {t: {"temperature": {name: t}} for t in TEMPERATURES}
        draw(row, name, "delta", dials, GAIN)
    sheet.save(args.strip)


if __name__ == "__main__":
    main()
