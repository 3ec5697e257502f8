"""On-device benchmark: time, memory and size by backend, precision and steps."""

from __future__ import annotations

from mmsr_edge.benchmark.machine import describe_machine, installed_version, peak_rss_mb
from mmsr_edge.benchmark.measure import (
    Configuration,
    Measurement,
    as_text,
    benchmark,
    grid,
    report,
    sample_picture,
    table_rows,
)

__all__ = [
    "Configuration",
    "Measurement",
    "as_text",
    "benchmark",
    "describe_machine",
    "grid",
    "installed_version",
    "peak_rss_mb",
    "report",
    "sample_picture",
    "table_rows",
]
