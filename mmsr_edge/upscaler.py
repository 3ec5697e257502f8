"""Upscaler: picture in, picture out.

The picture is cut into overlapping tiles of the size that the networks take. Maps are made once,
for the whole picture, and cropped per tile, so that they include a tile's surroundings. Noise is
drawn once for the whole latent canvas, so that neighbours agree where they overlap. The networks'
output is processed in strips of whole rows and, where the file's format allows it, written strip
by strip, so that a large picture takes little more memory than a small one.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mmsr_edge.bundle import MAPS, open_bundle
from mmsr_edge.choice import choose_model, timing_tile
from mmsr_edge.config import UpscaleKeywords, UpscaleOptions
from mmsr_edge.errors import BundleError, Cancelled, OptionError
from mmsr_edge.image import FORMATS, check_output, load_image, open_image
from mmsr_edge.image.color import FIDELITY_PSNR, Fidelity
from mmsr_edge.image.finishing import Finishing, shown_colours
from mmsr_edge.image.strips import Rows
from mmsr_edge.image.writers import CanvasWriter, StripWriter, open_writer, streams
from mmsr_edge.memory import check_memory
from mmsr_edge.modalities.degradation import collect_levels, set_levels
from mmsr_edge.modalities.maps import map_image
from mmsr_edge.modalities.picture import collect_maps
from mmsr_edge.modalities.spatial import collect_dials
from mmsr_edge.modalities.vocabulary import bundle_vocabulary
from mmsr_edge.modalities.words import collect_words
from mmsr_edge.pipeline import MultimodalPipeline, PictureRun
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import open_session, select_backend
from mmsr_edge.settings import resolve
from mmsr_edge.tiling import TilePlan, blend, pad, plan_tiles

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt
    from PIL import Image
    from typing_extensions import Unpack

    from mmsr_edge.image import Picture
    from mmsr_edge.image.metadata import Metadata
    from mmsr_edge.modalities.picture import PictureMap
    from mmsr_edge.modalities.spatial import DialMap
    from mmsr_edge.runtimes.base import Session
    from mmsr_edge.settings import RunSettings

    Array = npt.NDArray[Any]

__all__ = ["Progress", "Result", "Upscaler"]

ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[Any]"


@dataclass(frozen=True)
class Progress:
    """Progress of an upscale call."""

    stage: str
    """Stage of the work: "maps", "sampling", "decoding", "finishing" or "done"."""
    tile: int
    """Number of the current tile, from 1; 0 before the first."""
    tiles: int
    """Number of tiles."""
    step: int
    """Sampler steps done on this tile."""
    steps: int
    """Sampler steps per tile."""
    fraction: float
    """Share of the work that is done, 0 to 1. It never falls, and is 1 in the last call only."""


@dataclass(frozen=True, eq=False)
class Result:
    """An upscaled picture, with its maps, tags, timings and warnings."""

    size: tuple[int, int]
    """(width, height) of the result."""
    output: Path | None
    """The file that the result was written to; None: none."""
    maps: dict[str, Image.Image | None]
    """The maps in use, by name; None: absent. Each can be the map of another call."""
    caption: str
    """The prompt as given to the text encoder; empty if text was absent."""
    tags: dict[str, float]
    """Tags found in the picture and their scores, highest first; empty unless the prompt is "auto".
    """
    timings: dict[str, float]
    """Seconds by component; "load" is the opening of sessions, "total" is the whole call."""
    calls: dict[str, int]
    """Number of network calls by component."""
    seed: int
    """Seed of the noise."""
    backend: str
    """Name of the backend."""
    warnings: list[str]
    """Problems that did not prevent a result."""
    low_pass_psnr: float | None = None
    """PSNR of the block means against the input, in dB, peak 1; None without `fidelity`."""
    degradation: dict[str, float] = field(default_factory=dict)
    """Levels of noise, blur and JPEG that the model was told, 0 to 1; unknown ones are missing."""
    canvas: Image.Image | None = field(default=None, repr=False)
    """The picture; None: it was written to the file by rows and never held whole."""

    @cached_property
    def image(self) -> Image.Image:
        """The picture in mode L, LA, RGB or RGBA, with profile, EXIF and XMP, if any, in `info`.

        A picture that was written by rows is read from `output` on first use.

        Raises:
            ImageError: that file is missing or cannot be read.
        """
        if self.canvas is not None:
            return self.canvas
        return open_image(str(self.output), max_pixels=self.size[0] * self.size[1])


class Upscaler:
    """A model on a backend, ready to upscale pictures. Safe to call from several threads."""

    def __init__(
        self,
        model: str | os.PathLike[str] = "nano",
        backend: str = "auto",
        *,
        precision: str = "auto",
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        device: str = "auto",
        compile: bool = False,  # noqa: A002 - torch's name
    ) -> None:
        """Open a bundle and choose a backend; networks are loaded by the first call.

        Args:
            model: name of a shipped model, or folder of a bundle. "auto": the best shipped one
                whose tile takes at most half a second here, by measurement; see `choice`.
            backend: "openvino", "onnxruntime", "coreml", "torch", or "auto": the fastest usable.
            precision: "int4", "int8", "fp16", "fp32", or "auto": the backend's fastest.
            threads: number of threads for one network call; None: the backend's choice.
            cache_dir: folder for compiled models; None: the user's cache folder.
            device: name of the device in the backend's own naming ("GPU" in OpenVINO, "cuda:1" in
                torch, "ane" in Core ML). "auto": CUDA if there is one in torch, the system's choice
                in Core ML, and otherwise the CPU, where results are reproducible.
            compile: compile the networks (`torch.compile`, on CUDA with CUDA graphs); for the
                backend "torch" only. The first picture takes minutes longer, which pays off over
                many steps.

        Raises:
            BundleError: the bundle is missing or damaged, or has untrained networks.
            BackendError, MissingExtraError: no runtime, or not the requested one, can be used.
            OptionError: `backend`, `precision`, `threads` or `device` is not allowed, or `compile`
                is set for another backend than torch.
        """
        self.choice = ""
        """Which model "auto" took and why; empty for a model that was named."""
        cache = None if cache_dir is None else Path(cache_dir)
        given = backend, precision, SessionOptions(threads, cache, device, compile)
        if model == "auto":
            self.choice = choose_model(lambda name: self._open(name, *given), self._tile_seconds)
        else:
            self._open(model, *given)

    def _open(
        self, model: str | os.PathLike[str], backend: str, precision: str, options: SessionOptions
    ) -> None:
        self.bundle = open_bundle(model)
        manifest = self.bundle.manifest
        if manifest.untrained:
            raise BundleError(
                f"bundle {manifest.name!r} is not a model yet: {', '.join(manifest.untrained)} "
                "have not been trained; give a bundle that was exported after training"
            )
        if manifest.tile.multiple_of * manifest.scale % manifest.latent.factor:
            raise BundleError(
                f"bundle {manifest.name!r} has tiles at multiples of {manifest.tile.multiple_of}, "
                f"which at scale {manifest.scale} do not fall on latent cells of "
                f"{manifest.latent.factor} output pixels; export it again"
            )
        selection = select_backend(backend, self.bundle, precision)
        self.backend = selection.backend.name
        self.precision = precision
        self.passed_over = selection.passed_over
        selection.backend.check_options(options)

        def open_component(name: str) -> Session:
            return open_session(self.bundle, name, selection.backend, options, precision)

        has_captions = "caption_decoder" in manifest.components
        vocabulary = bundle_vocabulary(self.bundle) if has_captions else None
        self.pipeline = MultimodalPipeline(manifest, open_component, vocabulary)

    def _tile_seconds(self) -> float:
        """Time of one tile with all modalities, once the networks are loaded."""
        tile = timing_tile(self.bundle.manifest.tile.size)
        return min(self.upscale(tile, prompt="auto").timings["total"] for _ in range(2))

    def upscale(
        self,
        image: ImageSource,
        *,
        output: str | os.PathLike[str] | None = None,
        progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        **options: Unpack[UpscaleKeywords],
    ) -> Result:
        """Upscale a picture of any size.

        Args:
            image: a path, a PIL image or an array; see `mmsr_edge.image.load_image`.
            output: a file that the result is written to, in one step; an existing file is replaced.
                PNG and TIFF are written by rows, and the result is then not held in memory.
            progress: called in this thread after every sampler step; an exception that it raises
                ends the call.
            cancel: once set, the call ends before its next network call.
            options: fields of `mmsr_edge.UpscaleOptions`, by name.

        Raises:
            OptionError: an option is unknown, or outside its range.
            ImageError: the picture or a map cannot be read.
            OutputError: `output` cannot be written; checked before the work where possible.
            Cancelled: `cancel` was set. There is no output file then, or the previous one.
            BackendError, BundleError: a network could not be opened or run.
        """
        checked = UpscaleOptions.from_mapping(options)
        path = None if output is None else Path(output)
        return self._upscale(image, checked, path, progress, cancel)

    __call__ = upscale

    def _upscale(
        self,
        image: ImageSource,
        options: UpscaleOptions,
        output: Path | None,
        progress: Callable[[Progress], None] | None,
        cancel: threading.Event | None,
    ) -> Result:
        began = time.perf_counter()
        manifest = self.bundle.manifest
        settings = resolve(options, manifest)

        def check() -> None:
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled by the caller")

        picture = load_image(image, first_frame=options.first_frame)
        finishing, metadata = self._finishing(picture, options, output)
        size = finishing.target.size
        by_rows = output is not None and streams(output)
        check_memory(finishing, manifest, options.max_memory_mb, by_rows=by_rows)
        srgb, profile = shown_colours(picture)

        run = self.pipeline.start(settings, check)
        plan = plan_tiles(picture.size[1], picture.size[0], manifest.tile)
        report = _Reporter(progress, len(plan), settings.steps)
        report("maps", 0, 0)
        warnings: list[str] = []
        words, tags = collect_words(srgb, run, warnings) if settings.tagged else ("", {})
        levels: dict[str, float] = {}
        found: dict[str, float] = {}
        if settings.told and not (options.degradation is None and options.denoise is None):
            found = collect_levels(srgb, run, picture.jpeg_quality, warnings)
            levels = set_levels(options.degradation, options.denoise, found)
        run.describe(words, levels, found)
        wanted = {name: getattr(options, name) for name in MAPS}
        maps = collect_maps(srgb, wanted, run, warnings)
        dials = collect_dials(settings.dials, maps, srgb.shape[:2], manifest)
        windows = self._windows(srgb, maps, dials, plan, settings, options.seed, run, report)
        strips = self._strips(windows, plan, picture.size)
        measure = (
            Fidelity(picture.rgb if finishing.keep_profile else srgb, manifest.scale)
            if options.fidelity
            else None
        )
        with _writer(output, size, finishing, metadata) as writer:
            for strip in finishing.rows(strips, srgb, profile, measure):
                check()
                writer.write(strip)
            report("finishing", len(plan), settings.steps)
            check()
        psnr = None if measure is None else measure.psnr
        if psnr is not None and psnr < FIDELITY_PSNR:
            warnings.append(
                f"fidelity: the result's block means match the input at {psnr:.1f} dB only, not at "
                f"{FIDELITY_PSNR:g}: too much of the picture is at the ends of the range"
            )
        timings = {**run.seconds, "total": time.perf_counter() - began}
        report("done", len(plan), settings.steps)
        return Result(
            size=size,
            output=output,
            maps={name: map_image(whole.values) if whole else None for name, whole in maps.items()},
            caption=run.positive,
            tags=tags,
            timings=timings,
            calls=dict(run.calls),
            seed=int(options.seed),
            backend=self.backend,
            warnings=warnings,
            low_pass_psnr=psnr,
            degradation=levels,
            canvas=writer.image if isinstance(writer, CanvasWriter) else None,
        )

    def _finishing(
        self, picture: Picture, options: UpscaleOptions, output: Path | None
    ) -> tuple[Finishing, Metadata]:
        """Finishing and metadata of the result, after a check that it can be written."""
        target = options.target(picture.size, self.bundle.manifest.scale)
        form = None if output is None else FORMATS.get(output.suffix.lower())
        deep = form is not None and form.strips
        # A grey picture that is written as RGB loses its grey profile.
        grey = picture.grey and (form is None or form.grey)
        finishing = Finishing(
            picture=picture,
            scale=self.bundle.manifest.scale,
            target=target,
            color_fix=options.color_fix,
            fidelity=options.fidelity,
            grey=grey,
            keep_profile=grey or not picture.grey,
            bits=(options.bits or picture.bits) if deep else 8,
        )
        if output is not None:
            pixel_bytes = finishing.channels * finishing.bits // 8
            check_output(
                output,
                size=target.size,
                transparent=picture.transparent,
                pixel_bytes=pixel_bytes,
            )
        if options.bits == 16 and not deep:
            raise OptionError(
                f"bits is 16, which {output or 'a PIL image'} cannot hold; write a .png or .tif"
            )
        metadata = picture.metadata(target.size)
        return finishing, metadata if finishing.keep_profile else replace(metadata, icc=None)

    def _strips(
        self, windows: Iterator[Array], plan: TilePlan, size: tuple[int, int]
    ) -> Iterator[Array]:
        """The tiles' outputs blended: strips of float32 [n, sW, 3] in [-1, 1], sH rows in all.

        Args:
            windows: outputs of the tiles, in the plan's order.
            plan: positions of the tiles in the input.
            size: (W, H) of the input.
        """
        scale = self.bundle.manifest.scale
        outputs = plan.scaled(scale)
        placed = zip(outputs, windows, strict=True)
        width, height = (side * scale for side in size)
        row = 0
        for strip in blend(outputs, placed):
            kept = strip[: max(0, height - row), :width]
            row += len(strip)
            if len(kept):
                yield kept

    def _windows(
        self,
        rgb: Array,
        maps: Mapping[str, PictureMap | None],
        dials: Mapping[str, DialMap],
        plan: TilePlan,
        settings: RunSettings,
        seed: int,
        run: PictureRun,
        report: _Reporter,
    ) -> Iterator[Array]:
        """Outputs of the tiles in the plan's order: float32 [o, o, 3] in [-1, 1]."""
        manifest = self.bundle.manifest
        latents = plan.scaled(Fraction(manifest.scale, manifest.latent.factor))
        noise = Rows(_noise(latents, manifest.latent.channels, seed))
        side = self.pipeline.map_side
        for number, (tile, latent_tile) in enumerate(zip(plan, latents, strict=True), start=1):
            crops = {
                name: whole.crop(tile.box, side, rgb.shape[:2])
                for name, whole in maps.items()
                if whole is not None
            }
            tile_dials = {
                name: whole.crop(tile.box, latent_tile.size, rgb.shape[:2])
                for name, whole in dials.items()
            }
            report("sampling", number, 0)
            band = noise.take(latent_tile.top, latent_tile.top + latent_tile.size)
            start = _to_nchw(band[:, latent_tile.left : latent_tile.left + latent_tile.size])
            lr = _to_nchw(pad(tile.of(rgb), tile.size, tile.size))
            for step in run.denoise(lr, crops, start, tile_dials):
                report("sampling", number, step.index + 1)
                latent = step.latent
            report("decoding", number, settings.steps)
            yield run.decode(latent, lr, crops)[0].transpose(1, 2, 0)


@contextmanager
def _writer(
    output: Path | None, size: tuple[int, int], finishing: Finishing, metadata: Metadata
) -> Iterator[StripWriter]:
    if output is None:
        canvas = CanvasWriter(size, finishing.channels, metadata)
        yield canvas
        canvas.finish()
    else:
        with open_writer(output, size, finishing.channels, finishing.bits, metadata) as writer:
            yield writer


def _noise(latents: TilePlan, channels: int, seed: int) -> Iterator[Array]:
    """Noise of the whole latent canvas, in rows [1, width, channels] from one generator."""
    generator = np.random.Generator(np.random.Philox(seed))
    for _ in range(latents.height):
        yield generator.standard_normal((1, latents.width, channels), np.float32)


class _Reporter:
    """Converts positions in the work to `Progress`."""

    def __init__(self, callback: Callable[[Progress], None] | None, tiles: int, steps: int) -> None:
        self._callback, self._tiles, self._steps = callback, tiles, steps

    def __call__(self, stage: str, tile: int, step: int) -> None:
        if self._callback is None:
            return
        # A tile counts as its steps and one decoding; maps and finishing count as one step each.
        whole = 2 + self._tiles * (self._steps + 1)
        finished = {"maps": 0, "finishing": whole - 1, "done": whole}.get(
            stage, 1 + (tile - 1) * (self._steps + 1) + step
        )
        self._callback(Progress(stage, tile, self._tiles, step, self._steps, finished / whole))


def _to_nchw(window: Array) -> Array:
    """[H, W, C] -> contiguous [1, C, H, W]."""
    return np.ascontiguousarray(window.transpose(2, 0, 1)[None])
