"""The Core ML runtime, with a stand-in for the library: the real one runs on macOS only."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from toy_model import BY_NAME, SPEC, assert_right, make_feeds, open_model, reference

from mmsr_edge.errors import BackendError, BundleError, OptionError
from mmsr_edge.runtimes.base import SessionOptions

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]


class FakeMLModel:
    """The reference with Core ML's types: no int64 inputs, float32 and int32 results."""

    opened: tuple[str, str] = ("", "")

    def __init__(self, path: str, compute_units: str) -> None:
        type(self).opened = (path, compute_units)

    def get_spec(self) -> Any:
        def ports(*names: str) -> list[Any]:
            return [types.SimpleNamespace(name=name) for name in names]

        description = types.SimpleNamespace(
            input=ports("image", "ids"), output=ports("features", "best")
        )
        return types.SimpleNamespace(description=description)

    def predict(self, feeds: dict[str, Array]) -> dict[str, Array]:
        assert {k: v.dtype.name for k, v in feeds.items()} == {"image": "float32", "ids": "int32"}
        expected = reference(feeds)
        return {
            "features": expected["features"].astype(np.float32),
            "best": expected["best"].astype(np.int32),
        }


@pytest.fixture
def core_ml(monkeypatch: pytest.MonkeyPatch) -> None:
    units = {name: name for name in ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")}
    models = types.SimpleNamespace(MLModel=FakeMLModel)
    fake: Any = types.ModuleType("coremltools")
    fake.models, fake.ComputeUnit = models, units
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    monkeypatch.setattr("platform.system", lambda: "Darwin")


@pytest.mark.usefixtures("core_ml")
def test_core_ml_types_and_package() -> None:
    assert BY_NAME["coreml"].available() is None
    inner = Path("bundle", "toy.mlpackage", "Data", "com.apple.CoreML", "model.mlmodel")
    session = open_model("coreml", inner, SessionOptions(device="ane"))
    assert FakeMLModel.opened == (str(Path("bundle", "toy.mlpackage")), "CPU_AND_NE")
    feeds = make_feeds()
    assert_right(session.run(feeds), feeds)


@pytest.mark.usefixtures("core_ml")
def test_core_ml_refusals() -> None:
    with pytest.raises(BundleError, match=r"not in an \.mlpackage"):
        open_model("coreml", Path("toy.mlmodel"), SessionOptions())
    with pytest.raises(OptionError, match="'npu': Core ML has auto, all, cpu, gpu, ane"):
        open_model("coreml", Path("toy.mlpackage"), SessionOptions(device="npu"))
    spec = replace(SPEC, outputs=SPEC.outputs[:1])
    with pytest.raises(BundleError, match=r"outputs \['best', 'features'\]"):
        open_model("coreml", Path("toy.mlpackage"), SessionOptions(), spec)


@pytest.mark.usefixtures("core_ml")
def test_a_failing_run_is_a_backend_error(monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_model("coreml", Path("toy.mlpackage"), SessionOptions())

    def fail(self: FakeMLModel, feeds: object) -> None:
        raise RuntimeError("the Neural Engine is on strike")

    monkeypatch.setattr(FakeMLModel, "predict", fail)
    with pytest.raises(BackendError, match="'tokenizer' failed to run: the Neural Engine"):
        session.run(make_feeds())
    monkeypatch.setattr(
        FakeMLModel, "predict", lambda self, feeds: {"features": np.ones(2), "best": np.ones(1)}
    )
    with pytest.raises(BackendError, match=r"output 'best' came as int64 \[1\]"):
        session.run(make_feeds())
