"""Core ML, on macOS: an .mlpackage on the CPU, the GPU or the Neural Engine."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.errors import BackendError, BundleError, OptionError
from mmsr_edge.runtimes.base import CheckedSession, Session, SessionOptions, Tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mmsr_edge.bundle import Artifact, ComponentSpec

# Our device names: the members of coremltools.ComputeUnit.
_UNITS = {"auto": "ALL", "all": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}


def load() -> None:
    """Import the library.

    Raises:
        BackendError: this is not macOS; other systems can make Core ML models but not run them.
        Exception: whatever a broken installation raises.
    """
    if platform.system() != "Darwin":
        raise BackendError(f"Core ML runs on macOS only; this is {platform.system()}")
    import coremltools  # noqa: F401


def open_session(
    path: Path, component: ComponentSpec, artifact: Artifact, options: SessionOptions, preset: str
) -> Session:
    """Open the .mlpackage that holds `path`; `artifact` and `preset` are not used.

    `options.device` is one of "auto", "all", "cpu", "gpu" and "ane"; the system manages threads
    and its own cache.

    Raises:
        BundleError: `path` is not in an .mlpackage, or its inputs or outputs differ from
            `component`'s.
        OptionError: the device is unknown.
    """
    del artifact, preset
    package = next((p for p in (path, *path.parents) if p.suffix == ".mlpackage"), None)
    if package is None:
        raise BundleError(
            f"component {component.name!r}: {str(path)!r} is not in an .mlpackage folder"
        )
    if options.device.lower() not in _UNITS:
        raise OptionError(f"device {options.device!r}: Core ML has {', '.join(_UNITS)}")
    return _CoreMLSession(package, component, _UNITS[options.device.lower()])


class _CoreMLSession(CheckedSession):
    def __init__(self, package: Path, component: ComponentSpec, unit: str) -> None:
        import coremltools as ct

        super().__init__(component)
        self._model = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit[unit])
        description = self._model.get_spec().description
        for kind, specs, ports in (
            ("input", self.inputs, description.input),
            ("output", self.outputs, description.output),
        ):
            wanted, found = {spec.name for spec in specs}, {port.name for port in ports}
            if wanted != found:
                raise BundleError(
                    f"component {self.name!r}: the file has {kind}s {sorted(found)}, the manifest "
                    f"{sorted(wanted)}; export the bundle again"
                )

    def _infer(self, feeds: Tensors) -> Sequence[NDArray[Any]]:
        # Core ML has no int64: ids are passed as int32. Results are cast to the declared dtype.
        narrow = {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in feeds.items()}
        results = self._model.predict(narrow)
        return [np.asarray(results[s.name]).astype(s.dtype, copy=True) for s in self.outputs]
