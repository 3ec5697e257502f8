"""Runtimes: every backend computes what numpy computes, and says clearly what it cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmsr_edge.bundle import Artifact, Bundle, ComponentSpec, FileSpec, TensorSpec, describe_file
from mmsr_edge.errors import BackendError, BundleError, MissingExtraError, OptionError
from mmsr_edge.runtimes import cache, registry
from mmsr_edge.runtimes import ov as ov_runtime
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import BACKENDS, Backend, open_session, select_backend

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from mmsr_edge.runtimes.base import Session

    Array = npt.NDArray[Any]

BY_NAME = {backend.name: backend for backend in BACKENDS}
ONNX_BACKENDS = ("onnxruntime", "openvino")

rng = np.random.default_rng(3)
KERNEL = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
TABLE = rng.standard_normal((10, 4)).astype(np.float32)

# Two inputs of two dtypes and two outputs of two dtypes, listed in another order than the graph's.
SPEC = ComponentSpec(
    name="tokenizer",
    inputs=(TensorSpec("ids", (1, 5), "int64"), TensorSpec("image", (1, 3, 8, 8), "float32")),
    outputs=(
        TensorSpec("best", (1, 4), "int64"),
        TensorSpec("features", (1, 4, 8, 8), "float32"),
    ),
    artifacts=(Artifact("onnx", "fp32", (FileSpec("m.onnx", "0" * 64, 0),)),),
)


def reference(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The graph in numpy, float64 inside: a 3x3 convolution plus the mean of looked-up rows."""
    padded = np.pad(feeds["image"].astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    bias = TABLE[feeds["ids"]].mean(axis=1)
    features = np.einsum("bihwyx,oiyx->bohw", windows, KERNEL) + bias[..., None, None]
    return {"features": features, "best": features.reshape(1, 4, 64).argmax(axis=2)}


def make_feeds(seed: int = 0) -> dict[str, Array]:
    values = np.random.default_rng(seed)
    return {
        "image": values.uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32),
        "ids": values.integers(0, 10, (1, 5)),
    }


def save_model(path: Path, batch: int | str = 1) -> Path:
    """Write the graph as ONNX; a string as `batch` leaves that dimension free."""

    def info(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [batch, *shape])

    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "one"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axes"], ["bias"]),
        helper.make_node("Add", ["conv", "bias"], ["features"]),
        helper.make_node("Flatten", ["features"], ["flat"], axis=2),
        helper.make_node("Reshape", ["flat", "rows4"], ["flat4"]),
        helper.make_node("ArgMax", ["flat4"], ["best"], axis=2, keepdims=0),
    ]
    constants = {
        "kernel": KERNEL,
        "table": TABLE,
        "one": np.array([1]),
        "axes": np.array([2, 3]),
        "rows4": np.array([-1, 4, 64]),
    }
    graph = helper.make_graph(
        nodes,
        "toy",
        [info("image", TensorProto.FLOAT, 3, 8, 8), info("ids", TensorProto.INT64, 5)],
        [info("features", TensorProto.FLOAT, 4, 8, 8), info("best", TensorProto.INT64, 4)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    # An old IR version and opset, for the oldest runtime that the extras allow.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "toy.onnx")


@pytest.fixture
def options(tmp_path: Path) -> SessionOptions:
    return SessionOptions(threads=1, cache_dir=tmp_path / "cache")


def open_model(
    name: str, path: Path, options: SessionOptions, spec: ComponentSpec = SPEC
) -> Session:
    return BY_NAME[name].open(path, spec, spec.artifacts[0], options, "micro")


def assert_right(results: Mapping[str, Array], feeds: Mapping[str, Array]) -> None:
    expected = reference(feeds)
    assert list(results) == ["best", "features"]
    # bfloat16 inside, which OpenVINO takes by itself where the CPU has it, misses by 1e-2.
    np.testing.assert_allclose(results["features"], expected["features"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(results["best"], expected["best"])
    assert results["features"].dtype == np.float32
    assert results["best"].dtype == np.int64


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_results_are_numpys(name: str, model: Path, options: SessionOptions) -> None:
    session = open_model(name, model, options)
    assert session.inputs == SPEC.inputs
    assert session.outputs == SPEC.outputs
    first_feeds, second_feeds = make_feeds(1), make_feeds(2)
    first = session.run(first_feeds)
    second = session.run(second_feeds)
    assert_right(second, second_feeds)
    assert_right(first, first_feeds)  # the second call has not written over the first's results
    second["features"][:] = 0  # and they are the caller's to change
    assert_right(session.run(second_feeds), second_feeds)


def test_openvino_reads_its_own_format(
    model: Path, tmp_path: Path, options: SessionOptions
) -> None:
    import openvino as ov

    ov.save_model(ov.Core().read_model(str(model)), tmp_path / "toy.xml", compress_to_fp16=False)
    feeds = make_feeds()
    assert_right(open_model("openvino", tmp_path / "toy.xml", options).run(feeds), feeds)


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_free_dimensions_are_fixed(name: str, tmp_path: Path, options: SessionOptions) -> None:
    path, feeds = save_model(tmp_path / "free.onnx", batch="N"), make_feeds()
    assert_right(open_model(name, path, options).run(feeds), feeds)


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_strided_feeds_are_welcome(name: str, model: Path, options: SessionOptions) -> None:
    feeds = make_feeds()
    pixels = np.ascontiguousarray(feeds["image"].transpose(0, 2, 3, 1))
    strided = {**feeds, "image": pixels.transpose(0, 3, 1, 2)}
    assert not strided["image"].flags["C_CONTIGUOUS"]
    assert_right(open_model(name, model, options).run(strided), feeds)


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_threads_may_share_a_session(name: str, model: Path, options: SessionOptions) -> None:
    session = open_model(name, model, options)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(20):
                feeds = make_feeds(100 * seed + i)
                assert_right(session.run(feeds), feeds)
        except BaseException as error:  # an assertion must reach the main thread
            failures.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image": None}, r"takes \['ids', 'image'\], but was fed \['ids'\]"),
        ({"mask": np.zeros(1)}, r"but was fed \['ids', 'image', 'mask'\]"),
        ({"image": np.zeros((1, 3, 8, 8))}, r"'image' is float64 .*must be float32 \[1, 3, 8, 8\]"),
        ({"image": np.zeros((3, 8, 8), np.float32)}, r"float32 \[3, 8, 8\]"),
        ({"ids": np.zeros((1, 5), np.int32)}, r"'ids' is int32 \[1, 5\].*int64"),
        ({"ids": [[0] * 5]}, "'ids' is a list, not a numpy array"),
    ],
)
def test_wrong_feeds_are_named(
    change: dict[str, Any], expected: str, model: Path, options: SessionOptions
) -> None:
    feeds = {k: v for k, v in {**make_feeds(), **change}.items() if v is not None}
    with pytest.raises(OptionError, match=expected):
        open_model("onnxruntime", model, options).run(feeds)


@pytest.mark.parametrize("name", ONNX_BACKENDS)
@pytest.mark.parametrize(
    ("side", "index", "change", "expected"),
    [
        ("inputs", 1, {"name": "picture"}, r"file has inputs \['ids', 'image'\], the manifest"),
        ("inputs", 1, {"shape": (1, 3, 8, 9)}, r"\[1, 3, 8, 8\] in the file.*\[1, 3, 8, 9\]"),
        ("inputs", 1, {"dtype": "int64"}, "'image' is float32 .* in the file, int64"),
        ("outputs", 0, {"name": "worst"}, r"file has outputs \['best', 'features'\]"),
        ("outputs", 1, {"shape": (1, 4, 64)}, r"\[1, 4, 8, 8\] in the file"),
    ],
)
def test_a_file_that_is_not_as_described(
    name: str,
    side: str,
    index: int,
    change: dict[str, Any],
    expected: str,
    model: Path,
    options: SessionOptions,
) -> None:
    tensors: Any = list(getattr(SPEC, side))
    tensors[index] = replace(tensors[index], **change)
    sides: Any = {side: tuple(tensors)}
    spec = replace(SPEC, **sides)
    with pytest.raises(BundleError, match=expected):
        open_model(name, model, options, spec)


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_a_file_that_is_no_model(name: str, tmp_path: Path, options: SessionOptions) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"no model" * 100)
    with pytest.raises(BackendError, match=f"'{name}' cannot open component 'tokenizer'"):
        open_model(name, tmp_path / "noise.onnx", options)


def test_options_are_checked(model: Path, options: SessionOptions) -> None:
    with pytest.raises(OptionError, match="threads 0"):
        SessionOptions(threads=0)
    with pytest.raises(OptionError, match="device ''"):
        SessionOptions(device="")
    for name in ONNX_BACKENDS:
        with pytest.raises(OptionError, match="device 'abacus'"):
            open_model(name, model, replace(options, device="abacus"))
        open_model(name, model, replace(options, device="CPU"))


def test_openvino_compiles_once(model: Path, options: SessionOptions) -> None:
    assert options.cache_dir is not None
    feeds = make_feeds()
    assert_right(open_model("openvino", model, options).run(feeds), feeds)
    blobs = {p: p.stat().st_mtime_ns for p in options.cache_dir.rglob("*.blob")}
    assert len(blobs) == 1
    assert_right(open_model("openvino", model, options).run(feeds), feeds)
    assert {p: p.stat().st_mtime_ns for p in options.cache_dir.rglob("*.blob")} == blobs


def test_a_cache_never_costs_the_result(
    model: Path, tmp_path: Path, options: SessionOptions
) -> None:
    assert options.cache_dir is not None
    feeds = make_feeds()
    (tmp_path / "file").write_text("in the way")
    blocked = replace(options, cache_dir=tmp_path / "file" / "cache")
    assert_right(open_model("openvino", model, blocked).run(feeds), feeds)

    open_model("openvino", model, options)
    (blob,) = options.cache_dir.rglob("*.blob")
    content = blob.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\xff" * len(content)):
        blob.write_bytes(damaged)
        assert_right(open_model("openvino", model, options).run(feeds), feeds)


def test_a_cache_that_fails_midway(
    model: Path, options: SessionOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[Path | None] = []
    compile_model = ov_runtime._compile

    def full_disk(*arguments: Any) -> Any:
        caches.append(arguments[-1])
        if arguments[-1] is not None:
            raise RuntimeError("No space left on device")
        return compile_model(*arguments)

    monkeypatch.setattr(ov_runtime, "_compile", full_disk)
    feeds = make_feeds()
    assert_right(open_model("openvino", model, options).run(feeds), feeds)
    assert [folder is None for folder in caches] == [False, True]


def test_a_replaced_model_is_not_taken_from_the_cache(model: Path, options: SessionOptions) -> None:
    def run() -> Array:
        artifact = Artifact("onnx", "fp32", (describe_file(model.parent, model.name),))
        session = BY_NAME["openvino"].open(model, SPEC, artifact, options, "micro")
        return session.run(feeds)["features"]

    feeds = make_feeds()
    before = run()
    proto = onnx.load(str(model))
    kernel = next(tensor for tensor in proto.graph.initializer if tensor.name == "kernel")
    kernel.CopyFrom(numpy_helper.from_array(-KERNEL, "kernel"))
    onnx.save(proto, str(model))
    bias = TABLE[feeds["ids"]].mean(axis=1)[..., None, None]
    np.testing.assert_allclose(run() - bias, bias - before, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "/somewhere/mmsr-edge"),
        ("win32", "LOCALAPPDATA", "/somewhere/mmsr-edge"),
        ("linux", None, "/home/ada/.cache/mmsr-edge"),
        ("darwin", None, "/home/ada/Library/Caches/mmsr-edge"),
        ("win32", None, "/home/ada/AppData/Local/mmsr-edge"),
    ],
)
def test_the_cache_folder_follows_the_platform(
    platform: str, variable: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "/somewhere")
    assert cache.user_cache().as_posix() == expected


def test_no_home_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache, "user_cache", homeless)
    assert cache.writable_cache(None, "openvino") is None


# --- The registry -------------------------------------------------------------------------------


ABSENT = ModuleNotFoundError("No module named 'no_such_library.core'", name="no_such_library.core")
HALF_THERE = ModuleNotFoundError("No module named 'json.nowhere'", name="json.nowhere")


def install(monkeypatch: pytest.MonkeyPatch, **runtimes: Exception | None) -> dict[str, Backend]:
    """Replace the table by runtimes that open ONNX, each with what its `load` raises."""
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
        ("good", "absent", "broken"), "'slow' was asked for"
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
        pytest.fail("imported in vain")

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


def test_each_runtime_takes_the_precision_it_is_fastest_at(
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
def test_a_component_opens_from_its_bundle(
    name: str, bundle: Bundle, options: SessionOptions
) -> None:
    save_model(bundle.root / "toy.onnx")
    artifact = replace(SPEC.artifacts[0], files=(describe_file(bundle.root, "toy.onnx"),))
    # The role is the tokenizer's, the tensors are not: runtimes know nothing of roles.
    components = {"tokenizer": replace(SPEC, artifacts=(artifact,))}
    manifest = types.SimpleNamespace(components=components, preset="micro", name="toy")
    toy = replace(bundle, manifest=manifest)  # type: ignore[arg-type]
    selection = select_backend(name, toy)
    feeds = make_feeds()
    assert_right(open_session(toy, "tokenizer", selection.backend, options).run(feeds), feeds)


def test_the_real_table() -> None:
    assert list(BY_NAME) == ["openvino", "onnxruntime", "coreml", "torch"]
    for name in ONNX_BACKENDS:
        assert BY_NAME[name].available() is None
    if sys.platform != "darwin":
        assert "macOS only" in (BY_NAME["coreml"].available() or "")


# --- Core ML, with a stand-in for the library: the real one runs on macOS only ------------------


class FakeMLModel:
    """Computes the reference as Core ML would: no int64, results in their own types."""

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
    with pytest.raises(BundleError, match=r"in no \.mlpackage"):
        open_model("coreml", Path("toy.mlmodel"), SessionOptions())
    with pytest.raises(OptionError, match="'npu': Core ML knows auto, all, cpu, gpu, ane"):
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


def test_ctrl_c_survives_openvino_sessions_that_were_closed(tmp_path: Path) -> None:
    """In a process of its own, for the failure is a segmentation fault."""
    pytest.importorskip("openvino")
    code = """
import gc, pathlib, signal, sys
import numpy as np
from bundle_factory import make_bundle
from mmsr_edge import Upscaler
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
root = make_bundle(pathlib.Path(sys.argv[1]))
for _ in range(2):
    upscaler = Upscaler(root, "openvino", threads=1, cache_dir=root)
    upscaler(np.zeros((8, 8, 3), np.uint8), edges=None)
del upscaler
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        ),
    }
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "interrupted\n")


TELEMETRY = """
import sys
{first}
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__, "openvino_telemetry" in sys.modules)
"""


@pytest.mark.parametrize(
    ("first", "used"),
    [
        ("from mmsr_edge.runtimes import ov; ov.load()", "openvino.tools.ovc.telemetry_stub False"),
        # What the guard is there for: without it, telemetry is loaded, and reports the import.
        ("import openvino", "openvino_telemetry True"),
    ],
)
def test_openvino_reports_to_nobody(first: str, used: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    # A stand-in for the package, so that the planted import does not report anything either.
    fake = tmp_path / "openvino_telemetry"
    (fake / "backend").mkdir(parents=True)
    (fake / "__init__.py").write_text(
        "class Telemetry:\n"
        "    def __init__(self, *a, **k): pass\n"
        "    def __getattr__(self, name):\n"
        "        if name == 'backend': raise AttributeError(name)\n"
        "        return lambda *a, **k: None\n"
    )
    (fake / "backend" / "__init__.py").write_text("")
    (fake / "backend" / "backend_ga4.py").write_text("class GA4Backend: pass\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + TELEMETRY.format(first=first)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == used, done.stderr[-2000:]
