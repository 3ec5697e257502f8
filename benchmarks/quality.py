"""Measure bundles and bicubic on test sets, and write a page of crops.

    python benchmarks/quality.py --set DIR [--set DIR …] --metrics DIR [--model nano …] --out OUT

A test set is a folder with `hr/` and one folder for each degradation (`lr_…`); files of the same
name belong together. Writes `pictures/`, `quality.csv` (one row per picture and method),
`summary.csv` and `index.html`.
"""

from __future__ import annotations

import argparse
import html
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from lib.comparison import Method, Row, bicubic, busiest, pairs, read, summarize
from lib.metrics import Metrics, Picture, measured, shift_e00
from PIL import Image
from tqdm import tqdm

from mmsr_edge.files import write_csv


def ours(args: argparse.Namespace, model: str) -> Method:
    """An `Upscaler` with the settings of the command line."""
    from mmsr_edge import Upscaler

    upscaler = Upscaler(model=model, backend=args.backend, precision=args.precision)
    options = {
        "steps": args.steps,
        "guidance": args.guidance,
        "guidance_scale": args.guidance_scale,
    }
    return lambda lr: upscaler.upscale(lr, seed=args.seed, **options).image


def measure(args: argparse.Namespace, methods: dict[str, Method], metrics: Metrics) -> list[Row]:
    """Measure one row per picture and method; saves the pictures under `OUT/pictures`."""
    rows: list[Row] = []
    work = [(root, *p) for root in args.set for p in pairs(root)]
    for root, degradation, lr_path, hr_path in tqdm(work, desc="pictures"):
        lr, hr = read(lr_path), read(hr_path)
        for name, method in methods.items():
            start = time.perf_counter()
            image = method(lr)
            seconds = time.perf_counter() - start
            file = Path("pictures") / root.name / degradation / f"{lr_path.stem}.{name}.png"
            (args.out / file).parent.mkdir(parents=True, exist_ok=True)
            image.save(args.out / file)
            values = metrics(np.asarray(image), np.asarray(hr))
            values["shift_e00"] = shift_e00(np.asarray(image), np.asarray(lr))
            key = {
                "set": root.name,
                "degradation": degradation,
                "picture": lr_path.stem,
                "method": name,
            }
            rows.append(
                {**key, **values, "seconds": seconds, "file": str(file), "hr": str(hr_path)}
            )
    return rows


STYLE = """
body { font: 14px sans-serif } td, th { padding: 3px 8px; text-align: right }
img { width: 256px; image-rendering: pixelated }
"""


def write_page(path: Path, rows: list[Row], summary: list[Row], side: int) -> None:
    """Write the table of means, and by picture the most detailed crop from each method."""
    folder = path.parent / "crops"
    folder.mkdir(exist_ok=True)

    def cell(picture: Picture, corner: tuple[int, int], name: str, caption: str) -> str:
        top, left = corner
        Image.fromarray(picture[top : top + side, left : left + side]).save(folder / name)
        return f"<td><img src='crops/{html.escape(name)}'><br>{caption}</td>"

    groups: dict[str, list[Row]] = {}
    for row in rows:
        stem = f"{row['set']}-{row['degradation']}-{row['picture']}"
        groups.setdefault(stem, []).append(row)
    cells: dict[str, list[str]] = {}
    for stem, group in groups.items():
        hr = np.asarray(read(Path(str(group[0]["hr"]))))
        corner = busiest(hr, side)
        cells[stem] = [cell(hr, corner, f"{stem}-hr.png", html.escape(stem))]
        for row in group:
            numbers = " · ".join(f"{c} {float(str(row[c])):.3f}" for c in measured(row))
            caption = f"{html.escape(str(row['method']))}<br><small>{numbers}</small>"
            picture = np.asarray(read(path.parent / str(row["file"])))
            cells[stem].append(cell(picture, corner, f"{stem}-{row['method']}.png", caption))

    def line(tag: str, values: Iterable[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{v}</{tag}>" for v in values) + "</tr>"

    table = line("th", summary[0]) + "".join(line("td", s.values()) for s in summary)
    pictures = "".join(f"<tr>{''.join(c)}</tr>" for c in cells.values())
    head = f"<!doctype html><meta charset='utf-8'><title>quality</title><style>{STYLE}</style>"
    path.write_text(f"{head}<table>{table}</table><table>{pictures}</table>")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set", type=Path, action="append", required=True, help="test set folder; repeatable"
    )
    parser.add_argument(
        "--metrics", type=Path, help="folder of lpips_alex.onnx and vgg_dists_lpips.onnx"
    )
    parser.add_argument(
        "--pyiqa", nargs="+", default=[], metavar="NAME", help="further metrics, of pyiqa"
    )
    parser.add_argument(
        "--model", action="append", default=[], help="bundle name or folder; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", default="default", help="m-cfg, cfg, m0-cfg, none, default")
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crop", type=int, default=128, help="side of the crops on the page")
    args = parser.parse_args()
    args.guidance = None if args.guidance == "none" else args.guidance
    args.out.mkdir(parents=True, exist_ok=True)
    methods: dict[str, Method] = {"bicubic": bicubic}
    for model in args.model or ["nano"]:
        methods[Path(model).name] = ours(args, model)
    rows = measure(args, methods, Metrics(args.metrics, others=args.pyiqa))
    summary = summarize(rows)
    write_csv(args.out / "quality.csv", rows)
    write_csv(args.out / "summary.csv", summary)
    write_page(args.out / "index.html", rows, summary, args.crop)
    for line in summary:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
