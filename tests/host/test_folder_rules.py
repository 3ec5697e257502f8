"""Rules of this folder: every test is marked `host`; `micro` alone may pass below 35 dB."""

from __future__ import annotations

from pathlib import Path

import pytest
from gate_factory import gate_by_preset, gates_for

pytest.importorskip("onnx")

from mmsr_edge.converters import export_all
from mmsr_edge.converters.parity import END_TO_END_GATES, GATES

NANO = Path(__file__).parents[2] / "weights" / "nano"
OLD = "flags : fpu sse4_2 avx avx2 fma"
NEW = "flags : fpu sse4_2 avx avx2 fma avx_vnni"


@pytest.mark.parametrize(
    ("preset", "cpuinfo", "least"),
    [
        ("micro", OLD, 25),
        ("micro", NEW, 35),
        ("micro", None, 35),
        ("nano", OLD, 35),
        ("nano", NEW, 35),
        ("sd2", OLD, 35),
    ],
)
def test_only_micro_without_vnni_has_a_lower_gate(
    preset: str, cpuinfo: str | None, least: float
) -> None:
    assert gates_for(preset, cpuinfo) == {"int8": least, "int4": least}


def test_tests_of_this_folder_are_marked(request: pytest.FixtureRequest) -> None:
    marked = {item.path.name for item in request.session.items if item.get_closest_marker("host")}
    assert Path(__file__).name in marked
    assert all((Path(__file__).parent / name).exists() for name in marked)


def test_an_export_is_gated_by_the_checkpoint_that_it_opens(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without VNNI, an export of nano's weights after one of `micro` keeps 35 dB."""
    gate_by_preset(monkeypatch, OLD)
    export_all.open_checkpoint(checkpoint)
    assert GATES == {"int8": 25, "int4": 25, "fp16": 40, "fp32": 60}
    assert END_TO_END_GATES == {"int8": 25, "int4": 25, "fp16": 40, "fp32": 40}
    export_all.open_checkpoint(NANO)
    assert GATES == {"int8": 35, "int4": 30, "fp16": 40, "fp32": 60}
    assert END_TO_END_GATES == {"int8": 35, "int4": 35, "fp16": 40, "fp32": 40}
