"""Bar chart of a benchmark: one bar per configuration, split by component, drawn with Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from mmsr_edge.files import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mmsr_edge.benchmark.measure import Measurement

__all__ = ["draw_chart", "write_chart"]

COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#ee8866",
    "#99ddff", "#44bb99",
)  # fmt: skip
"""Colours of the components, in order; distinct to colour-blind readers too (after Paul Tol)."""
WIDTH, LEFT, BAR, GAP, LEGEND = 1000, 230, 26, 16, 24


def draw_chart(measurements: Sequence[Measurement]) -> Image.Image:
    """Bars of p50 in ms, each split into its components. Time outside the components is white.

    Returns:
        RGB image, 1000 pixels wide.
    """
    names = list(dict.fromkeys(name for m in measurements for name in m.components))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    rows = -(-len(names) // 5)
    top = 50 + rows * LEGEND
    image = Image.new("RGB", (WIDTH, top + len(measurements) * (BAR + GAP) + GAP), "white")
    draw = ImageDraw.Draw(image)
    font, title = ImageFont.load_default(13), ImageFont.load_default(17)
    draw.text((16, 12), "Median time per picture, milliseconds", "black", title)
    for i, name in enumerate(names):
        left, above = 16 + i % 5 * 190, 44 + i // 5 * LEGEND
        draw.rectangle((left, above, left + 14, above + 14), colours[name])
        draw.text((left + 20, above), name, "black", font)
    scale = (WIDTH - LEFT - 90) / max((m.p50_ms for m in measurements), default=1.0)
    for row, m in enumerate(measurements):
        y = top + GAP + row * (BAR + GAP)
        label = f"{m.backend} {m.precision}, steps {m.steps}"
        draw.text((LEFT - 12, y + BAR / 2), label, "black", font, anchor="rm")
        x = float(LEFT)
        for name, (p50, _) in m.components.items():
            draw.rectangle((x, y, x + p50 * scale, y + BAR), colours[name])
            x += p50 * scale
        end = LEFT + m.p50_ms * scale
        draw.rectangle((LEFT, y, end, y + BAR), outline="black")
        draw.text((end + 8, y + BAR / 2), f"{m.p50_ms:.0f}", "black", font, anchor="lm")
    return image


def write_chart(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write the chart as PNG, atomically."""
    chart = draw_chart(measurements)
    with replacing(path) as file:
        chart.save(file, format="PNG")
