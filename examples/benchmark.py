"""Measure this machine from Python: every usable backend at one and four steps.

python examples/benchmark.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmsr_edge import list_backends
from mmsr_edge.benchmark import Configuration, benchmark, grid, table_rows
from mmsr_edge.benchmark.chart import write_chart
from mmsr_edge.files import write_csv


def main() -> None:
    """Write `bench.csv` and `bench.png` into the folder given as argument."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    usable = [status.name for status in list_backends() if status.usable]
    work = list(grid(Configuration(repeats=5), usable, ["auto"], [1, 4]))
    measured, refused = benchmark(work, print)
    write_csv(out / "bench.csv", table_rows(measured))
    write_chart(out / "bench.png", measured)
    for one in measured:
        print(f"{one.backend}, steps {one.steps}: {one.p50_ms:.0f} ms (p90 {one.p90_ms:.0f})")
    for name, reason in refused.items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
