"""Table of an export, component × format × precision × backend: text, CSV, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmsr_edge.bundle import Artifact, Manifest
from mmsr_edge.converters.parity import GATES, Score, passes
from mmsr_edge.errors import OutputError
from mmsr_edge.files import replacing, write_csv, write_text

__all__ = [
    "Line",
    "Row",
    "artifact_lines",
    "draw_table",
    "pipeline_lines",
    "pipeline_table",
    "table",
    "write_report",
]


@dataclass(frozen=True)
class Row:
    """An exported artifact and its parity scores."""

    component: str
    """Name of the component."""
    artifact: Artifact
    """The artifact, with its parity card."""
    scores: dict[str, Score]
    """Scores by backend."""


@dataclass(frozen=True)
class Line:
    """One line of the report: an artifact on one backend, or the whole pipeline."""

    component: str
    """Name of the component, or "whole pipeline"."""
    format: str
    """Format of the artifact."""
    precision: str
    """Precision of the artifact."""
    backend: str
    """Backend that ran the artifact."""
    megabytes: float | None
    """Size of the files in 10⁶ bytes; None for the whole pipeline."""
    milliseconds: float | None
    """Median time of a call on the exporting machine; None for the whole pipeline."""
    decibels: float | None
    """PSNR in dB of the worst input against torch at float32; None: equal to the last bit."""
    agreement: float | None
    """Share of equal indices in [0, 1]; None without an index output."""
    gate: float | None
    """Least PSNR in dB; None: measured without a gate."""
    passed: bool
    """Whether the gate was met."""


def artifact_lines(component: str, artifact: Artifact, scores: dict[str, Score]) -> list[Line]:
    """Lines of one artifact, one per backend."""
    return [
        Line(
            component,
            artifact.format,
            artifact.precision,
            backend,
            sum(file.bytes for file in artifact.files) / 1e6,
            score.milliseconds,
            score.psnr,
            score.agreement,
            GATES[artifact.precision],
            passes(score, artifact.precision, GATES[artifact.precision]),
        )
        for backend, score in scores.items()
    ]


def pipeline_lines(unet: Sequence[Artifact]) -> list[Line]:
    """Lines of the whole pipeline, from the UNet's parity cards."""
    return [
        Line(
            "whole pipeline",
            artifact.format,
            artifact.precision,
            backend,
            None,
            None,
            card["psnr"],
            None,
            card["gate"],
            card["gate"] is None or card["psnr"] is None or card["psnr"] >= card["gate"],
        )
        for artifact in unet
        for backend, card in (artifact.parity or {}).get("end_to_end", {}).items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Text table of the rows: size, time, PSNR of the worst input, gate."""
    titles = (f"{'component':<16}{'artifact':<12}{'MB':>8}", f"{'backend':<12}{'ms':>9}")
    lines = [f"{'  '.join(titles)}{'dB':>8}{'gate':>6}"]
    for row in rows:
        artifact = row.artifact
        left = (
            f"{row.component:<16}{f'{artifact.format} {artifact.precision}':<12}"
            f"{sum(file.bytes for file in artifact.files) / 1e6:>8.2f}"
        )
        for backend, score in row.scores.items():
            decibels = "equal" if score.psnr is None else f"{score.psnr:.1f}"
            if score.psnr is None and score.agreement not in (None, 1):  # indices only
                decibels = ""
            agree = "" if score.agreement is None else f"  {score.agreement:.2%} of indices agree"
            lines.append(
                f"{left:<36}  {backend:<12}{score.milliseconds:>9.2f}{decibels:>8}"
                f"{GATES[artifact.precision]:>6.0f}{agree}"
            )
            left = ""
    return "\n".join(lines)


def pipeline_table(manifest: Manifest) -> str:
    """Text lines of the whole pipeline, from the UNet's parity cards."""
    lines = []
    for artifact in manifest.components["unet"].artifacts:
        for backend, card in (artifact.parity or {}).get("end_to_end", {}).items():
            decibels = "equal" if card["psnr"] is None else f"{card['psnr']:.1f} dB"
            gate = "none" if card["gate"] is None else f"{card['gate']:g} dB"
            line = (
                f"whole pipeline at {artifact.format} {artifact.precision} on {backend}, "
                f"{card['steps']} steps: {decibels}, gate {gate}"
            )
            if "lpips" in card:
                most = "none" if card["lpips_gate"] is None else f"{card['lpips_gate']:g}"
                line += f"; ΔLPIPS {card['lpips_change']:+.4f}, gate {most}"
            lines.append(line)
    return "\n".join(lines)


def write_report(lines: Sequence[Line], folder: Path) -> None:
    """Write `export.csv`, `export.json` and `export.png`.

    Raises:
        OutputError: the folder cannot be written.
    """
    rows = [asdict(line) for line in lines]
    titles = ("component", "format", "precision", "backend", "MB", "ms", "dB", "gate", "")
    cells = [_cells(line) for line in lines]
    bad = {i for i, line in enumerate(lines) if not line.passed}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write the report to {str(folder)!r}: {error}") from error
    write_csv(folder / "export.csv", rows)
    write_text(folder / "export.json", json.dumps(rows, indent=2) + "\n")
    with replacing(folder / "export.png") as file:
        draw_table(titles, cells, bad).save(file, "PNG")


def _cells(line: Line) -> tuple[str, ...]:
    decibels = "equal" if line.decibels is None else f"{line.decibels:.1f}"
    if line.decibels is None and line.agreement not in (None, 1):  # indices only
        decibels = f"{line.agreement:.2%} agree"
    return (
        line.component,
        line.format,
        line.precision,
        line.backend,
        "" if line.megabytes is None else f"{line.megabytes:.2f}",
        "" if line.milliseconds is None else f"{line.milliseconds:.1f}",
        decibels,
        "none" if line.gate is None else f"{line.gate:g}",
        "passed" if line.passed else "FAILED",
    )


def draw_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], bad: set[int], words: int = 4
) -> Image.Image:
    """Draw a table as a picture.

    Args:
        titles: titles of the columns.
        rows: cells as text.
        bad: indices of the rows to draw in red.
        words: number of leading columns aligned left; the others are aligned right.
    """
    font = ImageFont.load_default(16)
    gap, height = 24, 28
    widths = [max(font.getlength(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    size = (int(sum(widths)) + gap * (len(widths) + 1), height * (len(rows) + 1) + 16)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate([titles, *rows]):
        x, y = float(gap), 8 + number * height
        if number % 2:
            draw.rectangle((0, y, size[0], y + height - 1), fill=(240, 243, 248))
        colour = (190, 20, 20) if number - 1 in bad else (20, 20, 20)
        for column, cell in enumerate(row):
            shift = 0.0 if column < words else widths[column] - font.getlength(cell)
            draw.text((x + shift, y + 4), cell, font=font, fill=colour)
            x += widths[column] + gap
    return picture
