"""The tagger and the segmentation network: labels of their teachers, training, and resuming."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmsr_edge.errors import OptionError
from mmsr_edge.modalities.tags import COLOURS
from mmsr_edge.modalities.tags import describe as describe_picture
from mmsr_edge.modalities.words import collect_words
from mmsr_edge.models.caption import TaggerConfig, build_tagger
from mmsr_edge.models.segmentation import SegmentationConfig, build_segmentation
from mmsr_edge.models.trunk import TrunkConfig
from mmsr_edge.training import train_segmentation, train_tagger
from mmsr_edge.training.data import tiles
from mmsr_edge.training.data.views import Views, to_images, to_pixels
from mmsr_edge.training.modality_networks import load_labels
from mmsr_edge.training.states import load_run
from mmsr_edge.training.teachers.labels import (
    VOC,
    draw_views,
    is_held_out,
    label_photos,
    read_labels,
)
from mmsr_edge.training.teachers.materials import (
    class_names,
    cluster,
    contact_sheet,
    label_view,
    load_clusters,
    region_labels,
    save_clusters,
)
from mmsr_edge.training.teachers.tag_names import GROUPS, RANGES, tag_names
from mmsr_edge.training.train_tagger import by_name, choose_tags, restrict, softmax

SMALL = TrunkConfig(widths=(8, 8, 16, 16), blocks=(1, 1, 1, 1))
NAMES = ["background", "reddish", "greenish", "bluish"]


class FakeClassifier:
    """A classifier by mean colour: red, green or blue."""

    def __call__(self, picture: Image.Image) -> dict[str, Any]:
        mean = np.asarray(picture, np.float32).mean((0, 1)) / 16
        return {"logits": np.array([-9, *mean], np.float32), "features": np.append(mean, 1)}


class FakeSegmenter:
    """A segmenter: bright cells are boats; features are sines of the colours."""

    def __call__(self, picture: Image.Image) -> dict[str, Any]:
        cells = np.asarray(picture.resize((33, 33)), np.float32) / 255
        logits = np.zeros((33, 33, len(VOC)), np.float32)
        logits[..., 0] = 5
        logits[..., VOC.index("boat")] = np.where(cells.mean(-1) > 0.9, 9, -9)
        wave = np.arange(1, 11, dtype=np.float32)
        return {"logits": logits, "features": np.concatenate([np.sin(cells * w) for w in wave], -1)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs to train on and two held out, by their names."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(200)]
    learnt, kept = ([n for n in names if is_held_out(n) is held] for held in (False, True))
    for name in learnt[:5] + kept[:2]:
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        pixels[4:, 5:] = 255
        Image.fromarray(pixels).resize((120, 90)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def tags(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("tags")
    label_photos(photos, cache, FakeClassifier(), 3)
    (cache / "names.json").write_text(json.dumps(NAMES))
    return cache


@pytest.fixture(scope="module")
def regions(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("regions")
    label_photos(photos, cache, FakeSegmenter(), 2)
    return cache


@pytest.fixture(scope="module")
def materials(regions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("materials")
    found, examples = cluster(regions, clusters=4)
    save_clusters(found, folder / "clusters.npz")
    assert contact_sheet(examples).height == 4 * 96
    (folder / "names.json").write_text(json.dumps(["sky", "rock", "", "sky"]))
    return folder


def test_about_a_tenth_is_held_out_by_name() -> None:
    names = [f"{i:012x}.jpg" for i in range(5000)]
    held = [is_held_out(n) for n in names]
    assert 0.08 < np.mean(held) < 0.12
    assert held == [is_held_out(n) for n in names]
    assert held != [is_held_out(n, seed=1) for n in names]


def test_views_lie_in_the_picture_and_the_first_is_the_whole() -> None:
    boxes = draw_views((300, 200), 50, np.random.default_rng(0))
    assert boxes[0] == (0, 0, 300, 200) and len(boxes) == 50
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 300 and 0 <= top < bottom <= 200


def test_labels_are_split_and_made_once(
    tags: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt, names = read_labels(tags, held_out=False)
    kept, others = read_labels(tags, held_out=True)
    assert learnt["views"].shape == (15, 256, 256, 3) and len(kept["views"]) == 6
    assert not set(names) & set(others) and all(is_held_out(n) for n in others)
    only, _ = read_labels(tags, held_out=True, only="logits")
    assert list(only) == ["logits"] and np.array_equal(only["logits"], kept["logits"])
    # The first view is the whole photograph, labelled at full size.
    with Image.open(photos / others[0]) as file:
        whole = FakeClassifier()(file.convert("RGB"))
    np.testing.assert_allclose(kept["logits"][0], whole["logits"], rtol=1e-5)
    before = {p: p.stat().st_mtime_ns for p in tags.glob("*.npz")}
    label_photos(photos, tags, FakeClassifier(), 3)
    assert before == {p: p.stat().st_mtime_ns for p in tags.glob("*.npz")}
    with pytest.raises(OptionError, match='"views": 3'):
        label_photos(photos, tags, FakeClassifier(), 4)


def test_no_labels(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"run mmsr_edge\.training\.teachers\.labels first"):
        read_labels(tmp_path, held_out=True)
    with pytest.raises(OptionError, match="no names"):
        region_labels(tmp_path, tmp_path, held_out=True)


def test_two_photographs_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "same.png")
    with pytest.raises(OptionError, match=r"'same\.png'"):
        label_photos(tmp_path, tmp_path / "out", FakeClassifier(), 1)


def test_choosing_tags() -> None:
    p = np.array([[0.5, 0.1, 0.2, 0.05, 0.15], [0.5, 0.3, 0.0, 0.16, 0.04]])
    assert choose_tags(p, most=9, least=0.09).tolist() == [
        1,
        2,
        3,
        4,
    ]  # never index 0, "none"
    assert choose_tags(p, most=1, least=0).tolist() == [1] and p[0, 0] == 0.5
    assert choose_tags(p, most=9, least=0.15).tolist() == [1]
    np.testing.assert_allclose(
        restrict(p, np.array([1, 3])), [[0.1, 0.05, 0.85], [0.3, 0.16, 0.54]]
    )
    joined, names = by_name(p, ["none", "crane", "dog", "crane", "cat"])
    assert names == ["none", "crane", "dog", "cat"]
    np.testing.assert_allclose(joined[:, 1], [0.15, 0.46])
    np.testing.assert_allclose(softmax(np.array([0.0, np.log(3)])), [0.25, 0.75])


def test_related_classes_share_a_plain_word() -> None:
    lines = ["background", *(f"class {i}" for i in range(1000))]
    lines[1 + 985], lines[1 + 399], lines[1 + 970] = "daisy", "abaya", "alp"
    tags = tag_names(lines)
    assert len(tags) == 1001 and tags[0] == "background"
    # ImageNet's own numbers: tench, Chihuahua to Mexican hairless, timber wolf, puffer, abacus.
    assert [tags[1 + i] for i in (0, 151, 268, 269, 397, 398)] == [
        "fish", "dog", "dog", "fox", "fish", "class 398",
    ]  # fmt: skip
    assert [tags[1 + i] for i in (985, 399, 970)] == ["flower", "cloth", "mountain"]
    numbers = [n for rs in RANGES.values() for a, b in rs for n in range(a, b + 1)]
    assert len(numbers) == len(set(numbers)) and max(numbers) < 1000
    grouped = [name for group in GROUPS.values() for name in group]
    assert len(grouped) == len(set(grouped))


def test_views_for_training(tags: Path) -> None:
    arrays, _ = read_labels(tags, held_out=False)
    pixels = torch.from_numpy(arrays["views"])
    assert torch.equal(to_pixels(to_images(pixels)), pixels)
    views = Views(arrays["views"], torch.device("cpu"), renew=0.5)
    rows, images = views.batch(8)
    assert images.shape == (8, 3, 256, 256) and rows.shape == (8,)
    assert float(images.min()) >= -1 and float(images.max()) <= 1
    changed = (views.degraded != views.views).flatten(1).any(1)
    assert set(changed.nonzero().flatten().tolist()) == set(rows[:4].tolist())
    assert torch.equal(views.views, pixels)


def test_the_taggers_scores_sum_to_less_than_one() -> None:
    tagger = build_tagger(TaggerConfig(5, SMALL, 16)).eval()
    scores = tagger(torch.rand(2, 3, 256, 256) * 2 - 1)
    assert scores.shape == (2, 5) and scores.dtype == torch.float32
    assert bool((scores >= 0).all()) and bool((scores.sum(1) < 1).all())


def test_segmentation_gives_each_pixel_a_class() -> None:
    torch.manual_seed(0)
    network = build_segmentation(SegmentationConfig(7, SMALL, 8)).eval()
    image = torch.rand(2, 3, 256, 256) * 2 - 1
    classes = network(image)
    assert classes.shape == (2, 256, 256) and classes.dtype == torch.int64
    assert int(classes.min()) >= 0 and int(classes.max()) < 7
    # With equal logits in all cells, the map has their class everywhere.
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([0.0, 0, 0, 1, 0, 0, 0]))
    assert bool((network(image) == 3).all())


@pytest.mark.parametrize("classes", [0, 1, 65])
def test_numbers_of_classes_without_a_palette_are_refused(classes: int) -> None:
    with pytest.raises(OptionError, match=str(classes)):
        build_segmentation(SegmentationConfig(classes))


def test_the_shipped_sizes_fit_two_megabytes_of_int8() -> None:
    for network in (build_tagger(TaggerConfig(300)), build_segmentation(SegmentationConfig(64))):
        assert sum(p.numel() for p in network.parameters()) < 1.9e6


def test_region_labels(regions: Path, materials: Path) -> None:
    views, labels, photos = region_labels(regions, materials, held_out=False)
    assert views.shape == (10, 256, 256, 3) and labels.shape == (10, 64, 64)
    assert len(set(photos)) == 5
    classes = class_names(json.loads((materials / "names.json").read_text()))
    assert classes == [*VOC, "rock", "sky"]
    found = set(np.unique(labels).tolist())
    assert VOC.index("boat") in found and found <= {0, VOC.index("boat"), len(VOC), len(VOC) + 1}
    # The white corner of the whole photograph is the boat; the upper half is not.
    boat = labels[0] == VOC.index("boat")
    assert boat[52:, 46:].mean() > 0.9 and boat[:32].mean() < 0.2
    again, _, _ = region_labels(regions, materials, held_out=False)
    assert np.array_equal(again, views)


def test_saved_clusters_load_equal(regions: Path, materials: Path, tmp_path: Path) -> None:
    found = load_clusters(materials / "clusters.npz")
    save_clusters(found, tmp_path / "again.npz")
    arrays, _ = read_labels(regions, held_out=True)
    row = [arrays[k][0] for k in ("views", "boxes", "logits", "features")]
    names = ["a", "b", "c", "d"]
    maps = [label_view(*row, f, names) for f in (found, load_clusters(tmp_path / "again.npz"))]
    assert np.array_equal(*maps) and len(np.unique(maps[0])) > 2


def test_missing_names_of_clusters_are_refused(
    regions: Path, materials: Path, tmp_path: Path
) -> None:
    (tmp_path / "clusters.npz").write_bytes((materials / "clusters.npz").read_bytes())
    (tmp_path / "names.json").write_text('["sky"]')
    with pytest.raises(OptionError, match="1 names for 4 clusters"):
        region_labels(regions, tmp_path, held_out=False)


def command(stage: Any, monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    given = [*options, "--device", "cpu", "--batch", 2, "--log-every", 1, "--warmup", 1]
    monkeypatch.setattr(sys, "argv", ["train", *map(str, given)])
    stage.main()


def test_the_tagger_trains_and_resumes(
    tags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in (2, 3):
        options = ("--photos", tags, "--out", tmp_path, "--steps", steps)
        command(train_tagger, monkeypatch, *options)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    names = load_labels(tmp_path)["captioner"]
    assert list(names) == NAMES[1:]
    build_tagger(TaggerConfig(len(names))).load_state_dict(load_run(tmp_path)["captioner"])


def test_segmentation_trains_and_resumes(
    regions: Path, materials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in (2, 3):
        options = ("--photos", regions, "--materials", materials, "--out", tmp_path)
        command(train_segmentation, monkeypatch, *options, "--steps", steps)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    names = load_labels(tmp_path)["segmentation"]
    state = load_run(tmp_path)["segmentation"]
    build_segmentation(SegmentationConfig(len(names))).load_state_dict(state)


def test_rare_classes_weigh_more() -> None:
    labels = np.zeros((1, 10, 10), np.uint8)
    labels[0, 0] = 2
    weights = train_segmentation.class_weights(labels, 4, power=0.5)
    assert weights[1] == weights[3] == 0
    assert weights[2] / weights[0] == pytest.approx(3)  # (0.9 / 0.1)^½
    assert (weights[labels]).mean() == pytest.approx(1)


def test_labels_are_cropped_with_their_pictures() -> None:
    torch.manual_seed(0)
    # Cells of 8, so that few pixels lie on borders, which resizing blurs.
    labels = torch.randint(0, 5, (2, 8, 8), dtype=torch.uint8)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = labels[:, None].float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    for _ in range(6):
        pictures, small = train_segmentation.cut(images, labels, 128)
        assert pictures.shape == (2, 1, 256, 256) and small.dtype == torch.int64
        seen = pictures[:, 0, 2::4, 2::4].round().long()
        assert (seen == small).float().mean() > 0.85
        # Mirrored or shifted labels agree less.
        for wrong in (seen.flip(-1), seen.roll(4, 2)):
            assert (wrong == small).float().mean() < 0.85


def colours_by_torch(hr: torch.Tensor) -> list[str]:
    """The two commonest colours of 16×16 means, computed in torch."""
    small = torch.nn.functional.interpolate(hr[None], (16, 16), mode="area")[0]
    rgb = ((small + 1) * 127.5).permute(1, 2, 0).reshape(-1, 3).numpy()
    table = np.array(list(COLOURS.values()), np.float64)
    counts = np.bincount(((rgb[:, None] - table) ** 2).sum(-1).argmin(1), minlength=len(table))
    return [list(COLOURS)[i] for i in np.argsort(-counts, kind="stable")[:2] if counts[i]]


@pytest.mark.parametrize("size", [(64, 64), (50, 37), (9, 70)])
def test_training_and_devices_give_the_same_words(size: tuple[int, int]) -> None:
    assert tiles.collect_words is collect_words  # training makes them as devices do
    rng = np.random.default_rng(size)
    for _ in range(5):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8)).resize(size[::-1])
        picture = np.asarray(coarse, np.float32) / 127.5 - 1
        hr = torch.from_numpy(picture).permute(2, 0, 1)
        words = describe_picture(picture)
        assert [w for w in words if w in COLOURS] == colours_by_torch(hr)
