"""Parity cards: measure an artifact on every reader of its format, gate it and attach the card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsr_edge.bundle import Artifact
from mmsr_edge.converters.artifacts import CHECKERS, READERS, Source
from mmsr_edge.converters.parity import GATES, Score, check, measure

if TYPE_CHECKING:
    from mmsr_edge.runtimes.base import Session, SessionOptions

__all__ = ["add_card"]

Tensors = Mapping[str, Any]


def add_card(
    artifact: Artifact,
    source: Source,
    root: Path,
    feeds: Sequence[Tensors],
    references: Sequence[Tensors],
    options: SessionOptions,
    *,
    checkpoint: str,
    preset: str = "",
    codes: str | None = None,
    gated: bool = True,
    opened: Callable[[str, Session], object] = lambda reader, session: None,
) -> tuple[Artifact, dict[str, Score]]:
    """Measure an artifact that `source` wrote below `root`, and attach its parity card.

    Args:
        artifact: the artifact to measure.
        source: network and specification of its component.
        root: folder of the bundle.
        feeds: inputs held out of calibration.
        references: outputs of the torch network for `feeds`.
        options: options of the sessions.
        checkpoint: SHA-256 of the weights that the artifact was made from.
        preset: name of the model's preset, for the torch reader.
        codes: name of the index output; see `parity.measure`.
        gated: whether the artifact must pass its gate.
        opened: callback that receives each reader's name and session.

    Returns:
        The artifact with its card, and its scores by reader.

    Raises:
        ParityError: the artifact misses its gate.
    """
    scores: dict[str, Score] = {}
    name, precision = source.spec.name, artifact.precision
    for reader in READERS[artifact.format]:
        path = root / artifact.files[0].path
        session = CHECKERS[reader].open(path, source.spec, artifact, options, preset)
        scores[reader] = measure(session, feeds, references, codes)
        if gated:
            check(scores[reader], name, precision, reader, GATES[precision])
        opened(reader, session)
    card = {
        "reference": "torch fp32",
        "checkpoint": checkpoint,
        "inputs": "recorded" if source.calibration else "drawn",
        "gate": GATES[precision],
        "backends": {reader: score.to_dict() for reader, score in scores.items()},
    }
    return replace(artifact, parity=card), scores
