"""OpenVINO: reads IR and ONNX files, and keeps compiled models in a cache."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsr_edge.errors import OptionError
from mmsr_edge.runtimes.base import (
    CheckedSession,
    Session,
    SessionOptions,
    Tensors,
    check_signature,
)
from mmsr_edge.runtimes.cache import writable_cache

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mmsr_edge.bundle import Artifact, ComponentSpec


def load() -> None:
    """Import the library.

    Raises:
        Exception: whatever a broken installation raises.
    """
    _openvino()


_importing = threading.Lock()


def _openvino() -> Any:
    """The library, imported without its telemetry.

    OpenVINO reports its import to an analytics server, unless `openvino_telemetry` cannot be
    imported and a stub replaces it. If OpenVINO is imported already, its telemetry is unchanged.
    """
    with _importing:
        hidden = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
        if hidden:
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            if hidden:
                del sys.modules["openvino_telemetry"]
    return openvino


def open_session(
    path: Path, component: ComponentSpec, artifact: Artifact, options: SessionOptions, preset: str
) -> Session:
    """Open the .xml or .onnx file at `path`; `preset` is not used.

    `options.device` is OpenVINO's name; "auto" is the CPU, where results are reproducible.

    Raises:
        BundleError: the file's inputs or outputs differ from `component`'s.
        OptionError: this machine lacks the device.
    """
    del preset
    return _OpenVinoSession(path, component, artifact, options)


class _OpenVinoSession(CheckedSession):
    def __init__(
        self, path: Path, component: ComponentSpec, artifact: Artifact, options: SessionOptions
    ) -> None:
        super().__init__(component)
        core = _core()
        device = "CPU" if options.device == "auto" else options.device.upper()
        if device.split(".")[0] not in {name.split(".")[0] for name in core.available_devices}:
            raise OptionError(
                f"device {options.device!r}: OpenVINO finds {', '.join(core.available_devices)}"
            )
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # By default float layers run in bf16 on CPUs that support it, so results differ between
            # machines. Layers quantized to int8 stay int8.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if device == "CPU":
            # By default products with int8 weights round their float activations to int8 too.
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        if options.threads is not None:
            config["INFERENCE_NUM_THREADS"] = options.threads
        # OpenVINO identifies a cached model by its path, and would use it after the file has been
        # replaced. So each combination of content, device, settings and version has its own folder.
        key = [file.sha256 for file in artifact.files], device, config, _openvino().__version__
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        cache = writable_cache(options.cache_dir, "openvino")
        try:
            kept = contextlib.nullcontext() if cache is None else _published(cache / digest)
            with kept as folder:
                self._model = _compile(core, path, component, device, config, folder)
        except (RuntimeError, OSError):
            if cache is None:
                raise
            # Without the cache, since it may be damaged or not writable.
            self._model = _compile(core, path, component, device, config, None)
        for kind, specs, ports in (
            ("input", self.inputs, self._model.inputs),
            ("output", self.outputs, self._model.outputs),
        ):
            check_signature(self.name, kind, specs, _signature(ports, {s.name for s in specs}))
        self._request = self._model.create_infer_request()
        self._busy = threading.Lock()  # a request serves one call at a time

    def _infer(self, feeds: Tensors) -> Sequence[NDArray[Any]]:
        with self._busy:
            # Results are copied, since the next call overwrites the request's own.
            results = self._request.infer(feeds, share_inputs=True, share_outputs=False)
            return [results[spec.name] for spec in self.outputs]


_made: list[Any] = []
_making = threading.Lock()


def _core() -> Any:
    """The process's only Core, which is never destroyed.

    OpenVINO's CPU plugin gives its thread its own signal stack (for AMX). When it is destroyed, it
    unmaps that stack and restores the previous one, which may belong to a Core that no longer
    exists. The next signal that Python handles, such as Ctrl-C, then has no stack and kills the
    process.
    """
    with _making:
        if not _made:
            _made.append(_openvino().Core())
        return _made[0]


@contextlib.contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """Context manager: `folder` if it exists, otherwise a new folder that is then renamed to it.

    OpenVINO writes a compiled model gradually under its final name, where a second process that
    starts at the same time could read an incomplete file. If another process was faster, its folder
    is kept.
    """
    if folder.is_dir():
        yield folder
        return
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)
        with contextlib.suppress(OSError):
            Path(name).rename(folder)


def _compile(
    core: Any,
    path: Path,
    component: ComponentSpec,
    device: str,
    config: dict[str, Any],
    cache: Path | None,
) -> Any:
    if cache is not None:
        config = {**config, "CACHE_DIR": str(cache)}
    # Given a path, OpenVINO finds a cached model without parsing the file.
    compiled = core.compile_model(str(path), device, config)
    if any(port.partial_shape.is_dynamic for port in compiled.inputs):
        model = core.read_model(str(path))
        model.reshape({spec.name: list(spec.shape) for spec in component.inputs})
        compiled = core.compile_model(model, device, config)
    return compiled


def _signature(ports: Sequence[Any], wanted: set[str]) -> dict[str, tuple[str, list[int | None]]]:
    # A tensor may have several names: where a normalization is fused into the layer after it, the
    # input also has the name of the normalization's result.
    return {
        next(iter(sorted(wanted & port.get_names())), port.get_any_name()): (
            port.get_element_type().to_dtype().name,
            [None if size.is_dynamic else size.get_length() for size in port.partial_shape],
        )
        for port in ports
    }
