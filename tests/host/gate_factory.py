"""Parity gates of exports in tests: those of the package, but for `micro` without VNNI.

Without VNNI, two products of int8 weights and activations are summed in 16 bits, and large ones
overflow: often among `micro`'s random weights (28 dB), not among the weights that ship.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

WITHOUT_VNNI = 25.0
"""Least PSNR of `micro` at int8 and int4 on a processor without VNNI, in dB."""


def read_cpuinfo() -> str | None:
    """/proc/cpuinfo of this machine; None: the system has none."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else None


def gates_for(preset: str, cpuinfo: str | None) -> dict[str, float]:
    """Gates of the quantized precisions, in dB; int4 artifacts have int8 layers too.

    Args:
        preset: of the exported checkpoint.
        cpuinfo: text of /proc/cpuinfo, or None. Only a text without VNNI lowers the gates.
    """
    lowered = preset == "micro" and cpuinfo is not None and "vnni" not in cpuinfo
    return dict.fromkeys(("int8", "int4"), WITHOUT_VNNI if lowered else 35.0)


@cache
def shipped_gates() -> tuple[tuple[dict[str, float], dict[str, float]], ...]:
    """The package's tables of gates, each with a copy made before the first change."""
    from mmsr_edge.converters.parity import END_TO_END_GATES, GATES

    return tuple((gates, dict(gates)) for gates in (GATES, END_TO_END_GATES))


def gate_by_preset(patch: pytest.MonkeyPatch, cpuinfo: str | None) -> None:
    """Make every export use the gates of the checkpoint that it opens."""
    from mmsr_edge.converters import export_all

    shipped, original = shipped_gates(), export_all.open_checkpoint

    def open_checkpoint(folder: Any) -> Any:
        opened = original(folder)
        lowered = gates_for(opened.bundle.manifest.preset, cpuinfo)
        for gates, usual in shipped:
            for precision, gate in lowered.items():
                patch.setitem(gates, precision, min(gate, usual[precision]))
        return opened

    patch.setattr(export_all, "open_checkpoint", open_checkpoint)
