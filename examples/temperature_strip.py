"""What each modality's temperature does (Sec. 3.2, Fig. 9): one row a modality, left strong.

    python examples/temperature_strip.py photo.jpg strip.png

δ divides the connector's attention logits of that modality alone: small δ makes it look hard at
few tokens of it, large δ spreads its attention evenly. Below each crop: δ, and the mean difference
from the row's first picture in 1/255.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mmsr_edge import Upscaler

TEMPERATURES = (0.4, 0.7, 1.0, 2.0, 4.0, 10.0)
"""δ in units of √d_k: the paper's range."""
MODALITIES = ("text", "depth", "segmentation", "edges")
SIDE, LINE, MARGIN = 160, 14, 84
"""Pixels: a crop, the line below it, the names to the left."""


def rows(upscaler: Upscaler, photo: Path, steps: int | None) -> dict[str, list[Image.Image]]:
    """Pictures at all temperatures, by modality; the other modalities stay at 1."""
    return {
        name: [
            upscaler.upscale(photo, steps=steps, temperature={name: delta}).image
            for delta in TEMPERATURES
        ]
        for name in MODALITIES
    }


def draw(pictures: dict[str, list[Image.Image]]) -> Image.Image:
    """The strip: the middle of each picture, its δ and how far it is from the first."""
    sheet = Image.new(
        "RGB", (MARGIN + len(TEMPERATURES) * SIDE, len(pictures) * (SIDE + LINE)), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(pictures.items()):
        y = row * (SIDE + LINE)
        pen.text((4, y + SIDE // 2), name, fill="black")
        first = np.asarray(images[0].convert("RGB"), np.float32)
        for column, (delta, image) in enumerate(zip(TEMPERATURES, images, strict=True)):
            x = MARGIN + column * SIDE
            left, top = ((n - SIDE) // 2 for n in image.size)
            sheet.paste(image.convert("RGB").crop((left, top, left + SIDE, top + SIDE)), (x, y))
            apart = np.abs(np.asarray(image.convert("RGB"), np.float32) - first).mean()
            pen.text((x + 2, y + SIDE + 1), f"delta {delta:g}: {apart:.2f}", fill="black")
    return sheet


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo", type=Path)
    parser.add_argument("strip", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, help="default: the model's")
    args = parser.parse_args()
    draw(rows(Upscaler(args.model), args.photo, args.steps)).save(args.strip)


if __name__ == "__main__":
    main()
