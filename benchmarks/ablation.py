"""The paper's ablations, one command each: a table (CSV) and a picture of crops.

    python benchmarks/ablation.py modalities --set DIR --metrics DIR --photos DIR --out OUT
    python benchmarks/ablation.py guidance   …    Table 3: kinds of guidance and w, at 50 steps
    python benchmarks/ablation.py steps      …    1 to 50 steps, with and without guidance

`modalities` is Fig. 8: all on, each alone, each dropped, and each taken from the next picture of
the set, because a useful modality must do harm when it is wrong. NIQE needs `--photos`, to which
its model of good photographs is fitted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lib.comparison import Row, pairs, read, summarize
from lib.metrics import Metrics
from lib.niqe import fit_folder, niqe
from lib.strips import strip
from PIL import Image
from tqdm import tqdm

from mmsr_edge import Upscaler
from mmsr_edge.files import write_csv
from mmsr_edge.upscaler import Result

Options = Mapping[str, Any]
"""Keyword arguments of `Upscaler.upscale`."""

TEXT_AND_MAPS = {"text": "prompt", "depth": "depth", "segmentation": "segmentation",
                 "edges": "edges"}  # fmt: skip
"""Options of `Upscaler.upscale`, by the modality's name in the model."""
ALL: Options = {"prompt": "auto"}
"""All modalities on; the maps are on by default."""
LEADING = ("set", "degradation", "picture", "method")


def own_modalities(upscaler: Upscaler, result: Result) -> dict[str, Any]:
    """Modalities of a result, as options for another picture."""
    suffix = upscaler.bundle.manifest.text.positive
    words = result.caption.removesuffix(suffix).rstrip(", ")
    return {"prompt": words or None, **result.maps}


def modalities(of_next: Options) -> dict[str, Options]:
    """Options of the variants of Fig. 8; `of_next` has the next picture's modalities."""
    options = tuple(TEXT_AND_MAPS.values())
    nothing = dict.fromkeys(options)
    variants: dict[str, Options] = {"all": ALL, "none": nothing}
    for name, option in TEXT_AND_MAPS.items():
        variants[f"{name} alone"] = {**nothing, option: "auto"}
    for name, option in TEXT_AND_MAPS.items():
        variants[f"without {name}"] = {**ALL, option: None}
    for name, option in TEXT_AND_MAPS.items():
        variants[f"{name} of another"] = {**ALL, option: of_next[option]}
    return variants


def guidance(steps: int, weights: Sequence[float]) -> dict[str, Options]:
    """Options of the variants of Table 3: kinds of guidance at each w."""
    variants: dict[str, Options] = {"none": {"steps": steps, "guidance": None}}
    for kind in ("cfg", "m0-cfg", "m-cfg"):
        for w in weights:
            options = {"steps": steps, "guidance": kind, "guidance_scale": w}
            variants[f"{kind} w={w:g}"] = options
    return variants


def steps(counts: Sequence[int]) -> dict[str, Options]:
    """Options by length of the trajectory, without guidance, and the paper's own setting."""
    variants: dict[str, Options] = {f"{n} steps": {"steps": n, "guidance": None} for n in counts}
    full = {"steps": max(counts), "guidance": "m-cfg", "guidance_scale": 4.0}
    return {**variants, f"{max(counts)} steps, m-cfg w=4": full}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("table", choices=("modalities", "guidance", "steps"))
    add("--set", type=Path, action="append", required=True, help="test set; repeatable")
    add("--degradation", action="append", default=[], help="lr_real …; default: all")
    add("--pictures", type=int, help="most pictures of each set and degradation")
    add("--metrics", type=Path, help="folder of the metric networks")
    add("--photos", type=Path, help="folder of photographs to fit NIQE's model to")
    add("--model", default="nano")
    add("--backend", default="auto")
    add("--weights", type=float, nargs="+", default=(2.0, 10.0, 14.0), help="w of `guidance`")
    add("--steps", type=int, nargs="+", default=(1, 2, 4, 8, 20, 50))
    add("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    upscaler = Upscaler(args.model, args.backend)
    work = chosen(args)
    read_metrics = Metrics(args.metrics)
    good = fit_folder(args.photos) if args.photos else None

    following: list[Options] = []
    if args.table == "modalities":
        own = [own_modalities(upscaler, upscaler(read(lr), **ALL)) for _, _, lr, _ in work]
        following = [*own[1:], own[0]]
    rows: list[Row] = []
    sheets: list[list[tuple[str, Image.Image]]] = []
    for number, (root, degradation, lr_path, hr_path) in enumerate(tqdm(work, desc="pictures")):
        if args.table == "modalities":
            variants = modalities(following[number])
        elif args.table == "guidance":
            variants = guidance(max(args.steps), args.weights)
        else:
            variants = steps(args.steps)
        lr, hr = read(lr_path), read(hr_path)
        cells = [("reference", hr)]
        for name, options in variants.items():
            began = time.perf_counter()
            result = upscaler(lr, **options)
            seconds = time.perf_counter() - began
            picture = np.asarray(result.image)
            values = read_metrics(picture, np.asarray(hr))
            if good is not None:
                values["niqe"] = niqe(picture, good)
            key = dict(zip(LEADING, (root.name, degradation, lr_path.stem, name), strict=True))
            rows.append({**key, **values, "unet_calls": result.calls["unet"], "seconds": seconds})
            cells.append((name, result.image))
        if len(sheets) < 4:
            sheets.append(cells)
    summary = summarize(rows)
    write_csv(args.out / f"{args.table}.csv", rows)
    write_csv(args.out / f"{args.table}.summary.csv", summary)
    strip(sheets).save(args.out / f"{args.table}.png")
    for line in summary:
        print(json.dumps(line))


def chosen(args: argparse.Namespace) -> list[tuple[Path, str, Path, Path]]:
    """(test set, degradation, LR path, HR path) of the selected pictures."""
    work = []
    for root in args.set:
        taken: Counter[str] = Counter()
        for degradation, lr, hr in pairs(root):
            if args.degradation and degradation not in args.degradation:
                continue
            taken[degradation] += 1
            if args.pictures is None or taken[degradation] <= args.pictures:
                work.append((root, degradation, lr, hr))
    if not work:
        raise SystemExit(f"none of {args.set} has pictures of {args.degradation}")
    return work


if __name__ == "__main__":
    main()
