"""Paired differences: two methods on the same pictures, with the standard error of their mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from lib.comparison import Row
from lib.metrics import measured

Contrast = tuple[str, str]
"""A method, and the one that it is compared with."""


def against(methods: Sequence[str], reference: str) -> list[Contrast]:
    """Contrasts of all methods with one of them."""
    return [(method, reference) for method in methods if method != reference]


def paired(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[Row]:
    """One row per set, degradation and contrast that `rows` have.

    Columns are, for each measurement, the mean difference (negative: smaller than the reference's),
    `…_se`, its standard error, and for errors `…_percent`, the difference in percent of the
    reference's mean.
    """
    values: dict[tuple[object, object], dict[str, dict[object, Row]]] = {}
    for row in rows:
        group = values.setdefault((row["set"], row["degradation"]), {})
        group.setdefault(str(row["method"]), {})[row["picture"]] = row
    out: list[Row] = []
    for (name, degradation), methods in values.items():
        for method, reference in dict.fromkeys(contrasts):
            if method not in methods or reference not in methods:
                continue
            ours, theirs = methods[method], methods[reference]
            both = [picture for picture in ours if picture in theirs]
            line: Row = {"set": name, "degradation": degradation, "method": method,
                         "reference": reference, "pictures": len(both)}  # fmt: skip
            for column in measured(ours[both[0]]):
                before = [float(str(theirs[picture][column])) for picture in both]
                after = [float(str(ours[picture][column])) for picture in both]
                line |= _column(column, before, after)
            out.append(line)
    return out


def _column(column: str, before: list[float], after: list[float]) -> Row:
    """Mean difference, standard error and, of an error, percent."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean = statistics.fmean(differences)
    out: Row = {column: round(mean, 5)}
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if before[1:] else math.nan
    out[f"{column}_se"] = round(error, 5)
    if column.startswith("mse"):
        out[f"{column}_percent"] = round(100 * mean / statistics.fmean(before), 3)
    return out
