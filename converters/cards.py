"""Parity cards: an artifact measured on every reader of its format, gated, and the card on it."""

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
    """Measure an artifact that `source` wrote below `root`.

    Args:
        artifact: it.
        source: what it was made from.
        root: of the bundle.
        feeds: inputs that calibration has not seen.
        references: what the torch network makes of them.
        options: of the sessions.
        checkpoint: SHA-256 of the weights that it was made from.
        preset: of the model, for the torch reader.
        codes: see `parity.measure`.
        gated: whether it must pass its gate.
        opened: is shown every session, by reader.

    Returns:
        The artifact with its card, and its scores by reader.

    Raises:
        ParityError: it misses its gate.
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
