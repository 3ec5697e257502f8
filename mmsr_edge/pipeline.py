"""Pipeline: one tile, from maps to tokens, connector, sampler and decoder (Fig. 3 of the paper).

`MultimodalPipeline` holds the sessions and is shared. `PictureRun` holds the state of one picture:
the prompts' embeddings, the contexts that its tiles share, timings and numbers of calls. All sizes
come from the manifest.

Arrays are float32, NCHW, batch 1; pictures and maps are RGB in [-1, 1].
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.bundle import MAPS, MODALITIES, TOKEN_INPUTS
from mmsr_edge.errors import BackendError
from mmsr_edge.modalities.aligned import align_maps
from mmsr_edge.modalities.degradation import degradation_vector, degradation_words
from mmsr_edge.modalities.prompt import encode_prompt, join_words
from mmsr_edge.sampler import guide, make_schedule, negative_present, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from mmsr_edge.bundle import ComponentSpec, Manifest
    from mmsr_edge.modalities.vocabulary import Vocabulary
    from mmsr_edge.runtimes.base import Session
    from mmsr_edge.settings import RunSettings

    Array = npt.NDArray[Any]

__all__ = ["MultimodalPipeline", "PictureRun", "TileStep"]


@dataclass(frozen=True, eq=False)
class TileStep:
    """The state of a tile after one sampler step."""

    index: int
    """Index of the step, from 0."""
    total: int
    """Number of steps of the trajectory."""
    latent: Array
    """Current estimate of the clean HR latent, [1, C, l, l]; after the last step, the result."""


class MultimodalPipeline:
    """The sessions of a bundle, opened on first use. Safe to use from several threads."""

    def __init__(
        self,
        manifest: Manifest,
        open_session: Callable[[str], Session],
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """Prepare to run the bundle that `manifest` describes.

        Args:
            manifest: sizes, sampler and text settings.
            open_session: opens the component of a given name; called once for each component.
            vocabulary: vocabulary of the caption decoder, in bundles that have one.
        """
        self.manifest, self.vocabulary = manifest, vocabulary
        self.schedule = make_schedule(manifest.sampler)
        self._open_session = open_session
        self._sessions: dict[str, Session] = {}
        self._opening = threading.Lock()

    @property
    def map_side(self) -> int:
        """Side of the square that a map is resized to: the tokenizer's input."""
        return self.input_shape("tokenizer", "map")[-1]

    def input_shape(self, component: str, name: str) -> tuple[int, ...]:
        """Declared shape of one input of a component."""
        inputs = self.manifest.components[component].inputs
        return next(tensor.shape for tensor in inputs if tensor.name == name)

    def start(self, settings: RunSettings, check: Callable[[], None] | None = None) -> PictureRun:
        """Start the run of a picture.

        Args:
            settings: result of `settings.resolve`.
            check: called before every network call; the two UNet calls of a guided step count as
                one. An exception that it raises ends the run.
        """
        return PictureRun(self, settings, check)

    def run(
        self, component: str, calls: Sequence[dict[str, Array]], picture: PictureRun
    ) -> list[dict[str, Array]]:
        """Call one component once for each of `calls`; time and calls are added to `picture`."""
        session = self._sessions.get(component) or self._opened(component, picture)
        began = time.perf_counter()
        outputs = session.run_all(calls)
        picture.seconds[component] += time.perf_counter() - began
        picture.calls[component] += len(calls)
        return outputs

    def _opened(self, component: str, picture: PictureRun) -> Session:
        with self._opening:
            if component not in self._sessions:
                began = time.perf_counter()
                self._sessions[component] = self._open_session(component)
                picture.seconds["load"] += time.perf_counter() - began
            return self._sessions[component]


class PictureRun:
    """The run of one picture through the pipeline; used by one thread."""

    def __init__(
        self,
        pipeline: MultimodalPipeline,
        settings: RunSettings,
        check: Callable[[], None] | None = None,
    ) -> None:
        """See `MultimodalPipeline.start`."""
        self.settings = settings
        self.positive, self.negative = settings.positive, settings.negative
        """The prompts; `describe` adds to them."""
        self.levels: Mapping[str, float] = {}
        """Levels of degradation that the model is told, by name."""
        self.found: Mapping[str, float] = {}
        """Levels of degradation that were estimated, by name."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Wall time by component, in seconds; "load" is the opening of sessions."""
        self.calls: Counter[str] = Counter()
        """Number of calls by component."""
        self.pipeline = pipeline
        """The pipeline that holds the sessions."""
        self._check = check or (lambda: None)
        self._temperature = np.array([settings.temperature], np.float32)
        self._embeddings: dict[str, Array] = {}
        self._shared_contexts: dict[bytes, Array] = {}
        self._aligned: tuple[int, dict[str, Array | None], Array | None] = (0, {}, None)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.pipeline.manifest

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The caption decoder's vocabulary, in bundles that have one."""
        return self.pipeline.vocabulary

    @property
    def map_side(self) -> int:
        """Side of the square that a map is resized to: the tokenizer's input."""
        return self.pipeline.map_side

    def describe(
        self, words: str, levels: Mapping[str, float], found: Mapping[str, float] | None = None
    ) -> None:
        """Tell the model what was found in the picture; called before the first tile.

        Args:
            words: words for what it shows; they come before the prompt.
            levels: its levels of degradation, by name; unknown ones are missing. Their words come
                after the prompt and before the bundle's own, and before the negative prompt.
            found: levels that were estimated; what `levels` lacks of them is to stay.
        """
        settings, text = self.settings, self.manifest.text
        self.levels, self.found = levels, found or {}
        if settings.own is not None:
            told = degradation_words(levels) if text.degradation else ""
            self.positive = join_words(words, settings.own, told, text.positive)
            # Without a negative prompt, its prediction has no text at all.
            self.negative = join_words(told, settings.negative) if settings.negative else ""

    def run(self, component: str, **feeds: Array) -> dict[str, Array]:
        """Call one component."""
        return self.run_all(component, [feeds])[0]

    def run_all(
        self, component: str, calls: Sequence[Mapping[str, Array]]
    ) -> list[dict[str, Array]]:
        """Call one component several times, in one batch where the runtime supports it."""
        self._check()
        arrays = [{name: np.ascontiguousarray(a) for name, a in feeds.items()} for feeds in calls]
        return self.pipeline.run(component, arrays, self)

    def denoise(
        self,
        lr: Array,
        maps: Mapping[str, Array | None],
        noise: Array,
        dials: Mapping[str, Array] | None = None,
    ) -> Iterator[TileStep]:
        """Sample one tile's HR latent, yielding after every step.

        Args:
            lr: the tile, [1, 3, t, t] in [-1, 1].
            maps: maps by name (`MAPS`), [1, 3, s, s] in [-1, 1] with s = `map_side`; None or a
                missing name is an absent modality.
            noise: the tile's part of the canvas noise, [1, C, l, l]; not used for trajectories of
                up to `SamplerSpec.few_steps`, which start from 0.
            dials: "strength" and "guidance_scale" where they vary over the tile, [1, 1, l, l]; they
                replace the numbers of the settings.
        """
        settings, pipeline = self.settings, self.pipeline
        spec = pipeline.manifest.components[settings.unet]
        dials = dials or {}
        w: float | Array = dials.get("guidance_scale", settings.guidance_scale)
        strength: float | Array = dials.get("strength", settings.strength)
        # At w = 0 the negative prediction has no weight (Eq. 3-4), so it is not made.
        conditions = self._conditions(maps, spec, settings.guidance if np.any(w) else None)
        lr_latent = self.run("lr_encoder", lr=lr)["lr_latent"]
        restore = self._restorer(lr_latent)
        extra: dict[str, Array] = {}
        if spec.takes("guidance"):
            extra["guidance"] = np.array([w], np.float32)

        def predict(latent: Array, timestep: int) -> Array:
            # Sec. 3.3: the LR latent is concatenated to the noisy one, as in InstructPix2Pix.
            feeds = {
                "latent": np.concatenate([latent, lr_latent], axis=1),
                "timestep": np.array([timestep], np.float32),
                **extra,
            }
            calls = [{**feeds, **condition} for condition in conditions]
            results = self.run_all(settings.unet, calls)
            prediction, *others = (given["prediction"] for given in results)
            return guide(prediction, others[0], w) if others else prediction

        sampler = pipeline.manifest.sampler
        # Few steps do not remove the noise that they start from, and the rest shows as streaks.
        # Trajectories that were distilled to few steps start from 0, as in OSEDiff (2024).
        start = noise if settings.steps > sampler.few_steps else np.zeros_like(noise)
        spacing = sampler.timestep_spacing
        for step in sample(predict, start, pipeline.schedule, settings.steps, spacing):
            yield TileStep(step.index, step.total, restore(step.denoised, strength))

    def _restorer(self, lr_latent: Array) -> Callable[[Array, float | Array], Array]:
        """What makes the HR latent of the UNet's z_0 and of the strength λ."""
        spec = self.manifest.latent
        residual, sigma = spec.residual_scale, spec.diffusion_scale
        if self.settings.unet == "diffusion_unet" and sigma is not None:
            residual = None  # it models z_hr / σ
        else:
            sigma = None
        scale = np.array(residual or sigma or 1.0, np.float32).reshape(-1, 1, 1)

        def restore(z0: Array, strength: float | Array) -> Array:
            if residual is not None:  # z_0 is (z_hr − z_lr) / s
                regular: Array = lr_latent + scale * strength * z0
                return regular
            latent: Array = scale * z0
            if isinstance(strength, float) and strength == 1:
                return latent
            return lr_latent + strength * (latent - lr_latent)

        return restore

    def decode(
        self, latent: Array, lr: Array, maps: Mapping[str, Array | None] | None = None
    ) -> Array:
        """Decode a latent: [1, C, l, l] -> picture [1, 3, o, o], clipped to [-1, 1].

        Args:
            latent: latent of the last step.
            lr: the tile, [1, 3, t, t]; an input of some decoders.
            maps: the maps, as for `denoise`; some decoders read them, with the temperatures.

        Raises:
            BackendError: the decoder's output is not finite.
        """
        decoder = self.pipeline.manifest.components["decoder"]
        extra = {"lr": lr} if decoder.takes("lr") else {}
        if decoder.takes("degradation"):
            extra["degradation"] = degradation_vector(self.levels, self.found)
        if decoder.takes("aligned"):
            extra["aligned"] = self._align("decoder", maps or {})
        image = self.run("decoder", latent=latent, **extra)["image"]
        if not np.isfinite(image).all():
            raise BackendError(
                "the decoder's picture is not finite: the chosen backend or precision overflows; "
                "try precision='fp32' or another backend"
            )
        return image.clip(-1, 1)

    def _conditions(
        self, maps: Mapping[str, Array | None], unet: ComponentSpec, guidance: str | None
    ) -> list[dict[str, Array]]:
        """The UNet's inputs that hold text and maps, by name.

        Those of the positive prediction come first, then, where one is made, of the negative.
        """
        settings = self.settings
        given = {name: whole for name in MAPS if (whole := maps.get(name)) is not None}
        tokens = {name: self.run("tokenizer", map=whole)["tokens"] for name, whole in given.items()}
        here = [name in given for name in MAPS]
        sides = [(self.positive, np.array([[bool(self.positive), *here]], np.float32))]
        if guidance is not None and not unet.takes("guidance"):
            present = np.array([[bool(self.negative), *here]], np.float32)
            sides.append((self.negative, negative_present(guidance, present)))
        conditions = []
        for text, present in sides:
            condition = {"context": self._context(text, tokens, present)}
            if unet.takes("aligned"):
                seen = dict(zip(MAPS, present[0, 1:], strict=True))
                condition["aligned"] = self._align(
                    settings.unet, {name: whole for name, whole in given.items() if seen[name]}
                )
            conditions.append(condition)
        return conditions

    def _align(self, component: str, maps: Mapping[str, Array | None]) -> Array:
        """The input `aligned` of a component. UNet and decoder of a tile mostly share it."""
        size = self.pipeline.input_shape(component, "aligned")[-1]
        before, given, aligned = self._aligned
        same = maps.keys() == given.keys() and all(maps[name] is given[name] for name in maps)
        if aligned is None or before != size or not same:
            temperature = dict(zip(MODALITIES, self.settings.temperature, strict=True))
            aligned = align_maps(maps, size, temperature)
            self._aligned = size, dict(maps), aligned
        return aligned

    def _context(self, text: str, tokens: Mapping[str, Array], present: Array) -> Array:
        """The connector's output. Without maps it is the same for every tile, and is kept."""
        key = text.encode() + present.tobytes()
        if key in self._shared_contexts:
            return self._shared_contexts[key]
        feeds = {"present": present, "temperature": self._temperature}
        feeds["text"] = self._embed(text) if present[0, 0] else self._zeros("text")
        for name, here in zip(MAPS, present[0, 1:], strict=True):
            feed = TOKEN_INPUTS[name]
            # The connector replaces the input of an absent modality by m∅ (Sec. 3.1).
            feeds[feed] = tokens[name] if here else self._zeros(feed)
        context = self.run("connector", **feeds)["context"]
        if not present[0, 1:].any():
            self._shared_contexts[key] = context
        return context

    def _zeros(self, feed: str) -> Array:
        return np.zeros(self.pipeline.input_shape("connector", feed), np.float32)

    def _embed(self, text: str) -> Array:
        """The text encoder's output for a prompt, [1, i, D], computed once per picture."""
        if text not in self._embeddings:
            ids = encode_prompt(text, self.pipeline.manifest.text)
            self._embeddings[text] = self.run("text_encoder", ids=ids)["text"]
        return self._embeddings[text]
