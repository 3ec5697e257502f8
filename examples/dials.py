"""What the dials do: guidance, and each modality's temperature (Sec. 3.2, Fig. 9).

    python examples/dials.py photo.jpg dials.png --model weights/nano --backend torch

First row: the picture at w from -1 (what the negative prompt asks for) to 1. Below, a row for each
modality: how the picture differs from that at δ = 0.4, many times enhanced. δ divides the
connector's attention logits of that modality alone: small δ makes it look hard at few tokens, large
δ spreads its attention evenly. Written below are the mean differences from a row's first picture in
1/255. The rounding of an int8 bundle hides differences as small as nano's; torch shows them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mmsr_edge import Upscaler
from mmsr_edge.bundle import MODALITIES

SCALES = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""w of Eq. 4."""
TEMPERATURES = (0.4, 1.0, 2.0, 4.0, 10.0)
"""δ in units of √d_k: the paper's range."""
SIDE, LINE, MARGIN = 192, 14, 84
"""Pixels: a crop, the line below it, the names to the left."""
GAIN = 64
"""Of the differences."""


def middle(image: Image.Image) -> np.ndarray:
    """The middle of a picture, [SIDE, SIDE, 3] in 0 … 255."""
    left, top = ((n - SIDE) // 2 for n in image.size)
    return np.asarray(image.convert("RGB").crop((left, top, left + SIDE, top + SIDE)), np.float32)


def main() -> None:
    """Command line."""
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

    def draw(row: int, name: str, symbol: str, dials: dict[float, dict], gain: int = 0) -> None:
        """One row; `gain` 0: the pictures themselves."""
        y = row * (SIDE + LINE)
        pen.text((4, y + SIDE // 2), name, fill="black")
        pictures = [upscaler.upscale(args.photo, prompt="auto", **d).image for d in dials.values()]
        first = middle(pictures[0])
        for column, (value, picture) in enumerate(zip(dials, pictures, strict=True)):
            x, crop = MARGIN + column * SIDE, middle(picture)
            shown = np.clip(128 + gain * (crop - first), 0, 255) if gain else crop
            sheet.paste(Image.fromarray(shown.astype(np.uint8)), (x, y))
            apart = np.abs(crop - first).mean()
            pen.text((x + 2, y + SIDE + 1), f"{symbol} {value:g}: {apart:.3f}", fill="black")

    draw(0, "guidance", "w", {w: {"guidance_scale": w} for w in SCALES})
    for row, name in enumerate(MODALITIES, 1):
        dials = {t: {"temperature": {name: t}} for t in TEMPERATURES}
        draw(row, name, "delta", dials, GAIN)
    sheet.save(args.strip)


if __name__ == "__main__":
    main()
