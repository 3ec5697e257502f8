"""The interpreter as a runtime, so that Core ML files are measured like those of other formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mmsr_edge.bundle import Artifact, ComponentSpec
from mmsr_edge.converters.mil.program import MILProgram
from mmsr_edge.converters.to_coreml import import_coremltools
from mmsr_edge.errors import BundleError
from mmsr_edge.runtimes.base import (
    CheckedSession,
    Session,
    SessionOptions,
    Tensors,
    check_signature,
)


def load() -> None:
    """Import coremltools, which has the protobuf schema of packages.

    Raises:
        MissingExtraError: coremltools is not installed.
    """
    import_coremltools()


def open_session(
    path: Path, component: ComponentSpec, artifact: Artifact, options: SessionOptions, preset: str
) -> Session:
    """Open the `.mlpackage` that contains `path`.

    `artifact`, `options` and `preset` are unused; they are part of the interface of runtimes.

    Raises:
        BundleError: the package is missing or damaged, or its inputs or outputs differ from
            `component`'s.
        BackendError: an operation is not supported by the interpreter.
    """
    del artifact, options, preset
    package = next((p for p in (path, *path.parents) if p.suffix == ".mlpackage"), None)
    if package is None:
        raise BundleError(f"component {component.name!r}: {str(path)!r} is in no .mlpackage folder")
    return _MILSession(MILProgram.open(package), component)


class _MILSession(CheckedSession):
    def __init__(self, program: MILProgram, component: ComponentSpec) -> None:
        super().__init__(component)
        self._program = program
        for kind, specs, ports in (
            ("input", self.inputs, program.inputs),
            ("output", self.outputs, program.outputs),
        ):
            # Core ML has no int64; its int32 stands for the int64 of the specification.
            found = {p.name: (p.dtype.name.replace("int32", "int64"), p.shape) for p in ports}
            check_signature(component.name, kind, specs, found)

    def _infer(self, feeds: Tensors) -> Sequence[NDArray[Any]]:
        results = self._program.run(feeds)
        return [results[spec.name].astype(spec.dtype) for spec in self.outputs]
