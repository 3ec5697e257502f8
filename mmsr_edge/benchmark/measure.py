"""On-device benchmark: what a picture costs on this machine, by backend, precision and steps.

Each configuration is measured in two processes of its own: the first starts with an empty cache of
compiled models (a cold start), the second with the one that the first left (a warm start), and goes
on to the repeats. A process's peak memory is then its own, and nothing is warm that was not meant
to be.
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
    """What is measured."""

    model: str = "nano"
    """A shipped model's name, or a bundle's folder."""
    backend: str = "auto"
    """Name of the runtime."""
    precision: str = "auto"
    """"int4", "int8", "fp16", "fp32", or "auto"."""
    steps: int | None = None
    """Sampler steps; None: the model's."""
    threads: int | None = None
    """For one network call; None: the backend's choice."""
    repeats: int = 7
    """Pictures that are timed, after one that is not."""
    picture: str | None = None
    """File to enlarge; None: `sample_picture()`."""
    device: str = "auto"
    """Where networks run, as the backend calls it."""
    compile: bool = False
    """Whether they are compiled first; torch alone has the choice."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise OptionError(f"repeats {self.repeats} must be 1 or more")


@dataclass(frozen=True)
class Measurement:
    """What came out. Times are in milliseconds, memory and files in MB (10⁶ bytes)."""

    backend: str
    """The runtime that ran."""
    precision: str
    """As asked for."""
    steps: int
    """Sampler steps that were run."""
    size: str
    """Width×height of the result."""
    disk_mb: float
    """All files that this configuration opens."""
    cold_ms: float
    """From the start of the process to the first picture, no compiled model being cached."""
    warm_ms: float
    """The same in a second process, which finds the first one's cache."""
    first_tile_ms: float
    """From that second process's call to the end of its first tile, networks being loaded in it."""
    load_ms: float
    """Of that, the opening of networks."""
    p50_ms: float
    """Median of a picture, everything loaded."""
    p90_ms: float
    """Nine of ten are no slower."""
    peak_mb: float | None
    """The most memory held; None where the system does not tell."""
    components: dict[str, tuple[float, float]]
    """(p50, p90) by component, all of a picture's calls added up."""


def sample_picture(side: int = 128) -> Image.Image:
    """A picture with edges, gradients and texture: the same on every machine."""
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
        progress: called with a configuration's name before it is measured.

    Returns:
        The measurements, and the reason by name for each configuration that cannot be run here.

    Raises:
        BackendError: a process ended without a result.
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
    """Every backend with every precision and number of steps, the rest as in `base`."""
    for backend, precision, count in itertools.product(backends, precisions, steps):
        yield replace(base, backend=backend, precision=precision, steps=count)


def _name(configuration: Configuration) -> str:
    steps = "" if configuration.steps is None else f", steps {configuration.steps}"
    return f"{configuration.backend} {configuration.precision}{steps}"


def _run(configuration: Configuration, cache: str, *, once: bool) -> dict[str, Any]:
    """One process's answer; "refused" instead when it cannot run the configuration."""
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

    opens = backend_named(backend)
    files = {
        file.path: file.bytes
        for name in bundle.manifest.components
        for file in opens.artifact(bundle, name, precision).files
    }
    return round(sum(files.values()) / 1e6, 2)


def _serve(task: dict[str, Any], began: float) -> dict[str, Any]:
    """The life of a measuring process: `began` is when it was started, on the same clock."""
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
    again = 0 if task["once"] else task["repeats"] + 1
    runs = [upscaler.upscale(picture, **options).timings for _ in range(again)]
    return {
        "backend": upscaler.backend,
        "steps": events[-1][1].steps,
        "size": f"{first.size[0]}x{first.size[1]}",
        "disk_mb": _disk_mb(upscaler.bundle, upscaler.backend, precision),
        "first_ms": round(first_ms, 1),
        "first_tile_ms": round((after_first_tile - called) * 1e3, 1),
        "first": first.timings,
        "runs": runs[1:],  # the first of them warms up
        "peak_mb": peak_rss_mb(),
    }


def report(measurements: Sequence[Measurement], refused: dict[str, str]) -> dict[str, Any]:
    """All there is to say, for programs: the machine too, without which the figures mean little."""
    return {
        "machine": describe_machine(),
        "measurements": [asdict(m) for m in measurements],
        "refused": refused,
    }


def table_rows(measurements: Sequence[Measurement]) -> list[dict[str, object]]:
    """A row per configuration; the two quantiles of a component are two columns."""
    rows = []
    for measured in measurements:
        row = asdict(measured)
        for name, (p50, p90) in row.pop("components").items():
            row |= {f"{name}_p50_ms": p50, f"{name}_p90_ms": p90}
        rows.append(row)
    return rows


def as_text(measurements: Sequence[Measurement], refused: dict[str, str]) -> str:
    """A table to read, and the components of each configuration."""
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
    """Measure what `argv` describes; for `_run` only. Users call `mmsr-edge bench`."""
    task, began = argv
    print(json.dumps(_serve(json.loads(task), float(began))), flush=True)
