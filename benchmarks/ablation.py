"""The paper's ablations, one command each: tables (CSV) and a picture of crops.

    python benchmarks/ablation.py modalities --set DIR --metrics DIR --photos DIR --out OUT
    python benchmarks/ablation.py dials      …    Fig. 9: the temperature of each map, .4 to 10
    python benchmarks/ablation.py guidance   …    Table 3: kinds of guidance and w, at 50 steps
    python benchmarks/ablation.py steps      …    1 to 50 steps, with and without guidance

`modalities` is Fig. 8: all on, each alone, each dropped; and what shows whether a modality is read:
maps of the HR picture, the same of another picture, words of another picture, and, where the model
reads it, the degradation, right, wrong, unknown and said to be none. `…paired.csv` has the
differences between variants on the same pictures, with standard errors. NIQE needs `--photos`, to
which its model of good photographs is fitted.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatch
from pathlib import Path

from lib import variants
from lib.metrics import Metrics
from lib.niqe import fit_folder
from lib.studies import Judge, compare, know_all, select, study_dials

from mmsr_edge import Upscaler

TABLES = ("modalities", "dials", "guidance", "steps")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("table", choices=TABLES)
    add("--set", type=Path, action="append", required=True, help="test set; repeatable")
    add("--degradation", action="append", default=[], help="lr_real …; default: all")
    add("--pictures", type=int, help="most pictures of each set and degradation")
    add("--variant", action="append", default=[], help="'HR maps*' …; default: all; repeatable")
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
    work = select(args.set, args.degradation, args.pictures)
    if args.table == "dials":
        study_dials(upscaler, work, args.out, "dials")
        return

    known = know_all(upscaler, work) if args.table == "modalities" else []
    read = variants.takes_degradation(upscaler.bundle.manifest)

    def offered(number: int) -> dict[str, variants.Options]:
        if args.table == "modalities":
            return variants.modalities(*known[number], degradation=read)
        if args.table == "guidance":
            return variants.guidance(max(args.steps), args.weights)
        return variants.steps(args.steps)

    def chosen(number: int) -> dict[str, variants.Options]:
        every, patterns = offered(number), args.variant or ["*"]
        found = {n: o for n, o in every.items() if any(fnmatch(n, p) for p in patterns)}
        if not found:
            raise SystemExit(f"no variant is called {patterns}; there are {', '.join(every)}")
        return found

    judge = Judge(Metrics(args.metrics), fit_folder(args.photos) if args.photos else None)
    study = compare(upscaler, work, chosen, judge)
    study.write(args.out, args.table, variants.CONTRASTS if args.table == "modalities" else ())


if __name__ == "__main__":
    main()
