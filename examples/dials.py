"""What the dials do to a picture, as it is: a row for each dial, without any enhancement.

    python examples/dials.py photo.jpg dials.png --at 0.4 0.6

The middle column is the model's own picture. Strength λ, guidance w and `denoise` act everywhere;
the temperatures τ (Sec. 3.2, Fig. 9) where their map says so: depth on what is far, segmentation on
all but the subject, edges on what is not near an edge. Below 1 these places become softer, above 1
crisper. Below each picture is its mean difference from the middle one, in 1/255.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmsr_edge import MMSRError, Upscaler

TEMPERATURES = (0.4, 0.63, 1.0, 3.0, 10.0)
"""τ, over the paper's range."""
DIALS: dict[str, list[dict[str, Any]]] = {
    "strength": [{"strength": n} for n in (0.0, 0.5, 1.0, 1.5, 2.0)],
    "guidance": [{"guidance_scale": n} for n in (-1.0, -0.5, 0.0, 0.5, 1.0)],
    "denoise": [{"denoise": n} for n in (0.0, 0.1, None, 0.6, 1.0)],
    **{
        name: [{"temperature": {name: n}} for n in TEMPERATURES]
        for name in ("depth", "segmentation", "edges")
    },
}
"""Options of each row; the middle ones are neutral."""
SIDE, LINE, MARGIN = 240, 16, 92
"""Pixels: side of a crop, height of the line below it, width of the names on the left."""


def crop(image: Image.Image, at: tuple[float, float]) -> np.ndarray:
    """Part of a picture around a place in fractions of its size, [SIDE, SIDE, 3] in 0 … 255."""
    left, top = (
        max(0, min(n - SIDE, round(f * n - SIDE / 2))) for n, f in zip(image.size, at, strict=True)
    )
    return np.asarray(image.convert("RGB").crop((left, top, left + SIDE, top + SIDE)))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("strip", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--at", type=float, nargs=2, default=(0.5, 0.5), help="middle, 0 to 1")
    args = parser.parse_args()
    upscaler = Upscaler(args.model, args.backend)
    rows: dict[str, list[np.ndarray]] = {}
    for name, settings in DIALS.items():
        try:
            made = [upscaler.upscale(args.photo, **options).image for options in settings]
        except MMSRError as error:  # a model without this dial, or a picture without the map
            print(f"{name}: left out: {error}")
            continue
        rows[name] = [crop(picture, args.at) for picture in made]
    sheet = Image.new("RGB", (MARGIN + 5 * SIDE, len(rows) * (SIDE + LINE)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, crops) in enumerate(rows.items()):
        y = row * (SIDE + LINE)
        pen.text((4, y + SIDE // 2), name, fill="black")
        for column, (options, shown) in enumerate(zip(DIALS[name], crops, strict=True)):
            x = MARGIN + column * SIDE
            sheet.paste(Image.fromarray(shown), (x, y))
            moved = np.abs(shown.astype(np.float32) - crops[2]).mean()
            value = str(*options.values()).strip("{}")
            pen.text((x + 2, y + SIDE + 2), f"{value}: moved by {moved:.2f}", fill="black")
    sheet.save(args.strip)


if __name__ == "__main__":
    main()
