"""Teachers of the small networks: published classifiers that say what photographs show.

    python -m mmsr_edge.training.teachers.labels --photos DIR --teachers DIR --out CACHE --teacher tags
    python -m mmsr_edge.training.teachers.labels --photos DIR --teachers DIR --out CACHE --teacher regions

Both are TFLite files under Apache-2.0 that OpenVINO reads as they are; they teach and are not
shipped. Each photograph is looked at whole and in random pieces ("views"). What a teacher says of
them is kept, one file a photograph, and the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mmsr_edge.bundle import MAP_SIDE
from mmsr_edge.errors import OptionError
from mmsr_edge.files import replacing
from mmsr_edge.training.data.photos import find_photos
from mmsr_edge.training.teachers.tag_names import tag_names

ONE_THREAD = {"INFERENCE_NUM_THREADS": 1}
"""These networks gain little from more, and on a busy machine threads wait for each other."""

Array = NDArray[Any]
Box = tuple[int, int, int, int]

VOC = (
    "none", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "screen",
)  # fmt: skip
"""PASCAL VOC's classes in its order; its background is no class."""
HELD_OUT = 0.1
"""Share of the photographs that no student learns from."""
WORKING_SIDE = 1280
"""Longest side of a photograph that views are cut from: the smallest still fill a teacher."""
VIEWS = {"tags": 40, "regions": 6}
"""Views of a photograph by teacher."""


def is_held_out(photo: str, share: float = HELD_OUT, seed: int = 0) -> bool:
    """Whether a photograph is kept for measuring: decided by its file name alone."""
    return zlib.crc32(f"{seed}:{photo}".encode()) % 10_000 < share * 10_000


class Teacher(Protocol):
    """Says something of a picture."""

    def __call__(self, picture: Image.Image) -> dict[str, Array]:
        """Arrays by name, of the same shapes for every picture."""


def _read_model(folder: Path, name: str) -> Any:
    import openvino

    path = folder / name
    if not path.exists():
        raise OptionError(f"no teacher {name!r} in {str(folder)!r}; see TRAINING.md for where from")
    core = openvino.Core()
    return core, core.read_model(path)


def _op(model: Any, kind: str) -> Any:
    (found,) = [op for op in model.get_ops() if op.get_type_name() == kind]
    return found


class Classifier:
    """MobileNetV2 1.0 (224 px), trained on ImageNet.

    Args:
        folder: with the TFLite file and `imagenet_labels.txt`.
    """

    FILE = "mobilenet_v2_1.0_224_quant.tflite"
    LABELS = "imagenet_labels.txt"

    def __init__(self, folder: Path) -> None:
        core, model = _read_model(folder, self.FILE)
        # The file's own output is rounded to 1/256; the logits before it are finer.
        outputs = [_op(model, "Softmax").input_value(0), _op(model, "AvgPool").output(0)]
        model.add_outputs(outputs)
        self.model = core.compile_model(model, "CPU", ONE_THREAD)
        # All synonyms of a class stand on its line; the first is the commonest.
        lines = (folder / self.LABELS).read_text().splitlines()
        self.names = tag_names([line.split(",")[0].strip() for line in lines])

    def __call__(self, picture: Image.Image) -> dict[str, Array]:
        """`logits` [1001] (0 is none) and `features` [1280] of a picture, squeezed to a square."""
        small = picture.resize((224, 224), Image.Resampling.BILINEAR, reducing_gap=2.0)
        pixels = np.asarray(small)[None]
        _, logits, features = self.model(pixels).values()
        return {"logits": logits.reshape(-1), "features": features.reshape(-1)}


class Segmenter:
    """DeepLabv3 on MobileNetV2 (513 px), trained on PASCAL VOC.

    Args:
        folder: with the TFLite file.
    """

    FILE = "deeplabv3_mnv2_pascal_quant.tflite"
    INPUT = 513
    GREY = (127, 127, 127)

    def __init__(self, folder: Path) -> None:
        core, model = _read_model(folder, self.FILE)
        # Logits where they are as coarse as the network sees, and the features below its head.
        logits = _op(model, "TopK").input_value(0).get_node()
        while tuple(logits.output(0).shape) != (1, 33, 33, len(VOC)):
            logits = logits.input_value(0).get_node()
        model.add_outputs([logits.output(0), _op(model, "AvgPool").input_value(0)])
        self.model = core.compile_model(model, "CPU", ONE_THREAD)

    def __call__(self, picture: Image.Image) -> dict[str, Array]:
        """`logits` [33, 33, 21] and `features` [33, 33, 320] of a picture squeezed to a square."""
        # The teacher knows things in their true proportions: fitted in, grey around.
        scale = self.INPUT / max(picture.size)
        width, height = (max(round(n * scale), 1) for n in picture.size)
        canvas = Image.new("RGB", (self.INPUT, self.INPUT), self.GREY)
        canvas.paste(picture.resize((width, height), Image.Resampling.BILINEAR))
        _, logits, features = self.model(np.asarray(canvas)[None]).values()
        part = (width / self.INPUT, height / self.INPUT)
        return {
            "logits": _stretch(logits[0], part),
            "features": _stretch(features[0].transpose(1, 2, 0), part).astype(np.float16),
        }


def _stretch(plane: Array, part: tuple[float, float]) -> Array:
    """The upper left `part` (width, height) of [h, w, C], resized to [h, w, C]."""
    h, w, _ = plane.shape
    box = (0, 0, part[0] * w, part[1] * h)
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(plane[..., c], np.float32)).resize(
                (w, h), Image.Resampling.BILINEAR, box
            )
        )
        for c in range(plane.shape[2])
    ]
    return np.stack(channels, -1)


def draw_views(size: tuple[int, int], count: int, rng: np.random.Generator) -> list[Box]:
    """Boxes (left, top, right, bottom) in a picture of `size` (width, height): the whole first.

    Sides are a quarter of the picture's to all of it, evenly in their logarithm.
    """
    boxes: list[Box] = [(0, 0, *size)]
    for _ in range(count - 1):
        share = float(np.exp(rng.uniform(np.log(0.25), 0)))
        stretch = float(np.exp(rng.uniform(-0.2, 0.2)))
        w = min(round(size[0] * share * stretch), size[0])
        h = min(round(size[1] * share / stretch), size[1])
        left, top = int(rng.integers(size[0] - w + 1)), int(rng.integers(size[1] - h + 1))
        boxes.append((left, top, left + w, top + h))
    return boxes


def label_photo(path: Path, teacher: Teacher, count: int, seed: int = 0) -> dict[str, Array]:
    """What `teacher` says of `count` views of one photograph.

    Returns:
        `views` uint8 [count, 256, 256, 3], each squeezed to a square; `boxes` [count, 4], in parts
        of the photograph's sides; and what the teacher says, stacked.
    """
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BICUBIC)
    rng = np.random.default_rng([seed, zlib.crc32(path.name.encode())])
    rows: list[dict[str, Array]] = []
    for box in draw_views(image.size, count, rng):
        said = teacher(image.crop(box))
        view = image.resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC, box, reducing_gap=3.0)
        part = np.array(box, np.float32) / np.tile(np.array(image.size, np.float32), 2)
        rows.append({"views": np.asarray(view), "boxes": part, **said})
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def label_photos(photos: Path, cache: Path, teacher: Teacher, count: int, seed: int = 0) -> None:
    """Label all photographs below `photos` into `cache`; those already there are left alone.

    Raises:
        OptionError: when `cache` was made with other settings, or two photographs share a name.
    """
    cache.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"views": count, "seed": seed, "teacher": type(teacher).__name__})
    settings = cache / "settings.json"
    if settings.exists() and settings.read_text() != text:
        raise OptionError(
            f"{str(cache)!r} was made with {settings.read_text()}, not {text}; give another folder"
        )
    settings.write_text(text)
    paths = find_photos(photos)
    names = [p.name for p in paths]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise OptionError(f"several photographs are called {twice[0]!r}; rename all but one")
    for path in tqdm(paths, desc=cache.name, mininterval=10):
        out = cache / f"{path.name}.npz"
        if not out.exists():
            _save(out, label_photo(path, teacher, count, seed))


def _save(path: Path, arrays: dict[str, Array]) -> None:
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_labels(
    cache: Path, *, held_out: bool, only: str | None = None
) -> tuple[dict[str, Array], list[str]]:
    """What a teacher said: the arrays of `label_photo` joined, and each row's photograph.

    Args:
        cache: written by `label_photos`.
        held_out: of the photographs kept for measuring, or of all others.
        only: one of the arrays; all of them where it is left out.

    Raises:
        OptionError: when there are none.
    """
    found = sorted(cache.glob("*.npz"))
    paths = [p for p in found if is_held_out(p.name.removesuffix(".npz")) is held_out]
    if not paths:
        kind = "held-out" if held_out else "training"
        raise OptionError(f"no labels of {kind} photographs in {str(cache)!r}; run teachers first")
    parts, names = [], []
    for path in paths:
        with np.load(path) as file:
            parts.append({key: file[key] for key in ([only] if only else file.files)})
        names += [path.name.removesuffix(".npz")] * len(next(iter(parts[-1].values())))
    return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}, names


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="searched recursively")
    parser.add_argument("--teachers", type=Path, required=True, help="folder of the TFLite files")
    parser.add_argument("--out", type=Path, required=True, help="the labels' folder; resumed")
    parser.add_argument("--teacher", choices=list(VIEWS), required=True)
    parser.add_argument("--views", type=int, help="of a photograph; default 40 for tags, else 6")
    args = parser.parse_args()
    count = args.views or VIEWS[args.teacher]
    args.out.mkdir(parents=True, exist_ok=True)
    if args.teacher == "tags":
        classifier = Classifier(args.teachers)
        (args.out / "names.json").write_text(json.dumps(classifier.names))
        label_photos(args.photos, args.out, classifier, count)
    else:
        label_photos(args.photos, args.out, Segmenter(args.teachers), count)


if __name__ == "__main__":
    main()
