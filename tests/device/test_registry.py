"""The registry: the choice of a runtime, and the reasons against the others."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from toy_model import BY_NAME, ONNX_BACKENDS, SPEC, assert_right, make_feeds, save_model

from mmsr_edge.bundle import Bundle, describe_file
from mmsr_edge.errors import BackendError, BundleError, MissingExtraError, OptionError
from mmsr_edge.runtimes import registry
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import Backend, open_session, select_backend

if TYPE_CHECKING:
    from pathlib import Path

ABSENT = ModuleNotFoundError("No module named 'no_such_library.core'", name="no_such_library.core")
HALF_THERE = ModuleNotFoundError("No module named 'json.nowhere'", name="json.nowhere")


def install(monkeypatch: pytest.MonkeyPatch, **runtimes: Exception | None) -> dict[str, Backend]:
    """Replace the table with runtimes for ONNX, each with the error that its `load` raises."""
    backends = []
    for name, error in runtimes.items():

        def load(error: Exception | None = error) -> None:
            if error is not None:
                raise error

        module: Any = types.ModuleType(f"stand_in_{name}")
        module.load = load
        module.open_session = lambda *arguments: arguments
        monkeypatch.setitem(sys.modules, module.__name__, module)
        backends.append(Backend(name, f"{name}-extra", module.__name__, ("onnx",)))
    monkeypatch.setattr(registry, "BACKENDS", tuple(backends))
    return {backend.name: backend for backend in backends}


def test_auto_takes_the_first_that_works(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    backends = install(
        monkeypatch,
        absent=ABSENT,
        broken=OSError("libfast.so: cannot open shared object file"),
        partial=HALF_THERE,
        foreign=BackendError("this runs on the moon only"),
        good=None,
        slow=None,
    )
    selection = select_backend("auto", bundle)
    assert selection.backend is backends["good"]
    reasons = selection.passed_over
    assert list(reasons) == ["absent", "broken", "partial", "foreign", "slow"]
    assert 'pip install "mmsr-edge[absent-extra]"' in reasons["absent"]
    assert "OSError: libfast.so" in reasons["broken"]
    assert "cannot be imported" in reasons["partial"]
    assert "json.nowhere" in reasons["partial"]
    assert reasons["foreign"] == "this runs on the moon only"
    assert reasons["slow"] == "comes after 'good' in order of speed"


def test_a_named_backend_or_its_reason(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    backends = install(
        monkeypatch, good=None, absent=ABSENT, broken=OSError("no library"), slow=None
    )
    selection = select_backend("slow", bundle)
    assert selection.backend is backends["slow"]
    assert selection.passed_over == dict.fromkeys(
        ("good", "absent", "broken"), "'slow' was requested"
    )
    with pytest.raises(MissingExtraError, match=r"mmsr-edge\[absent-extra\]") as caught:
        select_backend("absent")
    assert isinstance(caught.value, ImportError)
    assert caught.value.name == "no_such_library"
    with pytest.raises(BackendError, match="no library"):
        select_backend("broken")
    with pytest.raises(OptionError, match="'fast' is unknown; choose auto, good, absent"):
        select_backend("fast")


def test_none_works(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, absent=ABSENT, broken=OSError("no library"))
    with pytest.raises(
        BackendError, match=r"(?s)no backend.*absent: .*pip install.*broken: .*no lib"
    ):
        select_backend()


def test_a_backend_that_lacks_a_format_is_not_even_imported(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    def never() -> None:
        pytest.fail("imported without need")

    backends = install(monkeypatch, picky=None, good=None)
    monkeypatch.setattr(sys.modules["stand_in_picky"], "load", never)
    picky = replace(backends["picky"], formats=("coreml",))
    monkeypatch.setattr(registry, "BACKENDS", (picky, backends["good"]))
    selection = select_backend("auto", bundle)
    assert selection.backend.name == "good"
    assert "needed: coreml" in selection.passed_over["picky"]
    monkeypatch.undo()
    unet = replace(bundle.component("unet"), artifacts=bundle.component("unet").artifacts[:1])
    components = {**bundle.manifest.components, "unet": unet}
    int8_only = replace(bundle, manifest=replace(bundle.manifest, components=components))
    with pytest.raises(BundleError, match=r"'onnxruntime' cannot open .*at fp16 or better"):
        select_backend("onnxruntime", int8_only, "fp16")


def test_each_runtime_takes_its_fastest_precision(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    install(monkeypatch, good=None)
    stand_in = replace(BY_NAME["openvino"], module="stand_in_good")
    slow_at_int8 = replace(BY_NAME["onnxruntime"], module="stand_in_good")
    options = SessionOptions()
    for backend, precision, expected in (
        (stand_in, "auto", "int8"),
        (stand_in, "fp16", "fp32"),
        (slow_at_int8, "auto", "fp32"),
        (slow_at_int8, "int8", "int8"),
    ):
        arguments: Any = open_session(bundle, "unet", backend, options, precision)
        path, spec, artifact, given, preset = arguments
        assert path == bundle.root / f"unet.{expected}.onnx"
        assert (spec, given, preset) == (bundle.component("unet"), options, "micro")
        assert artifact.precision == expected


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_a_component_opens_from_its_bundle(name: str, bundle: Bundle, tmp_path: Path) -> None:
    options = SessionOptions(threads=1, cache_dir=tmp_path / "cache")
    save_model(bundle.root / "toy.onnx")
    artifact = replace(SPEC.artifacts[0], files=(describe_file(bundle.root, "toy.onnx"),))
    # The role is the tokenizer's, the tensors are not: runtimes do not depend on roles.
    components = {"tokenizer": replace(SPEC, artifacts=(artifact,))}
    manifest = types.SimpleNamespace(components=components, preset="micro", name="toy")
    toy = replace(bundle, manifest=manifest)  # type: ignore[arg-type]
    selection = select_backend(name, toy)
    feeds = make_feeds()
    assert_right(open_session(toy, "tokenizer", selection.backend, options).run(feeds), feeds)


def test_the_shipped_table() -> None:
    assert list(BY_NAME) == ["openvino", "onnxruntime", "coreml", "torch"]
    for name in ONNX_BACKENDS:
        assert BY_NAME[name].available() is None
    if sys.platform != "darwin":
        assert "macOS only" in (BY_NAME["coreml"].available() or "")
