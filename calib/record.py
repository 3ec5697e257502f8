"""Record a calibration set: the inputs of the components while the pipeline upscales photographs.

    python -m mmsr_edge.calib.record --bundle DIR --pictures DIR --out calibration.npz

Each photograph gives one tile: a crop reduced to the low resolution. Every other tile is degraded
as in training, so that clean and noisy pictures occur. Trajectories of several lengths cover all
timesteps that `unet` serves; prompts, guidance and the available maps vary, every third picture's
temperatures do, and every fourth picture's degradation is not told. A few calls of each component
are kept for each picture, drawn at random over steps and guidance branches. The HR crops are kept
as inputs of `hr_encoder`; the export compares its pictures with them. The same seed records the
same set.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mmsr_edge.bundle import MAPS, Manifest
from mmsr_edge.calib.reader import CalibrationSet
from mmsr_edge.errors import MMSRError, OptionError
from mmsr_edge.image.blur import gaussian_blur
from mmsr_edge.pipeline import MultimodalPipeline, PictureRun
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import open_session, select_backend
from mmsr_edge.training.data.degradation import DegradeConfig, degrade
from mmsr_edge.training.data.photos import find_photos
from mmsr_edge.upscaler import Upscaler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from mmsr_edge.modalities.vocabulary import Vocabulary
    from mmsr_edge.runtimes.base import Session

    Array = NDArray[Any]

PROMPTS = (
    "auto",
    "daylight, green, brown, fine texture",
    "auto",
    "an old stone house with a red roof beside a road",
    "auto",
    "a bird on a branch, soft background",
)
"""Prompts, used in turn; "auto" stands for the bundle's own tags."""


@dataclass(frozen=True)
class RecordConfig:
    """Settings of a recording.

    Raises:
        OptionError: a value is below 1.
    """

    pictures: int = 24
    """Number of tiles to upscale; photographs are reused if there are fewer."""
    calls: int = 6
    """Number of calls of each component to keep for each picture."""
    steps: tuple[int, ...] = (1, 4, 20, 50)
    """Lengths of the sampler's trajectory, used in turn."""
    maps: float = 0.5
    """Probability of depth and of segmentation being present; edges have 0.9."""
    seed: int = 0
    """Seed of all random choices."""

    def __post_init__(self) -> None:
        if self.pictures < 1 or self.calls < 1 or not self.steps or min(self.steps) < 1:
            raise OptionError(
                f"pictures {self.pictures}, calls {self.calls} and steps {self.steps} must be >= 1"
            )


def record(
    model: Path, pictures: Path, config: RecordConfig | None = None, backend: str = "auto"
) -> CalibrationSet:
    """Upscale tiles of photographs and record the components' inputs.

    Args:
        model: folder of a bundle or checkpoint.
        pictures: folder of photographs, searched recursively.
        config: settings; None: the defaults.
        backend: backend that runs the bundle; "torch" for a checkpoint.

    Raises:
        OptionError: there are no photographs.
        MMSRError: the bundle cannot be opened or run.
    """
    config = config or RecordConfig()
    upscaler = Upscaler(model, backend)
    manifest = upscaler.bundle.manifest
    chosen = select_backend(upscaler.backend).backend
    rng = np.random.default_rng(config.seed)
    recorder = _Recorder(config.calls, rng)
    upscaler.pipeline = _RecordedPipeline(
        manifest,
        lambda name: open_session(upscaler.bundle, name, chosen, SessionOptions()),
        upscaler.pipeline.vocabulary,
        recorder,
    )
    tiles = tiles_of_photos(pictures, manifest, config)
    most = manifest.unets["unet"][-1]  # a diffusion's own UNet stays float
    for number, (hr, tile) in enumerate(tqdm(tiles, "recording", config.pictures, unit="picture")):
        recorder.add("hr_encoder", {"image": hr})
        steps = min(config.steps[number % len(config.steps)], most)
        upscaler.upscale(
            tile,
            prompt=PROMPTS[number % len(PROMPTS)],
            steps=steps,
            **_guidance(manifest, number, steps),
            seed=config.seed + number,
            color_fix=False,
            degradation=None if number % 4 == 3 else "auto",
            temperature=_temperatures(rng) if number % 3 == 2 else None,
            **_maps(tile, manifest, config, rng),
        )
        recorder.end_picture()
    notes = {**asdict(config), "model": manifest.name, "version": manifest.version}
    return CalibrationSet.stack(recorder.kept, notes)


def tiles_of_photos(
    folder: Path, manifest: Manifest, config: RecordConfig
) -> Iterator[tuple[Array, Array]]:
    """Cut tiles from photographs and degrade them; every other LR tile is clean.

    Yields:
        HR tile, float32 [1, 3, s·t, s·t] in [-1, 1], and LR tile, uint8 [t, t, 3].
    """
    photos = find_photos(folder)
    rng = np.random.default_rng([config.seed, 1])
    generator = torch.Generator().manual_seed(config.seed)
    order = rng.permutation(len(photos))
    side = manifest.tile.size * manifest.scale
    for number in range(config.pictures):
        with Image.open(photos[order[number % len(order)]]) as file:
            photo = file.convert("RGB")
        if min(photo.size) < side:
            grown = side / min(photo.size)
            photo = photo.resize(tuple(max(side, round(n * grown)) for n in photo.size))
        left, top = (int(rng.integers(n - side + 1)) for n in photo.size)
        hr = np.asarray(photo.crop((left, top, left + side, top + side)))
        batch = torch.from_numpy(hr.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        mix = replace(DegradeConfig(), scale=manifest.scale, clean=float(number % 2 == 0))
        lr = degrade(batch, mix, generator)[0].permute(1, 2, 0).numpy()
        yield batch.numpy(), ((lr + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def _guidance(manifest: Manifest, number: int, steps: int) -> dict[str, Any]:
    """Guidance options: the bundle's own for half of the pictures, another kind for the rest."""
    sampler = manifest.sampler
    if number % 4 < 2 or sampler.baked_guidance is not None:
        return {}
    if steps <= sampler.few_steps:
        return {} if sampler.few_guidance is None else {"guidance_scale": 0.5}
    return {"guidance": "cfg" if number % 4 == 2 else "m0-cfg"}


def _temperatures(rng: np.random.Generator) -> dict[str, float]:
    """Temperatures of the maps, log-uniform over the allowed range (Sec. 3.2)."""
    return {name: float(np.exp(rng.uniform(np.log(0.4), np.log(10)))) for name in MAPS}


def _maps(
    tile: Array, manifest: Manifest, config: RecordConfig, rng: np.random.Generator
) -> dict[str, Any]:
    """Options of the maps: present at random, with stand-ins where the bundle lacks a network.

    In the stand-ins, depth is nearer where a pixel is lower and brighter, and a segmentation class
    is a range of brightness.
    """
    here = rng.random(3) < (config.maps, config.maps, 0.9)
    grey = gaussian_blur(tile.astype(np.float32).mean(axis=2) / 255, 2.0)
    ramp = np.linspace(0, 1, len(grey), dtype=np.float32)[:, None]
    stand_ins = {
        "depth": 0.7 * ramp + 0.3 * grey,
        "segmentation": (grey * 7.99).astype(np.uint8) + 1,
    }
    maps: dict[str, Any] = {"edges": "auto" if here[2] else None}
    for name, is_here in zip(stand_ins, here, strict=False):
        made = "auto" if name in manifest.components else stand_ins[name]
        maps[name] = made if is_here else None
    return maps


class _Recorder:
    """Uniform random sample of each component's calls, picture by picture."""

    def __init__(self, most: int, rng: np.random.Generator) -> None:
        self.kept: dict[str, list[dict[str, Array]]] = {}
        self._most, self._rng = most, rng
        self._counts: Counter[str] = Counter()
        self._reservoirs: dict[str, dict[int, dict[str, Array]]] = {}

    def add(self, component: str, feeds: dict[str, Array]) -> None:
        """Add a call by reservoir sampling (Vitter 1985, Algorithm R): all are equally likely."""
        reservoir = self._reservoirs.setdefault(component, {})
        call = self._counts[component]
        self._counts[component] += 1
        if len(reservoir) == self._most:
            slot = int(self._rng.integers(call + 1))
            if slot >= self._most:
                return
            del reservoir[sorted(reservoir)[slot]]
        reservoir[call] = {name: array.copy() for name, array in feeds.items()}

    def end_picture(self) -> None:
        """Store the sampled calls of this picture."""
        for component, reservoir in self._reservoirs.items():
            calls = self.kept.setdefault(component, [])
            calls.extend(reservoir[call] for call in sorted(reservoir))
        self._counts.clear()
        self._reservoirs.clear()


class _RecordedPipeline(MultimodalPipeline):
    """Pipeline that passes every call to a recorder."""

    def __init__(
        self,
        manifest: Manifest,
        opener: Callable[[str], Session],
        vocabulary: Vocabulary | None,
        recorder: _Recorder,
    ) -> None:
        super().__init__(manifest, opener, vocabulary)
        self._recorder = recorder

    def run(
        self, component: str, calls: Sequence[dict[str, Array]], picture: PictureRun
    ) -> list[dict[str, Array]]:
        for feeds in calls:
            self._recorder.add(component, feeds)
        return super().run(component, calls, picture)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mmsr_edge.calib.record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, required=True, help="bundle or checkpoint folder")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help=".npz file to write")
    parser.add_argument("--backend", default="auto", help="backend to run (default: auto)")
    default = RecordConfig()
    parser.add_argument("--count", type=int, default=default.pictures, help="tiles to upscale")
    parser.add_argument("--calls", type=int, default=default.calls, help="kept for each picture")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=default.steps, help="lengths of the trajectory"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    args = parser.parse_args(arguments)
    try:
        config = RecordConfig(args.count, args.calls, tuple(args.steps), seed=args.seed)
        recorded = record(args.bundle, args.pictures, config, args.backend)
        recorded.save(args.out)
    except MMSRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = ", ".join(f"{name} {recorded.count(name)}" for name in recorded.inputs)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB; calls of {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
