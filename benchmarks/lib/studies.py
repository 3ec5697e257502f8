"""Studies: all variants of the pictures of test sets, measured on the same pictures."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lib.comparison import Row, pairs, read, summarize
from lib.dials import Effects, dial_rows, dial_summary, turn_dials
from lib.metrics import Metrics, mse_y
from lib.niqe import Statistics, niqe
from lib.paired import Contrast, against, paired
from lib.strips import Cells, strip
from lib.variants import Known, Options, know
from mmsr_edge import Upscaler
from mmsr_edge.files import write_csv

LEADING = ("set", "degradation", "picture", "method")
SHEETS = 4
"""Pictures that strips show."""

Pair = tuple[Path, str, Path, Path]
"""Test set, degradation, LR path and HR path of a picture."""


def select(sets: Sequence[Path], degradations: Sequence[str], most: int | None) -> list[Pair]:
    """Pictures of test sets.

    Args:
        sets: the test sets.
        degradations: names of the degradations; empty: all.
        most: most pictures of each set and degradation; None: all.
    """
    work = []
    for root in sets:
        taken: Counter[str] = Counter()
        for degradation, lr, hr in pairs(root):
            if degradations and degradation not in degradations:
                continue
            taken[degradation] += 1
            if most is None or taken[degradation] <= most:
                work.append((root, degradation, lr, hr))
    if not work:
        raise SystemExit(f"none of {[str(s) for s in sets]} has pictures of {list(degradations)}")
    return work


def know_all(upscaler: Upscaler, work: Sequence[Pair]) -> list[tuple[Known, Known]]:
    """What is known of each picture, and of another, the next of its set and degradation."""
    known = [know(upscaler, read(lr), read(hr)) for _, _, lr, hr in tqdm(work, desc="maps")]
    out = []
    for number, (root, degradation, *_) in enumerate(work):
        group = [i for i, pair in enumerate(work) if pair[:2] == (root, degradation)]
        if len(group) < 2:
            raise SystemExit(
                f"{root}/{degradation}: another picture's modalities need two pictures, not 1"
            )
        following = group[(group.index(number) + 1) % len(group)]
        out.append((known[number], known[following]))
    return out


@dataclass
class Judge:
    """The measurements of a result."""

    metrics: Metrics
    """Metrics with a reference, and those of `pyiqa`."""
    good: Statistics | None = None
    """NIQE's model of good photographs; None: NIQE is not measured."""

    def __call__(self, picture: Image.Image, hr: Image.Image) -> dict[str, float]:
        """Measure a result."""
        result, reference = np.asarray(picture.convert("RGB")), np.asarray(hr)
        values = {"mse_y": mse_y(result, reference), **self.metrics(result, reference)}
        if self.good is not None:
            values["niqe"] = niqe(result, self.good)
        return values


@dataclass
class Study:
    """Rows of a table, one per picture and variant, and pictures of the first few."""

    rows: list[Row] = field(default_factory=list)
    """One row per picture and variant."""
    sheets: list[Cells] = field(default_factory=list)
    """The reference and the results of the first pictures."""

    @property
    def summary(self) -> list[Row]:
        """Means over the pictures of each set and degradation."""
        return summarize(self.rows)

    def contrasts(self, more: Sequence[Contrast] = ()) -> list[Row]:
        """Paired differences: of `more`, and of all variants with the first."""
        methods = list(dict.fromkeys(str(row["method"]) for row in self.rows))
        return paired(self.rows, [*more, *against(methods, methods[0])])

    def write(self, out: Path, name: str, contrasts: Sequence[Contrast] = ()) -> None:
        """Write the tables and the strip as `OUT/name…`, and print means and differences."""
        summary, differences = self.summary, self.contrasts(contrasts)
        write_csv(out / f"{name}.csv", self.rows)
        write_csv(out / f"{name}.summary.csv", summary)
        write_csv(out / f"{name}.paired.csv", differences)
        strip(self.sheets).save(out / f"{name}.png")
        for line in [*summary, *differences]:
            print(json.dumps(line))


def compare(
    upscaler: Upscaler,
    work: Sequence[Pair],
    variants: Callable[[int], Mapping[str, Options]],
    judge: Judge,
    save: Path | None = None,
) -> Study:
    """Measure every variant of every picture.

    Args:
        upscaler: the model.
        work: the pictures.
        variants: options by variant of the picture of a number.
        judge: measures the results.
        save: folder for the results, one subfolder per variant; None: they are not kept.
    """
    study = Study()
    for number, (root, degradation, lr_path, hr_path) in enumerate(tqdm(work, desc="pictures")):
        lr, hr = read(lr_path), read(hr_path)
        cells: Cells = [("reference", hr)]
        for name, options in variants(number).items():
            began = time.perf_counter()
            result = upscaler(lr, **options)
            seconds = time.perf_counter() - began
            key = dict(zip(LEADING, (root.name, degradation, lr_path.stem, name), strict=True))
            calls = sum(n for component, n in result.calls.items() if "unet" in component)
            values = judge(result.image, hr)
            study.rows.append({**key, **values, "unet_calls": calls, "seconds": seconds})
            cells.append((name, result.image))
            if save is not None:
                file = save / name / f"{root.name}-{degradation}-{lr_path.stem}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                result.image.save(file)
        if len(study.sheets) < SHEETS:
            study.sheets.append(cells)
    return study


def study_dials(upscaler: Upscaler, work: Sequence[Pair], out: Path, name: str) -> list[Row]:
    """Measure the dials; write `OUT/name.csv`, its summary and a strip, and return the summary."""
    groups: dict[tuple[str, str], Effects] = {}
    rows: list[Row] = []
    sheets: list[Cells] = []
    for root, degradation, lr_path, _ in tqdm(work, desc="dials"):
        effects, cells = turn_dials(upscaler, read(lr_path))
        key = {"set": root.name, "degradation": degradation, "picture": lr_path.stem}
        for effect in effects:
            rows += dial_rows(effect, **key)
            group = groups.setdefault((root.name, degradation), {})
            group.setdefault(effect.modality, []).append(effect)
        if len(sheets) < SHEETS:
            sheets += cells
    summary = [
        dial_summary(effects, set=root, degradation=degradation)
        for (root, degradation), by_modality in groups.items()
        for effects in by_modality.values()
    ]
    write_csv(out / f"{name}.csv", rows)
    write_csv(out / f"{name}.summary.csv", summary)
    if sheets:
        strip(sheets, side=256, moving=True).save(out / f"{name}.png")
    for line in summary:
        print(json.dumps(line))
    return summary
