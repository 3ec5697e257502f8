"""Materials: classes for what DeepLab leaves as background, found by clustering and named by eye.

    python -m mmsr_edge.training.teachers.materials --regions CACHE --out DIR

Every cell of the teacher's 33×33 grid has a feature vector: the teacher's own features, which know
shapes and surroundings, and colour, texture and height in the photograph. Cells that are no VOC
class are clustered over all training photographs. A contact sheet shows each cluster; whoever looks
at it writes `names.json`: a list with a name for each cluster, the same one for clusters that
belong together, "" for those that mean nothing. `region_labels` then gives every pixel a class.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.color import rgb2lab
from skimage.segmentation import felzenszwalb
from skimage.transform import resize
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from tqdm import tqdm

from mmsr_edge.errors import OptionError
from mmsr_edge.files import replacing
from mmsr_edge.training.teachers.labels import VOC, is_held_out

Array = NDArray[Any]

GRID = 33
"""Cells on a side, the teacher's."""
LABEL_SIDE = 64
"""Side of the label maps, the student's own resolution."""
CLUSTERS = 40
"""Before they are named; several may share a name."""
COMPONENTS = 24
"""Of the teacher's features, the principal ones."""
SURE = 0.5
"""Probability from which a cell counts as one of the VOC classes."""


@dataclass(frozen=True)
class Clusters:
    """What turns cells into clusters."""

    pca: PCA
    """Of the teacher's features."""
    mean: Array
    """Of all features [F]."""
    scale: Array
    """What they are divided by [F]."""
    centres: Array
    """[clusters, F]."""

    def rows(self, cells: Array, looks: Array) -> Array:
        """Features as they are compared [N, F], of the teacher's [N, C] and `look`'s [N, 6]."""
        deep = self.pca.transform(cells.astype(np.float32))
        return np.asarray((np.concatenate([deep, looks], 1) - self.mean) / self.scale)

    def predict(self, cells: Array, looks: Array) -> Array:
        """The nearest cluster of each row [N]."""
        rows = self.rows(cells, looks)
        return np.asarray((self.centres**2).sum(1) - 2 * rows @ self.centres.T).argmin(1)


def look(view: Array, box: Array) -> Array:
    """What can be seen of each cell [GRID², 6]: Lab, texture fine and coarse, height.

    Args:
        view: uint8 [256, 256, 3].
        box: where it is in its photograph (left, top, right, bottom), in parts of the sides.
    """
    lab = rgb2lab(view).astype(np.float32)
    fine = np.abs(np.gradient(lab[..., 0])).sum(0)
    planes = [lab[..., 0], lab[..., 1], lab[..., 2], fine]
    small = [resize(p, (GRID, GRID), order=1, anti_aliasing=True) for p in planes]
    coarse = np.abs(np.gradient(small[0])).sum(0)
    rows = np.linspace(box[1], box[3], GRID)[:, None].repeat(GRID, 1)
    return np.stack([*small[:3], np.log1p(small[3]), np.log1p(coarse), rows], -1).reshape(-1, 6)


def probabilities(logits: Array) -> Array:
    """Softmax of VOC logits over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def read_regions(cache: Path) -> Iterator[tuple[str, dict[str, Array]]]:
    """Photographs' names and what `teachers.Segmenter` says of them.

    Raises:
        OptionError: when there are none.
    """
    paths = sorted(cache.glob("*.npz"))
    if not paths:
        raise OptionError(
            f"no labels in {str(cache)!r}; run mmsr_edge.training.teachers.labels first"
        )
    for path in tqdm(paths, desc="regions", mininterval=10):
        with np.load(path) as file:
            yield path.name.removesuffix(".npz"), dict(file)


def cluster(
    cache: Path, clusters: int = CLUSTERS, seed: int = 0
) -> tuple[Clusters, list[list[Image.Image]]]:
    """Cluster the background cells of all training photographs.

    Returns:
        the clusters, and for each of them some of its cells with what lies around them.
    """
    rng = np.random.default_rng(seed)
    cells, looks, patches = [], [], []
    for name, regions in read_regions(cache):
        if is_held_out(name):
            continue
        for view, box, logits, features in zip(
            regions["views"], regions["boxes"], regions["logits"], regions["features"], strict=True
        ):
            background = probabilities(logits)[..., 0].reshape(-1) > 1 - SURE
            drawn = rng.permutation(np.flatnonzero(background))[:120]
            cells.append(features.reshape(GRID**2, -1)[drawn].astype(np.float32))
            looks.append(look(view, box)[drawn])
            patches += [(view, int(i)) for i in drawn]
    deep, seen = np.concatenate(cells), np.concatenate(looks)
    pca = PCA(COMPONENTS, random_state=seed).fit(deep[rng.permutation(len(deep))[:20_000]])
    rows = np.concatenate([pca.transform(deep), seen], 1)
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    # The teacher's components keep their proportions, and weigh together a little more than the
    # six features that were computed.
    scale[:COMPONENTS] = np.sqrt((rows[:, :COMPONENTS].var(0)).sum() / 9)
    rows = (rows - mean) / scale
    means = MiniBatchKMeans(clusters, batch_size=4096, n_init=3, random_state=seed).fit(rows)
    found = Clusters(pca, mean, scale, means.cluster_centers_.astype(np.float32))
    which = found.predict(deep, seen)
    examples = [
        [_patch(*patches[i]) for i in rng.permutation(np.flatnonzero(which == k))[:14]]
        for k in range(clusters)
    ]
    return found, examples


def _patch(view: Array, cell: int, side: int = 96) -> Image.Image:
    """The surroundings of a cell, the cell framed."""
    y, x = (round((n + 0.5) * 256 / GRID) for n in divmod(cell, GRID))
    padded = np.pad(view, ((side // 2,) * 2, (side // 2,) * 2, (0, 0)), mode="edge")
    image = Image.fromarray(padded[y : y + side, x : x + side])
    low, high = side // 2 - 6, side // 2 + 6
    ImageDraw.Draw(image).rectangle((low, low, high, high), outline=(255, 0, 0))
    return image


def contact_sheet(examples: list[list[Image.Image]], side: int = 96) -> Image.Image:
    """One row of examples a cluster, its number before it."""
    width = 40 + side * max(map(len, examples))
    sheet = Image.new("RGB", (width, side * len(examples)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, images in enumerate(examples):
        draw.text((8, row * side + side // 2), str(row), fill="black")
        for column, image in enumerate(images):
            sheet.paste(image, (40 + column * side, row * side))
    return sheet


def save_clusters(found: Clusters, path: Path) -> None:
    """Write the clusters as an npz file."""
    pca = {"components": found.pca.components_, "pca_mean": found.pca.mean_}
    np.savez(path, mean=found.mean, scale=found.scale, centres=found.centres, **pca)


def load_clusters(path: Path) -> Clusters:
    """Read what `save_clusters` wrote."""
    with np.load(path) as file:
        pca = PCA(len(file["components"]))
        pca.components_, pca.mean_ = file["components"], file["pca_mean"]
        pca.explained_variance_ = np.ones(len(file["components"]))
        return Clusters(pca, file["mean"], file["scale"], file["centres"])


def class_names(clusters: list[str]) -> list[str]:
    """Names of all classes: VOC's with its "none" first, then the materials."""
    return [*VOC, *sorted({n for n in clusters if n})]


def label_view(
    view: Array, box: Array, logits: Array, features: Array, found: Clusters, names: list[str]
) -> Array:
    """Class of each pixel uint8 [64, 64]: regions of even colour take what most of their cells say.

    Args:
        view: uint8 [256, 256, 3].
        box: where it is in its photograph.
        logits: the teacher's [33, 33, 21].
        features: the teacher's [33, 33, C].
        found: the clusters.
        names: the name of each cluster.
    """
    classes = class_names(names)
    index = np.array([classes.index(n) if n else 0 for n in names])
    voc = probabilities(logits.astype(np.float32)).reshape(GRID**2, -1)
    scores = np.zeros((GRID**2, len(classes)), np.float32)
    scores[:, : len(VOC)] = voc
    material = index[found.predict(features.reshape(GRID**2, -1), look(view, box))]
    scores[:, 0] = 0
    scores[np.arange(GRID**2), material] += voc[:, 0]
    side = 2 * LABEL_SIDE
    planes = resize(
        scores.reshape(GRID, GRID, -1), (side, side), order=1, mode="edge", anti_aliasing=False
    )
    small = np.asarray(Image.fromarray(view).resize((side, side), Image.Resampling.BOX))
    regions = felzenszwalb(small, scale=60, sigma=0.6, min_size=20)
    counts = np.bincount(regions.ravel())[:, None]
    flat = planes.reshape(-1, planes.shape[-1])
    sums = np.stack([np.bincount(regions.ravel(), flat[:, c]) for c in range(flat.shape[1])], 1)
    # Half by region, half by place: regions that run over from one thing into another are common.
    mixed = 0.5 * (sums / counts)[regions] + 0.5 * planes
    votes = mixed.reshape(LABEL_SIDE, 2, LABEL_SIDE, 2, -1).mean((1, 3))
    return np.asarray(votes.argmax(-1).astype(np.uint8))


def region_labels(cache: Path, clusters: Path, *, held_out: bool) -> tuple[Array, Array, list[str]]:
    """Views uint8 [N, 256, 256, 3], labels uint8 [N, 64, 64], and the photograph of each.

    The labels are kept beside the clusters: making them takes a while.

    Labels are kept beside the clusters, one file a photograph, in `labels`: delete that folder
    after changing a name.

    Raises:
        OptionError: when the clusters have no names yet.
    """
    path = clusters / "names.json"
    if not path.exists():
        raise OptionError(f"the clusters have no names: look at the sheet, and write {str(path)!r}")
    names, found = json.loads(path.read_text()), load_clusters(clusters / "clusters.npz")
    if len(names) != len(found.centres):
        raise OptionError(f"{path.name} has {len(names)} names for {len(found.centres)} clusters")
    kept = clusters / "labels"
    kept.mkdir(exist_ok=True)
    views, labels, photos = [], [], []
    for photo, regions in read_regions(cache):
        if is_held_out(photo) is not held_out:
            continue
        path = kept / f"{photo}.npy"
        if not path.exists():
            keys = ("views", "boxes", "logits", "features")
            rows = zip(*(regions[k] for k in keys), strict=True)
            _save(
                path, np.stack([label_view(v, b, said, f, found, names) for v, b, said, f in rows])
            )
        views.append(regions["views"])
        labels.append(np.load(path))
        photos += [photo] * len(regions["views"])
    return np.concatenate(views), np.concatenate(labels), photos


def _save(path: Path, array: Array) -> None:
    with replacing(path) as file:
        np.save(file, array)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--regions", type=Path, required=True, help="what teachers.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of clusters and sheet")
    parser.add_argument("--clusters", type=int, default=CLUSTERS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found, examples = cluster(args.regions, args.clusters)
    save_clusters(found, args.out / "clusters.npz")
    contact_sheet(examples).save(args.out / "sheet.png")
    print(f"look at {args.out / 'sheet.png'} and write {args.out / 'names.json'}")


if __name__ == "__main__":
    main()
