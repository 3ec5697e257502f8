"""Put a published depth, segmentation or caption network into a bundle.

    python converters/export_modality.py --task depth --source Depth-Anything-V2-Small-hf \\
        --out dist/nano-depth

`--source` is a local folder in the format of Hugging Face's libraries. The bundle at `--out` is
`--bundle` with the network added or replaced. The parity of every artifact with torch is measured
on every backend that reads it. Captions must also equal those of `transformers`. The bundle is
written atomically.

Networks are exported through `torch.onnx`, as everywhere in this package, and not by `optimum`: its
ONNX exporter, optimum-onnx 0.1, needs transformers < 4.58; its graphs lack the contract's names and
ranges and the pre- and postprocessing; and the caches of its decoders grow, whereas NPUs need
static shapes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from mmsr_edge.bundle import (
    Artifact,
    Bundle,
    ComponentSpec,
    Format,
    Manifest,
    Precision,
    copy_files,
    describe_file,
    open_bundle,
    write_manifest,
)
from mmsr_edge.bundle.staging import check_replaceable, staged_bundle
from mmsr_edge.calib.reader import HELD_OUT, CalibrationSet
from mmsr_edge.converters.artifacts import (
    CHECKERS,
    READERS,
    CoreMLWeights,
    Source,
)
from mmsr_edge.converters.caption_networks import (
    CaptionDecoder,
    CaptionEncoder,
    check_captioner,
    vocabulary,
    written,
)
from mmsr_edge.converters.cards import add_card
from mmsr_edge.converters.export_all import DRAWN_INPUTS
from mmsr_edge.converters.map_networks import DepthIs, depth_network, segmentation_network
from mmsr_edge.converters.options import check_names, read_settings, words
from mmsr_edge.converters.published import Published, Task, open_published
from mmsr_edge.converters.quantize import QuantConfig
from mmsr_edge.converters.report import Row, table
from mmsr_edge.errors import BundleError, MMSRError, OptionError, ParityError
from mmsr_edge.image import load_image
from mmsr_edge.modalities.base import squeeze_picture
from mmsr_edge.modalities.caption import GreedyCaptioner
from mmsr_edge.modalities.vocabulary import VOCABULARY_NAME, Vocabulary
from mmsr_edge.models import preset
from mmsr_edge.models.checkpoint import array_specs, run_torch
from mmsr_edge.models.signatures import draw_inputs
from mmsr_edge.runtimes.base import Session, SessionOptions
from mmsr_edge.runtimes.registry import BACKENDS
from mmsr_edge.training.data.photos import find_photos

MOST_PICTURES = 64
"""Photographs to record inputs on, at most."""
ROLES: dict[Task, tuple[str, ...]] = {
    "depth": ("depth",),
    "segmentation": ("segmentation",),
    "caption": ("captioner", "caption_decoder"),
}
"""Components of each task."""
_FORMATS: tuple[Format, ...] = ("onnx", "coreml")
"""Supported formats; "torch" needs a preset, which published weights do not have."""


@dataclass(frozen=True)
class ModalityConfig:
    """Settings of a conversion.

    Raises:
        OptionError: an unknown name, settings that do not fit the task, or no format or precision.
    """

    task: Task
    """Task of the network."""
    source: Path
    """Folder of the published checkpoint."""
    out: Path
    """Folder of the new bundle; an existing bundle is replaced."""
    bundle: str | Path = "nano"
    """The bundle to start from: a shipped name or a folder."""
    formats: tuple[Format, ...] = ("onnx",)
    """Formats to write."""
    precisions: tuple[Precision, ...] = ("fp16",)
    """Precisions to write."""
    side: int | None = None
    """Side of the network's input in pixels; None: as in its training. Smaller is faster."""
    depth_is: DepthIs | None = None
    """Quantity that a depth network predicts; needed where its config does not state it."""
    length: int | None = None
    """Maximum number of ids in a caption; None: the checkpoint's own."""
    calibration: Path | None = None
    """Folder of photographs to measure on and to calibrate int8 on."""
    quantization: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Changes to `QuantConfig`, by component."""
    coreml_weights: CoreMLWeights = "linear"
    """Core ML's int8, as for `export_all`."""
    licence: str | None = None
    """Licence of the weights; None: the one that the folder's README.md declares."""
    allow_failing: bool = False
    """Whether the network may miss its gates."""

    def __post_init__(self) -> None:
        choices: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
            ("task", (self.task,), get_args(Task)),
            ("format", self.formats, _FORMATS),
            ("precision", self.precisions, get_args(Precision)),
            ("Core ML weights", (self.coreml_weights,), get_args(CoreMLWeights)),
        )
        for kind, names, known in choices:
            check_names(kind, names, known)
        for name in self.quantization:
            if name not in ROLES[self.task]:
                raise OptionError(
                    f"component {name!r} is not part of --task {self.task}, so it has no settings"
                )
        if not self.formats or not self.precisions:
            raise OptionError("give at least one format and one precision")
        if "int8" in self.precisions and self.calibration is None:
            raise OptionError("int8 needs photographs to calibrate on; give --calibration")
        for option, wanted, task in (
            ("depth-is", self.depth_is, "depth"),
            ("length", self.length, "caption"),
        ):
            if wanted is not None and self.task != task:
                raise OptionError(f"--{option} is for --task {task}")
        if self.length is not None and self.length < 2:
            raise OptionError(f"length {self.length} must be >= 2")


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion."""

    rows: list[Row]
    """One row per artifact."""
    captions: dict[str, float]
    """Share of captions in [0, 1] that equal those of `transformers`, by precision and backend."""
    notes: list[str]
    """Notes for the user, one sentence each."""


def export_modality(config: ModalityConfig) -> Conversion:
    """Convert a published checkpoint into a component of a bundle.

    Raises:
        ParityError: an artifact misses its gate, or captions at fp32 differ.
        BundleError: the bundle or the checkpoint is not usable.
        OptionError: a setting does not fit the checkpoint.
        OutputError: `config.out` cannot be written.
        MissingExtraError: a tool or a runtime is not installed.
    """
    check_replaceable(config.out)
    for reader in {name for form in config.formats for name in READERS[form]}:
        CHECKERS[reader].check()
    base = open_bundle(config.bundle)
    checkpoint = open_published(config.source, config.task)
    if "coreml" in config.formats and not checkpoint.family.coreml:
        raise OptionError(f"{checkpoint.kind} does not convert to Core ML; give --formats onnx")
    licence = config.licence or checkpoint.licence
    if licence is None:
        raise OptionError(
            f"{str(config.source)!r} declares no licence in a README.md; look up the licence of "
            "the published weights and give --licence"
        )
    images = _images(config, base)
    with staged_bundle(config.out) as root, tempfile.TemporaryDirectory() as cache:
        export = _Export(config, checkpoint, root, SessionOptions(cache_dir=Path(cache)))
        export.make(images, base.manifest.components["tokenizer"].inputs[0].shape[-1])
        copy_files(base, root, without=ROLES[config.task])
        manifest = _merged(base.manifest, export, licence)
        write_manifest(root, manifest)
        opened = open_bundle(root)
        notes = [
            f"backend {backend.name!r} opened the old bundle but cannot open this one: {reason}"
            for backend in BACKENDS
            if backend.serves(base) is None and (reason := backend.serves(opened))
        ]
    return Conversion(export.rows, export.captions, notes)


class _Export:
    """State shared by the steps of one conversion."""

    def __init__(
        self, config: ModalityConfig, checkpoint: Published, root: Path, options: SessionOptions
    ) -> None:
        self.config, self.checkpoint, self.root, self.options = config, checkpoint, root, options
        self.rows: list[Row] = []
        self.specs: dict[str, ComponentSpec] = {}
        self.captions: dict[str, float] = {}

    def make(self, images: list[Any], side: int) -> None:
        """Write and measure all artifacts, from networks for pictures of `side` pixels."""
        config, checkpoint = self.config, self.checkpoint
        inner = checkpoint.side(config.side)
        if config.task == "caption":
            self._captioner(images, side, inner)
            return
        feeds = [{"image": image} for image in images]
        if config.task == "depth":
            network: Any = depth_network(checkpoint, side, inner, config.depth_is)
        else:
            network = segmentation_network(checkpoint, side, inner)
        output = "depth" if config.task == "depth" else "classes"
        self._component(config.task, network, feeds, (output,))

    def _captioner(self, images: list[Any], side: int, inner: int) -> None:
        """Write both caption networks and compare captions on every backend with `transformers`."""
        check_captioner(self.checkpoint)
        words = vocabulary(self.checkpoint, self.config.length)
        encoder = CaptionEncoder(self.checkpoint, side, inner).eval()
        decoder = CaptionDecoder(self.checkpoint, words.length).eval()
        feeds = [{"image": image} for image in images]
        steps = self._steps(encoder, decoder, feeds, words)
        path = self.root / "caption_decoder" / VOCABULARY_NAME
        path.parent.mkdir()
        words.save(path)
        beside = (path,)
        opened: dict[str, dict[str, Session]] = {}
        self._component("captioner", encoder, feeds, ("states",), opened=opened)
        self._component(
            "caption_decoder", decoder, steps, ("logits", "column"), beside=beside, opened=opened
        )
        feeds = feeds[-HELD_OUT:]
        references = [written(encoder, feed["image"], words.length) for feed in feeds]
        for where, sessions in opened.items():
            run = partial(_run, sessions)
            captioner = GreedyCaptioner(run, self.specs["caption_decoder"], words)
            pairs = zip(feeds, references, strict=True)
            equal = [captioner.ids(feed["image"]) == wanted for feed, wanted in pairs]
            self.captions[where] = float(np.mean(equal))
            if "fp32" in where and not all(equal) and not self.config.allow_failing:
                raise ParityError(
                    f"captions at {where}: {sum(equal)} of {len(equal)} equal those of transformers"
                )

    def _steps(
        self,
        encoder: CaptionEncoder,
        decoder: CaptionDecoder,
        pictures: Sequence[dict[str, Any]],
        words: Vocabulary,
    ) -> list[dict[str, Any]]:
        """Decoder inputs: one step of each picture's caption, drawn at random."""
        states = run_torch(encoder, pictures[0], ("states",))["states"]
        _, layers, heads, _, width = states.shape
        first = {
            "ids": np.zeros((1, 1), np.int64),
            "position": np.zeros(1, np.int64),
            "states": states,
            "past": np.zeros((1, layers, heads, decoder.past, width), np.float32),
        }
        feeds: list[dict[str, Any]] = []

        def run(name: str, given: dict[str, Any]) -> dict[str, Any]:
            if name == "captioner":
                return run_torch(encoder, given, ("states",))
            feeds.append({**given, "past": given["past"].copy()})
            return run_torch(decoder, given, ("logits", "column"))

        results = run("caption_decoder", first)
        spec = self._spec("caption_decoder", first, results)
        captioner, rng = GreedyCaptioner(run, spec, words), np.random.default_rng(0)
        chosen = []
        for picture in pictures:
            feeds.clear()
            captioner.ids(picture["image"])
            chosen.append(feeds[rng.integers(len(feeds))])
        return chosen

    def _spec(
        self, role: str, feeds: Mapping[str, Any], results: Mapping[str, Any]
    ) -> ComponentSpec:
        """Specification of a component, with the checkpoint as its only artifact."""
        return ComponentSpec(
            role,
            array_specs(feeds),
            array_specs(results),
            (Artifact("torch", "fp32", self.checkpoint.weights),),
        )

    def _component(
        self,
        role: str,
        network: Any,
        feeds: list[dict[str, Any]],
        outputs: tuple[str, ...],
        beside: Sequence[Path] = (),
        opened: dict[str, dict[str, Session]] | None = None,
    ) -> None:
        """Write, measure and gate a component's artifacts."""
        config = self.config
        recorded = CalibrationSet.stack({role: feeds}, {})
        calibration: list[dict[str, Any]] = []
        if config.calibration is not None:
            calibration, feeds = recorded.calibration(role), recorded.held_out(role)
        references = [run_torch(network, feed, outputs) for feed in feeds]
        source = Source(
            network,
            self._spec(role, feeds[0], references[0]),
            feeds[0],
            calibration,
            QuantConfig.from_dict(config.quantization.get(role, {})),
            config.coreml_weights,
        )
        made: list[Artifact] = []
        forms = source.forms(config.formats, config.precisions)
        for form, precision in tqdm(forms, role, unit="artifact"):
            artifact = source.write(self.root, form, precision)
            extra = tuple(describe_file(self.root, path.relative_to(self.root)) for path in beside)
            artifact = replace(artifact, files=artifact.files + extra)

            def keep(reader: str, session: Session, form: str = f"{form} {precision}") -> None:
                if opened is not None:
                    opened.setdefault(f"{form} on {reader}", {})[role] = session

            artifact, scores = add_card(
                artifact,
                source,
                self.root,
                feeds,
                references,
                self.options,
                checkpoint=self.checkpoint.weights[0].sha256,
                gated=not config.allow_failing,
                opened=keep,
            )
            made.append(artifact)
            self.rows.append(Row(role, artifact, scores))
        self.specs[role] = replace(source.spec, artifacts=tuple(made))


def _run(sessions: Mapping[str, Session], name: str, feeds: dict[str, Any]) -> dict[str, Any]:
    return sessions[name].run(feeds)


def _images(config: ModalityConfig, base: Bundle) -> list[Any]:
    """Whole pictures [1, 3, s, s] in [-1, 1], as the pipeline feeds them to modality networks."""
    side = base.manifest.components["tokenizer"].inputs[0].shape[-1]
    if config.calibration is not None:
        rgbs = [load_image(path).rgb for path in find_photos(config.calibration)[:MOST_PICTURES]]
        return [squeeze_picture(rgb, side) for rgb in rgbs]
    rng, built = np.random.default_rng(1), preset(base.manifest.preset)
    images = [draw_inputs("tokenizer", built, rng)["map"] for _ in range(DRAWN_INPUTS)]
    if images[0].shape[-1] != side:
        raise BundleError(f"maps of {side} pixels cannot be drawn at random; give --calibration")
    return images


def _merged(manifest: Manifest, export: _Export, licence: str) -> Manifest:
    """Manifest with the new components and their provenance."""
    task, checkpoint, roles = export.config.task, export.checkpoint, ROLES[export.config.task]
    kept = {name: spec for name, spec in manifest.components.items() if name not in roles}
    old = manifest.provenance
    source = {
        "name": checkpoint.folder.resolve().name,
        "licence": licence,
        "architecture": checkpoint.kind,
        "sha256": {file.path: file.sha256 for file in checkpoint.weights},
        "used_for": task,
    }
    others = (s for s in old.sources if "architecture" not in s or s.get("used_for") != task)
    licences = old.licence.split(" AND ")
    failing = [name for name in manifest.allow_failing if name in kept]
    return replace(
        manifest,
        components=kept | export.specs,
        provenance=replace(
            old,
            licence=" AND ".join(licences + [licence] * (licence not in licences)),
            sources=(*others, source),
        ),
        allow_failing=(*failing, *(roles if export.config.allow_failing else ())),
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    add = parser.add_argument
    add("--task", required=True, choices=get_args(Task), help="task of the network")
    add("--source", type=Path, required=True, help="folder of the published checkpoint")
    add("--out", type=Path, required=True, help="folder of the new bundle")
    add("--bundle", default=ModalityConfig.bundle, help="bundle to start from (%(default)s)")
    add("--formats", type=words, default=ModalityConfig.formats, help=", ".join(_FORMATS))
    precisions = ", ".join(get_args(Precision))
    add("--precisions", type=words, default=ModalityConfig.precisions, help=precisions)
    add("--side", type=int, help="side of the network's input (default: as in training)")
    add("--depth-is", choices=get_args(DepthIs), help="predicted quantity, if not in the config")
    add("--length", type=int, help="most ids in a caption (default: the checkpoint's own)")
    add("--calibration", type=Path, help="folder of photographs to measure and calibrate on")
    add("--quantization", type=Path, help='JSON file, such as {"depth": {"samples": 64}}')
    weights = ", ".join(get_args(CoreMLWeights))
    add("--coreml-weights", default=ModalityConfig.coreml_weights, help=f"at int8: {weights}")
    add("--licence", help="licence of the weights (default: the one in the folder's README.md)")
    add("--allow-failing", action="store_true", help="ship the network even if it misses a gate")
    options = vars(parser.parse_args(arguments))
    try:
        options["quantization"] = read_settings(options["quantization"])
        made = export_modality(ModalityConfig(**options))
    except MMSRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(made.rows))
    for where, share in made.captions.items():
        print(f"captions at {where}: {share:.0%} equal those of transformers")
    for note in made.notes:
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
