"""Runtimes: every backend agrees with numpy, and its errors are clear."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from toy_model import (
    BY_NAME,
    KERNEL,
    ONNX_BACKENDS,
    SPEC,
    TABLE,
    assert_right,
    make_feeds,
    open_model,
    save_model,
)

from mmsr_edge.bundle import Artifact, describe_file
from mmsr_edge.errors import BackendError, BundleError, OptionError
from mmsr_edge.runtimes import cache
from mmsr_edge.runtimes import ov as ov_runtime
from mmsr_edge.runtimes.base import SessionOptions

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "toy.onnx")


@pytest.fixture
def options(tmp_path: Path) -> SessionOptions:
    return SessionOptions(threads=1, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_results_agree_with_numpy(name: str, model: Path, options: SessionOptions) -> None:
    session = open_model(name, model, options)
    assert session.inputs == SPEC.inputs
    assert session.outputs == SPEC.outputs
    first_feeds, second_feeds = make_feeds(1), make_feeds(2)
    first = session.run(first_feeds)
    second = session.run(second_feeds)
    assert_right(second, second_feeds)
    assert_right(first, first_feeds)  # the second call has not overwritten the first results
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
def test_strided_feeds_are_accepted(name: str, model: Path, options: SessionOptions) -> None:
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


def test_a_broken_cache_does_not_change_the_result(
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


def test_a_cache_that_fails_during_compilation(
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


def test_ctrl_c_survives_openvino_sessions_that_were_closed(tmp_path: Path) -> None:
    """Runs in its own process, since the failure is a segmentation fault."""
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
        # Without the guard, telemetry is loaded and reports the import.
        ("import openvino", "openvino_telemetry True"),
    ],
)
def test_openvino_loads_no_telemetry(first: str, used: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    # A stand-in for the package, so that the planted import reports nothing either.
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
