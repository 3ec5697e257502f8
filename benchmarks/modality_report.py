"""Agreement of the students with their teachers, on photographs held out of training.

    python benchmarks/modality_report.py tags --run RUN --labels LABELS --out OUT
    python benchmarks/modality_report.py regions --run RUN --labels LABELS --materials DIR --out OUT

The teacher's input is the clean view. The student's inputs are three: the clean view; the view
reduced to 128 pixels a side by bicubic downscaling (×4); and the view reduced by the degradation of
training (×4). Prints and writes a table (`tags.csv`, or `regions.csv` and `classes.csv`), and
writes a contact sheet.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.bundle import MAP_SIDE
from mmsr_edge.files import write_csv
from mmsr_edge.modalities.segmentation import PALETTE
from mmsr_edge.modalities.tags import choose_tags, describe
from mmsr_edge.models.caption import TaggerConfig, build_tagger
from mmsr_edge.models.segmentation import SegmentationConfig, build_segmentation
from mmsr_edge.training.data.degradation import DegradeConfig, degrade
from mmsr_edge.training.data.views import to_images
from mmsr_edge.training.modality_networks import load_labels
from mmsr_edge.training.states import load_run
from mmsr_edge.training.teachers.labels import VOC, read_labels
from mmsr_edge.training.teachers.materials import (
    LABEL_SIDE,
    SURE,
    class_names,
    probabilities,
    region_labels,
)
from mmsr_edge.training.train_tagger import by_name, restrict, softmax

Array = NDArray[Any]


def seen(views: Array) -> dict[str, Tensor]:
    """Inputs of the student, [N, 3, 256, 256] by name, of `views` uint8 [N, 256, 256, 3].

    The views are enlarged to 512 pixels before the reduction by 4.
    """
    clean = to_images(torch.from_numpy(views))
    g = torch.Generator().manual_seed(0)
    pictures = {"clean": clean, "bicubic": [], "degraded": []}
    for part in clean.split(8):
        hr = F.interpolate(part, (2 * MAP_SIDE, 2 * MAP_SIDE), mode="bicubic").clamp(-1, 1)
        for name, share in (("bicubic", 1.0), ("degraded", 0.0)):
            lr = degrade(hr, DegradeConfig(clean=share), g)
            pictures[name].append(F.interpolate(lr, (MAP_SIDE, MAP_SIDE), mode="bilinear"))
    return {k: v if isinstance(v, Tensor) else torch.cat(v) for k, v in pictures.items()}


@torch.inference_mode()
def run_network(network: nn.Module, images: Tensor) -> Array:
    """Outputs of the network for all `images`."""
    return torch.cat([network(part) for part in images.split(8)]).numpy()


def speed(network: nn.Module, images: Tensor, threads: int, seconds: float = 4.0) -> None:
    """Print the time per picture in OpenVINO at fp32 and int8, and the agreement of the two.

    Args:
        network: trained network.
        images: pictures [N, 3, 256, 256]; the first half calibrates, the second is compared.
        threads: threads of the runtime.
        seconds: least time to measure each precision.
    """
    import nncf
    import openvino

    model = openvino.convert_model(network, example_input=images[:1])
    model.reshape([1, 3, MAP_SIDE, MAP_SIDE])
    feeds = [image[None].numpy() for image in images]
    half = len(feeds) // 2
    quantized = nncf.quantize(model, nncf.Dataset(feeds[:half]), subset_size=half)
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    outputs = {}
    for name, m in (("fp32", model), ("int8", quantized)):
        compiled = openvino.Core().compile_model(m, "CPU", options)
        outputs[name] = np.concatenate([compiled(feed)[0] for feed in feeds[half:]])
        times: list[float] = []
        while sum(times) < seconds or len(times) < 10:
            began = time.perf_counter()
            compiled(feeds[0])
            times.append(time.perf_counter() - began)
        best, median = 1000 * min(times), 1000 * float(np.median(times))
        print(f"OpenVINO {name}, {threads} threads: {median:.2f} ms (fastest {best:.2f}), "
              f"{1000 / median:.0f} pictures a second")  # fmt: skip
    a, b = outputs["fp32"], outputs["int8"]
    if a.dtype.kind == "f":
        print(f"int8 against fp32: differences up to {np.abs(a - b).max():.4f}, "
              f"share of equal first tags {(a.argmax(1) == b.argmax(1)).mean():.3f}")  # fmt: skip
    else:
        print(f"int8 against fp32: share of equal pixels {(a == b).mean():.4f}")


def top(scores: Array, count: int) -> list[set[int]]:
    """Indices of the `count` highest scores of each row."""
    return [set(row.argsort()[::-1][:count].tolist()) for row in scores]


def report_tags(args: argparse.Namespace) -> None:
    """Report the agreement of the tagger."""
    names = list(load_labels(args.run)["captioner"])
    tagger = build_tagger(TaggerConfig(len(names))).eval()
    tagger.load_state_dict(load_run(args.run)["captioner"])
    arrays, photos = read_labels(args.labels, held_out=True)
    arrays, photos = pick(arrays, photos, args.views)
    everything = json.loads((args.labels / "names.json").read_text())
    whole, once = by_name(softmax(arrays["logits"].astype(np.float32)), everything)
    kept = np.array([once.index(n) for n in names])
    truth = restrict(whole, kept)[:, :-1]
    # Baseline: the same tags for every picture.
    train_mean = mean_tags(args.labels, names)
    rows: list[dict[str, object]] = []
    pictures = seen(arrays["views"])
    scores = {name: run_network(tagger, images) for name, images in pictures.items()}
    scores["always the commonest"] = np.tile(train_mean, (len(truth), 1))
    for name, predicted in scores.items():
        true5, whole5, predicted5 = top(truth, 5), top(whole, 5), top(predicted, 5)
        as_whole = [set(kept[list(s)].tolist()) for s in predicted5]
        row: dict[str, object] = {"seen": name, "views": len(truth), "photos": len(set(photos))}
        row["top1"] = mean(t == s for t, s in zip(top(truth, 1), top(predicted, 1), strict=True))
        row["teacher's first in top5"] = mean(
            t <= s for t, s in zip(top(truth, 1), predicted5, strict=True)
        )
        row["top5 shared"] = mean(len(t & s) / 5 for t, s in zip(true5, predicted5, strict=True))
        row["top5 shared, of all names"] = mean(
            len(t & s) / 5 for t, s in zip(whole5, as_whole, strict=True)
        )
        row["teacher's first of all names in top5"] = mean(
            t <= s for t, s in zip(top(whole, 1), as_whole, strict=True)
        )
        sure = truth.max(1) >= 0.5
        row["sure views"] = int(sure.sum())
        row["sure: teacher's first in top5"] = mean(
            t <= s for t, s, ok in zip(top(truth, 1), predicted5, sure, strict=True) if ok
        )
        rows.append(row)
        print(row)
    count = sum(p.numel() for p in tagger.parameters())
    print(f"{len(names)} tags, {count / 1e6:.2f} M parameters")
    speed(tagger, pictures["degraded"], args.threads)
    write_csv(args.out / "tags.csv", rows)
    first = [photos.index(p) for p in dict.fromkeys(photos)][: args.sheet]
    panels = []
    for i in first:
        lines = [("teacher", truth[i]), *((k, scores[k][i]) for k in pictures)]
        text = [f"{k}: " + ", ".join(f"{t.name} {t.score:.2f}" for t in
                choose_tags(v, names, threshold=0.02)) for k, v in lines]  # fmt: skip
        image = pictures["degraded"][i].permute(1, 2, 0).numpy()
        text.append("computed: " + " ".join(describe(image, 4)))
        panels.append(captioned([arrays["views"][i], to_uint8(pictures["degraded"][i])], text))
    stack(panels).save(args.out / "tags.png")


def mean_tags(labels: Path, names: list[str]) -> Array:
    """Mean probability of each tag by the teacher, over the training photographs."""
    arrays, _ = read_labels(labels, held_out=False, only="logits")
    everything = json.loads((labels / "names.json").read_text())
    whole, once = by_name(softmax(arrays["logits"].astype(np.float32)), everything)
    return np.asarray(whole.mean(0)[[once.index(n) for n in names]])


def confusion(truth: Array, predicted: Array, classes: int) -> Array:
    """Counts of pixels by true class and class in `predicted`: [classes, classes]."""
    pairs = truth.astype(np.int64).ravel() * classes + predicted.ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def scores_of(table: Array) -> tuple[float, Array, float]:
    """Pixel agreement, IoU of each class (NaN: not in the truth), and mean IoU."""
    hits = np.diag(table).astype(np.float64)
    union = table.sum(0) + table.sum(1) - hits
    with np.errstate(invalid="ignore"):
        iou = np.where(table.sum(1) > 0, hits / union, np.nan)
    return float(hits.sum() / table.sum()), iou, float(np.nanmean(iou))


def report_regions(args: argparse.Namespace) -> None:
    """Report the agreement of the segmentation network."""
    names = list(load_labels(args.run)["segmentation"])
    if names != class_names(json.loads((args.materials / "names.json").read_text())):
        raise SystemExit("the run was trained with other materials; give its own --materials")
    network = build_segmentation(SegmentationConfig(len(names))).eval()
    network.load_state_dict(load_run(args.run)["segmentation"])
    views, labels, names_of = region_labels(args.labels, args.materials, held_out=True)
    logits = read_labels(args.labels, held_out=True, only="logits")[0]["logits"]
    arrays, photos = pick(
        {"views": views, "labels": labels, "logits": logits}, names_of, args.views
    )
    views, labels = arrays["views"], arrays["labels"]
    chance = probabilities(arrays["logits"].astype(np.float32))  # [N, 33, 33, 21]
    # DeepLab's own classes, those of VOC; everything else is background.
    side = F.interpolate(
        torch.from_numpy(chance).permute(0, 3, 1, 2), (LABEL_SIDE, LABEL_SIDE), mode="bilinear"
    ).numpy()
    deeplab = np.where(side[:, 1:].max(1) > SURE, side.argmax(1), 0)
    pictures = seen(views)
    rows, classes, found = [], [{"class": name} for name in names], {}
    for name, images in pictures.items():
        full = run_network(network, images)
        found[name] = full
        # A label pixel is compared with the middle of the 4×4 pixels that it covers.
        step = MAP_SIDE // LABEL_SIDE
        small = full[:, step // 2 :: step, step // 2 :: step]
        agreement, iou, mean_iou = scores_of(confusion(labels, small, len(names)))
        voc = np.where(small < len(VOC), small, 0)
        voc_agreement, voc_iou, voc_mean = scores_of(confusion(deeplab, voc, len(VOC)))
        thing = confusion(deeplab > 0, voc > 0, 2)
        rows.append({
            "seen": name, "views": len(views), "photos": len(set(photos)),
            "pixel agreement": round(agreement, 3), "mIoU": round(mean_iou, 3),
            "classes met": int(np.isfinite(iou).sum()),
            "DeepLab: pixel agreement": round(voc_agreement, 3),
            "DeepLab: mIoU": round(voc_mean, 3),
            "DeepLab: classes met": int(np.isfinite(voc_iou).sum()),
            "DeepLab: any thing, IoU": round(float(scores_of(thing)[1][1]), 3),
        })  # fmt: skip
        print(rows[-1])
        share = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        for i, row in enumerate(classes):
            row["share of labels"] = f"{share[i]:.4f}"
            row[f"IoU {name}"] = f"{iou[i]:.3f}"
    # Baselines: the commonest class everywhere, and background everywhere.
    common = np.bincount(labels.ravel()).max() / labels.size
    print(f"one class everywhere: {common:.3f}; background everywhere: {(deeplab == 0).mean():.3f}")
    for row in classes:
        print(row)
    count = sum(p.numel() for p in network.parameters())
    print(f"{len(names)} classes, {count / 1e6:.2f} M parameters")
    speed(network, pictures["degraded"], args.threads)
    write_csv(args.out / "regions.csv", rows)
    write_csv(args.out / "classes.csv", classes)
    order = [photos.index(p) for p in dict.fromkeys(photos)][: args.sheet]
    panels = []
    for i in order:
        maps = [labels[i].repeat(step, 0).repeat(step, 1), found["clean"][i], found["degraded"][i]]
        tiles = [views[i], *(PALETTE[m] for m in maps)]
        text = ["picture | label | student, clean | student, degraded"]
        for title, m in zip(("label", "clean", "degraded"), maps, strict=True):
            share = np.bincount(m.ravel(), minlength=len(names)) / m.size
            text.append(f"{title}: " + ", ".join(f"{names[c]} {share[c]:.0%}" for c in
                        share.argsort()[::-1][:5] if share[c] > 0.01))  # fmt: skip
        panels.append(captioned(tiles, text))
    legend = captioned([np.full((16, MAP_SIDE, 3), 255, np.uint8)], ["colours:"])
    stack([*panels, legend, *swatches(names)]).save(args.out / "regions.png")


def swatches(names: list[str]) -> list[Image.Image]:
    """Lines of the legend: colour and name of each class, eight per line."""
    lines = []
    for start in range(0, len(names), 8):
        line = Image.new("RGB", (4 * MAP_SIDE, 18), "white")
        draw = ImageDraw.Draw(line)
        for k, name in enumerate(names[start : start + 8]):
            x = k * MAP_SIDE // 2
            draw.rectangle((x, 2, x + 14, 16), fill=tuple(PALETTE[start + k].tolist()))
            draw.text((x + 18, 3), name, fill="black")
        lines.append(line)
    return lines


def pick(
    arrays: dict[str, Array], photos: list[str], views: int
) -> tuple[dict[str, Array], list[str]]:
    """Keep the first `views` views of each photograph; the first shows all of it."""
    rows = [i for i, p in enumerate(photos) if i - photos.index(p) < views]
    return {k: v[rows] for k, v in arrays.items()}, [photos[i] for i in rows]


def mean(values: Any) -> float:
    """Mean, rounded to 3 decimals; NaN without values."""
    listed = [float(v) for v in values]
    return round(sum(listed) / len(listed), 3) if listed else float("nan")


def to_uint8(image: Tensor) -> Array:
    """Convert an image [3, H, W] in [-1, 1] to uint8 [H, W, 3]."""
    return ((image.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def captioned(tiles: list[Array], lines: list[str]) -> Image.Image:
    """Draw pictures side by side, with lines of text below."""
    height = max(t.shape[0] for t in tiles)
    panel = Image.new("RGB", (4 * MAP_SIDE, height + 14 * len(lines) + 6), "white")
    for k, tile in enumerate(tiles):
        panel.paste(Image.fromarray(np.asarray(tile, np.uint8)), (k * MAP_SIDE, 0))
    draw = ImageDraw.Draw(panel)
    for k, line in enumerate(lines):
        draw.text((4, height + 2 + 14 * k), line, fill="black")
    return panel


def stack(panels: list[Image.Image]) -> Image.Image:
    """Stack panels vertically."""
    sheet = Image.new("RGB", (panels[0].width, sum(p.height for p in panels)), "white")
    top_edge = 0
    for panel in panels:
        sheet.paste(panel, (0, top_edge))
        top_edge += panel.height
    return sheet


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["tags", "regions"])
    parser.add_argument("--run", type=Path, required=True, help="folder of the student's run")
    parser.add_argument("--labels", type=Path, required=True, help="folder of the teachers' labels")
    parser.add_argument("--materials", type=Path, help="folder of the named clusters, for regions")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--views", type=int, default=8, help="most views of a photograph")
    parser.add_argument("--sheet", type=int, default=22, help="photographs on the contact sheet")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    if args.what == "regions" and args.materials is None:
        parser.error("regions needs --materials")
    args.out.mkdir(parents=True, exist_ok=True)
    {"tags": report_tags, "regions": report_regions}[args.what](args)


if __name__ == "__main__":
    main()
