"""Peak memory and time by the size of the result, with one process per size.

    python benchmarks/memory_curve.py --megapixels 1 4 12 48 100 --out OUT

The input is a generated picture, similar to a photograph, in a PNG file. The result is written to
another PNG by rows. Writes `memory.csv` and `memory.png`; each peak is compared with the first.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsr_edge.benchmark.machine import peak_rss_mb
from mmsr_edge.converters.report import draw_table

COLUMNS = ("MP", "peak MB", "over the first", "input MB", "s", "s a MP")


def picture(width: int, height: int) -> Image.Image:
    """Generate a picture [height, width] of waves and grain, equal in every call."""
    rng = np.random.Generator(np.random.Philox(3))
    out = np.empty((height, width, 3), np.uint8)
    x = np.arange(width)[None, :, None]
    for top in range(0, height, 256):
        y = np.arange(top, min(top + 256, height))[:, None, None]
        waves = 40 * np.sin((x + 2 * y) / [9, 13, 17]) + 50 * np.sin((x * y) / 9000)
        grain = rng.normal(0, 4, (y.shape[0], width, 1))
        out[top : top + 256] = np.clip(128 + waves + grain, 0, 255)
    return Image.fromarray(out)


def serve(source: str, out: str, options: dict[str, Any]) -> None:
    """Enlarge one picture, and print peak memory and seconds as JSON."""
    from mmsr_edge import Upscaler

    upscaler = Upscaler(options["model"], options["backend"])
    began = time.perf_counter()
    upscaler.upscale(source, output=out, steps=options["steps"])
    taken = {"peak": peak_rss_mb(), "seconds": time.perf_counter() - began}
    print(json.dumps(taken))


def measure(megapixels: float, options: dict[str, Any]) -> dict[str, float]:
    """Measure one size in its own process: peak and input in MB, and seconds."""
    pixels = megapixels * 1e6 / 16
    width = round(math.sqrt(pixels * 4 / 3))
    height = round(pixels / width)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "in.png"), Path(folder, "out.png")
        picture(width, height).save(source)
        command = [sys.executable, __file__, "--serve", str(source), str(out), json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**taken, "input": 3 * width * height / 1e6}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 4, 12, 48, 100])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, help="folder of the table")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], args.serve[1], json.loads(args.serve[2]))
        return
    options = {"model": args.model, "backend": args.backend, "steps": args.steps}
    rows: list[tuple[str, ...]] = []
    first = 0.0
    for megapixels in args.megapixels:
        taken = measure(megapixels, options)
        first = first or taken["peak"]
        row = (
            f"{megapixels:g}",
            f"{taken['peak']:.0f}",
            f"{taken['peak'] - first:+.0f} ({taken['peak'] / first - 1:+.0%})",
            f"{taken['input']:.1f}",
            f"{taken['seconds']:.1f}",
            f"{taken['seconds'] / megapixels:.2f}",
        )
        print(
            "  ".join(f"{title} {cell}" for title, cell in zip(COLUMNS, row, strict=True)),
            flush=True,
        )
        rows.append(row)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        with (args.out / "memory.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        draw_table(COLUMNS, rows, set(), words=0).save(args.out / "memory.png")


if __name__ == "__main__":
    main()
