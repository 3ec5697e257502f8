"""On-device benchmark: time and memory of a picture, by backend, precision and steps.

Each configuration is measured in two separate processes. The first starts with an empty cache of
compiled models (a cold start). The second starts with the first one's cache (a warm start) and then
runs the repeats. Separate processes keep the peak memory and the caches of configurations apart.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmsr_edge.benchmark.machine import describe_machine, peak_rss_mb
from mmsr_edge.errors import BackendError, Cancelled, MMSRError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mmsr_edge.bundle import Bundle

__all__ = [
    "Configuration",
    "Measurement",
    "as_text",
    "benchmark",
    "grid",
    "report",
    "sample_picture",
    "table_rows",
]


@dataclass(frozen=True)
class Configuration:
    """One configuration to measure."""

    model: str = "nano"
    """A shipped model's name, or a bundle's folder."""
    backend: str = "auto"
    """Name of the backend."""
    precision: str = "auto"
    """"int4", "int8", "fp16", "fp32", or "auto"."""
    steps: int | None = None
    """Sampler steps; None: the model's default."""
    threads: int | None = None
    """Threads of a network call; None: the backend's choice."""
    repeats: int = 7
    """Timed pictures, after one that is not timed."""
    picture: str | None = None
    """File to upscale; None: `sample_picture()`."""
    device: str = "auto"
    """Device that runs the networks, by the backend's name for it."""
    compile: bool = False
    """Whether the networks are compiled first; torch only."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise OptionError(f"repeats {self.repeats} must be 1 or more")


@dataclass(frozen=True)
class Measurement:
    """Result of one configuration. Times in milliseconds; memory and files in MB (10⁶ bytes)."""

    backend: str
    """Name of the backend that ran."""
    precision: str
    """Precision that was requested."""
    steps: int
    """Sampler steps that were run."""
    size: str
    """Width×height of the result."""
    disk_mb: float
    """Size of all files that this configuration opens."""
    cold_ms: float
    """From the start of the process to the first picture, with an empty cache."""
    warm_ms: float
    """The same in a second process, with the first one's cache."""
    first_tile_ms: float
    """From the second process's call to the end of its first tile, including loading networks."""
    load_ms: float
    """The part of `first_tile_ms` in which networks are loaded."""
    p50_ms: float
    """Median time of a picture, with all networks loaded."""
    p90_ms: float
    """90th percentile of that time."""
    peak_mb: float | None
    """Peak memory of the process; None if the system does not report it."""
    components: dict[str, tuple[float, float]]
    """(p50, p90) by component, summed over a picture's calls."""


def sample_picture(side: int = 128) -> Image.Image:
    """A synthetic picture with edges, gradients and texture, the same on every machine."""
    rng = np.random.Generator(np.random.Philox(7))
    y, x = np.mgrid[0:side, 0:side] / side
    base = np.stack([x, y, 1 - x * y], -1) * 160 + 40
    base[(x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.04] = (220, 60, 40)
    base[(np.abs(x - 0.7) < 0.15) & (np.sin(60 * y) > 0)] = (30, 30, 60)
    noisy = base + rng.normal(0, 6, base.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def benchmark(
    configurations: Sequence[Configuration],
    progress: Callable[[str], None] | None = None,
) -> tuple[list[Measurement], dict[str, str]]:
    """Measure each configuration.

    Args:
        configurations: configurations to measure, in this order.
        progress: called with a configuration's name before it is measured.

    Returns:
        The measurements, and by name the reason for each configuration that cannot run here.

    Raises:
        BackendError: a process ended without a result.
        Cancelled: a process was interrupted.
    """
    done, refused = [], {}
    for configuration in configurations:
        name = _name(configuration)
        if progress is not None:
            progress(name)
        with tempfile.TemporaryDirectory(prefix="mmsr-edge-bench-") as cache:
            cold = _run(configuration, cache, once=True)
            if "refused" in cold:
                refused[name] = str(cold["refused"])
                continue
            warm = _run(configuration, cache, once=False)
        done.append(_measurement(configuration, cold, warm))
    return done, refused


def grid(
    base: Configuration,
    backends: Sequence[str],
    precisions: Sequence[str],
    steps: Sequence[int | None],
) -> Iterator[Configuration]:
    """Every combination of backend, precision and number of steps; other fields as in `base`."""
    for backend, precision, count in itertools.product(backends, precisions, steps):
        yield replace(base, backend=backend, precision=precision, steps=count)


def _name(configuration: Configuration) -> str:
    steps = "" if configuration.steps is None else f", steps {configuration.steps}"
    return f"{configuration.backend} {configuration.precision}{steps}"


def _run(configuration: Configuration, cache: str, *, once: bool) -> dict[str, Any]:
    """The answer of one process; it has only "refused" if the configuration cannot run."""
    task = json.dumps({**asdict(configuration), "cache": cache, "once": once})
    began = time.time()
    process = subprocess.run(
        [sys.executable, "-m", "mmsr_edge.benchmark", task, repr(began)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    answers = [line for line in process.stdout.splitlines() if line.startswith("{")]
    if process.returncode != 0 or not answers:
        if process.returncode in (-2, 130):
            raise Cancelled("cancelled while measuring")
        tail = process.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BackendError(
            f"measuring {_name(configuration)} failed (exit {process.returncode}): {tail[0]}"
        )
    answer: dict[str, Any] = json.loads(answers[-1])
    return answer


def _measurement(
    configuration: Configuration, cold: dict[str, Any], warm: dict[str, Any]
) -> Measurement:
    runs: list[dict[str, float]] = warm["runs"]
    names = [name for name in runs[0] if name not in ("total", "load")]

    def quantiles(values: Sequence[float]) -> tuple[float, float]:
        p50, p90 = np.quantile(values, [0.5, 0.9]) * 1e3
        return round(float(p50), 2), round(float(p90), 2)

    p50, p90 = quantiles([run["total"] for run in runs])
    return Measurement(
        backend=warm["backend"],
        precision=configuration.precision,
        steps=warm["steps"],
        size=warm["size"],
        disk_mb=warm["disk_mb"],
        cold_ms=cold["first_ms"],
        warm_ms=warm["first_ms"],
        first_tile_ms=warm["first_tile_ms"],
        load_ms=round(warm["first"].get("load", 0.0) * 1e3, 1),
        p50_ms=p50,
        p90_ms=p90,
        peak_mb=warm["peak_mb"],
        components={name: quantiles([run.get(name, 0.0) for run in runs]) for name in names},
    )


def _disk_mb(bundle: Bundle, backend: str, precision: str) -> float:
    from mmsr_edge.runtimes.registry import backend_named

    runtime = backend_named(backend)
    files = {
        file.path: file.bytes
        for name in bundle.manifest.components
        for file in runtime.artifact(bundle, name, precision).files
    }
    return round(sum(files.values()) / 1e6, 2)


def _serve(task: dict[str, Any], began: float) -> dict[str, Any]:
    """The work of a measuring process; `began` is the `time.time()` at which it was started."""
    from mmsr_edge.upscaler import Progress, Upscaler

    model, backend, precision = task["model"], task["backend"], task["precision"]
    picture = task["picture"] or sample_picture()
    options = {"steps": task["steps"], "prompt": "auto"}
    events: list[tuple[float, Progress]] = []
    try:
        upscaler = Upscaler(
            model,
            backend,
            precision=precision,
            threads=task["threads"],
            cache_dir=task["cache"],
            device=task["device"],
            compile=task["compile"],
        )
        called = time.perf_counter()
        first = upscaler.upscale(
            picture,
            progress=lambda event: events.append((time.perf_counter(), event)),
            **options,
        )
    except MMSRError as error:
        return {"refused": str(error)}
    first_ms = (time.time() - began) * 1e3
    after_first_tile = next(
        at for at, event in events if event.tile > 1 or event.stage in ("finishing", "done")
    )
    count = 0 if task["once"] else task["repeats"] + 1
    runs = [upscaler.upscale(picture, **options).timings for _ in range(count)]
    return {
        "backend": upscaler.backend,
        "steps": events[-1][1].steps,
        "size": f"{first.size[0]}x{first.size[1]}",
        "disk_mb": _disk_mb(upscaler.bundle, upscaler.backend, precision),
        "first_ms": round(first_ms, 1),
        "first_tile_ms": round((after_first_tile - called) * 1e3, 1),
        "first": first.timings,
        "runs": runs[1:],  # the first one warms up
        "peak_mb": peak_rss_mb(),
    }


def report(measurements: Sequence[Measurement], refused: dict[str, str]) -> dict[str, Any]:
    """The measurements as JSON types, with the machine that they were taken on."""
    return {
        "machine": describe_machine(),
        "measurements": [asdict(m) for m in measurements],
        "refused": refused,
    }


def table_rows(measurements: Sequence[Measurement]) -> list[dict[str, object]]:
    """One row per configuration; each component has two columns, p50 and p90."""
    rows = []
    for measured in measurements:
        row = asdict(measured)
        for name, (p50, p90) in row.pop("components").items():
            row |= {f"{name}_p50_ms": p50, f"{name}_p90_ms": p90}
        rows.append(row)
    return rows


def as_text(measurements: Sequence[Measurement], refused: dict[str, str]) -> str:
    """The measurements as a plain-text table, followed by the components' times."""
    head = (
        f"{'backend':<12} {'precision':<9} {'steps':>5} {'cold':>8} {'warm':>8} {'1st tile':>8} "
        f"{'p50':>8} {'p90':>8} {'peak MB':>8} {'disk MB':>8}"
    )
    lines = [head, "-" * len(head)]
    for m in measurements:
        peak = "" if m.peak_mb is None else f"{m.peak_mb:.0f}"
        lines.append(
            f"{m.backend:<12} {m.precision:<9} {m.steps:>5} {m.cold_ms:>8.0f} {m.warm_ms:>8.0f} "
            f"{m.first_tile_ms:>8.0f} {m.p50_ms:>8.1f} {m.p90_ms:>8.1f} {peak:>8} {m.disk_mb:>8.1f}"
        )
    lines.append("times in ms; cold, warm: from the start of a process to its first picture")
    for m in measurements:
        parts = ", ".join(f"{name} {p50:.1f}" for name, (p50, _) in m.components.items())
        lines.append(f"{m.backend} {m.precision}, steps {m.steps}: {parts}")
    lines += [f"not measured: {name}: {reason}" for name, reason in refused.items()]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Measure the task in `argv` and print JSON; for `_run` only. Users call `mmsr-edge bench`."""
    task, began = argv
    print(json.dumps(_serve(json.loads(task), float(began))), flush=True)
