"""Labels of photographs by published networks, the teachers of the tagger and of segmentation.

    python -m mmsr_edge.training.teachers.labels --teacher tags \\
        --photos DIR --teachers DIR --out CACHE
    python -m mmsr_edge.training.teachers.labels --teacher regions \\
        --photos DIR --teachers DIR --out CACHE

Both teachers are TFLite files under Apache-2.0, which OpenVINO reads directly; they are used for
training alone and are not shipped. A teacher labels views of each photograph: the whole, and random
pieces. The labels are written to one file per photograph; a stopped command resumes where it was.
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
"""OpenVINO's settings: these networks gain little from more threads."""

Array = NDArray[Any]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""

VOC = (
    "none", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "screen",
)  # fmt: skip
"""PASCAL VOC's classes in its order; "none" is its background."""
HELD_OUT = 0.1
"""Share of the photographs that are held out of training."""
WORKING_SIDE = 1280
"""Longest side in pixels to which a photograph is reduced before views are cut: the smallest views
still fill a teacher's input."""
VIEWS = {"tags": 40, "regions": 6}
"""Views per photograph, by teacher."""


def is_held_out(photo: str, share: float = HELD_OUT, seed: int = 0) -> bool:
    """Whether a photograph is held out of training, which depends on its file name alone."""
    return zlib.crc32(f"{seed}:{photo}".encode()) % 10_000 < share * 10_000


class Teacher(Protocol):
    """A network that labels pictures."""

    def __call__(self, picture: Image.Image) -> dict[str, Array]:
        """Labels of a picture: arrays by name, of the same shapes for every picture."""


def _read_model(folder: Path, name: str) -> Any:
    import openvino

    path = folder / name
    if not path.exists():
        raise OptionError(
            f"no teacher {name!r} in {str(folder)!r}; see docs/training.md for its source"
        )
    core = openvino.Core()
    return core, core.read_model(path)


def _op(model: Any, kind: str) -> Any:
    (found,) = [op for op in model.get_ops() if op.get_type_name() == kind]
    return found


class Classifier:
    """The tagger's teacher: MobileNetV2 1.0 (224 px), trained on ImageNet.

    Args:
        folder: folder with the TFLite file and `imagenet_labels.txt`.

    Raises:
        OptionError: the TFLite file is missing.
    """

    FILE = "mobilenet_v2_1.0_224_quant.tflite"
    LABELS = "imagenet_labels.txt"

    def __init__(self, folder: Path) -> None:
        core, model = _read_model(folder, self.FILE)
        # The output of the file is quantized to 1/256; the logits before it are finer.
        outputs = [_op(model, "Softmax").input_value(0), _op(model, "AvgPool").output(0)]
        model.add_outputs(outputs)
        self.model = core.compile_model(model, "CPU", ONE_THREAD)
        # A line has all synonyms of a class; the first is the commonest.
        lines = (folder / self.LABELS).read_text().splitlines()
        self.names = tag_names([line.split(",")[0].strip() for line in lines])

    def __call__(self, picture: Image.Image) -> dict[str, Array]:
        """`logits` [1001], the first of "none", and `features` [1280], of the squeezed picture."""
        small = picture.resize((224, 224), Image.Resampling.BILINEAR, reducing_gap=2.0)
        pixels = np.asarray(small)[None]
        _, logits, features = self.model(pixels).values()
        return {"logits": logits.reshape(-1), "features": features.reshape(-1)}


class Segmenter:
    """Segmentation's teacher: DeepLabv3 on MobileNetV2 (513 px), trained on PASCAL VOC.

    Args:
        folder: folder with the TFLite file.

    Raises:
        OptionError: the TFLite file is missing.
    """

    FILE = "deeplabv3_mnv2_pascal_quant.tflite"
    INPUT = 513
    GREY = (127, 127, 127)

    def __init__(self, folder: Path) -> None:
        core, model = _read_model(folder, self.FILE)
        # The logits before they are enlarged, and the input features of the head.
        logits = _op(model, "TopK").input_value(0).get_node()
        while tuple(logits.output(0).shape) != (1, 33, 33, len(VOC)):
            logits = logits.input_value(0).get_node()
        model.add_outputs([logits.output(0), _op(model, "AvgPool").input_value(0)])
        self.model = core.compile_model(model, "CPU", ONE_THREAD)

    def __call__(self, picture: Image.Image) -> dict[str, Array]:
        """`logits` [33, 33, 21] and `features` [33, 33, 320], on a grid over the whole picture."""
        # The teacher was trained on true proportions: fit the picture in, with grey around it.
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
    """The upper left `part` (shares of width and height) of `plane` [h, w, C], at full size."""
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
    """Draw `count` boxes in a picture of `size` (width, height); the first is the whole picture.

    Sides are 1/4 to 1 of the picture's, uniform in their logarithm.
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
    """Labels of `count` views of a photograph by `teacher`.

    Returns:
        `views`, uint8 [count, 256, 256, 3], each squeezed to a square; `boxes`, [count, 4], in
        shares of the photograph's sides; and the teacher's arrays, stacked.
    """
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BICUBIC)
    rng = np.random.default_rng([seed, zlib.crc32(path.name.encode())])
    rows: list[dict[str, Array]] = []
    for box in draw_views(image.size, count, rng):
        outputs = teacher(image.crop(box))
        view = image.resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC, box, reducing_gap=3.0)
        part = np.array(box, np.float32) / np.tile(np.array(image.size, np.float32), 2)
        rows.append({"views": np.asarray(view), "boxes": part, **outputs})
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def label_photos(photos: Path, cache: Path, teacher: Teacher, count: int, seed: int = 0) -> None:
    """Label all photographs below `photos` into `cache`, except those labelled already.

    Args:
        photos: folder of the photographs, searched recursively.
        cache: folder of the labels; created.
        teacher: the teacher.
        count: views per photograph.
        seed: seed of the views.

    Raises:
        OptionError: `cache` was made with other settings, two photographs have the same file name,
            or there are none.
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
    duplicates = sorted({n for n in names if names.count(n) > 1})
    if duplicates:
        raise OptionError(f"several photographs are called {duplicates[0]!r}; rename all but one")
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
    """Read labels: the arrays of `label_photo`, concatenated, and the photograph of each row.

    Args:
        cache: folder that `label_photos` wrote.
        held_out: whether to read the held-out photographs; otherwise all others.
        only: name of the only array to read; None: all.

    Raises:
        OptionError: there are no labels of such photographs.
    """
    found = sorted(cache.glob("*.npz"))
    paths = [p for p in found if is_held_out(p.name.removesuffix(".npz")) is held_out]
    if not paths:
        kind = "held-out" if held_out else "training"
        raise OptionError(
            f"no labels of {kind} photographs in {str(cache)!r}; run "
            "mmsr_edge.training.teachers.labels first"
        )
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
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder of photographs, searched recursively"
    )
    parser.add_argument(
        "--teachers", type=Path, required=True, help="folder with the teachers' TFLite files"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the labels; existing labels are kept"
    )
    parser.add_argument("--teacher", choices=list(VIEWS), required=True)
    parser.add_argument(
        "--views", type=int, help="views per photograph; default 40 for tags, 6 for regions"
    )
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
