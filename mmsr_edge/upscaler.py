"""Upscaler: image in, image out.

The picture is cut into overlapping tiles of the size that the networks take. Maps are made once,
of the whole picture, and cropped per tile, so that a tile knows its surroundings; noise is drawn
once for the whole latent canvas, so that neighbours agree where they overlap.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mmsr_edge.bundle import open_bundle
from mmsr_edge.color import match_low_frequencies
from mmsr_edge.config import MapOption, UpscaleOptions, resolve
from mmsr_edge.errors import BundleError, Cancelled
from mmsr_edge.image import check_output, load_image, save_image, to_pil
from mmsr_edge.modalities.maps import map_image
from mmsr_edge.modalities.picture_maps import collect_maps
from mmsr_edge.modalities.picture_tags import collect_tags
from mmsr_edge.pipeline import MultimodalPipeline, PictureRun
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import open_session, select_backend
from mmsr_edge.tiling import Blender, TilePlan, pad, plan_tiles

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Callable, Mapping

    import numpy.typing as npt
    from PIL import Image

    from mmsr_edge.config import RunSettings
    from mmsr_edge.modalities.picture_maps import PictureMap
    from mmsr_edge.runtimes.base import Session

    Array = npt.NDArray[Any]

__all__ = ["Progress", "Result", "Upscaler"]

ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[Any]"


@dataclass(frozen=True)
class Progress:
    """How far an upscale call has come."""

    stage: str
    """"maps", "sampling", "decoding", "finishing" or "done"."""
    tile: int
    """The tile being worked on, from 1; 0 before the first."""
    tiles: int
    """Number of tiles."""
    step: int
    """Sampler steps done on this tile."""
    steps: int
    """Sampler steps of a tile."""
    fraction: float
    """Share of the whole work done: never falls, and is 1 exactly once, at the end."""


@dataclass(frozen=True, eq=False)
class Result:
    """An upscaled picture and how it came about."""

    image: Image.Image
    """RGB or RGBA; colour profile and EXIF, where the input has them, are in `info`."""
    maps: dict[str, Image.Image | None]
    """The maps used, by name; None: absent. Each can be given back as the next picture's map."""
    caption: str
    """The prompt as the text encoder got it; empty when there was no text."""
    tags: dict[str, float]
    """What the tagger found, surest first, with its scores; empty unless the prompt is "auto"."""
    timings: dict[str, float]
    """Seconds by component; "load" is the opening of sessions, "total" is the whole call."""
    calls: dict[str, int]
    """Number of network calls by component."""
    seed: int
    """Of the noise."""
    backend: str
    """Name of the runtime."""
    warnings: list[str]
    """What did not go as asked, but did not prevent a result."""


class Upscaler:
    """A model on a backend, ready to enlarge pictures. Safe to call from several threads."""

    def __init__(
        self,
        model: str | os.PathLike[str] = "nano",
        backend: str = "auto",
        *,
        precision: str = "auto",
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open a bundle and choose a backend; networks are loaded by the first call.

        Args:
            model: a shipped model's name, or a bundle's folder.
            backend: "openvino", "onnxruntime", "coreml", "torch", or "auto": the fastest usable.
            precision: "int8", "fp16", "fp32", or "auto": the backend's fastest.
            threads: for one network call; None: the backend's choice.
            cache_dir: where compiled models are kept; None: the user's cache folder.

        Raises:
            BundleError: the bundle is missing or damaged.
            BackendError, MissingExtraError: no runtime, or not the one asked for, can be used.
            OptionError: `backend`, `precision` or `threads` is not what it must be.
        """
        self.bundle = open_bundle(model)
        manifest = self.bundle.manifest
        if manifest.tile.multiple_of * manifest.scale % manifest.latent.factor:
            raise BundleError(
                f"bundle {manifest.name!r} has tiles at multiples of {manifest.tile.multiple_of}, "
                f"which at scale {manifest.scale} do not fall on latent cells of "
                f"{manifest.latent.factor} output pixels; export it again"
            )
        selection = select_backend(backend, self.bundle, precision)
        self.backend = selection.backend.name
        self.passed_over = selection.passed_over
        cache = None if cache_dir is None else Path(cache_dir)
        options = SessionOptions(threads=threads, cache_dir=cache)

        def open_component(name: str) -> Session:
            return open_session(self.bundle, name, selection.backend, options, precision)

        self.pipeline = MultimodalPipeline(manifest, open_component)

    def __call__(self, image: ImageSource, **options: Any) -> Result:
        """The same as `upscale`."""
        return self.upscale(image, **options)

    def upscale(
        self,
        image: ImageSource,
        *,
        prompt: str | None = "auto",
        negative_prompt: str | None = None,
        steps: int | None = None,
        guidance: str | None = "default",
        guidance_scale: float | None = None,
        temperature: float | Mapping[str, float] | None = None,
        depth: MapOption = "auto",
        segmentation: MapOption = "auto",
        edges: MapOption = "auto",
        seed: int = 0,
        color_fix: bool = True,
        progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        output: str | os.PathLike[str] | None = None,
        **unknown: Any,
    ) -> Result:
        """Enlarge a picture of any size.

        Args:
            image: a path, a PIL image, or an array: see `mmsr_edge.image.load_image`.
            prompt, negative_prompt, steps, guidance, guidance_scale, temperature, depth,
                segmentation, edges, seed, color_fix: see `mmsr_edge.config.UpscaleOptions`.
            progress: called after every sampler step, in this thread; what it raises ends the call.
            cancel: once set, the call ends before its next network call.
            output: also write the result there, in one step; an existing file is replaced.

        Raises:
            OptionError: an option is unknown, or outside its range.
            ImageError: the picture or a map cannot be read.
            OutputError: `output` cannot be written; found out before the work where possible.
            Cancelled: `cancel` was set. There is then no output file, or the one from before.
            BackendError, BundleError: a network could not be opened or run.
        """
        began = time.perf_counter()
        options = UpscaleOptions.from_mapping(
            {
                "prompt": prompt,
                "negative_prompt": negative_prompt,
                "steps": steps,
                "guidance": guidance,
                "guidance_scale": guidance_scale,
                "temperature": temperature,
                "depth": depth,
                "segmentation": segmentation,
                "edges": edges,
                "seed": seed,
                "color_fix": color_fix,
                **unknown,
            }
        )
        manifest = self.bundle.manifest
        settings = resolve(options, manifest)

        def check() -> None:
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled by the caller")

        picture = load_image(image)
        height, width = picture.rgb.shape[:2]
        scale = manifest.scale
        if output is not None:
            transparent = picture.alpha is not None and bool((picture.alpha < 1).any())
            check_output(output, size=(width * scale, height * scale), transparent=transparent)

        run = self.pipeline.start(settings, check)
        plan = plan_tiles(height, width, manifest.tile)
        report = _Reporter(progress, len(plan), settings.steps)
        report("maps", 0, 0)
        warnings: list[str] = []
        tags = collect_tags(picture.rgb, run, warnings)
        maps = collect_maps(picture.rgb, options, run, warnings)
        canvas = self._canvas(picture.rgb, maps, plan, settings, options.seed, run, report)

        report("finishing", len(plan), settings.steps)
        canvas = canvas[: height * scale, : width * scale]
        if options.color_fix:
            match_low_frequencies(canvas, picture.rgb, out=canvas)
        enlarged = to_pil(canvas, picture)
        check()
        if output is not None:
            save_image(enlarged, output)
        timings = {**run.seconds, "total": time.perf_counter() - began}
        report("done", len(plan), settings.steps)
        return Result(
            image=enlarged,
            maps={name: map_image(whole.values) if whole else None for name, whole in maps.items()},
            caption=run.positive,
            tags=tags,
            timings=timings,
            calls=dict(run.calls),
            seed=int(options.seed),
            backend=self.backend,
            warnings=warnings,
        )

    def _canvas(
        self,
        rgb: Array,
        maps: Mapping[str, PictureMap | None],
        plan: TilePlan,
        settings: RunSettings,
        seed: int,
        run: PictureRun,
        report: _Reporter,
    ) -> Array:
        """The blended tiles: float32 [H, W, 3] in [-1, 1], padding included."""
        manifest = self.bundle.manifest
        latents = plan.scaled(Fraction(manifest.scale, manifest.latent.factor))
        outputs = plan.scaled(manifest.scale)
        generator = np.random.Generator(np.random.Philox(seed))
        shape = (latents.height, latents.width, manifest.latent.channels)
        noise = generator.standard_normal(shape, np.float32)
        padded = pad(rgb, plan.height, plan.width)
        side = self.pipeline.map_side
        blender = Blender(outputs)
        for number, (tile, latent_tile, output_tile) in enumerate(
            zip(plan, latents, outputs, strict=True), start=1
        ):
            crops = {
                name: whole.crop(tile.box, side, rgb.shape[:2])
                for name, whole in maps.items()
                if whole is not None
            }
            report("sampling", number, 0)
            lr, start = _to_nchw(tile.of(padded)), _to_nchw(latent_tile.of(noise))
            for step in run.denoise(lr, crops, start):
                report("sampling", number, step.index + 1)
                latent = step.latent
            report("decoding", number, settings.steps)
            blender.add(output_tile, run.decode(latent)[0].transpose(1, 2, 0))
        return blender.finish()


class _Reporter:
    """Turns places in the work into `Progress`."""

    def __init__(self, callback: Callable[[Progress], None] | None, tiles: int, steps: int) -> None:
        self._callback, self._tiles, self._steps = callback, tiles, steps

    def __call__(self, stage: str, tile: int, step: int) -> None:
        if self._callback is None:
            return
        # A tile is its steps and one decoding; maps and finishing are worth as much as one step.
        whole = 2 + self._tiles * (self._steps + 1)
        finished = {"maps": 0, "finishing": whole - 1, "done": whole}.get(
            stage, 1 + (tile - 1) * (self._steps + 1) + step
        )
        self._callback(Progress(stage, tile, self._tiles, step, self._steps, finished / whole))


def _to_nchw(window: Array) -> Array:
    """[H, W, C] -> contiguous [1, C, H, W]."""
    return np.ascontiguousarray(window.transpose(2, 0, 1)[None])
