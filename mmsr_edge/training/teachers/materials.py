"""Materials: classes of what DeepLab leaves as background, found by clustering and named by eye.

    python -m mmsr_edge.training.teachers.materials --regions CACHE --out DIR

Each cell of the teacher's 33×33 grid has a feature vector: the teacher's features, which describe
shape and surroundings, and colour, texture and height in the photograph. The cells that are of no
VOC class are clustered over all training photographs, and a contact sheet shows examples of each
cluster. Name the clusters by hand in `names.json`: a list with a name for each cluster, the same
name for clusters that belong together, "" for those that mean nothing. `region_labels` then makes
label maps.
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
"""Cells along a side of the teacher's output."""
LABEL_SIDE = 64
"""Side of the label maps in pixels, that of the student's output."""
CLUSTERS = 40
"""Number of clusters; several may have the same name."""
COMPONENTS = 24
"""Number of principal components of the teacher's features."""
SURE = 0.5
"""Least probability of the VOC classes together for which a cell is not background."""


@dataclass(frozen=True)
class Clusters:
    """Clusters of cells, and the scaling of the features."""

    pca: PCA
    """Principal components of the teacher's features."""
    mean: Array
    """[F], mean of the features."""
    scale: Array
    """[F], divisors of the features."""
    centres: Array
    """[clusters, F], centres in scaled features."""

    def rows(self, cells: Array, appearances: Array) -> Array:
        """Scaled features [N, F] from the teacher's `cells` [N, C] and `appearances` [N, 6]."""
        deep = self.pca.transform(cells.astype(np.float32))
        return np.asarray((np.concatenate([deep, appearances], 1) - self.mean) / self.scale)

    def predict(self, cells: Array, appearances: Array) -> Array:
        """Index of the nearest cluster of each row, [N]."""
        rows = self.rows(cells, appearances)
        return np.asarray((self.centres**2).sum(1) - 2 * rows @ self.centres.T).argmin(1)


def appearance(view: Array, box: Array) -> Array:
    """Colour (Lab), fine and coarse texture, and height of each cell of a view, [GRID², 6].

    Args:
        view: uint8 [256, 256, 3].
        box: place of the view in its photograph (left, top, right, bottom), in shares of the sides.
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
    """Names of photographs, and their labels by `labels.Segmenter`.

    Raises:
        OptionError: there are no labels.
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

    Args:
        cache: folder of the labels by `labels.Segmenter`.
        clusters: number of clusters.
        seed: seed of all random draws.

    Returns:
        The clusters, and for each of them up to 14 patches: cells with their surroundings.
    """
    rng = np.random.default_rng(seed)
    cells, appearances, patches = [], [], []
    for name, regions in read_regions(cache):
        if is_held_out(name):
            continue
        for view, box, logits, features in zip(
            regions["views"], regions["boxes"], regions["logits"], regions["features"], strict=True
        ):
            background = probabilities(logits)[..., 0].reshape(-1) > 1 - SURE
            drawn = rng.permutation(np.flatnonzero(background))[:120]
            cells.append(features.reshape(GRID**2, -1)[drawn].astype(np.float32))
            appearances.append(appearance(view, box)[drawn])
            patches += [(view, int(i)) for i in drawn]
    deep, computed = np.concatenate(cells), np.concatenate(appearances)
    pca = PCA(COMPONENTS, random_state=seed).fit(deep[rng.permutation(len(deep))[:20_000]])
    rows = np.concatenate([pca.transform(deep), computed], 1)
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    # The teacher's components keep their proportions. Their total variance is 9, that of the six
    # computed features 6.
    scale[:COMPONENTS] = np.sqrt((rows[:, :COMPONENTS].var(0)).sum() / 9)
    rows = (rows - mean) / scale
    means = MiniBatchKMeans(clusters, batch_size=4096, n_init=3, random_state=seed).fit(rows)
    found = Clusters(pca, mean, scale, means.cluster_centers_.astype(np.float32))
    which = found.predict(deep, computed)
    examples = [
        [_patch(*patches[i]) for i in rng.permutation(np.flatnonzero(which == k))[:14]]
        for k in range(clusters)
    ]
    return found, examples


def _patch(view: Array, cell: int, side: int = 96) -> Image.Image:
    """Patch of `side` pixels around a cell, with a frame around the cell."""
    y, x = (round((n + 0.5) * 256 / GRID) for n in divmod(cell, GRID))
    padded = np.pad(view, ((side // 2,) * 2, (side // 2,) * 2, (0, 0)), mode="edge")
    image = Image.fromarray(padded[y : y + side, x : x + side])
    low, high = side // 2 - 6, side // 2 + 6
    ImageDraw.Draw(image).rectangle((low, low, high, high), outline=(255, 0, 0))
    return image


def contact_sheet(examples: list[list[Image.Image]], side: int = 96) -> Image.Image:
    """Picture with a row of examples for each cluster, after its number."""
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
    """Read clusters that `save_clusters` wrote."""
    with np.load(path) as file:
        pca = PCA(len(file["components"]))
        pca.components_, pca.mean_ = file["components"], file["pca_mean"]
        pca.explained_variance_ = np.ones(len(file["components"]))
        return Clusters(pca, file["mean"], file["scale"], file["centres"])


def class_names(clusters: list[str]) -> list[str]:
    """Names of all classes: VOC's, "none" first, then those of the clusters, sorted."""
    return [*VOC, *sorted({n for n in clusters if n})]


def label_view(
    view: Array, box: Array, logits: Array, features: Array, found: Clusters, names: list[str]
) -> Array:
    """Class of each pixel of a view, uint8 [64, 64], from cells and from regions of even colour.

    Args:
        view: uint8 [256, 256, 3].
        box: place of the view in its photograph; see `appearance`.
        logits: the teacher's logits, [33, 33, 21].
        features: the teacher's features, [33, 33, C].
        found: the clusters.
        names: names of the clusters.
    """
    classes = class_names(names)
    index = np.array([classes.index(n) if n else 0 for n in names])
    voc = probabilities(logits.astype(np.float32)).reshape(GRID**2, -1)
    scores = np.zeros((GRID**2, len(classes)), np.float32)
    scores[:, : len(VOC)] = voc
    material = index[found.predict(features.reshape(GRID**2, -1), appearance(view, box))]
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
    # Mean of the region's scores and the pixel's, because regions often run across boundaries.
    mixed = 0.5 * (sums / counts)[regions] + 0.5 * planes
    votes = mixed.reshape(LABEL_SIDE, 2, LABEL_SIDE, 2, -1).mean((1, 3))
    return np.asarray(votes.argmax(-1).astype(np.uint8))


def region_labels(cache: Path, clusters: Path, *, held_out: bool) -> tuple[Array, Array, list[str]]:
    """Views, uint8 [N, 256, 256, 3], their label maps, uint8 [N, 64, 64], and their photographs.

    Label maps are made once and kept in the folder `labels` beside the clusters, one file per
    photograph. Delete that folder after changing a name.

    Args:
        cache: folder of the labels by `labels.Segmenter`.
        clusters: folder of the clusters, with `names.json`.
        held_out: whether to read the held-out photographs; otherwise all others.

    Raises:
        OptionError: the clusters have no names, or another number of names; or there are no labels.
    """
    path = clusters / "names.json"
    if not path.exists():
        raise OptionError(f"the clusters have no names; look at sheet.png, and write {str(path)!r}")
    names, found = json.loads(path.read_text()), load_clusters(clusters / "clusters.npz")
    if len(names) != len(found.centres):
        raise OptionError(
            f"{path.name} has {len(names)} names for {len(found.centres)} clusters; "
            "give each cluster one name"
        )
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
                path,
                np.stack([label_view(v, b, logits, f, found, names) for v, b, logits, f in rows]),
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
    parser.add_argument(
        "--regions",
        type=Path,
        required=True,
        help="folder that teachers.labels --teacher regions wrote",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the clusters and the contact sheet"
    )
    parser.add_argument("--clusters", type=int, default=CLUSTERS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found, examples = cluster(args.regions, args.clusters)
    save_clusters(found, args.out / "clusters.npz")
    contact_sheet(examples).save(args.out / "sheet.png")
    print(f"look at {args.out / 'sheet.png'} and write {args.out / 'names.json'}")


if __name__ == "__main__":
    main()
