"""Measure this machine from Python: every usable backend at one and at four steps.

python examples/benchmark.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmsr_edge.benchmark import Configuration, benchmark, grid, write_csv
from mmsr_edge.benchmark.chart import write_chart
from mmsr_edge.runtimes.registry import BACKENDS


def main() -> None:
    """Write `bench.csv` and `bench.png` into the argument's folder."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    usable = [backend.name for backend in BACKENDS if backend.available() is None]
    work = list(grid(Configuration(repeats=5), usable, ["auto"], [1, 4]))
    measured, refused = benchmark(work, print)
    write_csv(out / "bench.csv", measured)
    write_chart(out / "bench.png", measured)
    for one in measured:
        print(f"{one.backend}, steps {one.steps}: {one.p50_ms:.0f} ms (p90 {one.p90_ms:.0f})")
    for name, reason in refused.items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
