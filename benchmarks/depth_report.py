"""Accuracy of the depth student on frames with measured depth, and its maps of photographs.

    python benchmarks/depth_report.py --run RUN --rgbd DIR --photos DIR --out OUT

`--rgbd` has `color/` and `depth/` (16-bit, millimetres, 0 = unknown); files of the same stem belong
together. The frames only measure: nothing is trained or chosen on them. Writes `depth.csv` (one row
per frame), `summary.csv`, `rgbd.png` (picture | student | truth) and `photos.png`.

A pair of points counts if its depths differ by more than a ratio. A tie counts one half, so that
chance is 0.5. The baseline "lower is nearer" ties within a row; it is also given without ties.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lib.comparison import Row, read
from lib.ordinal import draw_pairs, lower_is_nearer, ordinal_accuracy
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mmsr_edge.bundle import MAP_SIDE
from mmsr_edge.files import write_csv
from mmsr_edge.modalities.base import squeeze_picture
from mmsr_edge.models.depth import DepthConfig, build_depth
from mmsr_edge.training.data.degradation import DegradeConfig, degrade
from mmsr_edge.training.data.photos import find_photos
from mmsr_edge.training.data.scene_data import Scenes
from mmsr_edge.training.states import load_run

RATIOS = (1.02, 1.05, 1.1, 1.25)
"""Least depth ratios of the pairs."""

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Depth network: [1, 3, 256, 256] in [-1, 1] → [1, 1, 256, 256]."""


def torch_network(run: Path) -> Network:
    """Load the averaged weights of a training run."""
    network = build_depth(DepthConfig()).eval()
    network.load_state_dict(load_run(run)["depth"])

    def call(image: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(image)).numpy())

    return call


def exported_network(path: Path) -> Network:
    """Load an ONNX file or OpenVINO IR with OpenVINO."""
    import openvino as ov

    compiled = ov.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: np.asarray(compiled(image)[0])


def predict(network: Network, picture: Image.Image) -> NDArray[np.float64]:
    """Predict nearness at the picture's own size, as in the pipeline."""
    rgb = np.asarray(picture, np.float32) / 127.5 - 1
    out = network(squeeze_picture(rgb, MAP_SIDE))[0, 0]
    resized = Image.fromarray(out).resize(picture.size, Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float64)


def spoil(picture: Image.Image, seed: int) -> Image.Image:
    """Make an LR picture: a quarter of the size, degraded."""
    rgb = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    lr = degrade(rgb, DegradeConfig(clean=0.0), torch.Generator().manual_seed(seed))
    return Image.fromarray(((lr[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def measure(
    network: Network, picture: Image.Image, depth: NDArray[np.float64], count: int, seed: int
) -> Row:
    """Ordinal accuracies of one frame, at each of `RATIOS`."""
    height, width = depth.shape
    bad = predict(network, spoil(picture, seed))
    bad_map = Image.fromarray(bad.astype(np.float32)).resize((width, height))
    maps = {
        "student": predict(network, picture),
        "student_on_lr": np.asarray(bad_map, np.float64),
        "lower": lower_is_nearer(height, width),
    }
    row: Row = {}
    for ratio in RATIOS:
        near, far = draw_pairs(depth, ratio, count, seed)
        for name, map_ in maps.items():
            row[f"{name}@{ratio}"] = ordinal_accuracy(map_, near, far)
        row[f"lower_without_ties@{ratio}"] = ordinal_accuracy(maps["lower"], near, far, ties=None)
    return row


def grey(map_: NDArray[np.float64]) -> Image.Image:
    """Convert a map in [0, 1] to a grey picture."""
    return Image.fromarray((map_.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")


def truth(depth: NDArray[np.float64]) -> Image.Image:
    """Picture of the measured depth in the student's units; unknown is black."""
    known = depth > 0
    inverse = np.where(known, 1 / np.where(known, depth, 1), 0)
    low, high = np.percentile(inverse[known], [2, 98])
    return grey(np.where(known, np.sqrt(((inverse - low) / (high - low)).clip(0, 1)), 0))


def sheet(rows: list[list[Image.Image]], size: tuple[int, int], columns: int) -> Image.Image:
    """Arrange groups of pictures side by side, `columns` groups per line."""
    groups = (rows[i : i + columns] for i in range(0, len(rows), columns))
    lines = [[picture for group in line for picture in group] for line in groups]
    out = Image.new("RGB", (max(map(len, lines)) * size[0], len(lines) * size[1]))
    for y, line in enumerate(lines):
        for x, picture in enumerate(line):
            out.paste(picture.resize(size, Image.Resampling.BILINEAR), (x * size[0], y * size[1]))
    return out


def scenes_accuracy(network: Network, folder: Path, count: int) -> list[float]:
    """Ordinal accuracies on held-out rendered scenes; the sky is farthest."""
    scores = []
    for path in Scenes.held_out_files(folder):
        for rgb, inverse in zip(*Scenes.load(path), strict=True):
            picture = Image.fromarray(rgb.permute(1, 2, 0).numpy())
            depth = 1 / inverse[0].double().clamp_min(1e-4).numpy()
            near, far = draw_pairs(depth, 1.05, count)
            scores.append(ordinal_accuracy(predict(network, picture), near, far))
    return scores


def summed_up(measure: str, values: list[float]) -> Row:
    """Row of the summary: mean and worst value."""
    mean, worst = round(float(np.mean(values)), 4), round(float(min(values)), 4)
    return {"measure": measure, "mean": mean, "worst": worst}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder of a run of train_depth")
    source.add_argument("--model", type=Path, help="ONNX file or OpenVINO IR of the network")
    parser.add_argument("--rgbd", type=Path, help="folder of frames with measured depth")
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    parser.add_argument("--scenes", type=Path, help="folder of rendered scenes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs per frame and ratio")
    parser.add_argument("--count", type=int, default=48, help="photographs on the sheet")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    network = torch_network(args.run) if args.run else exported_network(args.model)
    summary: list[Row] = []
    if args.scenes:
        scores = scenes_accuracy(network, args.scenes, args.pairs)
        summary.append(summed_up("student_on_held_out_scenes@1.05", scores))
    if args.rgbd:
        rows: list[Row] = []
        shown = []
        frames = sorted((args.rgbd / "color").iterdir())
        for i, path in enumerate(tqdm(frames, desc="frames")):
            picture = read(path)
            with Image.open(args.rgbd / "depth" / f"{path.stem}.png") as file:
                depth = np.asarray(file, np.float64)
            row = measure(network, picture, depth, args.pairs, args.seed + i)
            rows.append({"frame": path.stem} | row)
            if i % 3 == 0:
                shown.append([picture, grey(predict(network, picture)), truth(depth)])
        write_csv(args.out / "depth.csv", rows)
        names = list(rows[0])[1:]
        summary += [summed_up(name, [float(str(row[name])) for row in rows]) for name in names]
        sheet(shown, (240, 180), 2).save(args.out / "rgbd.png")
    if args.photos:
        paths = find_photos(args.photos)
        chosen = paths[:: max(1, len(paths) // args.count)][: args.count]
        shown = [[read(p), grey(predict(network, read(p)))] for p in tqdm(chosen, desc="photos")]
        sheet(shown, (192, 128), 4).save(args.out / "photos.png")
    write_csv(args.out / "summary.csv", summary)
    for row in summary:
        print(row)


if __name__ == "__main__":
    main()
