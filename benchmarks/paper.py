"""The paper's Tables 2 and 3 and Figs. 4, 8 and 9 at the size of the shipped model, in one run.

    python benchmarks/paper.py --set DIR --metrics DIR --photos DIR --model weights/nano \\
        --backend torch --checkpoint weights/nano --tiles FILE --held-out FILE --out OUT

    Table 2   with and without the MMLC; without needs a bundle of `nano-bare` (--bare)
    Table 3   kinds of guidance and w, at --steps, which must be served by the diffusion
    Fig. 4    discrete and continuous tokens: what they tell of held-out maps
    Fig. 8    modalities: all, each alone, each left out; better ones, and another picture's
    Fig. 9    dials: the temperature of each map, as it is, without enhancement

Each is printed and written to OUT as a table (CSV) and, of figures, a picture. What cannot be made
is left out, and it is said why. Our numbers stand beside none of the paper's: those are of other
pictures, and of a model thirty times as large. NIQE needs `--photos`; FID, MUSIQ and CLIPIQA need
the package `pyiqa`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib import variants
from lib.comparison import Row, read
from lib.iqa import PREFIX, fid, installed
from lib.metrics import Metrics
from lib.niqe import fit_folder
from lib.studies import Judge, Pair, Study, compare, know_all, select, study_dials
from PIL import Image

from mmsr_edge import MMSRError, OptionError, Upscaler
from mmsr_edge.files import write_csv

ALONE = ("musiq", "clipiqa")
"""Metrics of `pyiqa` without a reference."""
SHOWN = (f"{PREFIX}musiq", "niqe", "dists", "lpips", f"{PREFIX}clipiqa", "fid")
"""Measurements of Table 2, as in the paper; those that were not made are left out."""


@dataclass(frozen=True)
class Paper:
    """One run: the model, the pictures, and how results are judged."""

    upscaler: Upscaler
    """The model."""
    work: list[Pair]
    """The pictures."""
    judge: Judge
    """Measures results."""
    args: argparse.Namespace
    """The command line."""

    def compare(self, name: str, every: Mapping[str, variants.Options], model: Upscaler) -> Study:
        """Measure the same variants of all pictures; results are kept where FID can be measured."""
        save = self.args.out / "pictures" / name if installed() else None
        return compare(model, self.work, lambda _: every, self.judge, save)

    def fid(self, name: str, variant: str) -> dict[str, float]:
        """FID of a variant's results and the HR pictures, as a column; empty without `pyiqa`."""
        if not installed():
            return {}
        references = self.args.out / "pictures" / "hr"
        references.mkdir(parents=True, exist_ok=True)
        for root, degradation, lr, hr in self.work:
            read(hr).save(references / f"{root.name}-{degradation}-{lr.stem}.png")
        return {"fid": round(fid(self.args.out / "pictures" / name / variant, references), 2)}


def table_2(paper: Paper) -> None:
    """With and without the MMLC."""
    models: dict[str, Upscaler | None] = {"w/o. MMLC": None, "w. MMLC": paper.upscaler}
    if paper.args.bare is not None:
        models["w/o. MMLC"] = Upscaler(paper.args.bare, paper.args.backend)
    rows: list[Row] = []
    for name, model in models.items():
        if model is None:
            rows.append({"": name, "why": "not measured: it needs a bundle of nano-bare (--bare)"})
            continue
        study = paper.compare("table2", {name.replace("/", ""): variants.ALL}, model)
        row: Row = {"": name, **means(study), **paper.fid("table2", name.replace("/", ""))}
        seconds = sum(float(str(r["seconds"])) for r in study.rows)
        rows.append({**shown(row, ("", *SHOWN)), "images/s": round(len(study.rows) / seconds, 2)})
    put(paper.args.out / "table2", rows)


def table_3(paper: Paper) -> None:
    """Kinds of guidance and w."""
    sampler, steps = paper.upscaler.bundle.manifest.sampler, paper.args.steps
    if steps <= sampler.few_steps:
        raise OptionError(
            f"steps is {steps}, and up to {sampler.few_steps} are the student's; guidance is the "
            "diffusion's: take more, the paper has 50"
        )
    every = variants.guidance(steps, paper.args.weights)
    study = paper.compare("table3", every, paper.upscaler)
    write_csv(paper.args.out / "table3.all.csv", study.rows)
    by_variant = {str(r["method"]): r for r in (means_of(study, v) for v in every)}
    for measure in ("lpips", "niqe"):
        if measure not in next(iter(by_variant.values())):
            print(f"Table 3, {measure}: not measured")
            continue
        rows: list[Row] = []
        for kind in ("cfg", "m0-cfg", "m-cfg"):
            row: Row = {measure: kind, "w=0": by_variant["none"][measure]}
            for w in paper.args.weights:
                row[f"w={w:g}"] = by_variant[f"{kind} w={w:g}"][measure]
            rows.append(row)
        put(paper.args.out / f"table3.{measure}", rows)


def figure_4(paper: Paper) -> None:
    """Discrete and continuous tokens."""
    args = paper.args
    if not (args.checkpoint and args.tiles and args.held_out):
        raise OptionError("it needs --checkpoint, --tiles and --held-out")
    try:
        from lib.tokens import load_tokenizer, report

        from mmsr_edge.training.data.tiles import load_tiles
    except ImportError as error:
        raise OptionError(f"it needs torch and the extra 'train': {error}") from None
    tiles, held_out = (load_tiles(path) for path in (args.tiles, args.held_out))
    found = report(load_tokenizer(args.checkpoint), tiles, held_out, most=args.count)
    put(args.out / "figure4", found.rows)
    Image.fromarray(found.picture).save(args.out / "figure4.png")


def figure_8(paper: Paper) -> None:
    """Modalities."""
    known = know_all(paper.upscaler, paper.work)
    reads = variants.takes_degradation(paper.upscaler.bundle.manifest)

    def every(number: int) -> dict[str, variants.Options]:
        return variants.modalities(*known[number], degradation=reads)

    study = compare(paper.upscaler, paper.work, every, paper.judge)
    study.write(paper.args.out, "figure8", variants.CONTRASTS)


def figure_9(paper: Paper) -> None:
    """Dials."""
    study_dials(paper.upscaler, paper.work, paper.args.out, "figure9")


PARTS: dict[str, Callable[[Paper], None]] = {
    "table 2": table_2,
    "table 3": table_3,
    "figure 4": figure_4,
    "figure 8": figure_8,
    "figure 9": figure_9,
}


def means(study: Study) -> Row:
    """Means of the measurements over all pictures, whatever their set."""
    rows = [{**row, "set": "all", "degradation": "all", "method": "all"} for row in study.rows]
    return Study(rows).summary[0]


def means_of(study: Study, variant: str) -> Row:
    """Means of one variant, under its name."""
    rows = [row for row in study.rows if row["method"] == variant]
    return {**means(Study(rows)), "method": variant}


def shown(row: Row, columns: Sequence[str]) -> Row:
    """Some columns of a row, those that it has."""
    return {column: row[column] for column in columns if column in row}


def put(path: Path, rows: Sequence[Row]) -> None:
    """Write a table and print it."""
    write_csv(path.with_name(f"{path.name}.csv"), rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--set", type=Path, action="append", required=True, help="test set; repeatable")
    add("--degradation", action="append", default=[], help="lr_real …; default: all")
    add("--pictures", type=int, help="most pictures of each set and degradation")
    add("--part", action="append", choices=PARTS, default=[], help="default: all; repeatable")
    add("--metrics", type=Path, help="folder of the metric networks")
    add("--photos", type=Path, help="folder of photographs to fit NIQE's model to")
    add("--model", default="nano")
    add("--bare", help="a bundle of nano-bare, for Table 2")
    add("--backend", default="auto")
    add("--steps", type=int, default=50, help="steps of Table 3")
    add("--weights", type=float, nargs="+", default=(2.0, 10.0, 14.0), help="w of Table 3")
    add("--checkpoint", type=Path, help="checkpoint or run with the tokenizer of Fig. 4")
    add("--tiles", type=Path, help="tiles, for Fig. 4")
    add("--held-out", type=Path, help="tiles of other photographs, for Fig. 4")
    add("--count", type=int, default=256, help="most tiles of each file")
    add("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not installed():
        print("FID, MUSIQ and CLIPIQA are left out: pyiqa is not installed")
    metrics = Metrics(args.metrics, others=ALONE if installed() else ())
    judge = Judge(metrics, fit_folder(args.photos) if args.photos else None)
    work = select(args.set, args.degradation, args.pictures)
    paper = Paper(Upscaler(args.model, args.backend), work, judge, args)
    for name, make in PARTS.items():
        if args.part and name not in args.part:
            continue
        print(f"\n{name.capitalize()}. {make.__doc__}")
        try:
            make(paper)
        except MMSRError as error:
            print(f"{name.capitalize()} is left out: {error}")


if __name__ == "__main__":
    main()
